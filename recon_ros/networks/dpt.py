# SPDX-License-Identifier: Apache-2.0
"""Dense prediction head over transformer tokens.

Ranftl et al., "Vision transformers for dense prediction", ICCV 2021: features of four depths become a pyramid,
which is fused from coarse to fine. Attribute names are those of published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from recon_ros.networks.patches import tokens_to_map


def upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, 2H, 2W), bilinear, corner pixels on corner pixels."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))); the sum takes x itself, not relu(x)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FusionBlock(nn.Module):
    """Adds a level of the pyramid to the coarser path and doubles the resolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(dim, dim, 1)
        # The coarsest block adds no level; its first unit exists in checkpoints and is not used.
        self.resConfUnit1 = ResidualUnit(dim)
        self.resConfUnit2 = ResidualUnit(dim)

    def forward(self, path: Tensor, level: Tensor | None = None) -> Tensor:
        """`path` and `level` (B, dim, H, W) → (B, dim, 2H, 2W)."""
        if level is not None:
            path = path + self.resConfUnit1(level)
        return self.out_conv(upsample(self.resConfUnit2(path)))


class Upsample(nn.Module):
    """`upsample` as a module, to hold its place in a numbered sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return upsample(x)


class Scratch(nn.Module):
    """The layers trained from scratch: projections of the four levels to one width, and their fusion.

    Published checkpoints hold every projection under two names, `layer1_rn` and `layer_rn.0` and so on.
    """

    def __init__(self, layer_dims: Sequence[int], dim: int) -> None:
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(layer_dim, dim, 3, padding=1, bias=False) for layer_dim in layer_dims
        )
        self.layer_rn = nn.ModuleList([self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn])
        self.refinenet1, self.refinenet2, self.refinenet3, self.refinenet4 = (FusionBlock(dim) for _ in layer_dims)


class DPTHead(nn.Module):
    """Token features of four depths → one map at the resolution of the image.

    Args:
        token_dims: widths of the four token features, from shallow to deep.
        channels: channels of the output.
        layer_dims: widths of the pyramid's levels, from fine to coarse.
        feature_dim: width of the fusion.
        last_dim: width before the last convolution.

    The resampling factors make it a head for patches of 16 pixels.
    """

    def __init__(
        self,
        token_dims: Sequence[int],
        channels: int,
        layer_dims: Sequence[int] = (96, 192, 384, 768),
        feature_dim: int = 256,
        last_dim: int = 128,
    ) -> None:
        super().__init__()
        fine, quarter, half, coarse = layer_dims
        self.act_postprocess = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(token_dims[0], fine, 1), nn.ConvTranspose2d(fine, fine, 4, stride=4)),
                nn.Sequential(nn.Conv2d(token_dims[1], quarter, 1), nn.ConvTranspose2d(quarter, quarter, 2, stride=2)),
                nn.Sequential(nn.Conv2d(token_dims[2], half, 1)),
                nn.Sequential(nn.Conv2d(token_dims[3], coarse, 1), nn.Conv2d(coarse, coarse, 3, stride=2, padding=1)),
            ]
        )
        self.scratch = Scratch(layer_dims, feature_dim)
        self.head = nn.Sequential(
            nn.Conv2d(feature_dim, feature_dim // 2, 3, padding=1),
            Upsample(),
            nn.Conv2d(feature_dim // 2, last_dim, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(last_dim, channels, 1),
        )

    def forward(self, features: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """Four (B, rows·columns, dim) features, shallow to deep → (B, channels, 16·rows, 16·columns)."""
        scratch = self.scratch
        levels = [
            project(resample(tokens_to_map(tokens, rows, columns)))
            for tokens, resample, project in zip(features, self.act_postprocess, scratch.layer_rn, strict=True)
        ]
        path = scratch.refinenet4(levels[3])
        # An odd grid was rounded up on the way to the coarsest level: cut the surplus row or column.
        path = path[:, :, :rows, :columns]
        path = scratch.refinenet3(path, levels[2])
        path = scratch.refinenet2(path, levels[1])
        path = scratch.refinenet1(path, levels[0])
        return self.head(path)
