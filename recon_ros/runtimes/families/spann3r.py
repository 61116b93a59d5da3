# SPDX-License-Identifier: Apache-2.0
"""Spann3R as a stream: one image in, points and pose out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from recon_ros.frame import Camera, Prediction
from recon_ros.geometry import focal, se3
from recon_ros.runtimes.executor import GraphMemory
from recon_ros.runtimes.families.network_step import GRAPH, NetworkStep, Outputs, StepMemory
from recon_ros.runtimes.families.pose import find_pose


class Spann3rStep(NetworkStep):
    """Its prediction of an image is the one in advance, of the second head: nothing is one frame late.

    On the host it keeps ``focal`` (), pixels, of the first image.
    """

    host: ClassVar[Mapping[str, tuple[int, ...]]] = {"focal": ()}

    def _tell(
        self, memory: StepMemory, after: GraphMemory, outputs: Outputs, camera: Camera | None
    ) -> tuple[StepMemory, Prediction]:
        points, confidence = outputs["points"], outputs["confidence"]
        if not memory:
            # The memory's frame is this camera; its focal length serves images that come without calibration.
            length = camera.fx if camera is not None else focal.weiszfeld(points, confidence)
            T_memory_camera = np.eye(4)
        else:
            length = float(memory["focal"])
            T_memory_camera = find_pose(points, confidence, camera or Camera.from_focal(*self.size, length))
        prediction = Prediction(
            points_self=se3.transform(se3.inverse(T_memory_camera), points),
            confidence=confidence,
            T_memory_camera=T_memory_camera,
            points_memory=points,
            descriptor=outputs["descriptor"],
            is_metric=self.card.is_metric,
        )
        return {GRAPH: after, "focal": np.array(length)}, prediction
