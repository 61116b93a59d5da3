# SPDX-License-Identifier: Apache-2.0
"""What one camera sees of another's points: the measure behind covisibility and keyframe selection."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera


def inside(points: NDArray[Any], camera: Camera, margin: float = 0.0) -> NDArray[np.bool_]:
    """(N,) mask of the (N, 3) camera-frame points that project into the image, `margin` pixels from its border."""
    x, y, z = np.asarray(points, dtype=np.float64).T
    with np.errstate(divide="ignore", invalid="ignore"):
        u = camera.fx * x / z + camera.cx
        v = camera.fy * y / z + camera.cy
    lo, right, bottom = margin - 0.5, camera.width - 0.5 - margin, camera.height - 0.5 - margin
    mask: NDArray[np.bool_] = (z > 0) & (u >= lo) & (v >= lo) & (u <= right) & (v <= bottom)
    return mask


def overlap(points: NDArray[Any], T_other_points: NDArray[np.float64], other: Camera, max_ratio: float = 1.6) -> float:
    """Share of points another camera sees at a similar size; free of scale, 0 when there are no points.

    A point counts when it projects into the other image and its depth there is within `max_ratio` of its depth
    here, beyond which its patch looks too different to be matched.

    Args:
        points: (N, 3) points of this camera's frame.
        T_other_points: (4, 4) pose that maps them into the other camera's frame.
        other: the other camera.
        max_ratio: largest accepted quotient of the two depths.
    """
    if len(points) == 0:
        return 0.0
    moved = se3.transform(T_other_points, np.asarray(points, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = moved[:, 2] / (points[:, 2] * se3.scale_of(T_other_points))
    seen = inside(moved, other) & (ratio < max_ratio) & (ratio > 1 / max_ratio)
    return float(np.count_nonzero(seen) / len(points))
