# SPDX-License-Identifier: Apache-2.0
"""What the node counts and times, for `~/status` and `/diagnostics`. Written by two threads, read by one."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from recon_ros.frame import State

WINDOW_S = 5.0
"""Rates and latencies are of the last seconds only."""


@dataclass
class Statistics:
    """Counters and a short memory of times; monotonic clock throughout, so simulated time cannot freeze it.

    Attributes:
        state: of the last processed frame. confidence: of the last pose, [0, 1]. inference_ms: time of the
        last frame in the core. latency_ms: of the last frame, stamp to publication (or reception to
        publication where the clock and the
            stamps are not of one time).
        keyframes, points, loops: what the map holds; submaps: maps not joined to it yet.
        keyframe_ram_mb, keyframe_disk_mb: what keyframes hold in RAM, and in files that they were moved to.
        is_metric: whether lengths are metres.
        lost_since: when the pose was lost, monotonic seconds, or None.
        encoding: of the last image that came.
        size: width and height of the last image that was decoded.
    """

    state: State = State.INITIALIZING
    confidence: float = 0.0
    inference_ms: float = 0.0
    latency_ms: float = 0.0
    keyframes: int = 0
    keyframe_ram_mb: float = 0.0
    keyframe_disk_mb: float = 0.0
    points: int = 0
    loops: int = 0
    submaps: int = 0
    is_metric: bool = False
    lost_since: float | None = None
    encoding: str = ""
    size: tuple[int, int] = (0, 0)
    last_image: float | None = None
    counts: Counter[str] = field(default_factory=Counter)
    _received: deque[float] = field(default_factory=deque)
    _processed: deque[tuple[float, float]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def image_received(self, encoding: str) -> None:
        """An image came, decoded or not."""
        now = time.monotonic()
        with self._lock:
            self.last_image, self.encoding = now, encoding
            self.counts["received"] += 1
            self._received.append(now)

    def frame_processed(self, state: State, inference_ms: float, latency_ms: float) -> None:
        """A frame has gone all the way."""
        now = time.monotonic()
        with self._lock:
            self.lost_since = None if state is not State.LOST else self.lost_since or now
            self.state, self.inference_ms, self.latency_ms = state, inference_ms, latency_ms
            self.counts["processed"] += 1
            self._processed.append((now, latency_ms))

    def forget_map(self) -> None:
        """After a reset: the map is empty and the pose unknown; the counters go on."""
        self.state, self.lost_since, self.confidence = State.INITIALIZING, None, 0.0
        self.keyframes, self.points, self.loops, self.submaps = 0, 0, 0, 0
        self.keyframe_ram_mb = self.keyframe_disk_mb = 0.0

    def count(self, name: str, by: int = 1) -> None:
        """Count something."""
        with self._lock:
            self.counts[name] += by

    def image_age(self) -> float | None:
        """Seconds since the last image, or None before the first."""
        return None if self.last_image is None else time.monotonic() - self.last_image

    def lost_for(self) -> float:
        """Seconds without a pose since the state became LOST."""
        return 0.0 if self.lost_since is None else time.monotonic() - self.lost_since

    def received_rate(self) -> float:
        """Images per second over the window."""
        with self._lock:
            _forget(self._received, time.monotonic() - WINDOW_S)
            return len(self._received) / WINDOW_S

    def processed_rate(self) -> float:
        """Frames per second over the window."""
        return len(self._recent()) / WINDOW_S

    def latency_percentiles(self) -> tuple[float, float]:
        """Median and 95th percentile of the latency over the window, ms; NaN without frames."""
        latencies = [latency for _, latency in self._recent()]
        if not latencies:
            return float("nan"), float("nan")
        p50, p95 = np.percentile(latencies, [50, 95])
        return float(p50), float(p95)

    def _recent(self) -> list[tuple[float, float]]:
        with self._lock:
            horizon = time.monotonic() - WINDOW_S
            while self._processed and self._processed[0][0] < horizon:
                self._processed.popleft()
            return list(self._processed)


def _forget(times: deque[float], horizon: float) -> None:
    while times and times[0] < horizon:
        times.popleft()


class Throttle:
    """Lets a message of one kind through once in a while: the same fault at 30 Hz is one line, not a flood."""

    def __init__(self, period: float = 5.0) -> None:
        self._period = period
        self._last: dict[str, float] = {}

    def passes(self, kind: str) -> bool:
        now = time.monotonic()
        if kind in self._last and now < self._last[kind] + self._period:
            return False
        self._last[kind] = now
        return True
