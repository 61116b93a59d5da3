# SPDX-License-Identifier: Apache-2.0
"""The index of places: what looks alike is found, whatever else is in it, came, or went."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import quick, seeds
from hypothesis import given
from hypothesis import strategies as st

from recon_ros.geometry.features import Features
from recon_ros.memory.places import LENGTH, MIN_FEATURES, PlaceIndex, signature


def features(descriptors: np.ndarray) -> Features:
    n = len(descriptors)
    return Features(np.zeros((n, 2), np.float32), descriptors, np.full((n, 3), np.nan, np.float32))


def place(rng: np.random.Generator, count: int = 200) -> np.ndarray:
    """(count, 32) descriptors of an imaginary place: a few shapes, each seen many times a bit differently."""
    shapes = rng.integers(0, 256, (12, 32), dtype=np.uint8)
    return seen_again(rng, shapes[rng.integers(0, len(shapes), count)], 0.1)


def seen_again(rng: np.random.Generator, descriptors: np.ndarray, flipped: float) -> np.ndarray:
    """The same with a share of all bits changed."""
    noise = np.packbits(rng.random((len(descriptors), 256)) < flipped, axis=1)
    return descriptors ^ noise


def filled(places: list[np.ndarray]) -> PlaceIndex:
    index = PlaceIndex()
    for i, descriptors in enumerate(places):
        index.add(i, features(descriptors))
    return index


def ids(found: list) -> list[int]:
    return [candidate.id for candidate in found]


@quick
@given(seeds())
def test_signature_does_not_depend_on_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    descriptors = place(rng, 100)
    one, other = signature(descriptors), signature(rng.permutation(descriptors))
    assert one.shape == (LENGTH,) and one.dtype == np.float32
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(one, other)


def test_too_few_features_have_no_signature() -> None:
    rng = np.random.default_rng(0)
    assert not signature(place(rng, MIN_FEATURES - 1)).any()
    assert not signature(np.zeros((0, 32), np.uint8)).any()
    index = filled([place(rng), np.zeros((0, 32), np.uint8)])
    assert len(index.query(features(np.zeros((0, 32), np.uint8)))) == 2  # nothing is known, nothing fails


@quick
@given(seeds())
def test_a_place_seen_again_is_found(seed: int) -> None:
    """A tenth of all bits differs, and a third of the keypoints are others."""
    rng = np.random.default_rng(seed)
    places = [place(rng) for _ in range(20)]
    wanted = int(rng.integers(20))
    view = seen_again(rng, places[wanted], 0.1)
    view[:66] = rng.integers(0, 256, (66, 32), dtype=np.uint8)
    found = filled(places).query(features(view), count=5)
    assert ids(found)[0] == wanted and len(found) == 5
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


@quick
@given(seeds())
def test_what_all_places_share_does_not_count(seed: int) -> None:
    """One keyframe shows nothing but what all show; it is not everybody's neighbour."""
    rng = np.random.default_rng(seed)
    shared = place(rng, 300)
    places = [np.concatenate([seen_again(rng, shared, 0.05), place(rng, 80)]) for _ in range(12)]
    index = filled([*places, shared])
    wanted = int(rng.integers(12))
    view = np.concatenate([seen_again(rng, shared, 0.05), seen_again(rng, places[wanted][300:], 0.1)])
    assert ids(index.query(features(view), count=1)) == [wanted]


def test_excluded_ones_are_left_out() -> None:
    rng = np.random.default_rng(1)
    places = [place(rng) for _ in range(10)]
    index = filled(places)
    assert ids(index.query(features(places[3]), count=1)) == [3]
    found = ids(index.query(features(places[3]), exclude={3, 5}, count=100))
    assert sorted(found) == [0, 1, 2, 4, 6, 7, 8, 9]


def test_equal_ones_are_in_the_order_of_their_ids() -> None:
    rng = np.random.default_rng(2)
    same, others = place(rng), [place(rng) for _ in range(3)]
    index = PlaceIndex()
    for i in (8, 2, 5):
        index.add(i, features(same))
    for i, descriptors in enumerate(others):
        index.add(20 + i, features(descriptors))
    assert ids(index.query(features(same), count=3)) == [2, 5, 8]


@quick
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 11)), max_size=40))
def test_adding_and_removing_leaves_what_a_fresh_index_has(steps: list[tuple[bool, int]]) -> None:
    rng = np.random.default_rng(3)
    places = [place(rng, 60) for _ in range(12)]
    index, alive = PlaceIndex(), set()
    for adds, i in steps:
        if adds:
            index.add(i, features(places[i]))
            alive.add(i)
        elif i in alive:
            index.remove(i)
            alive.discard(i)
    fresh = PlaceIndex()
    for i in sorted(alive):
        fresh.add(i, features(places[i]))
    assert len(index) == len(alive) and all(i in index for i in alive)
    view = features(place(rng, 60))
    one, other = index.query(view, count=20), fresh.query(view, count=20)
    assert {c.id for c in one} == alive
    assert {c.id: c.score for c in one} == pytest.approx({c.id: c.score for c in other}, abs=1e-4)


def test_removing_what_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        PlaceIndex().remove(1)


def test_an_empty_index_finds_nothing() -> None:
    assert PlaceIndex().query(features(place(np.random.default_rng(0)))) == []


def test_network_descriptors_are_fused_by_rank() -> None:
    """Features prefer 4, the network one that is last for features; 5 is second for both, and wins."""
    rng = np.random.default_rng(4)
    places = [place(rng) for _ in range(10)]
    view = np.concatenate([seen_again(rng, places[4], 0.1), seen_again(rng, places[5], 0.1)[:150]])
    by_features = ids(filled(places).query(features(view)))
    assert by_features[:2] == [4, 5]
    directions = rng.normal(size=(10, 64)).astype(np.float32)
    index = PlaceIndex()
    for i, descriptors in enumerate(places):
        index.add(i, features(descriptors), 3.0 * directions[i])
    assert ids(index.query(features(view))) == by_features  # without a descriptor of the view there is one order
    descriptor = directions[by_features[-1]] + 0.8 * directions[5]
    assert ids(index.query(features(view), descriptor, count=1)) == [5]
    index.remove(5)
    assert 5 not in ids(index.query(features(view), descriptor))


def test_keyframes_without_a_network_descriptor_are_still_found() -> None:
    rng = np.random.default_rng(5)
    places = [place(rng) for _ in range(6)]
    index = PlaceIndex()
    for i, descriptors in enumerate(places):
        index.add(i, features(descriptors), rng.normal(size=16).astype(np.float32) if i % 2 else None)
    found = ids(index.query(features(places[2]), rng.normal(size=16).astype(np.float32), count=10))
    assert sorted(found) == list(range(6))
