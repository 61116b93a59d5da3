# SPDX-License-Identifier: Apache-2.0
"""Keypoints with descriptors and local 3D points: found on a grid, matched freely or where a pose says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

CELLS = 18
"""Cells along the longer side of the image that keypoints are spread over."""
PER_CELL = 10
"""Keypoints kept per cell at most, the strongest ones."""
SMEAR = 31
"""Window that a masked pixel takes its grey from, pixels."""
OUTLINE = 5
"""Keypoints so many pixels from what a mask excludes may be its outline, and move with it."""
_BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
Pairs = NDArray[np.int64]
"""(N, 2) indices: first into the one set, then into the other."""


@dataclass(frozen=True, eq=False)
class Features:
    """Keypoints of one image.

    Attributes:
        pixels: (N, 2) float32 positions.
        descriptors: (N, 32) uint8 binary descriptors (ORB, Rublee et al. 2011).
        points: (N, 3) float32 points of the camera frame; NaN where the pointmap knows none.
    """

    pixels: NDArray[np.float32]
    descriptors: NDArray[np.uint8]
    points: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.descriptors.nbytes + self.points.nbytes

    @property
    def located(self) -> NDArray[np.bool_]:
        """(N,) mask of the keypoints that have a 3D point."""
        mask: NDArray[np.bool_] = np.isfinite(self.points[:, 2])
        return mask

    def only_located(self) -> Features:
        """The keypoints that have a 3D point."""
        keep = self.located
        return Features(self.pixels[keep], self.descriptors[keep], self.points[keep])


class Detector:
    """ORB keypoints spread over the image, so that one textured corner does not decide the pose alone."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._orb = cv2.ORB_create(nfeatures=3 * count, scaleFactor=1.2, nlevels=8, fastThreshold=5)

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """(H, W, 3) RGB image to (N, 2) float32 pixels and (N, 32) uint8 descriptors, N ≤ `count`.

        None is found where an (H, W) mask is True, nor so near to it that it may be the outline of what is there.
        """
        gray, allowed = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None
        if mask is not None:
            gray, allowed = _smeared_over(gray, mask), _away_from(mask)
        keypoints = self._orb.detect(gray, allowed)
        if keypoints:
            keypoints = [keypoints[i] for i in _spread(keypoints, max(gray.shape) / CELLS, self.count)]
            keypoints, descriptors = self._orb.compute(gray, keypoints)
        if not keypoints:
            return np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8)
        return np.array([k.pt for k in keypoints], dtype=np.float32), descriptors


def _smeared_over(gray: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(H, W) uint8 with what is around a mask spread over it.

    Descriptors look up to 50 pixels far, so those of the surroundings, too, hold what is masked. With this, 1.6 times
    as many were found again beside something textured (139 instead of 88 of 477; 160 where it had not been there).
    """
    excluded = mask.view(np.uint8)
    known = 1 - excluded
    total, weight = (cv2.boxFilter(a, cv2.CV_32F, (SMEAR, SMEAR), normalize=False) for a in (gray * known, known))
    around = cv2.divide(total, weight)  # 0 where nothing is known
    around[weight < 0.5] = cv2.mean(gray, known)[0]
    return np.asarray(cv2.copyTo(around.astype(np.uint8), excluded, gray))


def _away_from(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(H, W) uint8, not 0 where OpenCV may look."""
    return np.asarray(1 - cv2.dilate(mask.view(np.uint8), np.ones((2 * OUTLINE + 1,) * 2, np.uint8)))


def _spread(keypoints: Any, edge: float, count: int) -> NDArray[np.int64]:
    """Indices of up to `count` keypoints: each cell's strongest, then each cell's second, and so on."""
    pixels = np.array([k.pt for k in keypoints])
    strength = np.array([k.response for k in keypoints])
    cell = (pixels[:, 1] // edge).astype(np.int64) * 100_000 + (pixels[:, 0] // edge).astype(np.int64)
    order = np.lexsort((-strength, cell))
    position = np.arange(len(order))
    first = np.r_[True, np.diff(cell[order]) != 0]
    rank = position - np.maximum.accumulate(np.where(first, position, 0))
    by_rank = np.lexsort((-strength[order], rank))  # each cell's best before any cell's second
    kept = order[by_rank[rank[by_rank] < PER_CELL]]
    return np.asarray(kept[:count])


def match(a: Features, b: Features, ratio: float = 0.8) -> Pairs:
    """Pairs of a and b by Lowe's ratio test (2004), each keypoint of b at most once; no pose needed."""
    if len(a) < 2 or len(b) < 2:
        return np.zeros((0, 2), np.int64)
    best: dict[int, tuple[float, int]] = {}
    for first, second in cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(a.descriptors, b.descriptors, k=2):
        if first.distance < ratio * second.distance:
            known = best.get(first.trainIdx)
            if known is None or first.distance < known[0]:
                best[first.trainIdx] = (first.distance, first.queryIdx)
    return np.array([(i, j) for j, (_, i) in best.items()], dtype=np.int64).reshape(-1, 2)


def match_guided(
    expected: NDArray[Any],
    descriptors: NDArray[np.uint8],
    tree: cKDTree,
    others: NDArray[np.uint8],
    radius: float,
    max_distance: int = 64,
    ratio: float = 0.85,
) -> Pairs:
    """Pairs by descriptor among the keypoints near where a pose expects them (guided search, PTAM/ORB-SLAM).

    Args:
        expected: (N, 2) predicted pixels, finite.
        descriptors: (N, 32) uint8 of the predicted points.
        tree: k-d tree of the image's M keypoint pixels.
        others: (M, 32) uint8 their descriptors.
        radius: of the search, pixels.
        max_distance: largest accepted Hamming distance, bits.
        ratio: the best must be below this share of the second best in the neighbourhood.

    Returns:
        (K, 2) indices into `expected` and into the image's keypoints, each of these at most once.
    """
    if len(expected) == 0 or len(others) == 0:
        return np.zeros((0, 2), np.int64)
    distance, neighbour = tree.query(expected, k=6, distance_upper_bound=radius)
    near = np.isfinite(distance)
    neighbour = np.where(near, neighbour, 0)
    bits = _BITS[descriptors[:, None, :] ^ others[neighbour]].sum(axis=2, dtype=np.int64)
    bits[~near] = 999
    row = np.arange(len(bits))
    column = bits.argmin(axis=1)
    best = bits[row, column]
    bits[row, column] = 1000
    accepted = np.flatnonzero((best < max_distance) & (best < ratio * bits.min(axis=1)))
    target = neighbour[accepted, column[accepted]]
    order = np.lexsort((best[accepted], target))
    unique = order[np.r_[True, np.diff(target[order]) != 0]] if len(order) else order
    return np.stack([accepted[unique], target[unique]], axis=1)
