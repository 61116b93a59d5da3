# SPDX-License-Identifier: Apache-2.0
"""Keypoints spread over the image, and matched with care."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers import quick, seeds
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from recon_ros.geometry.features import CELLS, PER_CELL, Detector, Features, match, match_guided


def features(descriptors: np.ndarray, pixels: np.ndarray | None = None) -> Features:
    count = len(descriptors)
    pixels = np.zeros((count, 2), np.float32) if pixels is None else pixels.astype(np.float32)
    return Features(pixels, descriptors.astype(np.uint8), np.full((count, 3), np.nan, np.float32))


def random_descriptors(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 256, (count, 32), dtype=np.uint8)


def flipped(rng: np.random.Generator, descriptors: np.ndarray, bits: int, least: int | None = None) -> np.ndarray:
    """Copies with this many bits of each changed, or between `least` and this many."""
    unpacked = np.unpackbits(descriptors, axis=1)
    for row in unpacked:
        count = bits if least is None else rng.integers(least, bits + 1)
        row[rng.choice(256, count, replace=False)] ^= 1
    return np.packbits(unpacked, axis=1)


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) bits that differ."""
    bits = np.unpackbits(a, axis=1)[:, None] != np.unpackbits(b, axis=1)[None]
    return bits.sum(axis=2)


# --- detection


def half_strong_half_weak() -> np.ndarray:
    """(240, 360, 3) image: sharp texture in the left third, a quarter of its contrast elsewhere."""
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 256, (60, 90), dtype=np.uint8), (360, 240), interpolation=cv2.INTER_CUBIC)
    weak = 128 + 0.25 * (noise.astype(np.float32) - 128)
    weak[:, :120] = noise[:, :120]
    return np.repeat(weak.astype(np.uint8)[..., None], 3, axis=2)


def test_keypoints_are_spread() -> None:
    """A strong third of the image does not take everything, as it does with ORB alone."""
    image = half_strong_half_weak()
    pixels, descriptors = Detector(1200)(image)
    assert pixels.dtype == np.float32 and descriptors.dtype == np.uint8
    assert descriptors.shape == (len(pixels), 32)
    assert 1000 < len(pixels) <= 1200
    edge = 360 / CELLS
    _, counts = np.unique((pixels // edge) @ [1, 1000], return_counts=True)
    assert counts.max() <= PER_CELL
    plain = cv2.ORB_create(nfeatures=1200, fastThreshold=5).detect(image[..., 0], None)
    assert np.mean(np.array([k.pt for k in plain])[:, 0] > 120) < 0.3, "the example has no strong part"
    assert np.mean(pixels[:, 0] > 120) > 0.5


def test_keypoints_stay_within_their_number() -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for count in (100, 1200):
        pixels, descriptors = Detector(count)(image)
        assert 0.8 * count < len(pixels) <= count
        assert len(descriptors) == len(pixels)
        assert (pixels >= 0).all() and (pixels < [640, 480]).all()


def test_detection_is_repeatable() -> None:
    image = half_strong_half_weak()
    detector = Detector(200)
    first, again, other = detector(image), detector(image), Detector(200)(image)
    for pixels, descriptors in (again, other):
        assert pixels.tobytes() == first[0].tobytes() and descriptors.tobytes() == first[1].tobytes()


@pytest.mark.parametrize("shape", [(240, 320), (40, 40), (3, 5)])
def test_a_blank_image_has_no_keypoints(shape: tuple[int, int]) -> None:
    pixels, descriptors = Detector(100)(np.full((*shape, 3), 90, np.uint8))
    assert pixels.shape == (0, 2) and descriptors.shape == (0, 32)


def test_an_image_of_any_layout_is_read() -> None:
    image = half_strong_half_weak()
    expected = Detector(100)(image)[0]
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    mirrored.setflags(write=False)
    assert mirrored.strides[1] < 0
    np.testing.assert_array_equal(Detector(100)(mirrored)[0], expected)


def test_located_keypoints() -> None:
    some = Features(
        np.arange(8, dtype=np.float32).reshape(4, 2),
        random_descriptors(np.random.default_rng(0), 4),
        np.array([[0, 0, 1], [np.nan] * 3, [1, 1, 2], [np.nan] * 3], np.float32),
    )
    kept = some.only_located()
    assert some.located.tolist() == [True, False, True, False]
    assert len(kept) == 2 and kept.located.all()
    np.testing.assert_array_equal(kept.pixels, some.pixels[[0, 2]])
    np.testing.assert_array_equal(kept.descriptors, some.descriptors[[0, 2]])
    assert some.nbytes == 4 * (8 + 32 + 12)


# --- free matching


@quick
@given(seeds(), st.integers(0, 40), st.integers(0, 40))
def test_match_is_the_ratio_test(seed: int, count_a: int, count_b: int) -> None:
    """Against the definition, one by one; what claims one keypoint twice goes to the nearer."""
    rng = np.random.default_rng(seed)
    b = random_descriptors(rng, count_b)
    a = random_descriptors(rng, count_a)
    if count_b:
        copies = rng.integers(0, count_b, count_a // 2)  # some of b are claimed several times
        a[: count_a // 2] = flipped(rng, b[copies], 60, least=1)
    pairs = match(features(a), features(b))
    assert pairs.shape == (len(pairs), 2) and pairs.dtype == np.int64
    assert len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == len(pairs)
    if count_a < 2 or count_b < 2:
        assert len(pairs) == 0
        return
    bits = hamming(a, b)
    nearest, second = np.sort(bits, axis=1)[:, 0], np.sort(bits, axis=1)[:, 1]
    claims: dict[int, int] = {}
    for i in np.flatnonzero(nearest < 0.8 * second):
        j = int(bits[i].argmin())
        claims[j] = min(claims.get(j, 999), int(nearest[i]))
    assert {int(j): int(bits[i, j]) for i, j in pairs} == claims


def test_match_finds_shuffled_copies() -> None:
    rng = np.random.default_rng(0)
    a = random_descriptors(rng, 50)
    order = rng.permutation(50)
    pairs = match(features(a), features(flipped(rng, a[order], 20)))
    assert len(pairs) == 50
    assert (order[pairs[:, 1]] == pairs[:, 0]).all()


def test_match_leaves_what_is_ambiguous() -> None:
    rng = np.random.default_rng(0)
    a = random_descriptors(rng, 10)
    assert len(match(features(a), features(np.concatenate([a, a])))) == 0


# --- guided matching


def guided(
    expected: np.ndarray,
    descriptors: np.ndarray,
    pixels: np.ndarray,
    others: np.ndarray,
    radius: float,
    **options: float,
) -> np.ndarray:
    return match_guided(expected, descriptors, cKDTree(pixels), others, radius, **options)  # type: ignore[arg-type]


@quick
@given(seeds(), st.floats(2, 60), st.integers(1, 40), st.integers(1, 60))
def test_guided_matches_are_near_alike_and_unique(seed: int, radius: float, count: int, others_count: int) -> None:
    rng = np.random.default_rng(seed)
    others = random_descriptors(rng, others_count)
    pixels = rng.uniform(0, 150, (others_count, 2))
    source = rng.integers(0, others_count, count)
    descriptors = flipped(rng, others[source], 100, least=0)
    expected = pixels[source] + rng.normal(0, 10, (count, 2))
    pairs = guided(expected, descriptors, pixels, others, radius)
    assert pairs.shape == (len(pairs), 2)
    i, j = pairs.T
    assert len(np.unique(i)) == len(np.unique(j)) == len(pairs)
    assert (np.linalg.norm(expected[i] - pixels[j], axis=1) <= radius).all()
    bits = hamming(descriptors, others)
    assert (bits[i, j] < 64).all()

    # Against the definition: the best of the six nearest within the radius, if it stands out.
    for k in range(count):
        distance = np.linalg.norm(pixels - expected[k], axis=1)
        near = [n for n in np.argsort(distance)[:6] if distance[n] < radius]
        candidates = sorted((int(bits[k, n]), n) for n in near)
        stands_out = bool(candidates) and (len(candidates) < 2 or candidates[0][0] < 0.85 * candidates[1][0])
        claimed = stands_out and candidates[0][0] < 64
        if k in i:
            assert claimed and j[i == k][0] == candidates[0][1]
        elif claimed:  # then another, at least as near in bits, has the keypoint
            rivals = i[j == candidates[0][1]]
            assert len(rivals) == 1 and bits[rivals[0], candidates[0][1]] <= candidates[0][0]


def test_guided_matching_does_not_look_further_than_told() -> None:
    rng = np.random.default_rng(0)
    one = random_descriptors(rng, 1)
    pixels = np.array([[100.0, 100.0]])
    for distance, found in ((11.9, 1), (12.1, 0)):
        assert len(guided(pixels + [distance, 0], one, pixels, one, 12.0)) == found


def test_guided_matching_needs_likeness() -> None:
    rng = np.random.default_rng(0)
    one = random_descriptors(rng, 1)
    pixels = np.zeros((1, 2))
    for bits, found in ((0, 1), (63, 1), (64, 0)):
        assert len(guided(pixels, flipped(rng, one, bits), pixels, one, 5.0)) == found
    assert len(guided(pixels, flipped(rng, one, 20), pixels, one, 5.0, max_distance=20)) == 0


def test_guided_matching_leaves_twins() -> None:
    rng = np.random.default_rng(0)
    one = random_descriptors(rng, 1)
    twins = np.concatenate([one, one])
    assert len(guided(np.zeros((1, 2)), one, np.array([[1.0, 0], [0, 1]]), twins, 5.0)) == 0
    assert len(guided(np.zeros((1, 2)), one, np.array([[1.0, 0], [0, 9]]), twins, 5.0)) == 1


def test_guided_matching_of_nothing() -> None:
    none, pixels = np.zeros((0, 32), np.uint8), np.zeros((0, 2))
    some = random_descriptors(np.random.default_rng(0), 3)
    assert guided(pixels, none, np.zeros((3, 2)), some, 5.0).shape == (0, 2)
    assert guided(np.zeros((3, 2)), some, pixels, none, 5.0).shape == (0, 2)
