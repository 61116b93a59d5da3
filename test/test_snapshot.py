# SPDX-License-Identifier: Apache-2.0
"""A saved map is written whole or not at all, and nothing else is ever overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from saved_maps import made_up

from recon_ros.config import Config, load_yaml, nested, updated
from recon_ros.errors import ReconError
from recon_ros.export import snapshot as module
from recon_ros.export.snapshot import FILES, Snapshot, write_snapshot
from recon_ros.export.tum import read_tum
from recon_ros.frame import Cloud
from recon_ros.mapping.folder import DATA_FILES


def make(points: int = 3) -> Snapshot:
    cloud = Cloud(np.ones((points, 3), np.float32), np.zeros((points, 3), np.uint8), np.ones(points, np.float32))
    return Snapshot(made_up(scale_drifts=False), cloud, nested(Config()))


def test_a_new_folder_gets_all_files_and_a_config_that_can_be_used_again(tmp_path: Path) -> None:
    folder = write_snapshot(make(), tmp_path / "a" / "map")
    assert folder == tmp_path / "a" / "map"
    assert {p.name for p in folder.iterdir()} == {*FILES, *DATA_FILES}
    assert [p.name for p in folder.parent.iterdir()] == ["map"]
    np.testing.assert_array_equal(read_tum(folder / "trajectory.tum").stamps_ns, make().data.path["stamp_ns"])
    header = (folder / "map.ply").read_bytes()[:200]
    assert b"element vertex 3" in header and b"metres" in header
    assert updated(Config(), load_yaml(folder / "config.yaml")) == Config()


def test_a_saved_map_is_replaced_and_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "map").mkdir()
    for points in (3, 5):
        write_snapshot(make(points), tmp_path / "map")
        assert f"element vertex {points}".encode() in (tmp_path / "map" / "map.ply").read_bytes()[:200]
    assert [p.name for p in tmp_path.iterdir()] == ["map"]


@pytest.mark.parametrize("precious", ["file", "folder", "folder with folders"])
def test_anything_else_is_left_alone(tmp_path: Path, precious: str) -> None:
    target = tmp_path / "precious"
    if precious == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    if precious == "folder with folders":
        (target / "sub").mkdir()
        for name in FILES:
            (target / name).write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ReconError, match="not a saved map"):
        write_snapshot(make(), target)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_snapshot(make(), tmp_path / "map")
    before = (tmp_path / "map" / "map.ply").read_bytes()

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_tum", disk_full)
    with pytest.raises(ReconError, match="No space left on device"):
        write_snapshot(make(9), tmp_path / "map")
    assert (tmp_path / "map" / "map.ply").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["map"], "nothing unfinished is left"


def test_the_configuration_is_plain_yaml(tmp_path: Path) -> None:
    folder = write_snapshot(make(), tmp_path / "map")
    assert yaml.safe_load((folder / "config.yaml").read_text())["memory"]["max_keyframes"] == 500
