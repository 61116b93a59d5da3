# SPDX-License-Identifier: Apache-2.0
"""What the robot's own odometry says of the base at a stamp: from a topic or from TF."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from rclpy.node import Node

from recon_ros.config import NodeConfig
from recon_ros.geometry import se3
from recon_ros.messages import stamp_ns
from recon_ros.ros import interface, qos
from recon_ros.ros.conversions import matrix_from_pose
from recon_ros.ros.pose_tracks import Track
from recon_ros.ros.tf import Tf, wait_for

# Odometry comes by another way than the image of the same stamp, so it may be a little later.
TIMEOUT_S = 0.1


class Odometry(Protocol):
    """T_odom_base at a stamp."""

    def at(self, stamp_ns: int, cancelled: Callable[[], bool]) -> se3.Matrix | None:
        """(4, 4) T_odom_base, waiting for it a moment; None when it does not come. For the worker's thread."""

    def clear(self) -> None:
        """Time has jumped back."""

    def close(self) -> None:
        """Take the subscription down."""


def make(node: Node, config: NodeConfig, tf: Tf) -> Odometry:
    """The source that `odom_source` names."""
    if config.odom_source == "topic":
        return TopicOdometry(node, config)
    if config.odom_source == "tf":
        return TfOdometry(config, tf)
    return NoOdometry()


class NoOdometry:
    def at(self, stamp_ns: int, cancelled: Callable[[], bool]) -> se3.Matrix | None:
        return None

    def clear(self) -> None:
        pass

    def close(self) -> None:
        pass


class TfOdometry:
    """odom → base as TF has it."""

    def __init__(self, config: NodeConfig, tf: Tf) -> None:
        self._odom, self._base, self._tf = config.odom_frame, config.base_frame, tf

    def at(self, stamp_ns: int, cancelled: Callable[[], bool]) -> se3.Matrix | None:
        return wait_for(lambda: self._tf.lookup(self._odom, self._base, stamp_ns), TIMEOUT_S, cancelled)

    def clear(self) -> None:
        pass  # the TF is cleared by its owner

    def close(self) -> None:
        pass


class TopicOdometry:
    """The `odom` topic, interpolated."""

    def __init__(self, node: Node, config: NodeConfig) -> None:
        self._node, self._config, self._log = node, config, node.get_logger()
        self._track, self._lock = Track(), threading.Lock()
        self._warned = False
        topic = interface.ODOM
        self._subscription = node.create_subscription(topic.type, topic.name, self._hear, qos.make(topic.qos))

    def at(self, stamp_ns: int, cancelled: Callable[[], bool]) -> se3.Matrix | None:
        def find() -> se3.Matrix | None:
            with self._lock:
                return self._track.at(stamp_ns)

        return wait_for(find, TIMEOUT_S, cancelled)

    def clear(self) -> None:
        with self._lock:
            self._track = Track()

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _hear(self, message: Any) -> None:
        frames = (message.header.frame_id, message.child_frame_id)
        T = matrix_from_pose(message.pose.pose)
        if frames != (self._config.odom_frame, self._config.base_frame):
            self._warn(
                f"odometry is {frames[0]} → {frames[1]}, not {self._config.odom_frame} → {self._config.base_frame}: "
                "it is ignored; set odom_frame and base_frame to its frames"
            )
        elif not se3.is_valid(T):
            self._warn("odometry holds NaN or a zero quaternion: such messages are ignored")
        else:
            with self._lock:
                self._track.add(stamp_ns(message.header.stamp), T)

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._log.warning(text)
        self._warned = True
