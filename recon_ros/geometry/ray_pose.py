# SPDX-License-Identifier: Apache-2.0
"""Pose of one pointmap in another camera's frame by the rays its points are seen along, and what rays imply."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError
from recon_ros.geometry import pointmap, se3
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.focal import weiszfeld
from recon_ros.geometry.pnp import DAMPING, MIN_SAMPLES

HUBER_DEPTH = 1.345
"""Standard deviations up to which a depth counts in full: 95 % efficient under normal noise (Huber 1964)."""
HUBER_RAY = 1.86
"""The same for the two directions of a ray together; normal noise exceeds both equally often (18 %)."""
NEAREST = 1e-9
"""Ranges below are taken as this one; a point in the camera's centre has no direction."""
FOCAL_SAMPLES = 10_000
"""Points of a pointmap that its focal length is estimated from."""


@dataclass(frozen=True, eq=False)
class RayPose:
    """A pose with its uncertainty.

    Attributes:
        T_target_source: (4, 4) SE(3) or Sim(3).
        information: (6, 6) of a left perturbation (v, ω) in the target frame; (7, 7) of (v, ω, log scale) where
            the scale was estimated.
        weights: (N,) float64 share of each point the robust kernel kept, the smaller one of ray and depth: 1 for
            an inlier, near 0 for an outlier, 0 for what could not be used.
    """

    T_target_source: NDArray[np.float64]
    information: NDArray[np.float64]
    weights: NDArray[np.float64]


def refine_ray_pose(
    T_target_source: NDArray[np.float64],
    source_points: NDArray[Any],
    target_rays: NDArray[Any],
    target_depths: NDArray[Any],
    ray_sigma: float,
    depth_sigma: float,
    weights: NDArray[Any] | None = None,
    with_scale: bool = False,
    iterations: int = 20,
) -> RayPose | None:
    """Gauss–Newton on rays and log-depths under a Huber kernel (after MASt3R-SLAM, Murai et al. 2025).

    A point p of the source, x = T p in the target's camera, is compared with the ray r it was seen along and its
    range ρ there: residuals (x/‖x‖ − r)/σ_r and (log ‖x‖ − log ρ)/σ_d. They are bounded and smooth for points
    beside and behind the camera too, where pixels are not. Along the ray, log-range and log-depth are one.

    Args:
        T_target_source: (4, 4) start. Its scale is kept, or refined where `with_scale`.
        source_points: (N, 3) points of the source frame.
        target_rays: (N, 3) directions of any length in the target's camera frame: `camera.rays()` or
            `camera.unproject(pixels, 1)` of a calibrated one, the target's own points for one that is not.
        target_depths: (N,) depth z of the points along these rays; NaN or ≤ 0 where unknown.
        ray_sigma: standard deviation of a ray in each direction, radians.
        depth_sigma: relative standard deviation of depths.
        weights: (N,) factors of the information, such as confidences; equal when None. Those that are not
            positive are left out, and so are points and rays with NaN.
        with_scale: Sim(3) instead of SE(3). Only depths tell the scale; without any it stays.
        iterations: at most.

    Returns:
        The refined pose, or None when fewer than eight points can be used or these do not hold it.

    Raises:
        InputError: ``alignment`` when the shapes do not fit together.
    """
    seen, usable = _collect(source_points, target_rays, target_depths, weights)
    if len(seen.points) < MIN_SAMPLES:
        return None
    sigmas = np.array([ray_sigma, ray_sigma, ray_sigma, depth_sigma])
    parameters = 7 if with_scale else 6
    T = np.array(T_target_source, dtype=np.float64)
    for _ in range(iterations):
        residuals, jacobian = _linearise(T, seen, sigmas)
        information, gradient = _normal_equations(residuals, jacobian[..., :parameters], seen.weights)
        try:
            step = -np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            return None
        T = _increment(_shortened(step, T, seen.points)) @ T
        if not np.isfinite(T).all():
            return None
        if np.abs(step).max() < 1e-7:
            break
    scale = se3.scale_of(T)
    if not (np.isfinite(scale) and scale > 0):
        return None
    T = se3.make(se3.orthonormalised(T)[:3, :3], T[:3, 3], scale)
    residuals, jacobian = _linearise(T, seen, sigmas)
    information, _ = _normal_equations(residuals, jacobian[..., :parameters], seen.weights)
    kept = np.zeros(len(usable))
    kept[usable] = _huber(residuals).min(axis=1)
    return RayPose(T, information, kept)


def on_calibrated_rays(points: NDArray[Any], camera: Camera) -> NDArray[np.float32]:
    """The pointmap with each point moved onto its pixel's ray, at its own depth (as MASt3R-SLAM with known K).

    Args:
        points: (H, W, 3) pointmap in the camera frame.
        camera: undistorted, of the pointmap's size.

    Returns:
        (H, W, 3) float32; NaN where z is not positive.

    Raises:
        InputError: ``camera`` when the sizes differ or the camera is distorted.
    """
    if points.shape != (camera.height, camera.width, 3):
        raise InputError(
            "camera",
            f"a pointmap of shape {points.shape} is not one of a camera of {camera.width}x{camera.height} pixels: "
            "resize the camera",
        )
    z = np.asarray(points[..., 2], dtype=np.float32)
    return pointmap.from_depth(np.where(z > 0, z, np.float32(np.nan)), camera)


class RunningFocal:
    """The focal length of a stream without calibration: the median over its last pointmaps.

    One pointmap's focal length is off by some percent; the camera's does not change. Principal point: the centre.
    """

    def __init__(self, window: int = 30) -> None:
        """`window`: pointmaps remembered."""
        self._focals: deque[float] = deque(maxlen=window)
        self._size: tuple[int, ...] | None = None

    def update(self, points: NDArray[Any], confidence: NDArray[Any] | None = None) -> float:
        """Focal length, pixels, with one more pointmap; a pointmap of another size starts anew.

        Args:
            points: (H, W, 3) pointmap in the camera frame; NaN and z ≤ 0 are left out.
            confidence: (H, W) weights, or None for equal ones.

        Raises:
            InputError: ``focal`` when the pointmap tells none; what is remembered stays.
        """
        focal = _focal_of_samples(points, confidence)
        if self._size != points.shape[:2]:
            self._focals.clear()
            self._size = points.shape[:2]
        self._focals.append(focal)
        return float(np.median(self._focals))


def _focal_of_samples(points: NDArray[Any], confidence: NDArray[Any] | None) -> float:
    """Weiszfeld's focal length from a regular grid of pixels, in pixels of the whole image."""
    height, width = points.shape[:2]
    stride = max(1, int(np.sqrt(height * width / FOCAL_SAMPLES)))
    offset = stride // 2
    grid = np.s_[offset::stride, offset::stride]
    centre = ((width - 1) / 2 - offset) / stride, ((height - 1) / 2 - offset) / stride
    return stride * weiszfeld(points[grid], None if confidence is None else confidence[grid], centre)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Attributes: points (N, 3); rays (N, 3) of length 1; log_ranges (N,), NaN unknown; weights (N,)."""

    points: NDArray[np.float64]
    rays: NDArray[np.float64]
    log_ranges: NDArray[np.float64]
    weights: NDArray[np.float64]


def _collect(
    points: NDArray[Any], rays: NDArray[Any], depths: NDArray[Any], weights: NDArray[Any] | None
) -> tuple[_Seen, NDArray[np.bool_]]:
    """What can be used, and the (N,) mask of it."""
    points, rays, depths = (np.asarray(values, dtype=np.float64) for values in (points, rays, depths))
    w = np.ones(len(points)) if weights is None else np.asarray(weights, dtype=np.float64)
    count = len(points)
    if points.shape != (count, 3) or rays.shape != (count, 3) or depths.shape != (count,) or w.shape != (count,):
        raise InputError(
            "alignment",
            f"points {points.shape}, rays {rays.shape}, depths {depths.shape} and weights {w.shape} are not of one "
            "length N: give (N, 3), (N, 3), (N,), (N,)",
        )
    lengths = np.linalg.norm(rays, axis=1)
    usable = np.isfinite(points).all(axis=1) & np.isfinite(lengths) & (lengths > 0) & np.isfinite(w) & (w > 0)
    rays, lengths, depths = rays[usable], lengths[usable], depths[usable]
    known = np.isfinite(depths) & (depths > 0) & (rays[:, 2] > 0)
    log_ranges = np.full(len(depths), np.nan)
    log_ranges[known] = np.log(depths[known] * lengths[known] / rays[known, 2])
    return _Seen(points[usable], rays / lengths[:, None], log_ranges, w[usable]), usable


def _shortened(step: NDArray[Any], T: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The step, or the share of it within one radian, a factor of e and the points' median range.

    Derivatives say nothing about residuals farther away; from a bad start, full steps may run off.
    """
    reach = max(float(np.median(np.linalg.norm(se3.transform(T, points), axis=1))), NEAREST)
    sizes = np.linalg.norm(step[:3]) / reach, np.linalg.norm(step[3:6]), np.abs(step[6:]).sum()
    return np.asarray(step / max(1.0, *sizes))


def _increment(step: NDArray[Any]) -> NDArray[np.float64]:
    """(4, 4) transform of a step (v, ω) or (v, ω, log scale)."""
    T = se3.exp(step[:6])
    if len(step) == 7:
        T[:3, :3] *= np.exp(step[6])
    return T


def _linearise(
    T: NDArray[np.float64], seen: _Seen, sigmas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 4) whitened residuals, and their (N, 4, 7) derivatives by a left perturbation (v, ω, log scale) of T.

    Turning moves a direction alone, scaling the range alone.
    """
    moved = se3.transform(T, seen.points)
    ranges = np.maximum(np.linalg.norm(moved, axis=1), NEAREST)
    x, y, z = directions = (moved / ranges[:, None]).T
    directions = directions.T
    known = np.isfinite(seen.log_ranges)
    residuals = np.empty((len(moved), 4))
    residuals[:, :3] = directions - seen.rays
    residuals[:, 3] = np.where(known, np.log(ranges) - seen.log_ranges, 0.0)

    jacobian = np.zeros((len(moved), 4, 7))
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    jacobian[:, :3, :3] = across / ranges[:, None, None]
    jacobian[:, 0, 4], jacobian[:, 0, 5] = z, -y
    jacobian[:, 1, 3], jacobian[:, 1, 5] = -z, x
    jacobian[:, 2, 3], jacobian[:, 2, 4] = y, -x
    jacobian[:, 3, :3] = directions / ranges[:, None]
    jacobian[:, 3, 6] = 1.0
    jacobian[~known, 3] = 0.0
    return residuals / sigmas, jacobian / sigmas[:, None]


def _normal_equations(
    residuals: NDArray[np.float64], jacobian: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P, P) Σ w JᵀJ, damped, and (P,) Σ w Jᵀr; w are the given weights times those of the kernel."""
    kernel = _huber(residuals) * weights[:, None]
    factors = np.repeat(kernel, [3, 1], axis=1)
    rows = jacobian.reshape(-1, jacobian.shape[2])
    weighted = rows * factors.reshape(-1, 1)
    return weighted.T @ rows + DAMPING * np.eye(rows.shape[1]), weighted.T @ residuals.ravel()


def _huber(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2) Huber weights: one for the ray's three residuals, one for the depth."""
    sizes = np.stack([np.linalg.norm(residuals[:, :3], axis=1) / HUBER_RAY, np.abs(residuals[:, 3]) / HUBER_DEPTH], 1)
    return 1.0 / np.maximum(sizes, 1.0)
