# SPDX-License-Identifier: Apache-2.0
"""Tracking keeps to keyframes that drift cannot have misplaced; loops find the others, and connect them."""

from __future__ import annotations

import numpy as np
import pytest
from revisits import room_keyframe, room_view
from textured_room import TexturedRoom

from recon_ros.config import Config, updated
from recon_ros.geometry import se3
from recon_ros.geometry.two_view import Verified
from recon_ros.mapping.atlas import INFLATION, Atlas
from recon_ros.mapping.loops import LoopDetector
from recon_ros.mapping.pose_graph import Edge, PoseGraph
from recon_ros.memory.store import KeyframeStore
from recon_ros.tracking.tracker import Tracker

ROOM = TexturedRoom()


def aside(x: float) -> np.ndarray:
    return se3.make(np.eye(3), np.array([x, 0.0, 0.0]))


def chain(count: int, step: float = 1.0) -> PoseGraph:
    graph = PoseGraph(False)
    for i in range(count):
        graph.add_node(i, aside(step * i))
        if i:
            graph.add_edge(Edge(i - 1, i, aside(step), np.eye(6)))
    return graph


def test_near_is_what_is_near_over_the_way_tracked() -> None:
    graph = chain(10)
    assert graph.near(4, 2.5) == {2, 3, 4, 5, 6}
    assert graph.near(0, 0.5) == {0}
    loop = graph.add_edge(Edge(1, 8, aside(7.0), np.eye(6), "loop"))
    assert graph.near(1, 1.5) == {0, 1, 2, 7, 8, 9}, "a loop has no way"
    assert graph.near(1, 1.5, {loop}) == {0, 1, 2}


def misplaced() -> tuple[KeyframeStore, list[np.ndarray]]:
    """Two keyframes of one place; the older one has been put 0.4 m aside by drift."""
    store = KeyframeStore(10)
    wrong = [aside(0.4), aside(0.0)]
    for i, T in enumerate(wrong):
        store.add(room_keyframe(i, room_view(ROOM, aside(0.0)), T))
    return store, wrong


@pytest.mark.parametrize("local", [True, False])
def test_a_keyframe_that_is_not_connected_is_no_reference(local: bool) -> None:
    store, _ = misplaced()
    tracker = Tracker(Config().tracking)
    tracker.begin(room_view(ROOM, aside(0.0)), aside(0.0), None)

    def track(x: float) -> set[int]:
        asked: list[int] = []

        def connected(keyframe_id: int, way: float) -> set[int] | None:
            asked.append(keyframe_id)
            return {1} if local else None

        tracker._reference_id = 1
        track = tracker.track(room_view(ROOM, aside(x), 10**8), store, None, connected=connected)
        assert track is not None and set(asked) == {1}
        if local:
            assert track.reference_id == 1
            np.testing.assert_allclose(track.T_world_camera[:3, 3], [x, 0, 0], atol=0.01)
        return {track.reference_id}

    assert track(0.3) == ({1} if local else {0}), "0.3 m aside, the misplaced keyframe seems to see more"


def test_all_keyframes_are_connected_where_nobody_looks_for_loops() -> None:
    keyframe = room_keyframe(0, room_view(ROOM, aside(0.0)), aside(0.0))
    for enabled, expected in ((False, None), (True, {0})):
        atlas = Atlas(updated(Config(), {"loops.enabled": enabled}))
        atlas.add(keyframe, None, np.eye(6))
        assert atlas.connected(0, 1.0) == expected


def test_after_frames_without_a_pose_the_last_view_is_one_of_many() -> None:
    view = room_view(ROOM, aside(0.0))
    store = KeyframeStore(10)
    store.add(room_keyframe(0, view, aside(0.0)))
    tracker = Tracker(Config().tracking)
    tracker.begin(view, aside(0.0), None)
    tracker._interrupted = True
    tried: list[str] = []
    tracker._from_motion = lambda *_: tried.append("motion")  # type: ignore[method-assign]
    list(tracker._starts(room_view(ROOM, aside(0.1)), store, None, None))
    assert tried == [], "nobody knows how it moved meanwhile"
    list(tracker._starts(room_view(ROOM, aside(0.1)), store, np.eye(4), None))
    assert tried == ["motion"], "odometry knows"


@pytest.mark.parametrize(("off", "found"), [(0.0, True), (1.0, False)])
def test_two_sparse_laps_attest_their_loops(monkeypatch: pytest.MonkeyPatch, off: float, found: bool) -> None:
    # Each keyframe of the second lap is recognised by its own counterpart only.
    store, count, step = KeyframeStore(100), 14, 0.5
    view = room_view(ROOM, aside(0.0))
    poses = [aside(step * (i % 12)) for i in range(count)]
    for i, T in enumerate(poses):
        store.add(room_keyframe(i, view, T))

    def verified(self: LoopDetector, a: object, b: object, _: object) -> Verified | None:
        if {a.id, b.id} not in ({1, 13}, {0, 12}):  # type: ignore[attr-defined]
            return None
        wrong = off if a.id == 0 else 0.0  # type: ignore[attr-defined]
        T = se3.inverse(poses[a.id]) @ poses[b.id] @ aside(wrong)  # type: ignore[attr-defined]
        return Verified(T, np.eye(6), 50, 0.5)

    monkeypatch.setattr(LoopDetector, "_verify", verified)
    loops = LoopDetector(Config()).detect(store[13], store, [1])
    assert [(loop.a, loop.b, loop.evidence) for loop in loops] == ([(1, 13, (12,))] if found else [])


def test_where_a_camera_will_be_follows_a_correction_of_place_and_scale() -> None:
    """What it moves in a second grows with the map, in which it goes on as before."""
    views = [room_view(ROOM, aside(x), stamp) for x, stamp in ((0.0, 0), (0.05, 10**8), (0.1, 2 * 10**8))]
    store, tracker = KeyframeStore(10), Tracker(Config().tracking)
    store.add(room_keyframe(0, views[0], aside(0.0)))
    tracker.begin(views[0], aside(0.0), None)
    assert tracker.track(views[1], store, None) is not None
    before = tracker.expected(views[2], None)
    np.testing.assert_allclose(before[:3, 3], [0.1, 0, 0], atol=0.01)
    G = se3.scaled(se3.exp(np.array([1.0, 2.0, 3.0, 0.1, -0.2, 0.3])), 1.5)
    tracker.follow(G)
    np.testing.assert_allclose(tracker.expected(views[2], None), se3.rigid(G @ before), atol=1e-9)


@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_an_edge_is_as_sure_of_a_metre_whatever_the_keyframes_unit(unit: float) -> None:
    """The measurement was of the camera in the world; the edge speaks of it in the keyframe's unit."""
    atlas, view, rng = Atlas(Config(), scale_drifts=True), room_view(ROOM, aside(0.0)), np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    information = root @ root.T + np.eye(6)
    atlas.add(room_keyframe(0, view, aside(0.0)), None, np.eye(6))
    atlas.add(room_keyframe(1, view, se3.scaled(aside(0.3), unit)), 0, information)
    (edge,) = atlas.graph.edges.values()
    moved_and_turned = rng.normal(size=6)
    in_unit = moved_and_turned / np.array([unit] * 3 + [1.0] * 3)
    expected = moved_and_turned @ information @ moved_and_turned / INFLATION
    assert in_unit @ edge.information @ in_unit == pytest.approx(expected)
