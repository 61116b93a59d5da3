# SPDX-License-Identifier: Apache-2.0
"""The node in other set-ups: bad parameters, no TF, a robot's odometry, a lifecycle manager."""

from __future__ import annotations

import importlib.util
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("tf2_msgs", reason="needs tf2_msgs (scripts/build_tf2_msgs.py)")

from lifecycle_msgs.msg import State as LifecycleState
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from node_harness import CAMERA_FRAME, OWN_MOUNT, PERIOD_NS, START_NS, Graph, NodeProcess, Walker, pose
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger
from textured_room import CAMERA, TexturedRoom, walk
from tf2_msgs.msg import TFMessage

from recon_ros.export.snapshot import Snapshot, write_snapshot
from recon_ros.frame import Frame
from recon_ros.geometry import se3
from recon_ros.messages import stamp_ns
from recon_ros.reconstructor import Reconstructor
from recon_ros.ros import conversions, qos
from recon_ros.ros.mount import T_BASE_OPTICAL

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def room() -> TexturedRoom:
    return TexturedRoom()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Start nodes that end with the test."""
    running: list[Any] = []

    def begin(parameters: dict[str, Any], listen: bool = True) -> Any:
        process = NodeProcess(tmp_path / str(len(running)), parameters)
        running.append(process)
        if not listen:
            return process
        graph = Graph(process)
        running.append(graph)
        return graph

    try:
        yield begin
    finally:
        for thing in running:
            thing.end() if isinstance(thing, NodeProcess) else thing.close()


@pytest.mark.parametrize(
    "parameters, sentence",
    [
        ({"odom_source": "wheels"}, "option 'odom_source' is 'wheels'; it must be one of none, topic, tf"),
        ({"map.voxel_size": 99.0}, "option 'map.voxel_size' is 99.0; it must be between 0.001 and 10.0"),
        ({"base_to_camera": "1 2 3"}, "option 'base_to_camera' is '1 2 3'; it must be empty, 'optical', or"),
    ],
)
def test_an_unusable_parameter_fails_with_one_sentence(
    start: Callable[..., Any], parameters: dict[str, Any], sentence: str
) -> None:
    process = start(parameters, listen=False)
    assert process.process.wait(20) == 1
    errors = [line for line in process.log.splitlines() if "[ERROR]" in line]
    assert len(errors) == 1 and sentence in errors[0]
    assert "Traceback" not in process.log


def test_missing_weights_are_one_sentence(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process = start({"source": "dust3r_512_dpt"}, listen=False)
    assert process.process.wait(20) == 1
    errors = [line for line in process.log.splitlines() if "[ERROR]" in line]
    assert len(errors) == 1 and "recon models fetch dust3r_512_dpt" in errors[0]
    assert "Traceback" not in process.log


def test_a_network_takes_images_only_and_is_named(start: Callable[..., Any], room: TexturedRoom) -> None:
    if importlib.util.find_spec("torch") is None:  # not imported: the node is a process of its own
        pytest.skip("needs torch")
    graph = start({"source": "random-small", "runtime": "torch", **OWN_MOUNT})
    graph.process.wait(graph.images.get_subscription_count, "subscription to the image")
    walker = Walker(graph, room)

    def has_processed() -> bool:
        walker.send()
        time.sleep(0.1)
        return graph.count("frames_processed") >= 2

    graph.process.wait(has_processed, "two frames through the network")
    assert graph.node.count_subscribers("/depth") == 0, "a network takes no depth"
    status = graph.status()
    assert "random weights" in status["network"] and status["runtime"] == "torch fp32" and status["engine"] == "ready"
    assert status["metric_scale"] == "false" and status["errors"] == "0"


def test_a_newcomer_without_tf_sees_a_map_and_is_told(start: Callable[..., Any], room: TexturedRoom) -> None:
    """Nothing but a camera; and simulated time that jumps back, as a looped bag's does."""
    graph = start({"use_sim_time": True, "max_no_such_thing": 3})
    clock = graph.node.create_publisher(Clock, "/clock", 10)
    graph.wait_for_match()
    graph.process.wait(clock.get_subscription_count, "subscription to /clock")
    walker = Walker(graph, room)

    def tick() -> bool:
        clock.publish(Clock(clock=conversions.time_message(walker.stamp)))
        walker.send()
        time.sleep(0.05)
        return bool(graph.received["~/odometry"])

    graph.process.wait(tick, "~/odometry after the grace time")
    graph.process.says("the camera is taken to sit at base_link")
    graph.process.says("parameters that this node does not have, and which do nothing: max_no_such_thing")
    edge = graph.process.wait(lambda: graph.transforms("/tf_static"), "/tf_static")[-1]
    assert (edge.header.frame_id, edge.child_frame_id) == ("base_link", CAMERA_FRAME)
    T = conversions.matrix_from_transform(edge.transform)
    np.testing.assert_allclose(T @ [0, 0, 1, 1], [1, 0, 0, 1], atol=1e-12)
    ahead = [t for t in graph.transforms() if t.child_frame_id == "odom"][-1]
    assert stamp_ns(ahead.header.stamp) > walker.stamp - PERIOD_NS, "map → odom is dated ahead"

    walker.stamp -= 50 * 10**9
    clock.publish(Clock(clock=conversions.time_message(walker.stamp)))
    graph.process.says("the clock jumped back by 50.0 s")
    np.testing.assert_allclose(pose(walker.track()), np.eye(4), atol=1e-9)


def test_a_robot_with_odometry_keeps_its_odom_to_base(start: Callable[..., Any], room: TexturedRoom) -> None:
    graph = start({"odom_source": "tf"})
    moving = graph.node.create_publisher(TFMessage, "/tf", qos.make("tf"))
    static = graph.node.create_publisher(TFMessage, "/tf_static", qos.make("tf_static"))

    def broadcast(publisher: Any, T: se3.Matrix, stamp: int, parent: str, child: str) -> None:
        publisher.publish(TFMessage(transforms=[conversions.transform_message(T, stamp, parent, child)]))

    T_base_camera = se3.make(T_BASE_OPTICAL[:3, :3], np.array([0.2, 0, 0.5]))
    broadcast(static, T_base_camera, 0, "base_link", CAMERA_FRAME)
    graph.wait_for_match()
    graph.process.wait(moving.get_subscription_count, "subscription to /tf")
    graph.process.wait(static.get_subscription_count, "subscription to /tf_static")
    walker = Walker(graph, room)
    T_odom_base0 = se3.exp(np.array([1.0, 2.0, 0.0, 0.0, 0.0, 0.7]))
    for step in range(4):
        T_odom_base = T_odom_base0 @ se3.make(np.eye(3), np.array([0.03 * step, -0.01 * step, 0.0]))
        broadcast(moving, T_odom_base, walker.stamp + PERIOD_NS, "odom", "base_link")
        np.testing.assert_allclose(pose(walker.track()), T_odom_base, atol=1e-6)
    graph.process.says("the camera's place is from TF")

    T_map_base = pose(graph.at("~/pose", walker.stamp))
    np.testing.assert_allclose(T_map_base[:3, 3], [0.09, -0.03, 0], atol=0.02)
    ours = [t for t in graph.transforms() if t.header.frame_id == "map"]
    assert {t.child_frame_id for t in ours} == {"odom"}
    T_map_odom = conversions.matrix_from_transform(ours[0].transform)
    np.testing.assert_allclose(T_map_odom @ T_odom_base0, np.eye(4), atol=1e-6)

    broadcast(moving, np.eye(4), walker.stamp, "map", "odom")
    graph.process.says("another node broadcasts the TF edge map → odom, and so do we")
    assert "test_graph" in graph.process.log


def test_it_begins_with_a_saved_map_and_keeps_a_frozen_one_when_time_jumps_back(
    start: Callable[..., Any], room: TexturedRoom, tmp_path: Path
) -> None:
    r = Reconstructor()
    for step in range(16):
        image, depth = room.render(walk(step))
        r.process(Frame(START_NS + step * PERIOD_NS, image, CAMERA, depth))
    folder = write_snapshot(Snapshot(r.state_of_map(), r.map_cloud(), {}), tmp_path / "map")
    graph = start({**OWN_MOUNT, "map.load": folder, "mode": "localization"})
    walker = Walker(graph, room)
    graph.wait_for_match()
    for advance in (PERIOD_NS, PERIOD_NS, -100 * 10**9, PERIOD_NS):
        truth = T_BASE_OPTICAL @ walk(walker.step) @ se3.inverse(T_BASE_OPTICAL)
        assert np.linalg.norm(pose(walker.track(advance=advance))[:3, 3] - truth[:3, 3]) < 0.03
    assert graph.count("keyframes") == len(r.keyframes)


def test_a_lifecycle_manager_can_own_it(start: Callable[..., Any], room: TexturedRoom, tmp_path: Path) -> None:
    graph = start({**OWN_MOUNT, "autostart": False, "watchdog_period": 0.5, "map.directory": tmp_path})

    def change(transition: int) -> None:
        request = Transition(id=transition)
        assert graph.call(ChangeState, "~/change_state", transition=request).success

    def state() -> int:
        return int(graph.call(GetState, "~/get_state").current_state.id)

    assert state() == LifecycleState.PRIMARY_STATE_UNCONFIGURED
    walker = Walker(graph, room)
    for _ in range(2):
        change(Transition.TRANSITION_CONFIGURE)
        change(Transition.TRANSITION_ACTIVATE)
        graph.process.says("/image: nothing yet for")
        graph.process.says("/camera_info: nothing yet for")
        graph.wait_for_match()
        np.testing.assert_allclose(pose(walker.track()), np.eye(4), atol=1e-9)
        walker.track()
        change(Transition.TRANSITION_DEACTIVATE)
        assert graph.images.get_subscription_count() == 0
        assert graph.call(Trigger, "~/save_map").success is True, "the map is kept while inactive"
        change(Transition.TRANSITION_ACTIVATE)
        graph.wait_for_match()
        assert np.linalg.norm(pose(walker.track())[:3, 3]) > 0.01, "the map was kept"
        change(Transition.TRANSITION_DEACTIVATE)
        change(Transition.TRANSITION_CLEANUP)
        walker.step = 0
    assert graph.process.stop(signal.SIGTERM) == 0
    assert "Traceback" not in graph.process.log
