# SPDX-License-Identifier: Apache-2.0
"""What a keyframe keeps of the view it is made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Camera, Frame, Keyframe
from recon_ros.networks.card import ModelCard
from recon_ros.tracking.tracker import Track
from recon_ros.tracking.view import View


@dataclass(frozen=True, eq=False)
class Placed:
    """A frame with a pose, kept in case it is to be a keyframe later, when the map may have moved.

    Attributes:
        view, frame, track: as it was tracked.
        reference_id: the keyframe it hangs on.
        T_reference_view: (4, 4) Sim(3) from the view's points to that keyframe's, which no correction changes.
    """

    view: View
    frame: Frame
    track: Track
    reference_id: int
    T_reference_view: NDArray[np.float64]


def keyframe_of(
    keyframe_id: int, view: View, frame: Frame, T_world_camera: NDArray[np.float64], stride: int, card: ModelCard
) -> Keyframe:
    """A view as a keyframe.

    Args:
        keyframe_id: the store's next.
        view: with every `stride`-th of its pixels.
        frame: that it is of.
        T_world_camera: (4, 4) Sim(3), from the view's points to the world.
        stride: pixels.
        card: of the source, which knows what its confidences mean.
    """
    strided = (slice(stride // 2, None, stride),) * 2
    points = view.points[strided].astype(np.float16)
    height, width = points.shape[:2]
    window = view.camera.cropped(stride // 2, stride // 2, width * stride, height * stride)
    K = window.K.copy()
    K[:2] /= stride  # every stride-th pixel is kept, not an average: pixel centres stay where they are
    return Keyframe(
        id=keyframe_id,
        stamp_ns=frame.stamp_ns,
        frame_id=frame.frame_id,
        camera=Camera(width, height, K),
        T_world_camera=T_world_camera.copy(),
        points=points,
        confidence=card.normalised(view.prediction.confidence)[strided].astype(np.float16),
        colour=view.image[strided].copy(),
        features=view.features.only_located(),
        is_metric=view.prediction.is_metric,
    )
