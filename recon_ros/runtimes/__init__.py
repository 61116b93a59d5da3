# SPDX-License-Identifier: Apache-2.0
"""Who executes a step: (memory, image, camera, depth) → (memory′, Prediction)."""

from __future__ import annotations

import dataclasses
import importlib.util

from recon_ros.config import Config
from recon_ros.errors import ConfigError
from recon_ros.runtimes.depth import DepthSource
from recon_ros.runtimes.step import StepRuntime

AUTO = "auto"
COMPACT = "recon_compact"
"""The network that comes with this package."""


def named(config: Config) -> Config:
    """The configuration with the source's name, where it leaves the choice to us: the largest metric network whose
    weights are here, then the largest other one, and the compact one that is part of this package where there is none.
    """
    if config.source != AUTO:
        return config
    from recon_ros.networks.cards import list_cards
    from recon_ros.networks.fetch import weight_path

    here = [card for card in list_cards() if not card.weights.shipped and weight_path(card).is_file()]
    if not here or importlib.util.find_spec("torch") is None:
        return dataclasses.replace(config, source=COMPACT)
    return dataclasses.replace(config, source=max(here, key=lambda card: (card.is_metric, card.parameters)).name)


def make_source(config: Config) -> StepRuntime:
    """The source that `config.source` names. A network is loaded with the first image, whose size decides.

    Raises:
        ConfigError: for a name nobody answers to, or a runtime without the precision asked for.
        NetworkError: for a network whose weights are not here, or that nothing installed can execute.
    """
    config = named(config)
    if config.source == "depth":
        return DepthSource(config.input)
    from recon_ros.networks.small import SMALL
    from recon_ros.runtimes.source import NetworkSource
    from recon_ros.runtimes.torch_network import known_networks
    from recon_ros.runtimes.workshop import NetworkWorkshop

    if config.source not in (*known_networks(), *SMALL):
        names = ", ".join(known_networks())
        raise ConfigError(f"option 'source' is '{config.source}'; it must be depth, auto, or a network: {names}")
    return NetworkSource(config, NetworkWorkshop(config))
