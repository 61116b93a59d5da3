# SPDX-License-Identifier: Apache-2.0
"""Parity: our networks against arrays that the published models gave, case by case.

A fixture folder holds a ``config.json`` (sizes of a small network, its weights' seed), the inputs and outputs of
its cases, and mostly the weights; `parity_dust3r`, `parity_spann3r`, `parity_cut3r` and `parity_rope` know how a
case of their family is run. Every stored array must be reproduced, or the case fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recon_ros.errors import NetworkError
from recon_ros.networks import recipe
from recon_ros.networks.checkpoint import load_into, load_state_dict

ABSOLUTE, RELATIVE = 1e-4, 1e-4
"""|ours − theirs| ≤ ABSOLUTE + RELATIVE · |theirs|. Of the full-size networks, whose float32 noise alone is 5e-5 of
an array's standard deviation, ABSOLUTE is a part of that where it is above 1."""

ANOTHER_SEED = 1000
"""Added to a fixture's seed for weights that its outputs say nothing of."""

Arrays = Mapping[str, Tensor]


@dataclass(frozen=True)
class Fixture:
    """A fixture folder.

    Attributes:
        folder: where it is.
        config: its ``config.json``.
    """

    folder: Path
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Arrays by ``case/name``; images stored as bytes come as float32 in [−1, 1]."""
        source = self._neighbour("inputs", "inputs.npz")
        return {key: torch.from_numpy(_image(array)) for key, array in _read_arrays(source).items()}

    @cached_property
    def outputs(self) -> dict[str, NDArray[Any]]:
        """Arrays by ``case/name``, each flat and thinned out when the config has a ``thinning``."""
        return _read_arrays(self.folder / "outputs.npz")

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """The cases in the order of their outputs; a full-size fixture has one, without a name."""
        if self.name.startswith("full_"):
            return ("",)
        return tuple(dict.fromkeys(key.split("/")[0] for key in self.outputs))

    def expected(self, case: str) -> dict[str, NDArray[Any]]:
        """The outputs of one case, by name."""
        prefix = f"{case}/" if case else ""
        return {key.removeprefix(prefix): value for key, value in self.outputs.items() if key.startswith(prefix)}

    def given(self, case: str) -> dict[str, Tensor]:
        """The inputs of one case, by name."""
        prefix = f"{case}/" if case else ""
        return {key.removeprefix(prefix): value for key, value in self.inputs.items() if key.startswith(prefix)}

    @cached_property
    def base(self) -> Mapping[str, Any]:
        """The config that describes the network: its own, or that of the fixture whose weights it shares."""
        weights = self.config.get("weights", "")
        if str(weights).startswith("../"):
            return _read_config(self.folder / weights).config
        return self.config

    def fill(self, network: nn.Module, seed_offset: int = 0) -> None:
        """Load the fixture's weights, or with an offset those of another seed, by their official names.

        Raises:
            NetworkError: the names or shapes are not those of the network.
        """
        file = self._neighbour("weights", "weights.safetensors")
        if file.is_file() and not seed_offset:
            return load_into(network, load_state_dict(file), self.name)
        seed = int(self.base["seed"]) + seed_offset
        overrides = recipe.parse_rules(self.base.get("recipe_overrides") or [])
        with torch.no_grad():
            # One tensor at a time: a full-size network is not held twice.
            for key, tensor in network.state_dict().items():
                tensor.copy_(torch.from_numpy(recipe.draw(key, tuple(tensor.shape), seed, overrides)))
        return None

    def _neighbour(self, what: str, file: str) -> Path:
        """A file of this folder, or of the one whose arrays it says to share: ``../cut3r_dpt/inputs.npz (…)``."""
        shared = str(self.config.get(what, ""))
        return self.folder / (shared.split(" ")[0] if shared.startswith("../") else file)


class Family(Protocol):
    """What a ``parity_<family>`` module offers."""

    def build(self, fixture: Fixture) -> nn.Module:
        """The network of the fixture's config, on the CPU in float32, weights as they come."""
        ...

    def run(self, fixture: Fixture, network: nn.Module, case: str) -> Arrays:
        """The case's outputs under the names of the fixture."""
        ...

    def compared(self, fixture: Fixture, case: str, name: str, expected: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Which elements count, as a mask that broadcasts to `expected`; None: all."""
        ...


@dataclass(frozen=True)
class Comparison:
    """How one case went.

    Attributes:
        case: ``fixture/case``.
        arrays: how many were compared.
        max_abs: largest difference.
        max_ratio: largest difference over what is tolerated there; within tolerance up to 1.
        problems: what is wrong, in words; empty when all is well.
    """

    case: str
    arrays: int
    max_abs: float
    max_ratio: float
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def find_fixtures(folder: Path, full: bool = False) -> list[Fixture]:
    """The fixtures under `folder` that some network of ours can be held against, by name.

    Args:
        folder: searched with all its folders.
        full: those of full-size networks instead of the small ones.

    Raises:
        NetworkError: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise NetworkError(f"{folder}: no such folder of fixtures")
    found = [_read_config(path) for path in sorted(folder.rglob("config.json"))]
    chosen = [
        fixture
        for fixture in found
        if family_of(fixture) is not None
        and (fixture.folder / "outputs.npz").is_file()
        and fixture.name.startswith("full_") == full
    ]
    if not chosen:
        raise NetworkError(f"{folder} holds no fixture (a folder with config.json and outputs.npz) of a known family")
    return chosen


def family_of(fixture: Fixture) -> Family | None:
    """Who runs a fixture, by its name; None for a network we do not have."""
    from recon_ros.networks import parity_cut3r, parity_dust3r, parity_rope, parity_spann3r

    families: dict[str, Family] = {
        "dust3r": parity_dust3r,
        "mast3r": parity_dust3r,
        "spann3r": parity_spann3r,
        "cut3r": parity_cut3r,
        "ttt3r": parity_cut3r,
        "rope2d": parity_rope,
    }
    name = fixture.name.removeprefix("full_")
    return next((family for start, family in families.items() if name.startswith(start)), None)


def check(fixture: Fixture, report: Callable[[str], None] = lambda case: None) -> Iterator[Comparison]:
    """Run every case of a fixture and hold it against the stored arrays; `report` hears of each before."""
    family = _family(fixture)
    network = _prepare(fixture, family, 0)
    for case in fixture.cases:
        report(f"{fixture.name}/{case}")
        with torch.inference_mode():
            ours = family.run(fixture, network, case)
        yield compare(fixture, case, ours)


def check_other_weights(fixture: Fixture, report: Callable[[str], None] = lambda case: None) -> Iterator[Comparison]:
    """The same with weights of another seed, for which only shapes and finiteness can be right or wrong."""
    family = _family(fixture)
    network = _prepare(fixture, family, ANOTHER_SEED)
    for case in fixture.cases:
        report(f"{fixture.name}/{case}")
        with torch.inference_mode():
            ours = family.run(fixture, network, case)
        yield _inspect(fixture, case, ours)


def compare(fixture: Fixture, case: str, ours: Arrays) -> Comparison:
    """Our arrays of a case against the stored ones."""
    worst_abs, worst_ratio, problems = 0.0, 0.0, []
    expected = fixture.expected(case)
    for name, theirs in expected.items():
        if name not in ours:
            problems.append(f"{name}: not reproduced")
            continue
        mine = _thinned(fixture, ours[name].numpy())
        if mine.shape != theirs.shape:
            problems.append(f"{name}: shape {mine.shape}, not {theirs.shape}")
            continue
        difference, tolerance = _differences(fixture, case, name, mine, theirs)
        ratio = float((difference / tolerance).max(initial=0.0))
        worst_abs, worst_ratio = max(worst_abs, float(difference.max(initial=0.0))), max(worst_ratio, ratio)
        if ratio > 1:
            problems.append(f"{name}: {ratio:.3g} times the tolerance")
    return Comparison(f"{fixture.name}/{case}".rstrip("/"), len(expected), worst_abs, worst_ratio, tuple(problems))


def _differences(
    fixture: Fixture, case: str, name: str, mine: NDArray[Any], theirs: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each element, the absolute difference (infinite for a NaN of ours), and what is tolerated."""
    ours, truth = mine.astype(np.float64), theirs.astype(np.float64)
    # Where theirs is NaN nothing is known: no similarity to an empty memory, or left out of a reduced set.
    counts = ~np.isnan(truth)
    mask = None if "thinning" in fixture.config else _family(fixture).compared(fixture, case, name, theirs)
    if mask is not None:
        counts &= mask
    difference = np.where(counts, np.nan_to_num(np.abs(ours - truth), nan=np.inf), 0.0)
    scale = max(1.0, float(truth.std())) if fixture.name.startswith("full_") else 1.0
    return difference, ABSOLUTE * scale + RELATIVE * np.abs(np.where(counts, truth, 0.0))


def _inspect(fixture: Fixture, case: str, ours: Arrays) -> Comparison:
    expected = fixture.expected(case)
    problems = [f"{name}: not reproduced" for name in expected if name not in ours]
    for name in expected:
        if name in ours and not np.isfinite(ours[name].numpy()).all():
            problems.append(f"{name}: not finite")
        # How many tokens a memory keeps depends on the weights.
        elif name in ours and "mem" not in name and _thinned(fixture, ours[name].numpy()).shape != expected[name].shape:
            problems.append(f"{name}: shape {tuple(ours[name].shape)}, not {expected[name].shape}")
    return Comparison(f"{fixture.name}/{case}".rstrip("/"), len(expected), 0.0, 0.0, tuple(problems))


def thin(array: NDArray[Any], thinning: int) -> NDArray[Any]:
    """Every `thinning`-th element of an array, flat; what a reduced set of fixtures keeps of one."""
    return array.ravel()[::thinning]


def _thinned(fixture: Fixture, array: NDArray[Any]) -> NDArray[Any]:
    thinning = int(fixture.config.get("thinning", 0))
    return thin(array, thinning) if thinning else array


def _prepare(fixture: Fixture, family: Family, seed_offset: int) -> nn.Module:
    network = family.build(fixture)
    if list(network.parameters()):
        fixture.fill(network, seed_offset)
    return network.eval().requires_grad_(False)


def _family(fixture: Fixture) -> Family:
    family = family_of(fixture)
    if family is None:
        raise NetworkError(f"{fixture.folder}: no network of ours is called {fixture.name}")
    return family


def _read_config(path: Path) -> Fixture:
    """The fixture of a ``config.json``, or of any file beside one."""
    file = path.with_name("config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NetworkError(f"cannot read the fixture {file}: {error}") from error
    if not isinstance(config, dict):
        raise NetworkError(f"the fixture {file} is not a mapping")
    return Fixture(file.parent, config)


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise NetworkError(f"cannot read the fixture {path}: {error}") from error


def _image(array: NDArray[Any]) -> NDArray[Any]:
    """Bytes n are images on the grid n/127.5 − 1."""
    return (array / 127.5 - 1).astype(np.float32) if array.dtype == np.uint8 else array
