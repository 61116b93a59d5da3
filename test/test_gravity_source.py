# SPDX-License-Identifier: Apache-2.0
"""Gravity in the camera's frame, from IMU messages and TF, or from a base that stands level."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from sensor_msgs.msg import Imu
from textured_room import TexturedRoom

from recon_ros.config import Config, NodeConfig, updated
from recon_ros.errors import InputError
from recon_ros.frame import Frame, State
from recon_ros.geometry import se3
from recon_ros.geometry.gravity import DOWN
from recon_ros.ros import gravity
from recon_ros.ros.mount import T_BASE_OPTICAL
from recon_ros.ros.pipeline import Pipeline

START_NS, STEP_NS = 1_700_000_000_000_000_000, 10_000_000


class FakeNode:
    """Keeps the subscription's callback and what is logged."""

    def __init__(self) -> None:
        self.hear: Callable[[Any], None] | None = None
        self.said: list[str] = []

    def create_subscription(self, kind: Any, name: str, callback: Callable[[Any], None], profile: Any) -> str:
        assert (kind, name) == (Imu, "imu")
        self.hear = callback
        return "subscription"

    def destroy_subscription(self, subscription: str) -> None:
        self.hear = None

    def get_logger(self) -> Any:
        return SimpleNamespace(warning=self.said.append, info=self.said.append)


def fed(node: FakeNode, down: np.ndarray, count: int = 200, covariance: float = 0.0) -> int:
    """Messages of an IMU at rest; the stamp of the last."""
    for i in range(count):
        message = Imu()
        message.header.frame_id = "imu_link"
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(START_NS + i * STEP_NS, 10**9)
        a = message.linear_acceleration
        a.x, a.y, a.z = (-9.81 * down).tolist()
        message.linear_acceleration_covariance[0] = covariance
        message.angular_velocity_covariance[0] = -1.0
        assert node.hear is not None
        node.hear(message)
    return START_NS + (count - 1) * STEP_NS


def source(kind: str, T_camera_imu: np.ndarray | None = None) -> tuple[Any, FakeNode]:
    node = FakeNode()
    tf = SimpleNamespace(lookup=lambda target, frame, stamp: T_camera_imu if frame == "imu_link" else None)
    return gravity.make(node, updated(NodeConfig(), {"gravity": kind}), tf), node  # type: ignore[arg-type]


def test_the_imus_gravity_is_turned_into_the_cameras_frame() -> None:
    T_camera_imu = se3.inverse(T_BASE_OPTICAL)  # the IMU's axes are the base's
    imu, node = source("imu", T_camera_imu)
    stamp = fed(node, np.array([0.0, 0.0, -1.0]))
    found = imu.at(stamp, "camera", None)
    assert found is not None
    np.testing.assert_allclose(found, DOWN, atol=1e-6)
    assert imu.at(stamp + 10**9, "camera", None) is None
    imu.clear()
    assert imu.at(stamp, "camera", None) is None
    imu.close()
    assert node.hear is None


def test_without_its_transform_the_imu_says_nothing_and_that_is_said_once() -> None:
    imu, node = source("imu")
    stamp = fed(node, DOWN)
    assert imu.at(stamp, "camera", None) is None and imu.at(stamp, "camera", None) is None
    assert len(node.said) == 1 and "imu_link → camera" in node.said[0]


def test_an_imu_without_accelerometer_is_said() -> None:
    imu, node = source("imu", np.eye(4))
    stamp = fed(node, DOWN, covariance=-1.0)
    assert imu.at(stamp, "camera", None) is None
    assert len(node.said) == 1 and "linear_acceleration" in node.said[0]


def test_a_base_that_stands_level_knows_by_the_mount() -> None:
    base, _ = source("base")
    np.testing.assert_allclose(base.at(START_NS, "camera", T_BASE_OPTICAL), DOWN, atol=1e-9)
    assert base.at(START_NS, "camera", None) is None
    nothing, _ = source("none")
    assert nothing.at(START_NS, "camera", T_BASE_OPTICAL) is None and not nothing.is_awaited()


@pytest.mark.parametrize("kind", ["imu", "base"])
def test_a_map_waits_for_gravity_but_not_for_ever(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("recon_ros.ros.gravity.time.monotonic", lambda: now[0])
    awaited, node = source(kind)
    assert awaited.is_awaited()
    now[0] += gravity.GRACE_S - 0.1
    assert awaited.is_awaited() and node.said == []
    now[0] += 0.2
    assert not awaited.is_awaited() and not awaited.is_awaited()
    assert len(node.said) == 1 and "5 s" in node.said[0]
    awaited.clear()
    assert awaited.is_awaited(), "a map that begins after a reset waits as the first did"
    now[0] += gravity.GRACE_S + 0.1
    assert not awaited.is_awaited() and len(node.said) == 2


@pytest.mark.parametrize(
    ("level", "state", "waits"),
    [(True, State.INITIALIZING, True), (False, State.INITIALIZING, False), (True, State.LOST, False)],
)
def test_only_a_map_that_is_to_begin_level_waits_for_gravity(level: bool, state: State, waits: bool) -> None:
    pipeline: Any = Pipeline.__new__(Pipeline)
    pipeline.config, pipeline.node_config = updated(Config(), {"map.level": level}), NodeConfig()
    pipeline.gravity, _ = source("base")
    pipeline.mount, pipeline.reconstructor = SimpleNamespace(camera_frame="camera"), SimpleNamespace(state=state)
    frame = Frame(START_NS, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="down") if waits else contextlib.nullcontext():
        assert pipeline._with_gravity(frame, None).gravity is None


@pytest.mark.ros
def test_a_nodes_map_is_upright_though_the_robot_stands_on_a_ramp(tmp_path: Path) -> None:
    pytest.importorskip("tf2_msgs", reason="needs tf2_msgs (scripts/build_tf2_msgs.py)")
    from node_harness import CAMERA_FRAME, OWN_MOUNT, Graph, NodeProcess, Walker, pose

    from recon_ros.ros import qos

    ramp = se3.exp(np.array([0, 0, 0, 0, -0.2, 0]))  # the base's nose is up
    down = T_BASE_OPTICAL[:3, :3].T @ ramp[:3, :3].T @ np.array([0.0, 0.0, -1.0])
    process = NodeProcess(tmp_path, {"gravity": "imu", **OWN_MOUNT})
    try:
        graph = Graph(process)
        imu = graph.node.create_publisher(Imu, "imu", qos.make("sensor"))
        graph.wait_for_match()
        process.wait(imu.get_subscription_count, "subscription to imu")
        walker = Walker(graph, TexturedRoom())

        def sent() -> bool:
            for i in range(20):
                message = Imu()
                message.header.frame_id = CAMERA_FRAME
                stamp = walker.stamp + i * STEP_NS // 2
                message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
                a = message.linear_acceleration
                a.x, a.y, a.z = (-9.81 * down).tolist()
                imu.publish(message)
                time.sleep(0.002)
            walker.send()
            time.sleep(0.05)
            return bool(graph.received["~/odometry"])

        process.wait(sent, "~/odometry once gravity is known")
        T_map_base = pose(graph.received["~/pose"][0])
        moved, turned = se3.distance(se3.inverse(ramp) @ T_map_base)
        assert turned < 0.02 and moved < 0.3
        process.says("gravity is from the IMU")
        graph.close()
    finally:
        process.end()
