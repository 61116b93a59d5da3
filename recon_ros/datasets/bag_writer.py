# SPDX-License-Identifier: Apache-2.0
"""Writes frames as a rosbag2 recording (mcap) with the topics of an aligned RGB-D camera; needs no ROS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from recon_ros.errors import DatasetError
from recon_ros.frame import Frame, Trajectory
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera

IMAGE_TOPIC = "/camera/color/image_raw"
CAMERA_INFO_TOPIC = "/camera/color/camera_info"
DEPTH_TOPIC = "/camera/aligned_depth_to_color/image_raw"
MASK_TOPIC = "/camera/color/mask"
TRUTH_TOPIC = "/ground_truth/pose"
JPEG_QUALITY = 95
DEPTH_UNIT = 0.001  # metres of one count of a 16UC1 image

_FOREVER = QosTime(0, 0)
# Reliable and volatile: what `ros2 bag play` then offers suits every subscriber but a transient-local one.
_QOS = Qos(
    QosHistory.KEEP_LAST,
    10,
    QosReliability.RELIABLE,
    QosDurability.VOLATILE,
    _FOREVER,
    _FOREVER,
    QosLiveliness.AUTOMATIC,
    _FOREVER,
    False,
)


class BagWriter:
    """An open bag; use it as a context manager and `write` frames in the order of their stamps.

    Args:
        path: folder of the new bag.
        compressed: write colour as JPEG CompressedImage instead of raw rgb8.

    Raises:
        DatasetError: when `path` exists already.
    """

    def __init__(self, path: Path | str, compressed: bool = False) -> None:
        path = Path(path)
        if path.exists():
            raise DatasetError(f"{path} exists already; remove it or choose another name for the bag")
        self._compressed = compressed
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        # Chunks of the mcap itself, which every mcap reader opens; depth shrinks most.
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._connections: dict[str, Any] = {}

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._writer.__exit__(kind, error, traceback)

    def write(self, frame: Frame) -> None:
        """Image, camera_info, depth and mask of one frame, all with its stamp; what it has not is left out."""
        header = self._header(frame.stamp_ns, frame.frame_id)
        if self._compressed:
            self._send(IMAGE_TOPIC + "/compressed", frame.stamp_ns, self._jpeg(header, frame.image))
        else:
            self._send(IMAGE_TOPIC, frame.stamp_ns, self._image(header, frame.image, "rgb8"))
        if frame.camera is not None:
            self._send(CAMERA_INFO_TOPIC, frame.stamp_ns, self._camera_info(header, frame.camera))
        if frame.depth is not None:
            self._send(DEPTH_TOPIC, frame.stamp_ns, self._image(header, millimetres(frame.depth), "16UC1"))
        if frame.mask is not None:
            self._send(MASK_TOPIC, frame.stamp_ns, self._image(header, frame.mask * np.uint8(255), "mono8"))

    def write_truth(self, stamp_ns: int, T_world_camera: NDArray[np.float64]) -> None:
        """The true pose of the optical frame in `world`."""
        t = self._types.types
        x, y, z = T_world_camera[:3, 3].tolist()
        qx, qy, qz, qw = se3.quaternion(T_world_camera).tolist()
        pose = t["geometry_msgs/msg/Pose"](
            position=t["geometry_msgs/msg/Point"](x=x, y=y, z=z),
            orientation=t["geometry_msgs/msg/Quaternion"](x=qx, y=qy, z=qz, w=qw),
        )
        header = self._header(stamp_ns, "world")
        self._send(TRUTH_TOPIC, stamp_ns, t["geometry_msgs/msg/PoseStamped"](header=header, pose=pose))

    def _send(self, topic: str, stamp_ns: int, message: Any) -> None:
        kind = message.__msgtype__
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._types, offered_qos_profiles=[_QOS]
            )
        self._writer.write(self._connections[topic], stamp_ns, self._types.serialize_cdr(message, kind))

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        seconds, nanoseconds = divmod(int(stamp_ns), 10**9)
        stamp = self._types.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
        return self._types.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)

    def _image(self, header: Any, pixels: NDArray[Any], encoding: str) -> Any:
        height, width = pixels.shape[:2]
        data = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1)
        return self._types.types["sensor_msgs/msg/Image"](
            header=header,
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=len(data) // height,
            data=data,
        )

    def _jpeg(self, header: Any, rgb: NDArray[np.uint8]) -> Any:
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), quality)
        return self._types.types["sensor_msgs/msg/CompressedImage"](header=header, format="jpeg", data=data.reshape(-1))

    def _camera_info(self, header: Any, camera: Camera) -> Any:
        projection = np.hstack([camera.K, np.zeros((3, 1))])
        known = camera.model not in ("", "none")
        return self._types.types["sensor_msgs/msg/CameraInfo"](
            header=header,
            height=camera.height,
            width=camera.width,
            distortion_model=camera.model if known else "plumb_bob",
            d=camera.D.copy() if known else np.zeros(5),
            k=camera.K.ravel(),
            r=np.eye(3).ravel(),
            p=projection.ravel(),
            binning_x=0,
            binning_y=0,
            roi=self._types.types["sensor_msgs/msg/RegionOfInterest"](
                x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
            ),
        )


def write_bag(
    path: Path | str,
    frames: Iterable[Frame],
    ground_truth: Trajectory | None = None,
    *,
    compressed: bool = False,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a whole recording.

    Args:
        path: folder of the new bag.
        frames: in the order of their stamps.
        ground_truth: true poses T_world_camera, at any rate, for `TRUTH_TOPIC`.
        compressed: colour as JPEG instead of raw.
        progress: called with the number of frames written so far after each.

    Returns:
        The number of frames written.

    Raises:
        DatasetError: when `path` exists already or there are no frames.
    """
    count = 0
    truth = list(zip(ground_truth.stamps_ns.tolist(), ground_truth.poses, strict=True)) if ground_truth else []
    with BagWriter(path, compressed) as bag:
        for frame in frames:
            while truth and truth[0][0] <= frame.stamp_ns:
                bag.write_truth(*truth.pop(0))
            bag.write(frame)
            count += 1
            if progress is not None:
                progress(count)
        if count == 0:
            raise DatasetError(f"there are no frames to write to {path}")
        for stamp_ns, pose in truth:
            bag.write_truth(stamp_ns, pose)
    return count


def millimetres(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """(H, W) float32 metres to uint16 counts of a 16UC1 image; NaN and what does not fit become 0."""
    counts = np.round(np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0) / DEPTH_UNIT)
    return np.where((counts > 0) & (counts <= 65535), counts, 0).astype(np.uint16)
