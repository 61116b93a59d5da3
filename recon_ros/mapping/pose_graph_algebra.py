# SPDX-License-Identifier: Apache-2.0
"""Uncertain relative poses: the little Sim(3) calculus a pose graph needs, over stacks of matrices.

A perturbation ξ = (v, ω, λ) multiplies from the right: T exp(ξ), with v metres and ω radians in the camera frame of b
and λ the logarithm of the scale. SE(3) is the same without its last element (Solà et al. 2018, "A micro Lie theory";
Strasdat 2012, "Local accuracy and global consistency", section 2.4.4 for Sim(3)).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon_ros.geometry import se3

Matrix = NDArray[np.float64]

RIDGE = 1e-6
"""Information every direction has, (km)⁻²: a bare wall leaves directions open, and a covariance must be finite."""


def scales(T: Matrix) -> Matrix:
    """(...) scales of (..., 4, 4) similarities."""
    return np.asarray(np.cbrt(np.linalg.det(T[..., :3, :3])))


def adjoint(T: Matrix) -> Matrix:
    """(..., 7, 7) Ad(T) with T exp(ξ) = exp(Ad(T) ξ) T, for (..., 4, 4) T."""
    sR, t = T[..., :3, :3], T[..., :3, 3]
    R = sR / scales(T)[..., None, None]
    Ad = np.zeros((*T.shape[:-2], 7, 7))
    Ad[..., :3, :3] = sR
    Ad[..., :3, 3:6] = _skew(t) @ R
    Ad[..., :3, 6] = -t
    Ad[..., 3:6, 3:6] = R
    Ad[..., 6, 6] = 1.0
    return Ad


def local(T: Matrix) -> Matrix:
    """(..., 7) coordinates (t, rotation vector, log scale) of (..., 4, 4) T; to first order its logarithm."""
    scale = scales(T)
    R = (T[..., :3, :3] / scale[..., None, None]).reshape(-1, 3, 3)
    w = Rotation.from_matrix(R).as_rotvec().reshape(*T.shape[:-2], 3)
    return np.concatenate([T[..., :3, 3], w, np.log(scale)[..., None]], axis=-1)


def retract(xi: NDArray[Any]) -> Matrix:
    """(4, 4) of coordinates (7,): the inverse of `local`."""
    return se3.make(Rotation.from_rotvec(xi[3:6]).as_matrix(), xi[:3], float(np.exp(xi[6])))


def covariances(information: Matrix, scale_sigma: NDArray[Any]) -> Matrix:
    """(..., 7, 7) covariances of (..., 6, 6) informations and (...) standard deviations of the log scale."""
    result = np.zeros((*information.shape[:-2], 7, 7))
    result[..., :6, :6] = np.linalg.inv(information + RIDGE * np.eye(6))
    result[..., 6, 6] = np.square(scale_sigma)
    return result


def moved(covariance: Matrix, T: Matrix) -> Matrix:
    """A covariance of a perturbation in frame b seen in frame a, for T_a_b; both (..., 7, 7)."""
    Ad = adjoint(T)
    return np.asarray(Ad @ covariance @ np.swapaxes(Ad, -1, -2))


def mahalanobis(xi: Matrix, covariance: Matrix) -> Matrix:
    """(...) ξᵀ Σ⁻¹ ξ of (..., D) and (..., D, D)."""
    return np.asarray(np.einsum("...i,...i->...", xi, np.linalg.solve(covariance, xi[..., None])[..., 0]))


def _skew(t: Matrix) -> Matrix:
    result = np.zeros((*t.shape, 3))
    result[..., 0, 1], result[..., 0, 2], result[..., 1, 2] = -t[..., 2], t[..., 1], -t[..., 0]
    return result - np.swapaxes(result, -1, -2)
