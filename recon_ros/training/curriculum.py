# SPDX-License-Identifier: Apache-2.0
"""What changes while a training goes on: length of sequences, who gives the pose, the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """The settings of one step.

    Attributes:
        frames: frames of a sequence.
        located: probability that a sequence is unrolled with the poses found by the network; else with true ones.
        noise: how far true poses are shaken: 1 is 0.5° and 1 % of the median depth (standard deviations).
        rate: share of the peak learning rate.
        pose: share of the pose loss's weight.
    """

    frames: int
    located: float
    noise: float
    rate: float
    pose: float


@dataclass(frozen=True)
class Curriculum:
    """From pairs with true poses to long sequences with the network's own.

    Attributes:
        shortest, longest: frames of a sequence at the beginning, and at the end.
        grown: share of the training after which sequences are longest.
        own: share of sequences with the network's own poses at the end.
        warmup: steps over which the learning rate rises.
        last_rate: share of the learning rate that is left at the end.
    """

    shortest: int = 2
    longest: int = 8
    grown: float = 0.6
    own: float = 0.6
    warmup: int = 50
    last_rate: float = 0.02

    def at(self, step: int, progress: float) -> Stage:
        """The stage of a step.

        Args:
            step: steps done.
            progress: share of the training done, 0 to 1.
        """
        progress = min(max(progress, 0.0), 1.0)
        growth = min(1.0, progress / self.grown) if self.grown > 0 else 1.0
        frames = self.shortest + math.floor(growth * (self.longest - self.shortest) + 1e-9)
        cosine = self.last_rate + (1 - self.last_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        return Stage(
            frames=frames,
            located=self.own * _ramp(progress, 0.1, 0.5),
            noise=0.25 + 0.75 * _ramp(progress, 0.0, 0.3),
            rate=cosine * min(1.0, (step + 1) / max(self.warmup, 1)),
            pose=_ramp(progress, 0.0, 0.05),
        )


def _ramp(x: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (x - low) / (high - low)))
