# SPDX-License-Identifier: Apache-2.0
"""Exported networks of one or two blocks, made once for all tests: exporting is what takes time."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from recon_ros.networks.small import SMALL
from recon_ros.runtimes.bundle import Bundle
from recon_ros.runtimes.torch_network import OpenedNetwork

WIDTH, HEIGHT = 96, 64
SHALLOW: dict[str, dict[str, Any]] = {
    "cut3r-small-linear": {"enc_depth": 1, "ray_depth": 1, "dec_depth": 1},
    "dust3r-small-linear": {"enc_depth": 1, "dec_depth": 1},
    "mast3r-small-conv": {"enc_depth": 1, "dec_depth": 1},
    "spann3r-small": {"enc_depth": 1, "dec_depth": 1, "value_depth": 1, "head": "linear"},
}
"""Their names, and how they are less deep than the small ones."""


def tiny_network(name: str) -> OpenedNetwork:
    """A new one, the weights being the same each time."""
    from recon_ros.networks.factory import seeded_network
    from recon_ros.networks.recipe import parse_rules

    small = SMALL[name]
    sizes = {**small.constructor, **SHALLOW[name]}
    network = seeded_network(small.card.family, sizes, 0, parse_rules(tuple(small.rules)))
    return OpenedNetwork(network, small.card, f"tiny-{name}")


@functools.cache
def tiny_bundle(name: str) -> Bundle:
    """It, exported in fp32; not to be changed."""
    from recon_ros.runtimes.export import export_bundle

    return export_bundle(tiny_network(name), WIDTH, HEIGHT, folder=Path(_folder().name) / name)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny_bundles")
