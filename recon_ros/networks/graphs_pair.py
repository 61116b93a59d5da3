# SPDX-License-Identifier: Apache-2.0
"""A step of DUSt3R and MASt3R as two graphs: encode the image, decode it with the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recon_ros.networks.graphs import GraphModule, GraphOptions, StepGraphs, assemble, cleared, floats, health, pixels
from recon_ros.networks.pair import PairNetwork
from recon_ros.networks.patches import grid_positions
from recon_ros.networks.plan import HEALTH, IMAGE, NEXT

Grid = tuple[int, int]


class EncodeGraph(GraphModule):
    """An image → its features, and their mean, which describes the place."""

    inputs = (IMAGE,)
    outputs = ("features", "descriptor", f"{HEALTH}.encode")

    def __init__(self, network: PairNetwork[Any]) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        network = self.network
        features = network.encode(pixels(image, network.patch_embed.proj.weight.dtype)).features.float()
        given = features, features[0].mean(dim=0)
        return *given, health(given)


class DecodeGraph(GraphModule):
    """The reference and the image → their pointmaps, both in the reference's camera.

    The image is its own reference where `is_first`, and is always the next one: whether it becomes so is the caller's
    decision, who otherwise keeps the memory that it has.

    Args:
        network: a DUSt3R or MASt3R.
        grid: rows and columns of patches.
        optional: outputs of `graphs.optional_outputs`.
    """

    def __init__(self, network: PairNetwork[Any], grid: Grid, optional: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.grid = network, grid
        self.inputs = ("features", "reference", "is_first")
        self.maps = ("points1", "confidence1", "points2", "confidence2", *optional)
        self.outputs = (*self.maps, f"reference{NEXT}", f"is_first{NEXT}", f"{HEALTH}.decode")

    def forward(self, features: Tensor, reference: Tensor, is_first: Tensor) -> tuple[Tensor, ...]:
        first = torch.where(is_first[:, None, None] > 0.5, features, reference)
        dtype = trunk_dtype(self.network)
        positions = grid_positions(1, *self.grid, device=features.device)
        decoded = self.network.decode(first.to(dtype), positions, features.to(dtype), positions)
        views = {"1": self.network.head(1, decoded[0], *self.grid), "2": self.network.head(2, decoded[1], *self.grid)}
        maps = [getattr(views[name[-1]], name[:-1])[0] for name in self.maps]
        given = *maps, features, cleared(is_first)
        return *given, health(given)


def pair_graphs(network: nn.Module, family: str, width: int, height: int, options: GraphOptions) -> StepGraphs:
    """See `graphs.build_graphs`."""
    assert isinstance(network, PairNetwork), f"a card of family {family} is of a PairNetwork"
    config = network.config
    grid = height // config.patch, width // config.patch
    tokens = grid[0] * grid[1]
    decode = DecodeGraph(network, grid, options.outputs)
    descriptor_dim = getattr(config, "descriptor_dim", 0)
    widths = {"points": (3,), "descriptors": (descriptor_dim,)}
    maps = {name: floats(height, width, *widths.get(name[:-1], ())) for name in decode.maps}
    given = {"features": floats(1, tokens, config.enc_dim), "descriptor": floats(config.enc_dim), **maps}
    device = network.mask_token.device
    initial = {"reference": torch.zeros(1, tokens, config.enc_dim), "is_first": torch.ones(1)}
    initial = {name: tensor.to(device) for name, tensor in initial.items()}
    graphs = {"encode": EncodeGraph(network), "decode": decode}
    return assemble(family, width, height, graphs, initial, given, (*maps, "descriptor"))


def trunk_dtype(network: PairNetwork[Any]) -> torch.dtype:
    """What encoder and decoder calculate in."""
    return network.enc_blocks[0].attn.qkv.weight.dtype
