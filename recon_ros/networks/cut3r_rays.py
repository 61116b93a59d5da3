# SPDX-License-Identifier: Apache-2.0
"""The cameras that CUT3R is asked about, as ray maps; section 3.2 of its paper."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon_ros.geometry import se3


def ray_map(
    T_first_camera: NDArray[np.float64], K: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float32]:
    """(height, width, 6): origin and direction of each pixel's ray in the first camera's frame.

    Pixel centres lie on whole numbers. The "direction" is the *point* at depth 1, translation included, scaled to
    unit length: this is what the published weights were trained with.

    Args:
        T_first_camera: (4, 4) pose of the camera asked about in the frame of the sequence's first camera.
        K: (3, 3) of the camera asked about.
        height, width: of its image, pixels.
    """
    u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    at_depth_1 = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], axis=-1)
    points = se3.transform(T_first_camera, at_depth_1)
    directions = points / np.linalg.norm(points, axis=-1, keepdims=True)
    origins = np.broadcast_to(T_first_camera[:3, 3], points.shape)
    return np.concatenate([origins, directions], axis=-1).astype(np.float32)
