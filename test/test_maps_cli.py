# SPDX-License-Identifier: Apache-2.0
"""`recon map`, and `recon run` that begins with a map and leaves one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_reconstructor import FAST, FRAMES, pose
from typer.testing import CliRunner

from recon_ros.cli.main import app
from recon_ros.cli.maps_commands import _for_source
from recon_ros.config import Config
from recon_ros.datasets.bag_writer import write_bag
from recon_ros.export.ply import read_ply
from recon_ros.export.snapshot import FILES
from recon_ros.export.tum import read_tum
from recon_ros.frame import Trajectory
from recon_ros.geometry import se3
from recon_ros.mapping.folder import VERSION, read_map

SETTINGS = [text for name, value in FAST.items() for text in ("--set", f"{name}={value}")]


def recon(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def bag_of(frames: list, path: Path) -> Path:
    truth = Trajectory(np.array([f.stamp_ns for f in frames]), np.array([pose(FRAMES.index(f)) for f in frames]))
    write_bag(path, frames, truth)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions on one map, and what each has left."""
    folder = tmp_path_factory.mktemp("maps")
    first, second = bag_of(FRAMES[:10], folder / "bag1"), bag_of(FRAMES[6:], folder / "bag2")
    recon("run", first, "--out", folder / "one", "--save-map", folder / "map1", "--no-evaluate-map", *SETTINGS)
    options = ["--map", folder / "map1", "--save-map", folder / "map2", "--no-evaluate-map", *SETTINGS]
    recon("run", second, "--out", folder / "two", *options)
    return folder


def test_a_run_goes_on_with_a_saved_map(folder: Path) -> None:
    trajectory = read_tum(folder / "two" / "trajectory.tum")
    np.testing.assert_array_equal(trajectory.stamps_ns, [f.stamp_ns for f in FRAMES[6:]])
    truth = se3.inverse(pose(0)) @ np.array([pose(step) for step in range(6, 16)])
    np.testing.assert_allclose(trajectory.positions, truth[:, :3, 3], atol=0.02)
    first, second = read_map(folder / "map1"), read_map(folder / "map2")
    assert [k.id for k in second.keyframes][: len(first.keyframes)] == [k.id for k in first.keyframes]
    assert len(second.keyframes) > len(first.keyframes) and len(second.path) == 20


def test_info_is_a_row_for_each_map_and_names_what_is_damaged(folder: Path, tmp_path: Path) -> None:
    said = recon("map", "info", folder / "map1", folder / "map2")
    assert said.count(" ok") == 2 and "depth" in said and f"format {VERSION}" in said
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (folder / "map1").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "edges.npy").write_bytes(b"nonsense")
    said = recon("map", "info", folder / "map1", copy, code=1)
    assert said.count(" ok") == 1 and "edges.npy is damaged" in said
    assert "no map folder" in recon("map", "info", tmp_path / "nothing", code=1)


def test_export_derives_the_files_anew(folder: Path, tmp_path: Path) -> None:
    recon("map", "export", folder / "map1", "--out", tmp_path / "same")
    for name in FILES:
        assert (tmp_path / "same" / name).read_bytes() == (folder / "map1" / name).read_bytes(), name
    recon("map", "export", folder / "map1", "--out", tmp_path / "coarse", "--set", "map.voxel_size=0.2")
    sizes = [len(read_ply(tmp_path / name / "map.ply")) for name in ("same", "coarse")]
    assert 0 < sizes[1] < sizes[0] / 4


def test_merge_joins_maps_or_says_why_not(folder: Path, tmp_path: Path) -> None:
    said = recon("map", "merge", folder / "map1", folder / "map2", "--out", tmp_path / "both")
    joined = read_map(tmp_path / "both")
    count = len(read_map(folder / "map1").keyframes) + len(read_map(folder / "map2").keyframes)
    assert len(joined.keyframes) == count and f"{count} keyframes" in said
    assert "two maps at least" in recon("map", "merge", folder / "map1", "--out", tmp_path / "x", code=1)


@pytest.mark.parametrize(("source", "sigma", "surface"), [("recon_compact", 0.15, 0.0), ("depth", 0.01, 0.02)])
def test_maps_are_joined_with_depth_as_good_as_their_source_says(source: str, sigma: float, surface: float) -> None:
    tracking = _for_source(Config(), source).tracking
    assert (tracking.depth_sigma, tracking.surface_sigma) == (sigma, surface)
