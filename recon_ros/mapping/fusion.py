# SPDX-License-Identifier: Apache-2.0
"""The world cloud as a sum over keyframes: each adds its points to the voxels they fall into, and can be taken out.

Because the sum is kept per voxel (weight, weighted position, colour and normal), adding a keyframe costs the same
however long the map has grown, and a keyframe that moves or goes is subtracted exactly as it was added: sums are
integers, so that they do not depend on their order and an emptied voxel is really empty.

**What has moved away goes.** A voxel that `map.carving` keyframes have seen through since the last one that saw
something there is not shown. Who has seen through it is asked of the keyframes, newest evidence counts, and a keyframe
that moves or goes takes its contradictions with it: what is shown depends on the keyframes and their poses alone, never
on the order in which they came.

**What is forgotten.** Beyond `map.max_voxels` the table gives up a twentieth: of the blocks, beginning with the one
farthest from the newest keyframe, each time the half that is hidden or has least weight. Far places get thinner before
near ones do, and no place goes at once. Keyframes remember which of their voxels are gone, so that taking one out never
takes what it did not bring; keyframes keep what they saw, so that one that is moved or added brings its voxels again.

**What is published.** Voxels are kept in blocks, each with a version and its part of the cloud, so that only what has
changed is derived again. Within a block points come in a scattered order that never changes, so that each beginning of
it is spread over the whole block: a limited cloud takes the same share of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import MapConfig
from recon_ros.frame import Cloud, Keyframe
from recon_ros.mapping.contribution import POSITION_UNIT, WEIGHT_UNIT, contribution
from recon_ros.mapping.sights import Sights
from recon_ros.mapping.voxels import (
    BLOCK_EDGE,
    COLOUR,
    COUNT,
    LOCAL_BITS,
    NORMAL,
    POSITION,
    WEIGHT,
    Keys,
    Rows,
    VoxelTable,
    block_index,
    unpack,
)

GONE = -1
"""In place of the row of a voxel that a keyframe has added to and that was forgotten since."""
KEPT = 0.95
"""Share of `map.max_voxels` that is left when the table was full."""
BLOCK_RADIUS = BLOCK_EDGE * 3**0.5 / 2


@dataclass(eq=False)
class _Added:
    """How a keyframe was put in: its pose and threshold then, whether it contradicts others, and the rows it has added
    to, in the order of keys."""

    T_world_camera: NDArray[np.float64]
    min_confidence: float
    carves: bool
    rows: NDArray[np.int32]


class VoxelMap:
    """A coloured voxel cloud derived from keyframes."""

    def __init__(self, config: MapConfig) -> None:
        self._config = config
        self._carving = config.carving
        self._table = VoxelTable()
        self._sights = Sights(config.voxel_size)
        self._added: dict[int, _Added] = {}
        self._versions: dict[int, int] = {}
        self._clouds: dict[int, Cloud] = {}
        self.version = 0
        """Changes whenever the cloud does."""

    def __len__(self) -> int:
        return len(self._table)

    def set_config(self, config: MapConfig) -> None:
        """Take over new values of what a running node may change (`min_confidence`, for what comes next)."""
        self.version += 1
        if config.min_observations != self._config.min_observations:
            self._changed(self._table.blocks)
        self._config = config

    def __contains__(self, keyframe_id: object) -> bool:
        return keyframe_id in self._added

    def add(self, keyframe: Keyframe, carves: bool = True) -> None:
        """Put a keyframe's points where its pose says; those of one that is there already move there.

        `carves` is False for one that must not contradict others, because its place among them is not known yet.
        """
        T_world_camera, min_confidence = keyframe.T_world_camera.copy(), self._config.min_confidence
        keys, sums = contribution(keyframe, T_world_camera, min_confidence, self._config.voxel_size)
        before, taken = self._as_added(keyframe) if keyframe.id in self else (_NO_ROWS, sums[:0])
        self.version += 1
        self._look_away(keyframe.id)
        rows = self._table.rows(keys)
        self._table.sums[rows] += sums
        carves = carves and self._carving > 0
        self._added[keyframe.id] = _Added(T_world_camera, min_confidence, carves, rows.astype(np.int32))
        self._changed_at(rows)
        self._subtract(keyframe.id, before, taken, rows)
        if self._carving:
            latest = rows[self._table.last[rows] < keyframe.id]
            self._table.last[latest] = keyframe.id
            self._count_misses(latest)
        if carves:
            self._sights.add(keyframe, T_world_camera, min_confidence)
            self._see_through(keyframe.id, 1)
        if len(self) > self._config.max_voxels:
            self._forget(T_world_camera[:3, 3])

    def remove(self, keyframe: Keyframe) -> None:
        """Take a keyframe's points, and what it contradicted, out again, as they were put in."""
        rows, sums = self._as_added(keyframe)
        self.version += 1
        self._look_away(keyframe.id)
        self._subtract(keyframe.id, rows, sums, _NO_ROWS)

    def _as_added(self, keyframe: Keyframe) -> tuple[Rows, NDArray[np.int64]]:
        """The rows that a keyframe has added to and that are not forgotten, and what it has added there."""
        added = self._added[keyframe.id]
        _, sums = contribution(keyframe, added.T_world_camera, added.min_confidence, self._config.voxel_size)
        there = added.rows != GONE
        return added.rows[there].astype(np.int64), sums[there]

    def _look_away(self, keyframe_id: int) -> None:
        """Take back how a keyframe was put in, with what it has seen through."""
        added = self._added.pop(keyframe_id, None)
        if added is not None and added.carves:
            self._see_through(keyframe_id, -1)
            self._sights.remove(keyframe_id)

    def _subtract(self, keyframe_id: int, rows: Rows, sums: NDArray[np.int64], still_seen: Rows) -> None:
        """Take from voxels what a keyframe has added to them; `still_seen` are those where it has added anew."""
        table = self._table
        table.sums[rows] -= sums
        self._changed_at(rows)
        seen = np.zeros(table.capacity, bool)
        seen[still_seen] = True
        left = rows[~seen[rows]]
        empty = table.sums[left, COUNT] == 0
        if self._carving:
            rest = left[~empty]
            bereft = rest[table.last[rest] == keyframe_id]
            self._find_last(bereft, keyframe_id)
            self._count_misses(bereft)
        table.release(left[empty])

    def cloud(self, max_points: int | None = None) -> Cloud:
        """The cloud, at most `max_points` (the configuration's when None) of it, the same share of each block."""
        most = self._config.max_points if max_points is None else max_points
        clouds = [self._block_cloud(number) for number in sorted(self._table.blocks)]
        ends = np.cumsum([0, *(len(c) for c in clouds)])
        if ends[-1] > most:
            ends = ends * most // ends[-1]
        return _joined(clouds, np.diff(ends).tolist())

    def changed_since(self, version: int) -> dict[tuple[int, int, int], Cloud]:
        """The blocks that have changed after a `version` of the map, whole; an empty cloud where one has gone.

        Blocks are cubes of `BLOCK_EDGE` voxels, named by their index along x, y and z. All clouds together, of the
        changes since 0, are the map.
        """
        changed = sorted(number for number, v in self._versions.items() if v > version)
        names = block_index(np.array(changed, np.int64)).tolist()
        return {(x, y, z): self._block_cloud(n) for (x, y, z), n in zip(names, changed, strict=True)}

    # -- contradictions --------------------------------------------------------------------------------------

    def _see_through(self, keyframe_id: int, times: int) -> None:
        """Count, or with -1 take back, what a keyframe has seen through of what nobody has seen since."""
        table = self._table
        numbers = np.fromiter(table.blocks, np.int64, len(table.blocks))
        near = self._sights.near(keyframe_id, (block_index(numbers) + 0.5) * BLOCK_EDGE, BLOCK_RADIUS)
        blocks = [table.blocks[n].rows for n in numbers[near].tolist()]
        rows = np.concatenate(blocks) if blocks else np.zeros(0, np.int64)
        rows = rows[table.last[rows] < keyframe_id]
        rows = rows[self._sights.sees_through(keyframe_id, table.centres[:, rows])]
        table.misses[rows] += times
        turned = table.misses[rows] == (self._carving if times > 0 else self._carving - 1)
        self._changed_at(rows[turned])

    def _find_last(self, rows: Rows, before: int) -> None:
        """Who was the last to see these voxels before a keyframe that goes."""
        wanted = np.zeros(self._table.capacity + 1, bool)  # the last one is where GONE leads
        wanted[rows] = True
        left = len(rows)
        for keyframe_id in sorted((i for i in self._added if i < before), reverse=True):
            if left == 0:
                break
            theirs = self._added[keyframe_id].rows
            found = theirs[wanted[theirs]]
            self._table.last[found] = keyframe_id
            wanted[found] = False
            left -= len(found)

    def _count_misses(self, rows: Rows) -> None:
        self._table.misses[rows] = self._sights.misses(self._table.centres[:, rows], self._table.last[rows])

    # -- forgetting ------------------------------------------------------------------------------------------

    def _forget(self, here: NDArray[np.float64]) -> None:
        """Give up voxels until the bound holds again; the module says which."""
        table = self._table
        numbers = np.array(sorted(table.blocks), np.int64)
        centres = (block_index(numbers) + 0.5) * (BLOCK_EDGE * self._config.voxel_size)
        far_first = np.argsort(-np.linalg.norm(centres - here, axis=1), kind="stable")
        ordered = [self._least_first(table.blocks[n].rows) for n in numbers[far_first].tolist()]
        surplus = len(self) - int(KEPT * self._config.max_voxels)
        given = []
        while surplus > 0:
            for i, rows in enumerate(ordered):
                half = min(-(-len(rows) // 2), surplus)
                given.append(rows[:half])
                ordered[i] = rows[half:]
                surplus -= half
        self._give_up(np.concatenate(given))

    def _least_first(self, rows: Rows) -> Rows:
        return rows[np.lexsort((self._table.sums[rows, WEIGHT], ~self._hidden(rows)))]

    def _give_up(self, rows: Rows) -> None:
        self._changed_at(rows)
        gone = np.zeros(self._table.capacity + 1, bool)
        gone[rows] = True
        for added in self._added.values():
            added.rows[gone[added.rows]] = GONE
        self._table.release(rows)

    # -- the cloud of a block --------------------------------------------------------------------------------

    def _changed_at(self, rows: Rows) -> None:
        self._changed(np.unique(self._table.keys[rows] >> LOCAL_BITS).tolist())

    def _changed(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._versions[number] = self.version
            self._clouds.pop(number, None)

    def _hidden(self, rows: Rows) -> NDArray[np.bool_]:
        if not self._carving:
            return np.zeros(len(rows), bool)
        return np.asarray(self._table.misses[rows] >= self._carving)

    def _block_cloud(self, number: int) -> Cloud:
        """The cloud of a block as it is now, in scattered order."""
        if number not in self._table.blocks:
            return _NOTHING
        if number not in self._clouds:
            rows = self._table.blocks[number].rows
            shown = (self._table.sums[rows, COUNT] >= self._config.min_observations) & ~self._hidden(rows)
            self._clouds[number] = self._derived(rows[shown])
        return self._clouds[number]

    def _derived(self, rows: Rows) -> Cloud:
        keys = self._table.keys[rows]
        order = np.argsort(_scattered(keys))
        keys, sums = keys[order], self._table.sums[rows[order]].astype(np.float64)
        total = sums[:, WEIGHT, None]
        points = (unpack(keys) + sums[:, POSITION] / total / POSITION_UNIT) * self._config.voxel_size
        colours = np.round(sums[:, COLOUR] / total)
        confidence = sums[:, WEIGHT] / sums[:, COUNT] / WEIGHT_UNIT
        normals = sums[:, NORMAL]
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1)  # they are whole numbers
        return Cloud(
            points.astype(np.float32),
            colours.astype(np.uint8),
            confidence.astype(np.float32),
            normals.astype(np.float32),
        )


def _scattered(keys: Keys) -> NDArray[np.uint64]:
    """Numbers that order keys as if by chance, no two alike: the finaliser of SplitMix64 (Steele et al. 2014)."""
    mixed = keys.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _joined(clouds: list[Cloud], counts: list[int]) -> Cloud:
    """The beginnings of clouds, so many points of each, as one that shares no memory with them."""
    parts = [(_NOTHING, 0), *zip(clouds, counts, strict=True)]
    return Cloud(
        np.concatenate([c.points[:n] for c, n in parts]),
        np.concatenate([c.colours[:n] for c, n in parts]),
        np.concatenate([c.confidence[:n] for c, n in parts]),
        np.concatenate([c.normals[:n] for c, n in parts if c.normals is not None]),
    )


_NO_ROWS = np.zeros(0, np.int64)
_NOTHING = Cloud(
    np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32), np.zeros((0, 3), np.float32)
)
