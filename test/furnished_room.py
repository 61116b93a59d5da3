# SPDX-License-Identifier: Apache-2.0
"""A room with boxes in it, seen by a depth camera: keyframes of places where something stands, or stands no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from helpers import make_keyframe

from recon_ros.frame import Keyframe
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera

ROOM = (np.array([-3.0, -1.5, -2.0]), np.array([3.0, 1.5, 4.0]))
"""Corners of the room, metres, in axes x right, y down, z forward."""
CAMERA = Camera.from_focal(160, 120, 130.0)


@dataclass(frozen=True)
class Box:
    """An upright box by two corners."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def holds(self, points: np.ndarray, margin: float = 0.05) -> np.ndarray:
        """(N,) mask of the points in the box or up to `margin` from it."""
        return ((points > np.array(self.low) - margin) & (points < np.array(self.high) + margin)).all(axis=1)


def depth_of(T_room_camera: np.ndarray, boxes: Sequence[Box] = (), camera: Camera = CAMERA) -> np.ndarray:
    """(H, W) float32 exact depth along z."""
    origin = T_room_camera[:3, 3]
    rays = camera.rays().astype(np.float64) @ T_room_camera[:3, :3].T
    rays[np.abs(rays) < 1e-9] = 1e-9
    depth = np.maximum((ROOM[0] - origin) / rays, (ROOM[1] - origin) / rays).min(axis=-1)
    for box in boxes:
        a, b = (np.array(box.low) - origin) / rays, (np.array(box.high) - origin) / rays
        enter, leave = np.minimum(a, b).max(axis=-1), np.maximum(a, b).min(axis=-1)
        hit = (enter > 0) & (enter < leave)
        depth[hit] = np.minimum(depth, enter)[hit]
    return depth.astype(np.float32)


def keyframe_of(
    keyframe_id: int,
    T_room_camera: np.ndarray,
    boxes: Sequence[Box] = (),
    *,
    noise: float = 0.0,
    pose_noise: float = 0.0,
    camera: Camera = CAMERA,
) -> Keyframe:
    """A keyframe of the room.

    Args:
        noise: standard deviation of depth over squared depth, and holes along depth steps (as stereo cameras have).
        pose_noise: standard deviation of the remembered pose, metres and a third of it in radians.
    """
    from recon_ros.datasets.synthetic import sensor_depth

    rng = np.random.default_rng(keyframe_id)
    depth = depth_of(T_room_camera, boxes, camera)
    if noise:
        depth = sensor_depth(depth, rng)
    T = T_room_camera @ se3.exp(rng.normal(size=6) * pose_noise * np.array([1, 1, 1, 1 / 3, 1 / 3, 1 / 3]))
    keyframe = make_keyframe(keyframe_id, T, camera=camera, depth=depth)
    keyframe.confidence[:] = np.where(np.isfinite(depth), 1, 0)
    return keyframe


def look(x: float, z: float, yaw: float, pitch: float = 0.0) -> np.ndarray:
    """T_room_camera at eye height; yaw to the right, pitch up, radians."""
    turned = se3.exp(np.array([0, 0, 0, 0, yaw, 0])) @ se3.exp(np.array([0, 0, 0, pitch, 0, 0]))
    return se3.make(turned[:3, :3], [x, 0.0, z])
