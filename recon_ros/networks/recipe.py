# SPDX-License-Identifier: Apache-2.0
"""Seeded weights for the networks: any state dict from its keys and shapes, with no file and no torch.

The parity fixtures were made with these weights: uniform numbers whose scale depends on the key, so that
attention logits spread, biases and tokens are not zero, and a mistake in the computation shows. The numbers
of a key come from a generator seeded with its name, so they depend on nothing else in the network.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import NetworkError

FANS = ("rest", "dim0", "none")


@dataclass(frozen=True)
class Rule:
    """How the keys that `pattern` is found in are drawn.

    Attributes:
        pattern: regular expression, searched for in the canonical key.
        fan: what divides the scale: √(product of all sizes but the first) for ``rest``, √(first size) for
            ``dim0``, nothing for ``none``.
        mean, scale: of the numbers; `scale` is their standard deviation before the division.
    """

    pattern: str
    fan: str
    mean: float
    scale: float

    def std(self, shape: Sequence[int]) -> float:
        """Standard deviation of a tensor of this shape."""
        if self.fan == "rest":
            return self.scale / math.sqrt(math.prod(shape[1:]))
        return self.scale / math.sqrt(shape[0]) if self.fan == "dim0" else self.scale


_PATCHES = (
    r"patch_embed(_ray_map|_point_cloud)?\.proj\.{0}$|pos_patch_embed\.proj\.{0}$|patch_embed\.patch_embed\.proj\.{0}$"
)
_NORMS = r"(^|\.)(norm\w*|\w*_norm|\w*_norm_\w+|norm_[a-z]+)\.{0}$"
_QUERIES = r"(\.qkv|\.projq|\.projk|\.projv)\.{0}$"
_RESIDUAL_ENDS = (
    r"(attn\.proj|cross_attn\.proj|blocks\w*\.\d+\.mlp\.fc2|encoder\.\d+\.mlp\.fc2|"
    r"final_transform\.\d+\.mlp\.fc2)\.{0}$"
)
_NARROW = r"(decoder_embed|decoder_embed_state|pose_retriever\.proj_q|attn_head_\d\.2|value_out)\.{0}$"
_TOKENS = (
    "(mask_token|masked_token|pose_token|masked_img_token|masked_ray_map_token|camera_token|register_token|"
    "cls_token|pos_embed|empty_pose_tokens|query_ref_token)$"
)

# The first rule that is found in the key decides.
RULES: tuple[Rule, ...] = (
    Rule(r"(^|\.)register_tokens\.weight$", "none", 0.0, 1.0),
    Rule(_TOKENS, "none", 0.0, 0.05),
    Rule(r"pose_retriever\.mem$", "none", 0.0, 0.05),
    Rule(_PATCHES.format("weight"), "rest", 0.0, 0.1),
    Rule(_PATCHES.format("bias"), "none", 0.0, 0.02),
    Rule(_NORMS.format("weight"), "none", 1.0, 0.1),
    Rule(_NORMS.format("bias"), "none", 0.0, 0.1),
    Rule(r"final_transform\.\d+\.norm\d\.mlp\.1\.weight$", "rest", 0.0, 0.5),
    Rule(r"final_transform\.\d+\.norm\d\.mlp\.1\.bias$", "none", 0.0, 0.1),
    Rule(r"\.ls\d\.gamma$", "none", 0.5, 0.1),
    Rule(_QUERIES.format("weight"), "rest", 0.0, 1.2),
    Rule(_QUERIES.format("bias"), "none", 0.0, 0.1),
    Rule(_RESIDUAL_ENDS.format("weight"), "rest", 0.0, 0.1),
    Rule(_RESIDUAL_ENDS.format("bias"), "none", 0.0, 0.02),
    Rule(_NARROW.format("weight"), "rest", 0.0, 0.1),
    Rule(_NARROW.format("bias"), "none", 0.0, 0.02),
    Rule(r"act_postprocess\.[01]\.1\.weight$|resize_layers\.[01]\.weight$", "dim0", 0.0, 1.0),
    Rule(r"(dpt\w*|\w*)\.?head\.4\.weight$", "rest", 0.0, 1.0),
    Rule(r"\.weight$", "rest", 0.0, 1.0),
    Rule(r"\.bias$", "none", 0.0, 0.1),
    Rule(".*", "none", 0.0, 0.05),
)


def canonical(key: str) -> str:
    """The name under which a tensor is drawn: ``scratch.layer_rn.<n>`` is ``scratch.layer<n+1>_rn``."""
    return re.sub(r"scratch\.layer_rn\.(\d+)\.", lambda found: f"scratch.layer{int(found[1]) + 1}_rn.", key)


def draw(key: str, shape: Sequence[int], seed: int, overrides: Sequence[Rule] = ()) -> NDArray[np.float32]:
    """The tensor of one state-dict key.

    Args:
        key: its name; not its place in the state dict, which changes nothing.
        shape: its shape.
        seed: any integer ≥ 0.
        overrides: rules asked before `RULES`.
    """
    name = canonical(key)
    rule = next(rule for rule in (*overrides, *RULES) if re.search(rule.pattern, name))
    generator = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
    uniform = generator.random_sample(math.prod(shape))
    values = rule.mean + rule.std(shape) * math.sqrt(3) * (2 * uniform - 1)
    return values.astype(np.float32).reshape(tuple(shape))


def draw_all(
    shapes: Mapping[str, Sequence[int]], seed: int, overrides: Sequence[Rule] = ()
) -> dict[str, NDArray[np.float32]]:
    """A whole state dict: name → float32 array. `shapes` maps each key to its shape."""
    return {key: draw(key, shape, seed, overrides) for key, shape in shapes.items()}


def parse_rules(items: Sequence[Sequence[Any]]) -> tuple[Rule, ...]:
    """Rules written as ``[pattern, fan, mean, scale]``, as ``recipe_overrides`` of a fixture's config.

    Raises:
        NetworkError: an entry is not such a list.
    """
    rules = []
    for item in items:
        try:
            pattern, fan, mean, scale = item
            re.compile(pattern)
            rule = Rule(pattern, fan, float(mean), float(scale))
        except (TypeError, ValueError, re.error) as error:
            raise NetworkError(f"weight recipe: {item!r} is not [pattern, fan, mean, scale]: {error}") from error
        if fan not in FANS:
            raise NetworkError(f"weight recipe: fan {fan!r} of {pattern!r} is not one of {', '.join(FANS)}")
        rules.append(rule)
    return tuple(rules)


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a ``recipe.json``, for comparing with `RULES`, or to be given as overrides.

    Raises:
        NetworkError: the file cannot be read as a recipe.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8"))["rules"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NetworkError(f"{path} is not a weight recipe: {error}") from error
    return parse_rules(items)
