# SPDX-License-Identifier: Apache-2.0
"""What one keyframe adds to the voxels its points fall into, as integers, so that sums do not depend on their order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Keyframe
from recon_ros.geometry import normals, se3
from recon_ros.mapping.voxels import Keys, pack

WEIGHT_UNIT = 256
POSITION_UNIT = 1 << 12
"""Steps of a voxel edge the position inside a voxel is rounded to."""
NORMAL_UNIT = 127


def usable(keyframe: Keyframe, min_confidence: float) -> NDArray[np.bool_]:
    """(h, w) mask of the points that count."""
    mask: NDArray[np.bool_] = np.isfinite(keyframe.points[..., 2])
    mask &= keyframe.confidence.astype(np.float32) >= max(min_confidence, 1 / WEIGHT_UNIT)
    return mask


def contribution(
    keyframe: Keyframe, T_world_camera: NDArray[np.float64], min_confidence: float, voxel_size: float
) -> tuple[Keys, NDArray[np.int64]]:
    """(N,) sorted voxel keys and the (N, COLUMNS) sums the keyframe, seen from a Sim(3) pose, adds to them.

    The columns are those of `voxels`: count, weight, and weighted position in the voxel, colour and normal.
    """
    chosen = usable(keyframe, min_confidence)
    points = se3.transform(T_world_camera, keyframe.points[chosen].astype(np.float64)) / voxel_size
    index = np.floor(points)
    weight = np.maximum(np.round(keyframe.confidence[chosen].astype(np.float64) * WEIGHT_UNIT), 1)
    rotation = (T_world_camera[:3, :3] / se3.scale_of(T_world_camera)).astype(np.float32)
    facing = normals.of_depth(keyframe.points[..., 2].astype(np.float32), keyframe.camera)[chosen] @ rotation.T

    keys, voxel = _distinct(pack(index.astype(np.int64)))
    sums = [np.bincount(voxel, minlength=len(keys)), np.bincount(voxel, weight, len(keys))]
    for vectors in ((points - index) * POSITION_UNIT, keyframe.colour[chosen], facing * NORMAL_UNIT):
        sums += [np.bincount(voxel, np.round(axis) * weight, len(keys)) for axis in vectors.T]
    return keys, np.stack(sums, axis=1).astype(np.int64)  # doubles have held these whole numbers exactly


def _distinct(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """The distinct keys in order, and the position of each key among them.

    As np.unique, but only the first of a run is sorted, which neighbours in the image mostly make.
    """
    if not len(keys):
        return keys, np.zeros(0, np.int64)
    begins = np.concatenate([[True], keys[1:] != keys[:-1]])
    distinct, position = np.unique(keys[begins], return_inverse=True)
    return distinct, position[np.cumsum(begins) - 1]
