# SPDX-License-Identifier: Apache-2.0
"""A pointmap network by name, with its weights, executed by PyTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.networks.cards import NetworkCard, find_card, list_cards
from recon_ros.runtimes.step import StepRuntime

RANDOM = "random-small"
RANDOM_CARD = ModelCard(
    name="random-small (random weights: plumbing tests only, the map means nothing)",
    family="cut3r",
    max_size=128,
    multiple=16,
    unbounded_confidence=True,
)
RANDOM_SEED = 0


def known_networks() -> tuple[str, ...]:
    """Names `load_network` answers to."""
    return (RANDOM, *(card.name for card in list_cards()))


def load_network(name: str, weights: str = "", update_rule: str = "filt3r") -> StepRuntime:
    """A network as a step, ready to run.

    Args:
        name: of a card in ``models/``, or ``random-small``: a tiny CUT3R with random weights, for plumbing tests only.
        weights: file to load instead of the one the card names in the cache.
        update_rule: of a CUT3R: ``overwrite``, ``ttt3r`` or ``filt3r``.

    Raises:
        NetworkError: torch is missing, the name is unknown, the weights are not here, or are not this network's.
    """
    card = None if name == RANDOM else find_card(name)
    path = None if card is None else _weights(card, weights)
    if importlib.util.find_spec("torch") is None:
        raise NetworkError(f"source '{name}' needs PyTorch: pip install torch, or choose source depth")
    if card is None or path is None:
        return _random_small(update_rule)
    from recon_ros.networks import factory

    return _step(factory.load_network(card, path), card, update_rule)


def _weights(card: NetworkCard, given: str) -> Path:
    from recon_ros.networks.fetch import find_weights

    if not given:
        return find_weights(card)
    path = Path(given).expanduser()
    if not path.is_file():
        raise NetworkError(f"option 'weights' names {path}, which is not a file")
    return path


def _step(network: Any, card: ModelCard, update_rule: str) -> StepRuntime:
    if card.family in ("dust3r", "mast3r"):
        from recon_ros.networks.pair_step import PairStep

        return PairStep(network, card)
    if card.family == "spann3r":
        from recon_ros.networks.spann3r_step import Spann3rStep

        return Spann3rStep(network, card)
    from recon_ros.networks.cut3r_step import Cut3rStep
    from recon_ros.networks.update_rules import RULES

    return Cut3rStep(network, card, RULES[update_rule]())


def _random_small(update_rule: str) -> StepRuntime:
    """A tiny CUT3R: every stage behind the step runs, nothing it says is true."""
    import torch

    from recon_ros.networks.cut3r import Cut3r, Cut3rConfig

    sizes = Cut3rConfig(
        enc_dim=64,
        enc_depth=2,
        enc_heads=4,
        ray_depth=1,
        dec_dim=64,
        dec_depth=4,
        dec_heads=4,
        state_tokens=24,
        state_heads=4,
        pose_slots=16,
        head="linear",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        network = Cut3r(sizes)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return _step(network, RANDOM_CARD, update_rule)
