# SPDX-License-Identifier: Apache-2.0
"""Who reads the outputs of a network's step: the same for every executor, and without torch."""

from __future__ import annotations

from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes.executor import Executor
from recon_ros.runtimes.families.compact import CompactStep
from recon_ros.runtimes.families.cut3r import Cut3rStep
from recon_ros.runtimes.families.network_step import NetworkStep
from recon_ros.runtimes.families.pair import PairStep
from recon_ros.runtimes.families.spann3r import Spann3rStep

STEPS: dict[str, type[NetworkStep]] = {
    "compact": CompactStep,
    "cut3r": Cut3rStep,
    "dust3r": PairStep,
    "mast3r": PairStep,
    "spann3r": Spann3rStep,
}

__all__ = ["CompactStep", "Cut3rStep", "NetworkStep", "PairStep", "Spann3rStep", "make_step"]


def make_step(executor: Executor, card: ModelCard) -> NetworkStep:
    """The step of a network, by its plan's family.

    Raises:
        NetworkError: nobody reads this family.
    """
    family = executor.plan.family
    if family not in STEPS:
        raise NetworkError(f"{card.name}: no step for a network of family {family!r}; there are {', '.join(STEPS)}")
    return STEPS[family](executor, card)
