# SPDX-License-Identifier: Apache-2.0
"""Who executes a step: (memory, image, camera, depth) → (memory′, Prediction)."""

from __future__ import annotations

from recon_ros.config import Config
from recon_ros.errors import ConfigError
from recon_ros.runtimes.depth import DepthSource
from recon_ros.runtimes.step import StepRuntime


def make_source(config: Config) -> StepRuntime:
    """The source that `config.source` names. A network is loaded with the first image, whose size decides.

    Raises:
        ConfigError: for a name nobody answers to, or a runtime without the precision asked for.
        NetworkError: for a network whose weights are not here, or that nothing installed can execute.
    """
    if config.source == "depth":
        return DepthSource(config.input)
    from recon_ros.networks.small import SMALL
    from recon_ros.runtimes.source import NetworkSource
    from recon_ros.runtimes.torch_network import known_networks
    from recon_ros.runtimes.workshop import NetworkWorkshop

    if config.source not in (*known_networks(), *SMALL):
        names = ", ".join(known_networks())
        raise ConfigError(f"option 'source' is '{config.source}'; it must be depth, or a network: {names}")
    return NetworkSource(config, NetworkWorkshop(config))
