# SPDX-License-Identifier: Apache-2.0
"""`initialpose`: where a person says that the robot is, as rviz's "2D Pose Estimate" and nav2 say it."""

from __future__ import annotations

from typing import Any

import numpy as np

from recon_ros.errors import InputError
from recon_ros.geometry import se3
from recon_ros.ros.conversions import matrix_from_pose

MAX_NORM_ERROR = 0.01
"""A quaternion this far from length 1 was meant to be something else, or not filled in."""


def pose_of_base(message: Any, map_frame: str) -> se3.Matrix:
    """(4, 4) T_map_base of a geometry_msgs/PoseWithCovarianceStamped; the covariance is not used.

    Raises:
        InputError: ``initialpose`` when it is in another frame, not finite, or no rotation.
    """
    frame, pose = message.header.frame_id, message.pose.pose
    if frame != map_frame:
        raise InputError(
            "initialpose",
            f"initialpose is in frame '{frame}', not in '{map_frame}', and is not used; in rviz, set the fixed frame "
            f"to '{map_frame}'",
        )
    p, q = pose.position, pose.orientation
    numbers = np.array([p.x, p.y, p.z, q.x, q.y, q.z, q.w])
    if not np.all(np.isfinite(numbers)):
        raise InputError("initialpose", "initialpose holds NaN or infinity, and is not used")
    norm = float(np.linalg.norm(numbers[3:]))
    if abs(norm - 1) > MAX_NORM_ERROR:
        raise InputError(
            "initialpose",
            f"the quaternion of initialpose is of length {norm:.3f}, and the pose is not used; it must be of length 1, "
            "for a yaw alone: z = sin(yaw/2), w = cos(yaw/2)",
        )
    return matrix_from_pose(pose)
