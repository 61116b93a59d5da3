# SPDX-License-Identifier: Apache-2.0
"""How far a build has come: TensorRT's nested phases as one number that only grows; and its cancellation."""

from __future__ import annotations

import logging
import threading
from typing import Any, Protocol

from recon_ros.errors import NetworkError

_LOGGER = logging.getLogger("recon_ros.runtimes.trt")


class BuildCancelled(NetworkError):
    """The build was cancelled by who watched its progress; nothing was written."""


class ProgressSink(Protocol):
    """Who is told how far a build is."""

    def update(self, phase: str, fraction: float) -> bool:
        """Take notice. May be called from any thread, often.

        Args:
            phase: what is done now, in words.
            fraction: of the whole, [0, 1], never less than before. An estimate: TensorRT's phases differ in length.

        Returns:
            False cancels the build.
        """
        ...


def tell(sink: ProgressSink | None, phase: str, fraction: float) -> None:
    """Tell how far it is, if anybody listens.

    Raises:
        BuildCancelled: the end is asked for.
    """
    if sink is not None and not sink.update(phase, fraction):
        raise BuildCancelled(f"cancelled during: {phase}; nothing was written")


class _Phase:
    """A phase of TensorRT's, with those inside it that are running now."""

    def __init__(self, name: str, parent: _Phase | None, steps: int) -> None:
        self.name = name
        self.parent = parent
        self.steps = max(1, steps)
        self.done = 0
        self.inner_done = 0  # phases that ended inside the step that runs now
        self.children: list[_Phase] = []

    def fraction(self) -> float:
        """Steps done, and what the phases inside the next one have done of it; [0, 1].

        How many phases a step will have is not told: each counts for half of what is left of it.
        """
        running = max((child.fraction() for child in self.children), default=0.0)
        inside = 1 - 0.5**self.inner_done * (1 - 0.5 * running)
        return min(1.0, (self.done + inside) / self.steps)


class PhaseTree:
    """TensorRT's reports (phases begin, step and end, nested and from several threads) as one growing fraction.

    Phases end early, come twice and last as long as they like (timing kernels takes nearly all of a build with the
    full TensorRT, and is one of many steps), so it is an estimate that may jump; it never falls back.
    """

    def __init__(self, sink: ProgressSink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._roots: list[_Phase] = []
        self._best = 0.0
        self.cancelled = False
        self.failure: BaseException | None = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, inside another one or on its own."""
        with self._lock:
            above = self._phases.get(parent) if parent else None
            phase = _Phase(name, above, steps)
            self._phases[name] = phase
            (above.children if above else self._roots).append(phase)
        self._report(name)

    def step(self, name: str) -> bool:
        """A step of it is done; whether to go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done += 1
                self._phases[name].inner_done = 0
        return self._report(name)

    def finish(self, name: str) -> None:
        """It is over, maybe before its last step."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is None:
                return
            if phase.parent is None:
                phase.done, phase.children = phase.steps, []
            elif phase in phase.parent.children:
                phase.parent.children.remove(phase)
                phase.parent.inner_done += 1

    def _report(self, name: str) -> bool:
        with self._lock:
            now = sum(root.fraction() for root in self._roots) / len(self._roots) if self._roots else 0.0
            self._best = max(self._best, now)
            if self.cancelled:
                return False
            # In the lock, so that what one thread reports never falls behind what another one did.
            try:
                go_on = self._sink.update(name, self._best)
            except BaseException as error:  # must not go through TensorRT's own code: kept, raised after the build
                self.failure = error
                go_on = False
            self.cancelled = not go_on
            return bool(go_on)


class Part:
    """The share [begin, end] of another sink, as a sink of its own."""

    def __init__(self, sink: ProgressSink, begin: float, end: float) -> None:
        self._sink, self._begin, self._end = sink, begin, end

    def update(self, phase: str, fraction: float) -> bool:
        """See `ProgressSink.update`."""
        return self._sink.update(phase, self._begin + fraction * (self._end - self._begin))


class LogProgress:
    """Says each tenth in the log; cancels nothing."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._tenth = -1

    def update(self, phase: str, fraction: float) -> bool:
        """See `ProgressSink.update`."""
        tenth = int(fraction * 10)
        if tenth > self._tenth:
            self._tenth = tenth
            _LOGGER.info("%s: %d %%, %s", self._what, tenth * 10, phase)
        return True


def make_monitor(trt: Any, tree: PhaseTree) -> Any:
    """An `IProgressMonitor` of this module that tells `tree`. Must outlive the build."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tree.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            tree.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return tree.step(phase_name)

    return Monitor()
