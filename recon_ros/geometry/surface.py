# SPDX-License-Identifier: Apache-2.0
"""Registration of depth surfaces by generalised ICP (Segal et al. 2009), with small_gicp."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import ConfigError
from recon_ros.geometry import pointmap, se3
from recon_ros.geometry.camera import Camera

MAX_CORRESPONDENCE = 0.1
"""Distance beyond which two surface points are not the same place, metres."""
MIN_INLIERS = 100
MAX_POINTS = 12_000
"""Pixels of a depth image a surface is made of, about."""
RELATIVE_RESOLUTION = 0.02
MIN_RESOLUTION = 1e-3
GICP_SIGMA = np.sqrt(2e-3)
"""small_gicp regularises each point's covariance to 1e-3 along its normal, so that a pair of points weighs as if
its distance had this standard deviation, metres; the real one is given instead. Along the surface it keeps a
thousandth of that weight. Replacing this information by that of the tangent planes alone was tried and tracks worse
(warehouse drive: 4.4 instead of 1.3 cm): the result and its information belong together."""


def require() -> None:
    """Raise ConfigError when small_gicp, which has no Debian package, is not installed."""
    if importlib.util.find_spec("small_gicp") is None:
        raise ConfigError(
            "tracking.surface_sigma is above 0, which needs small_gicp: pip install small_gicp, or set it to 0 and "
            "track by features alone"
        )


@dataclass(frozen=True, eq=False)
class Surface:
    """A cloud with covariances and its search tree, as small_gicp holds them."""

    cloud: Any
    tree: Any

    @staticmethod
    def of(points: NDArray[np.float64]) -> Surface | None:
        """The surface of (N, 3) camera-frame points, metres; None for too few.

        It is sampled to a share of the median depth, so that a hall costs as much as a closet.
        """
        import small_gicp

        if len(points) < MIN_INLIERS:
            return None
        resolution = max(RELATIVE_RESOLUTION * float(np.median(points[:, 2])), MIN_RESOLUTION)
        cloud, tree = small_gicp.preprocess_points(
            points, downsampling_resolution=resolution, num_neighbors=12, num_threads=1
        )
        return Surface(cloud, tree) if cloud.size() >= MIN_INLIERS else None

    @staticmethod
    def of_depth(depth: NDArray[np.float32], camera: Camera) -> Surface | None:
        """The surface of an (H, W) depth image, metres, smoothed by `pointmap.smoothed_depth`; None as in `of`."""
        return Surface.of(pointmap.strided(pointmap.from_depth(depth, camera), MAX_POINTS))


@dataclass(frozen=True, eq=False)
class Registration:
    """Attributes: T_target_source (4, 4); information (6, 6) of a right perturbation (v, ω) in the source frame."""

    T_target_source: NDArray[np.float64]
    information: NDArray[np.float64]


def register(
    target: Surface, source: Surface, T_target_source: NDArray[np.float64], sigma: float
) -> Registration | None:
    """Move `source` onto `target` from a good start; None when they barely touch or it wanders off.

    Args:
        target, source: surfaces in metres.
        T_target_source: (4, 4) start.
        sigma: standard deviation of the distance of two samples of one surface, metres; scales the information.
    """
    import small_gicp

    result = small_gicp.align(
        target.cloud,
        source.cloud,
        target.tree,
        init_T_target_source=T_target_source,
        registration_type="GICP",
        max_correspondence_distance=MAX_CORRESPONDENCE,
        num_threads=1,
        max_iterations=10,
    )
    moved, _ = se3.distance(se3.inverse(T_target_source) @ result.T_target_source)
    if result.num_inliers < MIN_INLIERS or moved > MAX_CORRESPONDENCE or not se3.is_valid(result.T_target_source):
        return None
    order = [3, 4, 5, 0, 1, 2]  # small_gicp perturbs (ω, v)
    information = np.asarray(result.H)[np.ix_(order, order)] * (GICP_SIGMA / sigma) ** 2
    return Registration(np.asarray(result.T_target_source), information)
