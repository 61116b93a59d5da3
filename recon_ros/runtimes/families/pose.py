# SPDX-License-Identifier: Apache-2.0
"""The pose of a camera from a pointmap of which it saw every pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError
from recon_ros.frame import Camera
from recon_ros.geometry import pnp, se3

INLIER_PIXELS = 5.0
"""Reprojection error of a point that supports the pose."""
MAX_POINTS = 2000
"""Points the pose is looked for with."""


def find_pose(points: NDArray[np.float32], confidence: NDArray[np.float32], camera: Camera) -> NDArray[np.float64]:
    """(4, 4) T_memory_camera of the camera that sees (H, W, 3) points of the memory's frame at their pixels.

    PnP in RANSAC over the surer half of the pixels.

    Raises:
        InputError: `pose` when no camera sees them so.
    """
    height, width = confidence.shape
    stride = max(1, int(np.ceil(np.sqrt(height * width / (2 * MAX_POINTS)))))
    v, u = (axis.ravel() for axis in np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride])
    sure = confidence[v, u] >= np.median(confidence[v, u])
    u, v = u[sure], v[sure]
    observations = pnp.Observations(
        points[v, u].astype(np.float64),
        np.stack([u, v], axis=-1).astype(np.float64),
        np.full(len(u), np.nan),
        np.arange(len(u), dtype=np.int64),
    )
    found = pnp.ransac(observations, camera, INLIER_PIXELS)
    if found is None:
        raise InputError("pose", f"no camera of focal length {camera.fx:.0f} px sees the predicted points like this")
    return se3.inverse(found[0])
