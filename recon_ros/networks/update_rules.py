# SPDX-License-Identifier: Apache-2.0
"""How a recurrent state takes in what the last frame says: CUT3R, TTT3R and FILT3R on the same weights.

The network only proposes a *candidate* state; the rule outside decides how much of it each state token takes.
A rule remembers fixed-shape tensors (`RuleMemory`), which the caller keeps beside the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

RuleMemory = dict[str, Tensor]
"""What a rule remembers between frames; the first axis of each tensor is the batch."""


class UpdateRule(Protocol):
    """A policy that turns the old state and the candidate into the new state.

    Attributes:
        name: as in configurations and reports.
        needs_gate: the network must return the mean logits of its state → image attention.
        restarts: after a reset, the next frame counts as a first one.
    """

    name: ClassVar[str]
    needs_gate: ClassVar[bool]
    restarts: ClassVar[bool]

    def start(self, state: Tensor) -> RuleMemory:
        """The rule's memory before the first frame.

        Args:
            state: (B, N, D) initial state; only its shape, dtype and device matter.
        """
        ...

    def update(
        self, state: Tensor, candidate: Tensor, memory: RuleMemory, logits: Tensor | None
    ) -> tuple[Tensor, RuleMemory]:
        """One frame.

        Args:
            state: (B, N, D) state that the frame was decoded with.
            candidate: (B, N, D) state that the network proposes.
            memory: of the last frame, or `start`.
            logits: (B, N) mean pre-softmax logit of each state token; None unless `needs_gate`.

        Returns:
            The new (B, N, D) state and memory; the arguments are left as they are.
        """
        ...


@dataclass(frozen=True)
class Overwrite:
    """CUT3R: the candidate replaces the state."""

    name: ClassVar[str] = "overwrite"
    needs_gate: ClassVar[bool] = False
    restarts: ClassVar[bool] = False

    def start(self, state: Tensor) -> RuleMemory:
        return {}

    def update(
        self, state: Tensor, candidate: Tensor, memory: RuleMemory, logits: Tensor | None
    ) -> tuple[Tensor, RuleMemory]:
        return candidate, memory


@dataclass(frozen=True)
class Ttt3r:
    """TTT3R: each token moves as far as it attends to the image, s ← β·candidate + (1 − β)·s.

    β = sigmoid(mean logit of the token's state → image cross-attention over layers, heads and image tokens), a
    learning rate in the view of the state as fast weights; 1 on the first frame.
    """

    name: ClassVar[str] = "ttt3r"
    needs_gate: ClassVar[bool] = True
    restarts: ClassVar[bool] = False

    def start(self, state: Tensor) -> RuleMemory:
        return {"is_first": torch.ones(state.shape[0], dtype=torch.bool, device=state.device)}

    def update(
        self, state: Tensor, candidate: Tensor, memory: RuleMemory, logits: Tensor | None
    ) -> tuple[Tensor, RuleMemory]:
        assert logits is not None, "TTT3R needs the logits of the state's attention"
        is_first = memory["is_first"]
        gate = torch.where(is_first[:, None], torch.ones_like(logits), torch.sigmoid(logits))[..., None]
        return gate * candidate + (1 - gate) * state, {"is_first": torch.zeros_like(is_first)}


@dataclass(frozen=True)
class Filt3r:
    """FILT3R: a scalar Kalman filter per state token, the candidate being its measurement.

    The process noise q of a token grows from `quiet_noise` to `moving_noise` when its candidate moves much more
    than tokens lately did; the measurement noise is 1. The gain stays inside [min_gain, 1 − min_gain], so that a
    token is neither frozen nor forgotten. The running level of change starts with the first change seen.

    Attributes:
        initial_variance: p of a token after the first frame.
        rate: of the running mean of the change.
        floor: smallest level of change, so that a still camera does not make noise look like news.
        quiet_noise, moving_noise: bounds of q.
        steepness, threshold: of the sigmoid between them, in units of the level.
        min_gain: bound of the gain.
    """

    name: ClassVar[str] = "filt3r"
    needs_gate: ClassVar[bool] = False
    restarts: ClassVar[bool] = True

    initial_variance: float = 1.5
    rate: float = 0.05
    floor: float = 1e-2
    quiet_noise: float = 0.02
    moving_noise: float = 0.5
    steepness: float = 20.0
    threshold: float = 3.0
    min_gain: float = 0.01

    def start(self, state: Tensor) -> RuleMemory:
        batch, tokens, _ = state.shape
        options = {"dtype": state.dtype, "device": state.device}
        return {
            "variance": torch.full((batch, tokens), self.initial_variance, **options),
            "previous": torch.zeros_like(state),
            "level": torch.zeros((batch, 1), **options),  # 0: no change was seen yet
            "is_first": torch.ones(batch, dtype=torch.bool, device=state.device),
        }

    def update(
        self, state: Tensor, candidate: Tensor, memory: RuleMemory, logits: Tensor | None
    ) -> tuple[Tensor, RuleMemory]:
        is_first = memory["is_first"][:, None]
        change = torch.linalg.vector_norm(candidate - memory["previous"], dim=-1)
        level = self._follow(memory["level"], change.mean(dim=1, keepdim=True))
        gain, variance = self._filter(memory["variance"], change / level)
        moved = state + gain[..., None] * (candidate - state)
        return torch.where(is_first[..., None], candidate, moved), {
            "variance": torch.where(is_first, self.initial_variance, variance),
            "previous": candidate,
            "level": torch.where(is_first, 0.0, level),
            "is_first": torch.zeros_like(memory["is_first"]),
        }

    def _follow(self, level: Tensor, change: Tensor) -> Tensor:
        """Running mean of the change, (B, 1)."""
        followed = torch.where(level > 0, (1 - self.rate) * level + self.rate * change, change)
        return followed.clamp(min=self.floor)

    def _filter(self, variance: Tensor, relative_change: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and posterior variance (Joseph form), each (B, N)."""
        novelty = torch.sigmoid(self.steepness * (relative_change - self.threshold))
        predicted = variance + self.quiet_noise + (self.moving_noise - self.quiet_noise) * novelty
        gain = (predicted / (predicted + 1)).clamp(self.min_gain, 1 - self.min_gain)
        return gain, (1 - gain) ** 2 * predicted + gain**2


RULES: dict[str, type[Overwrite] | type[Ttt3r] | type[Filt3r]] = {
    rule.name: rule for rule in (Overwrite, Ttt3r, Filt3r)
}
"""The rules by name; `filt3r` is what we recommend."""


def select(mask: Tensor, new: RuleMemory, old: RuleMemory) -> RuleMemory:
    """Per sample of the batch, `new` where the (B,) bool mask holds, else `old`."""
    return {key: where(mask, new[key], old[key]) for key in old}


def where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`torch.where` with a (B,) bool mask that is spread over the other axes."""
    return torch.where(mask.view(-1, *[1] * (old.ndim - 1)), new, old)
