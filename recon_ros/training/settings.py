# SPDX-License-Identifier: Apache-2.0
"""What a training is asked to do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from recon_ros.errors import ConfigError
from recon_ros.training.curriculum import Curriculum
from recon_ros.training.losses import LossWeights


@dataclass(frozen=True)
class Settings:
    """Settings of a training; the network's own are `CompactConfig`.

    Attributes:
        steps, minutes: how long; exactly one is given. Only with `steps` is a training the same each time: with
            `minutes` its curriculum follows the clock.
        batch: sequences of a step.
        seed: of weights, batches and noise.
        rate: peak learning rate of AdamW.
        decay: weight decay of matrices and kernels.
        clip: largest norm of the gradient.
        average: decay of the moving average of the weights.
        truncate: frames that gradients flow back through.
        half: bfloat16 where it does no harm; geometry and losses stay in float32.
        curriculum, weights: see there.
        log_every, sample_every: steps between rows of the log, and between pictures.
        validate_every: minutes between validations.
        checkpoint_every: minutes between checkpoints.
        keep: checkpoints that stay.
        validate_on: held-out sequences of a validation; 0 for all.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 4
    seed: int = 0
    rate: float = 8e-4
    decay: float = 0.02
    clip: float = 1.0
    average: float = 0.999
    truncate: int = 2
    half: bool = False
    curriculum: Curriculum = field(default_factory=Curriculum)
    weights: LossWeights = field(default_factory=LossWeights)
    log_every: int = 10
    sample_every: int = 500
    validate_every: float = 10.0
    checkpoint_every: float = 3.0
    keep: int = 4
    validate_on: int = 12

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError(
                f"a training needs steps or minutes, one of them; steps={self.steps}, minutes={self.minutes}"
            )
        for name in ("batch", "truncate", "log_every", "sample_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def share(self, step: int, seconds: float) -> float:
        """The share of the training that is done."""
        if self.steps is not None:
            return step / max(self.steps, 1)
        assert self.minutes is not None
        return seconds / (60 * self.minutes)


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as numbers, texts and dictionaries, for JSON."""
    return dataclasses.asdict(settings)
