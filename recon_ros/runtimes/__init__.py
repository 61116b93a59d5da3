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
    """
    if config.source == "depth":
        return DepthSource(config.input)
    raise ConfigError(f"source '{config.source}' is unknown; known: depth")
