# SPDX-License-Identifier: Apache-2.0
"""What the node publishes and when: laziness, twists, the bounded path, status and diagnostics levels."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from diagnostic_msgs.msg import DiagnosticStatus
from helpers import quick
from hypothesis import given
from hypothesis import strategies as st

from recon_ros.config import NodeConfig
from recon_ros.frame import Prediction, State, Trajectory, Update
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera
from recon_ros.messages import stamp_ns
from recon_ros.ros import interface, qos
from recon_ros.ros.conversions import matrix_from_pose
from recon_ros.ros.diagnostics import Diagnostics
from recon_ros.ros.frames import Poses
from recon_ros.ros.outputs import Outputs
from recon_ros.ros.path import PathBuilder, thinned
from recon_ros.ros.statistics import Statistics, Throttle
from recon_ros.ros.status import status_message
from recon_ros.runtimes.status import FAILED, READY, RuntimeStatus

SECOND = 1_000_000_000
CAMERA = Camera.from_focal(4, 2, 3.0)


class FakeNode:
    """Makes publishers that remember; `listeners` says which topics have subscribers."""

    def __init__(self, *listeners: interface.Topic) -> None:
        self.listeners = {topic.name for topic in listeners}
        self.published: dict[str, list[Any]] = {}

    def create_publisher(self, kind: Any, name: str, profile: Any, **options: Any) -> Any:
        messages = self.published.setdefault(name, [])
        return types.SimpleNamespace(
            publish=messages.append, get_subscription_count=lambda: int(name in self.listeners)
        )

    def get_fully_qualified_name(self) -> str:
        return "/robot/recon"

    def get_clock(self) -> Any:
        time = types.SimpleNamespace(to_msg=lambda: stamp)
        return types.SimpleNamespace(now=lambda: time)


from builtin_interfaces.msg import Time  # noqa: E402

stamp = Time(sec=1)


class Untouchable:
    """A prediction whose arrays must not be computed with."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was touched although nobody listens")


def update(prediction: Any, stamp_ns: int = SECOND, **known: Any) -> Update:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    return Update(stamp_ns, "camera", State.TRACKING, np.eye(4), image, CAMERA, prediction, **known)


def at(*xyz: float) -> Poses:
    T = se3.make(np.eye(3), np.array(xyz))
    return Poses(T, T, T, np.eye(4))


def outputs(node: FakeNode, **config: Any) -> Outputs:
    return Outputs(node, NodeConfig(**config), min_confidence=0.5)  # type: ignore[arg-type]


def test_nothing_is_computed_for_nobody() -> None:
    node = FakeNode()
    out = outputs(node)
    out.images(update(Untouchable()), None, "camera")  # type: ignore[arg-type]
    out.points(update(Untouchable()), at(0, 0, 0), None, "camera")  # type: ignore[arg-type]
    assert all(not messages for messages in node.published.values())


@pytest.mark.parametrize("topic", [interface.DEPTH_OUT, interface.DEPTH_INFO, interface.CONFIDENCE])
def test_each_image_is_published_by_itself(topic: interface.Topic) -> None:
    node = FakeNode(topic)
    prediction = Prediction(np.ones((2, 4, 3), np.float32), np.ones((2, 4), np.float32))
    outputs(node).images(update(prediction), prediction.confidence, "camera")
    assert [name for name, messages in node.published.items() if messages] == [topic.name]
    (message,) = node.published[topic.name]
    assert stamp_ns(message.header.stamp) == SECOND and message.header.frame_id == "camera"


@pytest.mark.parametrize("frame", ["camera", "map"])
def test_points_are_strided_finite_confident_and_in_their_frame(frame: str) -> None:
    node = FakeNode(interface.POINTS)
    points = np.zeros((2, 4, 3), np.float32)
    points[..., 2] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    points[0, 2] = np.nan
    confidence = np.ones((2, 4), np.float32)
    out = outputs(node, points_frame=frame, points_stride=2)
    out.points(update(Prediction(points, confidence)), at(10, 0, 0), confidence, "camera")
    (message,) = node.published["~/points"]
    cloud = np.frombuffer(message.data, "<f4").reshape(-1, 5)
    assert message.header.frame_id == frame
    np.testing.assert_array_equal(cloud[:, :3], [[0 if frame == "camera" else 10, 0, 1]])
    out.min_confidence = 2.0
    out.points(update(Prediction(points, confidence)), at(10, 0, 0), confidence, "camera")
    assert node.published["~/points"][1].width == 0


def test_twist_is_the_velocity_in_the_base() -> None:
    node = FakeNode()
    out = outputs(node)
    turned = se3.exp(np.array([0, 0, 0, 0, 0, np.pi / 2]))
    step = se3.make(np.eye(3), np.array([0.1, 0, 0]))
    for i, T in enumerate((turned, turned @ step)):
        out.poses(update(None, SECOND + i * SECOND // 10), Poses(T, T, T, np.eye(4)))
    first, second = node.published["~/odometry"]
    assert first.twist.covariance[0] >= 1e3, "the velocity of a first frame is not known"
    linear = second.twist.twist.linear
    np.testing.assert_allclose([linear.x, linear.y, linear.z], [1, 0, 0], atol=1e-9)
    assert 0 < second.twist.covariance[0] < 1e3
    out.forget()
    out.poses(update(None, 2 * SECOND), at(5, 0, 0))
    assert node.published["~/odometry"][2].twist.covariance[0] >= 1e3


def test_without_odometry_only_the_pose_is_published() -> None:
    node = FakeNode()
    outputs(node).poses(update(None), Poses(np.eye(4), None, np.eye(4), np.eye(4)))
    assert len(node.published["~/pose"]) == 1 and not node.published["~/odometry"]


@quick
@given(st.integers(0, 500), st.integers(2, 100))
def test_a_path_is_thinned_where_it_is_old(n: int, limit: int) -> None:
    kept = thinned(n, limit)
    assert len(kept) == min(n, limit)
    assert (np.diff(kept) > 0).all()
    if n:
        assert kept[0] == 0 and kept[-1] == n - 1
    newest = min(n, limit // 2)
    np.testing.assert_array_equal(kept[len(kept) - newest :], np.arange(n - newest, n))


def test_a_path_follows_corrections_and_keeps_what_did_not_change() -> None:
    builder = PathBuilder("map", 100)
    poses = np.stack([se3.make(np.eye(3), np.array([i, 0.0, 0.0])) for i in range(3)])
    stamps = np.array([1, 2, 3]) * SECOND
    first = builder.build(Trajectory(stamps[:2], poses[:2]), np.eye(4), np.eye(4), int(stamps[1]))
    poses[0, 1, 3] = 0.5
    second = builder.build(Trajectory(stamps, poses), np.eye(4), np.eye(4), int(stamps[2]))
    assert [stamp_ns(p.header.stamp) for p in second.poses] == stamps.tolist()
    for message, T in zip(second.poses, poses, strict=True):
        np.testing.assert_allclose(matrix_from_pose(message.pose), T, atol=1e-12)
    assert second.poses[1] is first.poses[1]
    empty = builder.build(Trajectory(stamps[:0], poses[:0]), np.eye(4), np.eye(4), 5)
    assert len(empty.poses) == 0 and stamp_ns(empty.header.stamp) == 5


# -- words ------------------------------------------------------------------------------------------------------


SOURCE: Any = types.SimpleNamespace(runtime="numpy", card=types.SimpleNamespace(name="depth"))


def test_status_level_follows_how_long_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("recon_ros.ros.statistics.time.monotonic", lambda: now[0])
    statistics = Statistics()

    def level() -> bytes:
        return bytes(status_message("n", statistics, statistics.state, {}, SOURCE).level)

    statistics.frame_processed(State.TRACKING, 1.0, 1.0)
    assert level() == DiagnosticStatus.OK
    for seconds, expected in ((0, DiagnosticStatus.WARN), (9, DiagnosticStatus.WARN), (2, DiagnosticStatus.ERROR)):
        now[0] += seconds
        statistics.frame_processed(State.LOST, 1.0, 1.0)
        assert level() == expected
    statistics.frame_processed(State.TRACKING, 1.0, 1.0)
    assert level() == DiagnosticStatus.OK


def test_rates_are_of_the_last_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("recon_ros.ros.statistics.time.monotonic", lambda: now[0])
    statistics = Statistics()
    for i in range(10):
        now[0] += 0.1
        statistics.image_received("rgb8")
        statistics.frame_processed(State.TRACKING, 5.0, float(i))
    assert statistics.received_rate() == statistics.processed_rate() == pytest.approx(2.0)
    assert statistics.latency_percentiles() == (pytest.approx(4.5), pytest.approx(8.55))
    now[0] += 10
    assert statistics.processed_rate() == statistics.received_rate() == 0
    assert np.isnan(statistics.latency_percentiles()).all()
    assert statistics.image_age() == pytest.approx(10.0)


def test_diagnostics_warn_of_drops_and_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("recon_ros.ros.statistics.time.monotonic", lambda: now[0])
    statistics = Statistics()
    inputs: Any = types.SimpleNamespace(waits_for_camera_info=lambda: 0.0)
    watchdog: Any = types.SimpleNamespace(silent={})
    engine = [RuntimeStatus(READY, "openvino bf16", message="openvino bf16 serves")]
    diagnostics = Diagnostics(
        FakeNode(),  # type: ignore[arg-type]
        statistics,
        inputs,
        watchdog,
        lambda: State.TRACKING,
        lambda: engine[0],
    )

    def status(task: str) -> Any:
        return next(s for s in diagnostics.array().status if s.name == f"robot/recon: {task}")

    assert status("Engine").level == DiagnosticStatus.OK and "openvino" in status("Engine").message
    engine[0] = RuntimeStatus(FAILED, message="nothing that is here can be used")
    assert status("Engine").level == DiagnosticStatus.ERROR
    assert status("Input").level == DiagnosticStatus.ERROR
    statistics.image_received("rgb8")
    assert status("Input").level == DiagnosticStatus.OK
    watchdog.silent = {"/depth": "/depth: nothing yet"}
    assert status("Input").level == DiagnosticStatus.WARN and "/depth" in status("Input").message
    now[0] += 3
    watchdog.silent = {}
    assert status("Input").level == DiagnosticStatus.WARN
    now[0] += 3
    assert status("Input").level == DiagnosticStatus.ERROR

    for _ in range(4):
        statistics.image_received("rgb8")
    statistics.count("dropped", 3)
    performance = [s for s in diagnostics.array().status if s.name.endswith("Performance")]
    assert performance[0].level == DiagnosticStatus.WARN and "75%" in performance[0].message
    assert status("Performance").level == DiagnosticStatus.OK, "only drops since the last report count"
    values = {v.key: v.value for v in status("Memory").values}
    assert float(values["rss_mb"]) > 1


def test_a_throttle_lets_each_kind_through_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("recon_ros.ros.statistics.time.monotonic", lambda: now[0])
    throttle = Throttle(5.0)
    assert throttle.passes("a") and throttle.passes("b") and not throttle.passes("a")
    now[0] = 5.0
    assert throttle.passes("a") and not throttle.passes("a")


# -- the interface as data --------------------------------------------------------------------------------------


def test_every_topic_and_service_is_in_the_readme_tables() -> None:
    table = interface.markdown()
    for topic in interface.SUBSCRIPTIONS + interface.PUBLICATIONS:
        assert f"| `{topic.name}` | {interface.type_name(topic.type)} |" in table
        assert topic.qos in qos.NAMES
    for service in interface.SERVICES:
        assert f"| `{service.name}` |" in table


def test_sensor_subscriptions_hold_more_than_one_pair_and_accept_every_publisher() -> None:
    from rclpy.qos import QoSCompatibility, qos_check_compatible

    assert qos.make("sensor").depth >= 5
    for offered in ("standard", "large", "latched", "sensor"):
        assert qos_check_compatible(qos.make(offered), qos.make("sensor"))[0] != QoSCompatibility.ERROR
