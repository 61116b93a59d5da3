# SPDX-License-Identifier: Apache-2.0
"""MASt3R: DUSt3R with a descriptor per pixel, for matching, and metric points.

Leroy et al., "Grounding image matching in 3D with MASt3R", ECCV 2024. Attribute names are those of published
checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon_ros.networks.blocks import Mlp
from recon_ros.networks.dpt import Upsample
from recon_ros.networks.heads import postprocess
from recon_ros.networks.pair import PairConfig, PairNetwork
from recon_ros.networks.patches import tokens_to_map


@dataclass(frozen=True)
class Mast3rConfig(PairConfig):
    """Sizes of a MASt3R.

    Attributes:
        head: `"catmlp+dpt"` (points from a DPT head) or `"catconv"` (points from an MLP and convolutions).
        descriptor_dim: length of a descriptor.
        conv_dim: width of the convolutions of `"catconv"`.
        conv_mlp_channels: channels its MLP hands to them.
    """

    head: Literal["catmlp+dpt", "catconv"] = "catmlp+dpt"
    descriptor_dim: int = 24
    conv_dim: int = 100
    conv_mlp_channels: int = 25

    @classmethod
    def vitlarge_512(cls) -> Mast3rConfig:
        """The published metric MASt3R for images of 512 pixels."""
        return cls()


class DescribedPointmap(NamedTuple):
    """A pointmap with descriptors, float32.

    `points` (B, H, W, 3), `confidence` (B, H, W) in (1, ∞), `descriptors` (B, H, W, D) of unit length,
    `descriptor_confidence` (B, H, W) in (0, ∞).
    """

    points: Tensor
    confidence: Tensor
    descriptors: Tensor
    descriptor_confidence: Tensor


class ConvPoints(nn.Module):
    """Points by an MLP to half the resolution, then convolutions at full resolution."""

    SUBPATCH = 2

    def __init__(self, in_dim: int, mlp_channels: int, conv_dim: int, patch: int) -> None:
        super().__init__()
        self.cell = patch // self.SUBPATCH
        self.mlp = Mlp(in_dim, 4 * in_dim, mlp_channels * self.cell**2)
        self.head = nn.Sequential(
            Upsample(), nn.Conv2d(mlp_channels, conv_dim, 3, padding=1), nn.ReLU(), nn.Conv2d(conv_dim, 4, 1)
        )

    def forward(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """(B, rows·columns, in_dim) → (B, 4, rows·patch, columns·patch)."""
        return self.head(F.pixel_shuffle(tokens_to_map(self.mlp(tokens), rows, columns), self.cell))


class DescriptorHead(nn.Module):
    """Points from a dense head, descriptors from an MLP over the encoder's and the decoder's last feature."""

    def __init__(self, config: Mast3rConfig) -> None:
        super().__init__()
        self.patch = config.patch
        in_dim = config.enc_dim + config.dec_dim
        self.hooks: tuple[int, ...] | None = None
        if config.head == "catmlp+dpt":
            self.hooks = config.dpt_hooks
            self.dpt = config.dpt(channels=4)
        else:
            self.head_pts3d = ConvPoints(in_dim, config.conv_mlp_channels, config.conv_dim, config.patch)
        # One channel more than the descriptor: its confidence.
        self.head_local_features = Mlp(in_dim, 4 * in_dim, (config.descriptor_dim + 1) * config.patch**2)

    def forward(self, features: Sequence[Tensor], rows: int, columns: int) -> DescribedPointmap:
        """Features as `PairNetwork.decode` returns them → the pointmap at full resolution."""
        tokens = torch.cat((features[0], features[-1]), dim=-1)
        if self.hooks is None:
            raw = self.head_pts3d(tokens, rows, columns)
        else:
            raw = self.dpt([features[hook] for hook in self.hooks], rows, columns)
        local = F.pixel_shuffle(tokens_to_map(self.head_local_features(tokens), rows, columns), self.patch)
        local = local.to(torch.float32).permute(0, 2, 3, 1)
        return DescribedPointmap(*postprocess(raw), F.normalize(local[..., :-1], dim=-1), torch.exp(local[..., -1]))


class Mast3r(PairNetwork[DescribedPointmap]):
    """The network; see `PairNetwork` for its use."""

    def __init__(self, config: Mast3rConfig) -> None:
        super().__init__(config, DescriptorHead(config), DescriptorHead(config))
