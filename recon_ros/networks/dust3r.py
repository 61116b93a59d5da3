# SPDX-License-Identifier: Apache-2.0
"""DUSt3R: pointmaps of two images in the camera of the first, up to scale.

Wang et al., "DUSt3R: Geometric 3D vision made easy", CVPR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from recon_ros.networks.heads import DPTPointHead, LinearHead, Pointmap
from recon_ros.networks.pair import PairConfig, PairNetwork


@dataclass(frozen=True)
class Dust3rConfig(PairConfig):
    """Sizes of a DUSt3R. `head` is `"dpt"` or `"linear"`."""

    head: Literal["linear", "dpt"] = "dpt"

    @classmethod
    def vitlarge_512_dpt(cls) -> Dust3rConfig:
        """The published DUSt3R for images of 512 pixels with DPT heads."""
        return cls()

    @classmethod
    def vitlarge_linear(cls) -> Dust3rConfig:
        """The published DUSt3R with linear heads, for 224 or 512 pixels."""
        return cls(head="linear")


class Dust3r(PairNetwork[Pointmap]):
    """The network; see `PairNetwork` for its use."""

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__(config, _head(config), _head(config))


def _head(config: Dust3rConfig) -> nn.Module:
    if config.head == "linear":
        return LinearHead(config.dec_dim, config.patch)
    return DPTPointHead(config.dpt(channels=4), config.dpt_hooks)
