# SPDX-License-Identifier: Apache-2.0
"""Rotary position encoding of 2-D patch grids.

Su et al., "RoFormer: Enhanced transformer with rotary position embedding", 2021, applied per axis as in
Weinzaepfel et al., "CroCo v2", ICCV 2023: the first half of every head rotates with the row, the second half
with the column of the token.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROPE_BASE = 100.0


def rope_2d(x: Tensor, positions: Tensor, base: float = ROPE_BASE) -> Tensor:
    """Rotate every feature pair of `x` by its token's position times the pair's frequency.

    Cosines and sines are computed, not looked up, so any position is allowed; CUT3R's pose token sits at
    (−1, −1).

    Args:
        x: (B, heads, N, D) features, D a multiple of 4.
        positions: (B, N, 2) int64, (row, column) of each token.
        base: ratio of the highest frequency to the limit of the lowest.

    Returns:
        (B, heads, N, D) in the dtype of `x`; the rotation itself is in float32.
    """
    pairs = x.shape[-1] // 4
    exponents = torch.arange(pairs, dtype=torch.float32, device=x.device) / pairs
    frequencies = torch.pow(torch.full_like(exponents, base), -exponents)
    # (B, 1, N, 2, pairs): one angle per axis and pair, the same in all heads.
    angles = positions[:, None, :, :, None].to(torch.float32) * frequencies
    cos, sin = torch.cos(angles), torch.sin(angles)

    # Inside an axis's half, pair i is made of the features i and i + D/4.
    first, second = x.to(torch.float32).unflatten(-1, (2, 2, pairs)).unbind(-2)
    rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2)
    return rotated.flatten(-3).to(x.dtype)


def rope_2d_fp16(x: Tensor, positions: Tensor, base: float = ROPE_BASE) -> Tensor:
    """`rope_2d` rounded to float16 before and after the rotation.

    This is what the published CUT3R does in its image encoder, so its published numbers contain the rounding.
    Shapes and dtypes as in `rope_2d`.
    """
    return rope_2d(x.to(torch.float16), positions, base).to(x.dtype)
