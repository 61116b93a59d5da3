# SPDX-License-Identifier: Apache-2.0
"""CUT3R as a stream: one image in, points and pose out; the state is all the memory there is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Camera, Prediction
from recon_ros.geometry import se3
from recon_ros.runtimes.executor import GraphMemory
from recon_ros.runtimes.families.network_step import GRAPH, NetworkStep, Outputs, StepMemory


class Cut3rStep(NetworkStep):
    """The network gives the pose itself; the camera is not looked at."""

    def _tell(
        self, memory: StepMemory, after: GraphMemory, outputs: Outputs, camera: Camera | None
    ) -> tuple[StepMemory, Prediction]:
        prediction = Prediction(
            points_self=outputs["points"],
            confidence=outputs["confidence"],
            T_memory_camera=pose_matrix(outputs["pose"]),
            points_memory=outputs.get("points_memory"),
            descriptor=outputs["descriptor"],
            is_metric=self.card.is_metric,
        )
        return {GRAPH: after}, prediction


def pose_matrix(camera_pose: NDArray[np.float32]) -> NDArray[np.float64]:
    """(7,) translation and quaternion w, x, y, z of a camera-to-world pose → (4, 4) T_world_camera."""
    translation, (w, x, y, z) = camera_pose[:3].astype(np.float64), camera_pose[3:].astype(np.float64)
    return se3.from_quaternion(translation, np.array([x, y, z, w]))
