# SPDX-License-Identifier: Apache-2.0
"""The world cloud as a sum over keyframes: each adds its points to the voxels they fall into, and can be taken out.

Because the sum is kept per voxel (weight, weighted position and colour), adding a keyframe costs the same however
long the map has grown, and a keyframe that moves or goes is subtracted exactly as it was added. Weights,
positions and colours are held as integers, so that sums do not depend on their order and an emptied voxel is
really empty.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class _Contribution:
    """What a keyframe put into the map: sorted voxel keys and their sums."""

    keys: NDArray[np.int64]
    sums: NDArray[np.int64]


class VoxelMap:
    """A coloured voxel cloud derived from keyframes."""

    def __init__(self, config: MapConfig) -> None:
        self._config = config
        self._keys = np.zeros(0, np.int64)
        self._sums = np.zeros((0, COLUMNS), np.int64)
        self._added: dict[int, tuple[NDArray[np.float64], float]] = {}
        self.version = 0
        """Changes whenever the cloud does."""

    def __len__(self) -> int:
        return len(self._keys)

    def set_config(self, config: MapConfig) -> None:
        """Take over new values of what a running node may change (`min_confidence`, for what comes next)."""
        self._config = config
        self.version += 1

    def add(self, keyframe: Keyframe) -> None:
        """Put a keyframe's points where its pose says."""
        how = (keyframe.T_world_camera.copy(), self._config.min_confidence)
        self._added[keyframe.id] = how
        contribution = self._contribution(keyframe, *how)
        position = np.searchsorted(self._keys, contribution.keys)
        clipped = np.minimum(position, max(len(self._keys) - 1, 0))
        known = self._keys[clipped] == contribution.keys if len(self._keys) else np.zeros(len(position), bool)
        self._sums[position[known]] += contribution.sums[known]
        self._keys = np.insert(self._keys, position[~known], contribution.keys[~known])
        self._sums = np.insert(self._sums, position[~known], contribution.sums[~known], axis=0)
        self.version += 1

    def remove(self, keyframe: Keyframe) -> None:
        """Take a keyframe's points out again, as they were put in."""
        contribution = self._contribution(keyframe, *self._added.pop(keyframe.id))
        position = np.searchsorted(self._keys, contribution.keys)
        self._sums[position] -= contribution.sums
        emptied = position[self._sums[position, 0] == 0]
        self._keys = np.delete(self._keys, emptied)
        self._sums = np.delete(self._sums, emptied, axis=0)
        self.version += 1

    def cloud(self, max_points: int | None = None) -> Cloud:
        """The cloud, at most `max_points` (the configuration's when None): those with most weight stay."""
        config = self._config
        most = config.max_points if max_points is None else max_points
        chosen = np.flatnonzero(self._sums[:, 0] >= config.min_observations)
        if len(chosen) > most:
            weight = self._sums[chosen, 1]
            chosen = np.sort(chosen[np.argsort(-weight, kind="stable")[:most]])
        sums = self._sums[chosen].astype(np.float64)
        weight = sums[:, 1:2]
        index = _unpack(self._keys[chosen])
        points = (index + sums[:, 2:5] / weight / POSITION_UNIT) * config.voxel_size
        colours = np.round(sums[:, 5:8] / weight)
        confidence = weight[:, 0] / sums[:, 0] / WEIGHT_UNIT
        return Cloud(points.astype(np.float32), colours.astype(np.uint8), confidence.astype(np.float32))

    def _contribution(
        self, keyframe: Keyframe, T_world_camera: NDArray[np.float64], min_confidence: float
    ) -> _Contribution:
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
        return _Contribution(keys, np.round(sums).astype(np.int64))


def _pack(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, 3) voxel indices to (N,) sortable keys; indices beyond the range are held at its border."""
    i = np.clip(index + OFFSET, 0, 2 * OFFSET - 1)
    packed: NDArray[np.int64] = (i[:, 0] << 42) | (i[:, 1] << 21) | i[:, 2]
    return packed


def _unpack(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    mask = (1 << 21) - 1
    return np.stack([keys >> 42, (keys >> 21) & mask, keys & mask], axis=1) - OFFSET
