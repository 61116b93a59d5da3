# SPDX-License-Identifier: Apache-2.0
"""The focal length a pointmap implies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError


def weiszfeld(
    points: NDArray[Any],
    confidence: NDArray[Any] | None = None,
    principal_point: tuple[float, float] | None = None,
    iterations: int = 10,
) -> float:
    """Focal length, pixels, that minimises Σ C ‖(i′, j′) − f (X, Y)/Z‖ (DUSt3R, Wang et al. 2024, eq. 3.3).

    The L1-like sum is solved by Weiszfeld's re-weighted least squares, started at the weighted median of the
    per-pixel ratios, so that a minority of wrong points does not move it.

    Args:
        points: (H, W, 3) pointmap; NaN and z ≤ 0 are left out.
        confidence: (H, W) weights, or None for equal ones.
        principal_point: (cx, cy) pixels; the image centre when None.
        iterations: of Weiszfeld's algorithm.

    Raises:
        InputError: ``focal`` when no pixel tells anything.
    """
    height, width = points.shape[:2]
    cx, cy = principal_point or ((width - 1) / 2, (height - 1) / 2)
    v, u = np.mgrid[:height, :width]
    pixels = np.stack([u - cx, v - cy], axis=-1).reshape(-1, 2)
    xyz = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    weights = np.ones(len(xyz)) if confidence is None else np.asarray(confidence, dtype=np.float64).ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        directions = xyz[:, :2] / xyz[:, 2:]
    usable = np.isfinite(directions).all(axis=1) & (xyz[:, 2] > 0) & (weights > 0)
    usable &= (np.linalg.norm(directions, axis=1) > 1e-6) & (np.linalg.norm(pixels, axis=1) > 1e-6)
    if not usable.any():
        raise InputError("focal", "the pointmap has no point in front of the camera; the focal length is unknown")
    pixels, directions, weights = pixels[usable], directions[usable], weights[usable]

    squared, product = (directions**2).sum(axis=1), (directions * pixels).sum(axis=1)
    ratios = product / squared
    order = np.argsort(ratios)
    cumulative = np.cumsum(weights[order])
    focal = float(ratios[order[np.searchsorted(cumulative, cumulative[-1] / 2)]])
    for _ in range(iterations):
        residual = np.linalg.norm(pixels - focal * directions, axis=1)
        w = weights / np.maximum(residual, 1e-8)
        focal = float((w * product).sum() / (w * squared).sum())
    if not np.isfinite(focal) or focal <= 0:
        raise InputError("focal", f"the pointmap implies a focal length of {focal:.3g} px; it is upside down or empty")
    return focal
