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

from recon_ros.networks.compact_geometry import cell_centres, invert, rays_of, transform

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
    centres = cell_centres(height, width, stride, match)
    rays = rays_of(centres, K)
    points = (planes[:, :, None, None] * rays[:, None]).reshape(batch, number * cells, 3)
    T_slot_camera = invert(T_anchor_slot) @ T_anchor_camera[:, None]
    there = transform(T_slot_camera, points[:, None])
    z = there[..., 2]
    far = z.clamp(min=NEAREST)
    uv = there[..., :2] / far[..., None] * K_slot[:, :, None, :2] + K_slot[:, :, None, 2:]
    ij = (uv + 0.5) / stride - 0.5
    extent = torch.tensor([width - 1.0, height - 1.0], dtype=ij.dtype, device=ij.device)
    inside = (ij >= -0.5) & (ij <= extent + 0.5)
    visible = (z > NEAREST).to(z.dtype) * inside.to(z.dtype).prod(dim=-1) * valid[..., None]
    held = torch.cat([slots, depths[:, :, None], confidence[:, :, None]], dim=2)
    # Beyond the border nothing is looked up (visible is 0): the coordinates need only be finite.
    where = (2 * ij / extent - 1).clamp(-2.0, 2.0).reshape(batch * count, number, cells, 2)
    found = F.grid_sample(
        held.reshape(batch * count, channels + 2, height, width),
        where,
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    ).reshape(batch, count, channels + 2, number, cells)
    visible = visible.reshape(batch, count, number, cells)
    likeness = (found[:, :, :channels] * match.reshape(batch, 1, channels, 1, cells)).sum(dim=2)
    known = found[:, :, channels].clamp(min=NEAREST)
    apart = torch.abs(torch.log(far.reshape(batch, count, number, cells)) - torch.log(known))
    agreement = torch.exp(-apart / AGREEMENT) * found[:, :, channels + 1]
    baseline = torch.linalg.vector_norm(T_slot_camera[..., :3, 3], dim=-1)
    typical = depths.mean(dim=(2, 3)) + NEAREST
    parallax = (baseline / typical / PARALLAX).clamp(0.02, 1.0)[..., None, None] * visible
    like = (likeness * parallax).sum(dim=1) / (parallax.sum(dim=1) + 1e-3)
    agree = (agreement * visible).sum(dim=1) / (visible.sum(dim=1) + 1e-3)
    seen = parallax.sum(dim=1) / count
    return torch.cat([like, agree, seen], dim=1).reshape(batch, 3 * number, height, width)
