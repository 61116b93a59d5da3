# SPDX-License-Identifier: Apache-2.0
"""`initialpose` over DDS, as rviz and nav2 publish it: used where it helps, refused aloud where it cannot be meant."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("tf2_msgs", reason="needs tf2_msgs (scripts/build_tf2_msgs.py)")

from geometry_msgs.msg import PoseWithCovarianceStamped
from node_harness import OWN_MOUNT, PERIOD_NS, START_NS, Graph, Walker, pose, running
from std_srvs.srv import SetBool, Trigger
from textured_room import CAMERA, TexturedRoom, walk

from recon_ros.export.snapshot import Snapshot, write_snapshot
from recon_ros.frame import Frame, State
from recon_ros.geometry import se3
from recon_ros.reconstructor import Reconstructor
from recon_ros.ros.conversions import pose_message
from recon_ros.ros.mount import T_BASE_OPTICAL
from recon_ros.ros.pipeline import Pipeline

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def room() -> TexturedRoom:
    return TexturedRoom()


class Person:
    """Clicks into the map."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._publisher = graph.node.create_publisher(PoseWithCovarianceStamped, "initialpose", 10)
        graph.process.wait(self._publisher.get_subscription_count, "subscription to initialpose")

    def says(self, T_map_base: np.ndarray, frame: str = "map", **quaternion: float) -> None:
        message = PoseWithCovarianceStamped()
        message.header.frame_id = frame
        message.pose.pose = pose_message(T_map_base)
        for axis, value in quaternion.items():
            setattr(message.pose.pose.orientation, axis, value)
        message.pose.covariance[0] = message.pose.covariance[7] = 0.25  # as rviz fills it in
        self._publisher.publish(message)

    def says_position(self, x: float) -> None:
        message = PoseWithCovarianceStamped()
        message.header.frame_id = "map"
        message.pose.pose.position.x = x
        message.pose.pose.orientation.w = 1.0
        self._publisher.publish(message)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, room: TexturedRoom) -> Iterator[Graph]:
    folder = tmp_path_factory.mktemp("node")
    r = Reconstructor()
    for step in range(16):
        image, depth = room.render(walk(step))
        r.process(Frame(START_NS + step * PERIOD_NS, image, CAMERA, depth))
    saved = write_snapshot(Snapshot(r.state_of_map(), r.map_cloud(), {}), folder / "map")
    parameters = {**OWN_MOUNT, "map.load": saved, "mode": "localization", "watchdog_period": 100.0}
    with running(folder, parameters) as graph:
        yield graph


@pytest.fixture(scope="module")
def person(graph: Graph) -> Person:
    return Person(graph)


@pytest.fixture(scope="module")
def walker(graph: Graph, room: TexturedRoom) -> Walker:
    return Walker(graph, room)


def true_base(step: int) -> np.ndarray:
    return T_BASE_OPTICAL @ walk(step) @ se3.inverse(T_BASE_OPTICAL)


def lines(graph: Graph, text: str) -> int:
    return graph.process.log.count(text)


USED = "initialpose: the camera is looked for near there first"


def test_a_pose_said_before_the_first_image_is_kept_for_it(graph: Graph, person: Person, walker: Walker) -> None:
    assert graph.status()["state"] in ("LOST", "INITIALIZING")
    person.says(true_base(0))
    off = pose(walker.track())[:3, 3] - true_base(0)[:3, 3]
    assert np.linalg.norm(off) < 0.03
    graph.process.says(USED)


def test_in_a_frozen_map_a_tracked_camera_is_looked_for_anew_and_found(
    graph: Graph, person: Person, walker: Walker
) -> None:
    for T in (true_base(walker.step), se3.make(np.eye(3), np.array([40.0, -30.0, 0.0]))):  # right, and quite wrong
        before = lines(graph, USED)
        person.says(T)
        graph.process.wait(
            lambda before=before: walker.track() and lines(graph, USED) > before, "a word that the pose is used"
        )
        step = walker.step
        assert np.linalg.norm(pose(walker.track())[:3, 3] - true_base(step)[:3, 3]) < 0.03
        assert graph.status()["state"] == "TRACKING"


@pytest.mark.parametrize(
    ("frame", "quaternion", "words"),
    [
        ("odom", {}, "initialpose is in frame 'odom', not in 'map', and is not used; in rviz, set the fixed frame"),
        ("", {}, "initialpose is in frame '', not in 'map'"),
        ("map", {"z": float("nan")}, "initialpose holds NaN or infinity"),
        ("map", {"w": 0.0}, "the quaternion of initialpose is of length 0.000"),
        ("map", {"w": 2.0}, "the quaternion of initialpose is of length 2.000"),
    ],
)
def test_a_pose_that_cannot_be_meant_is_refused_and_counted(
    frame: str, quaternion: dict[str, float], words: str, graph: Graph, person: Person, walker: Walker
) -> None:
    used, refused = lines(graph, USED), graph.count("skipped.initialpose")
    person.says(np.eye(4), frame, **quaternion)
    graph.process.wait(lambda: walker.track() and graph.count("skipped.initialpose") == refused + 1, "a count")
    graph.process.says(words)
    assert lines(graph, USED) == used and graph.status()["state"] == "TRACKING"


def test_an_infinite_position_is_refused(graph: Graph, person: Person, walker: Walker) -> None:
    refused = graph.count("skipped.initialpose")
    person.says_position(float("inf"))
    graph.process.wait(lambda: walker.track() and graph.count("skipped.initialpose") == refused + 1, "a count")


def test_where_it_is_of_no_use_the_node_says_why(graph: Graph, person: Person, walker: Walker) -> None:
    assert graph.call(SetBool, "~/localize_only", data=False).success
    walker.track()
    person.says(true_base(3))
    graph.process.wait(
        lambda: walker.track() and lines(graph, "the camera is tracked in a map that grows"), "a word of no use"
    )
    assert graph.status()["state"] == "TRACKING"
    assert graph.call(Trigger, "~/reset").success
    person.says(true_base(3))
    graph.process.wait(lambda: walker.track() and lines(graph, "initialpose is not used") >= 2, "a word of no use")
    assert graph.count("errors") == 0


def test_the_pose_of_the_base_becomes_that_of_the_camera_in_the_core() -> None:
    """With a mount that is neither identity nor a mere turn: the map is the first base's frame, the world the first
    camera's.
    """
    rng = np.random.default_rng(1)
    T_base_camera, T_world_camera = (se3.exp(rng.normal(0, 1, 6)) for _ in range(2))
    T_map_base = T_base_camera @ T_world_camera @ se3.inverse(T_base_camera)
    hints: list[np.ndarray] = []
    core = types.SimpleNamespace(state=State.LOST, hint=lambda T: hints.append(T) or True)
    pipeline: Any = Pipeline.__new__(Pipeline)
    pipeline.map_outputs = types.SimpleNamespace(T_map_world=T_base_camera)
    pipeline.reconstructor, pipeline._log = core, types.SimpleNamespace(info=lambda _: None)
    pipeline._look_near(T_map_base @ T_base_camera)
    np.testing.assert_allclose(hints[0], T_world_camera, atol=1e-9)
