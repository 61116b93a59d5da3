# SPDX-License-Identifier: Apache-2.0
"""Contenders in processes of their own: each has its own memory and clock, takes its turns, and can be stopped."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import Contender, Subject, make_files, needs_files
from benchmarks.step_cost import StepCost, count
from recon_ros.networks.plan import HEALTH
from recon_ros.runtimes import golden

CHECKED_STEPS = 5
WARM_UPS = 2

Samples = Mapping[str, NDArray[np.float32]]


@dataclass
class Outcome:
    """What became of one contender.

    Attributes:
        contender: which.
        runtime: as the executor calls itself, with versions.
        load_s: seconds to open it, its files being there.
        wall_s, cpu_s: of each step; CPU seconds of the whole process, all threads.
        peak_mb: largest resident memory of its process, MiB.
        gpu_mb: largest memory on the GPU, MiB, or None.
        errors: output → mean |Δ| / mean |reference|, the worst of the checked steps; empty without a reference.
        cost: of a step, of the reference only.
        failure: why there is nothing else.
    """

    contender: Contender
    runtime: str = ""
    load_s: float = 0.0
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    gpu_mb: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    cost: StepCost | None = None
    failure: str = ""

    @property
    def worst_error(self) -> float | None:
        """Of all outputs; None without a reference."""
        return max(self.errors.values(), default=None)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "name": str(self.contender), "worst_error": self.worst_error}


class Session:
    """A contender at work in this process."""

    def __init__(self, subject: Subject, contender: Contender) -> None:
        self.contender = contender
        self._gpu_before = _gpu_mb() if self._on_gpu() else 0.0
        start = time.perf_counter()
        self.executor = contender.open(subject)
        self.load_s = time.perf_counter() - start
        self._images = golden.golden_images(subject.width, subject.height, CHECKED_STEPS)
        self._memory = self.executor.initial()
        self._steps = 0

    def opened(self) -> tuple[str, float]:
        """What it calls itself, and how long opening took."""
        return self.executor.runtime, self.load_s

    def record(self) -> dict[str, NDArray[np.float32]]:
        """Samples of what it answers in a few steps."""
        return golden.record(self.executor, CHECKED_STEPS)

    def warm(self) -> None:
        """Steps that do not count, on the memory that the counted ones go on with."""
        self._memory = self.executor.initial()
        for _ in range(WARM_UPS):
            self.step()

    def step(self) -> tuple[float, float]:
        """Wall and CPU seconds of the next step, with the copies to and from a device."""
        image = self._images[self._steps % len(self._images)]
        wall, cpu = time.perf_counter(), time.process_time()
        self._memory, _ = self.executor.step(self._memory, image)
        self._steps += 1
        return time.perf_counter() - wall, time.process_time() - cpu

    def cost(self) -> StepCost:
        """Operations and bytes of a step; of torch only."""
        return count(self.executor, self._images[0])

    def memory(self) -> tuple[float, float | None]:
        """Largest resident memory of this process, and on the GPU, MiB."""
        return _resident_mb(), _gpu_mb() - self._gpu_before if self._on_gpu() else None

    def _on_gpu(self) -> bool:
        return self.contender.device == "cuda" or self.contender.runtime.startswith("tensorrt")


def _resident_mb() -> float:
    """Peak of this process; what `getrusage` says begins with the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _gpu_mb() -> float:
    import torch

    free, total = torch.cuda.mem_get_info()
    # PyTorch keeps what it once had; of the others, what is held now is all that they ever have.
    return (total - free) / 2**20


class Worker:
    """A `Session` in another process; calls raise `Stopped` when it fails or takes longer than it may.

    Args:
        subject, contender: see `Session`.
        budget_s: seconds from now until it is stopped.
    """

    def __init__(self, subject: Subject, contender: Contender, budget_s: float) -> None:
        self._deadline = time.monotonic() + budget_s
        self._budget_s = budget_s
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, subject, contender), daemon=False)
        self._process.start()
        there.close()

    def call(self, name: str) -> Any:
        """The result of a method of `Session`; `open` makes it, and what it needs before."""
        try:
            self._here.send(name)
            if not self._here.poll(max(0.0, self._deadline - time.monotonic())):
                raise Stopped(f"stopped after its {self._budget_s:.0f} s, in: {name}")
            fine, value = self._here.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise Stopped(f"its process ended with exit code {self._process.exitcode}, in: {name}") from error
        if not fine:
            raise Stopped(value)
        return value

    def close(self) -> None:
        """End the process, by force where it does not listen."""
        self._here.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


class Stopped(Exception):
    """A contender is out; the message says why."""


def _serve(connection: Any, subject: Subject, contender: Contender) -> None:
    session: Session | None = None
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        try:
            value: Any = None
            if name == "files":
                make_files(subject, contender)
            elif name == "open":
                session = Session(subject, contender)
                value = session.opened()
            else:
                value = getattr(session, name)()
            connection.send((True, value))
        except Exception as error:  # told to who waits, whatever it is
            text = (str(error).strip().splitlines() or [traceback.format_exc(limit=-1)])[0]
            connection.send((False, f"{type(error).__name__}: {text}"))


def race(
    subject: Subject,
    contenders: Sequence[Contender],
    steps: int,
    budget_s: float = 1e6,
    together: bool = True,
    tell: Callable[[str], None] = lambda text: None,
    open_worker: Callable[[Subject, Contender, float], Any] = Worker,
    total_s: float = 1e6,
    reference: Samples | None = None,
) -> tuple[list[Outcome], Samples | None]:
    """Measure each contender.

    Args:
        subject: what they execute.
        contenders: the reference first, if it is to be compared with.
        steps: counted of each, fewer where the time is out.
        budget_s: for each contender, its files included.
        together: all are open at once and take turns step by step, so that all meet the same disturbances; otherwise
            one after the other, for when memory or a GPU is not enough for all.
        tell: hears what is done.
        open_worker: see `Worker`.
        total_s: for all; who would come after it is not run.
        reference: what to compare with, of an earlier race.

    Returns:
        What became of them, in order, and what to compare others with.
    """
    end = time.monotonic() + total_s
    outcomes = [Outcome(contender) for contender in contenders]
    groups = [outcomes] if together else [[outcome] for outcome in outcomes]
    for group in groups:
        opened: list[tuple[Outcome, Any]] = []
        for outcome in group:
            left = min(budget_s, end - time.monotonic())
            if left <= 0:
                outcome.failure = f"not run: the {total_s:.0f} s for all are over"
                continue
            record = _open(subject, outcome, left, tell, open_worker, opened)
            if record is not None:
                reference = record if outcome.contender.is_reference else reference
                outcome.errors = {} if reference is None else compare(record, reference)
        _take_turns(opened, steps, end)
    return outcomes, reference


def _open(
    subject: Subject,
    outcome: Outcome,
    budget_s: float,
    tell: Callable[[str], None],
    open_worker: Callable[[Subject, Contender, float], Any],
    opened: list[tuple[Outcome, Any]],
) -> Samples | None:
    """Open one, and give what it answers; None where that failed."""
    tell(f"{subject}: {outcome.contender}")
    start = time.monotonic()
    if needs_files(subject, outcome.contender):
        maker = open_worker(subject, outcome.contender, budget_s)
        try:
            maker.call("files")
        except Stopped as stopped:
            outcome.failure = str(stopped)
            return None
        finally:
            maker.close()
    worker = open_worker(subject, outcome.contender, budget_s - (time.monotonic() - start))
    try:
        outcome.runtime, outcome.load_s = worker.call("open")
        record: Samples = worker.call("record")
        worker.call("warm")
    except Stopped as stopped:
        outcome.failure = str(stopped)
        worker.close()
        return None
    opened.append((outcome, worker))
    return record


def _take_turns(opened: list[tuple[Outcome, Any]], steps: int, end: float) -> None:
    for _ in range(steps):
        for outcome, worker in opened:
            if outcome.failure or (outcome.wall_s and time.monotonic() > end):
                continue
            try:
                wall, cpu = worker.call("step")
                outcome.wall_s.append(wall)
                outcome.cpu_s.append(cpu)
            except Stopped as stopped:
                outcome.failure = outcome.failure or str(stopped)
    for outcome, worker in opened:
        try:
            outcome.peak_mb, outcome.gpu_mb = worker.call("memory")
            if outcome.contender.is_reference:
                outcome.cost = worker.call("cost")
        except Stopped as stopped:
            outcome.failure = outcome.failure or str(stopped)
        finally:
            worker.close()


def compare(record: Samples, reference: Samples) -> dict[str, float]:
    """Output → the worst of its steps; the health sums aside."""
    errors: dict[str, float] = {}
    for key in sorted(set(record) & set(reference)):
        name = key.partition("/")[2]
        if not name.startswith(HEALTH):
            errors[name] = max(errors.get(name, 0.0), golden.relative_error(record[key], reference[key]))
    return errors
