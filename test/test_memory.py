# SPDX-License-Identifier: Apache-2.0
"""Which frames are kept, how many, and which go."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers import make_keyframe, quick, random_pose, random_rotation, seeds
from hypothesis import given
from hypothesis import strategies as st

from recon_ros.config import Config, MemoryConfig, updated
from recon_ros.geometry import se3
from recon_ros.memory.selection import is_keyframe
from recon_ros.memory.store import SURFACES, KeyframeStore


def at(x: float, yaw: float = 0.0) -> np.ndarray:
    """(4, 4) pose at (x, 0, 0), turned about the vertical."""
    return se3.make(se3.exp(np.array([0, 0, 0, 0, yaw, 0]))[:3, :3], [x, 0, 0])


def filled(poses: list[np.ndarray], most: int) -> KeyframeStore:
    store = KeyframeStore(most)
    for i, pose in enumerate(poses):
        store.add(make_keyframe(i, pose))
    return store


# --- the store


def test_keyframes_are_found_by_id_in_order() -> None:
    store = filled([at(i) for i in range(4)], 10)
    assert [k.id for k in store.keyframes] == [0, 1, 2, 3]
    assert store[2].id == 2 and 2 in store and 4 not in store
    store.remove(1)
    assert [k.id for k in store.keyframes] == [0, 2, 3] and len(store) == 3 and 1 not in store
    assert store.next_id == 4, "ids are never used again"
    with pytest.raises(KeyError):
        store[1]
    with pytest.raises(AssertionError):
        store.add(make_keyframe(1, at(0)))


@quick
@given(seeds(), st.integers(4, 8), st.integers(1, 25))
def test_the_store_is_bounded_and_keeps_the_newest(seed: int, most: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    store = KeyframeStore(most)
    for i in range(count):
        store.add(make_keyframe(i, random_pose(rng, 2.0, 0.5)))
        while (gone := store.surplus()) is not None:
            assert gone.id < i - 1, "one of the two newest was to go"
            store.remove(gone.id)
        assert len(store) == min(i + 1, most)
        assert i in store and (i == 0 or i - 1 in store)
        assert [k.id for k in store.keyframes] == sorted(k.id for k in store.keyframes)


def test_nothing_goes_while_there_is_room() -> None:
    store = filled([at(0)] * 5, 5)
    assert store.surplus() is None


@pytest.mark.parametrize(
    ("positions", "gone"),
    [
        # The two closest are 1 and 2 (0.1 m apart); 2 is closer to 3 than 1 is to 0.
        ([0.0, 1.0, 1.1, 1.6, 3.0, 5.0], 2),
        ([0.0, 0.5, 0.6, 1.6, 3.0, 5.0], 1),
        # 3 is closest to the newest but one, which stays.
        ([0.0, 1.0, 2.0, 3.9, 4.0, 6.0], 3),
        # The two newest are in one place; they are being tracked, and 1 and 2 are closest of the others.
        ([0.0, 2.0, 2.5, 4.0, 6.0, 6.0], 2),
    ],
)
def test_the_most_redundant_goes(positions: list[float], gone: int) -> None:
    surplus = filled([at(x) for x in positions], 5).surplus()
    assert surplus is not None and surplus.id == gone


def test_views_in_one_place_that_look_elsewhere_are_not_redundant() -> None:
    """Metres count in units of the depth seen (2.5 m here), radians as they are."""
    about = [at(0, 0.0), at(0, 1.0), at(0, 2.0), at(0, 3.0), at(0.3, 2.0), at(9), at(12)]
    surplus = filled(about, 6).surplus()
    assert surplus is not None and surplus.id in (2, 4)


@quick
@given(seeds(), st.sampled_from([0.125, 4.0]))
def test_what_goes_does_not_depend_on_the_unit(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    poses = [random_pose(rng, 2.0, 0.5) for _ in range(7)]
    # A map that is larger by `scale`: positions, and the size of the keyframes' local points by their Sim(3).
    scaled = [se3.make(T[:3, :3], scale * T[:3, 3], scale) for T in poses]
    a, b = filled(poses, 6).surplus(), filled(scaled, 6).surplus()
    assert a is not None and b is not None and a.id == b.id


def test_overlaps_follow_what_is_added_and_removed() -> None:
    points = np.array([[0.0, 0, 2.5], [0.2, 0.1, 2.6]])
    store = filled([at(0), at(50)], 10)
    ids, shares = store.overlaps(points, at(0))
    assert ids.tolist() == [0, 1] and shares.tolist() == [1, 0]
    store.add(make_keyframe(2, at(0)))
    assert store.overlaps(points, at(0))[0].tolist() == [0, 1, 2]
    store.remove(0)
    ids, shares = store.overlaps(points, at(0))
    assert ids.tolist() == [1, 2] and shares.tolist() == [0, 1]


# --- surfaces


def test_surfaces_are_kept_as_long_as_they_are_used() -> None:
    store = filled([at(i) for i in range(SURFACES + 2)], 100)
    first, second = store.surface(0), store.surface(1)
    assert first is not None and first is not second
    for i in range(2, SURFACES):
        store.surface(i)
    assert store.surface(0) is first and store.surface(1) is second, "made again though there was room"
    store.surface(0)
    store.surface(SURFACES)  # one too many: 2 was used longest ago
    store.surface(SURFACES + 1)  # and now 3
    assert store.surface(0) is first and store.surface(1) is second
    assert len(store._surfaces) == SURFACES
    assert 2 not in store._surfaces and 3 not in store._surfaces


def test_a_removed_keyframe_takes_its_surface_along() -> None:
    store = filled([at(0), at(1)], 10)
    store.surface(0)
    store.remove(0)
    assert len(store._surfaces) == 0
    with pytest.raises(KeyError):
        store.surface(0)


def test_a_keyframe_without_points_has_no_surface() -> None:
    store = KeyframeStore(10)
    store.add(make_keyframe(0, at(0), depth=np.full((30, 40), np.nan, np.float32)))
    assert store.surface(0) is None


def test_a_surface_lies_where_the_keyframe_saw_it() -> None:
    """Of the slanted plane z = 2 + column/39: in the keyframe's own frame, whatever its pose."""
    store = filled([at(7.0, 1.0)], 10)
    surface = store.surface(0)
    assert surface is not None
    x, _, z = np.asarray(surface.cloud.points())[:, :3].T
    column = 35.0 * x / z + 19.5
    np.testing.assert_allclose(z, 2 + column / 39, atol=0.005)  # half precision is 2 mm here


# --- which frames become keyframes

overlaps, poses_moved = st.floats(0, 1), st.floats(0, 2)


@quick
@given(seeds(), overlaps, poses_moved, st.floats(0, 0.4), st.integers(-20, 20))
def test_the_choice_has_no_unit(seed: int, overlap: float, moved: float, turned: float, exponent: int) -> None:
    """All lengths times a power of two, which loses no bit: the same answer."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=3)
    T = se3.make(random_rotation(rng, turned), moved * direction / np.linalg.norm(direction))
    depth, scale = rng.uniform(0.5, 8), 2.0**exponent
    scaled = se3.make(T[:3, :3], scale * T[:3, 3])
    config = MemoryConfig()
    assert is_keyframe(config, overlap, T, depth) == is_keyframe(config, overlap, scaled, scale * depth)


def test_both_criteria_are_needed() -> None:
    config = updated(
        Config(), {"memory.min_overlap": 0.5, "memory.min_translation": 0.1, "memory.min_rotation": 0.2}
    ).memory
    for overlap, x, yaw in itertools.product((0.4, 0.6), (0.15, 0.25), (0.1, 0.3)):
        expected = overlap < 0.5 and (x > 0.2 or yaw > 0.2)  # 0.1 of a median depth of 2 m
        assert is_keyframe(config, overlap, at(x, yaw), 2.0) == expected, (overlap, x, yaw)


@quick
@given(overlaps, overlaps)
def test_less_overlap_makes_no_fewer_keyframes(a: float, b: float) -> None:
    config, T = MemoryConfig(), at(1.0)
    low, high = min(a, b), max(a, b)
    assert is_keyframe(config, low, T, 2.0) >= is_keyframe(config, high, T, 2.0)
