# SPDX-License-Identifier: Apache-2.0
"""Images to patch tokens, and the positions of the tokens on the patch grid."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recon_ros.errors import InputError


def grid_positions(batch: int, rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """(batch, rows·columns, 2) int64: (row, column) of every token, row-major."""
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack((row, column), dim=-1).flatten(0, 1).expand(batch, -1, -1)


def image_tensor(image: NDArray[np.uint8], multiple: int) -> Tensor:
    """(H, W, 3) uint8 RGB → (1, 3, H, W) float32 in [−1, 1].

    Raises:
        InputError: ``image_size`` when a side is not a multiple of the patch size.
    """
    height, width = image.shape[:2]
    if height % multiple or width % multiple:
        raise InputError("image_size", f"the image is {width}x{height}; its sides must be multiples of {multiple}")
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(torch.float32)
    return (pixels / 127.5 - 1).permute(2, 0, 1)[None]


def tokens_to_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """(B, rows·columns, C) → (B, C, rows, columns)."""
    return tokens.transpose(1, 2).unflatten(2, (rows, columns))


class PatchEmbed(nn.Module):
    """One token per patch: (B, channels, H, W) → (B, H/patch · W/patch, dim), row-major.

    Raises InputError when H or W is not a multiple of the patch size.
    """

    def __init__(self, dim: int, patch: int = 16, channels: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, dim) and their positions (B, N, 2) int64, (row, column)."""
        batch, _, height, width = images.shape
        if height % self.patch or width % self.patch:
            raise InputError(
                "image_size",
                f"an image of {width}×{height} cannot be cut into patches: make both sides multiples of {self.patch}",
            )
        positions = grid_positions(batch, height // self.patch, width // self.patch, images.device)
        return self.proj(images).flatten(2).transpose(1, 2), positions
