# SPDX-License-Identifier: Apache-2.0
"""Recordings as frames: every kind of file, topics found by type, exact stamps, ground truth."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from message_factory import (
    SECOND,
    START,
    STORE,
    camera_info,
    compressed,
    encoded,
    header,
    image,
    make,
    pose,
    pose_stamped,
    rgbd_messages,
    transform_stamped,
    write_bag,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from recon_ros.datasets.rosbag import BagReader, Topics
from recon_ros.errors import DatasetError

COUNT = 12
STEP = SECOND // 30
STAMPS = [START + i * STEP for i in range(COUNT)]
HOLO_WALK = Path(__file__).parents[2] / "shared" / "data" / "holo_walk"

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
DEPTH = np.random.default_rng(1).integers(1, 5000, (48, 64), dtype=np.uint16)


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    """A small RGB-D recording as a rosbag2 folder with one mcap."""
    return write_bag(tmp_path_factory.mktemp("bags") / "rgbd", rgbd_messages(COUNT))


def stamps_of(path: Path, **options) -> list[int]:
    with BagReader(path, **options) as reader:
        return [frame.stamp_ns for frame in reader.frames()]


def mcap_of(folder: Path) -> Path:
    return next(folder.glob("*.mcap"))


# --- whole recordings


def test_frames_have_exact_header_stamps_and_everything_else(bag):
    with BagReader(bag) as reader:
        frames = list(reader.frames())
        assert len(reader) == COUNT and reader.loss is None
        assert [frame.stamp_ns for frame in frames] == STAMPS
        assert all(type(frame.stamp_ns) is int for frame in frames)
        assert frames[0].depth is not None and frames[0].camera.fx == 50 and frames[0].frame_id == "optical"
        assert reader.counters["frames"] == COUNT and reader.counters["unreadable"] == 0
        assert [frame.stamp_ns for frame in reader.frames()] == STAMPS  # once more
        assert reader.counters["frames"] == COUNT


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("mode", [CompressionMode.NONE, CompressionMode.FILE, CompressionMode.MESSAGE])
def test_every_kind_of_rosbag2_is_read(tmp_path, plugin, mode):
    path = tmp_path / "bag"
    writer = Writer(path, version=9, storage_plugin=plugin)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, time_ns, msg in rgbd_messages(3):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msg.__msgtype__, typestore=STORE)
            writer.write(connections[topic], time_ns, STORE.serialize_cdr(msg, msg.__msgtype__))
    assert stamps_of(path) == STAMPS[:3]
    if mode == CompressionMode.NONE:
        assert stamps_of(next(p for p in path.iterdir() if p.suffix in (".mcap", ".db3"))) == STAMPS[:3]


def test_zstd_chunks_are_read(tmp_path):
    assert stamps_of(write_bag(tmp_path / "bag", rgbd_messages(COUNT), zstd=True)) == STAMPS


@pytest.mark.parametrize("metadata", [None, "", "rosbag2_bagfile_information: [", "something: else"])
def test_metadata_may_be_missing_or_damaged(bag, tmp_path, metadata):
    shutil.copy(mcap_of(bag), tmp_path / "recording_0.mcap")
    if metadata is not None:
        (tmp_path / "metadata.yaml").write_text(metadata)
    assert stamps_of(tmp_path) == STAMPS


def test_split_recordings_are_put_together_in_natural_order(tmp_path):
    for part in range(11):
        folder = write_bag(tmp_path / "parts" / str(part), rgbd_messages(2, start=START + part * SECOND))
        (tmp_path / "bag").mkdir(exist_ok=True)
        mcap_of(folder).rename(tmp_path / "bag" / f"bag_{part}.mcap")
    with BagReader(tmp_path / "bag") as reader:
        stamps = [frame.stamp_ns for frame in reader.frames()]
        assert len(reader) == len(stamps) == 22 and stamps == sorted(stamps)
        times = [time_ns for _, _, time_ns, _ in reader.raw_messages()]
        assert times == sorted(times)


def test_an_index_is_not_needed(bag, tmp_path):
    """Writers may leave chunks and index away; rosbags then refuses what is not in the order of time."""
    writer_module = pytest.importorskip("mcap.writer")
    path = tmp_path / "plain.mcap"
    with path.open("wb") as file, BagReader(bag) as reader:
        writer = writer_module.Writer(file, use_chunking=False, index_types=writer_module.IndexType.NONE)
        writer.start(profile="ros2")
        channels = {}
        for topic, msgtype, time_ns, data in reader.raw_messages():
            if topic not in channels:
                text = STORE.generate_msgdef(msgtype, ros_version=2)[0].encode()
                schema = writer.register_schema(msgtype, "ros2msg", text)
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            late = 5 * SECOND if topic == "/ground_truth/pose" else 0
            writer.add_message(channels[topic], log_time=time_ns + late, publish_time=time_ns, data=data)
        writer.finish()
    with BagReader(path) as reader:
        assert [frame.stamp_ns for frame in reader.frames()] == STAMPS
        assert sum(1 for _ in reader.raw_messages()) == 4 * COUNT
        assert reader.loss is None


def test_definitions_in_the_recording_are_used(tmp_path):
    """A type nobody knows, and one that cannot be parsed, beside the camera do no harm."""
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("uint32 number", "own_msgs/msg/Own"))
    path = tmp_path / "bag"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        own = writer.add_connection("/own", "own_msgs/msg/Own", typestore=store)
        odd = writer.add_connection("/odd", "odd_msgs/msg/Odd", msgdef="no such(type", rihs01="RIHS01_0")
        for connection in (own, odd):
            writer.write(connection, START, b"\0\1\0\0\7\0\0\0")
        connections = {}
        for topic, time_ns, msg in rgbd_messages(2):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msg.__msgtype__, typestore=STORE)
            writer.write(connections[topic], time_ns, STORE.serialize_cdr(msg, msg.__msgtype__))
    with BagReader(path) as reader:
        assert len(list(reader.frames())) == 2
        assert {msgtype for _, msgtype, _, _ in reader.raw_messages(["/own"])} == {"own_msgs/msg/Own"}


def test_definitions_may_be_missing_or_incomplete(bag, tmp_path):
    writer_module = pytest.importorskip("mcap.writer")
    path = tmp_path / "bare.mcap"
    with path.open("wb") as file, BagReader(bag) as reader:
        writer = writer_module.Writer(file)
        writer.start(profile="ros2")
        channels = {}
        for topic, msgtype, time_ns, data in reader.raw_messages():
            if topic not in channels:
                text = b"std_msgs/Header header" if msgtype.endswith("CameraInfo") else b""
                schema = writer.register_schema(msgtype, "ros2msg" if text else "", text)
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            writer.add_message(channels[topic], log_time=time_ns, publish_time=time_ns, data=data)
        writer.finish()
    assert stamps_of(path) == STAMPS


def test_ros1_bags_are_read(tmp_path):
    rosbag1 = pytest.importorskip("rosbags.rosbag1")
    store = get_typestore(Stores.ROS1_NOETIC)
    stamp = store.types["builtin_interfaces/msg/Time"](sec=START // SECOND, nanosec=5)
    head = store.types["std_msgs/msg/Header"](seq=0, stamp=stamp, frame_id="optical")
    roi = store.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    info = store.types["sensor_msgs/msg/CameraInfo"](
        header=head,
        height=48,
        width=64,
        distortion_model="plumb_bob",
        D=np.zeros(5),
        K=np.array([50, 0, 32, 0, 50, 24, 0, 0, 1.0]),
        R=np.zeros(9),
        P=np.zeros(12),
        binning_x=0,
        binning_y=0,
        roi=roi,
    )
    picture = store.types["sensor_msgs/msg/Image"](head, 48, 64, "rgb8", 0, 64 * 3, PICTURE.ravel())
    with rosbag1.Writer(tmp_path / "old.bag") as writer:
        for topic, msg in {"/camera/image_raw": picture, "/camera/camera_info": info}.items():
            connection = writer.add_connection(topic, msg.__msgtype__, typestore=store)
            writer.write(connection, START, store.serialize_ros1(msg, msg.__msgtype__))
    with BagReader(tmp_path / "old.bag", use_depth=False) as reader:
        (frame,) = reader.frames()
        assert frame.stamp_ns == START + 5 and frame.camera.fx == 50
        np.testing.assert_array_equal(frame.image, PICTURE)
        with pytest.raises(DatasetError, match="ROS 1"):
            reader.raw_messages()


def test_raw_messages_are_those_written(bag):
    written = rgbd_messages(COUNT)
    with BagReader(bag) as reader:
        raw = list(reader.raw_messages())
        assert [(topic, time_ns) for topic, _, time_ns, _ in raw] == [(t, time_ns) for t, time_ns, _ in written]
        for (_, msgtype, _, data), (_, _, msg) in zip(raw, written, strict=True):
            assert msgtype == msg.__msgtype__ and data == STORE.serialize_cdr(msg, msgtype).tobytes()
        assert {topic for topic, *_ in reader.raw_messages(["/ground_truth/pose"])} == {"/ground_truth/pose"}


# --- topics


def topics_of(tmp_path: Path, messages: dict[str, object], **options) -> Topics:
    path = write_bag(tmp_path / "bag", [(topic, START, msg) for topic, msg in messages.items()])
    with BagReader(path, **{"require_camera": False, "use_depth": False, **options}) as reader:
        return reader.topics


def test_topics_of_a_realsense(tmp_path):
    small = DEPTH[::2, ::2]
    topics = topics_of(
        tmp_path,
        {
            "/camera/infra1/image_rect_raw": image(PICTURE[..., 0], "mono8"),
            "/camera/infra1/camera_info": camera_info(),
            "/camera/depth/image_rect_raw": image(small, "16UC1"),
            "/camera/depth/camera_info": camera_info(32, 24),
            "/camera/aligned_depth_to_color/image_raw": image(DEPTH, "16UC1"),
            "/camera/aligned_depth_to_color/camera_info": camera_info(),
            "/camera/color/image_raw/compressed": compressed(encoded(PICTURE, ".jpg"), "rgb8; jpeg compressed bgr8"),
            "/camera/color/image_raw": image(PICTURE, "rgb8"),
            "/camera/color/camera_info": camera_info(),
        },
    )
    assert topics == Topics(
        "/camera/color/image_raw", "/camera/color/camera_info", "/camera/aligned_depth_to_color/image_raw"
    )


def test_depth_of_the_size_of_the_image_is_preferred(tmp_path):
    messages = {
        "/a/range": image(DEPTH[::2, ::2], "16UC1"),
        "/b/range": image(DEPTH, "16UC1"),
        "/c/image": image(PICTURE, "rgb8"),
        "/d/range": image(DEPTH[::3, ::3], "16UC1"),
    }
    assert topics_of(tmp_path, messages) == Topics(image="/c/image", depth="/b/range")


def test_names_that_mislead_are_seen_through_by_the_encoding(tmp_path):
    topics = topics_of(
        tmp_path,
        {
            "/depth_camera/image_raw": image(PICTURE, "rgb8"),
            "/depth_camera/camera_info": camera_info(),
            "/depth_camera/range": image(DEPTH.astype(np.float32), "32FC1"),
        },
    )
    assert topics == Topics("/depth_camera/image_raw", "/depth_camera/camera_info", "/depth_camera/range")


def test_topics_of_a_compressed_recording(tmp_path):
    topics = topics_of(
        tmp_path,
        {
            "/other/camera_info": camera_info(),
            "/oak/rgb/image_raw/compressed": compressed(encoded(PICTURE, ".jpg"), "jpeg"),
            "/oak/rgb/camera_info": camera_info(),
            "/oak/stereo/image_raw/compressedDepth": compressed(
                bytes(12) + encoded(DEPTH, ".png"), "16UC1; compressedDepth png"
            ),
        },
    )
    assert topics == Topics(
        "/oak/rgb/image_raw/compressed", "/oak/rgb/camera_info", "/oak/stereo/image_raw/compressedDepth"
    )


def test_the_first_camera_of_a_rig_is_taken_and_given_topics_win(tmp_path):
    messages = {
        f"/cam{i}/{name}": msg
        for i in (1, 0)
        for name, msg in (("image_raw", image(PICTURE[..., 0], "mono8")), ("camera_info", camera_info()))
    }
    assert topics_of(tmp_path / "a", messages) == Topics("/cam0/image_raw", "/cam0/camera_info")
    given = topics_of(tmp_path / "b", messages, topics=Topics(image="/cam1/image_raw"))
    assert given == Topics("/cam1/image_raw", "/cam1/camera_info")


@pytest.mark.parametrize(
    ("topics", "text"),
    [
        (Topics(image="/nowhere"), "image topic '/nowhere' is not in .*/camera/color/image_raw"),
        (
            Topics(depth="/camera/color/camera_info"),
            "depth topic .* is of type sensor_msgs/msg/CameraInfo; it must be",
        ),
    ],
)
def test_given_topics_are_checked(bag, topics, text):
    with pytest.raises(DatasetError, match=text):
        BagReader(bag, topics)


def test_a_recording_without_images_names_what_it_has(tmp_path):
    path = write_bag(tmp_path / "bag", [("/pose", START, pose_stamped(START, (0, 0, 0)))])
    with pytest.raises(DatasetError, match=r"no image .*/pose \(geometry_msgs/msg/PoseStamped, 1\)"):
        BagReader(path)


def test_what_is_asked_for_must_be_there(tmp_path):
    path = write_bag(tmp_path / "bag", [("/image", START, image(PICTURE, "rgb8"))])
    with pytest.raises(DatasetError, match="no depth topic"):
        BagReader(path)
    with pytest.raises(DatasetError, match="no camera_info topic"):
        BagReader(path, use_depth=False)
    with BagReader(path, use_depth=False, require_camera=False) as reader:
        (frame,) = reader.frames()
        assert frame.camera is None and frame.depth is None


# --- messages


def test_camera_info_after_the_first_image_counts_for_it(tmp_path):
    messages = [
        ("/c/image", START, image(PICTURE, "rgb8")),
        ("/c/camera_info", START + 1, camera_info()),
        ("/c/image", START + STEP, image(PICTURE, "rgb8", stamp_ns=START + STEP)),
    ]
    assert stamps_of(write_bag(tmp_path / "bag", messages), use_depth=False) == [START, START + STEP]


def test_unusable_messages_are_skipped_and_counted(tmp_path):
    messages = rgbd_messages(6)
    color, depth = messages[0][0], messages[2][0]
    messages[4 * 1] = (color, messages[4][1], image(PICTURE[..., 0], "bayer_rggb8", stamp_ns=STAMPS[1]))
    messages[4 * 2] = (color, messages[8][1], ("sensor_msgs/msg/Image", b"\0\1\0\0broken"))
    messages[4 * 3 + 2] = (depth, messages[14][1], image(0 * DEPTH, "16UC1", stamp_ns=STAMPS[3]))
    messages[4 * 4 + 2] = (depth, messages[18][1], image(DEPTH, "16UC1", stamp_ns=STAMPS[4] + 40_000_000))
    with BagReader(write_bag(tmp_path / "bag", messages)) as reader:
        assert [frame.stamp_ns for frame in reader.frames()] == [STAMPS[0], STAMPS[5]]
        counters = reader.counters
    assert counters["unreadable"] == counters["skipped_encoding"] == counters["skipped_depth_empty"] == 1
    assert counters["unpaired_images"] == 1 and counters["unpaired_depths"] == 2
    assert counters["received_images"] == 5 and counters["received_depths"] == 6


# --- ground truth


def odometry(stamp_ns: int, position) -> object:
    covariance = np.zeros(36)
    zero = make("geometry_msgs/Vector3", 0.0, 0.0, 0.0)
    return make(
        "nav_msgs/Odometry",
        header=header(stamp_ns, "world"),
        child_frame_id="optical",
        pose=make("geometry_msgs/PoseWithCovariance", pose(position), covariance),
        twist=make("geometry_msgs/TwistWithCovariance", make("geometry_msgs/Twist", zero, zero), covariance),
    )


TRUTHS = {
    "PoseStamped": ("/ground_truth/pose", lambda s, p: pose_stamped(s, p)),
    "TransformStamped": ("/vicon/gt", lambda s, p: transform_stamped(s, "optical", p)),
    "Odometry": ("/groundtruth_odometry", odometry),
}


@pytest.mark.parametrize("kind", TRUTHS)
def test_ground_truth_of_each_type(tmp_path, kind):
    topic, message = TRUTHS[kind]
    messages = [m for m in rgbd_messages(3) if not m[0].startswith("/ground_truth")]
    messages += [(topic, START + SECOND, message(stamp, (i, 2 * i, 3))) for i, stamp in enumerate(STAMPS[:3])]
    with BagReader(write_bag(tmp_path / "bag", messages)) as reader:
        assert reader.topics.ground_truth == topic
        truth = reader.ground_truth()
    assert truth.stamps_ns.tolist() == STAMPS[:3] and truth.stamps_ns.dtype == np.int64
    np.testing.assert_array_equal(truth.positions, [[i, 2 * i, 3] for i in range(3)])


@pytest.mark.parametrize(("name", "z"), [("/tf", 7), ("/tf:optical", 7), ("/tf:base", 8), ("/tf:/base", 8)])
def test_ground_truth_from_an_edge_of_tf(tmp_path, name, z):
    edges = [transform_stamped(START, "optical", (0, 0, 7)), transform_stamped(START, "base", (0, 0, 8))]
    messages = [*rgbd_messages(1)[:3], ("/tf", START, make("tf2_msgs/TFMessage", transforms=edges))]
    path = write_bag(tmp_path / "bag", messages)
    with BagReader(path, Topics(ground_truth=name)) as reader:
        assert reader.ground_truth().positions.tolist() == [[0, 0, z]]
    with BagReader(path) as reader:
        assert reader.ground_truth() is None


def test_unusable_ground_truth_is_left_out_and_the_rest_is_sorted(tmp_path):
    truth = [
        pose_stamped(STAMPS[2], (2, 0, 0)),
        pose_stamped(STAMPS[0], (0, 0, 0)),
        pose_stamped(STAMPS[1], (np.nan, 0, 0)),
        pose_stamped(STAMPS[3], (3, 0, 0), xyzw=(0, 0, 0, 0)),
    ]
    messages = [*rgbd_messages(1)[:3], *[("/gt", START, msg) for msg in truth]]
    with BagReader(write_bag(tmp_path / "bag", messages)) as reader:
        assert reader.ground_truth().stamps_ns.tolist() == [STAMPS[0], STAMPS[2]]


# --- the real recording


@pytest.mark.data
@pytest.mark.skipif(not HOLO_WALK.exists(), reason="needs ../shared/data/holo_walk")
def test_holo_walk():
    with BagReader(HOLO_WALK) as reader:
        assert reader.topics == Topics(
            "/camera/color/image_raw/compressed",
            "/camera/color/camera_info",
            "/camera/aligned_depth_to_color/image_raw",
            "/ground_truth/pose",
        )
        assert len(reader) == 373
        stamps, last = [], None
        for last in reader.frames():
            stamps.append(last.stamp_ns)
        truth = reader.ground_truth()
        assert reader.loss is None and reader.counters["frames"] == reader.counters["received_depths"] == 373
    assert stamps == [1_600_000_000_000_000_000 + i * 100_000_000 for i in range(373)]
    assert last.image.shape == (360, 540, 3) and last.depth.shape == (360, 540)
    assert (last.camera.width, last.camera.height) == (540, 360) and not last.camera.is_distorted
    assert last.camera.fx == pytest.approx(495.568, abs=1e-3) and 0.3 < np.nanmedian(last.depth) < 10
    assert truth.stamps_ns.tolist() == stamps
    assert np.linalg.norm(np.diff(truth.positions, axis=0), axis=1).sum() == pytest.approx(30.6, abs=0.3)
