# SPDX-License-Identifier: Apache-2.0
"""Spann3R as a stream: one image in, points and pose out, and a memory of fixed shapes that the caller owns."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_ros.errors import InputError
from recon_ros.frame import Camera, Prediction
from recon_ros.geometry import focal, pnp, se3
from recon_ros.networks.card import ModelCard
from recon_ros.networks.patches import image_tensor
from recon_ros.networks.spann3r import Spann3r, Spann3rState

StepMemory = dict[str, Tensor]
"""`Spann3rState.state_dict()`; and of the first image `size` (2,) int64, height and width, and `focal` () float64.

Empty before the first image, whose size decides all the shapes.
"""

FIRST = ("size", "focal")
INLIER_PIXELS = 5.0
"""Reprojection error of a point that supports the pose."""
MAX_POINTS = 2000
"""Points the pose is looked for with."""


class Spann3rStep:
    """A `StepRuntime` (see `recon_ros/runtimes/step.py`) around a Spann3R network.

    Its prediction of an image is the one in advance, of the second head: nothing is one frame late.

    Args:
        network: with its weights; put in evaluation mode. Runs where its weights are.
        card: what it is.
    """

    runtime = "torch"

    def __init__(self, network: Spann3r, card: ModelCard) -> None:
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
        """Take in one image.

        Args:
            memory: of the last step, or `initial_memory()`; not changed.
            image: (H, W, 3) uint8 RGB of the first image's size, sides multiples of the patch size.
            camera: for the pose; None takes the first image's focal length, in the end from its pointmap.
            depth: not used.

        Raises:
            InputError: `image_size`, it is not that of the first image or not a multiple of the patch size;
                `network_output`, the network's answer is not finite, which would spoil the memory for ever;
                `focal` or `pose`, the points make up no image. The memory stays as it was.
            NetworkError: the memory's rules do not allow for this many tokens.
        """
        height, width = image.shape[:2]
        weight = self.network.value_out.weight
        pixels = image_tensor(image, self._patch).to(weight.device, weight.dtype)
        is_first = not memory
        if not is_first and memory["size"].tolist() != [height, width]:
            raise InputError("image_size", f"image is {width}x{height}, not of the size the Spann3R memory began with")
        before = self.network.initial_state(height, width) if is_first else _state(memory)
        after, output = self.network(before, pixels)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (*after.state_dict().values(), *output.current)):
            raise InputError("network_output", f"{self.card.name} gave numbers that are not finite for this image")

        points, confidence = (tensor[0].float().cpu().numpy() for tensor in output.current)
        if is_first:
            # The memory's frame is this camera; its focal length serves images that come without calibration.
            length = camera.fx if camera is not None else focal.weiszfeld(points, confidence)
            T_memory_camera = np.eye(4)
        else:
            length = float(memory["focal"])
            T_memory_camera = find_pose(points, confidence, camera or Camera.from_focal(width, height, length))
        prediction = Prediction(
            points_self=se3.transform(se3.inverse(T_memory_camera), points),
            confidence=confidence,
            T_memory_camera=T_memory_camera,
            points_memory=points,
            is_metric=self.card.is_metric,
        )
        first = {"size": torch.tensor([height, width]), "focal": torch.tensor(length, dtype=torch.float64)}
        return {**after.state_dict(), **first}, prediction

    @property
    def _patch(self) -> int:
        return self.network.config.dust3r.patch


def find_pose(points: NDArray[np.float32], confidence: NDArray[np.float32], camera: Camera) -> NDArray[np.float64]:
    """(4, 4) T_memory_camera of the camera that sees (H, W, 3) points of the memory's frame at their pixels.

    PnP in RANSAC over the surer half of the pixels.

    Raises:
        InputError: `pose` when no camera sees them so.
    """
    height, width = confidence.shape
    stride = max(1, int(np.ceil(np.sqrt(height * width / (2 * MAX_POINTS)))))
    v, u = (axis.ravel() for axis in np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride])
    sure = confidence[v, u] >= np.median(confidence[v, u])
    u, v = u[sure], v[sure]
    observations = pnp.Observations(
        points[v, u].astype(np.float64),
        np.stack([u, v], axis=-1).astype(np.float64),
        np.full(len(u), np.nan),
        np.arange(len(u), dtype=np.int64),
    )
    found = pnp.ransac(observations, camera, INLIER_PIXELS)
    if found is None:
        raise InputError("pose", f"no camera of focal length {camera.fx:.0f} px sees the predicted points like this")
    return se3.inverse(found[0])


def _state(memory: StepMemory) -> Spann3rState:
    return Spann3rState.from_state_dict({name: tensor for name, tensor in memory.items() if name not in FIRST})
