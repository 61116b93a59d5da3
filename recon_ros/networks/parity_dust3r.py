# SPDX-License-Identifier: Apache-2.0
"""Parity cases of DUSt3R and MASt3R."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from recon_ros.networks.dust3r import Dust3r, Dust3rConfig
from recon_ros.networks.landscape import encode_landscape, forward_landscape, is_portrait
from recon_ros.networks.mast3r import Mast3r, Mast3rConfig
from recon_ros.networks.pair import PairNetwork
from recon_ros.networks.parity import Arrays, Fixture

POINTS = {1: "pts3d", 2: "pts3d_in_other_view"}
"""What the points of each view are called."""


def pair_sizes(constructor: dict[str, Any], dpt: dict[str, Any] | None) -> dict[str, Any]:
    """Sizes as the fixtures' configs name them → arguments of our configurations, the head aside."""
    sizes = {
        "enc_dim": constructor["enc_embed_dim"],
        "enc_depth": constructor["enc_depth"],
        "enc_heads": constructor["enc_num_heads"],
        "dec_dim": constructor["dec_embed_dim"],
        "dec_depth": constructor["dec_depth"],
        "dec_heads": constructor["dec_num_heads"],
    }
    if dpt and "feature_dim" in dpt:
        sizes["dpt_feature_dim"] = dpt["feature_dim"]
        sizes["dpt_last_dim"] = dpt["last_dim"]
        sizes["dpt_layer_dims"] = tuple(dpt["layer_dims"])
    return sizes


def build(fixture: Fixture) -> nn.Module:
    if fixture.name.startswith("full_dust3r"):
        return Dust3r(Dust3rConfig.vitlarge_512_dpt())
    if fixture.name.startswith("full_mast3r"):
        return Mast3r(Mast3rConfig.vitlarge_512())
    constructor = fixture.config["constructor"]
    sizes = pair_sizes(constructor, fixture.config["dpt_head"])
    if fixture.name.startswith("dust3r"):
        return Dust3r(Dust3rConfig(**sizes, head=constructor["head_type"]))
    descriptor_dim = int(constructor["output_mode"].removeprefix("pts3d+desc"))
    return Mast3r(Mast3rConfig(**sizes, head=constructor["head_type"], descriptor_dim=descriptor_dim))


def run(fixture: Fixture, network: nn.Module, case: str) -> Arrays:
    assert isinstance(network, PairNetwork)
    given = fixture.given(case)
    # Batches of the training mode mix upright and lying images, all stored lying.
    lying = "modes" in fixture.config and fixture.config["cases"][case] == "train"
    portraits = [is_portrait(given[f"true_shape{view}"]) & lying for view in (1, 2)]
    encodings = [
        encode_landscape(network, given[f"img{view}"], portrait) if lying else network.encode(given[f"img{view}"])
        for view, portrait in zip((1, 2), portraits, strict=True)
    ]
    first, second = encodings
    decoded = network.decode(first.features, first.positions, second.features, second.positions)
    if lying:
        pointmaps = forward_landscape(
            network, *(given[f"{name}{view}"] for name in ("img", "true_shape") for view in (1, 2))
        )
    else:
        pointmaps = network(given["img1"], given["img2"])
    ours: dict[str, Tensor] = {}
    for view in (1, 2):
        encoding = encodings[view - 1]
        ours |= {f"enc/feat{view}": encoding.features, f"enc/pos{view}": encoding.positions}
        ours |= {f"dec{view}/{layer}": feature for layer, feature in enumerate(decoded[view - 1])}
        names = (POINTS[view], "conf", "desc", "desc_conf")
        ours |= {f"view{view}/{name}": array for name, array in zip(names, pointmaps[view - 1], strict=False)}
    if "desc sub-sampled [:,1::2,1::2]" in str(fixture.config.get("note")):
        ours |= {name: array[:, 1::2, 1::2] for name, array in ours.items() if name.endswith("/desc")}
    return ours


def compared(fixture: Fixture, case: str, name: str, expected: NDArray[Any]) -> NDArray[np.bool_] | None:
    return None
