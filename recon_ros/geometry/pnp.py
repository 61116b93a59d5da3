# SPDX-License-Identifier: Apache-2.0
"""A camera's pose from points it sees: RANSAC for a start, Gauss–Newton on pixels and depths for precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera

PIXEL_SIGMA = 1.5
"""Standard deviation of a matched keypoint's position, pixels (measured on ORB: 1.0 to 1.8)."""
ROBUST = 1.5
"""Residuals, in standard deviations, at which the robust kernel has taken three quarters of the weight."""
MIN_SAMPLES = 8
DAMPING = 1e-6
"""Information of a prior at the present pose: a kilometre, so that a degenerate view stays solvable."""


@dataclass(frozen=True, eq=False)
class Observations:
    """Points and where an image sees them.

    Attributes:
        points: (N, 3) float64 points of some frame w, metres.
        pixels: (N, 2) float64 where the camera c sees them.
        depths: (N,) float64 their depth as c's own pointmap has it, metres; NaN where unknown.
        features: (N,) int64 index of the keypoint each is seen as; several points may be seen as one.
    """

    points: NDArray[np.float64]
    pixels: NDArray[np.float64]
    depths: NDArray[np.float64]
    features: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Observations:
        return Observations(self.points[index], self.pixels[index], self.depths[index], self.features[index])

    @staticmethod
    def concatenated(parts: list[Observations]) -> Observations:
        """All observations of several lists as one; empty for none."""
        if not parts:
            return Observations(np.zeros((0, 3)), np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))
        return Observations(
            *(np.concatenate([getattr(p, n) for p in parts]) for n in ("points", "pixels", "depths", "features"))
        )


def ransac(
    observations: Observations, camera: Camera, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """T_camera_w and the inliers' indices by PnP in RANSAC (EPnP, Lepetit et al. 2009), or None.

    OpenCV's sampling starts from a fixed seed in each call: the same input gives the same pose.

    Args:
        observations: pixels and points; depths are not used.
        camera: undistorted.
        threshold: reprojection error of an inlier, pixels.
    """
    if len(observations) < MIN_SAMPLES:
        return None
    try:
        found, rotation, translation, inliers = cv2.solvePnPRansac(
            observations.points,
            observations.pixels,
            camera.K,
            None,
            iterationsCount=300,
            reprojectionError=threshold,
            confidence=0.999,
            flags=cv2.SOLVEPNP_EPNP,
        )
    except cv2.error:  # degenerate samples: all points in one place
        return None
    if not found or inliers is None:
        return None
    T = se3.make(cv2.Rodrigues(rotation)[0], translation[:, 0])
    return (T, inliers[:, 0].astype(np.int64)) if se3.is_valid(T) else None


@dataclass(frozen=True, eq=False)
class Refined:
    """Attributes: T_camera_w (4, 4); information (6, 6) of a left perturbation (v, ω) in the camera frame;
    inliers (N,) mask of the observations the robust kernel kept."""

    T_camera_w: NDArray[np.float64]
    information: NDArray[np.float64]
    inliers: NDArray[np.bool_]


def refine(
    T_camera_w: NDArray[np.float64],
    observations: Observations,
    camera: Camera,
    depth_sigma: float,
    iterations: int = 10,
) -> Refined | None:
    """Gauss–Newton on reprojection and relative depth under a Geman–McClure kernel, from a good start.

    Residuals are (π(T p) − u)/σ_u and, where the image's own depth d is known, (z − d)/(σ_d z).

    Args:
        T_camera_w: (4, 4) start.
        observations: N points with pixels and depths.
        camera: undistorted.
        depth_sigma: relative standard deviation of depths.
        iterations: at most.

    Returns:
        The refined pose, or None when the observations do not hold it.
    """
    T = T_camera_w
    for _ in range(iterations):
        residuals, jacobian = _linearise(T, observations, camera, depth_sigma)
        information, gradient = _normal_equations(residuals, jacobian, _weights(residuals))
        try:
            step = -np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            return None
        T = se3.exp(step) @ T
        if np.abs(step).max() < 1e-7:
            break
    if not se3.is_valid(T):
        return None
    residuals, jacobian = _linearise(T, observations, camera, depth_sigma)
    weights = _weights(residuals)
    information, _ = _normal_equations(residuals, jacobian, weights)
    return Refined(se3.orthonormalised(T), information, weights[:, 0] > 0.25)


def _linearise(
    T: NDArray[np.float64], observations: Observations, camera: Camera, depth_sigma: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 3) whitened residuals and their (N, 3, 6) derivatives by a left perturbation (v, ω) of T."""
    moved = se3.transform(T, observations.points)
    x, y, z = moved[:, 0], moved[:, 1], np.maximum(moved[:, 2], 0.05)
    predicted = np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], axis=1)
    known = np.isfinite(observations.depths)
    depth_scale = np.where(known, 1.0 / (depth_sigma * z), 0.0)
    residuals = np.empty((len(moved), 3))
    residuals[:, :2] = (predicted - observations.pixels) / PIXEL_SIGMA
    residuals[:, 2] = np.where(known, z - observations.depths, 0.0) * depth_scale

    by_point = np.zeros((len(moved), 3, 3))
    by_point[:, 0, 0] = camera.fx / z / PIXEL_SIGMA
    by_point[:, 0, 2] = -camera.fx * x / z**2 / PIXEL_SIGMA
    by_point[:, 1, 1] = camera.fy / z / PIXEL_SIGMA
    by_point[:, 1, 2] = -camera.fy * y / z**2 / PIXEL_SIGMA
    by_point[:, 2, 2] = depth_scale
    minus_skew = np.zeros((len(moved), 3, 3))
    minus_skew[:, 0, 1], minus_skew[:, 0, 2] = z, -y
    minus_skew[:, 1, 0], minus_skew[:, 1, 2] = -z, x
    minus_skew[:, 2, 0], minus_skew[:, 2, 1] = y, -x
    return residuals, np.concatenate([by_point, by_point @ minus_skew], axis=2)


def _normal_equations(
    residuals: NDArray[np.float64], jacobian: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(6, 6) Σ w JᵀJ, damped, and (6,) Σ w Jᵀr."""
    rows = jacobian.reshape(-1, 6)
    weighted = rows * weights.reshape(-1, 1)
    return weighted.T @ rows + DAMPING * np.eye(6), weighted.T @ residuals.ravel()


def _weights(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) Geman–McClure weights: one for both pixel coordinates, one for the depth."""
    squared = (residuals / ROBUST) ** 2
    pixel = 1.0 / (1.0 + squared[:, 0] + squared[:, 1]) ** 2
    return np.stack([pixel, pixel, 1.0 / (1.0 + squared[:, 2]) ** 2], axis=1)
