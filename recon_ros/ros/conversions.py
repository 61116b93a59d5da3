# SPDX-License-Identifier: Apache-2.0
"""numpy to ROS messages. Arrays go through `array.array`, which rosidl takes as it is; stamps stay integers.

Assigning bytes, a list or an ndarray to a ``uint8[]`` field costs a check per element (hundreds of ms per
cloud); an ``array.array('B')`` costs one copy.
"""

from __future__ import annotations

import array
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, Transform, TransformStamped
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera

ENCODINGS = {("uint8", 3): "rgb8", ("uint8", 1): "mono8", ("uint16", 1): "16UC1", ("float32", 1): "32FC1"}

XYZRGB = ("x", "y", "z", "rgb")
_DATATYPES = {"label": PointField.UINT32, "block": PointField.UINT32}


def time_message(stamp_ns: int) -> Time:
    """builtin_interfaces/Time of integer nanoseconds, exactly."""
    return Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)


def header(stamp_ns: int, frame_id: str) -> Header:
    return Header(stamp=time_message(stamp_ns), frame_id=frame_id)


def buffer_of(values: NDArray[Any]) -> array.array[int]:
    """The bytes of an array as the ``array.array('B')`` that message setters take unchecked."""
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
    return data


def image_message(image: NDArray[Any], stamp_ns: int, frame_id: str) -> Image:
    """sensor_msgs/Image of (H, W) uint8, uint16 or float32, or of (H, W, 3) uint8 RGB."""
    channels = image.shape[2] if image.ndim == 3 else 1
    message = Image(header=header(stamp_ns, frame_id))
    message.height, message.width = image.shape[:2]
    message.encoding = ENCODINGS[image.dtype.name, channels]
    message.step = image.shape[1] * channels * image.itemsize
    message.data = buffer_of(image)
    return message


def camera_info_message(camera: Camera, stamp_ns: int, frame_id: str) -> CameraInfo:
    """sensor_msgs/CameraInfo of a pinhole or distorted camera; P is K with no baseline."""
    message = CameraInfo(header=header(stamp_ns, frame_id), width=camera.width, height=camera.height)
    message.distortion_model = "plumb_bob" if camera.model in ("", "none") else camera.model
    message.d = camera.D.tolist() or [0.0] * 5
    message.k = camera.K.ravel()
    message.r = np.eye(3).ravel()
    message.p = np.hstack([camera.K, np.zeros((3, 1))]).ravel()
    return message


def cloud_message(
    points: NDArray[np.float32],
    colours: NDArray[np.uint8],
    stamp_ns: int,
    frame_id: str,
    confidence: NDArray[np.float32] | None = None,
    labels: NDArray[np.uint32] | None = None,
    blocks: NDArray[np.uint32] | None = None,
) -> PointCloud2:
    """sensor_msgs/PointCloud2 of (N, 3) finite points in metres, (N, 3) RGB and what else is given, (N,) each.

    16 bytes a point, and 4 for each further field: ``confidence``, ``label`` (PCL's uint32), ``block`` (uint32). The
    colour is PCL's: 0x00RRGGBB in the bits of a float named ``rgb``.
    """
    given = {"confidence": confidence, "label": labels, "block": blocks}
    besides = {name: values for name, values in given.items() if values is not None}
    names = (*XYZRGB, *besides)
    message = PointCloud2(header=header(stamp_ns, frame_id))
    message.fields = [
        PointField(name=name, offset=4 * i, datatype=_DATATYPES.get(name, PointField.FLOAT32), count=1)
        for i, name in enumerate(names)
    ]
    message.height, message.width = 1, len(points)
    message.point_step = 4 * len(names)
    message.row_step = message.point_step * message.width
    message.is_bigendian, message.is_dense = False, True
    # Packed in place, in the memory the message will own: one allocation and no copy.
    message.data = array.array("B", [0]) * message.row_step
    packed = np.frombuffer(message.data, "<f4").reshape(len(points), len(names))
    for axis in range(3):  # three strided copies are three times as fast as one of (N, 3)
        packed[:, axis] = points[:, axis]
    if len(points):
        bgra = cv2.cvtColor(colours.reshape(1, -1, 3), cv2.COLOR_RGB2BGRA).view("<u4").ravel()
        np.bitwise_and(bgra, 0x00FFFFFF, out=packed.view("<u4")[:, 3])
    for column, values in enumerate(besides.values(), len(XYZRGB)):
        packed.view(values.dtype.newbyteorder("<"))[:, column] = values
    return message


def pose_message(T: se3.Matrix) -> Pose:
    """geometry_msgs/Pose of a (4, 4) SE(3) or Sim(3) matrix; the scale is left out."""
    return pose_from_row([*T[:3, 3].tolist(), *se3.quaternion(T).tolist()])


def pose_rows(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 7) rows x y z qx qy qz qw of (N, 4, 4) SE(3) matrices, all at once: scipy takes as long for one."""
    if not len(poses):
        return np.zeros((0, 7))
    return np.hstack([poses[:, :3, 3], Rotation.from_matrix(poses[:, :3, :3]).as_quat()])


def pose_from_row(row: list[float]) -> Pose:
    """geometry_msgs/Pose of one row of `pose_rows`."""
    pose = Pose()
    p, q = pose.position, pose.orientation
    p.x, p.y, p.z, q.x, q.y, q.z, q.w = row
    return pose


def transform_message(T_parent_child: se3.Matrix, stamp_ns: int, parent: str, child: str) -> TransformStamped:
    """geometry_msgs/TransformStamped of the pose of `child` in `parent`."""
    pose = pose_message(T_parent_child)
    transform = Transform(rotation=pose.orientation)
    transform.translation.x = pose.position.x
    transform.translation.y = pose.position.y
    transform.translation.z = pose.position.z
    return TransformStamped(header=header(stamp_ns, parent), child_frame_id=child, transform=transform)


def matrix_from_pose(pose: Any) -> se3.Matrix:
    """(4, 4) of a geometry_msgs/Pose; NaN where the quaternion is zero or anything is not finite."""
    return _matrix(pose.position, pose.orientation)


def matrix_from_transform(transform: Any) -> se3.Matrix:
    """(4, 4) of a geometry_msgs/Transform; NaN where the quaternion is zero or anything is not finite."""
    return _matrix(transform.translation, transform.rotation)


def _matrix(position: Any, orientation: Any) -> se3.Matrix:
    t = np.array([position.x, position.y, position.z])
    q = np.array([orientation.x, orientation.y, orientation.z, orientation.w])
    norm = np.linalg.norm(q)
    if not np.all(np.isfinite(t)) or not np.isfinite(norm) or norm < 1e-6:
        return np.full((4, 4), np.nan)
    return se3.from_quaternion(t, q / norm)
