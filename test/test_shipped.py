# SPDX-License-Identifier: Apache-2.0
"""The compact network that comes with the package: whole, one with its card, and taken where there is nothing else."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from recon_ros.config import Config
from recon_ros.geometry.camera import Camera
from recon_ros.networks import fetch
from recon_ros.networks.cards import find_card, list_cards
from recon_ros.runtimes import COMPACT, make_source, named
from recon_ros.runtimes.bundle import load_bundle
from recon_ros.runtimes.shipped import find_shipped, shipped_sizes
from recon_ros.runtimes.source import NetworkSource

CARD = find_card(COMPACT)
LARGEST = 60e6
"""Bytes that all files of the network together may have."""


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_weights_are_those_of_the_card() -> None:
    path = fetch.find_weights(CARD)
    assert fetch.check_digest(CARD, path) == CARD.weights.sha256
    files = [path, *(file for file in path.with_suffix("").rglob("*") if file.is_file())]
    assert sum(file.stat().st_size for file in files) < LARGEST
    assert CARD.parameters < 30e6


def test_graphs_are_exported_from_those_weights() -> None:
    sizes = shipped_sizes(CARD, "fp32")
    assert (256, 192) in sizes and (256, 160) in sizes
    for width, height in sizes:
        folder = find_shipped(CARD, width, height, "fp32")
        assert folder is not None
        bundle = load_bundle(folder)
        assert bundle.weights_digest == CARD.weights.sha256
        assert (bundle.plan.width, bundle.plan.height) == (width, height)


def test_auto_is_the_compact_one_where_no_other_weights_are() -> None:
    assert named(Config(source="auto")).source == COMPACT
    assert named(Config(source="depth")).source == "depth"


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed; RECON_TORCH=1 make setup"
)
def test_auto_is_the_largest_metric_one_of_those_that_are_here() -> None:
    cards = {card.name: card for card in list_cards()}
    for name in ("dust3r_512_dpt", "cut3r_224_linear", "cut3r_512_dpt"):
        path = fetch.weight_path(cards[name])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert named(Config(source="auto")).source == "cut3r_512_dpt"
    fetch.weight_path(cards["cut3r_512_dpt"]).unlink()
    assert named(Config(source="auto")).source == "cut3r_224_linear"


def test_it_runs_without_torch_and_without_an_export() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    source = make_source(dataclasses.replace(Config(), source="auto", runtime="openvino"))
    assert isinstance(source, NetworkSource)
    image = np.random.default_rng(3).integers(0, 255, (192, 256, 3), dtype=np.uint8)
    source.prepare(256, 192, lambda *_: None)
    memory, prediction = source.step(source.initial_memory(), image, Camera.from_focal(256, 192, 210.0))
    assert source.runtime.startswith("openvino")
    assert prediction.is_metric and prediction.points_self.shape == (192, 256, 3)
    assert np.isfinite(prediction.points_self).all() and memory is not None
    source.close()


def test_its_weights_are_not_fetched() -> None:
    assert "install it again" in fetch.how_to_get(CARD)
