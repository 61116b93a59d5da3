# SPDX-License-Identifier: Apache-2.0
"""Seeded weights: bit by bit those of the parity fixtures, from names and shapes alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon_ros.errors import NetworkError
from recon_ros.networks.recipe import RULES, Rule, canonical, draw, draw_all, parse_rules, read_rules

FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="needs ../shared/fixtures")

WITH_WEIGHTS = ("dust3r_linear", "dust3r_dpt", "mast3r_catconv", "mast3r_catmlpdpt", "spann3r", "cut3r_linear", "vggt")
FULL = ("full_dust3r_512_dpt", "full_mast3r_512_catmlpdpt", "full_spann3r", "full_cut3r_512_dpt", "full_vggt_1b")


def config_of(name: str) -> dict[str, Any]:
    return dict(json.loads((FIXTURES / name / "config.json").read_text()))


# First numbers of tensors that full-size networks of published sizes were filled with.
KNOWN = {
    ("dec_blocks.0.attn.proj.bias", (768,), 13): [
        -0.0012245457619428635,
        -0.03240731358528137,
        -0.025056516751646996,
        -0.006841132417321205,
    ],
    ("dec_blocks.6.norm1.bias", (768,), 13): [
        0.06515397131443024,
        0.08817315101623535,
        -0.16379763185977936,
        -0.15245118737220764,
    ],
    ("dec_blocks.11.mlp.fc1.bias", (3072,), 11): [
        -0.12345059216022491,
        0.0444759875535965,
        -0.020429758355021477,
        0.16967809200286865,
    ],
}


@pytest.mark.parametrize(("key", "shape", "seed"), KNOWN)
def test_known_numbers(key: str, shape: tuple[int, ...], seed: int) -> None:
    assert draw(key, shape, seed)[:4].tolist() == KNOWN[key, shape, seed]


@needs_fixtures
def test_the_rules_are_those_of_the_fixtures() -> None:
    assert read_rules(FIXTURES / "recipe.json") == RULES


@needs_fixtures
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_stored_weights_are_made_again_bit_by_bit(name: str) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs safetensors to read the weights")
    stored = safetensors.load_file(FIXTURES / name / "weights.safetensors")
    config = config_of(name)
    overrides = parse_rules(config.get("recipe_overrides") or [])
    ours = draw_all({key: array.shape for key, array in stored.items()}, config["seed"], overrides)
    assert [key for key in stored if not np.array_equal(stored[key], ours[key])] == []
    # The test can fail: another seed makes other weights.
    other = draw_all({key: array.shape for key, array in stored.items()}, config["seed"] + 1, overrides)
    assert all(not np.array_equal(stored[key], other[key]) for key in stored)


@needs_fixtures
@pytest.mark.parametrize("name", FULL)
def test_probes_of_full_size_weights(name: str) -> None:
    config = config_of(name)
    overrides = parse_rules(config.get("recipe_overrides") or [])
    for key, probe in config["weight_probe"].items():
        array = draw(key, probe["shape"], config["seed"], overrides)
        assert array.ravel()[:4].tolist() == probe["first4"], key
        assert array.astype(np.float64).sum() == pytest.approx(probe["sum"], abs=1e-3), key
        assert np.abs(array.astype(np.float64)).sum() == pytest.approx(probe["abs_sum"], rel=1e-6), key


def test_two_names_of_one_tensor_are_drawn_alike() -> None:
    keys = "head.scratch.layer_rn.2.weight", "head.scratch.layer3_rn.weight"
    assert canonical(keys[0]) == keys[1] == canonical(keys[1])
    first, second = (draw(key, (4, 5, 3, 3), 7) for key in keys)
    assert np.array_equal(first, second)


def test_the_first_rule_decides_and_overrides_come_before() -> None:
    norm = draw("enc_norm.weight", (1000,), 0)
    assert norm.mean() == pytest.approx(1, abs=0.02)
    overridden = draw("enc_norm.weight", (1000,), 0, [Rule(r"norm\.weight$", "none", 5.0, 0.1)])
    assert overridden.mean() == pytest.approx(5, abs=0.02)


@given(seed=st.integers(0, 2**40), out=st.integers(1, 40), rest=st.integers(200, 400))
def test_scale_follows_the_fan(seed: int, out: int, rest: int) -> None:
    weight = draw("enc_blocks.0.mlp.fc1.weight", (out, rest), seed)
    assert weight.shape == (out, rest)
    assert weight.dtype == np.float32
    assert np.isfinite(weight).all()
    # Uniform numbers: none is further than √3 standard deviations away.
    assert np.abs(weight).max() <= math.sqrt(3 / rest) * (1 + 1e-6)
    assert np.array_equal(weight, draw("enc_blocks.0.mlp.fc1.weight", (out, rest), seed))


@pytest.mark.parametrize(
    "items", [[["a", "rest", 0.0]], [["(", "rest", 0, 1]], [["a", "all", 0, 1]], [["a", "rest", "x", 1]]]
)
def test_rules_that_are_none_are_refused(items: list[Any]) -> None:
    with pytest.raises(NetworkError, match="weight recipe"):
        parse_rules(items)


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="not a weight recipe"):
        read_rules(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(NetworkError, match="not a weight recipe"):
        read_rules(tmp_path / "other.json")
