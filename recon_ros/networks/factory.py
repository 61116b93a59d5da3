# SPDX-License-Identifier: Apache-2.0
"""From a model card to its network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from recon_ros.errors import NetworkError
from recon_ros.networks.cards import NetworkCard
from recon_ros.networks.checkpoint import load_state_dict, match


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
    from recon_ros.networks.cut3r import Cut3r, Cut3rConfig
    from recon_ros.networks.dust3r import Dust3r, Dust3rConfig
    from recon_ros.networks.mast3r import Mast3r, Mast3rConfig
    from recon_ros.networks.spann3r import Spann3r, Spann3rConfig

    arguments = dict(card.constructor)
    try:
        with torch.device(device):
            if card.family == "dust3r":
                return Dust3r(Dust3rConfig(**arguments))
            if card.family == "mast3r":
                return Mast3r(Mast3rConfig(**arguments))
            if card.family == "cut3r":
                return Cut3r(Cut3rConfig(**arguments))
            value = {name: arguments.pop(name) for name in ("value_depth", "value_heads") if name in arguments}
            return Spann3r(Spann3rConfig(Dust3rConfig(**arguments), **value))
    except TypeError as error:
        raise NetworkError(f"model card {card.name}: its constructor does not fit the family: {error}") from error
