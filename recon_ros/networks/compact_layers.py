# SPDX-License-Identifier: Apache-2.0
"""The small layers of the compact network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from recon_ros.networks.blocks import AttentionCore, layer_norm


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W), pixel by pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = layer_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + conv(GELU(conv(norm(x)))), both 3×3; begins as the identity."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(self.norm(x))))


class TokenBlock(nn.Module):
    """A transformer block over all cells of (B, N, C)."""

    def __init__(self, channels: int, heads: int, ratio: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.core: AttentionCore = F.scaled_dot_product_attention
        self.norm1 = layer_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = layer_norm(channels)
        self.fc1 = nn.Linear(channels, ratio * channels)
        self.fc2 = nn.Linear(ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, channels = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, count, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = self.core(q, k, v).transpose(1, 2).reshape(batch, count, channels)
        x = x + self.proj(attended)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def doubled(x: Tensor) -> Tensor:
    """(B, C, 2 H, 2 W), bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
