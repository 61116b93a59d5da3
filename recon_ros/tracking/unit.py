# SPDX-License-Identifier: Apache-2.0
"""The unit of a frame's points, for sources that do not know the metre and may see each frame in a unit of its own.

The frame's depths tell relative distances then, and the map tells the unit: pixels alone give a pose, this the unit,
and both together the pose.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recon_ros.geometry import pnp, se3
from recon_ros.geometry.pnp import Observations, Refined
from recon_ros.tracking.view import View

MIN_POINTS = 20
"""Points that tell the unit; with fewer it stays what it was taken for."""

Matrix = NDArray[np.float64]


def in_unit(view: View, observations: Observations, scale: float) -> Observations:
    """Observations whose depths, the view's own, are in a unit of which `scale` are one of the view's."""
    depths = view.features.points[observations.features, 2].astype(np.float64)
    return replace(observations, depths=scale * depths)


def refine(
    view: View, observations: Observations, T_world_camera: Matrix, scale: float, depth_sigma: float
) -> tuple[Refined, float] | None:
    """The pose (see `pnp.refine`), and units of the world in one of the view's; None when the observations do not hold
    it.

    Args:
        view: the frame.
        observations: world points at its keypoints.
        T_world_camera: (4, 4) start, rigid.
        scale: what is expected of the unit; stays 1 for metric sources.
        depth_sigma: relative standard deviation of depths.
    """
    T_camera_world = se3.inverse(T_world_camera)
    if not view.prediction.is_metric:
        blind = replace(observations, depths=np.full(len(observations), np.nan))
        seen = pnp.refine(T_camera_world, blind, view.camera, depth_sigma)
        if seen is not None:
            T_camera_world = seen.T_camera_w
            scale = _unit(view, observations[seen.inliers], T_camera_world, scale)
    found = pnp.refine(T_camera_world, in_unit(view, observations, scale), view.camera, depth_sigma)
    return None if found is None else (found, scale)


def _unit(view: View, observations: Observations, T_camera_world: Matrix, otherwise: float) -> float:
    """By the points that both know."""
    expected = se3.transform(T_camera_world, observations.points)[:, 2]
    depths = view.features.points[observations.features, 2]
    known = np.isfinite(depths) & (expected > 0)
    if np.count_nonzero(known) < MIN_POINTS:
        return otherwise
    return float(np.median(expected[known] / depths[known]))
