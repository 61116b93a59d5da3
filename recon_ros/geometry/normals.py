# SPDX-License-Identifier: Apache-2.0
"""Surface normals of a depth image."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.geometry import pointmap
from recon_ros.geometry.camera import Camera

MAX_STEP = 0.05
"""A surface whose depth changes by more than this share per pixel is taken for an edge."""


def of_depth(depth: NDArray[np.float32], camera: Camera) -> NDArray[np.float32]:
    """Unit normals that look at the camera.

    The inverse depth of a plane n·p = 1 is n·(x, y, 1) on the rays (x, y, 1), so that its gradient over the image
    gives n, without bias even where the plane is seen at a flat angle.

    Args:
        depth: (H, W) float32 along z, any unit, NaN where there is none.
        camera: undistorted, of this size.

    Returns:
        (H, W, 3) float32 in the camera frame; zero at edges, where too much is unknown about, and on the image border.
    """
    inverse = pointmap.smoothed_depth(np.float32(1) / depth, max_spread=4 * MAX_STEP)
    kernel = {"ksize": 3, "scale": 1 / 8, "borderType": cv2.BORDER_REPLICATE}
    du, dv = (cv2.Sobel(inverse, cv2.CV_32F, dx, 1 - dx, **kernel) for dx in (1, 0))
    u = np.arange(camera.width, dtype=np.float32) - np.float32(camera.cx)
    v = np.arange(camera.height, dtype=np.float32)[:, None] - np.float32(camera.cy)
    x, y, z = np.float32(-camera.fx) * du, np.float32(-camera.fy) * dv, u * du + v * dv - inverse
    length = np.sqrt(x * x + y * y + z * z)
    with np.errstate(invalid="ignore"):
        smooth = np.maximum(np.abs(du), np.abs(dv)) < MAX_STEP * inverse  # False beside NaN
    smooth[[0, 1, -2, -1]] = smooth[:, [0, 1, -2, -1]] = False
    normals = np.zeros((*depth.shape, 3), np.float32)
    for axis, component in enumerate((x, y, z)):
        np.divide(component, length, out=normals[..., axis], where=smooth)
    return normals
