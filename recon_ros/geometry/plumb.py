# SPDX-License-Identifier: Apache-2.0
"""Which way is down by an IMU: turned along with the gyroscope, pulled slowly towards what the accelerometer says.

A complementary filter (Mahony et al. 2008, without the gyroscope's bias): the accelerometer knows the vertical but also
every other acceleration, so that it counts only while it feels nothing but gravity, and only in the long run.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

STANDARD_GRAVITY = 9.80665
STILL = 0.3
"""The accelerometer counts while what it feels is within so many m/s² of gravity."""
TIME_CONSTANT_S = 2.0
"""In which the accelerometer takes over two thirds of a difference."""
WARM_S = 0.5
"""How long it must have counted before anything is said."""
STALE_S = 0.5
"""A longer silence makes the filter begin anew."""
NEAR_S = 0.1
"""A sample tells of stamps this close to its own."""
HISTORY = 1000
"""Samples that are kept, for images that come later than the samples of their stamp."""

Vector = NDArray[np.float64]


class Plumb:
    """The direction of gravity in the IMU's frame, sample by sample."""

    def __init__(self) -> None:
        self._history: deque[tuple[int, Vector]] = deque(maxlen=HISTORY)
        self._down: Vector | None = None
        self._stamp_ns, self._counted_s = 0, 0.0

    def add(self, stamp_ns: int, acceleration: NDArray[Any], angular_velocity: NDArray[Any] | None = None) -> None:
        """Take in a sample; what is not finite, or a little older than the last, is passed over. Much older, it is of a
        clock that was set back, and the first of a new beginning.

        Args:
            stamp_ns: of the sample.
            acceleration: (3,) m/s² as an accelerometer feels it: at rest it points up.
            angular_velocity: (3,) rad/s, or None without a gyroscope.
        """
        acceleration = np.asarray(acceleration, dtype=np.float64)
        turn = np.zeros(3) if angular_velocity is None else np.asarray(angular_velocity, dtype=np.float64)
        if not np.isfinite([acceleration, turn]).all():
            return
        if stamp_ns < self._stamp_ns - STALE_S * 1e9:
            self.clear()
        seconds = (stamp_ns - self._stamp_ns) / 1e9
        if seconds <= 0:
            return
        if seconds > STALE_S:
            self._down, self._counted_s, seconds = None, 0.0, 0.0
        self._stamp_ns = stamp_ns
        if self._down is not None:
            self._down = Rotation.from_rotvec(-turn * seconds).apply(self._down)
        length = float(np.linalg.norm(acceleration))
        if abs(length - STANDARD_GRAVITY) < STILL:
            self._pull(-acceleration / length, seconds)
        if self._down is not None and self._counted_s >= WARM_S:
            self._history.append((stamp_ns, self._down))

    def at(self, stamp_ns: int) -> Vector | None:
        """(3,) unit vector down in the IMU's frame, by the sample nearest to a stamp; None where there is none near."""
        near = min(self._history, key=lambda sample: abs(sample[0] - stamp_ns), default=None)
        return None if near is None or abs(near[0] - stamp_ns) > NEAR_S * 1e9 else near[1].copy()

    def clear(self) -> None:
        """Time has jumped: begin anew."""
        self._down = None
        self._stamp_ns, self._counted_s = 0, 0.0
        self._history.clear()

    def _pull(self, felt: Vector, seconds: float) -> None:
        self._counted_s += seconds
        if self._down is None:
            self._down = felt
            return
        time_constant = min(TIME_CONSTANT_S, max(self._counted_s, 1e-3))  # at first the mean of all there is
        self._down = self._down + (1 - np.exp(-seconds / time_constant)) * (felt - self._down)
        self._down /= np.linalg.norm(self._down)
