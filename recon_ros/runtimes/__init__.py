# SPDX-License-Identifier: Apache-2.0
"""Who executes a step: (memory, image, camera, depth) → (memory′, Prediction)."""

from __future__ import annotations

from recon_ros.config import Config
from recon_ros.runtimes.depth import DepthSource
from recon_ros.runtimes.step import StepRuntime


def make_source(config: Config) -> StepRuntime:
    """The source that `config.source` names, loaded and ready.

    Raises:
        NetworkError: for a name nobody answers to, a network whose weights are not here, or without PyTorch.
    """
    if config.source == "depth":
        return DepthSource(config.input)
    from recon_ros.runtimes.torch_network import load_network

    return load_network(config.source, config.weights, config.update_rule)
