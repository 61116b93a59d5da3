# SPDX-License-Identifier: Apache-2.0
"""The model card: what a user of a pointmap source must know of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ModelCard:
    """Facts about one source of pointmaps.

    Attributes:
        name: as in ``source`` of the configuration.
        family: which kind of step it is (``depth``, or a network family).
        max_size: longer side of its grid at most, pixels; None leaves it to the configuration.
        multiple: the grid's sides are multiples of this, pixels.
        is_metric: its points are in metres.
        unbounded_confidence: confidence lies in [1, ∞) as in DUSt3R; otherwise in [0, 1].
        needs_depth: it reads the depth image.
        needs_camera: it needs K.
        weight_licence: licence of its weights; empty when it has none.
        depth_error: relative error that its depth usually has, where that is more than a good sensor's; 0 where not.
    """

    name: str
    family: str
    max_size: int | None = None
    multiple: int = 1
    is_metric: bool = False
    unbounded_confidence: bool = False
    needs_depth: bool = False
    needs_camera: bool = False
    weight_licence: str = ""
    depth_error: float = 0.0

    def normalised(self, confidence: NDArray[np.float32]) -> NDArray[np.float32]:
        """Confidence in [0, 1]; (c − 1)/c of an unbounded one, which is monotone."""
        if not self.unbounded_confidence:
            return confidence
        return np.where(confidence > 1, 1 - 1 / np.maximum(confidence, 1), 0).astype(np.float32)
