# SPDX-License-Identifier: Apache-2.0
"""Rotary positions equal the official ones, also at −1, and depend on distances only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import quick, seeds
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch")
from recon_ros.networks.rope import rope_2d, rope_2d_fp16  # noqa: E402

FIXTURE = Path(__file__).parents[2] / "shared" / "fixtures" / "rope2d"
needs_fixture = pytest.mark.skipif(not FIXTURE.exists(), reason="needs ../shared/fixtures/rope2d")

# Fixture case → base, and a factor on all positions.
CASES = {
    "b100_d4": (100.0, 1.0),
    "b100_d16": (100.0, 1.0),
    "b100_d64": (100.0, 1.0),
    "b10_d12_F0p5": (10.0, 0.5),
    "b10000_d32": (10000.0, 1.0),
}
VARIANTS = {"pytorch": "pos", "curope": "pos", "curope_minus1": "pos_with_minus1"}


def differs(rotate: Callable, case: str, variant: str) -> bool:
    """Whether a rotation of the fixture's tokens leaves the tolerance anywhere."""
    base, factor = CASES[case]
    inputs, outputs = np.load(FIXTURE / "inputs.npz"), np.load(FIXTURE / "outputs.npz")
    positions = torch.from_numpy(inputs[f"{case}/{VARIANTS[variant]}"])
    positions = positions if factor == 1 else positions * factor
    result = rotate(torch.from_numpy(inputs[f"{case}/tokens"]), positions, base).numpy()
    expected = outputs[f"{case}/{variant}"]
    assert result.shape == expected.shape and result.dtype == expected.dtype
    return bool((np.abs(result - expected) > 1e-4 + 1e-4 * np.abs(expected)).any())


@needs_fixture
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_rope_equals_the_official_one(case: str, variant: str) -> None:
    assert not differs(rope_2d, case, variant)


@needs_fixture
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "mutated",
    [
        pytest.param(lambda x, at, base: rope_2d(x, at, 0.9 * base), id="base"),
        pytest.param(lambda x, at, base: rope_2d(x, at.flip(-1), base), id="rows and columns swapped"),
        pytest.param(lambda x, at, base: rope_2d(x, -at, base), id="other direction"),
        pytest.param(lambda x, at, base: rope_2d(x, at + 1, base), id="positions from 1"),
        pytest.param(lambda x, at, base: pair_neighbours(x, at, base), id="interleaved pairs"),
    ],
)
def test_a_wrong_rope_is_noticed(mutated: Callable, variant: str) -> None:
    assert differs(mutated, "b100_d16", variant)


@needs_fixture
def test_a_clamped_minus_one_is_noticed() -> None:
    assert differs(lambda x, at, base: rope_2d(x, at.clamp(min=0), base), "b100_d16", "curope_minus1")


def pair_neighbours(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions whose pairs are the features 2i and 2i + 1 of an axis's half."""
    halves = x.unflatten(-1, (2, -1, 2)).transpose(-1, -2).flatten(-3)
    return rope_2d(halves, positions, base).unflatten(-1, (2, 2, -1)).transpose(-1, -2).flatten(-3)


def random_tokens(seed: int, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, 3, 5, dim) tokens and (2, 5, 2) positions."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, 3, 5, dim, generator=generator)
    return tokens, torch.randint(-1, 40, (2, 5, 2), generator=generator)


@quick
@given(seeds(), st.sampled_from([4, 16, 64]))
def test_rope_keeps_lengths(seed: int, dim: int) -> None:
    tokens, positions = random_tokens(seed, dim)
    torch.testing.assert_close(rope_2d(tokens, positions).norm(dim=-1), tokens.norm(dim=-1))


@quick
@given(seeds(), st.integers(-20, 20), st.integers(-20, 20))
def test_products_depend_on_distances_only(seed: int, rows: int, columns: int) -> None:
    tokens, positions = random_tokens(seed)
    moved = positions + torch.tensor([rows, columns])
    first, second = rope_2d(tokens, positions), rope_2d(tokens, moved)
    torch.testing.assert_close(first @ first.mT, second @ second.mT, rtol=1e-4, atol=1e-4)


@quick
@given(seeds())
def test_the_fp16_variant_differs_by_rounding_only(seed: int) -> None:
    tokens, positions = random_tokens(seed)
    exact, rounded = rope_2d(tokens, positions), rope_2d_fp16(tokens, positions)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, rounded.to(torch.float16).to(torch.float32), rtol=0, atol=0)
    torch.testing.assert_close(exact, rounded, rtol=4e-3, atol=4e-3)
