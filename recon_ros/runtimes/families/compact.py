# SPDX-License-Identifier: Apache-2.0
"""The compact network as a stream: an image and its camera in, points and pose out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError
from recon_ros.frame import Camera, Prediction
from recon_ros.geometry import se3
from recon_ros.runtimes.executor import GraphMemory
from recon_ros.runtimes.families.network_step import GRAPH, NetworkStep, Outputs, StepMemory

CAMERA = "camera"
"""Of the memory tensors: (1, 4) float32 fx, fy, cx, cy, pixels."""
GUESSED_FOCAL = 0.8
"""Focal length per image width where nobody knows it."""


class CompactStep(NetworkStep):
    """The camera is part of what the network sees. On the host it keeps ``camera`` (4,), pixels."""

    host: ClassVar[Mapping[str, tuple[int, ...]]] = {CAMERA: (4,)}

    def _before(self, memory: StepMemory, camera: Camera | None) -> GraphMemory:
        """The executor's memory, with the camera of this image in it."""
        given = self._numbers(memory, camera)
        if memory and np.array_equal(memory[CAMERA], given):
            return memory[GRAPH]
        arrays = self.executor.read(memory[GRAPH] if memory else self.executor.initial())
        return self.executor.write({**arrays, CAMERA: given[None].astype(np.float32)})

    def _numbers(self, memory: StepMemory, camera: Camera | None) -> NDArray[np.float64]:
        if camera is None:
            if memory:
                return np.asarray(memory[CAMERA])
            camera = Camera.from_focal(*self.size, GUESSED_FOCAL * self.size[0])
        K = camera.K
        given = np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
        if not (np.isfinite(given).all() and given[0] > 0 and given[1] > 0):
            raise InputError(
                "camera", f"the camera's focal lengths are {given[0]} and {given[1]}; they must be positive"
            )
        return given

    def _tell(
        self, memory: StepMemory, after: GraphMemory, outputs: Outputs, camera: Camera | None
    ) -> tuple[StepMemory, Prediction]:
        prediction = Prediction(
            points_self=outputs["points"],
            confidence=outputs["confidence"],
            T_memory_camera=se3.orthonormalised(outputs["T_memory_camera"].astype(np.float64)),
            points_memory=None,
            descriptor=outputs["descriptor"],
            is_metric=self.card.is_metric,
        )
        return {GRAPH: after, CAMERA: self._numbers(memory, camera)}, prediction
