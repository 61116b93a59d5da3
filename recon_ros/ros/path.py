# SPDX-License-Identifier: Apache-2.0
"""~/path from a trajectory: bounded, and cheap to build again, since a pose message in Python costs tens of µs."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from numpy.typing import NDArray

from recon_ros.frame import Trajectory
from recon_ros.geometry import se3
from recon_ros.ros.conversions import header, pose_from_row, pose_rows


def thinned(n: int, limit: int) -> NDArray[np.int64]:
    """Which of n poses to keep, at most `limit`: the newer half of them all, the older evenly thinned."""
    if n <= limit:
        return np.arange(n)
    newest = limit // 2
    older = np.linspace(0, n - newest - 1, limit - newest).round().astype(np.int64)
    return np.concatenate([older, np.arange(n - newest, n)])


class PathBuilder:
    """Builds nav_msgs/Path messages and keeps the pose messages that have not changed since the last one."""

    def __init__(self, frame: str, max_size: int) -> None:
        self._frame, self._max_size = frame, max_size
        self._messages: dict[int, tuple[list[float], PoseStamped]] = {}

    def build(self, trajectory: Trajectory, T_map_world: se3.Matrix, T_camera_base: se3.Matrix, stamp_ns: int) -> Path:
        """The base's path in the map of a camera trajectory T_world_camera; `stamp_ns` is of the last frame."""
        keep = thinned(len(trajectory), self._max_size)
        rows = pose_rows(T_map_world @ trajectory.poses[keep] @ T_camera_base).tolist()
        known, self._messages = self._messages, {}
        for stamp, row in zip(trajectory.stamps_ns[keep].tolist(), rows, strict=True):
            entry = known.get(stamp)
            if entry is None or entry[0] != row:
                entry = (row, PoseStamped(header=header(stamp, self._frame), pose=pose_from_row(row)))
            self._messages[stamp] = entry
        return Path(header=header(stamp_ns, self._frame), poses=[message for _, message in self._messages.values()])
