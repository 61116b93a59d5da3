# SPDX-License-Identifier: Apache-2.0
"""Measured times: repeated calls, and spans inside of a call that is not ours to cut apart."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import numpy as np


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group, name: what was measured, on which `input`.
        min_ms: the undisturbed time (see `repeated` and `over_frames`); median_ms: the usual one.
        repetitions: how many measurements that is.
        target_ms: what it should stay below, or None.
        note: what belongs to the number.
    """

    group: str
    name: str
    input: str
    min_ms: float
    median_ms: float
    repetitions: int
    target_ms: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the undisturbed time is within the target; None without one."""
        return None if self.target_ms is None else self.min_ms <= self.target_ms

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def repeated(call: Callable[[], object], repetitions: int = 20, warm_up: int = 3) -> list[float]:
    """Milliseconds of each of `repetitions` calls, after some that do not count."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def row(group: str, name: str, source: str, times: Sequence[float], **more: Any) -> Row:
    """The row of repeated measurements of the same work: minimum and median."""
    return Row(group, name, source, float(np.min(times)), float(np.median(times)), len(times), **more)


def over_frames(group: str, name: str, source: str, passes: Sequence[Sequence[float]], **more: Any) -> Row:
    """The row of work that differs from frame to frame, done in several passes over the same frames.

    `min_ms` is the median over the frames of each frame's fastest pass: what a frame costs when nobody disturbs.
    `median_ms` is over all.

    Args:
        passes: (passes, frames) milliseconds.
    """
    times = np.asarray(passes, dtype=np.float64)
    return Row(
        group, name, source, float(np.median(times.min(axis=0))), float(np.median(times)), int(times.size), **more
    )


class Spans:
    """Time spent in given functions while others run, each without what its inner spans took.

    `patched` puts a clock around functions where they are looked up, for the time of a with block; nothing else
    of the code that calls them changes. `take` gives the milliseconds by name since the last time.
    """

    def __init__(self) -> None:
        self._ms: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def take(self) -> dict[str, float]:
        """Milliseconds by name since the last call."""
        taken, self._ms = dict(self._ms), defaultdict(float)
        return taken

    @contextmanager
    def patched(self, places: Sequence[tuple[str, Any, str]]) -> Iterator[None]:
        """Time `getattr(owner, attribute)` as `name`, for each (name, owner, attribute).

        A `functools.cached_property` is timed where it is computed.

        Raises:
            AttributeError: when there is no such attribute: the code has changed, and the list must follow.
        """
        with ExitStack() as stack:
            for name, owner, attribute in places:
                target = vars(owner).get(attribute, getattr(owner, attribute))
                if hasattr(target, "func"):
                    stack.enter_context(mock.patch.object(target, "func", self._clocked(name, target.func)))
                else:
                    stack.enter_context(mock.patch.object(owner, attribute, self._clocked(name, target)))
            yield

    def _clocked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                total = time.perf_counter() - start
                self._ms[name] += (total - self._inner.pop()) * 1e3
                if self._inner:
                    self._inner[-1] += total

        return clocked
