# SPDX-License-Identifier: Apache-2.0
"""Where the camera is: memory cells find their place in the image, and a pose is solved from that.

What memory cells are in space is known, explicitly; where they are in the image is matched, by similarity of features;
the pose that puts the one onto the other is solved by robust Gauss–Newton steps that are unrolled into the network.
Only the matching is learned, so that what was learned on drawn scenes holds for real ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from recon_ros.networks.compact_geometry import exp_se3, invert, orthonormal, solve_positive, transform

STRIDE = 8
NEAREST = 0.05
"""Points nearer than this, metres, or behind the camera do not pull at the pose."""
ROBUST = (6.0, 3.0, 1.5, 0.8, 0.5, 0.3, 0.2, 0.15, 0.15)
"""Scale of Cauchy's weight by step, cells; as many steps as entries."""
PLACE_ERROR = 0.3
"""Standard deviation of a match, cells."""
SURE_SCALE = 0.1
"""Expected error of the logarithm of depth at which confidence is one half."""
DAMPING = (1.0, 1.0, 1.0, 10.0, 10.0, 10.0)
"""Added to the diagonal (cells² per m², per rad²): without matches nothing moves."""


class Located(NamedTuple):
    """Pose of an image, and what it was solved from.

    Of each slot M cells are matched, every other one.

    Attributes:
        T_anchor_camera: (B, 4, 4).
        points: (B, S, M, 3) the cells in the anchor's frame.
        pixels: (B, S, M, 2) where they are seen in the image, pixels.
        weights: (B, S, M) in [0, 1], how far that is believed.
        similarity: (B, S, M, N) to all cells of the image.
        log_sum: (B, S, M) logarithm of the sum of similarities' exponentials: similarity - log_sum is the logarithm of
            a cell's probability to be the place.
    """

    T_anchor_camera: Tensor
    points: Tensor
    pixels: Tensor
    weights: Tensor
    similarity: Tensor
    log_sum: Tensor


class Locator(nn.Module):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(2.5))
        self.trust = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 1))

    def forward(
        self,
        match: Tensor,
        slots: Tensor,
        points: Tensor,
        rays: Tensor,
        confidence: Tensor,
        valid: Tensor,
        K: Tensor,
        T_start: Tensor,
    ) -> Located:
        """Locate an image.

        Args:
            match: (B, C, h, w) unit features of the image.
            slots: (B, S, C, h, w) those of memory.
            points: (B, S, N, 3) memory cells in the anchor's frame.
            rays: (B, S, N, 3) from their slot's camera to them, in the anchor's frame.
            confidence: (B, S, N) in [0, 1] of them.
            valid: (B, S) 1 where a slot holds something, else 0.
            K: (B, 4).
            T_start: (B, 4, 4) T_anchor_camera to begin with.
        """
        batch = len(points)
        chosen = every_other(*match.shape[2:]).to(match.device)
        points, rays = points.index_select(2, chosen), rays.index_select(2, chosen)
        pixels, weights, similarity, whole = self._match(match, slots, confidence, valid, chosen)
        T_camera_anchor = invert(T_start)
        flat, seen, weight = points.reshape(batch, -1, 3), pixels.reshape(batch, -1, 2), weights.reshape(batch, -1)
        weight = weight * weight  # measured: who is half believed should pull less than half
        along = (rays * doubt_of(confidence.index_select(2, chosen))[..., None]).reshape(batch, -1, 3).detach()
        for scale in ROBUST:
            # Where it has converged, one step has the gradient of the solution; those before it only amplify noise.
            T_camera_anchor = _step(T_camera_anchor.detach(), flat, along, seen, weight, K, scale)
        return Located(
            orthonormal(invert(T_camera_anchor)),
            points,
            pixels,
            weights,
            similarity,
            whole.reshape(batch, points.shape[1], -1),
        )

    def _match(
        self, match: Tensor, slots: Tensor, confidence: Tensor, valid: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, count, channels, height, width = slots.shape
        cells = height * width
        rows = slots.reshape(batch, count, channels, cells).index_select(3, chosen)
        rows = rows.transpose(2, 3).reshape(batch, -1, channels)
        temperature = torch.exp(self.log_temperature)
        similarity = temperature * (rows @ match.reshape(batch, channels, cells))
        whole = torch.logsumexp(similarity, dim=-1, keepdim=True)
        # The expected place over everything is drawn to the middle by what is similar elsewhere: only the
        # neighbourhood of the likeliest cell counts.
        best = similarity.argmax(dim=-1)
        row = torch.div(best, width, rounding_mode="trunc")
        column = best - row * width
        around = torch.arange(-1, 2, device=best.device)
        rows_near = row[..., None] + around.repeat_interleave(3)
        columns_near = column[..., None] + around.repeat(3)
        inside = (rows_near >= 0) & (rows_near < height) & (columns_near >= 0) & (columns_near < width)
        index = rows_near.clamp(0, height - 1) * width + columns_near.clamp(0, width - 1)
        log_near = torch.gather(similarity, 2, index) - whole
        p = torch.exp(log_near) * inside.to(log_near.dtype)
        mass = p.sum(dim=-1)
        places = torch.stack([columns_near, rows_near], dim=-1).to(p.dtype)
        place = (p[..., None] * places).sum(dim=-2) / (mass[..., None] + 1e-9)
        sure = confidence.index_select(2, chosen)
        likeness = similarity.amax(dim=-1)
        # The other way round: is this cell of memory what the place it found would choose in its slot? What is hidden
        # now finds a place, too, but that place has a better one.
        returned = torch.logsumexp(similarity.reshape(batch, count, -1, cells), dim=2)
        returned = likeness - torch.gather(returned, 2, best.reshape(batch, count, -1)).reshape(batch, -1)
        facts = torch.stack(
            [torch.log(mass + 1e-6), log_near[..., 4], sure.reshape(batch, -1), likeness / temperature, returned],
            dim=-1,
        )
        weights = torch.sigmoid(self.trust(facts)[..., 0]).reshape(batch, count, -1) * valid[..., None]
        pixels = (place + 0.5) * STRIDE - 0.5
        return pixels.reshape(batch, count, -1, 2), weights, similarity.reshape(batch, count, -1, cells), whole[..., 0]


def every_other(height: int, width: int) -> Tensor:
    """Indices of the cells of a chessboard's one colour, (M,) int64."""
    return torch.tensor([i * width + j for i in range(height) for j in range(width) if (i + j) % 2 == 0])


def doubt_of(confidence: Tensor) -> Tensor:
    """Expected error of the logarithm of depth of a cell of this confidence; the inverse of `compact.confidence_of`."""
    return (SURE_SCALE * (1 - confidence) / confidence.clamp(min=0.01)).clamp(0.02, 0.5)


def _across(error: Tensor, error_along: Tensor, shares: Tensor) -> Tensor:
    """(B, N) what is left of the squared errors (B, N, 2) without what the doubt of depth explains of them, >= 0.

    Of a point right before the camera both are so large that rounding alone could make it less than nothing, and a
    weight negative.
    """
    return ((error * error).sum(dim=-1) - shares * error_along * error_along).clamp(min=0.0)


def _step(
    T_camera_anchor: Tensor, points: Tensor, along: Tensor, pixels: Tensor, weight: Tensor, K: Tensor, scale: float
) -> Tensor:
    """One damped Gauss–Newton step on reprojection errors in cells, weighted after Cauchy.

    A point's depth is in doubt, so its place in the image is in doubt along the line that it would move on. Errors
    along that line count for as little as the doubt says; what is left is, where depth is not known at all, the
    epipolar constraint.

    Args:
        T_camera_anchor: (B, 4, 4).
        points: (B, N, 3) in the anchor's frame.
        along: (B, N, 3) how far a point may be off, one standard deviation.
        pixels: (B, N, 2).
        weight: (B, N).
        K: (B, 4).
        scale: of Cauchy's weight.
    """
    seen = transform(T_camera_anchor, points)
    x, y, z = seen[..., 0], seen[..., 1], seen[..., 2].clamp(min=NEAREST)
    f = K[:, None, :2] / STRIDE
    xz, yz = x / z, y / z
    error = f * torch.stack([xz, yz], dim=-1) + (K[:, None, 2:] - pixels) / STRIDE
    # How the place moves with one standard deviation of depth, m; errors have the covariance s² I + m mᵀ, and their
    # information is (I − shares m mᵀ) / s².
    moved = along @ T_camera_anchor[:, :3, :3].transpose(1, 2)
    m = f * (moved[..., :2] - torch.stack([xz, yz], dim=-1) * moved[..., 2:]) / z[..., None]
    shares = 1 / (PLACE_ERROR**2 + (m * m).sum(dim=-1))
    error_along = (m * error).sum(dim=-1)
    squared = _across(error, error_along, shares).detach()
    w = weight * (seen[..., 2] > NEAREST).to(weight.dtype) / (1 + squared / scale**2)
    zero, one = torch.zeros_like(z), torch.ones_like(z)
    # Rows of d(x/z, y/z) / d(v, ω) for x ← x + v + ω × x.
    du = torch.stack([one / z, zero, -xz / z, -xz * yz, 1 + xz * xz, -yz], dim=-1) * f[..., :1]
    dv = torch.stack([zero, one / z, -yz / z, -(1 + yz * yz), xz * yz, xz], dim=-1) * f[..., 1:]
    dm = du * m[..., :1] + dv * m[..., 1:]
    wu, wv, wm = du * w[..., None], dv * w[..., None], dm * (w * shares)[..., None]
    H = du.transpose(1, 2) @ wu + dv.transpose(1, 2) @ wv - dm.transpose(1, 2) @ wm
    g = (wu * error[..., :1] + wv * error[..., 1:] - wm * error_along[..., None]).sum(dim=1)
    damping = torch.tensor(DAMPING, dtype=H.dtype, device=H.device)
    eye = torch.eye(6, dtype=H.dtype, device=H.device)
    H = H + eye * damping + 1e-3 * eye * H
    return exp_se3(-solve_positive(H, g)) @ T_camera_anchor
