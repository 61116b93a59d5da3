# SPDX-License-Identifier: Apache-2.0
"""Transformer blocks of the pointmap networks.

Pre-norm blocks as in Weinzaepfel et al., "CroCo v2", ICCV 2023: self-attention (and, in decoders,
cross-attention) with 2-D rotary positions, and an MLP with exact GELU. Attribute names are those of published
checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon_ros.networks.rope import ROPE_BASE, rope_2d, rope_2d_fp16

NORM_EPS = 1e-6

AttentionCore = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (B, heads, N, D), keys and values (B, heads, M, D) → softmax(q·kᵀ/√D)·v, (B, heads, N, D)."""


class LayerNorm(nn.LayerNorm):
    """LayerNorm that computes in float32, whatever it is given, and returns what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(torch.float32), self.bias.to(torch.float32)
        return F.layer_norm(x.to(torch.float32), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def layer_norm(dim: int, eps: float = NORM_EPS) -> nn.LayerNorm:
    """LayerNorm over `dim` features with the family's epsilon (PyTorch's own is 1e-5)."""
    return LayerNorm(dim, eps=eps)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear: (…, in_dim) → (…, out_dim); `out_dim` is `in_dim` when None."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, in_dim if out_dim is None else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, dim) → (B, N, dim).

    Args:
        dim: width of the tokens.
        heads: number of heads, a divisor of `dim`.
        rope_base: base of the rotary positions.
        faithful_fp16_rope: round queries and keys to float16 around the rotation, as published CUT3R does in
            its image encoder.

    `core` computes the attention itself; `precision.prepare` exchanges it.
    """

    core: AttentionCore

    def __init__(self, dim: int, heads: int, rope_base: float = ROPE_BASE, faithful_fp16_rope: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.rope_base = rope_base
        self.faithful_fp16_rope = faithful_fp16_rope
        self.core = F.scaled_dot_product_attention
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Attend among the tokens; `positions` (B, N, 2) int64, None for none."""
        # (B, N, 3·dim) → three of (B, heads, N, dim/heads)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if positions is not None:
            rotate = rope_2d_fp16 if self.faithful_fp16_rope else rope_2d
            q, k = rotate(q, positions, self.rope_base), rotate(k, positions, self.rope_base)
        return self.proj(self.core(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a memory: (B, N, dim), (B, M, dim) → (B, N, dim).

    `core` computes the attention itself; `precision.prepare` exchanges it.
    """

    core: AttentionCore

    def __init__(self, dim: int, heads: int, rope_base: float = ROPE_BASE) -> None:
        super().__init__()
        self.heads = heads
        self.rope_base = rope_base
        self.core = F.scaled_dot_product_attention
        self.projq = nn.Linear(dim, dim)
        self.projk = nn.Linear(dim, dim)
        self.projv = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        x_positions: Tensor | None = None,
        memory_positions: Tensor | None = None,
    ) -> Tensor:
        """Read `memory`; positions (B, N, 2) and (B, M, 2) int64, None for a side without."""
        q, k, v = self._project(x, memory, x_positions, memory_positions)
        return self._attend(q, k, v)

    def forward_with_logits(
        self,
        x: Tensor,
        memory: Tensor,
        x_positions: Tensor | None = None,
        memory_positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, and the (B, N) float32 mean over heads and keys of the scaled logits before the softmax."""
        q, k, v = self._project(x, memory, x_positions, memory_positions)
        # The mean over keys of q·k is q times the mean key: the N×M matrix is never formed.
        mean_key = k.to(torch.float32).mean(dim=2, keepdim=True)
        logits = (q.to(torch.float32) * mean_key).sum(dim=-1).mean(dim=1) * q.shape[-1] ** -0.5
        return self._attend(q, k, v), logits

    def _project(
        self, x: Tensor, memory: Tensor, x_positions: Tensor | None, memory_positions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k = self._split(self.projq(x), x_positions), self._split(self.projk(memory), memory_positions)
        return q, k, self._split(self.projv(memory), None)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.proj(self.core(q, k, v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """(B, N, dim) → (B, heads, N, dim/heads), rotated when positions are given."""
        x = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return x if positions is None else rope_2d(x, positions, self.rope_base)


class EncoderBlock(nn.Module):
    """Self-attention and MLP, each with a residual: (B, N, dim) → (B, N, dim).

    Args:
        dim: width of the tokens.
        heads: number of attention heads.
        mlp_ratio: width of the MLP over `dim`.
        eps: epsilon of the LayerNorms.
        rope_base: base of the rotary positions.
        faithful_fp16_rope: see `Attention`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        eps: float = NORM_EPS,
        rope_base: float = ROPE_BASE,
        faithful_fp16_rope: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim, eps)
        self.attn = Attention(dim, heads, rope_base, faithful_fp16_rope)
        self.norm2 = layer_norm(dim, eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """`positions` (B, N, 2) int64; None for no rotary positions."""
        x = x + self.attn(self.norm1(x), positions)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to a memory, and MLP, each with a residual.

    The memory has its own LayerNorm, `norm_y`.

    Args:
        dim: width of the tokens and of the memory.
        heads: number of heads of both attentions.
        mlp_ratio: width of the MLP over `dim`.
        eps: epsilon of the LayerNorms.
        rope_base: base of the rotary positions.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        eps: float = NORM_EPS,
        rope_base: float = ROPE_BASE,
    ) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim, eps)
        self.attn = Attention(dim, heads, rope_base)
        self.cross_attn = CrossAttention(dim, heads, rope_base)
        self.norm2 = layer_norm(dim, eps)
        self.norm3 = layer_norm(dim, eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm_y = layer_norm(dim, eps)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        x_positions: Tensor | None = None,
        memory_positions: Tensor | None = None,
    ) -> Tensor:
        """(B, N, dim), (B, M, dim), (B, N, 2) and (B, M, 2) int64 or None → (B, N, dim)."""
        x = x + self.attn(self.norm1(x), x_positions)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), x_positions, memory_positions)
        return x + self.mlp(self.norm3(x))

    def forward_with_logits(
        self,
        x: Tensor,
        memory: Tensor,
        x_positions: Tensor | None = None,
        memory_positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, and the (B, N) mean cross-attention logits of `CrossAttention`."""
        x = x + self.attn(self.norm1(x), x_positions)
        read, logits = self.cross_attn.forward_with_logits(
            self.norm2(x), self.norm_y(memory), x_positions, memory_positions
        )
        x = x + read
        return x + self.mlp(self.norm3(x)), logits
