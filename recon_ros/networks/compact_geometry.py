# SPDX-License-Identifier: Apache-2.0
"""Cells, rays, and poses of the compact network, in operations that every exporter and TensorRT 10.3 know.

A cell of stride s covers s×s pixels; the centre of cell (i, j) is the pixel (s (j + ½) − ½, s (i + ½) − ½), with the
centre of the first pixel at 0. K is (B, 4): fx, fy, cx, cy in pixels of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_ANGLE = 1e-8


def cell_centres(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """(height × width, 2) pixels u, v of the centres of the cells, row by row, of `like`'s device and dtype."""
    v, u = torch.meshgrid(
        torch.arange(height, device=like.device, dtype=like.dtype),
        torch.arange(width, device=like.device, dtype=like.dtype),
        indexing="ij",
    )
    return (torch.stack([u, v], dim=-1).reshape(-1, 2) + 0.5) * stride - 0.5


def rays_of(pixels: Tensor, K: Tensor) -> Tensor:
    """(B, N, 3) rays of depth 1 through (N, 2) pixels of cameras K (B, 4)."""
    xy = (pixels - K[:, None, 2:]) / K[:, None, :2]
    return torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1)


def invert(T: Tensor) -> Tensor:
    """(…, 4, 4) inverses of rigid transformations."""
    R, t = T[..., :3, :3], T[..., :3, 3:]
    turned = R.transpose(-1, -2)
    return _rows(turned, -(turned @ t))


def transform(T: Tensor, points: Tensor) -> Tensor:
    """(…, N, 3) points after rigid transformations (…, 4, 4)."""
    return points @ T[..., :3, :3].transpose(-1, -2) + T[..., None, :3, 3]


def _rows(R: Tensor, t: Tensor) -> Tensor:
    """(…, 4, 4) from (…, 3, 3) and (…, 3, 1)."""
    top = torch.cat([R, t], dim=-1)
    last = torch.zeros_like(top[..., :1, :]) + torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=R.dtype, device=R.device)
    return torch.cat([top, last], dim=-2)


def skew(v: Tensor) -> Tensor:
    """(…, 3, 3) cross product matrices of (…, 3)."""
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    zero = torch.zeros_like(x)
    rows = [torch.stack(row, dim=-1) for row in ([zero, -z, y], [z, zero, -x], [-y, x, zero])]
    return torch.stack(rows, dim=-2)


def exp_se3(step: Tensor) -> Tensor:
    """(…, 4, 4) of (…, 6) v, ω: rotation exp(ω), translation v; to first order the exponential, and always rigid."""
    v, omega = step[..., :3], step[..., 3:]
    # Two square roots of the same number would double the gradient's trouble at no rotation.
    squared = (omega * omega).sum(dim=-1)[..., None, None] + SMALLEST_ANGLE
    angle = torch.sqrt(squared)
    W = skew(omega)
    eye = torch.eye(3, dtype=step.dtype, device=step.device)
    R = eye + (torch.sin(angle) / angle) * W + ((1 - torch.cos(angle)) / squared) * (W @ W)
    return _rows(R, v[..., None])


def orthonormal(T: Tensor) -> Tensor:
    """(B, 4, 4) poses whose rotations are exact again, after Gram and Schmidt: products of many are not."""
    x, y = T[:, :3, 0], T[:, :3, 1]
    x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    y = y - (x * y).sum(dim=-1, keepdim=True) * x
    y = y / torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    z = torch.stack(
        [
            x[:, 1] * y[:, 2] - x[:, 2] * y[:, 1],
            x[:, 2] * y[:, 0] - x[:, 0] * y[:, 2],
            x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0],
        ],
        dim=-1,
    )
    return _rows(torch.stack([x, y, z], dim=-1), T[:, :3, 3:])


def solve_positive(A: Tensor, b: Tensor) -> Tensor:
    """(B, n) x of A x = b, for A (B, n, n) symmetric positive definite, b (B, n).

    Gauss–Jordan without pivots, unrolled: TensorRT has no solver; a positive definite matrix needs no pivots.
    """
    n = A.shape[-1]
    rows = torch.cat([A, b[..., None]], dim=-1)
    for i in range(n):
        pivot_row = rows[:, i : i + 1] / rows[:, i : i + 1, i : i + 1]
        chosen = torch.zeros(n, dtype=A.dtype, device=A.device)
        chosen[i] = 1
        column = rows[:, :, i : i + 1]
        # Row i becomes the pivot row; from all others their share of it is taken away.
        rows = rows - (column - chosen[None, :, None]) * pivot_row
    return rows[..., n]
