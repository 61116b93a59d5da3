# SPDX-License-Identifier: Apache-2.0
"""Voxels in blocks: how they are named, and the table that holds what is known of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_BITS = 6
BLOCK_EDGE = 1 << BLOCK_BITS
"""Voxels along the edge of a block: 1.92 m at 3 cm. What changes is told by block."""
LOCAL_BITS = 3 * BLOCK_BITS
OFFSET = 1 << 20
"""Voxel indices are packed as three 21-bit numbers around this centre: ±31 km at 3 cm."""

COUNT, WEIGHT = 0, 1
POSITION, COLOUR, NORMAL = slice(2, 5), slice(5, 8), slice(8, 11)
COLUMNS = 11
NEVER = -1
UNKNOWN = -1

Keys = NDArray[np.int64]
Rows = NDArray[np.int64]


def pack(index: NDArray[np.int64]) -> Keys:
    """(N, 3) voxel indices to (N,) keys that sort by block; indices beyond the range are held at its border."""
    held = np.clip(index + OFFSET, 0, 2 * OFFSET - 1)
    block, local = held >> BLOCK_BITS, held & (BLOCK_EDGE - 1)
    return _joined(block, 21 - BLOCK_BITS) << LOCAL_BITS | _joined(local, BLOCK_BITS)


def unpack(keys: Keys) -> NDArray[np.int64]:
    """(N, 3) voxel indices of keys."""
    return (block_index(keys >> LOCAL_BITS) << BLOCK_BITS) + _split(keys, BLOCK_BITS)


def block_index(blocks: Keys) -> NDArray[np.int64]:
    """(N, 3) indices of blocks, in blocks, of (N,) block numbers (`keys >> LOCAL_BITS`)."""
    return _split(blocks, 21 - BLOCK_BITS) - (OFFSET >> BLOCK_BITS)


def _joined(index: NDArray[np.int64], bits: int) -> Keys:
    joined: Keys = index[:, 0] << 2 * bits | index[:, 1] << bits | index[:, 2]
    return joined


def _split(keys: Keys, bits: int) -> NDArray[np.int64]:
    mask = (1 << bits) - 1
    return np.stack([keys >> 2 * bits & mask, keys >> bits & mask, keys & mask], axis=1)


@dataclass(eq=False)
class Block:
    """The voxels of a block: (n,) sorted keys and the table's row of each."""

    keys: Keys
    rows: Rows


class VoxelTable:
    """Sums per voxel. A voxel's row stays where it is, and that of an emptied voxel is used again.

    Moving the whole table with each keyframe would cost tens of megabytes of fresh memory every time, which the
    allocator does not give back evenly; and keyframes may keep the rows they have added to.

    Attributes:
        sums: (R, COLUMNS) int64.
        keys: (R,) int64.
        centres: (3, R) float32, in voxels.
        last: (R,) int32, the latest keyframe that saw something there; NEVER where none has.
        misses: (R,) int32, the keyframes after that one which saw through it.
        blocks: by number.
    """

    def __init__(self) -> None:
        self.sums = np.zeros((1024, COLUMNS), np.int64)
        self.keys = np.zeros(1024, np.int64)
        self.centres = np.zeros((3, 1024), np.float32)
        self.last = np.full(1024, NEVER, np.int32)
        self.misses = np.zeros(1024, np.int32)
        self.blocks: dict[int, Block] = {}
        self._free = np.zeros(1024, np.int64)
        self._free_count = 0
        self._used = 0

    def __len__(self) -> int:
        return self._used - self._free_count

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return len(self.keys)

    def rows(self, keys: Keys) -> Rows:
        """The rows of sorted unique keys, empty ones for new keys."""
        parts = list(_by_block(keys))
        found = np.full(len(keys), UNKNOWN, np.int64)
        for number, part in parts:
            if (block := self.blocks.get(number)) is not None:
                position = np.minimum(block.keys.searchsorted(keys[part]), len(block.keys) - 1)
                known = block.keys[position] == keys[part]
                found[part] = np.where(known, block.rows[position], UNKNOWN)
        new = found == UNKNOWN
        if new.any():
            found[new] = self._take(keys[new])
            for number, part in parts:
                if new[part].any():
                    self._extend(number, keys[part][new[part]], found[part][new[part]])
        return found

    def _extend(self, number: int, keys: Keys, rows: Rows) -> None:
        """Put new voxels into a block."""
        if (block := self.blocks.get(number)) is None:
            self.blocks[number] = Block(keys, rows)
            return
        keys, rows = np.concatenate([block.keys, keys]), np.concatenate([block.rows, rows])
        order = keys.argsort(kind="stable")  # merges what is sorted in two pieces
        block.keys, block.rows = keys[order], rows[order]

    def release(self, rows: Rows) -> None:
        """Forget the voxels of these rows."""
        keys = self.keys[rows]
        order = keys.argsort()
        rows, keys = rows[order], keys[order]
        for number, part in _by_block(keys):
            block = self.blocks[number]
            kept = np.ones(len(block.keys), bool)
            kept[block.keys.searchsorted(keys[part])] = False
            block.keys, block.rows = block.keys[kept], block.rows[kept]
            if not len(block.keys):
                del self.blocks[number]
        self._free[self._free_count : self._free_count + len(rows)] = rows
        self._free_count += len(rows)

    def _take(self, keys: Keys) -> Rows:
        """Rows that are not in use, made ready for these keys."""
        reused = min(self._free_count, len(keys))
        self._free_count -= reused
        fresh = len(keys) - reused
        if self._used + fresh > self.capacity:
            self._grow(max(2 * self.capacity, self._used + fresh))
        rows = np.concatenate(
            [self._free[self._free_count : self._free_count + reused], np.arange(self._used, self._used + fresh)]
        )
        self._used += fresh
        self.sums[rows] = 0
        self.keys[rows] = keys
        self.centres[:, rows] = unpack(keys).T + 0.5
        self.last[rows] = NEVER
        self.misses[rows] = 0
        return rows

    def _grow(self, capacity: int) -> None:
        for name in ("sums", "keys", "last", "misses", "_free"):
            old = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
        centres = np.zeros((3, capacity), np.float32)
        centres[:, : self.centres.shape[1]] = self.centres
        self.centres = centres


def _by_block(keys: Keys) -> Iterator[tuple[int, slice]]:
    """The blocks that sorted keys lie in, and where."""
    numbers, starts = np.unique(keys >> LOCAL_BITS, return_index=True)
    ends = np.append(starts, len(keys))[1:]
    return ((int(n), slice(a, b)) for n, a, b in zip(numbers, starts.tolist(), ends.tolist(), strict=True))
