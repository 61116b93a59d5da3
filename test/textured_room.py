# SPDX-License-Identifier: Apache-2.0
"""A small textured room seen by a pinhole camera, with exact depth: a cheap RGB-D camera for tests of the node."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera

HALF_SIZE = np.array([3.0, 1.5, 4.0])
"""Half the extent of the room, metres, in axes x right, y down, z forward; the origin is its middle."""

CAMERA = Camera.from_focal(320, 240, 260.0)


class TexturedRoom:
    """Renders images by intersecting the pixels' rays with the room's six walls."""

    def __init__(self, camera: Camera = CAMERA, seed: int = 0) -> None:
        self.camera = camera
        rng = np.random.default_rng(seed)
        self._rays = camera.rays().astype(np.float64)
        self._textures = [_texture(rng) for _ in range(6)]

    def render(self, T_room_camera: se3.Matrix) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """(H, W, 3) uint8 RGB and (H, W) float32 depth z in metres from a pose inside the room."""
        origin, rays = T_room_camera[:3, 3], self._rays @ T_room_camera[:3, :3].T
        with np.errstate(divide="ignore"):
            reach = (np.sign(rays) * HALF_SIZE - origin) / rays  # in units of the ray, which has z = 1
        axis = np.argmin(np.where(np.isnan(reach), np.inf, reach), axis=-1)
        depth = np.take_along_axis(reach, axis[..., None], axis=-1)[..., 0]
        points = origin + depth[..., None] * rays
        image = np.zeros((*depth.shape, 3), np.uint8)
        for wall in range(6):
            a, positive = wall % 3, wall >= 3
            here = (axis == a) & ((np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0) == positive)
            u, v = (points[..., k].astype(np.float32) * 100 + 500 for k in range(3) if k != a)
            seen = cv2.remap(self._textures[wall], u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
            image[here] = seen[here]
        return image, depth.astype(np.float32)


def _texture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """(1000, 1000, 3) blobs of several sizes, so that there are features near and far; a centimetre a pixel."""
    total = np.zeros((1000, 1000, 3), np.float32)
    for size in (4, 10, 30, 90):
        noise = rng.random((1000 // size + 2, 1000 // size + 2, 3), dtype=np.float32)
        total += cv2.resize(noise, (1000, 1000), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(total, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def walk(step: int) -> se3.Matrix:
    """T_room_camera of a slow walk forward and to the right, beginning in the middle of the room."""
    return se3.make(np.eye(3), np.array([0.01 * step, 0.0, 0.03 * step]))
