# SPDX-License-Identifier: Apache-2.0
"""numpy to ROS messages and back: every byte and every nanosecond."""

from __future__ import annotations

import array

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose
from helpers import quick
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera
from recon_ros.messages import camera_from_message, depth_from_message, image_from_message, stamp_ns
from recon_ros.ros import conversions

STAMP = 1_700_000_000_123_456_789


@quick
@given(st.integers(min_value=0, max_value=(2**31 - 1) * 10**9 + 999_999_999))
def test_stamps_survive_to_the_nanosecond(ns: int) -> None:
    message = deserialize_message(serialize_message(conversions.time_message(ns)), Time)
    assert stamp_ns(message) == ns


def test_rgb_image_goes_there_and_back() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    message = conversions.image_message(image, STAMP, "camera")
    message = deserialize_message(serialize_message(message), Image)
    assert (message.encoding, message.step, message.header.frame_id) == ("rgb8", 15, "camera")
    assert stamp_ns(message.header.stamp) == STAMP
    np.testing.assert_array_equal(image_from_message(message), image)


def test_depth_image_keeps_nan_and_may_be_a_view() -> None:
    depth = np.array([[1.5, np.nan, 0], [3.25, 2.0, 0]], dtype=np.float32)[:, :2]
    message = deserialize_message(serialize_message(conversions.image_message(depth, STAMP, "c")), Image)
    assert (message.encoding, message.width, message.height, message.step) == ("32FC1", 2, 2, 8)
    np.testing.assert_array_equal(depth_from_message(message, 0.001), depth)


def test_camera_info_goes_there_and_back() -> None:
    camera = Camera.from_focal(640, 480, 500.0)
    message = conversions.camera_info_message(camera, STAMP, "c")
    received = camera_from_message(deserialize_message(serialize_message(message), CameraInfo))
    assert (received.width, received.height) == (640, 480)
    np.testing.assert_array_equal(received.K, camera.K)
    np.testing.assert_array_equal(np.array(message.p).reshape(3, 4)[:, :3], camera.K)
    assert not received.is_distorted


@pytest.mark.parametrize("with_confidence", [False, True])
def test_cloud_layout_is_what_pcl_and_rviz_read(with_confidence: bool) -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(100, 3)).astype(np.float32)
    colours = rng.integers(0, 256, (100, 3), dtype=np.uint8)
    confidence = rng.random(100, dtype=np.float32) if with_confidence else None
    message = conversions.cloud_message(points, colours, STAMP, "map", confidence)
    message = deserialize_message(serialize_message(message), PointCloud2)
    assert (message.height, message.width, message.is_dense, message.is_bigendian) == (1, 100, True, False)
    assert message.point_step == (20 if with_confidence else 16)
    assert message.row_step == len(message.data) == 100 * message.point_step
    raw = np.frombuffer(message.data, np.uint8).reshape(100, message.point_step)
    offsets = {field.name: field.offset for field in message.fields}
    for axis, name in enumerate("xyz"):
        np.testing.assert_array_equal(
            raw[:, offsets[name] : offsets[name] + 4].copy().view("<f4")[:, 0], points[:, axis]
        )
    rgb = raw[:, offsets["rgb"] : offsets["rgb"] + 4].copy().view("<u4")[:, 0]
    np.testing.assert_array_equal(rgb, (colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)))
    if confidence is not None:
        offset = offsets["confidence"]
        np.testing.assert_array_equal(raw[:, offset : offset + 4].copy().view("<f4")[:, 0], confidence)


def test_an_empty_cloud_is_a_cloud() -> None:
    message = conversions.cloud_message(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), STAMP, "map")
    assert (message.width, message.row_step, len(message.data)) == (0, 0, 0)
    serialize_message(message)


def test_a_cloud_reads_back_with_sensor_msgs_py() -> None:
    point_cloud2 = pytest.importorskip("sensor_msgs_py.point_cloud2", reason="sensor_msgs_py is not among the wheels")
    points = np.arange(30, dtype=np.float32).reshape(10, 3)
    message = conversions.cloud_message(points, np.zeros((10, 3), np.uint8), STAMP, "map")
    np.testing.assert_array_equal(point_cloud2.read_points_numpy(message, ("x", "y", "z")), points)


def test_data_takes_the_unchecked_way() -> None:
    """bytes, lists and ndarrays are checked element by element by rosidl: hundreds of milliseconds for a cloud."""
    image = conversions.image_message(np.zeros((2, 2), np.float32), STAMP, "c")
    cloud = conversions.cloud_message(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.uint8), STAMP, "c")
    for message in (image, cloud):
        assert isinstance(message.data, array.array)
        assert message.data.typecode == "B"


twists = st.lists(st.floats(-3, 3), min_size=6, max_size=6)


@quick
@given(twists)
def test_poses_and_transforms_go_there_and_back(twist: list[float]) -> None:
    T = se3.exp(np.array(twist))
    np.testing.assert_allclose(conversions.matrix_from_pose(conversions.pose_message(T)), T, atol=1e-9)
    transform = conversions.transform_message(T, STAMP, "a", "b")
    assert (transform.header.frame_id, transform.child_frame_id) == ("a", "b")
    np.testing.assert_allclose(conversions.matrix_from_transform(transform.transform), T, atol=1e-9)


@quick
@given(st.lists(twists, min_size=0, max_size=4))
def test_many_poses_are_the_same_as_one_by_one(many: list[list[float]]) -> None:
    poses = np.array([se3.exp(np.array(twist)) for twist in many]).reshape(-1, 4, 4)
    rows = conversions.pose_rows(poses)
    assert rows.shape == (len(many), 7)
    for row, T in zip(rows.tolist(), poses, strict=True):
        np.testing.assert_allclose(conversions.matrix_from_pose(conversions.pose_from_row(row)), T, atol=1e-9)


@pytest.mark.parametrize("field, value", [("position", np.nan), ("orientation", 0.0)])
def test_an_unusable_pose_is_told_by_nan(field: str, value: float) -> None:
    pose = Pose()
    pose.orientation.w = 0.0
    if field == "position":
        pose.orientation.w, pose.position.x = 1.0, value
    assert np.isnan(conversions.matrix_from_pose(pose)).all()
