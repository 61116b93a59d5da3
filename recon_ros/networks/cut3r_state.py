# SPDX-License-Identifier: Apache-2.0
"""What CUT3R remembers: the state tokens with their grid, and the pose memory with its reader and writer.

Wang et al., "Continuous 3D perception model with persistent state", CVPR 2025, sections 3.1 and 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recon_ros.networks.blocks import DecoderBlock


def grid_width(tokens: int) -> int:
    """Columns of the grid that the state tokens sit on: ⌊√tokens⌋, made even; 28 for 768."""
    width = math.isqrt(tokens)
    return width + width % 2


def state_positions(tokens: int, device: torch.device | None = None) -> Tensor:
    """(tokens, 2) int64 (row, column) of the state tokens, row by row; the last row may be incomplete."""
    index = torch.arange(tokens, device=device)
    width = grid_width(tokens)
    return torch.stack((index // width, index % width), dim=-1)


class PoseRetriever(nn.Module):
    """An associative memory of image → pose token, (M, 2·dim): one half of a slot is image, the other pose.

    Args:
        feature_dim: width of the encoder's tokens.
        dim: width of the pose token.
        slots: M.
        heads: of the blocks, which are 2·dim wide.
        depth: number of reading blocks, and of writing blocks.
    """

    def __init__(self, feature_dim: int, dim: int, slots: int, heads: int, depth: int = 2) -> None:
        super().__init__()
        self.mem = nn.Parameter(torch.zeros(1, slots, 2 * dim))
        self.masked_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.proj_q = nn.Linear(feature_dim, dim)
        self.read_blocks = nn.ModuleList(DecoderBlock(2 * dim, heads) for _ in range(depth))
        self.write_blocks = nn.ModuleList(DecoderBlock(2 * dim, heads) for _ in range(depth))

    def read(self, memory: Tensor, feature: Tensor) -> Tensor:
        """What pose to expect of an image: (B, M, 2·dim), (B, 1, feature_dim) mean token → (B, 1, dim)."""
        image = self.proj_q(feature)
        query = torch.cat((image, self.masked_token.expand_as(image)), dim=-1)
        for block in self.read_blocks:
            query = block(query, memory)
        return query.chunk(2, dim=-1)[1]

    def write(self, memory: Tensor, feature: Tensor, pose_token: Tensor) -> Tensor:
        """The memory after this image, with its decoded (B, 1, dim) pose token: (B, M, 2·dim)."""
        entry = torch.cat((self.proj_q(feature), pose_token), dim=-1)
        for block in self.write_blocks:
            memory = block(memory, entry)
        return memory
