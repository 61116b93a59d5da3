# SPDX-License-Identifier: Apache-2.0
"""Who reads the outputs of a network's step: the same for every executor, and without torch.

What a correction of the map means for the spatial memory of each, and what being lost does:

===============  ==================================  =======================================  ========================
family           its memory is in the frame of       after a correction                       when tracking is lost
===============  ==================================  =======================================  ========================
depth            (it has none)                       nothing to do                            nothing to do
dust3r, mast3r   its first image; tokens are of one  kept: pose and extent of the reference   kept; a new map or ~/reset
                 reference image                     are relative to the memory's frame       begins a new one
spann3r          its first image; keys and values    kept: keys and values are of looks, the  the same
                 of past images                      points in them are of the memory's frame
cut3r            its first image, in the state's     kept: the state is the network's own,    the same
                 tokens                              nobody could move it
===============  ==================================  =======================================  ========================

Kept, because nobody outside looks into a memory's frame: of the poses a network tells only increments are used, scaled
to the map's unit (`tracking.tracker`), and its points are put where tracking has the camera. Re-anchoring would change
what the network has learned to expect of its own memory, and a restart would throw away what it knows of the
surroundings.
"""

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
