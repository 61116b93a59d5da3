# SPDX-License-Identifier: Apache-2.0
"""DUSt3R and MASt3R as a stream: each image is paired with a reference, in whose camera both pointmaps come.

The networks see two images at a time and, but for metric ones, choose a scale anew for each pair. Here the features of
a reference image are the memory; how far its own points were, when it became the reference, tells what each later pair
must be multiplied by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Camera, Prediction
from recon_ros.geometry import focal, se3
from recon_ros.runtimes.executor import GraphMemory
from recon_ros.runtimes.families.network_step import GRAPH, NetworkStep, Outputs, StepMemory
from recon_ros.runtimes.families.pose import find_pose

MIN_CONFIDENCE = 1.8
"""Median confidence (1 + exp) of the current pointmap below which the image becomes the next reference: the pair has
little left in common. The networks' confidence of an image with nothing in common stays near 1."""


class PairStep(NetworkStep):
    """Pairs each image with the reference; the first one with itself.

    On the host it keeps ``focal`` (), pixels, of the first image; ``pose`` (4, 4), T_memory_reference; and ``extent``
    (), the median distance of the reference's own points from its camera, in the memory's unit.
    """

    host: ClassVar[Mapping[str, tuple[int, ...]]] = {"focal": (), "pose": (4, 4), "extent": ()}

    def _tell(
        self, memory: StepMemory, after: GraphMemory, outputs: Outputs, camera: Camera | None
    ) -> tuple[StepMemory, Prediction]:
        points1 = outputs["points1"]
        if not memory:
            confidence = outputs["confidence1"]
            length = camera.fx if camera is not None else focal.weiszfeld(points1, confidence)
            prediction = self._prediction(outputs, points1, confidence, np.eye(4), np.eye(4))
            return _memory(after, prediction, np.eye(4), length), prediction

        length, T_memory_reference = float(memory["focal"]), memory["pose"]
        scale = np.float32(self._scale(float(memory["extent"]), points1))
        points2, confidence = outputs["points2"] * scale, outputs["confidence2"]
        T_reference_camera = find_pose(points2, confidence, camera or Camera.from_focal(*self.size, length))
        prediction = self._prediction(outputs, points2, confidence, T_reference_camera, T_memory_reference)
        if np.median(confidence) >= MIN_CONFIDENCE:
            return memory, prediction
        return _memory(after, prediction, T_memory_reference @ T_reference_camera, length), prediction

    def _scale(self, extent: float, points: NDArray[np.float32]) -> float:
        """What this pair's points are multiplied by to be in the memory's unit, by the reference's own points."""
        return 1.0 if self.card.is_metric else extent / max(_extent(points), 1e-9)

    def _prediction(
        self,
        outputs: Outputs,
        points_reference: NDArray[np.float32],
        confidence: NDArray[np.float32],
        T_reference_camera: NDArray[np.float64],
        T_memory_reference: NDArray[np.float64],
    ) -> Prediction:
        return Prediction(
            points_self=se3.transform(se3.inverse(T_reference_camera), points_reference),
            confidence=confidence,
            T_memory_camera=T_memory_reference @ T_reference_camera,
            points_memory=se3.transform(T_memory_reference, points_reference),
            descriptor=outputs["descriptor"],
            is_metric=self.card.is_metric,
        )


def _extent(points: NDArray[np.float32]) -> float:
    return float(np.median(np.linalg.norm(points, axis=-1)))


def _memory(
    after: GraphMemory, prediction: Prediction, T_memory_reference: NDArray[np.float64], length: float
) -> StepMemory:
    extent = _extent(prediction.points_self)
    return {GRAPH: after, "focal": np.array(length), "pose": T_memory_reference.copy(), "extent": np.array(extent)}
