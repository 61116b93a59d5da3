# SPDX-License-Identifier: Apache-2.0
"""Parity cases of CUT3R, and of TTT3R on the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recon_ros.networks.cut3r import Cut3r, Cut3rConfig, Result, View
from recon_ros.networks.parity import Arrays, Fixture
from recon_ros.networks.update_rules import Overwrite, Ttt3r, UpdateRule

FLIPS_BELOW = 1e-3
"""A linear head's own points turn around where z crosses zero; those with z/‖p‖ below this are not compared."""

MAPS = ("pts3d_in_self_view", "pts3d_in_other_view", "conf", "conf_self", "rgb")


def build(fixture: Fixture) -> nn.Module:
    if fixture.name.startswith("full_"):
        return Cut3r(Cut3rConfig.dpt_512())
    config = fixture.base
    constructor, dpt = config["constructor"], config["dpt_head"]
    sizes: dict[str, Any] = {
        "enc_dim": constructor["enc_embed_dim"],
        "enc_depth": constructor["enc_depth"],
        "enc_heads": constructor["enc_num_heads"],
        "ray_depth": constructor["ray_enc_depth"],
        "dec_dim": constructor["dec_embed_dim"],
        "dec_depth": constructor["dec_depth"],
        "dec_heads": constructor["dec_num_heads"],
        "state_tokens": constructor["state_size"],
        "state_heads": constructor["state_dec_num_heads"],
        "pose_slots": constructor["local_mem_size"],
        "head": constructor["head_type"],
    }
    if dpt:
        sizes["dpt_feature_dim"], sizes["dpt_last_dim"] = dpt["feature_dim"], dpt["last_dim"]
        sizes["dpt_layer_dims"] = tuple(dpt["layer_dims"])
    return Cut3r(Cut3rConfig(**sizes))


def run(fixture: Fixture, network: nn.Module, case: str) -> Arrays:
    assert isinstance(network, Cut3r)
    views = _views(fixture, case)
    rule: UpdateRule = Ttt3r() if fixture.name.startswith("ttt3r") else Overwrite()
    ours: dict[str, Tensor] = {}
    with _watched(network) as seen:
        results = network(views, rule)
    ours |= _sequence("forward", network, rule, results)
    ours |= {f"debug{i}/{name}": array for i, frame in enumerate(seen) for name, array in frame.items()}
    ours["gate"] = _gates(ours, len(views))
    for name, restart in (("forward_recurrent", False), ("lighter", True)):
        if _asks(fixture, case, f"{name}/"):
            recurrent = list(network.forward_recurrent(views, rule, restart=restart))
            ours |= _sequence(name, network, rule, recurrent)
    if "query_ray_map" in fixture.given(case):
        answer = network.query(results[-1].memory, fixture.given(case)["query_ray_map"])
        ours |= {f"query/frame0/{name}": array for name, array in answer.items()}
    if _asks(fixture, case, "forward_enc16/") or _asks(fixture, case, "enc16/"):
        rounded = _rounding(network)
        with _watched(rounded) as seen:
            results = rounded(views, rule)
        ours |= _sequence("forward_enc16", rounded, rule, results)
        ours |= {f"forward_enc16/enc_feat{i}": frame["feat"] for i, frame in enumerate(seen)}
    if fixture.name.startswith("full_"):
        return _full_size(ours)
    return {name: _subsampled(fixture, case, name, array) for name, array in ours.items()}


def compared(fixture: Fixture, case: str, name: str, expected: NDArray[Any]) -> NDArray[np.bool_] | None:
    if not fixture.name.endswith("linear") or not name.endswith("pts3d_in_self_view"):
        return None
    distance = np.maximum(np.linalg.norm(expected, axis=-1), np.finfo(np.float32).tiny)
    return (np.abs(expected[..., 2]) / distance >= FLIPS_BELOW)[..., None]


def _views(fixture: Fixture, case: str) -> list[View]:
    given = fixture.given(case)

    def part(name: str, frame: int) -> Tensor | None:
        return given[name][frame] if name in given else None

    return [
        View(
            image=given["imgs"][frame],
            ray_map=part("ray_maps", frame),
            has_image=part("img_mask", frame),
            has_rays=part("ray_mask", frame),
            update=part("update", frame),
            reset=part("reset", frame),
        )
        for frame in range(len(given["imgs"]))
    ]


def _sequence(prefix: str, network: Cut3r, rule: UpdateRule, results: Sequence[Result]) -> dict[str, Tensor]:
    """Outputs of each frame, and the state before the first and after each."""
    start = network.initial_memory(results[0].memory.state.shape[0], rule)
    ours: dict[str, Tensor] = {}
    for index, memory in enumerate([start, *(result.memory for result in results)]):
        ours[f"{prefix}/state{index}/state_feat"] = memory.state
        ours[f"{prefix}/state{index}/mem"] = memory.pose_memory
    for index, result in enumerate(results):
        ours |= {f"{prefix}/frame{index}/{name}": array for name, array in result.outputs.items()}
    return ours


@contextmanager
def _watched(network: Cut3r) -> Iterator[list[dict[str, Tensor]]]:
    """What goes through the middle of the network, a dictionary each frame."""
    frames: list[dict[str, Tensor]] = []

    def encoded(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        frames.append({"feat": arguments[0]})

    def first_layer(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        tokens, _, positions, places = arguments
        frames[-1] |= {"pose_feat": tokens[:, :1], "pos": positions[:, 1:], "state_pos": places}

    def decoded(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        frames[-1]["dec_last"] = output

    def proposed(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        frames[-1]["new_state"] = output

    hooks = [
        network.decoder_embed.register_forward_pre_hook(encoded),
        network.dec_blocks[0].register_forward_pre_hook(first_layer),
        network.dec_norm.register_forward_hook(decoded),
        network.dec_norm_state.register_forward_hook(proposed),
    ]
    try:
        yield frames
    finally:
        for hook in hooks:
            hook.remove()


def _gates(ours: dict[str, Tensor], frames: int) -> Tensor:
    """(F, B, S): how far each state token moved from the old state towards the candidate."""
    gates = []
    for index in range(frames):
        old, new = (ours[f"forward/state{i}/state_feat"] for i in (index, index + 1))
        way = ours[f"debug{index}/new_state"] - old
        gates.append(((new - old) * way).sum(-1) / (way * way).sum(-1))
    return torch.stack(gates)


def _rounding(network: Cut3r) -> Cut3r:
    """The same weights with the published rounding of the image encoder."""
    with torch.device("meta"):
        other = Cut3r(dataclasses.replace(network.config, faithful_fp16_rope=True))
    other.load_state_dict(network.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def _asks(fixture: Fixture, case: str, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in fixture.expected(case))


def _subsampled(fixture: Fixture, case: str, name: str, array: Tensor) -> Tensor:
    """Maps of some cases are stored as every third row and column from the second."""
    if name.rsplit("/", 1)[-1] not in MAPS:
        return array
    setting = fixture.config["subsample"]
    sparse = setting if isinstance(setting, list) else setting[case]
    return array[:, 1::3, 1::3] if sparse or name.startswith("forward_enc16/") else array


def _full_size(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names and the thinning of the full-size fixture."""
    full = {name.removeprefix("forward/"): array for name, array in ours.items()}
    full |= {name.replace("forward_enc16/", "enc16/"): array for name, array in ours.items()}
    for name in list(full):
        if name.endswith("/state_feat"):
            full[name] = full[name][:, ::48]
        elif name.endswith("/mem"):
            full[name] = full[name][:, ::32, ::4]
    return full
