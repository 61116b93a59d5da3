# SPDX-License-Identifier: Apache-2.0
"""~/map_updates: who follows them has the map, whatever happened meanwhile; and what did not change is not sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from helpers import quick
from hypothesis import given
from hypothesis import strategies as st

from recon_ros.frame import Cloud
from recon_ros.geometry import se3
from recon_ros.mapping.drawing import BlockIndex, MapChanges
from recon_ros.ros.map_updates import MapUpdates

T_MAP_WORLD = se3.make(se3.exp(np.array([0, 0, 0, 0.3, 0.2, 0.1]))[:3, :3], [1.0, 2.0, 3.0])


class Follower:
    """A subscriber as the README tells how to write one."""

    def __init__(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}

    def take(self, message: Any) -> None:
        assert [f.name for f in message.fields] == ["x", "y", "z", "rgb", "block"]
        rows = np.frombuffer(message.data, "<f4").reshape(message.width, 5)
        block = rows.view("<u4")[:, 4]
        for number in np.unique(block).tolist():
            points = rows[block == number, :4]
            self.blocks[number] = points[np.isfinite(points[:, 0])]

    def rows(self) -> np.ndarray:
        """(N, 4) all points, sorted."""
        every = np.concatenate([np.zeros((0, 4), np.float32), *self.blocks.values()])
        return every[np.lexsort(every.T)]


def cloud(rng: np.random.Generator) -> Cloud:
    n = int(rng.integers(1, 6))
    points = rng.uniform(-5, 5, (n, 3)).astype(np.float32)
    return Cloud(points, rng.integers(0, 256, (n, 3), dtype=np.uint8), np.ones(n, np.float32))


def expected(blocks: dict[BlockIndex, Cloud]) -> np.ndarray:
    """(N, 3) points in the map."""
    points = [se3.transform(T_MAP_WORLD, c.points) for c in blocks.values()]
    every = np.concatenate([np.zeros((0, 3), np.float32), *points])
    return every[np.lexsort(every.T)]


STEPS = st.lists(st.sampled_from(["draw", "erase", "reset", "join", "quiet"]), max_size=25)


@quick
@given(STEPS, st.integers(0, 2**32 - 1))
def test_whoever_follows_has_the_map(steps: list[str], seed: int) -> None:
    rng, updates, version, began = np.random.default_rng(seed), MapUpdates(), 1, 0
    blocks: dict[BlockIndex, Cloud] = {}
    changed_at: dict[BlockIndex, int] = {}
    followers: dict[bytes, Follower] = {b"first": Follower()}
    for number, step in enumerate(steps):
        version += step != "quiet"
        index = tuple(rng.integers(0, 3, 3).tolist())
        if step == "draw":
            blocks[index], changed_at[index] = cloud(rng), version
        elif step == "erase" and blocks:
            index = list(blocks)[int(rng.integers(len(blocks)))]
            del blocks[index]
            changed_at[index] = version
        elif step == "reset":
            blocks, changed_at, began = {}, {}, version
        elif step == "join":
            followers[str(number).encode()] = Follower()
        since = updates.since(frozenset(followers))
        assert (since == 0) == (step == "join" or number == 0)
        whole = not began < since <= version
        recent = blocks if whole else {i: blocks[i] for i in blocks if changed_at[i] > since}
        removed = () if whole else tuple(i for i in changed_at if i not in blocks and changed_at[i] > since)
        message = updates.message(MapChanges(version, whole, dict(recent), removed), T_MAP_WORLD, 1, "map")
        assert message is not None or not recent
        for follower in followers.values() if message is not None else ():
            follower.take(message)
        for follower in followers.values():
            mine = follower.rows()[:, :3]
            np.testing.assert_allclose(mine[np.lexsort(mine.T)], expected(blocks), atol=1e-6)


def test_only_what_changed_is_sent_and_colours_are_kept() -> None:
    rng, updates = np.random.default_rng(0), MapUpdates()
    a, b = cloud(rng), cloud(rng)
    first = updates.message(MapChanges(5, True, {(0, 0, 0): a, (1, 0, 0): b}, ()), np.eye(4), 7, "map")
    second = updates.message(MapChanges(6, False, {(1, 0, 0): a}, ((0, 0, 0), (9, 9, 9))), np.eye(4), 8, "map")
    assert first is not None and second is not None
    assert first.is_dense and first.width == len(a) + len(b)
    assert not second.is_dense and second.width == len(a) + 1, "a block nobody was told of is not taken back"
    follower = Follower()
    follower.take(first)
    follower.take(second)
    packed = np.frombuffer(second.data, "<u4").reshape(-1, 5)[: len(a), 3]
    red, green, blue = a.colours.astype(np.uint32).T
    np.testing.assert_array_equal(packed, red << 16 | green << 8 | blue)
    assert {number: len(points) for number, points in follower.blocks.items()} == {0: 0, 1: len(a)}
    assert updates.message(MapChanges(7, False, {}, ()), np.eye(4), 9, "map") is None


# -- over DDS


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("tf2_msgs", reason="needs tf2_msgs (scripts/build_tf2_msgs.py)")
    from node_harness import OWN_MOUNT, running

    with running(tmp_path, {**OWN_MOUNT, "map_publish_period": 0.1, "watchdog_period": 100.0}) as graph:
        yield graph


def map_rows(message: Any) -> np.ndarray:
    rows = np.frombuffer(message.data, "<f4").reshape(-1, 4)
    return rows[np.lexsort(rows.T)]


@pytest.mark.ros
def test_the_node_sends_what_makes_up_its_map(graph: Any) -> None:
    from node_harness import Walker
    from std_srvs.srv import Trigger
    from textured_room import TexturedRoom

    from recon_ros.ros import interface

    walker, first, taken = Walker(graph, TexturedRoom()), Follower(), 0

    def is_the_same(follower: Follower, name: str, beginning: int = 0) -> bool:
        """Whether all that a follower has been sent is the newest ~/map."""
        follower.blocks.clear()
        for message in list(graph.received[name])[beginning:]:
            follower.take(message)
        maps = graph.received["~/map"]
        mine = follower.rows()
        return bool(maps) and mine.shape == map_rows(maps[-1]).shape and np.array_equal(mine, map_rows(maps[-1]))

    for _ in range(8):
        walker.track()
    graph.process.wait(lambda: is_the_same(first, "~/map_updates"), "the map from its updates")
    assert len(first.blocks) > 1 and len(first.rows()) > 5000

    graph.received["late"] = []
    topic = interface.MAP_UPDATES
    late = graph.node.create_subscription(topic.type, "/recon/map_updates", graph.received["late"].append, 10)
    graph.process.wait(lambda: is_the_same(Follower(), "late"), "all blocks for who comes late")

    assert graph.call(Trigger, "~/reset").success
    walker.step = 19
    walker.track()
    taken = len(graph.received["~/map"])
    graph.process.wait(lambda: len(graph.received["~/map"]) >= taken and is_the_same(first, "~/map_updates"), "the new")
    graph.process.wait(lambda: is_the_same(Follower(), "late"), "the new map for the second listener")
    assert graph.count("errors") == 0
    graph.node.destroy_subscription(late)
