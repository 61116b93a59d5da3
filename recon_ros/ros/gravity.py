# SPDX-License-Identifier: Apache-2.0
"""Which way is down in the camera's frame: by the IMU and TF, or because the robot always stands level."""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node

from recon_ros.config import NodeConfig
from recon_ros.geometry import se3
from recon_ros.geometry.plumb import Plumb
from recon_ros.messages import stamp_ns
from recon_ros.ros import interface, qos
from recon_ros.ros.tf import Tf

GRACE_S = 5.0


class Gravity(Protocol):
    """Down at a stamp."""

    def at(self, stamp_ns: int, camera_frame: str, T_base_camera: se3.Matrix | None) -> NDArray[np.float64] | None:
        """(3,) unit vector in the optical frame, or None where it is not known."""

    def is_awaited(self) -> bool:
        """Whether a map had better begin a little later, when this is known."""

    def clear(self) -> None:
        """The map is forgotten, or time has jumped back."""

    def close(self) -> None:
        """Take the subscription down."""


def make(node: Node, config: NodeConfig, tf: Tf) -> Gravity:
    """The source that `gravity` names."""
    if config.gravity == "imu":
        return ImuGravity(node, tf)
    return BaseGravity(node) if config.gravity == "base" else NoGravity()


class Patience:
    """A map that begins without gravity is never level, so that its beginning waits, but not for ever."""

    def __init__(self, node: Node) -> None:
        self._log = node.get_logger()
        self._until: float | None = None
        self._said = False

    def clear(self) -> None:
        """Another map may begin, and waits as well."""
        self._until, self._said = None, False

    def is_awaited(self) -> bool:
        """True for `GRACE_S` from the first call on."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + GRACE_S
        if now > self._until and not self._said:
            self._said = True
            self._log.warning(f"nothing has told which way is down for {GRACE_S:.0f} s: the map begins without it")
        return now <= self._until


class NoGravity:
    def at(self, stamp_ns: int, camera_frame: str, T_base_camera: se3.Matrix | None) -> NDArray[np.float64] | None:
        return None

    def is_awaited(self) -> bool:
        return False

    def clear(self) -> None:
        pass

    def close(self) -> None:
        pass


class BaseGravity(Patience):
    """The robot drives on level ground, so that its base's z axis is up wherever it is."""

    def at(self, stamp_ns: int, camera_frame: str, T_base_camera: se3.Matrix | None) -> NDArray[np.float64] | None:
        return None if T_base_camera is None else T_base_camera[:3, :3].T @ np.array([0.0, 0.0, -1.0])

    def close(self) -> None:
        pass


class ImuGravity(Patience):
    """The `imu` topic, filtered (`geometry.plumb`) and turned into the camera's frame by TF."""

    def __init__(self, node: Node, tf: Tf) -> None:
        super().__init__(node)
        self._node, self._tf = node, tf
        self._plumb, self._lock = Plumb(), threading.Lock()
        self._imu_frame = ""
        self._R_camera_imu: NDArray[np.float64] | None = None
        self._warned = False
        self._subscription = node.create_subscription(
            interface.IMU.type, interface.IMU.name, self._hear, qos.make(interface.IMU.qos)
        )

    def at(self, stamp_ns: int, camera_frame: str, T_base_camera: se3.Matrix | None) -> NDArray[np.float64] | None:
        with self._lock:
            down, frame = self._plumb.at(stamp_ns), self._imu_frame
        if down is None:
            return None
        if self._R_camera_imu is None:
            T = np.eye(4) if frame == camera_frame else self._tf.lookup(camera_frame, frame, None)
            if T is None:
                self._warn(f"TF has no {frame} → {camera_frame}: what the IMU says of gravity is not used")
                return None
            self._R_camera_imu = T[:3, :3]
            self._log.info(f"gravity is from the IMU in {frame}")
        turned: NDArray[np.float64] = self._R_camera_imu @ down
        return turned / np.linalg.norm(turned)

    def clear(self) -> None:
        super().clear()
        with self._lock:
            self._plumb.clear()

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _hear(self, message: Any) -> None:
        a, w = message.linear_acceleration, message.angular_velocity
        turn = None if message.angular_velocity_covariance[0] < 0 else np.array([w.x, w.y, w.z])  # -1: not measured
        if message.linear_acceleration_covariance[0] < 0:
            self._warn("imu messages have no linear_acceleration: gravity is not known")
            return
        with self._lock:
            self._imu_frame = message.header.frame_id
            self._plumb.add(stamp_ns(message.header.stamp), np.array([a.x, a.y, a.z]), turn)

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._log.warning(text)
        self._warned = True
