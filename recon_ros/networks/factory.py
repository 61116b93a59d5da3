# SPDX-License-Identifier: Apache-2.0
"""From a model card to its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recon_ros.errors import NetworkError
from recon_ros.networks.cards import NetworkCard
from recon_ros.networks.checkpoint import load_state_dict, match
from recon_ros.networks.recipe import Rule, draw


def load_network(card: NetworkCard, path: Path) -> nn.Module:
    """The card's network with the weights of a file, in float32 on the CPU, for inference.

    The weights are held once: an official file is mapped into memory, not copied, and must stay as it is.

    Raises:
        NetworkError: the file cannot be read, or is not of this network (`checkpoint.StateMismatch`).
    """
    network = build_network(card, "meta")
    state = match(network, load_state_dict(path), card.name)
    network.load_state_dict({key: tensor.to(torch.float32) for key, tensor in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


def build_network(card: NetworkCard, device: torch.device | str = "cpu") -> nn.Module:
    """The card's network with no particular weights; on the device ``meta`` it takes no memory.

    Raises:
        NetworkError: the card's constructor is not one of its family.
    """
    try:
        return build_family(card.family, card.constructor, device)
    except TypeError as error:
        raise NetworkError(f"model card {card.name}: its constructor does not fit the family: {error}") from error


def build_family(family: str, constructor: Mapping[str, Any], device: torch.device | str = "cpu") -> nn.Module:
    """A network from the arguments of its family's configuration; those of Spann3R are DUSt3R's and its own.

    Raises:
        TypeError: they do not fit.
    """
    from recon_ros.networks.compact import Compact, CompactConfig
    from recon_ros.networks.cut3r import Cut3r, Cut3rConfig
    from recon_ros.networks.dust3r import Dust3r, Dust3rConfig
    from recon_ros.networks.mast3r import Mast3r, Mast3rConfig
    from recon_ros.networks.spann3r import Spann3r, Spann3rConfig
    from recon_ros.networks.spann3r_memory import MemoryRules

    arguments = dict(constructor)
    with torch.device(device):
        if family == "compact":
            return Compact(CompactConfig(**arguments))
        if family == "dust3r":
            return Dust3r(Dust3rConfig(**arguments))
        if family == "mast3r":
            return Mast3r(Mast3rConfig(**arguments))
        if family == "cut3r":
            return Cut3r(Cut3rConfig(**arguments))
        value = {name: arguments.pop(name) for name in ("value_depth", "value_heads") if name in arguments}
        rules = MemoryRules(**arguments.pop("rules", {}))
        return Spann3r(Spann3rConfig(Dust3rConfig(**arguments), **value, rules=rules))


def seeded_network(family: str, constructor: Mapping[str, Any], seed: int, rules: Sequence[Rule] = ()) -> nn.Module:
    """A network with weights drawn by the recipe, in float32 on the CPU, for inference.

    Args:
        family, constructor: see `build_family`.
        seed: of the weights.
        rules: of the recipe, asked before its own.
    """
    network = build_family(family, constructor, "meta").to_empty(device="cpu")
    with torch.no_grad():
        # One tensor at a time: a full-size network is not held twice.
        for key, tensor in network.state_dict().items():
            tensor.copy_(torch.from_numpy(draw(key, tuple(tensor.shape), seed, rules)))
    return network.eval().requires_grad_(False)
