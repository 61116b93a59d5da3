# SPDX-License-Identifier: Apache-2.0
"""Spann3R's spatial memory: what earlier frames left behind, read by attention, written and pruned by rules.

After Wang and Agapito, "3D Reconstruction with Spatial Memory", 3DV 2025, sections 3.2-3.3. Everything has a
fixed size, the capacity, so that a step is one static graph: tokens in use fill the first slots, the others are
empty, and each rule is computed always and applied by selection. Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recon_ros.errors import NetworkError
from recon_ros.networks.ranking import largest

EMPTY = -1
"""Frame id of a slot that holds no token."""

YOUNG = 5
"""A token is protected from pruning until the working memory and this many frames more were written."""

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MemoryRules:
    """How the memory is read, written and pruned; the defaults are the official ones.

    Attributes:
        long_tokens: tokens a pruning leaves, and those beyond the working memory that cause it; 0 keeps the
            working memory alone.
        work_frames: latest frames, the working memory.
        attention_threshold: weights below it are left out of a reading.
        similarity_threshold: a frame whose keys are closer than this, as a mean cosine, to those of a frame of
            the working memory is not written.
        faithful: as the official code: a query whose weights are all below the threshold reads NaN, and a
            pruning leaves the tokens in the order of their weight, so that the working memory is no longer the
            latest frames. False mends both.

    Raises:
        NetworkError: a value out of range.
    """

    long_tokens: int = 4000
    work_frames: int = 5
    attention_threshold: float = 5e-4
    similarity_threshold: float = 0.95
    faithful: bool = False

    def __post_init__(self) -> None:
        if self.long_tokens < 0 or self.work_frames < 1:
            raise NetworkError(
                f"Spann3R's memory needs work_frames ≥ 1 and long_tokens ≥ 0, not {self.work_frames} and "
                f"{self.long_tokens}"
            )

    def kept_tokens(self, tokens_per_frame: int) -> int:
        """Tokens that are left by a pruning."""
        return self.long_tokens or self.work_frames * tokens_per_frame

    def capacity(self, tokens_per_frame: int) -> int:
        """Slots for everything that the memory holds between two prunings, and one frame more."""
        return self.long_tokens + (self.work_frames + 1) * tokens_per_frame


class SpatialMemory(NamedTuple):
    """B memories of M slots with C features; the tokens of a frame lie together, unless pruning parts them.

    Attributes:
        keys, values: (B, M, C).
        attention: (B, M) float32, attention received so far, summed over queries and readings.
        age: (B, M) float32, frames written since.
        frame_ids: (B, M) int64, the frame a token is of; `EMPTY` for none.
    """

    keys: Tensor
    values: Tensor
    attention: Tensor
    age: Tensor
    frame_ids: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, M) bool, slots that hold a token."""
        return self.frame_ids != EMPTY

    @property
    def used(self) -> Tensor:
        """() int64, tokens in use; the same in all B memories."""
        return self.valid[0].sum()

    def copy(self) -> SpatialMemory:
        """The same content in tensors of its own."""
        return SpatialMemory(*(field.clone() for field in self))

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors by name, for saving."""
        return dict(self._asdict())

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor]) -> SpatialMemory:
        """Restore what `state_dict` gave.

        Raises:
            NetworkError: a tensor is missing, unknown, or of a size or dtype that does not fit the others.
        """
        if set(tensors) != set(cls._fields):
            raise NetworkError(f"a Spann3R memory has {sorted(cls._fields)}, not {sorted(tensors)}")
        memory = cls(**tensors)
        slots = memory.keys.shape[:2]
        wide, flat = (memory.keys, memory.values), (memory.attention, memory.age, memory.frame_ids)
        fits = all(t.shape == memory.keys.shape and t.ndim == 3 for t in wide) and all(t.shape == slots for t in flat)
        if not fits or memory.frame_ids.dtype != torch.int64:
            found = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
            raise NetworkError(f"the tensors of this Spann3R memory do not fit together: {found}")
        return memory


def empty(
    rules: MemoryRules,
    tokens_per_frame: int,
    dim: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> SpatialMemory:
    """A memory of nothing, for frames of `tokens_per_frame` tokens.

    Raises:
        NetworkError: the long-term memory is smaller than the working memory, which every pruning must leave.
    """
    work = rules.work_frames * tokens_per_frame
    if 0 < rules.long_tokens < work:
        raise NetworkError(
            f"long_tokens {rules.long_tokens} cannot hold a working memory of {rules.work_frames} frames of "
            f"{tokens_per_frame} tokens: take at least {work}, fewer work_frames, or 0 for no long-term memory"
        )
    slots = (batch, rules.capacity(tokens_per_frame))
    wide = torch.zeros((*slots, dim), dtype=dtype, device=device)
    flat = torch.zeros(slots, dtype=torch.float32, device=device)
    frame_ids = torch.full(slots, EMPTY, dtype=torch.int64, device=device)
    return SpatialMemory(wide, wide.clone(), flat, flat.clone(), frame_ids)


def read(
    memory: SpatialMemory, query: Tensor, norm_q: Norm, norm_k: Norm, norm_v: Norm, rules: MemoryRules
) -> tuple[Tensor, SpatialMemory]:
    """What the memory says to (B, P, C) queries (eq. 3-5), added to them, and the memory that counted it.

    One head of attention; weights below the threshold are dropped and the others made to sum to one again. An
    empty memory says nothing (NaN, where `rules.faithful`).
    """
    # In float32 whatever the weights are: what lies beside the threshold is decided by rounding.
    logits = norm_q(query).float() @ norm_k(memory.keys).float().transpose(1, 2) * query.shape[-1] ** -0.5
    logits = logits.masked_fill(~memory.valid[:, None], torch.finfo(logits.dtype).min)
    weights = logits.softmax(dim=-1)
    weights = torch.where(weights < rules.attention_threshold, 0.0, weights) * memory.valid[:, None]
    total = weights.sum(dim=-1, keepdim=True)
    if not rules.faithful:
        # A sum is nothing or at least the threshold; only nothing is changed by the floor.
        total = total.clamp(min=torch.finfo(total.dtype).tiny)
    weights = weights / total
    feature = weights.to(query.dtype) @ norm_v(memory.values) + query
    return feature, memory._replace(attention=memory.attention + weights.sum(dim=1))


def similarity(memory: SpatialMemory, keys: Tensor, rules: MemoryRules) -> Tensor:
    """(B, F) mean cosine of (B, P, C) keys, patch by patch, to each frame of the working memory; −1 for none.

    The working memory is the last F·P tokens in use.
    """
    batch, tokens, dim = keys.shape
    slots = memory.used + torch.arange(-rules.work_frames * tokens, 0, device=keys.device)
    frames = memory.keys.index_select(1, slots.clamp(min=0)).view(batch, rules.work_frames, tokens, dim)
    exists = slots.view(rules.work_frames, tokens)[:, 0] >= 0
    cosine = F.cosine_similarity(keys[:, None].float(), frames.float(), dim=-1).mean(dim=-1)
    return torch.where(exists, cosine, -1.0)


def write(
    memory: SpatialMemory, keys: Tensor, values: Tensor, frame_id: int | Tensor, rules: MemoryRules
) -> tuple[SpatialMemory, Tensor]:
    """The memory with one frame more, (B, P, C) keys and values and an id ≥ 0; and its () similarity.

    It is the memory as given when the working memory holds a frame like this one. The B memories decide together,
    by the most similar of all, so that they stay of one size.
    """
    closest = similarity(memory, keys, rules).max()
    written = prune(append(memory, keys, values, frame_id), keys.shape[1], rules)
    return select(closest > rules.similarity_threshold, memory, written), closest


def append(memory: SpatialMemory, keys: Tensor, values: Tensor, frame_id: int | Tensor) -> SpatialMemory:
    """A frame's (B, P, C) tokens put after those in use, which age by one."""
    slots, tokens = memory.frame_ids.shape[1], keys.shape[1]
    # Every slot takes its content from the frame or from what it held: a selection, which any library can run.
    place = torch.arange(slots, device=keys.device) - memory.used
    is_new = (place >= 0) & (place < tokens)
    place = place.clamp(0, tokens - 1)
    wide = is_new[:, None]
    ids = torch.as_tensor(frame_id, dtype=torch.int64, device=keys.device)
    return SpatialMemory(
        torch.where(wide, keys.index_select(1, place), memory.keys),
        torch.where(wide, values.index_select(1, place), memory.values),
        torch.where(is_new, 0.0, memory.attention),
        torch.where(is_new, 0.0, memory.age + memory.valid.to(memory.age.dtype)),
        torch.where(is_new, ids, memory.frame_ids),
    )


def prune(memory: SpatialMemory, tokens_per_frame: int, rules: MemoryRules) -> SpatialMemory:
    """The best tokens, once more than `rules.long_tokens` lie beyond the working memory; else all."""
    used = memory.used
    # Whole frames in use, at most those of the working memory; a division of integers is not one operator in ONNX.
    ends = tokens_per_frame * torch.arange(1, rules.work_frames + 1, device=used.device)
    in_work = (used >= ends).sum() * tokens_per_frame
    is_full = used - in_work > rules.long_tokens
    rank = _rank(memory, rules).masked_fill(~memory.valid, -torch.inf)
    count = rules.kept_tokens(tokens_per_frame)
    if rules.faithful and rules.long_tokens > 0:
        kept = rank.topk(count, dim=1).indices
    else:
        kept = largest(rank, count)
    return select(is_full, _gather(memory, kept), memory)


def _rank(memory: SpatialMemory, rules: MemoryRules) -> Tensor:
    """(B, M) float32, more for tokens that matter more: mean attention per frame, and above all of it, youth."""
    if rules.long_tokens == 0:
        return -memory.age
    protected = 1e6 - (0 if rules.faithful else memory.age)
    is_young = memory.age < rules.work_frames + YOUNG
    return torch.where(is_young, protected, memory.attention / memory.age.clamp(min=1))


def _gather(memory: SpatialMemory, slots: Tensor) -> SpatialMemory:
    """The (B, K) slots in this order, then empty ones."""
    batch, room = slots.shape[0], memory.frame_ids.shape[1] - slots.shape[1]
    # One index a token, not one a number.
    rows = (slots + memory.frame_ids.shape[1] * torch.arange(batch, device=slots.device)[:, None]).flatten()

    def take(wide: Tensor) -> Tensor:
        return F.pad(wide.flatten(0, 1).index_select(0, rows).unflatten(0, slots.shape), (0, 0, 0, room))

    return SpatialMemory(
        take(memory.keys),
        take(memory.values),
        F.pad(memory.attention.gather(1, slots), (0, room)),
        F.pad(memory.age.gather(1, slots), (0, room)),
        F.pad(memory.frame_ids.gather(1, slots), (0, room), value=EMPTY),
    )


def select(condition: Tensor, first: SpatialMemory, second: SpatialMemory) -> SpatialMemory:
    """`first` where the () bool holds, else `second`."""
    return SpatialMemory(*(torch.where(condition, a, b) for a, b in zip(first, second, strict=True)))
