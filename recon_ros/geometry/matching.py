# SPDX-License-Identifier: Apache-2.0
"""Correspondences of dense maps: mutual nearest neighbours among 3D points or among descriptors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from recon_ros.errors import InputError
from recon_ros.geometry.features import Pairs

ROUNDS = 10
"""Times a walk may go there and back; it climbs in similarity, and most are over after two or three."""
TILE = 1024, 512
"""Descriptors compared at once, of the one map and of the other: their products, 2 MB, stay in the cache."""


def mutual_points(
    a: NDArray[Any],
    b: NDArray[Any],
    max_distance: float = np.inf,
    use_a: NDArray[np.bool_] | None = None,
    use_b: NDArray[np.bool_] | None = None,
) -> Pairs:
    """Pairs of points that are each other's nearest (DUSt3R, Wang et al. 2024, section 3.3).

    Args:
        a, b: (..., 3) points in one frame, such as two (H, W, 3) pointmaps; NaN is left out.
        max_distance: pairs as far apart as this or farther are left out, in the unit of the points.
        use_a, use_b: masks of the points that take part, such as the confident ones; all when None.

    Returns:
        (K, 2) int64 flat indices into a and into b, sorted by the first; each point is in at most one pair.

    Raises:
        InputError: ``matching`` when the shapes do not fit together.
    """
    index_a, points_a = _taking_part(a, use_a)
    index_b, points_b = _taking_part(b, use_b)
    if points_a.shape[1] != 3 or points_b.shape[1] != 3:
        raise InputError("matching", f"points have 3 coordinates; the shapes are {np.shape(a)} and {np.shape(b)}")
    if len(index_a) == 0 or len(index_b) == 0:
        return np.zeros((0, 2), np.int64)
    there = np.asarray(cKDTree(points_b).query(points_a, distance_upper_bound=max_distance)[1])
    start = np.flatnonzero(there < len(points_b))  # beyond the end: nothing is near enough
    there = there[start]
    target, inverse = np.unique(there, return_inverse=True)
    back = np.asarray(cKDTree(points_a).query(points_b[target])[1])
    mutual = back[inverse] == start
    return np.stack([index_a[start[mutual]], index_b[there[mutual]]], axis=1)


def mutual_descriptors(
    a: NDArray[Any],
    b: NDArray[Any],
    use_a: NDArray[np.bool_] | None = None,
    use_b: NDArray[np.bool_] | None = None,
) -> Pairs:
    """All pairs of descriptors that are each other's most similar, by comparing each with each.

    The time is N·M·D products twice; for whole maps see `reciprocal_descriptors`.

    Args:
        a, b: (..., D) descriptors of length 1; those with NaN are left out.
        use_a, use_b: masks of the descriptors that take part; all when None.

    Returns:
        (K, 2) int64 flat indices into a and into b, sorted by the first; each is in at most one pair.

    Raises:
        InputError: ``matching`` when the shapes do not fit together.
    """
    index_a, a = _taking_part(a, use_a)
    index_b, b = _taking_part(b, use_b)
    _require_equal_length(a, b)
    pairs = _walk(a, b, np.arange(len(a)))
    return np.stack([index_a[pairs[:, 0]], index_b[pairs[:, 1]]], axis=1)


def reciprocal_descriptors(
    a: NDArray[Any],
    b: NDArray[Any],
    stride: int = 8,
    use_a: NDArray[np.bool_] | None = None,
    use_b: NDArray[np.bool_] | None = None,
) -> Pairs:
    """Mutual nearest neighbours of two dense maps, from a grid of seeds (MASt3R, Leroy et al. 2024, section 3.3).

    From each seed of `a` a walk goes to its nearest neighbour in `b`, from there to that one's nearest in `a`,
    and on, until it comes back to where it was: there the pair is mutual. Few seeds find pairs which are spread
    over the image, and with a wide basin. With `stride` 1 all pairs that there are.

    Args:
        a, b: (H, W, D) and (H′, W′, D) descriptors of length 1; those with NaN are left out.
        stride: of the grid of seeds, pixels.
        use_a, use_b: (H, W) and (H′, W′) masks of the pixels that take part; all when None.

    Returns:
        (K, 2) int64 flat indices into a and into b, sorted by the first; each is in at most one pair.

    Raises:
        InputError: ``matching`` when the shapes do not fit together.
    """
    if np.ndim(a) != 3 or np.ndim(b) != 3:
        raise InputError("matching", f"expected two maps (H, W, D); the shapes are {np.shape(a)} and {np.shape(b)}")
    height, width = a.shape[:2]
    index_a, a = _taking_part(a, use_a)
    index_b, b = _taking_part(b, use_b)
    _require_equal_length(a, b)
    on_grid = np.zeros((height, width), bool)
    on_grid[stride // 2 :: stride, stride // 2 :: stride] = True
    u = np.flatnonzero(on_grid.ravel()[index_a])

    pairs = _walk(a, b, u)
    return np.stack([index_a[pairs[:, 0]], index_b[pairs[:, 1]]], axis=1)


def pixels_of(indices: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    """Flat indices (N,) into an image of this width as (N, 2) float64 pixels (u, v)."""
    v, u = np.divmod(indices, width)
    return np.stack([u, v], axis=1).astype(np.float64)


def _taking_part(values: NDArray[Any], use: NDArray[np.bool_] | None) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Flat indices of the finite vectors that the mask lets through, and these vectors as rows."""
    values = np.asarray(values)
    if use is not None and np.shape(use) != values.shape[:-1]:
        raise InputError("matching", f"a mask of shape {np.shape(use)} does not fit values of shape {values.shape}")
    rows = values.reshape(-1, values.shape[-1])
    usable = np.isfinite(rows).all(axis=1)
    if use is not None:
        usable &= np.asarray(use, dtype=bool).ravel()
    index = np.flatnonzero(usable)
    return index, rows[index]


def _require_equal_length(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape[1] != b.shape[1]:
        raise InputError("matching", f"descriptors of {a.shape[1]} and of {b.shape[1]} numbers cannot be compared")


def _walk(a: NDArray[Any], b: NDArray[Any], u: NDArray[np.int64]) -> Pairs:
    """The mutual pairs among all that walks from the rows `u` of a, to b and back, come past; sorted."""
    if len(a) == 0 or len(b) == 0:
        return np.zeros((0, 2), np.int64)
    there, back = np.full(len(a), -1), np.full(len(b), -1)  # nearest neighbours found so far
    for _ in range(ROUNDS):
        there[u] = _most_similar(a[u], b)
        v = _first_visited(there[u], back)
        back[v] = _most_similar(b[v], a)
        u = _first_visited(back[v], there)  # walks that met, or came home, are over
        if len(u) == 0:
            break
    u = np.flatnonzero(there >= 0)
    u = u[back[there[u]] == u]
    return np.stack([u, there[u]], axis=1)


def _first_visited(rows: NDArray[np.int64], neighbours: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the rows whose neighbour is not known yet, each once."""
    return np.unique(rows[neighbours[rows] < 0])


def _most_similar(queries: NDArray[Any], others: NDArray[Any]) -> NDArray[np.int64]:
    """(N,) index of the largest of the products of (N, D) with (M, D); the first of equal ones."""
    queries, others = (np.asarray(rows, dtype=np.float32) for rows in (queries, others))
    best = np.zeros(len(queries), np.int64)
    row_step, column_step = TILE
    for row in range(0, len(queries), row_step):
        block = queries[row : row + row_step]
        largest = np.full(len(block), -np.inf, np.float32)
        index = np.zeros(len(block), np.int64)
        for column in range(0, len(others), column_step):
            products = block @ others[column : column + column_step].T
            here = products.argmax(axis=1)
            value = np.take_along_axis(products, here[:, None], axis=1)[:, 0]
            better = value > largest
            largest[better] = value[better]
            index[better] = here[better] + column
        best[row : row + row_step] = index
    return best
