# SPDX-License-Identifier: Apache-2.0
"""Small networks of every family and head, on seeded weights: for tests and self-checks, not for maps.

Sizes and weights are those of the parity fixtures. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recon_ros.networks.card import ModelCard

SEED = 0
SIDE = 96

DPT = {"dpt_feature_dim": 16, "dpt_last_dim": 8, "dpt_layer_dims": (8, 12, 16, 24)}
PAIR = {"enc_dim": 48, "enc_depth": 3, "enc_heads": 4, "dec_dim": 32, "dec_depth": 4, "dec_heads": 2}
MAST3R = {"enc_dim": 24, "enc_depth": 2, "enc_heads": 2, "dec_dim": 16, "dec_depth": 4, "dec_heads": 2}
CUT3R = {"enc_dim": 64, "enc_depth": 2, "enc_heads": 4, "ray_depth": 2, "dec_dim": 32, "dec_depth": 4, "dec_heads": 2}
STATE = {"state_tokens": 15, "state_heads": 4, "pose_slots": 16}
# Prunes at the fifth image of 96×64 for the first time, and holds images of up to 60 patches.
MEMORY = {"long_tokens": 60, "work_frames": 1}

DPT_RULES = (
    (r"\.dpt\w*\.head\.4\.weight$", "rest", 0.0, 0.6),
    (r"\.dpt\w*\.head\.[02]\.weight$", "rest", 0.0, 1.2),
    (r"\.dpt\w*\..*\.conv\d\.weight$", "rest", 0.0, 0.9),
)
CUT3R_RULES = (
    (r"^register_tokens\.weight$", "none", 0.0, 0.5),
    *DPT_RULES,
    (r"downstream_head\.(proj|cross_proj|rgb_proj)\.fc2\.weight$", "rest", 0.0, 0.9),
    (r"pose_head\.mlp\.fc2\.weight$", "rest", 0.0, 1.0),
    (r"final_transform\.\d+\.attn\.proj\.weight$", "rest", 0.0, 0.4),
    (r"pose_retriever\..*(attn\.proj|mlp\.fc2)\.weight$", "rest", 0.0, 0.15),
    (r"dec_blocks_state\..*(attn\.proj|mlp\.fc2)\.weight$", "rest", 0.0, 0.2),
)
PAIR_RULES = ((r"downstream_head\d\.proj\.weight$", "rest", 0.0, 0.45), *DPT_RULES)
MAST3R_RULES = (*DPT_RULES, (r"head_pts3d\.head\.3\.weight$", "rest", 0.0, 1.0))
SPANN3R_RULES = (
    *DPT_RULES,
    (r"^norm_[qkv]\.weight$", "none", 1.0, 0.2),
    (r"^attn_head_\d\.2\.weight$", "rest", 0.0, 0.03),
    (r"^attn_head_\d\.2\.bias$", "none", 0.0, 0.003),
    (r"^attn_head_\d\.0\.weight$", "rest", 0.0, 1.5),
    (r"^value_out\.weight$", "rest", 0.0, 0.05),
)


@dataclass(frozen=True)
class SmallNetwork:
    """One of them: its card, the arguments of its family's configuration, and rules for its weights."""

    card: ModelCard
    constructor: Mapping[str, Any]
    rules: Sequence[Sequence[Any]]


COMPACT = {
    "encoder": "scratch",
    "match_dim": 8,
    "planes": 12,
    "slots": 3,
    "tokens": 48,
    "context": 24,
    "fine": 12,
    "token_blocks": 1,
    "blocks": 2,
}
COMPACT_RULES = (
    # Matches decide between cells: so flat that half precision finds the same ones, so sharp that they matter.
    (r"log_temperature$", "none", 2.5, 0.1),
    (r"^out\.weight$", "rest", 0.0, 0.1),
)


def _small(
    name: str,
    constructor: Mapping[str, Any],
    rules: Sequence[Sequence[Any]],
    is_metric: bool = False,
    multiple: int = 16,
    unbounded_confidence: bool = True,
) -> SmallNetwork:
    card = ModelCard(
        name=name,
        family=name.split("-")[0],
        max_size=SIDE,
        multiple=multiple,
        is_metric=is_metric,
        unbounded_confidence=unbounded_confidence,
    )
    return SmallNetwork(card, constructor, rules)


SMALL: Mapping[str, SmallNetwork] = {
    network.card.name: network
    for network in (
        _small("compact-small", COMPACT, COMPACT_RULES, is_metric=True, multiple=32, unbounded_confidence=False),
        _small("cut3r-small-dpt", {**CUT3R, **STATE, **DPT, "head": "dpt"}, CUT3R_RULES, is_metric=True),
        _small("cut3r-small-linear", {**CUT3R, **STATE, "head": "linear"}, CUT3R_RULES, is_metric=True),
        _small("dust3r-small-dpt", {**PAIR, **DPT, "head": "dpt"}, PAIR_RULES),
        _small("dust3r-small-linear", {**PAIR, "head": "linear"}, PAIR_RULES),
        _small(
            "mast3r-small-dpt",
            {**MAST3R, **DPT, "head": "catmlp+dpt", "descriptor_dim": 4},
            MAST3R_RULES,
            is_metric=True,
        ),
        _small("mast3r-small-conv", {**MAST3R, "head": "catconv", "descriptor_dim": 4}, MAST3R_RULES, is_metric=True),
        _small(
            "spann3r-small",
            {**PAIR, **DPT, "enc_depth": 2, "value_depth": 2, "value_heads": 4, "rules": MEMORY},
            SPANN3R_RULES,
        ),
    )
}
