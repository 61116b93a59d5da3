# SPDX-License-Identifier: Apache-2.0
"""CUT3R's step as one graph: encode, decode with the state, update the state by the rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recon_ros.errors import NetworkError
from recon_ros.networks.cut3r import PATCH, Cut3r, Cut3rMemory
from recon_ros.networks.graphs import GraphModule, GraphOptions, StepGraphs, assemble, cleared, floats, health, pixels
from recon_ros.networks.plan import HEALTH, IMAGE, NEXT
from recon_ros.networks.update_rules import RULES, RuleMemory, UpdateRule

RULE_PREFIX = "rule."
IS_FIRST = "is_first"
"""A flag among what a rule remembers, as among what the network does; true at the first image only."""


class Cut3rGraph(GraphModule):
    """The whole step.

    Args:
        network: a CUT3R.
        rule: how the state takes an image in.
        rule_names: what the rule remembers.
        width, height: of the image, pixels.
        with_world: also give the points in the first camera's frame.
    """

    def __init__(
        self,
        network: Cut3r,
        rule: UpdateRule,
        rule_names: tuple[str, ...],
        width: int,
        height: int,
        with_world: bool,
    ) -> None:
        super().__init__()
        self.network, self.rule, self.rule_names = network, rule, rule_names
        self.grid = height // PATCH, width // PATCH
        self.wanted = ("self", "pose", *(("cross",) if with_world else ()))
        memory = ("state", "pose_memory", "is_first", *(RULE_PREFIX + name for name in rule_names))
        world = ("points_memory",) if with_world else ()
        self.inputs = (IMAGE, *memory)
        self.outputs = (
            *("points", "confidence", "pose", *world, "descriptor"),
            *(name + NEXT for name in memory),
            HEALTH,
        )

    def forward(
        self, image: Tensor, state: Tensor, pose_memory: Tensor, is_first: Tensor, *rule: Tensor
    ) -> tuple[Tensor, ...]:
        network = self.network
        feature = network.encode_image(pixels(image, network.patch_embed.proj.weight.dtype))
        decoded = network.decode(feature, self.grid, state, pose_memory, is_first > 0.5, self.wanted)
        remembered = dict(zip(self.rule_names, rule, strict=True))
        before = {name: t > 0.5 if name == IS_FIRST else t for name, t in remembered.items()}
        logits = decoded.logits if self.rule.needs_gate else None
        state, after = self.rule.update(state, decoded.candidate, before, logits)

        said = decoded.outputs
        world = (said["pts3d_in_other_view"][0],) if "cross" in self.wanted else ()
        given = (
            said["pts3d_in_self_view"][0],
            said["conf_self"][0],
            said["camera_pose"][0],
            *world,
            feature[0].float().mean(dim=0),
            state,
            decoded.pose_memory,
            cleared(is_first),
            *(cleared(t) if name == IS_FIRST else after[name] for name, t in remembered.items()),
        )
        return *given, health(given)


def cut3r_graphs(network: nn.Module, width: int, height: int, options: GraphOptions) -> StepGraphs:
    """See `graphs.build_graphs`."""
    assert isinstance(network, Cut3r), "a card of family cut3r is of a Cut3r"
    if options.update_rule not in RULES:
        raise NetworkError(f"update rule {options.update_rule!r} is not one of {', '.join(RULES)}")
    rule = RULES[options.update_rule]()
    with torch.no_grad():
        start = network.initial_memory(1, rule)
    with_world = "points_memory" in options.outputs
    graph = Cut3rGraph(network, rule, tuple(start.rule), width, height, with_world)
    given = {
        "points": floats(height, width, 3),
        "confidence": floats(height, width),
        "pose": floats(7),
        "descriptor": floats(network.config.enc_dim),
    }
    if with_world:
        given["points_memory"] = floats(height, width, 3)
    return assemble("cut3r", width, height, {"step": graph}, flatten(start), given, tuple(given))


def flatten(memory: Cut3rMemory) -> dict[str, Tensor]:
    """The memory by name, all in float32."""
    rule: RuleMemory = {RULE_PREFIX + name: tensor.float() for name, tensor in memory.rule.items()}
    return {
        "state": memory.state.float(),
        "pose_memory": memory.pose_memory.float(),
        "is_first": memory.is_first.float(),
        **rule,
    }
