# SPDX-License-Identifier: Apache-2.0
"""The publishers of what a frame brought. Everything costly is computed only if somebody listens."""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions

from recon_ros.config import NodeConfig
from recon_ros.frame import Cloud, Update
from recon_ros.geometry import se3
from recon_ros.ros import interface, qos
from recon_ros.ros.conversions import (
    camera_info_message,
    cloud_message,
    header,
    image_message,
    pose_from_row,
    pose_message,
    pose_rows,
)
from recon_ros.ros.frames import Poses, covariance_of_base
from recon_ros.ros.interface import Topic

# Standard deviations stated where the tracker gives none: 10 cm and 0.1 rad.
UNSTATED_POSE_COVARIANCE = np.diag([0.01] * 6)
# The twist of a first frame is not known; consumers (robot_localization) take a huge covariance for "ignore".
UNKNOWN_TWIST_COVARIANCE = np.diag([1e4] * 6)


class Outputs:
    """One publisher per declared topic; one verb per kind of output."""

    def __init__(self, node: Node, config: NodeConfig, min_confidence: float) -> None:
        self._node, self._config = node, config
        self.points_stride, self.min_confidence = config.points_stride, min_confidence
        self._publishers = {
            topic.name: node.create_publisher(
                topic.type,
                topic.name,
                qos.make(topic.qos),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for topic in interface.PUBLICATIONS
        }
        self._previous: tuple[int, se3.Matrix, NDArray[Any]] | None = None

    def close(self) -> None:
        """Take the topics down."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)

    def wanted(self, topic: Topic) -> bool:
        """Whether anybody listens."""
        return bool(self._publishers[topic.name].get_subscription_count())

    def listeners(self, topic: Topic) -> frozenset[bytes]:
        """Who listens, by id."""
        name = self._publishers[topic.name].topic_name
        return frozenset(bytes(info.endpoint_gid) for info in self._node.get_subscriptions_info_by_topic(name))

    def publish(self, topic: Topic, message: Any) -> None:
        self._publishers[topic.name].publish(message)

    def forget(self) -> None:
        """The next pose has nothing to do with the last."""
        self._previous = None

    def poses(self, update: Update, poses: Poses) -> None:
        """~/odometry and ~/pose of a tracked frame."""
        camera_covariance = UNSTATED_POSE_COVARIANCE if update.covariance is None else update.covariance
        if poses.T_odom_base is not None:
            covariance = covariance_of_base(camera_covariance, poses, poses.T_odom_base)
            self.publish(interface.ODOMETRY, self._odometry(update.stamp_ns, poses.T_odom_base, covariance))
        pose = PoseWithCovarianceStamped(header=header(update.stamp_ns, self._config.map_frame))
        pose.pose.pose = pose_message(poses.T_map_base)
        pose.pose.covariance = covariance_of_base(camera_covariance, poses, poses.T_map_base).ravel()
        self.publish(interface.POSE, pose)

    def images(self, update: Update, confidence: NDArray[np.float32], camera_frame: str) -> None:
        """~/depth/image with its camera_info, and ~/confidence/image, (H, W) in [0, 1]."""
        stamp, prediction = update.stamp_ns, update.prediction
        if self.wanted(interface.DEPTH_OUT):
            self.publish(interface.DEPTH_OUT, image_message(prediction.depth, stamp, camera_frame))
        if self.wanted(interface.DEPTH_INFO):
            self.publish(interface.DEPTH_INFO, camera_info_message(update.camera, stamp, camera_frame))
        if self.wanted(interface.CONFIDENCE):
            self.publish(interface.CONFIDENCE, image_message(confidence, stamp, camera_frame))

    def points(self, update: Update, poses: Poses, confidence: NDArray[np.float32], camera_frame: str) -> None:
        """~/points of a keyframe: strided, confident points only, thinned out before they are serialised."""
        if not self.wanted(interface.POINTS):
            return
        s, frame = self.points_stride, camera_frame
        points, confidence = update.prediction.points_self[::s, ::s], confidence[::s, ::s]
        keep = np.isfinite(points).all(axis=-1) & (confidence > 0) & (confidence >= self.min_confidence)
        points, confidence, colours = points[keep], confidence[keep], update.image[::s, ::s][keep]
        if self._config.points_frame == "map":
            points, frame = se3.transform(poses.T_map_camera, points), self._config.map_frame
        self.publish(interface.POINTS, cloud_message(points, colours, update.stamp_ns, frame, confidence))

    def map(self, cloud: Cloud, T_map_world: se3.Matrix, stamp_ns: int) -> None:
        """~/map of the world's cloud."""
        points = se3.transform(T_map_world, cloud.points)
        self.publish(interface.MAP, cloud_message(points, cloud.colours, stamp_ns, self._config.map_frame))

    def keyframes(self, poses: NDArray[np.float64], stamp_ns: int) -> None:
        """~/keyframes: (N, 4, 4) base poses in the map."""
        message = PoseArray(header=header(stamp_ns, self._config.map_frame))
        message.poses = [pose_from_row(row) for row in pose_rows(poses).tolist()]
        self.publish(interface.KEYFRAMES, message)

    def _odometry(self, stamp_ns: int, T_odom_base: se3.Matrix, covariance: se3.Matrix) -> Odometry:
        message = Odometry(header=header(stamp_ns, self._config.odom_frame), child_frame_id=self._config.base_frame)
        message.pose.pose = pose_message(T_odom_base)
        message.pose.covariance = covariance.ravel()
        twist, twist_covariance = self._twist(stamp_ns, T_odom_base, covariance)
        linear, angular = message.twist.twist.linear, message.twist.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = twist.tolist()
        message.twist.covariance = twist_covariance.ravel()
        return message

    def _twist(
        self, stamp_ns: int, T: se3.Matrix, covariance: se3.Matrix
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Velocity of the base in its own axes by difference from the frame before, and its covariance.

        Both poses are uncertain by themselves, so the covariance of the difference is the sum over dt². A gap
        of more than a second says nothing of the velocity now.
        """
        previous, self._previous = self._previous, (stamp_ns, T, covariance)
        if previous is None or not 0 < stamp_ns - previous[0] < 1_000_000_000:
            return np.zeros(6), UNKNOWN_TWIST_COVARIANCE
        dt = (stamp_ns - previous[0]) / 1e9
        turn = np.kron(np.eye(2), T[:3, :3].T)
        return se3.log(se3.inverse(previous[1]) @ T) / dt, turn @ (covariance + previous[2]) @ turn.T / dt**2
