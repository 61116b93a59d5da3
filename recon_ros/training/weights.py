# SPDX-License-Identifier: Apache-2.0
"""A trained network as one file: all weights as safetensors, its configuration and history as JSON in the header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from recon_ros.disk import sync
from recon_ros.errors import NetworkError
from recon_ros.networks.checkpoint import load_into, load_state_dict, read_metadata
from recon_ros.networks.compact import Compact, CompactConfig

FACTS = "recon_ros"


def write_network(network: Compact, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a network; it appears whole or not at all.

    Args:
        network: with the weights that are meant.
        path: ``.safetensors``.
        facts: put into the header beside the configuration: how it was trained.

    Raises:
        OSError: the disk does not take it.
    """
    part = path.with_suffix(".part")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    header = {"network": vars(network.config), **facts}
    save_file(state, part, metadata={"format": "pt", FACTS: json.dumps(header)})
    sync(part)
    os.replace(part, path)


def read_network(path: Path, device: torch.device) -> tuple[Compact, dict[str, Any]]:
    """A network from a file of `write_network`, ready to be used, and what the header says.

    Raises:
        NetworkError: the file is missing, damaged, or of another network.
    """
    state = load_state_dict(path)
    header = read_metadata(path).get(FACTS)
    if header is None:
        raise NetworkError(f"{path} does not say which compact network it is of; give a file that `recon train` wrote")
    facts = json.loads(header)
    network = Compact(CompactConfig(**facts["network"]))
    load_into(network, state, str(path))
    return network.to(device).eval(), facts


def load_encoder(network: Compact, path: Path) -> None:
    """Give a network the pretrained weights of its encoder; blocks that it leaves out are passed over.

    Raises:
        NetworkError: the file is missing, damaged, or of another encoder.
    """
    state = load_state_dict(path)
    wanted = network.encoder.state_dict()
    load_into(network.encoder, {key: tensor for key, tensor in state.items() if key in wanted}, str(path))
