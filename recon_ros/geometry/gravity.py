# SPDX-License-Identifier: Apache-2.0
"""Which way is down: level frames, and rotations that make poses agree with what is known of gravity.

A level frame is an optical one (x right, y down, z ahead) whose y axis is that of gravity, and whose z axis is where
the camera looks, as seen from above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon_ros.geometry import se3

DOWN = np.array([0.0, 1.0, 0.0])
"""In a level frame."""
PLUMB = 0.98
"""Cosine to gravity above which a camera looks down or up and not ahead; then the top or bottom of its image tells
where ahead is."""

Matrix = NDArray[np.float64]


def level(down: NDArray[Any]) -> Matrix:
    """(3, 3) R_level_camera of the level frame of a camera, for the unit vector (3,) down in the camera's frame."""
    down = np.asarray(down, dtype=np.float64)
    ahead = np.array([0.0, 0.0, 1.0])
    if abs(down[2]) > PLUMB:
        ahead = np.array([0.0, -np.sign(down[2]), 0.0])
    ahead = ahead - (ahead @ down) * down
    ahead /= np.linalg.norm(ahead)
    return np.stack([np.cross(down, ahead), down, ahead])


def level_mount(T_base_camera: Matrix) -> Matrix:
    """(4, 4) pose, in a base that stands level (z up), of the level frame of the camera on it."""
    R = T_base_camera[:3, :3]
    return se3.make(R @ level(R.T @ [0.0, 0.0, -1.0]).T, T_base_camera[:3, 3])


def towards_down(T_world_camera: Matrix, down: NDArray[Any]) -> Matrix:
    """(N, 3, 3) smallest rotations that, from the left, turn (N, 4, 4) poses so that (N, 3) down in their cameras'
    frames is down in a level world."""
    R = Rotation.from_matrix(
        T_world_camera[:, :3, :3] / np.cbrt(np.linalg.det(T_world_camera[:, :3, :3]))[:, None, None]
    )
    said = R.apply(down)
    axis = np.cross(said, DOWN)
    sine, cosine = np.linalg.norm(axis, axis=1), said @ DOWN
    upside_down = sine < 1e-9
    axis[upside_down], sine = [1.0, 0.0, 0.0], np.where(upside_down, 0.0, sine)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    return np.asarray(Rotation.from_rotvec(axis * np.arctan2(sine, cosine)[:, None]).as_matrix())


def heading(R: Matrix) -> Matrix:
    """(3, 3) the part of a rotation that is about the vertical of a level world (its twist)."""
    _, y, _, w = Rotation.from_matrix(R).as_quat()
    return np.asarray(Rotation.from_rotvec(2.0 * np.arctan2(y, w) * DOWN).as_matrix())
