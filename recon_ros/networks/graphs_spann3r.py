# SPDX-License-Identifier: Apache-2.0
"""Spann3R's step as three graphs: encode the image; ask the memory and decode; write the memory.

The memory is read and written in float32 whatever the network was prepared for: thresholds decide there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recon_ros.errors import NetworkError
from recon_ros.networks.graphs import GraphModule, StepGraphs, assemble, floats, health
from recon_ros.networks.graphs_pair import EncodeGraph, Grid, trunk_dtype
from recon_ros.networks.pair import Encoding
from recon_ros.networks.patches import grid_positions
from recon_ros.networks.plan import HEALTH, NEXT
from recon_ros.networks.spann3r import MEMORY_PREFIX, Spann3r, Spann3rState
from recon_ros.networks.spann3r_memory import SpatialMemory

MEMORY = tuple(MEMORY_PREFIX + name for name in SpatialMemory._fields)
ATTENTION_READ = "memory.attention.read"
"""The attention that the memory received, this reading included."""


class LookGraph(GraphModule):
    """The image before asks the memory, and is decoded with the new one."""

    inputs = ("features", "feature", "query", *MEMORY, "frames")
    outputs = (
        *("points", "confidence", "points_previous", "key", ATTENTION_READ),
        *(f"feature{NEXT}", f"query{NEXT}", f"{HEALTH}.decode"),
    )

    def __init__(self, network: Spann3r, grid: Grid) -> None:
        super().__init__()
        self.network, self.grid = network, grid

    def forward(
        self,
        features: Tensor,
        feature: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        attention: Tensor,
        age: Tensor,
        frame_ids: Tensor,
        frames: Tensor,
    ) -> tuple[Tensor, ...]:
        dtype = trunk_dtype(self.network.dust3r)
        memory = SpatialMemory(keys, values, attention, age, frame_ids.to(torch.int64))
        state = Spann3rState(memory, feature.to(dtype), query, frames)
        positions = grid_positions(1, *self.grid, device=features.device)
        glance = self.network.look(state, Encoding(features.to(dtype), positions, *self.grid))
        given = (
            glance.current.points[0],
            glance.current.confidence[0],
            glance.previous.points[0],
            glance.key.float(),
            glance.memory.attention,
            features,
            glance.query.float(),
        )
        return *given, health(given)


class KeepGraph(GraphModule):
    """The image before is written to the memory, if it says anything new."""

    inputs = (
        *("points_previous", "key", "memory.keys", "memory.values"),
        *(ATTENTION_READ, "memory.age", "memory.frame_ids", "frames"),
    )
    outputs = (*(name + NEXT for name in MEMORY), f"frames{NEXT}", f"{HEALTH}.write")

    def __init__(self, network: Spann3r) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        points_previous: Tensor,
        key: Tensor,
        keys: Tensor,
        values: Tensor,
        attention: Tensor,
        age: Tensor,
        frame_ids: Tensor,
        frames: Tensor,
    ) -> tuple[Tensor, ...]:
        memory = SpatialMemory(keys, values, attention, age, frame_ids.to(torch.int64))
        kept, _ = self.network.keep(memory, key, points_previous[None], frames.to(torch.int64))
        given = kept.keys, kept.values, kept.attention, kept.age
        return *given, kept.frame_ids.to(torch.int32), frames + 1, health(given)


def spann3r_graphs(network: nn.Module, width: int, height: int) -> StepGraphs:
    """See `graphs.build_graphs`.

    Raises:
        NetworkError: the memory's rules are the faithful ones, which may read NaN and turn upright images.
    """
    assert isinstance(network, Spann3r), "a card of family spann3r is of a Spann3r"
    if network.config.rules.faithful:
        raise NetworkError("Spann3R with the defects of the published code (rules.faithful) cannot run as a stream")
    patch, dim = network.config.dust3r.patch, network.config.dust3r.enc_dim
    grid = height // patch, width // patch
    with torch.no_grad():
        state = network.initial_state(height, width).state_dict()
    initial = {name: tensor.to(_border(tensor)) for name, tensor in state.items()}
    given = {
        "features": floats(1, grid[0] * grid[1], dim),
        "descriptor": floats(dim),
        "points": floats(height, width, 3),
        "confidence": floats(height, width),
        "points_previous": floats(height, width, 3),
        "key": floats(1, grid[0] * grid[1], dim),
        ATTENTION_READ: floats(*state["memory.attention"].shape),
    }
    graphs = {"encode": EncodeGraph(network.dust3r), "decode": LookGraph(network, grid), "write": KeepGraph(network)}
    return assemble("spann3r", width, height, graphs, initial, given, ("points", "confidence", "descriptor"))


def _border(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else torch.int32
