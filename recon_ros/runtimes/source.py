# SPDX-License-Identifier: Apache-2.0
"""A network as a source of pointmaps, executed by the best runtime that is ready and gives right numbers.

The first image's size decides which graphs and engines are needed, so nothing is loaded before. Who executes may change
while it runs, when a build is finished; the memory moves over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import Config
from recon_ros.errors import InputError, NetworkError
from recon_ros.frame import Camera, Prediction
from recon_ros.runtimes import words
from recon_ros.runtimes.choice import Build, Lack, Opened, Size, Unusable, Workshop, choose_ladders
from recon_ros.runtimes.ladder import Ladder, Variant
from recon_ros.runtimes.status import FAILED, LOADING, MISSING, WAITING, RuntimeStatus
from recon_ros.runtimes.step import Memory

LOG = logging.getLogger("recon_ros.runtimes")

LOOK_AGAIN_S = 5.0
"""While nothing serves, how often the cache is looked into again: a build in another terminal is noticed."""

MOST_BUILDS = 2
"""Of one variant: what is built, refused, put aside and built anew is not built a third time."""

POLL_S = 0.1
TOO_OLD = "the memory is older than the last change of the runtime; reset to begin anew"
CLOSE_TIMEOUT_S = 2.0


class SourceMemory:
    """A memory of whoever executed the step, or, before one did, arrays that were saved: none, or of another run."""

    def __init__(self, inner: Memory, home: Opened | None) -> None:
        self.inner, self.home = inner, home


class NetworkSource:
    """A `StepRuntime` (see `recon_ros/runtimes/step.py`) that finds who executes it.

    Steps come from one thread; `runtime_status` and `close` may be used from another. Of the memories that a step has
    returned, only the latest survives a change of the runtime.

    Args:
        config: source, runtime, precision and engine options of it are used.
        workshop: where variants come from.

    Raises:
        ConfigError: runtime and precision do not go together.
        NetworkError: the runtime asked for can never run here, or none can.
    """

    def __init__(self, config: Config, workshop: Workshop) -> None:
        self._config, self._workshop = config, workshop
        self.card = workshop.card
        self._model = workshop.card.name.split(" ")[0]
        self._ladders = choose_ladders(config, workshop.machine)
        self._awaited = None if config.runtime == "auto" else self._ladders[0]
        self._rejected: dict[Variant, str] = {}
        self._size: Size | None = None
        self._current: Opened | None = None
        self._retiring: Opened | None = None
        self._lost: Opened | None = None
        self._build: tuple[Variant, Build] | None = None
        self._begun: Counter[Variant] = Counter()
        self._loading: Variant | None = None
        self._trouble = RuntimeStatus(WAITING, message=f"{self._name} waits for the first image, whose size decides")
        self._looked = 0.0
        self._closed = False
        self._lock = threading.Lock()
        self._refuse_the_impossible()

    # -- what others see -------------------------------------------------------------------------------------

    @property
    def runtime(self) -> str:
        """Who executes now; what was asked for while nobody does."""
        current = self._current
        return self._config.runtime if current is None else current.driver.runtime

    @property
    def runtime_status(self) -> RuntimeStatus:
        """How it stands, from any thread."""
        current, building, loading = self._current, self._build, self._loading
        if loading is not None:
            serving = "" if current is None else current.driver.runtime
            return RuntimeStatus(LOADING, serving, message=f"loading {loading}")
        if building is not None:
            return words.building(*building, current, self._rejected)
        return self._trouble if current is None else words.serving(current, self._rejected)

    def initial_memory(self) -> SourceMemory:
        """Nothing seen yet; belongs to no runtime so far."""
        return SourceMemory({}, None)

    def save_memory(self, memory: SourceMemory) -> dict[str, NDArray[Any]]:
        """See `StepRuntime.save_memory`.

        Raises:
            NetworkError: the memory is older than the last change of the runtime.
        """
        with self._lock:
            if memory.home is None:
                return dict(memory.inner)
            if memory.home not in (self._current, self._retiring):
                raise NetworkError(TOO_OLD)
            return dict(memory.home.driver.save_memory(memory.inner))

    def load_memory(self, arrays: Mapping[str, NDArray[Any]]) -> SourceMemory:
        """See `StepRuntime.load_memory`; before anything is loaded, what does not fit is refused by the next step."""
        with self._lock:
            if self._current is None:
                return SourceMemory(dict(arrays), None)
            return SourceMemory(self._current.driver.load_memory(arrays), self._current)

    def step(
        self,
        memory: SourceMemory,
        image: NDArray[np.uint8],
        camera: Camera | None,
        depth: NDArray[np.float32] | None = None,
    ) -> tuple[SourceMemory, Prediction]:
        """Advance by one frame; see `StepRuntime.step`. The first one loads the network, which takes seconds.

        Raises:
            InputError: ``image_size``, not of the first image's; ``engine_missing`` or ``engine_building``, nothing
                serves yet; ``engine_failed``, nothing that is here can, or who served broke down and another one comes
                in with the next frame; and those of the network.
            NetworkError: the memory is older than the last change of the runtime; the source was closed.
        """
        with self._lock:
            self._ensure((image.shape[1], image.shape[0]))
            current, inner = self._bring_home(memory)
            try:
                after, prediction = current.driver.step(inner, image, camera, depth)
            except NetworkError as error:
                raise self._broken_down(current, error) from error
            return SourceMemory(after, current), prediction

    def prepare(self, width: int, height: int, tell: Callable[[RuntimeStatus], None] = lambda status: None) -> None:
        """Load for images of this size now; with ``engine.build``, build what is missing and wait for it.

        Args:
            width, height: of the network's image, pixels.
            tell: hears how it stands, often.

        Raises:
            InputError: another size is in use already.
            NetworkError: nothing can serve, or `close` was called.
        """
        while True:
            with self._lock:
                self._ensure((width, height))
                building = self._build is not None
            tell(self.runtime_status)
            if not building:
                break
            time.sleep(POLL_S)
        if self._current is None:
            raise NetworkError(self._trouble.message)

    def close(self) -> None:
        """Cancel what is being built and give back what is loaded, unless a step is at work that does not end."""
        self._closed = True
        self._cancel_build()
        if self._lock.acquire(timeout=CLOSE_TIMEOUT_S):
            try:
                self._cancel_build()  # a step may have begun another one
                self._retire()
                self._retiring, self._current = self._current, None
                self._retire()
            finally:
                self._lock.release()

    def _cancel_build(self) -> None:
        building, self._build = self._build, None
        if building is not None:
            building[1].cancel()

    # -- choosing --------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"{self._model} (runtime {self._config.runtime})"

    def _refuse_the_impossible(self) -> None:
        """What can be known before the first image: the runtime asked for is not installed, or none is."""
        asked = self._ladders if self._awaited is None else [self._awaited]
        lacks = [(ladder.rungs[0], self._workshop.lack(ladder.rungs[0], None)) for ladder in asked]
        if all(lack is not None and not lack.buildable for _, lack in lacks):
            reasons = "; ".join(f"{variant.runtime}: {lack}" for variant, lack in lacks)
            raise NetworkError(f"source '{self._config.source}' cannot run here: {reasons}")

    def _ensure(self, size: Size) -> None:
        """See to it that images of this size are served, if they can be."""
        if self._closed:
            raise NetworkError(f"{self._name}: the source was closed")
        building = self._build
        if self._size is None:
            self._size = size
            LOG.info("looking for what can run %s at %s", self._model, words.by(size))
            self._look(size)
        elif size != self._size:
            raise InputError(
                "image_size",
                f"the image has {words.by(size)} pixels for the network, which was prepared for "
                f"{words.by(self._size)}: restart for the new size",
            )
        elif building is not None:
            self._follow_build(size, *building)
        elif self._current is None and time.monotonic() > self._looked + LOOK_AGAIN_S:
            self._look(size)

    def _follow_build(self, size: Size, variant: Variant, build: Build) -> None:
        if build.running:
            return
        self._build = None
        if build.done:
            LOG.info("%s was built for %s in %.0f s", variant, words.by(size), build.progress.elapsed_s)
        else:
            self._reject(variant, f"building it failed: {build.failed}")
        self._look(size)

    def _look(self, size: Size) -> None:
        """Serve with the best variant that is ready and right; begin to build a better one; say why."""
        self._looked = time.monotonic()
        lacks: dict[Variant, Lack] = {}
        for ladder in self._ladders:
            for variant in self._allowed(ladder):
                if self._current is not None and variant == self._current.variant:
                    self._build_first(ladder, lacks, size)
                    return
                lack = self._find_lack(variant, size)
                if lack is not None:
                    lacks[variant] = lack
                elif self._take(variant, size):
                    self._say_choice(variant, lacks, size)
                    self._build_first(ladder, lacks, size)
                    return
                elif variant not in self._rejected:
                    lacks[variant] = self._find_lack(variant, size) or Lack("it was put aside")
            self._build_first(ladder, lacks, size)
            if ladder is self._awaited and self._may_come(ladder, lacks):
                break
        if self._current is None:
            self._complain(lacks)

    def _allowed(self, ladder: Ladder) -> Iterator[Variant]:
        """The rungs that may serve, from the top. What was asked for is left for a lower rung only when it is wrong."""
        for index, variant in enumerate(ladder.rungs):
            if variant in self._rejected:
                continue
            yield variant
            if variant not in self._rejected and index == 0 and not ladder.free:
                return

    def _build_first(self, ladder: Ladder, lacks: dict[Variant, Lack], size: Size) -> None:
        """Begin to build the best rung of a ladder that is not known to be wrong, unless it serves."""
        if self._build is not None or not self._config.engine.build or self._closed:
            return
        for variant in ladder.rungs:
            if variant in self._rejected:
                continue
            if self._current is not None and variant == self._current.variant:
                return
            lack = lacks.get(variant) or self._find_lack(variant, size)
            if lack is None or not lack.buildable:
                return
            if self._begin_build(variant, lack, size):
                lacks[variant] = Lack("it is being built", buildable=True)
                return

    def _begin_build(self, variant: Variant, lack: Lack, size: Size) -> bool:
        """Begin, or give the variant up."""
        if self._begun[variant] == MOST_BUILDS:
            self._reject(variant, f"it was built {MOST_BUILDS} times, and still: {lack.reason}")
            return False
        self._begun[variant] += 1
        try:
            self._build = (variant, self._workshop.build(variant, size))
        except NetworkError as error:
            self._reject(variant, f"building it failed: {error}")
            return False
        LOG.info("building %s for %s in a process of its own, once: %s", variant, words.by(size), lack.reason)
        return True

    def _find_lack(self, variant: Variant, size: Size) -> Lack | None:
        building = self._build
        if building is not None and building[0] == variant:
            return Lack("it is being built", buildable=True)
        return self._workshop.lack(variant, size)

    def _may_come(self, ladder: Ladder, lacks: dict[Variant, Lack]) -> bool:
        """Whether a runtime asked for by name is waited for, so that no other takes its place."""
        if self._build is not None:
            return True
        is_wrong = any(variant in self._rejected for variant in ladder.rungs)
        return not is_wrong and any(lacks[variant].buildable for variant in ladder.rungs if variant in lacks)

    def _take(self, variant: Variant, size: Size) -> bool:
        """Load a variant and have it serve, if its numbers are right; otherwise it is given up, or lacks something."""
        LOG.info("loading %s as %s for %s", self._model, variant, words.by(size))
        self._loading = variant
        try:
            opened = self._workshop.open(variant, size)
        except Unusable as error:
            LOG.warning("%s: %s; it was put aside", variant, error)
            return False
        except Exception as error:  # whatever a foreign library raises, there may be another runtime
            LOG.debug("opening %s", variant, exc_info=True)
            text = str(error) if isinstance(error, NetworkError) else f"{type(error).__name__}: {error}"
            self._reject(variant, text)
            return False
        finally:
            self._loading = None
        checked = opened.checked
        if checked is not None and not checked.passed:
            opened.driver.close()
            self._reject(variant, str(checked))
            return False
        self._retire()
        self._retiring, self._current = self._current, opened
        return True

    def _reject(self, variant: Variant, reason: str) -> None:
        self._rejected = {**self._rejected, variant: reason}  # another one: other threads read it
        LOG.warning("%s: %s is given up: %s", self._model, variant, reason)

    # -- the memory ------------------------------------------------------------------------------------------

    def _bring_home(self, memory: SourceMemory) -> tuple[Opened, Memory]:
        """Who serves, and the memory as he has it: on a change it moves over, or the change is taken back."""
        current, old = self._current, self._retiring
        if current is None:
            raise self._refusal()
        if memory.home is current:
            return current, memory.inner
        if memory.home is self._lost and self._lost is not None:
            LOG.warning("%s: the memory is lost; the network begins anew, the map stays", self._model)
            # A caller whose frame is refused now comes with it again, maybe when this one has broken down as well.
            memory.inner, memory.home = {}, None
        if memory.home is None:
            inner = current.driver.load_memory(memory.inner) if memory.inner else current.driver.initial_memory()
        elif memory.home is old:
            try:
                inner = current.driver.load_memory(old.driver.save_memory(memory.inner))
            except NetworkError as error:
                self._reject(current.variant, f"it does not take over the memory: {error}")
                self._current, self._retiring = old, current
                self._retire()
                return old, memory.inner
            # The same memory in another place: a caller whose frame is refused now will come with it again.
            memory.inner, memory.home = inner, current
        else:
            raise NetworkError(TOO_OLD)
        self._retire()
        return current, inner

    def _broken_down(self, current: Opened, error: NetworkError) -> InputError:
        """Give up who served, and his memory with him; the next frame looks for another."""
        self._reject(current.variant, f"it broke down: {error}")
        self._retire()
        self._lost, self._current, self._looked = current, None, 0.0
        current.driver.close()
        return InputError("engine_failed", f"{current.variant} broke down: {error}")

    def _retire(self) -> None:
        """Close who does not serve any more."""
        retiring, self._retiring = self._retiring, None
        if retiring is not None:
            retiring.driver.close()

    # -- words -----------------------------------------------------------------------------------------------

    def _say_choice(self, variant: Variant, lacks: dict[Variant, Lack], size: Size) -> None:
        assert self._current is not None
        reasons = words.passed_over(self._ladders, variant, self._rejected, lacks)
        LOG.info("%s", words.choice(self._model, self._current, size, reasons))

    def _complain(self, lacks: dict[Variant, Lack]) -> None:
        """Nothing serves: remember why, and say it when it is new."""
        assert self._size is not None
        can_be_made = any(lack.buildable for lack in lacks.values())
        reasons = ", ".join(words.passed_over(self._ladders, None, self._rejected, lacks))
        message = f"{self._name} has nothing to run with at {words.by(self._size)}: {reasons}"
        if message != self._trouble.message and self._build is None:
            LOG.warning("%s", message)
        self._trouble = RuntimeStatus(MISSING if can_be_made else FAILED, message=message, degraded=not can_be_made)

    def _refusal(self) -> InputError:
        status = self.runtime_status
        return InputError(f"engine_{status.state}", status.message)
