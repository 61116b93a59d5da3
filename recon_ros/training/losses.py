# SPDX-License-Identifier: Apache-2.0
"""What the compact network is punished for. Depth is compared as a logarithm: errors are shares of the depth.

Every function gives one number per sequence, (B,), averaged over what has a truth, 0 where nothing has. Truths carry
masks; a depth of 0 is none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recon_ros.networks.compact_geometry import cell_centres, invert, rays_of, transform

NEAREST, FARTHEST = 0.1, 50.0
"""Metres; truth outside is no truth: a network's planes end well inside."""
SAME_SURFACE = 0.05
"""Share of the depth by which two views of one point may disagree."""
GOOD_MATCH = 1.0
"""Cells of error up to which a match should be trusted."""


@dataclass(frozen=True)
class LossWeights:
    """How much each term counts."""

    depth: float = 1.0
    scale: float = 0.5
    edges: float = 0.5
    planes: float = 0.2
    match: float = 0.3
    pixel: float = 0.3
    trust: float = 0.2
    rotation: float = 2.0
    translation: float = 2.0

    @staticmethod
    def names() -> tuple[str, ...]:
        """The terms, in order."""
        return tuple(field.name for field in fields(LossWeights))


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) means of (B, …) over a mask of the same shape; 0 where it is empty."""
    mask = mask.to(values.dtype)
    # What is masked may be NaN in a truth, and NaN × 0 is NaN.
    kept = torch.where(mask > 0, values, torch.zeros_like(values))
    return kept.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1.0)


def log_truth(depth: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Log depth at the centres of cells, (B, 1, H/stride, W/stride), and where it is known.

    A centre lies between four pixels. They are averaged where they see one surface; across an edge a mean would be a
    point in the air, and the nearest surface is taken.

    Args:
        depth: (B, H, W) metres, 0 for none.
        stride: even side of a cell, pixels.
    """
    middle = stride // 2 - 1
    corners = torch.stack(
        [depth[:, middle + dy :: stride, middle + dx :: stride] for dy in (0, 1) for dx in (0, 1)], dim=1
    )
    known = (corners > NEAREST) & (corners < FARTHEST)
    logs = torch.where(known, corners, torch.ones_like(corners)).log()
    lowest = torch.where(known, logs, torch.full_like(logs, torch.inf)).amin(1, keepdim=True)
    highest = torch.where(known, logs, torch.full_like(logs, -torch.inf)).amax(1, keepdim=True)
    mean = torch.where(known, logs, torch.zeros_like(logs)).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(
        1
    )
    seen = known.any(1, keepdim=True)
    log_depth = torch.where(highest - lowest < SAME_SURFACE, mean, lowest)
    return torch.where(seen, log_depth, torch.zeros_like(mean)), seen


def masked_median(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) medians of (B, …) over a mask, 0 where it is empty."""
    spread = torch.where(mask, values, torch.full_like(values, torch.nan)).flatten(1)
    return torch.nan_to_num(spread.nanmedian(dim=1).values)


def depth_nll(log_depth: Tensor, log_scale: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Negative log likelihood of the log depth under a Laplace distribution of the network's own width.

    A point the network is unsure of is punished less for its error and more for its doubt: confidence as in DUSt3R
    (Wang et al., 2024), in the form of Kendall and Gal (2017). By itself it would have what is easy already made ever
    more exact; weighting with the root of the width (β-NLL, Seitzer et al., 2022) keeps what is hard worth learning.
    All of shape (B, 1, h, w).
    """
    width = torch.exp(log_scale)
    nll = (log_depth - truth).abs() / width + log_scale
    return mean_over(nll * width.detach().sqrt(), mask)


def absolute(log_depth: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of the log depth."""
    return mean_over((log_depth - truth).abs(), mask)


def edges(log_depth: Tensor, truth: Tensor, mask: Tensor, scales: tuple[int, ...] = (1, 2, 4)) -> Tensor:
    """Differences of the error between neighbours at several distances (Li and Snavely, MegaDepth, 2018)."""
    error = log_depth - truth
    total = torch.zeros(len(error), device=error.device)
    for step in scales:
        right = (error[..., step:] - error[..., :-step]).abs()
        below = (error[..., step:, :] - error[..., :-step, :]).abs()
        total = total + mean_over(right, mask[..., step:] & mask[..., :-step])
        total = total + mean_over(below, mask[..., step:, :] & mask[..., :-step, :])
    return total / len(scales)


def plane_entropy(logits: Tensor, planes: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of the planes, the truth shared by the two that it lies between.

    Args:
        logits: (B, P, h, w).
        planes: (B, P) ascending log depths of the planes.
        truth, mask: (B, 1, h, w) log depth and where it is known.
    """
    step = (planes[:, -1] - planes[:, 0]) / (planes.shape[1] - 1)
    position = (truth - planes[:, :1, None, None]) / step[:, None, None, None]
    inside = mask & (position > -0.5) & (position < planes.shape[1] - 0.5)
    position = position.clamp(0, planes.shape[1] - 1)
    lower = position.floor().clamp(max=planes.shape[1] - 2)
    share = position - lower
    log_p = logits.log_softmax(dim=1)
    near = log_p.gather(1, lower.long())
    far = log_p.gather(1, lower.long() + 1)
    return mean_over(-((1 - share) * near + share * far), inside)


@dataclass(frozen=True, eq=False)
class TrueMatches:
    """Where the cells of a memory's slots truly are in the current image.

    Attributes:
        pixels: (B, S, N, 2).
        known: (B, S, N) the slot holds a cell with a true depth.
        visible: (B, S, N) and the current image sees that point.
    """

    pixels: Tensor
    known: Tensor
    visible: Tensor

    def of(self, cells: Tensor) -> TrueMatches:
        """Those of some cells, (M,) indices."""
        return TrueMatches(*(tensor.index_select(2, cells) for tensor in (self.pixels, self.known, self.visible)))


def true_matches(
    slot_depth: Tensor, T_camera_slot: Tensor, valid: Tensor, K: Tensor, depth: Tensor, stride: int
) -> TrueMatches:
    """Project the slots' true points; visible is what the true depth there agrees with, moving things thus excluded.

    Args:
        slot_depth: (B, S, h, w) true depths at the centres of the slots' cells, 0 for none.
        T_camera_slot: (B, S, 4, 4) true poses of the slots in the current camera.
        valid: (B, S) whether a slot holds anything.
        K: (B, 4), of slots and current image alike.
        depth: (B, H, W) true depth of the current image.
        stride: side of a cell, pixels.
    """
    B, S, h, w = slot_depth.shape
    rays = rays_of(cell_centres(h, w, stride, slot_depth), K)
    points = transform(T_camera_slot, rays[:, None] * slot_depth.reshape(B, S, h * w, 1))
    z = points[..., 2]
    xy = points[..., :2] / z.clamp_min(NEAREST)[..., None]
    pixels = xy * K[:, None, None, :2] + K[:, None, None, 2:]
    H, W = depth.shape[-2:]
    u, v = pixels[..., 0].round(), pixels[..., 1].round()
    inside = (z > NEAREST) & (u >= 0) & (u <= W - 1) & (v >= 0) & (v <= H - 1)
    index = (v.clamp(0, H - 1) * W + u.clamp(0, W - 1)).long()
    there = depth.flatten(1).gather(1, index.flatten(1)).reshape(B, S, h * w)
    agree = (z - there).abs() < SAME_SURFACE * z
    known = (slot_depth.flatten(2) > 0) & valid.bool()[..., None]
    return TrueMatches(pixels, known, known & inside & agree & (there > NEAREST))


def match_entropy(similarity: Tensor, log_sum: Tensor, truth: TrueMatches, width: int, stride: int) -> Tensor:
    """Cross entropy of where memory's cells are in the image, the truth shared by the four cells that it lies between.

    The expected pixel alone gives next to no gradient to a match that is wrong altogether.

    Args:
        similarity: (B, S, M, N) of M cells of memory to the N of the image.
        log_sum: (B, S, M) logarithm of the sum of its exponentials.
        truth: of the same M cells.
        width: cells in a row.
        stride: side of a cell, pixels.
    """
    height = similarity.shape[-1] // width
    cell = (truth.pixels + 0.5) / stride - 0.5
    u, v = cell[..., 0].clamp(0, width - 1), cell[..., 1].clamp(0, height - 1)
    u0, v0 = u.floor().clamp(max=width - 2), v.floor().clamp(max=height - 2)
    du, dv = u - u0, v - v0
    first = v0 * width + u0
    corners = torch.stack([first, first + 1, first + width, first + width + 1], dim=-1).long()
    shares = torch.stack([(1 - du) * (1 - dv), du * (1 - dv), (1 - du) * dv, du * dv], dim=-1)
    log_p = similarity.gather(-1, corners) - log_sum[..., None]
    return mean_over(-(shares * log_p).sum(-1), truth.visible)


def pixel_error(pixels: Tensor, truth: TrueMatches, stride: int) -> Tensor:
    """(B, S, N) distance of found and true pixel, in cells."""
    return ((pixels - truth.pixels) / stride).square().sum(-1).add(1e-6).sqrt()


def pixel_loss(error: Tensor, truth: TrueMatches) -> Tensor:
    """Robust mean of `pixel_error` over what is visible: a wrong match counts, a very wrong one little more."""
    return mean_over(torch.log1p(error), truth.visible)


def trust_entropy(weights: Tensor, error: Tensor, truth: TrueMatches) -> Tensor:
    """Binary cross entropy of the matches' weights: 1 for what is visible and was found, else 0."""
    good = (truth.visible & (error.detach() < GOOD_MATCH)).to(weights.dtype)
    sure = weights.clamp(1e-4, 1 - 1e-4)  # PyTorch's own raises for NaN, which is to be skipped and counted
    return mean_over(-(good * sure.log() + (1 - good) * (1 - sure).log()), truth.known)


def pose_errors(T: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) rotation error (close to radians where small, bounded) and translation error in the unit of the poses.

    The chord instead of the angle: arccos has no slope to follow at the truth.
    """
    difference = invert(truth) @ T
    eye = torch.eye(3, device=T.device)
    chord = (difference[..., :3, :3] - eye).square().sum((-1, -2)).div(2).add(1e-8).sqrt()
    return chord, difference[..., :3, 3].square().sum(-1).add(1e-8).sqrt()


def bounded(error: Tensor, bend: float = 0.1) -> Tensor:
    """Linear up to about `bend`, logarithmic beyond: a pose that is lost must not drown what others teach."""
    return bend * torch.log1p(error / bend)
