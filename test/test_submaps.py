# SPDX-License-Identifier: Apache-2.0
"""A camera carried away blindfold begins a submap; when it comes to a place it knows, the two become one map."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from revisits import turning
from textured_room import CAMERA, TexturedRoom

from recon_ros import Config, Frame, Reconstructor, Update
from recon_ros.config import updated
from recon_ros.frame import State
from recon_ros.geometry import se3

pytest.importorskip("gtsam", reason="needs gtsam")

ROOM = TexturedRoom()
STEPS = 48
"""Views of a lap, 7.5° apart."""
OPTIONS = {
    "tracking.features": 800,
    "tracking.lost_after": 2,
    "tracking.submap_after": 4,
    "loops.exclusion": 3,
    "input.max_depth": 20.0,
}


@cache
def rendered(step: int) -> Frame:
    image, depth = ROOM.render(turning(step, STEPS))
    return Frame(1_000_000_000 + step, image, CAMERA, depth)


def seen(step: int, number: int) -> Frame:
    return replace(rendered(step), stamp_ns=1_000_000_000 + number * 100_000_000)


def blank(number: int) -> Frame:
    frame = seen(0, number)
    return replace(frame, image=np.full_like(frame.image, 90))


def carried_away(**options: object) -> tuple[Reconstructor, list[Update], list[int]]:
    """Steps 0–8; nothing; 22–56, of which the last have been seen before. And the step of each view with a pose."""
    r = Reconstructor(updated(Config(), OPTIONS | options))
    steps = [*range(9), *[None] * 4, *[22] * 5, *range(22, 57)]
    updates = [r.process(blank(number) if step is None else seen(step, number)) for number, step in enumerate(steps)]
    with_pose = [s for s, u in zip(steps, updates, strict=True) if s is not None and u.T_world_camera is not None]
    r.settle()
    r.settle()
    return r, updates, with_pose


def worst_error(r: Reconstructor, steps: list[int]) -> float:
    """Metres, over all frames with a pose, in the first camera's frame."""
    truth = np.array([se3.inverse(turning(0, STEPS)) @ turning(step, STEPS) for step in steps])
    return float(np.linalg.norm(r.trajectory().positions - truth[:, :3, 3], axis=1).max())


def test_a_submap_is_joined_to_the_map_where_they_meet() -> None:
    r, updates, steps = carried_away()
    lost = [u.state for u in updates[9:13]]
    assert lost[-1] is State.LOST
    begun = next(i for i, u in enumerate(updates) if i >= 13 and u.T_world_camera is not None)
    assert updates[begun].keyframe_id is not None and updates[begun].confidence == 0, "its pose is a guess"
    assert all(u.state is State.TRACKING for u in updates[begun:])
    assert len(r.loops) >= 1
    # The walk is a turn on 0.4 m: before it was joined, the submap was off by as much as the camera had been carried.
    assert worst_error(r, steps) < 0.05
    assert r.submaps == 0
    assert len(r.trajectory()) == len(steps) and r.unplaced == 0, "nothing mapped is lost"
    assert len(r.state_of_map().trajectory()) == len(steps)
    assert all(k.id in r._atlas.placed and k.id in r._atlas.drawing for k in r.keyframes)


def test_what_does_not_meet_stays_apart() -> None:
    r, updates, steps = carried_away(**{"loops.enabled": False})
    assert r.submaps == 1
    assert all(u.T_world_camera is not None for u in updates[-10:]), "tracking goes on all the same"
    # Where it lies nobody knows: neither the path nor the cloud of the world says anything of it.
    assert len(r.trajectory()) == 9 and worst_error(r, steps[:9]) < 0.05
    assert r.unplaced == len(steps) - 9 > 0
    # Nor does what is saved for others, while all of it is kept for the day when the two meet.
    data = r.state_of_map()
    assert data.unplaced == r.unplaced and len(data.path) == len(steps) and len(data.keyframes) == len(r.keyframes)
    np.testing.assert_array_equal(data.trajectory().stamps_ns, r.trajectory().stamps_ns)
    assert data.keyframe_trajectory().stamps_ns.tolist() == [k.stamp_ns for k in r.placed_keyframes]
    assert len(r.placed_keyframes) < len(r.keyframes)
    first = Reconstructor(updated(Config(), OPTIONS))
    for number in range(9):
        first.process(seen(number, number))
    np.testing.assert_array_equal(r.map_cloud().points, first.map_cloud().points)


def test_who_was_found_again_elsewhere_ties_nothing_to_where_they_were() -> None:
    """From a submap back into the map, and then a keyframe: it is tied to what it was tracked against alone."""
    r = Reconstructor(updated(Config(), OPTIONS | {"loops.enabled": False}))
    steps = [*range(9), *[None] * 4, *[22] * 5, *range(22, 27)]
    for number, step in enumerate(steps):
        r.process(blank(number) if step is None else seen(step, number))
    ids = [k.id for k in r.keyframes]
    assert r._atlas.store.submap_of(ids[-1]) == 1
    r.lose()
    for i, step in enumerate((3, 4, 4)):
        update = r.process(seen(step, len(steps) + i))
        assert update.state is State.TRACKING and update.reference_id is not None
        assert r._atlas.store.submap_of(update.reference_id) == 0
    made = [k.id for k in r.keyframes if k.id not in ids]
    kept = r.keep_last_view()
    made += [] if kept is None else [kept.id]
    assert made, "there is a keyframe in the map after the one in the submap"
    edges = r.state_of_map().graph.edges
    of_submap = {i for i in ids if r._atlas.store.submap_of(i) == 1}
    assert not any(e["a"] in of_submap for e in edges if e["b"] in made)
    assert r.submaps == 1


def test_without_submaps_the_camera_stays_lost_until_it_is_found() -> None:
    r, updates, steps = carried_away(**{"tracking.submap_after": 0})
    assert updates[30].state is State.LOST
    assert updates[-1].state is State.TRACKING and worst_error(r, steps) < 0.05
