# SPDX-License-Identifier: Apache-2.0
"""Weighted alignment of point sets (Procrustes), rigid or with scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError
from recon_ros.geometry import se3


def procrustes(
    source: NDArray[Any], target: NDArray[Any], weights: NDArray[Any] | None = None, with_scale: bool = False
) -> NDArray[np.float64]:
    """The (4, 4) T_target_source that minimises Σ w ‖target − T source‖² in closed form (Umeyama 1991).

    Args:
        source, target: (N, 3) corresponding points.
        weights: (N,) non-negative; equal when None.
        with_scale: Sim(3) instead of SE(3).

    Raises:
        InputError: ``alignment`` for fewer than three points, no positive weight, NaN, or points on a line.
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    w = np.ones(len(source)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(source) < 3 or source.shape != target.shape or w.shape != (len(source),):
        raise InputError(
            "alignment", f"cannot align {source.shape} with {target.shape}: three or more pairs are needed"
        )
    total = w.sum()
    if not (np.isfinite(source).all() and np.isfinite(target).all() and np.isfinite(total) and total > 0):
        raise InputError("alignment", "cannot align points that hold NaN, or whose weights are all zero")
    w = w / total
    mean_source, mean_target = w @ source, w @ target
    a, b = source - mean_source, target - mean_target
    U, singular, Vt = np.linalg.svd((b * w[:, None]).T @ a)
    if singular[1] < 1e-12 * max(singular[0], 1e-300):
        raise InputError("alignment", "cannot align points that lie on one line or in one place")
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    R = U @ np.diag(sign) @ Vt
    scale = float((singular * sign).sum() / (w @ (a * a).sum(axis=1))) if with_scale else 1.0
    return se3.make(R, mean_target - scale * R @ mean_source, scale)
