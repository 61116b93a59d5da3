# SPDX-License-Identifier: Apache-2.0
"""The node's topics, services and TF edges as data: the node creates them from here, README prints them from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu, PointCloud2
from std_srvs.srv import SetBool, Trigger

from recon_ros.ros import qos


@dataclass(frozen=True)
class Topic:
    """A topic: name as given to ROS, message type, profile of `qos.make`, when it is used, what it holds."""

    name: str
    type: Any
    qos: str
    when: str
    note: str


@dataclass(frozen=True)
class ServiceName:
    """A service: name as given to ROS, type, what it does."""

    name: str
    type: Any
    note: str


IMAGE = Topic("image", Image, "sensor", "image_transport: raw", "rgb8, bgr8, mono8, rgba8, bgra8, yuv422")
IMAGE_COMPRESSED = Topic(
    "image/compressed",
    CompressedImage,
    "sensor",
    "image_transport: compressed",
    "JPEG or PNG; remap `image`, the suffix follows",
)
CAMERA_INFO = Topic("camera_info", CameraInfo, "sensor", "always", "calibration of the image, kept and checked")
DEPTH = Topic("depth", Image, "sensor", "use_depth, depth_transport: raw", "16UC1 or 32FC1, registered to the image")
DEPTH_COMPRESSED = Topic(
    "depth/compressedDepth",
    CompressedImage,
    "sensor",
    "use_depth, depth_transport: compressed",
    "PNG; remap `depth`, the suffix follows",
)
MASK = Topic(
    "mask",
    Image,
    "sensor",
    "input.mask",
    "mono8 with the image's stamp; pixels that are not 0 stay out of tracking and map, images wait for it",
)
OBJECT_MASK = Topic(
    "object_mask",
    Image,
    "sensor",
    "always",
    "mono8 or mono16 with an image's stamp, 0 or labels: what ~/object_points shows; excludes nothing",
)
ODOM = Topic("odom", Odometry, "sensor", "odom_source: topic", "pose prior, and the source of odom → base")
IMU = Topic("imu", Imu, "sensor", "gravity: imu", "which way is down; TF must have its frame → the camera's")
INITIAL_POSE = Topic(
    "initialpose",
    PoseWithCovarianceStamped,
    "standard",
    "always",
    "base in `map_frame`, as from rviz's 2D Pose Estimate: where a lost camera is looked for first; with `mode` "
    "localization a tracked one, too",
)

SUBSCRIPTIONS = (
    IMAGE,
    IMAGE_COMPRESSED,
    CAMERA_INFO,
    DEPTH,
    DEPTH_COMPRESSED,
    MASK,
    OBJECT_MASK,
    ODOM,
    IMU,
    INITIAL_POSE,
)

ODOMETRY = Topic(
    "~/odometry",
    Odometry,
    "standard",
    "every tracked frame",
    "`odom_frame` → `base_frame`; twist by finite difference",
)
POSE = Topic("~/pose", PoseWithCovarianceStamped, "standard", "every tracked frame", "base in `map_frame`")
PATH = Topic(
    "~/path",
    Path,
    "latched",
    "every `path_period`",
    "base in `map_frame`, after all corrections, at most `path_max_size`",
)
DEPTH_OUT = Topic("~/depth/image", Image, "large", "every processed frame", "32FC1 metres, NaN where there is none")
DEPTH_INFO = Topic("~/depth/camera_info", CameraInfo, "large", "with ~/depth/image", "pinhole of that image")
CONFIDENCE = Topic(
    "~/confidence/image",
    Image,
    "large",
    "every processed frame",
    "32FC1 of the depth image's size; 0 where `mask` excludes",
)
POINTS = Topic(
    "~/points",
    PointCloud2,
    "large",
    "every keyframe",
    "x y z rgb confidence in `points_frame`, strided, only confident points",
)
OBJECT_POINTS = Topic(
    "~/object_points",
    PointCloud2,
    "large",
    "every `object_mask`",
    "x y z rgb confidence label of all pixels of the object, in the camera's frame, at the image's stamp",
)
MAP = Topic(
    "~/map",
    PointCloud2,
    "latched",
    "every `map_publish_period` if it changed",
    "x y z rgb in `map_frame`, at most `map.max_points`",
)
MAP_UPDATES = Topic(
    "~/map_updates",
    PointCloud2,
    "standard",
    "every `map_publish_period`, what changed",
    "x y z rgb block in `map_frame`: all points of each block that changed, in place of what was known of it, or one "
    "point of NaN when nothing is left; all blocks for whoever begins to listen",
)
KEYFRAMES = Topic(
    "~/keyframes",
    PoseArray,
    "latched",
    "on change",
    "base poses in `map_frame`, by keyframe id, after corrections",
)
STATUS = Topic(
    "~/status",
    DiagnosticStatus,
    "standard",
    "every processed frame, else 1 Hz",
    "state and counters as key-values",
)
DIAGNOSTICS = Topic(
    "/diagnostics", DiagnosticArray, "standard", "1 Hz, steady clock", "input, tracking, performance, memory, engine"
)

PUBLICATIONS = (
    ODOMETRY,
    POSE,
    PATH,
    DEPTH_OUT,
    DEPTH_INFO,
    CONFIDENCE,
    POINTS,
    OBJECT_POINTS,
    MAP,
    MAP_UPDATES,
    KEYFRAMES,
    STATUS,
    DIAGNOSTICS,
)

RESET = ServiceName("~/reset", Trigger, "forgets map, poses and memory; answers when it is done")
PAUSE = ServiceName("~/pause", SetBool, "true: frames are dropped and counted, the state is kept")
SAVE_MAP = ServiceName(
    "~/save_map",
    Trigger,
    "writes the whole map, with map.ply, trajectory.tum, keyframes.tum, config.yaml for other tools, to `map.path`, or "
    "to a dated folder in `map.directory`; answers with the path",
)
LOAD_MAP = ServiceName(
    "~/load_map",
    Trigger,
    "goes on with the map in `map.path` in place of the present one: LOST until the camera is recognised in it",
)
LOCALIZE_ONLY = ServiceName("~/localize_only", SetBool, "true: the map stays as it is (`mode` localization)")

SERVICES = (RESET, PAUSE, SAVE_MAP, LOAD_MAP, LOCALIZE_ONLY)

TF_EDGES = (
    ("map_frame → odom_frame", "always", "identity until a correction; dated `transform_tolerance` ahead"),
    ("odom_frame → base_frame", "odom_source: none", "at the image's stamp; not while LOST"),
    ("base_frame → camera", "publish_camera_tf, or when TF has none and base_to_camera is empty", "static"),
)


def type_name(message: Any) -> str:
    """``sensor_msgs/Image`` of the class."""
    return f"{message.__module__.split('.')[0]}/{message.__name__}"


def markdown() -> str:
    """The README's interface tables."""
    lines: list[str] = []
    for title, topics in (("Subscriptions", SUBSCRIPTIONS), ("Publications", PUBLICATIONS)):
        lines += [f"**{title}**", "", "| topic | type | QoS | when | note |", "|---|---|---|---|---|"]
        lines += [f"| `{t.name}` | {type_name(t.type)} | {qos.describe(t.qos)} | {t.when} | {t.note} |" for t in topics]
        lines.append("")
    lines += ["**TF**", "", "| edge | when | note |", "|---|---|---|"]
    lines += [f"| {edge} | {when} | {note} |" for edge, when, note in TF_EDGES]
    lines += ["", "**Services**", "", "| service | type | what it does |", "|---|---|---|"]
    lines += [f"| `{s.name}` | {type_name(s.type)} | {s.note} |" for s in SERVICES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
