# SPDX-License-Identifier: Apache-2.0
"""Where the camera is on the robot: TF is asked first, then base_to_camera, then a newcomer's guess is made aloud."""

from __future__ import annotations

import time

import numpy as np
from rclpy.node import Node

from recon_ros.config import NodeConfig
from recon_ros.errors import ConfigError, InputError
from recon_ros.geometry import se3
from recon_ros.ros.conversions import transform_message
from recon_ros.ros.tf import Tf

# A camera at the base that looks along +x: optical x is the base's -y, optical y its -z, optical z its x
# (REP-103).
T_BASE_OPTICAL = se3.make(np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), np.zeros(3))

# How long TF is given to tell before we say it ourselves: discovery alone takes up to 3.3 s, and a driver
# that starts with its first image publishes its own tree in the same moment.
GRACE_AFTER_START_S = 3.5
GRACE_AFTER_FIRST_IMAGE_S = 1.0


def mount_from_text(text: str) -> se3.Matrix | None:
    """T_base_camera (4, 4) from the parameter base_to_camera, or None when it is empty.

    Raises:
        ConfigError: when it is neither 'optical' nor seven numbers with a quaternion of unit length.
    """
    if not text.strip():
        return None
    if text.strip() == "optical":
        return T_BASE_OPTICAL.copy()
    try:
        numbers = np.array([float(part) for part in text.replace(",", " ").split()])
    except ValueError:
        numbers = np.zeros(0)
    if numbers.shape != (7,) or not np.all(np.isfinite(numbers)) or abs(np.linalg.norm(numbers[3:]) - 1) > 0.01:
        raise ConfigError(
            f"option 'base_to_camera' is '{text}'; it must be empty, 'optical', or 'x y z qx qy qz qw' in metres "
            "with a quaternion of length 1"
        )
    return se3.from_quaternion(numbers[:3], numbers[3:])


class Mount:
    """Finds T_base_camera once, and says where it has it from.

    `parameter` is base_to_camera, read by `mount_from_text`.

    Attributes:
        camera_frame: name of the optical frame, from the first image on.
        T_base_camera: (4, 4), once it is known.
    """

    def __init__(self, node: Node, config: NodeConfig, tf: Tf, parameter: se3.Matrix | None) -> None:
        self._node, self._config, self._tf, self._log = node, config, tf, node.get_logger()
        self._parameter = parameter
        self._started = time.monotonic()
        self._first_image: float | None = None
        self.T_base_camera: se3.Matrix | None = None
        self.camera_frame = ""

    def start_grace(self) -> None:
        """TF gets its time from now; called when the node becomes active."""
        self._started, self._first_image = time.monotonic(), None

    def find(self, image_frame: str) -> se3.Matrix | None:
        """T_base_camera (4, 4) for images of that frame_id, or None while TF is still given time to tell.

        Raises:
            InputError: ``frame_id`` when the images change their frame.
        """
        camera_frame = self._config.camera_frame or image_frame
        if self.T_base_camera is None:
            self.camera_frame = camera_frame
            self.T_base_camera = self._look(camera_frame)
        elif camera_frame != self.camera_frame:
            raise InputError(
                "frame_id",
                f"image has frame_id '{camera_frame}', those before had '{self.camera_frame}': are there two cameras "
                "on one topic? If it is one, set camera_frame",
            )
        return self.T_base_camera

    def _look(self, camera_frame: str) -> se3.Matrix | None:
        base = self._config.base_frame
        if base == camera_frame:
            return np.eye(4)
        if self._config.publish_camera_tf:
            return self._broadcast_own(camera_frame)
        T = self._tf.lookup(base, camera_frame, None)
        if T is not None:
            self._log.info(f"the camera's place is from TF: {base} → {camera_frame}")
            return T
        if not self._grace_is_over():
            return None
        if self._parameter is not None:
            self._log.info(f"the camera's place is from base_to_camera: TF has no {base} → {camera_frame}")
            return self._parameter
        self._log.warning(
            f"TF has no {base} → {camera_frame} and base_to_camera is empty: the camera is taken to sit at {base} "
            f"and look along its x, and {base} → {self._tf.root(camera_frame)} is broadcast. If that is wrong, publish "
            "the robot's description or set base_to_camera"
        )
        return self._broadcast_own(camera_frame)

    def _broadcast_own(self, camera_frame: str) -> se3.Matrix:
        """Our own edge. It goes to the root of the camera's tree, so that a driver's frames keep their one parent."""
        T_base_camera = T_BASE_OPTICAL if self._parameter is None else self._parameter
        root = self._tf.root(camera_frame)
        T_camera_root = self._tf.lookup(camera_frame, root, None)
        T_base_root = T_base_camera if T_camera_root is None else T_base_camera @ T_camera_root
        if self._config.publish_tf:
            now = self._node.get_clock().now().nanoseconds
            self._tf.send_static([transform_message(T_base_root, now, self._config.base_frame, root)])
        return T_base_camera

    def _grace_is_over(self) -> bool:
        now = time.monotonic()
        if self._first_image is None:
            self._first_image = now
        return now > max(self._started + GRACE_AFTER_START_S, self._first_image + GRACE_AFTER_FIRST_IMAGE_S)
