# SPDX-License-Identifier: Apache-2.0
"""The synthetic warehouse: exact where it claims to be, and the same every time."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from recon_ros.errors import DatasetError
from recon_ros.frame import Frame, Trajectory
from recon_ros.geometry import se3

pytest.importorskip("open3d")

from recon_ros.datasets.bag_writer import DEPTH_TOPIC, IMAGE_TOPIC, millimetres, write_bag
from recon_ros.datasets.synthetic import START_NS, SyntheticWarehouse, sensor_depth


def test_depth_agrees_with_reprojection_into_another_frame() -> None:
    """Points of one frame, moved by the true poses, lie on the surface the other frame measures."""
    data = SyntheticWarehouse(20, 320, 240)
    a, b = data[3], data[9]
    truth = data.ground_truth()
    T_b_a = se3.inverse(truth.poses[9]) @ truth.poses[3]
    assert se3.distance(T_b_a)[0] > 0.5
    valid = np.isfinite(a.depth)
    v, u = np.nonzero(valid)
    points = se3.transform(T_b_a, data.camera.unproject(np.stack([u, v], 1), a.depth[v, u]))
    measured = _sampled(b.depth, data.camera.project(points))
    difference = points[:, 2] - measured
    difference = difference[np.isfinite(difference)]
    assert len(difference) > 0.15 * len(points)
    assert np.mean(np.abs(difference) < 1e-4) > 0.98
    assert np.median(np.abs(difference)) < 1e-5
    # The rest is hidden from the other frame, so behind what that measures; nothing floats before a surface.
    assert np.mean(difference < -1e-3) < 1e-3


def _off_planes(depth: np.ndarray) -> np.ndarray:
    """Pixels whose neighbourhood is not one plane, of which 1/z is linear in the image."""
    inverse = np.nan_to_num(1.0 / depth, nan=1e3)
    bent = np.maximum(*(np.abs(cv2.filter2D(inverse, -1, kernel)) for kernel in (BEND, BEND.T)))
    return cv2.dilate((bent > 1e-5).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


BEND = np.array([[1.0, -2.0, 1.0]], np.float32)


def _sampled(depth: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Depth at (N, 2) sub-pixel positions, NaN where it cannot be interpolated."""
    inverse = np.where(_off_planes(depth), np.nan, 1.0 / depth)
    return 1.0 / map_coordinates(inverse, pixels.T[::-1], order=1, cval=np.nan)


def test_image_is_consistent_with_the_poses() -> None:
    """A frame warped into its neighbour with true depth and poses looks like the neighbour."""
    data = SyntheticWarehouse(8, 320, 240)
    a, b = data[0], data[1]
    truth = data.ground_truth()
    T_a_b = se3.inverse(truth.poses[0]) @ truth.poses[1]
    v, u = np.mgrid[: data.camera.height, : data.camera.width]
    points = se3.transform(T_a_b, data.camera.unproject(np.stack([u, v], -1), b.depth))
    pixels = data.camera.project(points).astype(np.float32)
    warped = cv2.remap(a.image, pixels[..., 0], pixels[..., 1], cv2.INTER_LINEAR, borderValue=(0, 0, 0, 0))
    inside = np.isfinite(b.depth) & (warped.max(axis=2) > 0)
    difference = np.abs(warped.astype(int) - b.image.astype(int)).mean(axis=2)
    unmoved = np.abs(a.image.astype(int) - b.image.astype(int)).mean(axis=2)
    assert inside.mean() > 0.5
    assert np.mean(difference[inside]) < 0.5 * np.mean(unmoved[inside])


def test_loop_closes_and_laps_repeat() -> None:
    one = SyntheticWarehouse(1)
    period = 10**8
    frames = 4
    # A speed that makes a lap exactly two steps long.
    data = SyntheticWarehouse(frames, 160, 120, speed=one.lap_length / 2 / (period * 1e-9))
    poses = data.ground_truth().poses
    np.testing.assert_allclose(poses[2], poses[0], atol=1e-9)
    assert np.linalg.norm(poses[1, :3, 3] - poses[0, :3, 3]) > 5.0
    np.testing.assert_array_equal(data[2].image, data[0].image)


def test_drive_is_smooth_level_and_at_the_right_speed() -> None:
    truth = SyntheticWarehouse(300).ground_truth()
    steps = np.linalg.norm(np.diff(truth.positions, axis=0), axis=1)
    np.testing.assert_allclose(steps, 0.12, rtol=2e-3)
    np.testing.assert_allclose(truth.positions[:, 2], 1.2)
    turns = [se3.distance(se3.inverse(a) @ b)[1] for a, b in zip(truth.poses[:-1], truth.poses[1:], strict=True)]
    assert max(turns) < np.radians(5)
    assert np.abs(np.diff(turns)).max() < np.radians(0.5)
    assert np.all(truth.poses[:, 2, 0] == 0.0)  # the camera's x axis stays horizontal
    assert all(se3.is_valid(T) for T in truth.poses)


def test_shake_tilts_but_does_not_move() -> None:
    still, shaken = SyntheticWarehouse(50).ground_truth(), SyntheticWarehouse(50, shake=0.03).ground_truth()
    np.testing.assert_array_equal(still.positions, shaken.positions)
    tilt = [se3.distance(se3.inverse(a) @ b)[1] for a, b in zip(still.poses, shaken.poses, strict=True)]
    assert 0.005 < max(tilt) < 0.06


def test_frames_are_the_same_in_any_order_and_differ_with_the_noise() -> None:
    a, b = SyntheticWarehouse(5, 160, 120, noise=True), SyntheticWarehouse(9, 160, 120, noise=True)
    later, first = b[4], b[0]
    for frame, other in zip((list(a)[4], a[0]), (later, first), strict=True):
        np.testing.assert_array_equal(frame.image, other.image)
        np.testing.assert_array_equal(frame.depth, other.depth)
        assert frame.stamp_ns == other.stamp_ns
    exact = SyntheticWarehouse(5, 160, 120)[0]
    both = np.isfinite(exact.depth) & np.isfinite(first.depth)
    error = (first.depth - exact.depth)[both] / (0.0015 * exact.depth[both] ** 2 + 3e-4)
    assert 0.7 < error.std() < 1.1


def test_stamps_are_integers_of_equal_steps_and_frames_are_whole() -> None:
    data = SyntheticWarehouse(4, 160, 120, rate_hz=30.0, max_range=5.0)
    frames = list(data)
    assert [f.stamp_ns for f in frames] == [START_NS + i * 33_333_333 for i in range(4)]
    assert data.ground_truth().stamps_ns.tolist() == [f.stamp_ns for f in frames]
    for frame in frames:
        assert frame.camera is not None and frame.depth is not None
        assert np.nanmax(frame.depth) <= 5.0 and np.isnan(frame.depth).any()
        assert np.isfinite(frame.depth).mean() > 0.3


def test_every_view_has_corners_everywhere() -> None:
    data = SyntheticWarehouse(260, 320, 240)
    for index in range(0, 260, 26):
        gray = cv2.cvtColor(data[index].image, cv2.COLOR_RGB2GRAY)
        corners = cv2.goodFeaturesToTrack(gray, 1000, 0.01, 4)
        cells = {(int(x) // 80, int(y) // 80) for x, y in corners.reshape(-1, 2)}
        assert len(corners) > 250
        assert len(cells) >= 11, f"frame {index} has corners in {len(cells)} of 12 cells"


def test_impossible_arguments_are_named() -> None:
    with pytest.raises(DatasetError, match="width"):
        SyntheticWarehouse(1, 0, 10)
    with pytest.raises(DatasetError, match="fov"):
        SyntheticWarehouse(1, fov=4.0)
    with pytest.raises(IndexError):
        SyntheticWarehouse(2)[2]


def test_sensor_depth_makes_holes_at_steps_only() -> None:
    depth = np.full((40, 60), 2.0, np.float32)
    depth[:, 30:] = 4.0
    depth[0, 0] = np.nan
    measured = sensor_depth(depth, np.random.default_rng(0))
    holes = np.isnan(measured)
    assert holes[:, 29:31].mean() > 0.5
    assert not holes[5:, 5:28].any() and not holes[5:, 33:].any()
    assert holes[0, 0]
    np.testing.assert_allclose(measured[~holes] * 1000, np.round(measured[~holes] * 1000), atol=1e-3)


def test_millimetres_round_and_drop_what_does_not_fit() -> None:
    depth = np.array([[1.0006, np.nan, 70.0, -1.0, np.inf, 0.0]], np.float32)
    assert millimetres(depth).tolist() == [[1001, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("compressed", [False, True])
def test_bag_round_trip(tmp_path: Path, compressed: bool) -> None:
    from rosbags.highlevel import AnyReader

    data = SyntheticWarehouse(3, 160, 120, noise=True)
    counts: list[int] = []
    written = write_bag(tmp_path / "bag", data, data.ground_truth(), compressed=compressed, progress=counts.append)
    assert written == 3 and counts == [1, 2, 3]
    with AnyReader([tmp_path / "bag"]) as reader:
        messages = [(c.topic, stamp, reader.deserialize(raw, c.msgtype)) for c, stamp, raw in reader.messages()]
    by_topic: dict[str, list] = {}
    for topic, stamp, message in messages:
        assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == stamp
        by_topic.setdefault(topic, []).append(message)
    assert {topic: len(found) for topic, found in by_topic.items()} == {
        IMAGE_TOPIC + ("/compressed" if compressed else ""): 3,
        "/camera/color/camera_info": 3,
        DEPTH_TOPIC: 3,
        "/ground_truth/pose": 3,
    }
    frame, truth = data[2], data.ground_truth()
    depth = by_topic[DEPTH_TOPIC][2]
    assert (depth.encoding, depth.step, depth.header.frame_id) == ("16UC1", 320, "camera_color_optical_frame")
    counts_mm = depth.data.view(np.uint16).reshape(120, 160)
    np.testing.assert_array_equal(counts_mm, np.nan_to_num(frame.depth * 1000).round().astype(np.uint16))
    info = by_topic["/camera/color/camera_info"][2]
    np.testing.assert_array_equal(info.k.reshape(3, 3), data.camera.K)
    if not compressed:
        image = by_topic[IMAGE_TOPIC][2]
        np.testing.assert_array_equal(image.data.reshape(120, 160, 3), frame.image)
    else:
        image = cv2.imdecode(by_topic[IMAGE_TOPIC + "/compressed"][2].data, cv2.IMREAD_COLOR)[..., ::-1]
        assert np.abs(image.astype(int) - frame.image).mean() < 6
    pose = by_topic["/ground_truth/pose"][2]
    assert pose.header.frame_id == "world"
    p, q = pose.pose.position, pose.pose.orientation
    T = se3.from_quaternion(np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w]))
    np.testing.assert_allclose(T, truth.poses[2], atol=1e-12)


def test_bag_metadata_is_what_ros2_bag_expects(tmp_path: Path) -> None:
    import yaml

    data = SyntheticWarehouse(2, 64, 48)
    write_bag(tmp_path / "bag", data)
    information = yaml.safe_load((tmp_path / "bag" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert (information["version"], information["storage_identifier"]) == (9, "mcap")
    assert information["duration"]["nanoseconds"] == 10**8
    assert (tmp_path / "bag" / information["relative_file_paths"][0]).is_file()
    for topic in information["topics_with_message_count"]:
        (qos,) = topic["topic_metadata"]["offered_qos_profiles"]
        assert (qos["reliability"], qos["durability"], qos["history"]) == (
            "reliable",
            "volatile",
            "keep_last",
        )


def test_bag_refuses_to_overwrite_and_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "bag").mkdir()
    with pytest.raises(DatasetError, match="exists already"):
        write_bag(tmp_path / "bag", SyntheticWarehouse(1, 64, 48))
    with pytest.raises(DatasetError, match="no frames"):
        write_bag(tmp_path / "other", [])


def test_truth_at_a_higher_rate_is_written_whole(tmp_path: Path) -> None:
    from rosbags.highlevel import AnyReader

    image = np.zeros((8, 8, 3), np.uint8)
    frames = [Frame(stamp, image) for stamp in (10, 20)]
    truth = Trajectory(np.arange(0, 50, 5), np.tile(np.eye(4), (10, 1, 1)))
    write_bag(tmp_path / "bag", frames, truth)
    with AnyReader([tmp_path / "bag"]) as reader:
        stamps = [stamp for c, stamp, _ in reader.messages() if c.topic == "/ground_truth/pose"]
    assert stamps == truth.stamps_ns.tolist()
