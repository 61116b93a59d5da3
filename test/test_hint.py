# SPDX-License-Identifier: Apache-2.0
"""Somebody says where a lost camera is: it is looked for there first, and believed only where that is verified."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import make_keyframe, quick, random_pose, seeds
from hypothesis import given
from test_reconstructor import CAMERA, FRAMES, METRES, errors, pose, reconstructor, rendered
from textured_room import TexturedRoom

from recon_ros.errors import InputError
from recon_ros.frame import State
from recon_ros.geometry import se3
from recon_ros.geometry.features import Features
from recon_ros.mapping.map_data import MapData
from recon_ros.memory.places import Candidate, PlaceIndex
from recon_ros.memory.store import KeyframeStore
from recon_ros.reconstructor import Reconstructor
from recon_ros.tracking import relocalize
from recon_ros.tracking.relocalize import Hint, Near

NOTHING = Features(np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8), np.zeros((0, 3), np.float32))
OPTIONS: dict[str, Any] = {
    "memory__min_overlap": 0.95,
    "memory__min_rotation": 0.02,
    "memory__min_translation": 0.001,
    "tracking__relocalization_candidates": 2,
    "loops__enabled": False,
}


@pytest.fixture(scope="module")
def saved() -> MapData:
    r = reconstructor(**OPTIONS)
    for frame in FRAMES:
        r.process(frame)
    assert len(r.keyframes) >= 8
    return r.state_of_map()


@pytest.fixture
def asked(saved: MapData, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of keyframes that are verified, in order. The index of places is of no help: it names the newest ones."""
    ids: list[int] = []
    ask = relocalize._ask

    def listen(keyframe: Any, *besides: Any) -> Any:
        ids.append(keyframe.id)
        return ask(keyframe, *besides)

    monkeypatch.setattr(relocalize, "_ask", listen)
    newest = [Candidate(keyframe.id, 1.0) for keyframe in saved.keyframes[-2:]]
    monkeypatch.setattr(PlaceIndex, "query", lambda *_, **__: newest)
    return ids


def loaded(saved: MapData, **options: Any) -> Reconstructor:
    r = reconstructor(**OPTIONS | options)
    r.load_map(saved)
    r.lose()  # not even where it was last
    return r


def in_world(step: float) -> np.ndarray:
    """T_world_camera of `test_reconstructor.pose`."""
    return se3.inverse(pose(0)) @ pose(step)


def test_keyframes_near_the_hint_are_asked_first(saved: MapData, asked: list[int]) -> None:
    r = loaded(saved)
    assert r.process(FRAMES[0]).T_world_camera is None, "the index names keyframes that do not see it"
    r = loaded(saved)
    assert r.hint(in_world(0.4))
    asked.clear()
    update = r.process(FRAMES[0])
    assert set(asked[:2]) == {0, 1}
    assert errors(update, pose(0))[0] < METRES and update.state is State.TRACKING


def test_with_every_frame_it_asks_further_from_the_hint(saved: MapData, asked: list[int]) -> None:
    r = loaded(saved)
    r.hint(in_world(15))
    asked.clear()
    nothing = rendered(0, TexturedRoom(CAMERA, seed=9))
    near = []
    for _ in range(4):
        before = len(asked)
        assert r.process(nothing).T_world_camera is None
        near += asked[before : before + 2]
    assert near == sorted((k.id for k in saved.keyframes), reverse=True)[:8]


def test_a_wrong_hint_costs_a_moment_and_no_wrong_pose(saved: MapData) -> None:
    r = loaded(saved)
    elsewhere = se3.make(se3.exp(np.array([0, 0, 0, 0, 3.0, 0]))[:3, :3], [50.0, 0, 0])
    assert r.hint(elsewhere)
    assert errors(r.process(FRAMES[7]), pose(7))[0] < METRES


def test_nothing_is_believed_for_a_hint(saved: MapData) -> None:
    """A camera in another room is not in this one because somebody says so."""
    r = loaded(saved, tracking__submap_after=0)
    other = TexturedRoom(CAMERA, seed=9)
    for step in range(6):
        assert r.hint(in_world(step))
        assert r.process(rendered(step, other)).T_world_camera is None


def test_the_hint_is_forgotten_once_the_camera_is_found(saved: MapData, asked: list[int]) -> None:
    r = loaded(saved)
    r.hint(in_world(0))
    assert r.process(FRAMES[0]).T_world_camera is not None
    r.lose()
    asked.clear()
    r.process(FRAMES[0])
    assert asked[:2] == [k.id for k in saved.keyframes[-2:]]


def test_a_growing_map_that_the_camera_is_tracked_in_needs_no_hint() -> None:
    r = reconstructor()
    assert not r.hint(np.eye(4)), "there is no map"
    for frame in FRAMES[:3]:
        r.process(frame)
    assert not r.hint(in_world(15))
    assert errors(r.process(FRAMES[3]), pose(3))[0] < METRES


def test_in_a_frozen_map_a_tracked_camera_is_looked_for_anew(saved: MapData, asked: list[int]) -> None:
    r = loaded(saved, mode="localization")
    r.hint(in_world(0))
    assert r.process(FRAMES[0]).state is State.TRACKING
    asked.clear()
    assert r.hint(in_world(9)) and r.state is State.LOST
    assert errors(r.process(FRAMES[9]), pose(9))[0] < METRES
    nearest = sorted(saved.keyframes, key=lambda k: np.linalg.norm((k.T_world_camera - in_world(9))[:3, 3]))
    assert set(asked[:2]) == {k.id for k in nearest[:2]}


@pytest.mark.parametrize("bad", [np.full((4, 4), np.nan), np.diag([2.0, 2, 2, 1]), np.eye(3)])
def test_what_is_no_pose_is_refused(bad: np.ndarray, saved: MapData) -> None:
    r = loaded(saved)
    with pytest.raises(InputError, match="not a rigid"):
        r.hint(bad)


@quick
@given(seeds())
def test_near_names_all_once_from_the_nearest_outwards_then_anew(seed: int) -> None:
    rng = np.random.default_rng(seed)
    store, count = KeyframeStore(100), int(rng.integers(1, 12))
    for i in range(count):
        store.add(make_keyframe(i, random_pose(rng)), submap=0)
    hint, depth = random_pose(rng), float(rng.uniform(0.5, 5))

    def far(i: int) -> float:
        T = store[i].T_world_camera
        angle = np.arccos(np.clip(hint[:3, 2] @ T[:3, 2], -1, 1))
        return float(np.linalg.norm(T[:3, 3] - hint[:3, 3]) / depth + angle)

    named = [c.id for first in range(2 * count) for c in Near(store, hint, depth, first).query(NOTHING, count=1)]
    assert named == 2 * sorted(range(count), key=far)
    assert len(Near(store, hint, depth).query(NOTHING, count=50)) == count


def test_near_leaves_out_submaps_whose_place_nobody_knows() -> None:
    store = KeyframeStore(10)
    for i, submap in enumerate((0, 1, 0)):
        store.add(make_keyframe(i, np.eye(4)), submap)
    assert [c.id for c in Near(store, np.eye(4), 1.0).query(NOTHING, count=5)] == [0, 2]
    assert Near(KeyframeStore(10), np.eye(4), 1.0).query(NOTHING, count=5) == []


def test_a_hint_goes_along_with_odometry() -> None:
    rng = np.random.default_rng(0)
    said, begin, motion = random_pose(rng), random_pose(rng), random_pose(rng)
    hint = Hint(said)
    np.testing.assert_allclose(hint.now(None), said)
    np.testing.assert_allclose(hint.now(begin), said, atol=1e-12)
    np.testing.assert_allclose(hint.now(begin @ motion), said @ motion, atol=1e-12)
