# SPDX-License-Identifier: Apache-2.0
"""What memory says of each depth a cell of the image may have: a plane sweep with features, and with known depths.

For every cell and every plane the point is looked up in the slots of memory. If it is there, the features are alike
(Collins 1996; as a network's input: MVSNet, DeepVideoMVS), and the depth that memory holds there is its own, which
keeps the scale of what comes to what was.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recon_ros.networks.compact_geometry import cell_centres, invert, rays_of

NEAREST = 0.05
AGREEMENT = 0.1
"""Depths that differ by this, in the logarithm, agree to 1/e."""
PARALLAX = 0.05
"""Translation per depth from which a slot's features say all they can of depth; with less they say less."""


def sweep(
    match: Tensor,
    slots: Tensor,
    depths: Tensor,
    confidence: Tensor,
    valid: Tensor,
    T_anchor_slot: Tensor,
    K_slot: Tensor,
    T_anchor_camera: Tensor,
    K: Tensor,
    planes: Tensor,
    stride: int,
) -> Tensor:
    """(B, 3 D, h, w): per plane the likeness of features, the agreement of depths, and how many slots see it.

    Args:
        match: (B, C, h, w) unit features of the image.
        slots: (B, S, C, h, w) those of memory.
        depths, confidence: (B, S, h, w) of memory, metres, and in [0, 1].
        valid: (B, S).
        T_anchor_slot: (B, S, 4, 4).
        K_slot: (B, S, 4).
        T_anchor_camera: (B, 4, 4) of the image.
        K: (B, 4).
        planes: (B, D) depths, metres.
        stride: pixels per cell.
    """
    batch, count, channels, height, width = slots.shape
    number, cells = planes.shape[1], height * width
    shape = (batch, count, cells, number)
    rays = rays_of(cell_centres(height, width, stride, match), K)
    T_slot_camera = invert(T_anchor_slot) @ T_anchor_camera[:, None]
    turned = rays[:, None] @ T_slot_camera[..., :3, :3].transpose(-1, -2)
    # x, y, z in the slot's camera: the ray, turned, times the plane's depth, plus the way between the cameras.
    x, y, z = (turned[..., i, None] * planes[:, None, None] + T_slot_camera[..., None, None, i, 3] for i in range(3))
    far = z.clamp(min=NEAREST)
    f, c = K_slot[..., None, None, :2] / stride, (K_slot[..., None, None, 2:] + 0.5) / stride - 0.5
    column, row = x / far * f[..., 0] + c[..., 0], y / far * f[..., 1] + c[..., 1]
    inside = (column >= -0.5) & (column <= width - 0.5) & (row >= -0.5) & (row <= height - 0.5) & (z > NEAREST)
    visible = inside.to(z.dtype) * valid[..., None, None]
    # Beyond the border nothing is looked up (visible is 0): the coordinates need only be finite.
    where = torch.stack([2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1], dim=-1).clamp(-2.0, 2.0)
    # Interpolating and multiplying by the image's features can be swapped: first all products of a slot's cells with
    # the image's, then between the products of one cell. That looks up a number instead of `channels` of them.
    products = match.reshape(batch, 1, channels, cells).transpose(2, 3) @ slots.reshape(batch, count, channels, cells)
    products = products.reshape(batch * count * cells, 1, height, width)
    likeness = _look_up(products, where.reshape(-1, number, 1, 2)).reshape(shape)
    held = torch.stack([torch.log(depths.clamp(min=NEAREST)), confidence], dim=2)
    known = _look_up(held.reshape(batch * count, 2, height, width), where.reshape(batch * count, cells, number, 2))
    known = known.reshape(batch, count, 2, cells, number)
    agreement = torch.exp(-torch.abs(torch.log(far) - known[:, :, 0]) / AGREEMENT) * known[:, :, 1]
    baseline = torch.linalg.vector_norm(T_slot_camera[..., :3, 3], dim=-1)
    typical = depths.mean(dim=(2, 3)) + NEAREST
    parallax = (baseline / typical / PARALLAX).clamp(0.02, 1.0)[..., None, None] * visible
    seen = parallax.sum(dim=1)
    like = (likeness * parallax).sum(dim=1) / (seen + 1e-3)
    agree = (agreement * visible).sum(dim=1) / (visible.sum(dim=1) + 1e-3)
    found = torch.cat([like, agree, seen / count], dim=2)
    return found.transpose(1, 2).reshape(batch, 3 * number, height, width)


def _look_up(maps: Tensor, where: Tensor) -> Tensor:
    return F.grid_sample(maps, where, mode="bilinear", padding_mode="border", align_corners=True)
