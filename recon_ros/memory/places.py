# SPDX-License-Identifier: Apache-2.0
"""Which keyframes may show the place in view: an incremental index of one signature per keyframe.

The signature is a VLAD (Jégou et al. 2010) of binary descriptors that needs no vocabulary: some bits of a descriptor
say into which cell it falls, and per cell the others are summed as ±1, square-rooted and normalised. Similarity is the
cosine of signatures after the mean of all keyframes is taken off, which is what these share: without that, keyframes
with many features are everybody's neighbour. Where a network gives descriptors of its own, both orders are fused by
rank (Cormack et al. 2009).

Measured as recall of a view of the same place among the first 1 / 5 / 10, and time per query on one CPU core, on 235
keyframes of a walk through an office (holo_walk; revisits 15 s later, many of them from another side) and 123 of two
laps of the synthetic warehouse:

====================================================  ==================  ==================  ======================
what                                                  office              warehouse           time
====================================================  ==================  ==================  ======================
this                                                  .47 / .74 / .90     .99 / 1 / 1         1-4 ms
with 64 cells learned from procedural textures        .48 / .83 / .86     -                   2 ms
votes of the 200 strongest descriptors, idf weights   .23 / .44 / .57     1 / 1 / 1           60-270 ms, linear
hashes of 12 bits, 8 tables, idf weights              .21 / .53 / .73     .98 / 1 / 1         1-3 ms
image of 32x24 pixels                                 .04 / .22 / .35     .98 / 1 / 1         0.3-2 ms
gradient histograms, 12x8 cells                       .10 / .42 / .66     .95 / 1 / 1         1-3 ms
mean of XFeat's features (PyTorch, 1.5 M weights)     .23 / .49 / .69     .98 / 1 / 1         30 ms
VLAD of XFeat's features, 64 cells learned on these   .47 / .69 / .82     1 / 1 / 1           30 ms
====================================================  ==================  ==================  ======================

Differences below .06 in the office are chance (77 queries). XFeat's VLAD is better on revisits from the same side
(.71 / .86 / .90 against .47 / .65 / .71, 51 queries), but its cells had been learned on the very recording.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon_ros.geometry.features import Features

TABLES, CELL_BITS, SUMMED_BITS = 4, 5, 64
"""Each table sorts descriptors by other bits, and sums another quarter of them."""
LENGTH = TABLES * 2**CELL_BITS * SUMMED_BITS
BITS = (np.arange(256) * 97) % 256
"""The bits of an ORB descriptor in a fixed order in which neighbours are far apart."""
MIN_FEATURES = 20
"""Below it a keyframe has no signature."""
RANK_OFFSET = 60.0


@dataclass(frozen=True)
class Candidate:
    """Attributes: id of a keyframe; score, higher is more alike, comparable within one query only."""

    id: int
    score: float


class PlaceIndex:
    """Signatures of keyframes by id. A query costs one pass over them, 32 kB each."""

    def __init__(self) -> None:
        self._signatures = _Table()
        self._descriptors = _Table()

    def __len__(self) -> int:
        return len(self._signatures)

    def __contains__(self, keyframe_id: object) -> bool:
        return keyframe_id in self._signatures

    def add(self, keyframe_id: int, features: Features, descriptor: NDArray[np.float32] | None = None) -> None:
        """Take a keyframe in, or anew; `descriptor` (D,) is a network's, of one length for all that have one."""
        self._signatures.put(keyframe_id, signature(features.descriptors))
        if descriptor is not None:
            self._descriptors.put(keyframe_id, _normalised(descriptor))

    def remove(self, keyframe_id: int) -> None:
        """Forget a keyframe; KeyError when it is not there."""
        self._signatures.drop(keyframe_id)
        if keyframe_id in self._descriptors:
            self._descriptors.drop(keyframe_id)

    def descriptors(self) -> dict[int, NDArray[np.float32]]:
        """Keyframe id → the network's descriptor, of length 1, for those that have one."""
        return self._descriptors.vectors()

    def query(
        self,
        features: Features,
        descriptor: NDArray[np.float32] | None = None,
        exclude: Set[int] = frozenset(),
        count: int = 10,
    ) -> list[Candidate]:
        """The keyframes most alike, best first, at most `count`, none of `exclude`; ties go to the older one."""
        found = _ranked(self._signatures, signature(features.descriptors), exclude)
        if descriptor is not None and len(self._descriptors):
            found = _fused([found, _ranked(self._descriptors, _normalised(descriptor), exclude)])
        return found[:count]


def signature(descriptors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 32) uint8 binary descriptors to one (LENGTH,) float32 vector of length 1; zeros for too few."""
    if len(descriptors) < MIN_FEATURES:
        return np.zeros(LENGTH, np.float32)
    bits = np.unpackbits(descriptors, axis=1)[:, BITS]
    parts = []
    for table in range(TABLES):
        first, summed = table * CELL_BITS, table * SUMMED_BITS
        cell = bits[:, first : first + CELL_BITS] @ (1 << np.arange(CELL_BITS))
        member = (cell[None, :] == np.arange(2**CELL_BITS)[:, None]).astype(np.float32)
        parts.append(member @ (2.0 * bits[:, summed : summed + SUMMED_BITS].astype(np.float32) - 1.0))
    sums = np.concatenate(parts).ravel()
    return _normalised(np.sign(sums) * np.sqrt(np.abs(sums)))


def _ranked(table: _Table, vector: NDArray[np.float32], exclude: Set[int]) -> list[Candidate]:
    """All but the excluded, most alike first."""
    ids, scores = table.similarities(vector)
    order = np.lexsort((ids, -scores))
    return [Candidate(int(ids[i]), float(scores[i])) for i in order if int(ids[i]) not in exclude]


def _fused(lists: list[list[Candidate]]) -> list[Candidate]:
    """One order from several: the sum of 1 / (60 + rank); who is missing in a list gets nothing from it."""
    total: dict[int, float] = {}
    for candidates in lists:
        for rank, candidate in enumerate(candidates):
            total[candidate.id] = total.get(candidate.id, 0.0) + 1.0 / (RANK_OFFSET + rank)
    return [Candidate(i, score) for i, score in sorted(total.items(), key=lambda item: (-item[1], item[0]))]


def _normalised(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    vector = np.asarray(vector, dtype=np.float32).ravel()
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector


class _Table:
    """Vectors by id in one growing array; rows of dropped ones are filled with the last."""

    def __init__(self) -> None:
        self._rows = np.zeros((0, 0), np.float32)
        self._squared = np.zeros(0, np.float32)
        self._ids: list[int] = []
        self._row_of: dict[int, int] = {}
        self._sum = np.zeros(0)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, keyframe_id: object) -> bool:
        return keyframe_id in self._row_of

    def put(self, keyframe_id: int, vector: NDArray[np.float32]) -> None:
        if keyframe_id in self._row_of:
            self.drop(keyframe_id)
        n = len(self._ids)
        if n == 0:
            self._sum = np.zeros(len(vector))
        if self._rows.shape[1] != len(vector) or n == len(self._rows):
            rows = np.zeros((max(64, 2 * n), len(vector)), np.float32)
            if n:
                rows[:n] = self._rows[:n]
            self._rows, self._squared = rows, np.r_[self._squared[:n], np.zeros(len(rows) - n, np.float32)]
        self._rows[n], self._squared[n] = vector, vector @ vector
        self._sum += vector
        self._ids.append(keyframe_id)
        self._row_of[keyframe_id] = n

    def drop(self, keyframe_id: int) -> None:
        row, last = self._row_of.pop(keyframe_id), len(self._ids) - 1
        self._sum -= self._rows[row]
        self._rows[row], self._squared[row] = self._rows[last], self._squared[last]
        self._ids[row] = self._ids[last]
        if row != last:
            self._row_of[self._ids[row]] = row
        self._ids.pop()

    def vectors(self) -> dict[int, NDArray[np.float32]]:
        return {keyframe_id: self._rows[row].copy() for keyframe_id, row in self._row_of.items()}

    def similarities(self, vector: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids and cosines with them once the mean of all is taken off; 0 where nothing is left."""
        n = len(self._ids)
        if n == 0:
            return np.zeros(0, np.int64), np.zeros(0)
        rows = self._rows[:n]
        mean = (self._sum / n).astype(np.float32)
        products = np.stack([rows @ vector, rows @ mean], axis=1)
        squared_mean = float(mean @ mean)
        own = float(vector @ mean)
        length = self._squared[:n] - 2 * products[:, 1] + squared_mean
        of_vector = float(vector @ vector) - 2 * own + squared_mean
        inner = products[:, 0] - own - products[:, 1] + squared_mean
        scale = np.sqrt(np.maximum(length * of_vector, 0.0))
        cosine = np.divide(inner, scale, out=np.zeros(n, np.float32), where=scale > 1e-6)
        return np.array(self._ids, dtype=np.int64), cosine.astype(np.float64)
