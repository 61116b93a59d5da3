# SPDX-License-Identifier: Apache-2.0
"""The node over DDS, from messages to messages. One process serves most tests, in the order of this file."""

from __future__ import annotations

import re
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
from node_harness import CAMERA_FRAME, Graph, NodeProcess, pose
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage
from textured_room import CAMERA, TexturedRoom, walk

from recon_ros.export.tum import read_tum
from recon_ros.geometry import se3
from recon_ros.messages import depth_from_message, stamp_ns
from recon_ros.ros import conversions, interface, qos
from recon_ros.ros.pose_tracks import Tree

pytestmark = pytest.mark.ros

START_NS = 1_700_000_000_123_456_789
PERIOD_NS = 33_333_333
OWN_MOUNT = {"publish_camera_tf": True, "base_to_camera": "optical"}
LAZY = (interface.POINTS,)
"""Not listened to by the shared graph from the beginning."""


@pytest.fixture(scope="module")
def room() -> TexturedRoom:
    return TexturedRoom()


class Walker:
    """Walks through the room and sends what its camera sees, one frame at a time."""

    def __init__(self, graph: Graph, room: TexturedRoom, start_ns: int = START_NS) -> None:
        self.graph, self.room = graph, room
        self.stamp, self.step = start_ns, 0
        self.sent: list[int] = []

    def send(self, change: Callable[[Any, Any, Any], None] | None = None, advance: int = PERIOD_NS) -> int:
        """Send the next frame, do not wait; its stamp."""
        self.stamp += advance
        image, depth = self.room.render(walk(self.step))
        self.step = (self.step + 1) % 20
        self.graph.send(self.stamp, image, depth, CAMERA, change)
        self.sent.append(self.stamp)
        return self.stamp

    def track(self, advance: int = PERIOD_NS) -> Any:
        """Send a frame and wait for its ~/odometry."""
        return self.graph.at("~/odometry", self.send(advance=advance))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    folder = tmp_path_factory.mktemp("node")
    parameters = {
        **OWN_MOUNT,
        "map.directory": folder / "maps",
        "map_publish_period": 0.3,
        "path_period": 0.2,
        "watchdog_period": 100.0,
    }
    process = NodeProcess(folder, parameters)
    graph = Graph(process, besides=LAZY)
    try:
        graph.wait_for_match()
        yield graph
    finally:
        process.end()
        graph.close()


@pytest.fixture(scope="module")
def walker(graph: Graph, room: TexturedRoom) -> Walker:
    return Walker(graph, room)


def test_every_output_of_a_frame_carries_its_stamp(graph: Graph, walker: Walker) -> None:
    for _ in range(6):
        stamp = stamp_ns(walker.track().header.stamp)
        for topic in ("~/pose", "~/depth/image", "~/depth/camera_info", "~/confidence/image"):
            graph.at(topic, stamp)
    odom_base = [stamp_ns(t.header.stamp) for t in graph.transforms() if t.child_frame_id == "base_link"]
    assert odom_base == walker.sent
    for topic in ("~/path", "~/map", "~/keyframes"):
        graph.process.wait(lambda topic=topic: graph.received[topic], topic)
        assert set(graph.stamps(topic)) <= set(walker.sent)
    path = graph.process.wait(
        lambda: next((m for m in graph.received["~/path"] if len(m.poses) == 6), None), "path of six poses"
    )
    assert [stamp_ns(p.header.stamp) for p in path.poses] == walker.sent


def test_depth_comes_out_as_it_went_in(graph: Graph, walker: Walker, room: TexturedRoom) -> None:
    step = walker.step
    stamp = stamp_ns(walker.track().header.stamp)
    message = graph.at("~/depth/image", stamp)
    assert (message.encoding, message.header.frame_id) == ("32FC1", CAMERA_FRAME)
    _, truth = room.render(walk(step))
    depth = depth_from_message(message, 0.001)
    np.testing.assert_array_equal(depth, np.where(truth <= 8.0, truth, np.nan))
    info = graph.at("~/depth/camera_info", stamp)
    assert (info.width, info.height, info.k[0]) == (CAMERA.width, CAMERA.height, CAMERA.fx)
    confidence = depth_from_message(graph.at("~/confidence/image", stamp), 1.0)
    assert confidence.shape == depth.shape and np.nanmax(confidence) <= 1.0


def test_the_map_begins_at_the_first_base_pose_and_is_rep_103(graph: Graph, walker: Walker) -> None:
    first = pose(graph.received["~/odometry"][0])
    np.testing.assert_allclose(first, np.eye(4), atol=1e-9)
    message = graph.received["~/odometry"][-1]
    assert (message.header.frame_id, message.child_frame_id) == ("odom", "base_link")
    forward, left, up = pose(message)[:3, 3]
    step = walker.step - 1
    assert forward == pytest.approx(0.03 * step, abs=0.02), "walking along the optical axis is +x of the map"
    assert left == pytest.approx(-0.01 * step, abs=0.02), "walking to the camera's right is -y of the map"
    assert up == pytest.approx(0, abs=0.02)
    assert message.twist.twist.linear.x == pytest.approx(0.03 / (PERIOD_NS / 1e9), rel=0.3)
    np.testing.assert_allclose(pose(graph.received["~/pose"][-1]), pose(message), atol=1e-9)
    assert graph.received["~/pose"][-1].header.frame_id == "map"


def test_the_tf_tree_has_one_parent_each_and_the_camera_looks_along_x(graph: Graph) -> None:
    tree, parents = Tree(), {}
    for topic in ("/tf", "/tf_static"):
        for t in graph.transforms(topic):
            parents.setdefault(t.child_frame_id, set()).add(t.header.frame_id)
            T = conversions.matrix_from_transform(t.transform)
            tree.add(t.header.frame_id, t.child_frame_id, stamp_ns(t.header.stamp), T, topic == "/tf_static")
    assert parents == {"odom": {"map"}, "base_link": {"odom"}, CAMERA_FRAME: {"base_link"}}
    T_base_camera = tree.lookup("base_link", CAMERA_FRAME, None)
    assert T_base_camera is not None
    np.testing.assert_allclose(T_base_camera @ [0, 0, 1, 1], [1, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(T_base_camera @ [0, -1, 0, 1], [0, 0, 1, 1], atol=1e-12)
    T_map_odom = tree.lookup("map", "odom", None)
    assert T_map_odom is not None
    np.testing.assert_allclose(T_map_odom, np.eye(4), atol=1e-12)


def test_a_late_subscriber_receives_the_map(graph: Graph) -> None:
    name = "late map"
    latched = qos.make("latched")
    late = graph.node.create_subscription(PointCloud2, "/recon/map", graph.received[name].append, latched)
    message = graph.process.wait(lambda: graph.received[name], name)[0]
    graph.node.destroy_subscription(late)
    points = np.frombuffer(message.data, "<f4").reshape(-1, 4)[:, :3]
    assert message.header.frame_id == "map" and message.point_step == 16
    assert len(points) > 1000
    front = points[:, 0] > 3.5  # the wall ahead, at z = 4 m of the camera
    assert front.mean() > 0.5
    assert np.median(points[front, 0]) == pytest.approx(4.0, abs=0.03)


def test_points_are_published_for_keyframes_once_somebody_listens(graph: Graph, walker: Walker) -> None:
    graph.listen(interface.POINTS.name, interface.POINTS.type, interface.POINTS.qos)
    publisher = "/recon/points"
    graph.process.wait(lambda: graph.node.count_subscribers(publisher), "our subscription")
    assert graph.call(Trigger, "~/reset").success  # the next frame is a keyframe
    graph.process.wait(lambda: walker.track() and graph.received["~/points"], "~/points after a few frames")
    message = graph.received["~/points"][-1]
    assert message.header.frame_id == CAMERA_FRAME and message.point_step == 20
    assert stamp_ns(message.header.stamp) in walker.sent
    points = np.frombuffer(message.data, "<f4").reshape(-1, 5)
    assert len(points) <= (CAMERA.width // 2) * (CAMERA.height // 2)
    assert np.isfinite(points[:, :3]).all() and points[:, 2].min() > 0.1
    assert points[:, 4].min() >= 0.1, "points below map.min_confidence stay out"


def test_status_and_diagnostics_say_how_it_goes(graph: Graph, walker: Walker) -> None:
    walker.track()
    status = graph.process.wait(lambda: graph.count("frames_processed") == graph.count("frames_received") and graph.status(), "status")
    assert status["state"] == "TRACKING"
    for key in (
        "frames_received frames_processed frames_dropped keyframes loops latency_ms inference_ms confidence "
        "metric_scale runtime network"
    ).split():
        assert key in status
    assert float(status["inference_ms"]) > 0 and status["metric_scale"] == "true" and status["network"] == "depth"
    array = graph.process.wait(lambda: graph.received["/diagnostics"], "/diagnostics")[-1]
    assert [s.name for s in array.status] == [f"recon: {task}" for task in ("Input", "Tracking", "Performance", "Memory")]


def test_reset_begins_anew(graph: Graph, walker: Walker) -> None:
    for _ in range(3):
        walker.track()
    before = len(graph.received["~/keyframes"])
    answer = graph.call(Trigger, "~/reset")
    assert answer.success
    message = walker.track()
    np.testing.assert_allclose(pose(message), np.eye(4), atol=1e-9)
    assert graph.status()["keyframes"] == "1"
    graph.process.wait(lambda: len(graph.received["~/keyframes"]) > before, "new ~/keyframes")
    assert len(graph.received["~/keyframes"][-1].poses) == 1


def test_pause_drops_frames_and_keeps_the_state(graph: Graph, walker: Walker) -> None:
    last = pose(walker.track())
    answer = graph.call(SetBool, "~/pause", data=True)
    assert answer.success and answer.message == "PAUSED"
    dropped, processed = graph.count("frames_dropped"), graph.count("frames_processed")
    step = walker.step
    walker.send()
    graph.process.wait(lambda: graph.count("frames_dropped") == dropped + 1, "a dropped frame")
    assert graph.status()["state"] == "PAUSED" and graph.count("frames_processed") == processed
    assert graph.call(SetBool, "~/pause", data=False).message == "TRACKING"
    walker.step = step
    assert np.linalg.norm(pose(walker.track())[:3, 3] - last[:3, 3]) < 0.1, "the map is still there"


def test_save_map_writes_a_folder_and_answers_with_its_path(graph: Graph, walker: Walker, tmp_path: Path) -> None:
    walker.track()
    answer = graph.call(Trigger, "~/save_map")
    assert answer.success, answer.message
    folder = Path(answer.message)
    assert re.fullmatch(r"recon_\d{8}_\d{6}", folder.name)
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "keyframes.tum", "map.ply", "trajectory.tum"]
    assert read_tum(folder / "trajectory.tum").stamps_ns[-1] == walker.stamp
    assert len(read_tum(folder / "keyframes.tum")) == graph.count("keyframes")
    assert b"element vertex 0\n" not in (folder / "map.ply").read_bytes()[:200]
    assert "voxel_size: 0.03" in (folder / "config.yaml").read_text()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name], "nothing unfinished is left"

    assert graph.set_parameter("map.path", str(tmp_path / "office")).successful
    for _ in range(2):  # the second one replaces the first
        assert graph.call(Trigger, "~/save_map").message == str(tmp_path / "office")
    (tmp_path / "office" / "notes.txt").mkdir()
    answer = graph.call(Trigger, "~/save_map")
    assert not answer.success and "not a saved map" in answer.message


def test_parameters_are_checked(graph: Graph) -> None:
    assert graph.set_parameter("points_stride", 3).successful
    result = graph.set_parameter("map.min_confidence", 1.5)
    assert not result.successful
    result = graph.set_parameter("queue", "all")
    assert not result.successful, "a read-only parameter"
    assert graph.set_parameter("points_stride", 2).successful


def test_a_flood_is_dropped_and_counted(graph: Graph, walker: Walker, room: TexturedRoom) -> None:
    received, processed, dropped = (graph.count(f"frames_{what}") for what in ("received", "processed", "dropped"))
    image, depth = room.render(walk(walker.step))
    for _ in range(60):
        walker.stamp += PERIOD_NS
        graph.send(walker.stamp, image, depth, CAMERA)
    walker.sent.append(walker.stamp)

    def is_settled() -> bool:
        handled = graph.count("frames_processed") - processed + graph.count("frames_dropped") - dropped
        waiting = graph.count("skipped.unpaired_image")
        return graph.count("frames_received") > received and handled + waiting == graph.count("frames_received") - received

    graph.at("~/status", 0) if False else graph.process.wait(is_settled, "every received frame accounted for")
    assert graph.count("frames_dropped") > dropped
    walker.track()


def other_encoding(image: Any, depth: Any, info: Any) -> None:
    image.encoding = "bayer_rggb8"


def zero_K(image: Any, depth: Any, info: Any) -> None:
    info.k = np.zeros(9)


def other_size(image: Any, depth: Any, info: Any) -> None:
    depth.height, depth.data = depth.height - 1, depth.data[: -depth.step]


def no_depth(image: Any, depth: Any, info: Any) -> None:
    depth.data = conversions.buffer_of(np.full((depth.height, depth.width), np.nan, np.float32))


def zero_stamp(image: Any, depth: Any, info: Any) -> None:
    image.header.stamp.sec = image.header.stamp.nanosec = 0


def cut_off(image: Any, depth: Any, info: Any) -> None:
    image.data = image.data[:1000]


@pytest.mark.parametrize(
    "spoil, reason, said",
    [
        (other_encoding, "encoding", "bayer_rggb8"),
        (zero_K, "camera", "fx=0.0"),
        (other_size, "depth_size", "320x239"),
        (no_depth, "depth_empty", "no valid pixel"),
        (zero_stamp, "stamp_zero", "stamp 0"),
        (cut_off, "image", "1000 bytes"),
    ],
)
def test_bad_input_is_skipped_counted_and_named(
    graph: Graph, walker: Walker, spoil: Callable[[Any, Any, Any], None], reason: str, said: str
) -> None:
    before = graph.count(f"skipped.{reason}")
    walker.send(spoil)
    graph.process.wait(lambda: graph.count(f"skipped.{reason}") == before + 1, f"a frame skipped for {reason}")
    graph.process.says(said)
    walker.track()


def test_a_stamp_that_goes_back_a_little_is_skipped(graph: Graph, walker: Walker) -> None:
    walker.track()
    before = graph.count("skipped.stamp_order")
    walker.send(advance=-PERIOD_NS // 2)
    graph.process.wait(lambda: graph.count("skipped.stamp_order") == before + 1, "a frame skipped for its stamp")
    walker.track(advance=2 * PERIOD_NS)


def test_a_stamp_that_jumps_back_begins_anew(graph: Graph, walker: Walker) -> None:
    walker.track()
    message = walker.track(advance=-100 * 10**9)
    np.testing.assert_allclose(pose(message), np.eye(4), atol=1e-9)
    graph.process.says("time jumped back")
    assert graph.count("keyframes") == 1


def test_it_survived_all_that_without_an_error(graph: Graph) -> None:
    assert graph.count("errors") == 0
    assert "Traceback" not in graph.process.log and "[ERROR]" not in graph.process.log


def test_sigint_while_it_is_busy_ends_it_cleanly(graph: Graph, walker: Walker) -> None:
    walker.track()
    for _ in range(10):
        walker.send()
    assert graph.process.stop(signal.SIGINT) == 0
    assert "Traceback" not in graph.process.log and "[ERROR]" not in graph.process.log


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


def test_a_robot_with_odometry_keeps_its_own_odom_to_base(start: Callable[..., Any], room: TexturedRoom) -> None:
    graph = start({"odom_source": "tf"})
    moving = graph.node.create_publisher(TFMessage, "/tf", qos.make("tf"))
    static = graph.node.create_publisher(TFMessage, "/tf_static", qos.make("tf_static"))
    T_base_camera = se3.make(conversions.se3.from_quaternion(np.zeros(3), [-0.5, 0.5, -0.5, 0.5])[:3, :3], [0.2, 0, 0.5])
    static.publish(TFMessage(transforms=[conversions.transform_message(T_base_camera, 0, "base_link", CAMERA_FRAME)]))
    graph.wait_for_match()
    graph.process.wait(moving.get_subscription_count, "subscription to /tf")
    graph.process.wait(static.get_subscription_count, "subscription to /tf_static")
    walker = Walker(graph, room)
    T_odom_base0 = se3.exp(np.array([1.0, 2.0, 0.0, 0.0, 0.0, 0.7]))

    def T_odom_base(step: int) -> se3.Matrix:
        return T_odom_base0 @ se3.make(np.eye(3), [0.03 * step, -0.01 * step, 0.0])

    def odometry(stamp: int, step: int) -> None:
        T = T_odom_base(step)
        moving.publish(TFMessage(transforms=[conversions.transform_message(T, stamp, "odom", "base_link")]))

    for step in range(4):
        assert walker.step == step
        odometry(walker.stamp + PERIOD_NS, step)
        message = walker.track()
        np.testing.assert_allclose(pose(message), T_odom_base(step), atol=1e-6)
    ours = graph.process.wait(
        lambda: [t for t in graph.transforms() if t.header.frame_id == "map"], "map → odom"
    )
    assert {t.child_frame_id for t in ours} == {"odom"}
    T_map_odom = conversions.matrix_from_transform(ours[0].transform)
    np.testing.assert_allclose(T_map_odom @ T_odom_base0, np.eye(4), atol=1e-6)
    T_map_base = pose(graph.at("~/pose", walker.stamp))
    np.testing.assert_allclose(T_map_base[:3, 3], [0.09, -0.03, 0], atol=0.02)

    moving.publish(TFMessage(transforms=[conversions.transform_message(np.eye(4), walker.stamp, "map", "odom")]))
    graph.process.says("another node broadcasts the TF edge map → odom, and so do we")
    assert "test_graph" in graph.process.log


def test_a_lifecycle_manager_can_own_it(start: Callable[..., Any], room: TexturedRoom) -> None:
    graph = start({**OWN_MOUNT, "autostart": False, "watchdog_period": 0.5})

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
