# SPDX-License-Identifier: Apache-2.0
"""Parity cases of Spann3R, run with the published defects (`MemoryRules.faithful`), which the fixtures have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recon_ros.networks.dust3r import Dust3rConfig
from recon_ros.networks.parity import Arrays, Fixture
from recon_ros.networks.parity_dust3r import pair_sizes
from recon_ros.networks.spann3r import Spann3r, Spann3rConfig
from recon_ros.networks.spann3r_memory import MemoryRules, SpatialMemory
from recon_ros.networks.spann3r_sequence import Spann3rSequence, offline, online, sureness

OVERRIDES = {"long_mem_size": "long_tokens", "work_mem_size": "work_frames", "attn_thresh": "attention_threshold"}
"""Names in the fixture → names of our rules."""


def build(fixture: Fixture) -> nn.Module:
    rules = MemoryRules(faithful=True)
    if fixture.name.startswith("full_"):
        return Spann3r(Spann3rConfig(rules=rules))
    config = fixture.config
    sizes = pair_sizes(config["dust3r_constructor"], config["dpt_head"])
    value = config["memory"]["value_encoder"]
    pair = Dust3rConfig(**sizes, head=config["dust3r_constructor"]["head_type"])
    return Spann3r(Spann3rConfig(pair, value["enc_depth"], value["enc_num_heads"], rules))


def run(fixture: Fixture, network: nn.Module, case: str) -> Arrays:
    assert isinstance(network, Spann3r)
    images = list(fixture.given(case)["imgs"])
    images = [image if image.ndim == 4 else image[None] for image in images]
    overrides = fixture.config.get("cases", {}).get(case, {}).get("overrides", {})
    network = _with_rules(network, {OVERRIDES[name]: value for name, value in overrides.items()})
    if case == "offline":
        return _run_offline(fixture, network, images)
    sequence = online(network, images)
    memories = [state.memory for state in sequence.states[1:]]
    ours = _pointmaps(sequence) | _counts(memories, sequence, network.config.rules, _tokens(images[0], network))
    for index, memory in enumerate(memories):
        ours |= {f"mem{index}/{name}": array for name, array in _stored(memory).items()}
        ours[f"read{index}/feat_fuse"] = sequence.outputs[index + 1].feature
    if fixture.name.startswith("full_"):
        ours |= _last_memory(memories[-1])
    return _in_their_order(fixture, case, ours)


def compared(fixture: Fixture, case: str, name: str, expected: NDArray[Any]) -> NDArray[np.bool_] | None:
    if name != "max_sim":
        return None
    # A pruning leaves tokens of one rank in no defined order, and the similarity looks at the last of them.
    pruned = np.flatnonzero(fixture.expected(case)["pruned"])
    since = np.arange(len(expected))[:, None] - pruned[None]
    work_frames = fixture.config["cases"][case]["overrides"].get("work_mem_size", MemoryRules.work_frames)
    return ~((since > 0) & (since <= work_frames)).any(axis=1)


def _with_rules(network: Spann3r, overrides: Mapping[str, Any]) -> Spann3r:
    """The same weights under other rules."""
    rules = dataclasses.replace(network.config.rules, **overrides)
    with torch.device("meta"):
        other = Spann3r(dataclasses.replace(network.config, rules=rules))
    other.load_state_dict(network.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def _tokens(image: Tensor, network: Spann3r) -> int:
    patch = network.config.dust3r.patch
    return (image.shape[2] // patch) * (image.shape[3] // patch)


def _pointmaps(sequence: Spann3rSequence) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for index, pointmap in enumerate(sequence.pointmaps):
        ours |= {f"pred{index}/pts3d": pointmap.points, f"pred{index}/conf": pointmap.confidence}
    for index, output in enumerate(sequence.outputs[1:]):
        ours[f"pair{index}/res2/pts3d_in_other_view"] = output.current.points
        ours[f"pair{index}/res2/conf"] = output.current.confidence
    return ours


def _counts(
    memories: list[SpatialMemory], sequence: Spann3rSequence, rules: MemoryRules, per_frame: int
) -> dict[str, Tensor]:
    """What is counted at each insertion."""
    used = torch.stack([memory.used for memory in memories])
    working = (used // per_frame).clamp(max=rules.work_frames)
    before = torch.cat((torch.zeros_like(used[:1]), used[:-1]))
    similarity = torch.stack([output.similarity.reshape(()) for output in sequence.outputs[1:]])
    return {
        "mem_sizes": used,
        "lm": used - working * per_frame,
        "wm": working,
        "skipped": similarity > rules.similarity_threshold,
        "pruned": used < before,
        "max_sim": similarity,
    }


def _stored(memory: SpatialMemory) -> dict[str, Tensor]:
    """The slots in use, as the fixtures lay them out."""
    used = int(memory.used)
    return {
        "mem_k": memory.keys[:, :used],
        "mem_v": memory.values[:, :used],
        "mem_count": memory.age[:, :used, None],
        "mem_attn": memory.attention[:, :used, None],
    }


def _last_memory(memory: SpatialMemory) -> dict[str, Tensor]:
    """What a full-size fixture keeps: keys and values of the last six tokens, and all counts."""
    stored = _stored(memory)
    return {
        "mem_k_last_frame_tokens": stored["mem_k"][:, -6:],
        "mem_v_last_frame_tokens": stored["mem_v"][:, -6:],
        "mem_attn": stored["mem_attn"],
        "mem_count": stored["mem_count"],
    }


def _in_their_order(fixture: Fixture, case: str, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our memories with their tokens sorted as theirs: the order of tokens of one rank is not defined.

    Each of their tokens is given ours of the nearest key; were two given the same one, values would differ.
    """
    for name, theirs in fixture.expected(case).items():
        folder, _, last = name.rpartition("/")
        if last != "mem_k" or theirs.shape != tuple(ours[name].shape):
            continue
        mine = ours[name]
        nearest = torch.cdist(torch.from_numpy(theirs), mine).argmin(dim=2)
        for key in ("mem_k", "mem_v", "mem_count", "mem_attn"):
            array = ours[f"{folder}/{key}"]
            ours[f"{folder}/{key}"] = array.gather(1, nearest[..., None].expand(-1, -1, array.shape[2]))
    return ours


def _run_offline(fixture: Fixture, network: Spann3r, images: list[Tensor]) -> dict[str, Tensor]:
    sequence = offline(network, images)
    encodings = [network.dust3r.encode(image) for image in images]
    pairs = _pairs(len(images))
    scores = [sureness(*network.dust3r.pair(encodings[i], encodings[j])) for i, j in pairs]
    return _pointmaps(sequence) | {
        "idx_used": torch.tensor(sequence.order),
        "pair_idx": torch.tensor(pairs),
        "pair_score": torch.tensor(scores),
    }


def _pairs(count: int) -> list[tuple[int, int]]:
    """Every ordered pair, twice, in the fixture's order: each pair after its mirror image, then all mirrored."""
    once = [pair for first in range(count) for second in range(first) for pair in ((first, second), (second, first))]
    return once + [(j, i) for i, j in once]
