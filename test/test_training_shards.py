# SPDX-License-Identifier: Apache-2.0
"""Shards of training sequences: written once, resumed, memory-mapped, checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open3d")

from recon_ros.errors import DatasetError
from recon_ros.training import shards
from recon_ros.training.shards import HELD_OUT, generate, open_shards, sequence

SIZE = {"frames": 2, "width": 32, "height": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shards")
    patch = pytest.MonkeyPatch()
    patch.setattr(shards, "SEQUENCES_A_SHARD", 2)
    generate(place, 10, 3, **SIZE)
    patch.undo()
    return place


def test_what_is_read_is_what_was_rendered(folder: Path) -> None:
    data = open_shards(folder)
    assert len(data) == 3
    assert [len(shard.K) for shard in data.shards] == [2, 1]
    for index, seed in enumerate((10, 11, 12)):
        rendered = sequence(seed, **SIZE)
        for name in ("images", "depth", "K", "T_world_camera"):
            assert np.array_equal(getattr(data[index], name), getattr(rendered, name)), (seed, name)


def test_arrays_are_mapped_not_read(folder: Path) -> None:
    first = open_shards(folder)[0]
    assert isinstance(first.images.base, np.memmap) or isinstance(first.images, np.memmap)
    assert first.images.shape == (2, 32, 32, 3)
    assert first.depth.dtype == np.float16
    assert first.K.dtype == first.T_world_camera.dtype == np.float32


def test_the_description_names_generator_seeds_and_photographs(folder: Path) -> None:
    record = json.loads((folder / "shard_00000010_002" / "shard.json").read_text())
    assert record["generator"] == shards.GENERATOR
    assert (record["first_seed"], record["sequences"]) == (10, 2)
    for photograph in record["photographs"]:
        assert {"package", "file", "licence", "author"} <= set(photograph)
        assert "path" not in photograph


def test_locate_and_the_ends(folder: Path) -> None:
    data = open_shards(folder)
    assert [(data.locate(i)[0].record["first_seed"], data.locate(i)[1]) for i in range(3)] == [
        (10, 0),
        (10, 1),
        (12, 0),
    ]
    for index in (-1, 3):
        with pytest.raises(IndexError, match=str(index)):
            data[index]
    assert len(list(data)) == 3


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SEQUENCES_A_SHARD", 1)
    done: list[int] = []

    def render(seed: int, *args: int) -> shards.Sequence:
        if seed == 2 and len(done) < 3:
            done.append(-1)
            raise KeyboardInterrupt
        done.append(seed)
        return sequence(seed, *args)

    monkeypatch.setattr(shards, "sequence", render)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, 0, 3, **SIZE)
    assert len(open_shards(tmp_path)) == 2  # the unfinished one is not seen
    assert len(generate(tmp_path, 0, 3, **SIZE)) == 3
    assert done == [0, 1, -1, 2]
    assert len(open_shards(tmp_path)) == 3


@pytest.mark.parametrize(
    ("first", "count", "options", "message"),
    [
        (0, 0, {}, "sequences is 0"),
        (0, 1, {"frames": 0}, "frames is 0"),
        (-1, 1, {}, "-1"),
        (HELD_OUT - 1, 2, {}, "not all below"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, first: int, count: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        generate(tmp_path, first, count, **options)
    assert not list(tmp_path.iterdir())


def test_missing_and_broken_shards_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no shards"):
        open_shards(tmp_path)
    place = tmp_path / "shard_00000000_001"
    place.mkdir()
    (place / "shard.json").write_text(json.dumps({"sequences": 1, "frames": 2, "height": 32, "width": 32}))
    with pytest.raises(DatasetError, match="cannot be read"):
        open_shards(tmp_path)
    for name, shape in (
        ("images", (1, 2, 32, 32, 3)),
        ("depth", (1, 2, 32, 31)),
        ("K", (1, 4)),
        ("T_world_camera", (1, 2, 4, 4)),
    ):
        np.save(place / f"{name}.npy", np.zeros(shape, np.float32))
    with pytest.raises(DatasetError, match=r"depth\.npy"):
        open_shards(tmp_path)
