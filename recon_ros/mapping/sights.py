# SPDX-License-Identifier: Apache-2.0
"""How far each keyframe sees: what lies clearly before the surfaces it measured is free, or was, when it looked.

Everything here errs on the side of what stands: a direction reaches as far as the *nearest* depth around it, so that
poles and edges keep a border, holes that are not small and within one surface reach nowhere, and a share of the depth
is left for noise.
All arithmetic is elementwise: whether a keyframe sees through a voxel must not depend on what is asked with it.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Keyframe
from recon_ros.geometry import pointmap, se3
from recon_ros.mapping.contribution import usable

ROWS, COLUMNS = 90, 120
"""Directions a keyframe's view is divided into."""
RELATIVE_MARGIN = 0.05
MARGIN = 2.0
"""A voxel is seen through that lies before the surface by more than this share of the depth plus so many voxels."""
HOLE = (0.03, 13)
"""A hole is filled where the depths about it spread by less than this share and make up half of a 5×5 window."""
MAX_PAIRS = 400_000
"""Pairs of keyframe and voxel that are worked on at once."""


class Sights:
    """The views of all keyframes of a map. Lengths of the world are in voxels."""

    _ids: NDArray[np.int64]
    _lens: NDArray[np.float32]
    _planes: NDArray[np.float64]
    _reach: NDArray[np.float32]

    def __init__(self, voxel_size: float) -> None:
        self._voxel_size = voxel_size
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._make_room(16)

    def _make_room(self, count: int) -> None:
        """Take over what there is into larger arrays; free slots hold the id -1, which is newer than none."""
        old = len(self._ids) if self._slots else 0
        shapes = {"_ids": (), "_lens": (3, 4), "_planes": (5, 4), "_reach": (ROWS, COLUMNS)}
        types = {"_ids": np.int64, "_lens": np.float32, "_planes": np.float64, "_reach": np.float32}
        for name, shape in shapes.items():
            array = np.full((count, *shape), -1, types[name])
            if old:
                array[:old] = getattr(self, name)
            setattr(self, name, array)
        self._free += range(old, count)

    def add(self, keyframe: Keyframe, T_world_camera: NDArray[np.float64], min_confidence: float) -> None:
        """Take in what a keyframe sees from a (4, 4) Sim(3) pose; points below the confidence are no surface."""
        if not self._free:
            self._make_room(2 * len(self._ids))
        slot = self._free.pop()
        depth = np.where(
            usable(keyframe, min_confidence), keyframe.points[..., 2].astype(np.float32), np.float32("nan")
        )
        nearest = _nearest(_closed(depth))
        voxel = self._voxel_size / se3.scale_of(T_world_camera)  # in the keyframe's own unit
        reach = np.maximum(nearest * np.float32(1 - RELATIVE_MARGIN) - np.float32(MARGIN * voxel), 0)

        camera = keyframe.camera
        to_grid = np.diag([COLUMNS / camera.width, ROWS / camera.height, 1.0])
        to_grid[:2, 2] = 0.5 * np.diag(to_grid)[:2]  # a pixel's centre is half a pixel from its corner
        T_camera_world = se3.inverse(T_world_camera)
        linear, shift = T_camera_world[:3, :3] * self._voxel_size, T_camera_world[:3, 3]
        lens = to_grid @ camera.K @ np.column_stack([linear, shift])
        self._ids[slot], self._lens[slot], self._reach[slot] = keyframe.id, lens, reach
        self._planes[slot] = _planes(lens, float(reach.max()))
        self._slots[keyframe.id] = slot

    def remove(self, keyframe_id: int) -> None:
        """Forget a keyframe's view."""
        slot = self._slots.pop(keyframe_id)
        self._ids[slot] = -1
        self._free.append(slot)

    def near(self, keyframe_id: int, centres: NDArray[Any], radius: float) -> NDArray[np.bool_]:
        """(N,) False for spheres about (N, 3) centres of which a keyframe sees through nothing."""
        planes = self._planes[self._slots[keyframe_id]]
        return np.asarray((centres @ planes[:, :3].T + planes[:, 3] > -radius).all(axis=1))

    def sees_through(self, keyframe_id: int, centres: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(N,) True for the voxels, by their (3, N) centres, that a keyframe sees through."""
        return self._through(np.array([self._slots[keyframe_id]]), centres)[0]

    def misses(self, centres: NDArray[np.float32], last: NDArray[np.int32]) -> NDArray[np.int32]:
        """(N,) how many keyframes see through the voxels with (3, N) centres, of those newer than `last` (N,)."""
        misses = np.zeros(len(last), np.int32)
        if not len(last):
            return misses
        low, high = centres.min(axis=1), centres.max(axis=1)
        middle, radius = (low + high) / 2, float(np.linalg.norm(high - low)) / 2 + 1
        distance = self._planes[:, :, :3] @ middle.astype(np.float64) + self._planes[:, :, 3]
        slots = np.flatnonzero((self._ids > last.min()) & (distance > -radius).all(axis=1))
        step = max(MAX_PAIRS // len(last), 1)
        for some in (slots[i : i + step] for i in range(0, len(slots), step)):
            newer = self._ids[some, None] > last
            misses += (self._through(some, centres) & newer).sum(axis=0, dtype=np.int32)
        return misses

    def _through(self, slots: NDArray[np.int64], centres: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(K, N): whether the voxels with (3, N) centres lie within the reach of K views."""
        x, y, z = centres
        lens = self._lens[slots][..., None]
        u, v, depth = (lens[:, i, 0] * x + lens[:, i, 1] * y + lens[:, i, 2] * z + lens[:, i, 3] for i in range(3))
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = u / depth, v / depth
        view, voxel = np.nonzero((depth > 0) & (u >= 0) & (v >= 0) & (u < COLUMNS) & (v < ROWS))
        column, row = u[view, voxel].astype(np.int64), v[view, voxel].astype(np.int64)
        through = np.zeros(depth.shape, bool)
        through[view, voxel] = depth[view, voxel] < self._reach[slots[view], row, column]
        return through


def _closed(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w) depth whose small holes within one surface are filled; 0 in the others."""
    holes = np.isnan(depth)
    return np.asarray(np.nan_to_num(np.where(holes, pointmap.smoothed_depth(depth, *HOLE), depth)))


def _nearest(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """(ROWS, COLUMNS) the least depth in and next to each direction, of an (h, w) depth image of any size."""
    height, width = depth.shape
    rows, columns = ((2 * np.arange(n) + 1) * size // (2 * n) for n, size in ((ROWS, height), (COLUMNS, width)))
    border = [max(round(1.5 * size / n), 1) for n, size in ((COLUMNS, width), (ROWS, height))]
    eroded = cv2.erode(depth, np.ones((2 * border[1] + 1, 2 * border[0] + 1), np.uint8))
    return np.asarray(eroded[np.ix_(rows, columns)])


def _planes(lens: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """(5, 4) sides and end of a view as planes: (n, d) with |n| = 1 and n·p + d > 0 within."""
    u, v, depth = lens
    planes = np.stack([u, v, COLUMNS * depth - u, ROWS * depth - v, np.array([0, 0, 0, reach]) - depth])
    return np.asarray(planes / np.linalg.norm(planes[:, :3], axis=1, keepdims=True))
