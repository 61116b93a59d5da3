# SPDX-License-Identifier: Apache-2.0
"""The world cloud as a sum over keyframes: each adds its points to the voxels they fall into, and can be taken out.

Because the sum is kept per voxel (weight, weighted position and colour), adding a keyframe costs the same however
long the map has grown, and a keyframe that moves or goes is subtracted exactly as it was added. Weights,
positions and colours are held as integers, so that sums do not depend on their order and an emptied voxel is
really empty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import MapConfig
from recon_ros.frame import Cloud, Keyframe
from recon_ros.geometry import se3

OFFSET = 1 << 20
"""Voxel indices are packed as three 21-bit numbers around this centre: ±31 km at 3 cm."""
WEIGHT_UNIT = 256
POSITION_UNIT = 1 << 12
"""Steps of a voxel edge the position inside a voxel is rounded to."""
COLUMNS = 8
"""count, weight, position (3), colour (3)."""


class _Sums:
    """Sums by sorted voxel key. Rows stay where they are, and those of emptied voxels are used again.

    Moving the whole table with each keyframe would cost tens of megabytes of fresh memory every time, which the
    allocator does not give back evenly.
    """

    def __init__(self) -> None:
        self.keys = np.zeros(0, np.int64)
        self._rows = np.zeros(0, np.int64)
        self._table = np.zeros((1024, COLUMNS), np.int64)
        self._used = 0
        self._free = np.zeros(0, np.int64)

    def __getitem__(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N, COLUMNS) sums of the keys at these positions."""
        return self._table[self._rows[chosen]]

    def column(self, index: int) -> NDArray[np.int64]:
        """One column for all keys."""
        return self._table[self._rows, index]

    def add(self, keys: NDArray[np.int64], sums: NDArray[np.int64]) -> None:
        """Add to sorted unique keys, new ones included."""
        position = np.searchsorted(self.keys, keys)
        known = np.zeros(len(keys), bool)
        inside = position < len(self.keys)
        known[inside] = self.keys[position[inside]] == keys[inside]
        self._table[self._rows[position[known]]] += sums[known]
        new, where = ~known, position[~known]
        rows = self._take(int(np.count_nonzero(new)))
        self._table[rows] = sums[new]
        self.keys = np.insert(self.keys, where, keys[new])
        self._rows = np.insert(self._rows, where, rows)

    def subtract(self, keys: NDArray[np.int64], sums: NDArray[np.int64]) -> None:
        """Undo `add` of the same; keys of which nothing is left go."""
        position = np.searchsorted(self.keys, keys)
        rows = self._rows[position]
        self._table[rows] -= sums
        emptied = self._table[rows, 0] == 0
        self._free = np.concatenate([self._free, rows[emptied]])
        self.keys = np.delete(self.keys, position[emptied])
        self._rows = np.delete(self._rows, position[emptied])

    def _take(self, count: int) -> NDArray[np.int64]:
        """Rows that are not in use."""
        split = max(len(self._free) - count, 0)
        self._free, reused = self._free[:split], self._free[split:]
        fresh = np.arange(self._used, self._used + count - len(reused))
        self._used += len(fresh)
        if self._used > len(self._table):
            table = np.zeros((max(2 * len(self._table), self._used), COLUMNS), np.int64)
            table[: len(self._table)] = self._table
            self._table = table
        return np.concatenate([reused, fresh])


class VoxelMap:
    """A coloured voxel cloud derived from keyframes."""

    def __init__(self, config: MapConfig) -> None:
        self._config = config
        self._sums = _Sums()
        self._added: dict[int, tuple[NDArray[np.float64], float]] = {}
        self.version = 0
        """Changes whenever the cloud does."""

    def __len__(self) -> int:
        return len(self._sums.keys)

    def set_config(self, config: MapConfig) -> None:
        """Take over new values of what a running node may change (`min_confidence`, for what comes next)."""
        self._config = config
        self.version += 1

    def add(self, keyframe: Keyframe) -> None:
        """Put a keyframe's points where its pose says."""
        how = (keyframe.T_world_camera.copy(), self._config.min_confidence)
        self._added[keyframe.id] = how
        self._sums.add(*self._contribution(keyframe, *how))
        self.version += 1

    def remove(self, keyframe: Keyframe) -> None:
        """Take a keyframe's points out again, as they were put in."""
        self._sums.subtract(*self._contribution(keyframe, *self._added.pop(keyframe.id)))
        self.version += 1

    def cloud(self, max_points: int | None = None) -> Cloud:
        """The cloud, at most `max_points` (the configuration's when None): those with most weight stay."""
        config = self._config
        most = config.max_points if max_points is None else max_points
        chosen = np.flatnonzero(self._sums.column(0) >= config.min_observations)
        if len(chosen) > most:
            weight = self._sums.column(1)[chosen]
            chosen = np.sort(chosen[np.argsort(-weight, kind="stable")[:most]])
        sums = self._sums[chosen].astype(np.float64)
        total = sums[:, 1:2]
        index = _unpack(self._sums.keys[chosen])
        points = (index + sums[:, 2:5] / total / POSITION_UNIT) * config.voxel_size
        colours = np.round(sums[:, 5:8] / total)
        confidence = total[:, 0] / sums[:, 0] / WEIGHT_UNIT
        return Cloud(points.astype(np.float32), colours.astype(np.uint8), confidence.astype(np.float32))

    def _contribution(
        self, keyframe: Keyframe, T_world_camera: NDArray[np.float64], min_confidence: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sorted voxel keys and the sums the keyframe adds to them."""
        confidence = keyframe.confidence.astype(np.float32)
        usable = np.isfinite(keyframe.points[..., 2]) & (confidence >= max(min_confidence, 1 / WEIGHT_UNIT))
        points = se3.transform(T_world_camera, keyframe.points[usable].astype(np.float64)) / self._config.voxel_size
        weight = np.maximum(np.round(confidence[usable] * WEIGHT_UNIT), 1).astype(np.int64)
        index = np.floor(points)
        inside = np.round((points - index) * POSITION_UNIT).astype(np.int64)
        colours = keyframe.colour[usable].astype(np.int64)
        keys, inverse = np.unique(_pack(index.astype(np.int64)), return_inverse=True)
        columns = [
            np.ones_like(weight),
            weight,
            *(inside * weight[:, None]).T,
            *(colours * weight[:, None]).T,
        ]
        sums = np.stack([np.bincount(inverse, c, len(keys)) for c in columns], axis=1)
        return keys, np.round(sums).astype(np.int64)


def _pack(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, 3) voxel indices to (N,) sortable keys; indices beyond the range are held at its border."""
    i = np.clip(index + OFFSET, 0, 2 * OFFSET - 1)
    packed: NDArray[np.int64] = (i[:, 0] << 42) | (i[:, 1] << 21) | i[:, 2]
    return packed


def _unpack(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    mask = (1 << 21) - 1
    return np.stack([keys >> 42, (keys >> 21) & mask, keys & mask], axis=1) - OFFSET
