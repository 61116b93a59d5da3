# SPDX-License-Identifier: Apache-2.0
"""The image encoder of SAM 2 tiny: three stages of a Hiera trunk, features at /8 and /16 of the image.

Ryali et al., "Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles", ICML 2023, with the position
map of Bolya et al., "Window Attention is Not Enough", ICLR 2024, as Ravi et al., "SAM 2", 2024, trained it (weights
under Apache-2.0; `training/initial.py` gets them). Windows of 8 and 4 tokens are the same places on the image at /4
and /8, so the tokens stay in their windows through both stages, and two transpositions are all it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon_ros.errors import InputError
from recon_ros.networks.blocks import AttentionCore, Mlp, layer_norm

MULTIPLE = 32
"""Sides of the image must be multiples of this, pixels."""
BEFORE_STAGE_3 = 3
"""Blocks of stages 1 and 2; the next one makes the third stage's tokens."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours in [0, 1], which the weights were trained with."""
_GLOBAL = (5, 7, 9)
"""The blocks that SAM 2 tiny trained without windows."""


class Encoded(NamedTuple):
    """What an encoder says of images.

    Attributes:
        f8: (B, C8, H/8, W/8), fine features.
        f16: (B, C16, H/16, W/16), coarse features, of wide context.
    """

    f8: Tensor
    f16: Tensor


@dataclass(frozen=True)
class HieraConfig:
    """Shape of the trunk; the defaults are SAM 2 tiny's, less a block.

    Attributes:
        width: features of a token at /4; doubled at each of the two next stages. Heads are as wide as this.
        blocks: of the third stage, 1 to 7; the last ones of seven are left out. Six by default: with seven, two files
            of the whole network in half precision exceed 60 MB.
        window: side of the third stage's windows, tokens: 14 as it was trained, where three blocks have none. 0: no
            block of the third stage has windows, which at small images is faster and sees farther.
    """

    width: int = 96
    blocks: int = 6
    window: int = 0

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of `Encoded.f8` and `Encoded.f16`."""
        return 2 * self.width, 4 * self.width


class WindowAttention(nn.Module):
    """Self-attention within each of N windows: (N, h, w, dim) → (N, h, w, out), or half as high and wide with `pool`.

    Queries are pooled by the maximum of 2×2 tokens. `core` computes the attention itself.
    """

    core: AttentionCore

    def __init__(self, dim: int, out: int, heads: int, pool: bool) -> None:
        super().__init__()
        self.heads = heads
        self.pool = pool
        self.core = F.scaled_dot_product_attention
        self.qkv = nn.Linear(dim, 3 * out)
        self.proj = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = halve(q) if self.pool else q
        # Rows and columns stay apart while the heads change places: where there are as many tokens as heads, OpenVINO
        # (2026.4, bfloat16) takes the other order of these steps for none, and returns wrong numbers.
        attended = self.core(*(self._by_head(t) for t in (q, k, v)))
        return self.proj(attended.unflatten(2, q.shape[1:3]).permute(0, 2, 3, 1, 4).flatten(3))

    def _by_head(self, x: Tensor) -> Tensor:
        """(N, h, w, C) → (N, heads, h·w, C/heads)."""
        return x.unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


class HieraBlock(nn.Module):
    """Attention and MLP, each with a residual: (N, h, w, dim) → (N, h, w, out), or half as high and wide.

    Args:
        dim, out: width of the tokens before and after; where they differ, 2×2 tokens become one.
        heads: of the attention.
        window: the map is cut into windows of this side for the attention, filled up with zeros; 0: it is one window.
    """

    def __init__(self, dim: int, out: int, heads: int, window: int = 0) -> None:
        super().__init__()
        self.window = window
        self.norm1 = layer_norm(dim)
        self.attn = WindowAttention(dim, out, heads, pool=dim != out)
        self.proj = nn.Linear(dim, out) if dim != out else None
        self.norm2 = layer_norm(out)
        self.mlp = Mlp(out, 4 * out)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x if self.proj is None else halve(self.proj(normed))
        x = x + (self._attend_in_windows(normed) if self.window else self.attn(normed))
        return x + self.mlp(self.norm2(x))

    def _attend_in_windows(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        padded = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        attended = self.attn(to_windows(padded, self.window))
        return from_windows(attended, padded.shape[1] // self.window, padded.shape[2] // self.window)[
            :, :height, :width
        ]


class Hiera(nn.Module):
    """The trunk, cut behind its third stage: images (B, 3, H, W) RGB in [0, 1] → `Encoded`.

    H and W are multiples of 32; normalisation is inside. Raises InputError for another size.
    """

    def __init__(self, config: HieraConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HieraConfig()
        if not 1 <= config.blocks <= 7:
            raise ValueError(f"the third stage has 1 to 7 blocks, not {config.blocks}")
        width = config.width
        self.patch_embed = nn.Conv2d(3, width, kernel_size=7, stride=4, padding=3)
        self.position = nn.Parameter(torch.zeros(1, width, 7, 7))
        self.position_window = nn.Parameter(torch.zeros(1, width, 8, 8))
        # A block that changes the width belongs to the stage before it by its windows, to the next by its output.
        sides = [width, width, 2 * width, 2 * width, *[4 * width] * config.blocks]
        windows = [0] * (BEFORE_STAGE_3 + 1) + [
            0 if i in _GLOBAL else config.window for i in range(BEFORE_STAGE_3 + 1, BEFORE_STAGE_3 + config.blocks)
        ]
        self.blocks = nn.ModuleList(
            HieraBlock(dim, out, out // width, window)
            for dim, out, window in zip(sides, sides[1:], windows, strict=False)
        )

    def forward(self, image: Tensor) -> Encoded:
        height, width = image.shape[2:]
        if height % MULTIPLE or width % MULTIPLE:
            raise InputError("image_size", f"the image is {width}x{height}; its sides must be multiples of {MULTIPLE}")
        rows, columns = height // MULTIPLE, width // MULTIPLE
        mean, deviation = (torch.tensor(v, device=image.device).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
        x = self.patch_embed((image - mean) / deviation).to(self.position.dtype)
        x = to_windows((x + self.position_map(height // 4, width // 4)).permute(0, 2, 3, 1), 8)
        for block in self.blocks[:BEFORE_STAGE_3]:
            x = block(x)
        f8 = from_windows(x, rows, columns)
        x = from_windows(self.blocks[BEFORE_STAGE_3](x), rows, columns)
        for block in self.blocks[BEFORE_STAGE_3 + 1 :]:
            x = block(x)
        return Encoded(f8.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2))

    def position_map(self, rows: int, columns: int) -> Tensor:
        """(1, width, rows, columns): the smooth part, stretched by cubic interpolation, plus one tile per window."""
        down, along = (
            torch.tensor(cubic_weights(self.position.shape[2], n).tolist()).to(self.position) for n in (rows, columns)
        )
        smooth = torch.matmul(torch.matmul(down, self.position), along.transpose(0, 1))
        return smooth + self.position_window.tile(1, 1, rows // 8, columns // 8)


def cubic_weights(given: int, wanted: int) -> np.ndarray:
    """(wanted, given) float64: row i holds the weights of `given` samples in sample i of `wanted`.

    Cubic convolution with a = −0.75 and clamped borders, half-pixel centres: what PyTorch and ONNX call bicubic, as a
    matrix, so that no executor needs a cubic resize.
    """
    centres = (np.arange(wanted) + 0.5) * given / wanted - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((wanted, given))
    for tap in range(4):
        away = np.abs(centres - (first + tap))
        near = (1.25 * away - 2.25) * away**2 + 1
        far = ((-0.75 * away + 3.75) * away - 6) * away + 3
        np.add.at(weights, (np.arange(wanted), np.clip(first + tap, 0, given - 1)), np.where(away <= 1, near, far))
    return weights


def halve(x: Tensor) -> Tensor:
    """(N, h, w, C) → (N, h/2, w/2, C): the maximum of 2×2 tokens."""
    x = torch.maximum(x[:, 0::2], x[:, 1::2])
    return torch.maximum(x[:, :, 0::2], x[:, :, 1::2])


def to_windows(x: Tensor, side: int) -> Tensor:
    """(B, r·side, c·side, C) → (B·r·c, side, side, C), row-major."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(2, 3).reshape(-1, side, side, channels)


def from_windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B·rows·columns, s, s, C) → (B, rows·s, columns·s, C): undoes `to_windows`."""
    _, side, _, channels = x.shape
    x = x.reshape(-1, rows, columns, side, side, channels)
    return x.transpose(2, 3).reshape(-1, rows * side, columns * side, channels)
