# SPDX-License-Identifier: Apache-2.0
"""Who executes a step: (memory, image, camera, depth) → (memory′, Prediction)."""

from __future__ import annotations

from recon_ros.config import Config
from recon_ros.errors import ConfigError
from recon_ros.runtimes.depth import DepthSource
from recon_ros.runtimes.step import StepRuntime


def make_source(config: Config) -> StepRuntime:
    """The source that `config.source` names, loaded and ready.

    Raises:
        ConfigError: for a name nobody answers to.
        NetworkError: for a network whose weights are not here, or without PyTorch.
    """
    if config.source == "depth":
        return DepthSource(config.input)
    from recon_ros.runtimes.torch_network import known_networks, load_network

    if config.source not in known_networks():
        names = ", ".join(known_networks())
        raise ConfigError(f"option 'source' is '{config.source}'; it must be depth, or a network: {names}")
    return load_network(config.source, config.weights, config.update_rule)
