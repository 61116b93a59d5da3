# SPDX-License-Identifier: Apache-2.0
"""Which of many weights are the largest, with operators that every inference library has.

TensorRT takes no more than `TOPK_LIMIT` elements of a TopK, its parser knows neither sort nor scatter-add, and runs a
cumulative sum element by element. So the threshold is found by TopK of the shorter side, and the slots by counting.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOPK_LIMIT = 3840


def largest(weights: Tensor, count: int) -> Tensor:
    """Where the `count` largest of (B, M) weights are: (B, count) int64, ascending; of equal weights the first ones.

    Weights must not be NaN; −inf is allowed, +inf is not.
    """
    slots = weights.shape[1]
    threshold = _kth_largest(weights, count)
    above, level = weights > threshold, weights == threshold
    room = count - above.to(torch.int32).sum(dim=1, keepdim=True, dtype=torch.int32)
    chosen = above | (level & (running_sum(level.to(torch.int32)) <= room))
    # Each chosen slot goes to its place, the others to one behind the last, which is cut off. TensorRT's parser wants
    # no more indices than there are places to write to.
    place = torch.where(chosen, running_sum(chosen.to(torch.int32)) - 1, count)
    slot = torch.arange(slots, device=weights.device).expand_as(place)
    return torch.zeros_like(slot).scatter(1, place.to(torch.int64), slot)[:, :count]


def running_sum(x: Tensor) -> Tensor:
    """(B, M) int32 → (B, M) int32 sums of all up to each, in log₂ M steps (Hillis and Steele, 1986)."""
    shift = 1
    while shift < x.shape[1]:
        x = torch.cat((x[:, :shift], x[:, shift:] + x[:, :-shift]), dim=1)
        shift *= 2
    return x


def _kth_largest(weights: Tensor, k: int) -> Tensor:
    """(B, 1), the k-th largest of (B, M), looked for from the nearer end."""
    slots = weights.shape[1]
    if slots - k + 1 < k:
        return -_kth(-weights, slots - k + 1)
    return _kth(weights, k)


def _kth(weights: Tensor, k: int) -> Tensor:
    wanted = torch.full((weights.shape[0], 1), k, dtype=torch.int64, device=weights.device)
    return _kth_of(weights, wanted, k)


def _kth_of(weights: Tensor, k: Tensor, bound: int) -> Tensor:
    """(B, 1), the k-th largest for (B, 1) int64 k of at most `bound`; of no meaning where k < 1."""
    size = min(bound, TOPK_LIMIT)
    top = weights.topk(size, dim=1).values
    here = top.gather(1, (k - 1).clamp(0, size - 1))
    if bound <= TOPK_LIMIT:
        return here
    seen = weights >= top[:, -1:]
    found = seen.to(torch.int32).sum(dim=1, keepdim=True, dtype=torch.int32)
    further = _kth_of(weights.masked_fill(seen, -torch.inf), k - found, bound - TOPK_LIMIT)
    return torch.where(k <= found, here, further)
