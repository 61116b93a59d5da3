# SPDX-License-Identifier: Apache-2.0
"""ROS messages and small recordings for tests, made with rosbags: no ROS is needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def make(name: str, *args: Any, **kwargs: Any) -> Any:
    package, message = name.split("/")
    return STORE.types[f"{package}/msg/{message}"](*args, **kwargs)


def header(stamp_ns: int = START, frame_id: str = "optical") -> Any:
    stamp = make("builtin_interfaces/Time", sec=stamp_ns // SECOND, nanosec=stamp_ns % SECOND)
    return make("std_msgs/Header", stamp=stamp, frame_id=frame_id)


def image(
    pixels: np.ndarray,
    encoding: str,
    *,
    stamp_ns: int = START,
    padding: int = 0,
    big_endian: bool = False,
    frame_id: str = "optical",
) -> Any:
    """An Image of (H, W) or (H, W, C) pixels, with `padding` bytes behind each row."""
    pixels = np.asarray(pixels)
    height, width = pixels.shape[:2]
    stored = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(">" if big_endian else "<"))
    rows = stored.view(np.uint8).reshape(height, -1)
    rows = np.hstack([rows, np.full((height, padding), 0xAB, dtype=np.uint8)])
    return make(
        "sensor_msgs/Image",
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=rows.shape[1],
        data=rows.ravel(),
    )


def compressed(data: bytes, form: str, *, stamp_ns: int = START) -> Any:
    return make(
        "sensor_msgs/CompressedImage",
        header=header(stamp_ns),
        format=form,
        data=np.frombuffer(data, dtype=np.uint8),
    )


def encoded(pixels: np.ndarray, suffix: str) -> bytes:
    ok, data = cv2.imencode(suffix, pixels)
    assert ok
    return data.tobytes()


def camera_info(
    width: int = 64,
    height: int = 48,
    focal: float = 50.0,
    *,
    stamp_ns: int = START,
    D: Iterable[float] = (),
    model: str = "plumb_bob",
    binning: tuple[int, int] = (0, 0),
    roi: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Any:
    """A CameraInfo with a centred principal point; `roi` is x, y, width, height."""
    K = np.array([focal, 0, (width - 1) / 2, 0, focal, (height - 1) / 2, 0, 0, 1.0])
    x, y, roi_width, roi_height = roi
    return make(
        "sensor_msgs/CameraInfo",
        header=header(stamp_ns),
        height=height,
        width=width,
        distortion_model=model,
        d=np.array(list(D), dtype=np.float64),
        k=K,
        r=np.eye(3).ravel(),
        p=np.zeros(12),
        binning_x=binning[0],
        binning_y=binning[1],
        roi=make(
            "sensor_msgs/RegionOfInterest",
            x_offset=x,
            y_offset=y,
            height=roi_height,
            width=roi_width,
            do_rectify=False,
        ),
    )


def pose(position: Iterable[float] = (0, 0, 0), xyzw: Iterable[float] = (0, 0, 0, 1)) -> Any:
    return make(
        "geometry_msgs/Pose",
        position=make("geometry_msgs/Point", *map(float, position)),
        orientation=make("geometry_msgs/Quaternion", *map(float, xyzw)),
    )


def pose_stamped(stamp_ns: int, position: Iterable[float], xyzw: Iterable[float] = (0, 0, 0, 1)) -> Any:
    return make("geometry_msgs/PoseStamped", header=header(stamp_ns, "world"), pose=pose(position, xyzw))


def transform_stamped(stamp_ns: int, child: str, position: Iterable[float]) -> Any:
    return make(
        "geometry_msgs/TransformStamped",
        header=header(stamp_ns, "world"),
        child_frame_id=child,
        transform=make(
            "geometry_msgs/Transform",
            translation=make("geometry_msgs/Vector3", *map(float, position)),
            rotation=make("geometry_msgs/Quaternion", 0.0, 0.0, 0.0, 1.0),
        ),
    )


Message = tuple[str, int, Any]
"""Topic, time of recording, message object (or bytes with the type: ``(msgtype, data)``)."""


def write_bag(
    path: Path, messages: Iterable[Message], *, plugin: StoragePlugin = StoragePlugin.MCAP, zstd: bool = False
) -> Path:
    """A rosbag2 folder with these messages."""
    connections: dict[str, Any] = {}
    writer = Writer(path, version=9, storage_plugin=plugin)
    if zstd:
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        for topic, time_ns, msg in messages:
            msgtype, data = (
                msg
                if isinstance(msg, tuple)
                else (msg.__msgtype__, STORE.serialize_cdr(msg, msg.__msgtype__).tobytes())
            )
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=STORE)
            writer.write(connections[topic], time_ns, data)
    return path


def rgbd_messages(
    count: int, width: int = 64, height: int = 48, *, start: int = START, step: int = SECOND // 30
) -> list[Message]:
    """A stream of raw RGB-D with camera_info and ground truth; recorded 3 ms after each stamp."""
    rng = np.random.default_rng(0)
    messages: list[Message] = []
    for i in range(count):
        stamp = start + i * step
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        depth = rng.integers(0, 5000, (height, width), dtype=np.uint16)
        time_ns = stamp + 3_000_000
        messages += [
            ("/camera/color/image_raw", time_ns, image(picture, "rgb8", stamp_ns=stamp)),
            ("/camera/color/camera_info", time_ns, camera_info(width, height, stamp_ns=stamp)),
            ("/camera/aligned_depth_to_color/image_raw", time_ns, image(depth, "16UC1", stamp_ns=stamp)),
            ("/ground_truth/pose", time_ns, pose_stamped(stamp, (0.01 * i, 0, 0))),
        ]
    return messages
