# SPDX-License-Identifier: Apache-2.0
"""The bounded store of keyframes: covisibility look-ups, and the policy of what goes when it is full."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon_ros.frame import Keyframe
from recon_ros.geometry import pointmap, se3
from recon_ros.geometry.surface import Surface
from recon_ros.memory.spill import Spill, Usage

SURFACES = 24
"""Surfaces kept ready for registration; they can always be made again from a keyframe's points."""
MAX_DEPTH_RATIO = 1.6


@dataclass(frozen=True, eq=False)
class _Stack:
    """Keyframes as arrays: (K,) ids, (K, 3) centres, (K, 4, 4) inverse poses, (K, 6) fx, fy, cx, cy and borders."""

    ids: NDArray[np.int64]
    centres: NDArray[np.float64]
    T_keyframe_world: NDArray[np.float64]
    lenses: NDArray[np.float64]


class KeyframeStore:
    """Keyframes by id, at most `max_keyframes`.

    When the store is full the most redundant keyframe goes: of the two whose views are closest to each other, the
    one that is closer to its next neighbour. What it saw is what its neighbours saw, so that the map loses least.

    Args:
        max_keyframes: the bound.
        spill: keeps what they hold within a bound of RAM; nobody does when None. A keyframe is the same object wherever
            its arrays are.
    """

    def __init__(self, max_keyframes: int, spill: Spill | None = None) -> None:
        self._max = max_keyframes
        self._spill = spill
        self._by_id: dict[int, Keyframe] = {}
        self._next_id = 0
        self._surfaces: OrderedDict[int, Surface | None] = OrderedDict()
        self._stacked: _Stack | None = None
        self._depths: dict[int, float] = {}
        self._submap: dict[int, int] = {}
        self._joined_to: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, keyframe_id: object) -> bool:
        return keyframe_id in self._by_id

    def __getitem__(self, keyframe_id: int) -> Keyframe:
        return self._by_id[keyframe_id]

    @property
    def keyframes(self) -> tuple[Keyframe, ...]:
        """All keyframes, ordered by id."""
        return tuple(self._by_id.values())

    @property
    def next_id(self) -> int:
        """The id the next keyframe is to carry."""
        return self._next_id

    def submap_of(self, keyframe_id: int) -> int:
        """The submap a keyframe is of: poses of one submap are in one frame, of two submaps they are not."""
        return self.joined(self._submap[keyframe_id])

    def joined(self, submap: int) -> int:
        """What a submap is called since it was joined to others: like the oldest of them."""
        while submap in self._joined_to:
            submap = self._joined_to[submap]
        return submap

    def new_submap(self) -> int:
        """A number for keyframes that begin in a frame of their own."""
        return 1 + max((*self._submap.values(), *self._joined_to, 0))

    def split(self, parts: Iterable[Iterable[int]]) -> None:
        """Each part of all keyframes is a submap."""
        self._submap, self._joined_to = {i: n for n, part in enumerate(parts) for i in part}, {}

    def join(self, keyframe_ids: Iterable[int]) -> None:
        """These keyframes have their poses in one frame now, and so have all of their submaps."""
        oldest, *others = sorted({self.submap_of(i) for i in keyframe_ids if i in self._by_id}) or [0]
        self._joined_to.update(dict.fromkeys(others, oldest))

    def add(self, keyframe: Keyframe, submap: int = 0) -> None:
        """Store a keyframe under its id, which must be `next_id`."""
        assert keyframe.id == self._next_id, f"keyframe {keyframe.id} added where {self._next_id} was due"
        self._by_id[keyframe.id] = keyframe
        self._submap[keyframe.id] = submap
        self._depths[keyframe.id] = _median_depth(keyframe)  # now, while its points are in RAM
        self._next_id += 1
        self._stacked = None
        if self._spill is not None:
            self._spill.add(keyframe)

    def restore(self, keyframes: Iterable[Keyframe], next_id: int) -> None:
        """Take over the keyframes of a saved map, ordered by id; `next_id` is above all ids that ever were in it."""
        self._by_id = {keyframe.id: keyframe for keyframe in keyframes}
        self._next_id = next_id
        self._submap, self._joined_to = dict.fromkeys(self._by_id, 0), {}
        self._depths = {i: _median_depth(keyframe) for i, keyframe in self._by_id.items()}
        self._surfaces.clear()
        self._stacked = None
        if self._spill is not None:
            self._spill.restore(self.keyframes)

    def median_depth(self, keyframe_id: int) -> float:
        """Of what a keyframe sees, in its camera's unit; its points are not looked at again."""
        return self._depths[keyframe_id]

    def surplus(self) -> Keyframe | None:
        """The keyframe to evict, or None while the bound holds. The two newest stay: they are being tracked."""
        if len(self._by_id) <= self._max:
            return None
        keyframes = self.keyframes
        distance = _view_distances(keyframes, np.array([self._depths[k.id] for k in keyframes]))
        np.fill_diagonal(distance, np.inf)
        distance[-2:, :] = np.inf
        submap = np.array([self.submap_of(k.id) for k in keyframes])
        distance[submap[:, None] != submap] = np.inf
        a, b = np.unravel_index(np.argmin(distance), distance.shape)
        candidates = [int(i) for i in (a, b) if i < len(keyframes) - 2]
        return keyframes[min(candidates, key=lambda i: np.partition(distance[i], 1)[1])]

    def move(self, keyframe_id: int, T_world_camera: NDArray[np.float64]) -> None:
        """Give a keyframe another (4, 4) Sim(3) pose; what it saw moves with it."""
        self._by_id[keyframe_id].T_world_camera = T_world_camera.copy()
        self._stacked = None

    def frozen(self) -> KeyframeStore:
        """The keyframes with the poses they have now, for another thread; points and features are shared."""
        copy = KeyframeStore(self._max)
        copy._by_id = {i: replace(k, T_world_camera=k.T_world_camera.copy()) for i, k in self._by_id.items()}
        copy._next_id, copy._submap, copy._joined_to = self._next_id, dict(self._submap), dict(self._joined_to)
        copy._depths = dict(self._depths)
        return copy

    def stay_by(self, keyframe_id: int) -> None:
        """The camera is by this keyframe: what is far from it may leave RAM, what is near comes back (`spill`)."""
        if self._spill is not None:
            self._spill.settle(keyframe_id, functools.partial(self._nearest_first, keyframe_id))

    def _nearest_first(self, keyframe_id: int) -> list[int]:
        """All ids by the distance of centres; those of other submaps come last, newest first."""
        stack = self._stack()
        distance = np.linalg.norm(stack.centres - self._by_id[keyframe_id].T_world_camera[:3, 3], axis=1)
        distance[~self._is_of(self.submap_of(keyframe_id), stack.ids)] = np.inf
        newest_first = slice(None, None, -1)
        ids: list[int] = stack.ids[newest_first][np.argsort(distance[newest_first], kind="stable")].tolist()
        return ids

    @property
    def usage(self) -> Usage:
        """Where what keyframes hold is."""
        if self._spill is None:
            return Usage(0, sum(k.nbytes for k in self._by_id.values()), 0, 0)
        return self._spill.usage

    def close(self) -> None:
        """End what works beside the tracking; keyframes stay where they are, in RAM or on the disk."""
        if self._spill is not None:
            self._spill.close()

    def remove(self, keyframe_id: int) -> None:
        """Forget a keyframe."""
        del self._by_id[keyframe_id]
        self._submap.pop(keyframe_id, None)
        self._surfaces.pop(keyframe_id, None)
        del self._depths[keyframe_id]
        self._stacked = None
        if self._spill is not None:
            self._spill.remove(keyframe_id)

    def surface(self, keyframe_id: int) -> Surface | None:
        """The keyframe's surface for registration, in its own frame; None when it has too few points."""
        if keyframe_id not in self._surfaces:
            self._surfaces[keyframe_id] = _surface(self._by_id[keyframe_id])
            while len(self._surfaces) > SURFACES:
                self._surfaces.popitem(last=False)
        self._surfaces.move_to_end(keyframe_id)
        return self._surfaces[keyframe_id]

    def overlaps(
        self, points: NDArray[Any], T_world_camera: NDArray[np.float64], submap: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Share of a camera's points each keyframe sees at a similar size (see `frustum.overlap`), all at once.

        Args:
            points: (N, 3) points of the camera frame.
            T_world_camera: (4, 4) pose of the camera.
            submap: whose frame the pose is in; of other submaps' keyframes nothing can be said, their share is 0.

        Returns:
            (K,) keyframe ids and (K,) shares, in the order of ids.
        """
        if not self._by_id or len(points) == 0:
            return np.zeros(0, np.int64), np.zeros(0)
        stack = self._stack()
        lens, T = stack.lenses, stack.T_keyframe_world @ T_world_camera
        moved = points @ np.swapaxes(T[:, :3, :3], 1, 2) + T[:, None, :3, 3]
        z = moved[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            u = lens[:, None, 0] * moved[..., 0] / z + lens[:, None, 2]
            v = lens[:, None, 1] * moved[..., 1] / z + lens[:, None, 3]
            ratio = z / (points[None, :, 2] * np.cbrt(np.linalg.det(T[:, :3, :3]))[:, None])
        seen = (z > 0) & (u >= -0.5) & (v >= -0.5) & (u <= lens[:, None, 4]) & (v <= lens[:, None, 5])
        seen &= (ratio < MAX_DEPTH_RATIO) & (ratio > 1 / MAX_DEPTH_RATIO)
        return stack.ids, seen.mean(axis=1) * self._is_of(self.joined(submap), stack.ids)

    def _is_of(self, submap: int, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(K,) which keyframes are of a submap, joined as they are."""
        if not any(self._submap.values()):
            return np.ones(len(ids), bool)
        return np.array([self.submap_of(i) == submap for i in ids.tolist()], bool)

    def _stack(self) -> _Stack:
        """What is the same for all views; a few microseconds a keyframe, so made once per change."""
        if self._stacked is None:
            keyframes = self.keyframes
            lenses = [
                (
                    k.camera.fx,
                    k.camera.fy,
                    k.camera.cx,
                    k.camera.cy,
                    k.camera.width - 0.5,
                    k.camera.height - 0.5,
                )
                for k in keyframes
            ]
            poses = np.stack([k.T_world_camera for k in keyframes])
            self._stacked = _Stack(
                np.array([k.id for k in keyframes], dtype=np.int64),
                poses[:, :3, 3],
                se3.inverse(poses),
                np.array(lenses, dtype=np.float64),
            )
        return self._stacked


def _view_distances(keyframes: tuple[Keyframe, ...], median_depths: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, K) how different two views are: metres over the median depth, plus radians."""
    poses = np.stack([k.T_world_camera for k in keyframes])
    depth = median_depths * np.array([se3.scale_of(k.T_world_camera) for k in keyframes])
    metres = np.linalg.norm(poses[:, None, :3, 3] - poses[None, :, :3, 3], axis=2)
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat()
    angle = 2 * np.arccos(np.clip(np.abs(quaternions @ quaternions.T), 0, 1))
    return np.asarray(metres / np.minimum(depth[:, None], depth[None, :]) + angle)


def _median_depth(keyframe: Keyframe) -> float:
    z = keyframe.points[::8, ::8, 2]
    z = z[np.isfinite(z)]
    return float(np.median(z)) if len(z) else 1.0


def _surface(keyframe: Keyframe) -> Surface | None:
    depth = pointmap.smoothed_depth(keyframe.points[..., 2].astype(np.float32))
    return Surface.of_depth(depth, keyframe.camera)
