# SPDX-License-Identifier: Apache-2.0
"""CUT3R as a stream: one image in, points and pose out, and a memory of fixed shapes that the caller owns."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_ros.errors import InputError
from recon_ros.frame import Camera, Prediction
from recon_ros.geometry import se3
from recon_ros.networks.card import ModelCard
from recon_ros.networks.cut3r import PATCH, Cut3r, Cut3rMemory, View
from recon_ros.networks.patches import image_tensor
from recon_ros.networks.update_rules import Filt3r, UpdateRule

StepMemory = dict[str, Tensor]
"""state (1, S, D), pose_memory (1, M, 2·D), is_first (1,) bool, and ``rule.<name>`` of the update rule."""

RULE_PREFIX = "rule."


class Cut3rStep:
    """A `StepRuntime` (see ``recon_ros/runtimes/step.py``) around a CUT3R network.

    Args:
        network: with its weights; put in evaluation mode. Runs where its weights are.
        card: what it is.
        rule: how the state takes a frame in.
        wanted: outputs to compute, ``self`` and ``pose`` among them; with ``cross`` the prediction has
            `points_memory`, which otherwise are the pose's business.
    """

    runtime = "torch"

    def __init__(
        self,
        network: Cut3r,
        card: ModelCard,
        rule: UpdateRule | None = None,
        wanted: Collection[str] = ("self", "pose"),
    ) -> None:
        self.network = network.eval()
        self.card = card
        self.rule = rule or Filt3r()
        self.wanted = tuple(wanted)

    @torch.inference_mode()
    def initial_memory(self) -> StepMemory:
        """Nothing seen yet; the first frame's camera becomes the frame of the memory."""
        return flatten(self.network.initial_memory(1, self.rule))

    @torch.inference_mode()
    def step(
        self,
        memory: StepMemory,
        image: NDArray[np.uint8],
        camera: Camera | None,
        depth: NDArray[np.float32] | None = None,
    ) -> tuple[StepMemory, Prediction]:
        """Take in one image; `camera` and `depth` are not looked at.

        Args:
            memory: of the last step, or `initial_memory()`; not changed.
            image: (H, W, 3) uint8 RGB, sides multiples of 16.
            camera, depth: not used.

        Raises:
            InputError: ``image_size``, sides are not multiples of 16; ``network_output``, the network's answer
                is not finite, so that it would spoil the state for ever. The memory stays as it was.
        """
        before = unflatten(memory)
        view = View(image_tensor(image, PATCH).to(self.network.pose_token))
        feature, grid = self.network.encode(view, mask_image=False, mask_rays=False)
        decoded = self.network.decode(feature, grid, before.state, before.pose_memory, before.is_first, self.wanted)
        after = flatten(self.network.advance(before, decoded, view, self.rule))
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (*after.values(), *decoded.outputs.values())):
            raise InputError("network_output", f"{self.card.name} gave numbers that are not finite for this image")
        return after, _prediction(decoded.outputs, self.card.is_metric)


def flatten(memory: Cut3rMemory) -> StepMemory:
    """One dictionary of tensors, as it is kept, copied and saved."""
    rule = {RULE_PREFIX + name: tensor for name, tensor in memory.rule.items()}
    return {"state": memory.state, "pose_memory": memory.pose_memory, "is_first": memory.is_first, **rule}


def unflatten(memory: StepMemory) -> Cut3rMemory:
    """What `flatten` made flat."""
    rule = {name.removeprefix(RULE_PREFIX): t for name, t in memory.items() if name.startswith(RULE_PREFIX)}
    return Cut3rMemory(memory["state"], memory["pose_memory"], memory["is_first"], rule)


def pose_matrix(camera_pose: NDArray[np.float32]) -> NDArray[np.float64]:
    """(7,) translation and quaternion w, x, y, z of a camera-to-world pose → (4, 4) T_world_camera."""
    translation, (w, x, y, z) = camera_pose[:3].astype(np.float64), camera_pose[3:].astype(np.float64)
    return se3.from_quaternion(translation, np.array([x, y, z, w]))


def _prediction(outputs: dict[str, Tensor], is_metric: bool) -> Prediction:
    arrays = {name: tensor[0].cpu().numpy() for name, tensor in outputs.items()}
    return Prediction(
        points_self=arrays["pts3d_in_self_view"],
        confidence=arrays["conf_self"],
        T_memory_camera=pose_matrix(arrays["camera_pose"]),
        points_memory=arrays.get("pts3d_in_other_view"),
        is_metric=is_metric,
    )
