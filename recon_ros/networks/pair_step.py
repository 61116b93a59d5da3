# SPDX-License-Identifier: Apache-2.0
"""DUSt3R and MASt3R as a stream: each image is paired with a reference, in whose camera both pointmaps come.

The networks see two images at a time and, but for metric ones, choose a scale anew for each pair. Here the encoding
of a reference image is the memory; the reference's own points, as they were when it became the reference, tell what
each later pair must be multiplied by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_ros.errors import InputError
from recon_ros.frame import Camera, Prediction
from recon_ros.geometry import focal, se3
from recon_ros.networks.card import ModelCard
from recon_ros.networks.pair import Encoding, PairNetwork
from recon_ros.networks.patches import image_tensor
from recon_ros.networks.spann3r_step import find_pose

StepMemory = dict[str, Tensor]
"""``features`` (1, N, D), ``positions`` (1, N, 2), ``grid`` (2,): the reference's encoding; ``points`` (H, W, 3)
float32 its own points, ``pose`` (4, 4) float64 T_memory_reference, ``focal`` () float64 pixels. Empty before the
first image."""

MIN_CONFIDENCE = 1.8
"""Median confidence (1 + exp) of the current pointmap below which the image becomes the next reference: the pair has
little left in common. The networks' confidence of an image with nothing in common stays near 1."""


class PairStep:
    """A `StepRuntime` (see `recon_ros/runtimes/step.py`) around a DUSt3R or MASt3R network.

    Args:
        network: with its weights; put in evaluation mode. Runs where its weights are.
        card: what it is.
    """

    runtime = "torch"

    def __init__(self, network: PairNetwork[Any], card: ModelCard) -> None:
        self.network = network.eval()
        self.card = card

    def initial_memory(self) -> StepMemory:
        """Nothing seen yet; the first image's camera becomes the frame of the memory."""
        return {}

    @torch.inference_mode()
    def step(
        self,
        memory: StepMemory,
        image: NDArray[np.uint8],
        camera: Camera | None,
        depth: NDArray[np.float32] | None = None,
    ) -> tuple[StepMemory, Prediction]:
        """Pair the image with the reference; the first one with itself.

        Args:
            memory: of the last step, or `initial_memory()`; not changed.
            image: (H, W, 3) uint8 RGB, sides multiples of the patch size, of the first image's size.
            camera: for the pose; None takes the first image's focal length, from its pointmap.
            depth: not used.

        Raises:
            InputError: ``image_size`` for another size; ``network_output`` when the answer is not finite; ``focal`` or
                ``pose`` when the points make up no image. The memory stays as it was.
        """
        device = self.network.mask_token.device
        encoding = self.network.encode(image_tensor(image, self.network.config.patch).to(device))
        reference = _encoding(memory) if memory else encoding
        if (reference.rows, reference.columns) != (encoding.rows, encoding.columns):
            raise InputError("image_size", f"image is {image.shape[1]}x{image.shape[0]}, not of the first one's size")
        map1, map2 = self.network.pair(reference, encoding)
        points1, points2, confidence = (
            tensor[0].float().cpu().numpy() for tensor in (map1.points, map2.points, map2.confidence)
        )
        if not all(np.isfinite(array).all() for array in (points1, points2, confidence)):
            raise InputError("network_output", f"{self.card.name} gave numbers that are not finite for this image")
        if not memory:
            length = camera.fx if camera is not None else focal.weiszfeld(points1, confidence)
            prediction = self._prediction(points1, map1.confidence[0].float().cpu().numpy(), np.eye(4), np.eye(4))
            return _memory(encoding, prediction, np.eye(4), length), prediction

        length = float(memory["focal"])
        points2 = points2 * self._scale(memory["points"].numpy(), points1)
        lens = camera or Camera.from_focal(image.shape[1], image.shape[0], length)
        T_reference_camera = find_pose(points2, confidence, lens)
        T_memory_reference = memory["pose"].numpy()
        prediction = self._prediction(points2, confidence, T_reference_camera, T_memory_reference)
        if np.median(confidence) >= MIN_CONFIDENCE:
            return memory, prediction
        return _memory(encoding, prediction, T_memory_reference @ T_reference_camera, length), prediction

    def _scale(self, known: NDArray[np.float32], points: NDArray[np.float32]) -> float:
        """What this pair's points are multiplied by to be in the memory's unit."""
        if self.card.is_metric:
            return 1.0
        return float(np.median(np.linalg.norm(known, axis=-1)) / max(np.median(np.linalg.norm(points, axis=-1)), 1e-9))

    def _prediction(
        self,
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
            is_metric=self.card.is_metric,
        )


def _encoding(memory: StepMemory) -> Encoding:
    rows, columns = memory["grid"].tolist()
    return Encoding(memory["features"], memory["positions"], rows, columns)


def _memory(
    encoding: Encoding, prediction: Prediction, T_memory_reference: NDArray[np.float64], length: float
) -> StepMemory:
    return {
        "features": encoding.features,
        "positions": encoding.positions,
        "grid": torch.tensor([encoding.rows, encoding.columns]),
        "points": torch.from_numpy(prediction.points_self.copy()),
        "pose": torch.from_numpy(T_memory_reference.copy()),
        "focal": torch.tensor(length, dtype=torch.float64),
    }
