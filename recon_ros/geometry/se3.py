# SPDX-License-Identifier: Apache-2.0
"""Rigid (SE(3)) and similarity (Sim(3)) transforms as (4, 4) float64 matrices; `T_a_b` maps points b → a."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Matrix = NDArray[np.float64]


def make(R: NDArray[Any], t: NDArray[Any], scale: float = 1.0) -> Matrix:
    """(4, 4) transform p ↦ scale · R p + t from a (3, 3) rotation and a (3,) translation in metres."""
    T = np.eye(4)
    T[:3, :3] = scale * np.asarray(R, dtype=np.float64)
    T[:3, 3] = t
    return T


def inverse(T: Matrix) -> Matrix:
    """Inverse of an SE(3) or Sim(3) matrix, (..., 4, 4)."""
    T = np.asarray(T, dtype=np.float64)
    sR = T[..., :3, :3]
    squared_scale = np.einsum("...ij,...ij->...", sR, sR) / 3.0
    inverse_linear = np.swapaxes(sR, -1, -2) / squared_scale[..., None, None]
    result = np.zeros_like(T)
    result[..., :3, :3] = inverse_linear
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", inverse_linear, T[..., :3, 3])
    result[..., 3, 3] = 1.0
    return result


def scale_of(T: Matrix) -> float:
    """The scale of a Sim(3) matrix; 1 for SE(3)."""
    return float(np.cbrt(np.linalg.det(T[:3, :3])))


def rigid(T: Matrix) -> Matrix:
    """(..., 4, 4) Sim(3) poses without their scale: rotations and translations are as they were."""
    result = np.array(T, dtype=np.float64)
    result[..., :3, :3] /= np.cbrt(np.linalg.det(result[..., :3, :3]))[..., None, None]
    return result


def scaled(T: Matrix, scale: float) -> Matrix:
    """A (4, 4) pose of a camera whose unit is so many of the world's: where it is stays, what it sees is scaled."""
    return make(scale * T[:3, :3], T[:3, 3])


def transform(T: Matrix, points: NDArray[Any]) -> NDArray[Any]:
    """Apply T_a_b to (..., 3) points of frame b; the result has the floating dtype of `points`."""
    points = np.asarray(points)
    points = points if np.issubdtype(points.dtype, np.floating) else points.astype(np.float64)
    return (points @ T[:3, :3].T.astype(points.dtype) + T[:3, 3].astype(points.dtype)).astype(points.dtype, copy=False)


def from_quaternion(translation: NDArray[Any], xyzw: NDArray[Any]) -> Matrix:
    """(4, 4) from a (3,) translation and an (x, y, z, w) quaternion of any non-zero norm."""
    return make(Rotation.from_quat(np.asarray(xyzw, dtype=np.float64)).as_matrix(), translation)


def quaternion(T: Matrix) -> NDArray[np.float64]:
    """Unit quaternion (x, y, z, w) of the rotation part, with w ≥ 0 so that equal poses give equal numbers."""
    q: NDArray[np.float64] = Rotation.from_matrix(T[:3, :3] / scale_of(T)).as_quat()
    return -q if q[3] < 0 else q


def exp(xi: NDArray[Any]) -> Matrix:
    """SE(3) exponential of a twist (vx, vy, vz, wx, wy, wz), metres and radians (Barfoot 2017, eq. 7.85)."""
    xi = np.asarray(xi, dtype=np.float64)
    v, w = xi[:3], xi[3:]
    angle = float(np.linalg.norm(w))
    W = skew(w)
    if angle < 1e-6:
        V = np.eye(3) + 0.5 * W + W @ W / 6.0
    else:
        V = np.eye(3) + (1 - np.cos(angle)) / angle**2 * W + (angle - np.sin(angle)) / angle**3 * W @ W
    return make(Rotation.from_rotvec(w).as_matrix(), V @ v)


def log(T: Matrix) -> NDArray[np.float64]:
    """Twist (6,) of an SE(3) matrix: the inverse of `exp` for rotations below π."""
    w = Rotation.from_matrix(T[:3, :3]).as_rotvec()
    angle = float(np.linalg.norm(w))
    W = skew(w)
    if angle < 1e-6:
        V_inverse = np.eye(3) - 0.5 * W + W @ W / 12.0
    else:
        half = 0.5 * angle
        V_inverse = np.eye(3) - 0.5 * W + (1 - half / np.tan(half)) / angle**2 * W @ W
    return np.concatenate([V_inverse @ T[:3, 3], w])


def skew(w: NDArray[Any]) -> Matrix:
    """(3, 3) matrix with skew(w) p = w × p."""
    x, y, z = w
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def distance(T: Matrix) -> tuple[float, float]:
    """Length of the translation in metres and angle of the rotation in radians."""
    cosine = (np.trace(T[:3, :3]) / scale_of(T) - 1.0) / 2.0
    return float(np.linalg.norm(T[:3, 3])), float(np.arccos(np.clip(cosine, -1.0, 1.0)))


def interpolate(T_a: Matrix, T_b: Matrix, fraction: float) -> Matrix:
    """The SE(3) pose `fraction` of the way from T_a to T_b along the geodesic; beyond 1 it extrapolates."""
    return T_a @ exp(fraction * log(inverse(T_a) @ T_b))


def orthonormalised(T: Matrix) -> Matrix:
    """T with its rotation projected back onto SO(3) by SVD, against drift of long products."""
    U, _, Vt = np.linalg.svd(T[:3, :3])
    result = T.copy()
    result[:3, :3] = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
    return result


def is_valid(T: Matrix) -> bool:
    """True for a finite SE(3) matrix with a proper rotation, to 1e-3."""
    T = np.asarray(T)
    return bool(
        T.shape == (4, 4)
        and np.all(np.isfinite(T))
        and np.allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-3)
        and np.linalg.det(T[:3, :3]) > 0
    )
