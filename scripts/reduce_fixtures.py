#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make the small set of parity fixtures that lies in the repository out of the full one.

Weights are left out (their recipe makes them again), images become bytes, inputs that two fixtures share are
stored once, and of every output each `THINNING`-th number is kept. Elements that parity does not compare become
NaN; memories of Spann3R after a pruning, which are compared as sets, are left out.

`.venv/bin/python scripts/reduce_fixtures.py ../shared/fixtures test/data/parity`
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.networks.parity import Fixture, family_of, find_fixtures, thin

THINNING = 11
"""Prime to 3 and to the widths of the arrays, so that no channel and no column is left out."""

KEPT = (
    *(
        "model",
        "repo",
        "commit",
        "constructor",
        "dust3r_constructor",
        "dpt_head",
        "memory",
        "modes",
        "cases",
        "subsample",
    ),
    *("seed", "recipe_overrides", "weights", "inputs"),
)
"""Of a config; what else is there says how it was measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    made: list[tuple[str, dict[str, NDArray[Any]]]] = []
    for fixture in find_fixtures(arguments.source):
        reduce(fixture, arguments.target / fixture.name, made)
    size = sum(path.stat().st_size for path in arguments.target.rglob("*") if path.is_file())
    print(f"{len(made)} fixtures, {size / 1e6:.2f} MB")


def reduce(fixture: Fixture, target: Path, made: list[tuple[str, dict[str, NDArray[Any]]]]) -> None:
    """Write one fixture's reduced folder; `made` collects the inputs of those written before."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    config = {key: fixture.config[key] for key in KEPT if key in fixture.config} | {"thinning": THINNING}
    inputs = {key: as_bytes(tensor.numpy()) for key, tensor in fixture.inputs.items()}
    twin = next((name for name, others in made if is_part(inputs, others)), None)
    if twin:
        config["inputs"] = f"../{twin}/inputs.npz"
    else:
        np.savez_compressed(target / "inputs.npz", **inputs)  # type: ignore[arg-type]
    made.append((twin or fixture.name, inputs))
    outputs = {key: array for case in fixture.cases for key, array in reduced(fixture, case).items()}
    np.savez_compressed(target / "outputs.npz", **outputs)  # type: ignore[arg-type]
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def reduced(fixture: Fixture, case: str) -> dict[str, NDArray[Any]]:
    """The thinned outputs of a case."""
    family = family_of(fixture)
    assert family is not None
    expected = fixture.expected(case)
    pruned = np.flatnonzero(expected.get("pruned", np.zeros(0)))
    kept = {}
    for name, array in expected.items():
        folder = name.split("/")[0]
        if len(pruned) and folder.startswith("mem") and folder != "mem_sizes" and int(folder[3:]) >= pruned[0]:
            continue
        mask = family.compared(fixture, case, name, array)
        kept[f"{case}/{name}"] = thin(
            array if mask is None else np.where(mask, array, np.nan).astype(array.dtype), THINNING
        )
    return kept


def as_bytes(array: NDArray[Any]) -> NDArray[Any]:
    """Images on the grid n/127.5 − 1 as n; anything else as it is."""
    if array.dtype != np.float32:
        return array
    levels = np.rint((array.astype(np.float64) + 1) * 127.5)
    on_grid = levels.min() >= 0 and levels.max() <= 255
    levels = levels.astype(np.uint8) if on_grid else levels
    return levels if on_grid and np.array_equal((levels / 127.5 - 1).astype(np.float32), array) else array


def is_part(inputs: dict[str, NDArray[Any]], others: dict[str, NDArray[Any]]) -> bool:
    """Whether every array of `inputs` is the same in `others`."""
    return all(key in others and np.array_equal(array, others[key]) for key, array in inputs.items())


if __name__ == "__main__":
    main()
