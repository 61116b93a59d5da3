# SPDX-License-Identifier: Apache-2.0
"""The node over DDS, from messages to messages. One process serves most tests, in the order of this file."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("tf2_msgs", reason="needs tf2_msgs (scripts/build_tf2_msgs.py)")

from node_harness import CAMERA_FRAME, OWN_MOUNT, PERIOD_NS, Graph, Walker, pose, running
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import SetBool, Trigger
from textured_room import CAMERA, TexturedRoom, walk

from recon_ros.export.snapshot import FILES
from recon_ros.export.tum import read_tum
from recon_ros.mapping.folder import DATA_FILES
from recon_ros.messages import depth_from_message, stamp_ns
from recon_ros.ros import conversions, interface, qos
from recon_ros.ros.pose_tracks import Tree

pytestmark = pytest.mark.ros

LAZY = (interface.POINTS,)
"""Not listened to by the shared graph from the beginning."""


@pytest.fixture(scope="module")
def room() -> TexturedRoom:
    return TexturedRoom()


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
    with running(folder, parameters, LAZY) as graph:
        yield graph


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
    while walker.step < 6:  # on its own
        walker.track()
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


STATUS_KEYS = (
    "state frames_received frames_processed frames_dropped keyframes loops latency_ms inference_ms confidence "
    "metric_scale runtime network"
)


def test_status_and_diagnostics_say_how_it_goes(graph: Graph, walker: Walker) -> None:
    walker.track()
    graph.process.wait(
        lambda: graph.count("frames_processed") == graph.count("frames_received"), "every frame processed"
    )
    status = graph.status()
    assert set(STATUS_KEYS.split()) <= set(status)
    assert status["state"] == "TRACKING" and status["network"] == "depth"
    assert float(status["inference_ms"]) > 0 and status["metric_scale"] == "true"
    array = graph.process.wait(lambda: graph.received["/diagnostics"], "/diagnostics")[-1]
    tasks = ("Input", "Tracking", "Performance", "Memory", "Engine")
    assert [s.name for s in array.status] == [f"recon: {task}" for task in tasks]


def test_reset_begins_anew(graph: Graph, walker: Walker) -> None:
    for _ in range(3):
        walker.track()
    answer = graph.call(Trigger, "~/reset")
    assert answer.success
    message = walker.track()
    np.testing.assert_allclose(pose(message), np.eye(4), atol=1e-9)
    keyframes = graph.at("~/keyframes", walker.stamp)
    assert len(keyframes.poses) == 1
    graph.process.wait(lambda: graph.count("keyframes") == 1, "a status with one keyframe")


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
    assert {p.name for p in folder.iterdir()} == {*FILES, *DATA_FILES}
    assert read_tum(folder / "trajectory.tum").stamps_ns[-1] == walker.stamp
    keyframes = read_tum(folder / "keyframes.tum")
    assert keyframes.stamps_ns[-1] == walker.stamp, "the last view is one, so that the next session begins here"
    graph.process.wait(lambda: graph.count("keyframes") == len(keyframes), "~/status to count it")
    assert b"element vertex 0\n" not in (folder / "map.ply").read_bytes()[:200]
    assert "voxel_size: 0.03" in (folder / "config.yaml").read_text()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name], "nothing unfinished is left"

    assert graph.set_parameter("map.path", str(tmp_path / "office")).successful
    for _ in range(2):  # the second one replaces the first
        assert graph.call(Trigger, "~/save_map").message == str(tmp_path / "office")
    (tmp_path / "office" / "notes.txt").mkdir()
    answer = graph.call(Trigger, "~/save_map")
    assert not answer.success and "not a saved map" in answer.message


def test_load_map_goes_on_in_the_frame_of_the_saved_map(graph: Graph, walker: Walker, tmp_path: Path) -> None:
    last = pose(walker.track())
    assert graph.set_parameter("map.path", str(tmp_path / "office")).successful
    assert graph.call(Trigger, "~/save_map").success
    keyframes = len(read_tum(tmp_path / "office" / "keyframes.tum"))
    assert graph.call(Trigger, "~/reset").success
    assert graph.call(SetBool, "~/localize_only", data=True).message == "localization"
    answer = graph.call(Trigger, "~/load_map")
    assert answer.success and answer.message.endswith(f"office: {keyframes} keyframes")
    graph.process.wait(lambda: graph.status()["state"] == "LOST", "LOST until it is recognised")
    assert np.linalg.norm(pose(walker.track())[:3, 3] - last[:3, 3]) < 0.1, "the frame is that of the saved map"
    for _ in range(10):
        walker.track()
    assert graph.count("keyframes") == keyframes, "the map is frozen"
    assert graph.call(SetBool, "~/localize_only", data=False).message == "mapping"
    (tmp_path / "office" / "edges.npy").write_bytes(b"")
    answer = graph.call(Trigger, "~/load_map")
    assert not answer.success and "edges.npy" in answer.message
    assert np.linalg.norm(pose(walker.track())[:3, 3] - last[:3, 3]) < 0.5, "the map that was there is still there"


def test_parameters_are_checked(graph: Graph) -> None:
    assert graph.set_parameter("points_stride", 3).successful
    result = graph.set_parameter("map.min_confidence", 1.5)
    assert not result.successful
    result = graph.set_parameter("queue", "all")
    assert not result.successful, "a read-only parameter"
    assert graph.set_parameter("points_stride", 2).successful


def test_a_flood_is_dropped_and_counted(graph: Graph, walker: Walker, room: TexturedRoom) -> None:
    image, depth = room.render(walk(walker.step))
    before = {key: graph.count(f"frames_{key}") for key in ("received", "processed", "dropped")}
    unpaired = graph.count("skipped.unpaired_image")
    for _ in range(60):
        walker.stamp += PERIOD_NS
        graph.send(walker.stamp, image, depth, CAMERA)

    def since(key: str) -> int:
        return graph.count(f"frames_{key}") - before[key]

    def is_settled() -> bool:
        given_up = graph.count("skipped.unpaired_image") - unpaired
        return 0 < since("received") == since("processed") + since("dropped") + given_up

    graph.process.wait(is_settled, "every received frame accounted for")
    assert since("dropped") > 0
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
    graph.process.wait(lambda: graph.count("keyframes") == 1, "a status with one keyframe")


def test_it_survived_all_that_without_an_error(graph: Graph) -> None:
    assert graph.count("errors") == 0
    assert "Traceback" not in graph.process.log and "[ERROR]" not in graph.process.log


def test_sigint_while_it_is_busy_ends_it_cleanly(graph: Graph, walker: Walker) -> None:
    walker.track()
    for _ in range(10):
        walker.send()
    assert graph.process.stop(signal.SIGINT) == 0
    assert "Traceback" not in graph.process.log and "[ERROR]" not in graph.process.log
