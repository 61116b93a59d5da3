# SPDX-License-Identifier: Apache-2.0
"""Loops are found when a place is seen again, and only then; a lost camera finds itself, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from revisits import room_keyframe, room_view, turning
from textured_room import TexturedRoom

from recon_ros.config import Config, updated
from recon_ros.frame import Keyframe
from recon_ros.geometry import se3
from recon_ros.geometry.two_view import Side, Verified, VerifySettings, verify
from recon_ros.mapping import loops as loops_module
from recon_ros.mapping.loops import Loop, LoopDetector, candidates
from recon_ros.memory.places import PlaceIndex
from recon_ros.memory.store import KeyframeStore
from recon_ros.tracking.relocalize import relocalize
from recon_ros.tracking.view import View

STEPS = 16
LAP = range(STEPS + 3)
"""Three keyframes of the second lap see what the first three saw, from a bit aside."""


def true_pose(step: int) -> np.ndarray:
    aside = np.array([0.15, 0.02, 0.1, 0.0, 0.05, 0.0])
    return turning(step, STEPS) @ se3.exp(aside) if step >= STEPS else turning(step, STEPS)


@pytest.fixture(scope="module")
def views() -> list[View]:
    room = TexturedRoom()
    return [room_view(room, true_pose(step)) for step in LAP]


def drifted(step: int, metres_per_step: float) -> np.ndarray:
    T = true_pose(step).copy()
    T[0, 3] += metres_per_step * step
    return T


def mapped(views: list[View], count: int, metres_per_step: float = 0.004) -> tuple[KeyframeStore, PlaceIndex]:
    """The first keyframes, with poses that drift."""
    store, index = KeyframeStore(100), PlaceIndex()
    for step in range(count):
        store.add(room_keyframe(step, views[step], drifted(step, metres_per_step)))
        index.add(step, store[step].features)
    return store, index


def detect(keyframe: Keyframe, store: KeyframeStore, index: PlaceIndex, **options: object) -> list[Loop]:
    """The loops that end in a keyframe, among those that look like it."""
    config = updated(Config(), {f"loops.{name}": value for name, value in options.items()})
    return LoopDetector(config).detect(keyframe, store, candidates(keyframe, store, index, config.loops))


def found(views: list[View], count: int, metres_per_step: float = 0.004, **options: object) -> list[Loop]:
    store, index = mapped(views, count, metres_per_step)
    return detect(store.keyframes[-1], store, index, **options)


def assert_true(loops: list[Loop]) -> None:
    for loop in loops:
        T_a_b = se3.inverse(true_pose(loop.a)) @ true_pose(loop.b)
        moved, turned = se3.distance(se3.inverse(loop.T_a_b) @ T_a_b)
        assert moved < 0.03 and turned < 0.01, f"{loop.a} to {loop.b}: {moved:.3f} m and {turned:.4f} rad off"


def test_a_second_lap_closes(views: list[View]) -> None:
    loops = found(views, STEPS + 2)
    assert loops and {loop.b for loop in loops} == {STEPS + 1}
    assert {loop.a for loop in loops} & {0, 1, 2}
    assert all(loop.evidence and not {loop.a, loop.b} & set(loop.evidence) for loop in loops)
    assert [loop.inliers for loop in loops] == sorted((loop.inliers for loop in loops), reverse=True)
    assert_true(loops)


def test_the_same_map_gives_the_same_loops(views: list[View]) -> None:
    one, other = found(views, STEPS + 2), found(views, STEPS + 2)
    assert [(loop.a, loop.inliers, loop.evidence) for loop in one] == [
        (loop.a, loop.inliers, loop.evidence) for loop in other
    ]
    for p, q in zip(one, other, strict=True):
        np.testing.assert_array_equal(p.T_a_b, q.T_a_b)


@pytest.mark.parametrize("count", [1, 2, STEPS // 2, STEPS - 3])
def test_half_a_lap_has_none(views: list[View], count: int) -> None:
    assert found(views, count, exclusion=4) == []


def test_neighbours_in_time_are_no_loops() -> None:
    room = TexturedRoom()
    store, index = KeyframeStore(10), PlaceIndex()
    for step in range(4):
        T = turning(step, 60)
        store.add(room_keyframe(step, room_view(room, T), T))
        index.add(step, store[step].features)
    assert detect(store[3], store, index, exclusion=1)  # all see the same
    assert detect(store[3], store, index, exclusion=3) == []


def test_turned_off(views: list[View]) -> None:
    assert found(views, STEPS + 2, enabled=False) == []


def torn(views: list[View], metres: float) -> tuple[KeyframeStore, PlaceIndex]:
    """A map whose second half is so far from where it should be."""
    store, index = mapped(views, STEPS + 2)
    for step in range(8, STEPS + 2):
        store[step].T_world_camera = se3.make(np.eye(3), np.array([metres, 0.0, 0.0])) @ store[step].T_world_camera
    return store, index


def test_a_correction_out_of_proportion_is_not_believed(views: list[View]) -> None:
    store, index = torn(views, 3.0)
    assert detect(store[STEPS + 1], store, index, max_drift=0.1) == []
    assert_true(loops := detect(store[STEPS + 1], store, index, max_drift=1.0))
    assert loops


def test_maps_without_common_frame_may_be_joined_by_any_correction(views: list[View]) -> None:
    store, index = torn(views, 50.0)
    store.split([range(8), range(8, STEPS + 2)])
    loops = detect(store[STEPS + 1], store, index)
    assert loops and {loop.a for loop in loops} <= set(range(8))
    assert_true(loops)


def test_one_witness_is_needed(views: list[View]) -> None:
    """A keyframe that sees the place again, and nobody beside it who could confirm."""
    store, index = mapped(views, STEPS + 1)
    for step in range(1, STEPS):
        store.remove(step)
        index.remove(step)
    assert detect(store.keyframes[-1], store, index, exclusion=1) == []


def test_a_wrong_verification_finds_no_witness(views: list[View], monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair verifies to a wrong pose, as two equal views of different places would; its neighbours do not."""
    store, index = mapped(views, STEPS + 1)
    first, last = store[0].features, store[STEPS].features

    def fooled(a: Side, b: Side, settings: VerifySettings) -> Verified | None:
        verified = verify(a, b, settings)
        if verified is not None and a.features is first and b.features is last:
            return replace(verified, T_a_b=verified.T_a_b @ se3.exp(np.array([1.0, 0, 0, 0, 0, 0])))
        return verified

    only = {"candidates": 1, "max_drift": 1.0}
    assert [loop.a for loop in detect(store[STEPS], store, index, **only)] == [0]
    monkeypatch.setattr(loops_module, "verify", fooled)
    assert detect(store[STEPS], store, index, **only) == []


def test_answers_that_contradict_each_other_are_all_dropped(views: list[View]) -> None:
    """The map has one place twice, five metres apart, and a long way later it is seen again: which one is it?"""
    store, index = KeyframeStore(100), PlaceIndex()

    def add(view: View, T_world_camera: np.ndarray) -> int:
        store.add(room_keyframe(store.next_id, view, T_world_camera))
        index.add(store.next_id - 1, view.features)
        return store.next_id - 1

    for metres in (0.0, 5.0):
        for step in range(3):
            add(views[step], se3.make(np.eye(3), np.array([metres, 0.0, 0.0])) @ true_pose(step))
    add(views[STEPS // 2], se3.make(np.eye(3), np.array([0.0, 0.0, 40.0])))
    last = add(views[STEPS], true_pose(0))
    assert detect(store[last], store, index, exclusion=1) == []
    for step in range(3, 6):
        index.remove(step)
    loops = detect(store[last], store, index, exclusion=1)
    assert loops and {loop.a for loop in loops} <= {0, 1, 2}


def test_another_room_closes_nothing(views: list[View]) -> None:
    store, index = mapped(views, STEPS)
    other = TexturedRoom(seed=1)
    for step in range(STEPS, STEPS + 3):
        store.add(room_keyframe(step, room_view(other, true_pose(step)), drifted(step, 0.0)))
        index.add(step, store[step].features)
        assert detect(store[step], store, index) == []


def test_candidates_the_store_has_not_are_passed_over(views: list[View]) -> None:
    store, index = mapped(views, STEPS + 2)
    for step in range(4):
        store.remove(step)
    assert all(loop.a in store for loop in detect(store.keyframes[-1], store, index))


# --- lost and found


@pytest.mark.parametrize("step", [STEPS, STEPS + 1, STEPS + 2])
def test_a_lost_camera_finds_itself(views: list[View], step: int) -> None:
    store, index = mapped(views, STEPS, 0.0)
    result = relocalize(views[step], store, index, budget=6)
    assert result is not None
    T_world_camera, keyframe_id, inliers = result
    moved, turned = se3.distance(se3.inverse(T_world_camera) @ true_pose(step))
    assert moved < 0.03 and turned < 0.01
    assert keyframe_id in store and inliers >= 20


def test_what_was_never_seen_is_not_found(views: list[View]) -> None:
    store, index = mapped(views, 5)
    other = TexturedRoom(seed=1)
    assert relocalize(views[9], store, index, budget=6) is None  # the other side of the room
    assert all(relocalize(room_view(other, true_pose(i)), store, index, budget=6) is None for i in range(4))


def test_nothing_is_found_in_nothing(views: list[View]) -> None:
    assert relocalize(views[0], KeyframeStore(10), PlaceIndex(), budget=6) is None


def test_keyframes_that_disagree_leave_the_camera_lost(views: list[View]) -> None:
    """Two keyframes of one place whose poses have nothing to do with each other: nobody knows which is right."""
    store, index = mapped(views, 2, 0.0)
    again = room_keyframe(2, views[0], se3.make(np.eye(3), np.array([3.0, 0.0, 0.0])) @ true_pose(0))
    store.remove(1)
    index.remove(1)
    assert relocalize(views[STEPS], store, index, budget=6) is not None
    store.add(again)
    index.add(2, again.features)
    assert relocalize(views[STEPS], store, index, budget=6) is None
