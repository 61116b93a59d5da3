# SPDX-License-Identifier: Apache-2.0
"""`recon train` as a person uses it: train, go on, evaluate; and one sentence where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch", reason="PyTorch is not installed; RECON_TORCH=1 make setup")

from tiny_shards import write_shard

from recon_ros.cli.main import app
from recon_ros.training.recording import covering

runner = CliRunner()


def recon(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_train_go_on_and_evaluate(tmp_path: Path) -> None:
    write_shard(tmp_path / "data/shard_0", 2, 0)
    options = ("--run", tmp_path / "run", "--data", tmp_path / "data", "--heldout", tmp_path / "data")
    options = (*options, "--encoder", "scratch", "--batch", 1, "--frames", "2..3", "--device", "cpu")
    assert "done: step 2" in recon(*options, "--steps", 2)
    assert "holds a training already" in recon(*options, "--steps", 3, code=1)
    assert "done: step 3" in recon(*options, "--steps", 3, "--resume")
    assert "of another network" in recon(*options, "--steps", 4, "--resume", "--no-rays", code=1)
    network = tmp_path / "run/network.safetensors"
    output = recon("evaluate", network, "--heldout", tmp_path / "data", "--out", tmp_path / "out", "--device", "cpu")
    assert "AbsRel, each image at its median's scale" in output and "step 3: 2 sequences, 12 frames" in output
    scores = json.loads((tmp_path / "out/held_out.json").read_text(encoding="utf-8"))
    assert scores["network"]["progress"]["step"] == 3 and scores["abs_rel"] > 0
    assert (tmp_path / "out/held_out_worst.png").is_file() and (tmp_path / "out/held_out_usual.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--steps", 1), "--run DIR"),
        (("--run", "x", "--data", "nowhere", "--steps", 1), "holds no finished shard"),
        (("--run", "x", "--data", "nowhere", "--steps", 1, "--encoder", "resnet"), "--encoder resnet is not one of"),
        (("--run", "x", "--data", "nowhere", "--steps", 1, "--frames", "8..2"), "--frames 8..2"),
        (("--run", "x", "--data", "nowhere", "--steps", 1, "--frames", "many"), "--frames many"),
        (("--run", "x", "--data", "nowhere"), "needs steps or minutes"),
        (("--run", "x", "--data", "nowhere", "--steps", 1, "--device", "tpu"), "--device tpu"),
        (("evaluate", "nothing.safetensors", "--heldout", "nowhere"), "no such weight file"),
    ],
)
def test_what_is_missing_is_said(
    arguments: tuple[object, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in " ".join(recon(*arguments, code=1).split())


def test_a_recording_is_covered_and_cropped_in_the_middle() -> None:
    for size in ((540, 360), (640, 480), (360, 640), (100, 80)):
        grid = covering(*size, 256, 192)
        assert (grid.grid_width, grid.grid_height) == (256, 192)
        assert grid.resized_width >= 256 and grid.resized_height >= 192
        assert min(grid.resized_width - 256, grid.resized_height - 192) == 0
        assert grid.x == (grid.resized_width - 256) // 2 and grid.y == (grid.resized_height - 192) // 2
