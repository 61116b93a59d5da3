# SPDX-License-Identifier: Apache-2.0
"""The path travelled, bounded, and anchored to keyframes so that it moves with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Keyframe, Trajectory
from recon_ros.geometry import se3

POSE = np.dtype(
    [
        ("stamp_ns", "<i8"),
        ("reference_id", "<i8"),
        ("T_reference_camera", "<f8", (4, 4)),
        ("T_world_camera", "<f8", (4, 4)),
    ]
)
"""One tracked frame; its `T_world_camera` is that of the moment when it was published."""


class TrajectoryLog:
    """Each tracked frame's pose relative to its reference keyframe, and as it was known when published.

    Beyond `max_poses` a quarter is dropped: of the older three quarters, every second pose where they are closest
    in time. So the path stays whole, only coarser where it is old.
    """

    def __init__(self, max_poses: int) -> None:
        self._max = max_poses
        self._capacity = 1024
        self._length = 0
        self._stamps = np.zeros(self._capacity, np.int64)
        self._references = np.zeros(self._capacity, np.int64)
        self._relative = np.zeros((self._capacity, 4, 4))
        self._live = np.zeros((self._capacity, 4, 4))

    def __len__(self) -> int:
        return self._length

    @property
    def last_reference(self) -> int | None:
        """The keyframe of the newest pose; None before the first."""
        return int(self._references[self._length - 1]) if self._length else None

    def append(
        self,
        stamp_ns: int,
        reference_id: int,
        T_reference_camera: NDArray[np.float64],
        T_world_camera: NDArray[np.float64],
    ) -> None:
        """Log one tracked frame."""
        if self._length == self._max:
            self._thin()
        if self._length == self._capacity:
            self._grow()
        i = self._length
        self._stamps[i], self._references[i] = stamp_ns, reference_id
        self._relative[i], self._live[i] = T_reference_camera, T_world_camera
        self._length += 1

    def hang_newest_on(self, keyframe: Keyframe) -> None:
        """The newest frame has become a keyframe itself."""
        i, T_world_keyframe = self._length - 1, keyframe.T_world_camera
        self._references[i] = keyframe.id
        self._relative[i] = se3.inverse(T_world_keyframe) @ se3.rigid(T_world_keyframe)

    def re_anchor(self, gone: Keyframe, successor: Keyframe) -> None:
        """Hang the poses that refer to a keyframe about to go onto another, without moving them."""
        affected = np.flatnonzero(self._references[: self._length] == gone.id)
        T_successor_gone = se3.inverse(successor.T_world_camera) @ gone.T_world_camera
        self._relative[affected] = T_successor_gone @ self._relative[affected]
        self._references[affected] = successor.id

    def corrected(self, keyframes: Mapping[int, Keyframe]) -> Trajectory:
        """The path after all corrections: each pose through its keyframe's present one."""
        return corrected(self.rows(), keyframes)

    def live(self) -> Trajectory:
        """The path as it was published."""
        return Trajectory(self._stamps[: self._length].copy(), self._live[: self._length].copy())

    def rows(self) -> NDArray[Any]:
        """(N,) of dtype `POSE`: a copy of all there is."""
        rows = np.zeros(self._length, POSE)
        rows["stamp_ns"], rows["reference_id"] = self._stamps[: self._length], self._references[: self._length]
        rows["T_reference_camera"], rows["T_world_camera"] = (
            self._relative[: self._length],
            self._live[: self._length],
        )
        return rows

    def extend(self, rows: NDArray[Any]) -> None:
        """Append rows of another log."""
        for row in rows:
            self.append(
                int(row["stamp_ns"]), int(row["reference_id"]), row["T_reference_camera"], row["T_world_camera"]
            )

    def _arrays(self) -> tuple[str, ...]:
        return ("_stamps", "_references", "_relative", "_live")

    def _grow(self) -> None:
        self._capacity = min(2 * self._capacity, max(self._max, self._capacity + 1))
        for name in self._arrays():
            old = getattr(self, name)
            new = np.zeros((self._capacity, *old.shape[1:]), old.dtype)
            new[: self._length] = old[: self._length]
            setattr(self, name, new)

    def _thin(self) -> None:
        candidates = np.arange(1, 3 * self._length // 4, 2)
        apart = self._stamps[candidates + 1] - self._stamps[candidates - 1]
        dropped = candidates[np.argsort(apart, kind="stable")[: self._length // 4]]
        kept = np.delete(np.arange(self._length), dropped)
        for name in self._arrays():
            array = getattr(self, name)
            array[: len(kept)] = array[kept]
        self._length = len(kept)


def corrected(rows: NDArray[Any], keyframes: Mapping[int, Keyframe]) -> Trajectory:
    """(N,) rows of dtype `POSE` as a path: each pose through its keyframe's present one, where that is among them.

    Poses are rigid, though a correction may have made a keyframe larger than when the frame was seen by it.
    """
    rows = rows[np.isin(rows["reference_id"], list(keyframes))]
    if len(rows) == 0:
        return Trajectory(np.zeros(0, np.int64), np.zeros((0, 4, 4)))
    T_world_reference = np.stack([keyframes[i].T_world_camera for i in rows["reference_id"].tolist()])
    return Trajectory(rows["stamp_ns"], se3.rigid(T_world_reference @ rows["T_reference_camera"]))
