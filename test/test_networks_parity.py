# SPDX-License-Identifier: Apache-2.0
"""Our networks against the published ones: the reduced set of the repository, and that a difference is seen."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("safetensors", reason="needs safetensors")

from recon_ros.errors import NetworkError  # noqa: E402
from recon_ros.networks import blocks  # noqa: E402
from recon_ros.networks.parity import check, check_other_weights, find_fixtures  # noqa: E402

torch.set_num_threads(1)

REDUCED = Path(__file__).parent / "data" / "parity"
FULL = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
FIXTURES = {fixture.name: fixture for fixture in find_fixtures(REDUCED)}
CASES = 56


@pytest.mark.parametrize("name", FIXTURES)
def test_every_case_of_the_reduced_set(name: str) -> None:
    results = list(check(FIXTURES[name]))
    assert {result.case: result.problems for result in results if not result.ok} == {}
    assert sum(result.arrays for result in results) == len(FIXTURES[name].outputs) > 0


def test_the_reduced_set_is_all_families_and_small() -> None:
    assert {name.split("_")[0] for name in FIXTURES} == {"rope2d", "dust3r", "mast3r", "spann3r", "cut3r", "ttt3r"}
    assert sum(len(fixture.cases) for fixture in FIXTURES.values()) == CASES
    assert sum(path.stat().st_size for path in REDUCED.rglob("*") if path.is_file()) < 5e6
    assert not list(REDUCED.rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["mast3r_catmlpdpt", "ttt3r_linear"])
def test_weights_of_another_seed(name: str) -> None:
    assert all(result.ok for result in check_other_weights(FIXTURES[name]))


@pytest.mark.parametrize("name", ["dust3r_dpt", "cut3r_linear"])
def test_a_wrong_network_is_a_miss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation of base 90 in place of 100."""
    rope_2d = blocks.rope_2d
    monkeypatch.setattr(blocks, "rope_2d", lambda x, positions, base: rope_2d(x, positions, 90.0))
    results = list(check(FIXTURES[name]))
    assert not any(result.ok for result in results)
    assert all(result.max_ratio > 10 for result in results)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REDUCED / "dust3r_linear", tmp_path / "set" / "dust3r_linear")).parent


def use_own_inputs(folder: Path) -> None:
    shutil.copy(REDUCED / "dust3r_dpt" / "inputs.npz", folder / "dust3r_linear")
    config = json.loads((folder / "dust3r_linear" / "config.json").read_text())
    del config["inputs"]
    (folder / "dust3r_linear" / "config.json").write_text(json.dumps(config))


def change_output(folder: Path, name: str, value: float) -> None:
    path = folder / "dust3r_linear" / "outputs.npz"
    arrays = dict(np.load(path))
    arrays[name][3] += value
    np.savez(path, **arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize(("change", "ok"), [(1e-5, True), (1e-3, False)])
def test_one_number_out_of_tolerance_is_a_miss_of_its_case(copy: Path, change: float, ok: bool) -> None:
    use_own_inputs(copy)
    change_output(copy, "odd/view2/conf", change)
    results = {result.case: result for result in check(find_fixtures(copy)[0])}
    assert results["dust3r_linear/odd"].ok == ok
    assert all(result.ok for case, result in results.items() if case != "dust3r_linear/odd")
    if not ok:
        assert results["dust3r_linear/odd"].problems[0].startswith("view2/conf: ")


def test_an_array_that_is_not_reproduced_or_not_a_number_is_a_miss(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recon_ros.networks import parity_dust3r

    use_own_inputs(copy)
    run = parity_dust3r.run

    def damaged(*arguments: object) -> dict[str, torch.Tensor]:
        arrays = dict(run(*arguments))  # type: ignore[arg-type]
        del arrays["view1/conf"]
        arrays["view2/conf"] = arrays["view2/conf"] * float("nan")
        arrays["view1/pts3d"] = arrays["view1/pts3d"][..., :2]
        return arrays

    monkeypatch.setattr(parity_dust3r, "run", damaged)
    fixture = find_fixtures(copy)[0]
    for result in check(fixture):
        assert any(problem == "view1/conf: not reproduced" for problem in result.problems)
        assert any(problem.startswith("view2/conf: inf times") for problem in result.problems)
        assert any(problem.startswith("view1/pts3d: shape") for problem in result.problems)
    for result in check_other_weights(fixture):
        assert "view2/conf: not finite" in result.problems


def test_folders_without_fixtures_are_told(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="no such folder"):
        find_fixtures(tmp_path / "none")
    (tmp_path / "vggt").mkdir()
    (tmp_path / "vggt" / "config.json").write_text("{}")
    with pytest.raises(NetworkError, match="holds no fixture"):
        find_fixtures(tmp_path)
    (tmp_path / "vggt" / "config.json").write_text("{")
    with pytest.raises(NetworkError, match="cannot read the fixture"):
        find_fixtures(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not FULL.is_dir(), reason="needs ../shared/fixtures")
@pytest.mark.parametrize(
    "full",
    [
        pytest.param(False, id="small"),
        pytest.param(
            True,
            id="full-size",
            marks=pytest.mark.skipif(
                not os.environ.get("RECON_FULL_SIZE"), reason="takes 2 minutes and 5 GB: set RECON_FULL_SIZE=1"
            ),
        ),
    ],
)
def test_every_case_of_the_full_set(full: bool) -> None:
    """Of the full-size networks: about 2 minutes and 5 GB."""
    results = [result for fixture in find_fixtures(FULL, full) for result in check(fixture)]
    assert {result.case: result.problems for result in results if not result.ok} == {}
    assert len(results) == (4 if full else CASES)
