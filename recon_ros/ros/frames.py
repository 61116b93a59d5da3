# SPDX-License-Identifier: Apache-2.0
"""From the core's world to the robot's frames map, odom, base (REP-105), and their broadcast.

The core's world is the first camera's optical frame (z forward). The map's is the first base's (x forward, z
up, REP-103): T_map_base = T_base_camera · T_world_camera · T_base_camera⁻¹, so the first base pose is the
identity. Where gravity is known the core's world is level, and so is the map: the first base then stands in it as it
really stood (`Reconstructor.map_from_world`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node

from recon_ros.config import NodeConfig
from recon_ros.frame import Update
from recon_ros.geometry import se3
from recon_ros.ros.conversions import transform_message
from recon_ros.ros.tf import Tf

# Further apart than this, clock and stamps are not of one time: an old bag played without --clock.
SAME_TIME_NS = 10_000_000_000


@dataclass(frozen=True, eq=False)
class Poses:
    """Where everything was at an image's stamp; each (4, 4).

    Attributes:
        T_map_base: by the reconstruction.
        T_odom_base: by odometry; the reconstruction's own when there is no other. None when it did not come.
        T_map_camera: the optical frame.
        T_base_camera: the mount.
    """

    T_map_base: se3.Matrix
    T_odom_base: se3.Matrix | None
    T_map_camera: se3.Matrix
    T_base_camera: se3.Matrix


class Frames:
    """Keeps map → odom, places each frame, and broadcasts.

    Without odometry (`odom_source: none`) odom → base is ours and continuous: when a correction moves the
    past, it goes into map → odom. With odometry, odom → base is the robot's and map → odom what is missing to
    the map.
    """

    def __init__(self, node: Node, config: NodeConfig, tf: Tf) -> None:
        self._node, self._config, self._tf = node, config, tf
        self.transform_tolerance = config.transform_tolerance
        self.reset()

    def reset(self) -> None:
        """The map begins anew."""
        self.T_map_odom = np.eye(4)
        self._reference: tuple[int, se3.Matrix, se3.Matrix] | None = None
        self._known = False
        self._is_live = False
        self._last_sent_ns = 0

    def place(
        self,
        update: Update,
        T_base_camera: se3.Matrix,
        T_odom_base: se3.Matrix | None,
        keyframe_pose: Callable[[int], se3.Matrix | None],
        T_map_world: se3.Matrix | None = None,
    ) -> Poses | None:
        """The poses of a tracked frame, None of another; keeps map → odom up to date.

        `T_odom_base` is odometry's, `keyframe_pose` gives T_world_camera of a keyframe as it stands now, `T_map_world`
        is of a map that is level, or was loaded; None takes the mount.
        """
        if update.T_world_camera is None:
            return None
        T_map_world = T_base_camera if T_map_world is None else T_map_world
        T_map_camera = T_map_world @ update.T_world_camera
        T_map_base = T_map_camera @ se3.inverse(T_base_camera)
        if self._config.odom_source == "none":
            self._follow_correction(T_map_world, keyframe_pose)
            T_odom_base = se3.inverse(self.T_map_odom) @ T_map_base
            self._known = True
        elif T_odom_base is not None:
            self.T_map_odom = T_map_base @ se3.inverse(T_odom_base)
            self._known = True
        self._remember_reference(update, keyframe_pose)
        return Poses(T_map_base, T_odom_base, T_map_camera, T_base_camera)

    def broadcast(self, stamp_ns: int, poses: Poses | None) -> None:
        """odom → base at the image's stamp if it is ours and known (never while LOST), and map → odom."""
        if not self._config.publish_tf:
            return
        config, transforms = self._config, []
        if poses is not None and poses.T_odom_base is not None and config.odom_source == "none":
            transforms.append(transform_message(poses.T_odom_base, stamp_ns, config.odom_frame, config.base_frame))
        self._is_live = abs(self._now() - stamp_ns) < SAME_TIME_NS
        transforms += self._map_odom(self._now() if self._is_live else stamp_ns)
        if transforms:
            self._tf.send(transforms)

    def keep_alive(self) -> None:
        """Broadcast map → odom again, for those who ask between two frames, or after the last."""
        if self._config.publish_tf and self._is_live and (transforms := self._map_odom(self._now())):
            self._tf.send(transforms)

    def _map_odom(self, time_ns: int) -> list[Any]:
        """map → odom, dated ahead; nothing when it is not known, or was sent for that time (tf2 would complain)."""
        stamp_ns = time_ns + round(self.transform_tolerance * 1e9)
        if not self._known or stamp_ns <= self._last_sent_ns:
            return []
        self._last_sent_ns = stamp_ns
        return [transform_message(self.T_map_odom, stamp_ns, self._config.map_frame, self._config.odom_frame)]

    def _now(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _follow_correction(self, T_map_world: se3.Matrix, keyframe_pose: Callable[[int], se3.Matrix | None]) -> None:
        """If the keyframe the last frame hung on has moved since, move map → odom along."""
        if self._reference is None:
            return
        keyframe_id, T_then, T_reference_camera = self._reference
        T_now = keyframe_pose(keyframe_id)
        if T_now is None or np.array_equal(T_now, T_then):
            return
        moved = se3.rigid(T_now @ T_reference_camera) @ se3.inverse(se3.rigid(T_then @ T_reference_camera))
        self.T_map_odom = T_map_world @ moved @ se3.inverse(T_map_world) @ self.T_map_odom

    def _remember_reference(self, update: Update, keyframe_pose: Callable[[int], se3.Matrix | None]) -> None:
        self._reference = None
        if update.reference_id is not None and update.T_reference_camera is not None:
            T = keyframe_pose(update.reference_id)
            if T is not None:
                self._reference = (update.reference_id, T.copy(), update.T_reference_camera)


def covariance_of_base(covariance: NDArray[Any], poses: Poses, T_parent_base: se3.Matrix) -> se3.Matrix:
    """(6, 6) of the base's pose as ROS wants it, from that of the camera's pose in the camera frame.

    A small motion ξ of the camera in its own frame is Ad(T_base_camera) ξ of the base in its own (Barfoot
    2017, §7.1.4); ROS states position and fixed-axis rotation along the axes of the frame the pose is in.
    """
    R, t = poses.T_base_camera[:3, :3], poses.T_base_camera[:3, 3]
    adjoint = np.zeros((6, 6))
    adjoint[:3, :3] = adjoint[3:, 3:] = R
    adjoint[:3, 3:] = se3.skew(t) @ R
    J = np.kron(np.eye(2), T_parent_base[:3, :3]) @ adjoint
    turned: se3.Matrix = J @ covariance @ J.T
    return turned
