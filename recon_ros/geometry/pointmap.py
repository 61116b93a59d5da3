# SPDX-License-Identifier: Apache-2.0
"""Pointmaps: one 3D point per pixel, (H, W, 3) float32 in the camera frame, NaN where there is none."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.geometry.camera import Camera


def from_depth(depth: NDArray[np.float32], camera: Camera) -> NDArray[np.float32]:
    """(H, W) depth along z, metres, NaN invalid, to an (H, W, 3) float32 pointmap of an undistorted camera."""
    return camera.rays() * depth[..., None]


def to_depth(points: NDArray[Any], camera: Camera) -> NDArray[np.float32]:
    """Render (..., 3) points of the camera frame into an (H, W) float32 depth image; the nearest point wins."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    points = points[np.isfinite(points).all(axis=1) & (points[:, 2] > 0)]
    pixels = np.round(camera.project(points)).astype(np.int64)
    inside = (pixels >= 0).all(axis=1) & (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)
    pixels, z = pixels[inside], points[inside, 2].astype(np.float32)
    depth = np.full((camera.height, camera.width), np.inf, dtype=np.float32)
    np.minimum.at(depth, (pixels[:, 1], pixels[:, 0]), z)
    depth[np.isinf(depth)] = np.nan
    return depth


def valid(points: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W) mask of the pixels that have a point; z alone tells, it is NaN exactly where there is none."""
    mask: NDArray[np.bool_] = np.isfinite(points[..., 2])
    return mask


def smoothed_depth(depth: NDArray[np.float32], max_spread: float = 0.06, min_pixels: int = 6) -> NDArray[np.float32]:
    """Depth averaged over the valid part of small windows, where these lie on one surface.

    Sensors leave holes and noise at single pixels; a feature or a surface sample wants the depth of its
    neighbourhood. A 3×3 mean is used where at least four of its pixels are valid, else a 5×5 mean.

    Args:
        depth: (H, W) float32 metres, NaN invalid.
        max_spread: a 5×5 window whose depths spread by more than this share of their mean holds an edge.
        min_pixels: valid pixels a 5×5 window must hold.

    Returns:
        (H, W) float32 metres, NaN at edges, on the image border and where there is too little.
    """
    known = np.isfinite(depth)
    weight = known.astype(np.float32)
    filled = np.where(known, depth, np.float32(0))
    n3, n5 = (cv2.boxFilter(weight, -1, (k, k), normalize=False) for k in (3, 5))
    s3, s5 = (cv2.boxFilter(filled, -1, (k, k), normalize=False) for k in (3, 5))
    mean = cv2.divide(s5, n5)  # 0 where nothing is known
    cv2.copyTo(cv2.divide(s3, n3), (n3 > 3.5).astype(np.uint8), mean)
    window = np.ones((5, 5), np.uint8)
    nearest = cv2.erode(np.where(known, depth, np.float32(1e6)), window)
    spread = cv2.subtract(cv2.dilate(filled, window), nearest)
    mean[(n5 < min_pixels - 0.5) | (spread >= max_spread * mean)] = np.nan
    mean[[0, -1]] = mean[:, [0, -1]] = np.nan  # half a window there: off by half a pixel's slope
    return mean


def sample(values: NDArray[Any], pixels: NDArray[Any]) -> NDArray[Any]:
    """Values of an (H, W, …) image at the pixels nearest to (N, 2) positions, clipped to the image."""
    column = np.clip(np.round(pixels[:, 0]).astype(np.int64), 0, values.shape[1] - 1)
    row = np.clip(np.round(pixels[:, 1]).astype(np.int64), 0, values.shape[0] - 1)
    return values[row, column]


def strided(points: NDArray[Any], most: int) -> NDArray[np.float64]:
    """About `most` valid points of an (H, W, 3) pointmap, taken on a regular pixel grid, (N, 3) float64."""
    height, width = points.shape[:2]
    stride = max(1, int(np.ceil(np.sqrt(height * width / most))))
    chosen = points[stride // 2 :: stride, stride // 2 :: stride].reshape(-1, 3)
    return chosen[np.isfinite(chosen[:, 2])].astype(np.float64)
