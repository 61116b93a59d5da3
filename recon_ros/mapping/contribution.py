# SPDX-License-Identifier: Apache-2.0
"""What one keyframe adds to the voxels its points fall into, as integers, so that sums do not depend on their order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Keyframe
from recon_ros.geometry import normals, se3
from recon_ros.mapping.voxels import COLOUR, COLUMNS, COUNT, NORMAL, POSITION, WEIGHT, Keys, pack

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
    """(N,) sorted voxel keys and the (N, COLUMNS) sums the keyframe, seen from a Sim(3) pose, adds to them."""
    chosen = usable(keyframe, min_confidence)
    points = se3.transform(T_world_camera, keyframe.points[chosen].astype(np.float64)) / voxel_size
    index = np.floor(points)
    weight = np.maximum(np.round(keyframe.confidence[chosen].astype(np.float32) * WEIGHT_UNIT), 1).astype(np.int64)
    rotation = (T_world_camera[:3, :3] / se3.scale_of(T_world_camera)).astype(np.float32)
    facing = normals.of_depth(keyframe.points[..., 2].astype(np.float32), keyframe.camera)[chosen] @ rotation.T

    values = np.empty((len(points), COLUMNS), np.int64)
    values[:, COUNT], values[:, WEIGHT] = 1, weight
    values[:, POSITION] = np.round((points - index) * POSITION_UNIT)
    values[:, COLOUR] = keyframe.colour[chosen]
    values[:, NORMAL] = np.round(facing * NORMAL_UNIT)
    values[:, POSITION.start :] *= weight[:, None]
    return _summed(pack(index.astype(np.int64)), values)


def _summed(keys: Keys, values: NDArray[np.int64]) -> tuple[Keys, NDArray[np.int64]]:
    """The distinct keys in order and the sum of each one's values."""
    if not len(keys):
        return keys, values
    order = np.argsort(keys)
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], np.add.reduceat(values[order], starts, axis=0)
