# SPDX-License-Identifier: Apache-2.0
"""Views and keyframes of the textured room, for tests of what recognises places."""

from __future__ import annotations

import numpy as np
from textured_room import CAMERA, TexturedRoom

from recon_ros.frame import Camera, Keyframe, Prediction
from recon_ros.geometry import pointmap, se3
from recon_ros.geometry.features import Detector
from recon_ros.tracking.view import View

DETECTOR = Detector(800)


def room_view(room: TexturedRoom, T_room_camera: np.ndarray, stamp_ns: int = 0) -> View:
    """What the tracker looks at, from a pose in the room."""
    image, depth = room.render(T_room_camera)
    points = pointmap.from_depth(depth, CAMERA)
    return View(stamp_ns, image, CAMERA, Prediction(points, np.ones_like(depth), is_metric=True), DETECTOR)


def room_keyframe(keyframe_id: int, view: View, T_world_camera: np.ndarray, stride: int = 2) -> Keyframe:
    """The keyframe the reconstructor would make of a view."""
    kept = (slice(stride // 2, None, stride),) * 2
    points = view.prediction.points_self[kept].astype(np.float16)
    height, width = points.shape[:2]
    K = view.camera.cropped(stride // 2, stride // 2, width * stride, height * stride).K.copy()
    K[:2] /= stride
    confidence = view.prediction.confidence[kept].astype(np.float16)
    return Keyframe(
        keyframe_id,
        keyframe_id * 10**9,
        "camera",
        Camera(width, height, K),
        T_world_camera,
        points,
        confidence,
        view.image[kept],
        view.features,
    )


def turning(step: int, steps: int = 16) -> np.ndarray:
    """T_room_camera of a camera that turns around in a small circle, `steps` to a lap."""
    yaw = 2 * np.pi * step / steps
    turn = se3.exp(np.array([0.0, 0.0, 0.0, 0.0, yaw, 0.0]))
    return se3.make(turn[:3, :3], 0.4 * np.array([np.sin(yaw), 0.0, np.cos(yaw)]))
