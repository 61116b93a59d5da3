# SPDX-License-Identifier: Apache-2.0
"""CUT3R's outputs: points in the camera and in the world, the camera's pose, colour.

Wang et al., "Continuous 3D perception model with persistent state", CVPR 2025, section 3.1. World points are the
camera's tokens moved by the pose token, through two blocks whose LayerNorms it modulates.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon_ros.networks.blocks import Attention, Mlp, layer_norm
from recon_ros.networks.dpt import DPTHead
from recon_ros.networks.heads import Pointmap, exp_norm, postprocess
from recon_ros.networks.patches import tokens_to_map

OUTPUTS = ("self", "cross", "pose", "rgb")
"""What may be asked for. `self`: points of the camera; `cross`: points of the first camera's frame, the world."""

NAMES = {
    "self": ("pts3d_in_self_view", "conf_self"),
    "cross": ("pts3d_in_other_view", "conf"),
    "pose": ("camera_pose",),
    "rgb": ("rgb",),
}
"""Under which keys the answers come."""

MLP_RATIO = 4
XYZ_CONFIDENCE = 4
RGB = 3


class ModulatedNorm(nn.Module):
    """LayerNorm whose result a condition scales and shifts: norm(x)·(1 + scale) + shift."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, N, dim), (B, 1, dim) → (B, N, dim)."""
        shift, scale = self.mlp(condition).chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class ModulatedBlock(nn.Module):
    """An encoder block with modulated norms."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = ModulatedNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = ModulatedNorm(dim)
        self.mlp = Mlp(dim, MLP_RATIO * dim)

    def forward(self, x: Tensor, condition: Tensor, positions: Tensor) -> Tensor:
        """(B, N, dim), (B, 1, dim), (B, N, 2) int64 → (B, N, dim)."""
        x = x + self.attn(self.norm1(x, condition), positions)
        return x + self.mlp(self.norm2(x, condition))


class PoseHead(nn.Module):
    """The pose token as a camera-to-world pose."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = Mlp(dim, MLP_RATIO * dim, 7)

    def forward(self, pose_token: Tensor) -> Tensor:
        """(B, 1, dim) → (B, 7): see `decode_pose`."""
        return decode_pose(self.mlp(pose_token[:, 0]))


def decode_pose(raw: Tensor) -> Tensor:
    """(B, 7) unbounded → (B, 7) float32: translation through `exp_norm`, unit quaternion w, x, y, z with w ≥ 0."""
    raw = raw.to(torch.float32)
    quaternion = F.normalize(raw[:, 3:], dim=-1)
    quaternion = torch.where(quaternion[:, :1] < 0, -quaternion, quaternion)
    return torch.cat((exp_norm(raw[:, :3]), quaternion), dim=-1)


def decode_rgb(raw: Tensor) -> Tensor:
    """(B, 3, H, W) unbounded → (B, H, W, 3) float32 inside (−1, 1)."""
    shrunk = torch.sigmoid(raw.to(torch.float32)) * (1 - 2e-6) + 1e-6
    return (2 * shrunk - 1).permute(0, 2, 3, 1)


def face_forward(raw: Tensor) -> Tensor:
    """(B, 4, H, W) with the points turned so that z ≥ 0; only the linear heads' own view is."""
    sign = torch.sign(raw[:, 2:3])
    return torch.cat((raw[:, :3] * sign, raw[:, 3:]), dim=1)


class Cut3rHead(nn.Module):
    """Decoder features to outputs; subclasses say how tokens become maps.

    Args:
        dim: width of the decoder.
        heads: of the two modulated blocks.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.pose_head = PoseHead(dim)
        self.final_transform = nn.ModuleList(ModulatedBlock(dim, heads) for _ in range(2))

    def forward(
        self,
        features: Sequence[Tensor],
        pose_token: Tensor,
        positions: Tensor,
        grid: tuple[int, int],
        wanted: Collection[str] = OUTPUTS,
    ) -> dict[str, Tensor]:
        """What is wanted, and nothing else is computed.

        Args:
            features: encoder feature, then each decoder layer's image tokens, (B, N, …).
            pose_token: (B, 1, dim) of the last layer.
            positions: (B, N, 2) int64.
            grid: rows and columns, N = rows · columns.
            wanted: of `OUTPUTS`.

        Returns:
            pts3d_in_self_view, pts3d_in_other_view: (B, H, W, 3) float32; conf_self, conf: (B, H, W) float32 in
            (1, ∞); camera_pose: (B, 7), see `decode_pose`; rgb: (B, H, W, 3) in (−1, 1).
        """
        outputs: dict[str, Tensor] = {}
        if "self" in wanted:
            outputs.update(zip(NAMES["self"], self.self_view(features, grid), strict=True))
        if "cross" in wanted:
            moved = features[-1]
            for block in self.final_transform:
                moved = block(moved, pose_token, positions)
            outputs.update(zip(NAMES["cross"], self.cross_view([*features[:-1], moved], grid), strict=True))
        if "pose" in wanted:
            outputs["camera_pose"] = self.pose_head(pose_token)
        if "rgb" in wanted:
            outputs["rgb"] = self.colour(features, grid)
        return outputs

    def self_view(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Pointmap:
        """Points in the camera's frame."""
        raise NotImplementedError

    def cross_view(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Pointmap:
        """Points in the world, of features whose last entry was moved."""
        raise NotImplementedError

    def colour(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """(B, H, W, 3) in (−1, 1)."""
        raise NotImplementedError


class LinearCut3rHead(Cut3rHead):
    """Each token paints its patch, by an MLP on the last layer."""

    def __init__(self, dim: int, heads: int, patch: int) -> None:
        super().__init__(dim, heads)
        self.patch = patch
        self.proj = Mlp(dim, MLP_RATIO * dim, XYZ_CONFIDENCE * patch**2)
        self.cross_proj = Mlp(dim, MLP_RATIO * dim, XYZ_CONFIDENCE * patch**2)
        self.rgb_proj = Mlp(dim, MLP_RATIO * dim, RGB * patch**2)

    def self_view(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Pointmap:
        return postprocess(face_forward(self._paint(self.proj(features[-1]), grid)))

    def cross_view(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Pointmap:
        return postprocess(self._paint(self.cross_proj(features[-1]), grid))

    def colour(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        return decode_rgb(self._paint(self.rgb_proj(features[-1]), grid))

    def _paint(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C·patch²) → (B, C, H, W)."""
        return F.pixel_shuffle(tokens_to_map(tokens, *grid), self.patch)


class DPTCut3rHead(Cut3rHead):
    """One DPT a map, on the encoder's feature and three of the decoder's.

    Args:
        dim, heads: see `Cut3rHead`.
        enc_dim: width of the encoder.
        hooks: indices of the four features in what the decoder hands over.
        level_dims, feature_dim, last_dim: of each DPT.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        enc_dim: int,
        hooks: Sequence[int],
        level_dims: Sequence[int],
        feature_dim: int,
        last_dim: int,
    ) -> None:
        super().__init__(dim, heads)
        self.hooks = tuple(hooks)

        def dpt(channels: int) -> DPTHead:
            return DPTHead((enc_dim, dim, dim, dim), channels, level_dims, feature_dim, last_dim)

        self.dpt_self = dpt(XYZ_CONFIDENCE)
        self.dpt_cross = dpt(XYZ_CONFIDENCE)
        self.dpt_rgb = dpt(RGB)

    def self_view(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Pointmap:
        return postprocess(self.dpt_self(self._hooked(features), *grid))

    def cross_view(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Pointmap:
        return postprocess(self.dpt_cross(self._hooked(features), *grid))

    def colour(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        return decode_rgb(self.dpt_rgb(self._hooked(features), *grid))

    def _hooked(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [features[hook] for hook in self.hooks]
