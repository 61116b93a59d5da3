# SPDX-License-Identifier: Apache-2.0
"""Mutual nearest neighbours of dense maps, against comparing each with each."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import quick, seeds
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from recon_ros.errors import InputError
from recon_ros.geometry import matching

few = st.integers(1, 60)


def descriptors(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """(*shape) float32 of length 1."""
    values = rng.normal(size=shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def smooth_map(rng: np.random.Generator, height: int, width: int, sigma: float = 2.0) -> np.ndarray:
    """(H, W, 12) descriptors that change slowly, as a network's do."""
    values = gaussian_filter(rng.normal(size=(height, width, 12)), (sigma, sigma, 0))
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def mutual_by_the_book(cost: np.ndarray) -> set[tuple[int, int]]:
    """Pairs that are the least of their row and of their column; infinite costs are none."""
    pairs = set()
    for i in range(cost.shape[0]):
        for j in range(cost.shape[1]):
            if np.isfinite(cost[i, j]) and cost[i, j] == cost[i].min() == cost[:, j].min():
                pairs.add((i, j))
    return pairs


def as_set(pairs: np.ndarray) -> set[tuple[int, int]]:
    """The pairs, checked: int64, sorted, each index once."""
    assert pairs.dtype == np.int64 and pairs.shape[1:] == (2,)
    assert (np.diff(pairs[:, 0]) > 0).all()
    assert len(np.unique(pairs[:, 1])) == len(pairs)
    return {(int(i), int(j)) for i, j in pairs}


def masked(cost: np.ndarray, use_a: np.ndarray, use_b: np.ndarray) -> np.ndarray:
    cost = cost.copy()
    cost[~use_a.ravel()] = np.inf
    cost[:, ~use_b.ravel()] = np.inf
    return cost


# --- points


@quick
@given(few, few, seeds())
def test_mutual_points_are_those_of_brute_force(n: int, m: int, seed: int) -> None:
    """With masks and holes; float32 as pointmaps are."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(m, 3)).astype(np.float32)
    use_a, use_b = rng.random(n) < 0.8, rng.random(m) < 0.8
    distance = np.linalg.norm(a[:, None].astype(np.float64) - b, axis=2)
    assert as_set(matching.mutual_points(a, b)) == mutual_by_the_book(distance)
    # The limit acts on pairs; it must not turn the second nearest into the nearest.
    near = {(i, j) for i, j in mutual_by_the_book(distance) if distance[i, j] < 0.7}
    assert as_set(matching.mutual_points(a, b, max_distance=0.7)) == near
    assert as_set(matching.mutual_points(a, b, use_a=use_a, use_b=use_b)) == mutual_by_the_book(
        masked(distance, use_a, use_b)
    )
    a[~use_a, rng.integers(3)] = np.nan
    assert as_set(matching.mutual_points(a, b)) == mutual_by_the_book(masked(distance, use_a, np.ones(m, bool)))


def test_points_of_maps_have_flat_indices() -> None:
    """The right half of one image is the left half of the other."""
    rng = np.random.default_rng(0)
    wide = rng.uniform(0, 1, (6, 12, 3)).astype(np.float32)
    a, b = wide[:, :8], wide[:, 4:]
    pairs = matching.mutual_points(a, b, max_distance=1e-6)
    assert len(pairs) == 6 * 4
    u, v = matching.pixels_of(pairs[:, 0], 8), matching.pixels_of(pairs[:, 1], 8)
    np.testing.assert_array_equal(u - v, np.tile([4.0, 0.0], (24, 1)))
    np.testing.assert_array_equal(a[u[:, 1].astype(int), u[:, 0].astype(int)], a.reshape(-1, 3)[pairs[:, 0]])


# --- descriptors, each with each


@quick
@given(few, few, st.integers(2, 8), seeds())
def test_mutual_descriptors_are_those_of_brute_force(n: int, m: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = descriptors(rng, n, size), descriptors(rng, m, size)
    use_a, use_b = rng.random(n) < 0.8, rng.random(m) < 0.8
    cost = -(a @ b.T)
    assert as_set(matching.mutual_descriptors(a, b)) == mutual_by_the_book(cost)
    expected = mutual_by_the_book(masked(cost, use_a, use_b))
    assert as_set(matching.mutual_descriptors(a, b, use_a, use_b)) == expected
    b[~use_b, 0] = np.nan
    assert as_set(matching.mutual_descriptors(a, b, use_a)) == expected


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = descriptors(rng, 130, 24), descriptors(rng, 171, 24)
    expected = mutual_by_the_book(-(a @ b.T))
    for tile in ((1024, 512), (7, 11), (130, 171), (1, 1)):
        monkeypatch.setattr(matching, "TILE", tile)
        assert as_set(matching.mutual_descriptors(a, b)) == expected


def test_equal_descriptors_are_paired_once() -> None:
    a = np.tile(np.array([[1.0, 0.0]], np.float32), (5, 1))
    assert as_set(matching.mutual_descriptors(a, a[:3])) == {(0, 0)}


# --- descriptors, from a grid of seeds


@quick
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 6), st.booleans(), seeds())
def test_reciprocal_pairs_are_mutual(height: int, width: int, stride: int, smooth: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    make = smooth_map if smooth else (lambda rng, h, w: descriptors(rng, h, w, 4))
    a, b = make(rng, height, width), make(rng, width + 1, height)
    use_a, use_b = rng.random(a.shape[:2]) < 0.8, rng.random(b.shape[:2]) < 0.8
    cost = masked(-(a.reshape(-1, a.shape[2]) @ b.reshape(-1, b.shape[2]).T), use_a, use_b)
    found = as_set(matching.reciprocal_descriptors(a, b, stride, use_a, use_b))
    every = mutual_by_the_book(cost)
    assert found <= every
    assert as_set(matching.reciprocal_descriptors(a, b, 1, use_a, use_b)) == every
    on_grid = {(i, j) for i, j in every if (i // width % stride, i % width % stride) == (stride // 2, stride // 2)}
    assert on_grid <= found
    # A walk ends in a mutual pair, if not in time.
    seeds_used = use_a[stride // 2 :: stride, stride // 2 :: stride].any()
    assert bool(found) == bool(seeds_used and use_b.any())


@quick
@given(st.integers(2, 20), st.integers(2, 20), st.integers(1, 5), seeds())
def test_all_seeds_are_found_again_in_a_permutation(height: int, width: int, stride: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = descriptors(rng, height, width, 24)
    order = rng.permutation(height * width)
    b = a.reshape(-1, 24)[order].reshape(width, height, 24)
    found = as_set(matching.reciprocal_descriptors(a, b, stride))
    grid = np.arange(height * width).reshape(height, width)[stride // 2 :: stride, stride // 2 :: stride]
    where = np.argsort(order)
    assert found == {(int(i), int(where[i])) for i in grid.ravel()}


def test_reciprocal_pairs_of_shifted_images_are_right_and_spread() -> None:
    """Noise moves a nearest neighbour by a pixel now and then; where the images do not overlap, there is no pair."""
    rng = np.random.default_rng(0)
    wide = smooth_map(rng, 60, 100, sigma=4.0)
    wide = wide + rng.normal(0, 0.01, wide.shape).astype(np.float32)
    wide /= np.linalg.norm(wide, axis=-1, keepdims=True)
    a, b = wide[:, :80], wide[:, 20:]
    pairs = matching.reciprocal_descriptors(a, b, stride=8)
    u, v = matching.pixels_of(pairs[:, 0], 80), matching.pixels_of(pairs[:, 1], 80)
    right = np.abs(u - v - [20, 0]).max(axis=1) <= 1
    overlapping = 8 * 8  # seeds whose pixel is in both images
    assert overlapping * 0.9 < right.sum() <= 8 * 10
    assert len(set(zip(u[right, 0] // 20, u[right, 1] // 20, strict=True))) == 9  # all cells of the overlap
    assert right.mean() > 0.75


def test_nothing_gives_no_pairs() -> None:
    rng = np.random.default_rng(0)
    points, rows, image = rng.normal(size=(5, 3)), descriptors(rng, 5, 4), descriptors(rng, 4, 4, 4)
    for pairs in (
        matching.mutual_points(points, points[:0]),
        matching.mutual_points(points, points + 9, max_distance=1.0),
        matching.mutual_points(points, points * np.nan),
        matching.mutual_descriptors(rows[:0], rows),
        matching.mutual_descriptors(rows, rows, use_b=np.zeros(5, bool)),
        matching.reciprocal_descriptors(image, image, 8),  # the grid has no seed in so small an image
        matching.reciprocal_descriptors(image, image * np.nan, 1),
    ):
        assert as_set(pairs) == set()


def test_shapes_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(0)
    for call in (
        lambda: matching.mutual_points(rng.normal(size=(5, 2)), rng.normal(size=(5, 2))),
        lambda: matching.mutual_points(rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), use_a=np.ones(4, bool)),
        lambda: matching.mutual_descriptors(descriptors(rng, 5, 4), descriptors(rng, 5, 6)),
        lambda: matching.reciprocal_descriptors(descriptors(rng, 5, 4), descriptors(rng, 5, 4)),
    ):
        with pytest.raises(InputError) as raised:
            call()
        assert raised.value.reason == "matching"
