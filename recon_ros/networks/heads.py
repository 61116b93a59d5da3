# SPDX-License-Identifier: Apache-2.0
"""Heads that turn decoder features into pointmaps.

Wang et al., "DUSt3R: Geometric 3D vision made easy", CVPR 2024. A pointmap holds one 3-D point per pixel, with
a confidence; both leave the network as unbounded numbers and get their range here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon_ros.networks.dpt import DPTHead
from recon_ros.networks.patches import tokens_to_map


class Pointmap(NamedTuple):
    """`points` (B, H, W, 3) float32 and `confidence` (B, H, W) float32 in (1, ∞)."""

    points: Tensor
    confidence: Tensor


def exp_norm(raw: Tensor) -> Tensor:
    """(…, 3) → (…, 3): p/‖p‖ · (exp ‖p‖ − 1), which keeps the direction and spans all distances."""
    norm = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp(min=1e-8)
    return raw / norm * torch.expm1(norm)


def postprocess(raw: Tensor) -> Pointmap:
    """(B, 4, H, W), channels x, y, z and log confidence, → the pointmap; in float32."""
    raw = raw.to(torch.float32).permute(0, 2, 3, 1)
    return Pointmap(exp_norm(raw[..., :3]), 1 + torch.exp(raw[..., 3]))


class LinearHead(nn.Module):
    """One linear layer on the last decoder feature; every token paints its patch."""

    def __init__(self, dim: int, patch: int = 16, channels: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(dim, channels * patch**2)

    def forward(self, features: Sequence[Tensor], rows: int, columns: int) -> Pointmap:
        """Decoder features, each (B, rows·columns, dim) → a pointmap of rows·patch × columns·patch."""
        maps = tokens_to_map(self.proj(features[-1]), rows, columns)
        return postprocess(F.pixel_shuffle(maps, self.patch))


class DPTPointHead(nn.Module):
    """A DPT head on four of the decoder's features.

    Args:
        dpt: the dense head, with 4 output channels.
        hooks: which features it reads; 0 is the encoder's.
    """

    def __init__(self, dpt: DPTHead, hooks: Sequence[int]) -> None:
        super().__init__()
        self.dpt = dpt
        self.hooks = tuple(hooks)

    def forward(self, features: Sequence[Tensor], rows: int, columns: int) -> Pointmap:
        """Encoder feature and decoder features, (B, rows·columns, …) each → a pointmap at full resolution."""
        return postprocess(self.dpt([features[hook] for hook in self.hooks], rows, columns))
