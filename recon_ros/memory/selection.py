# SPDX-License-Identifier: Apache-2.0
"""Which frames become keyframes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import MemoryConfig
from recon_ros.geometry import se3


def is_keyframe(
    config: MemoryConfig, best_overlap: float, T_reference_camera: NDArray[np.float64], median_depth: float
) -> bool:
    """True when the frame shows enough that no keyframe has seen, and the camera has moved at all.

    Both criteria are free of scale: the share of the frame's points that the best keyframe sees at a similar
    size, and, as a gate against making keyframes of noise, the translation relative to the median depth.

    Args:
        config: thresholds.
        best_overlap: largest share of the frame's confident points one keyframe sees.
        T_reference_camera: (4, 4) motion since the keyframe that sees most.
        median_depth: of the frame's points, in the map's unit.
    """
    moved, turned = se3.distance(T_reference_camera)
    has_moved = moved > config.min_translation * median_depth or turned > config.min_rotation
    return has_moved and best_overlap < config.min_overlap
