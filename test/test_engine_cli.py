# SPDX-License-Identifier: Apache-2.0
"""`recon engine`: what it refuses, what it builds, what it lists; and the gate that every small network passes."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recon_command import ROOT, recon
from typer.testing import CliRunner

from recon_ros.cli import engine_table
from recon_ros.cli.engine import engine
from recon_ros.cli.engine_commands import default_size, find_any_card, read_size, request
from recon_ros.errors import NetworkError
from recon_ros.networks.small import SMALL
from recon_ros.runtimes.engine_cache import EngineCache
from recon_ros.runtimes.engine_key import EngineKey, misfit
from recon_ros.runtimes.engine_prepare import bundle_place
from recon_ros.runtimes.trt.device import Gpu
from recon_ros.runtimes.trt.library import Library

needs_rtx = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")),
    reason="needs tensorrt_rtx",
)
needs_export = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "onnx", "onnxscript")),
    reason="needs torch, onnx and onnxscript",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "recon_ros"


def run(*arguments: object, code: int = 0) -> str:
    """What `recon engine …` says, on one line."""
    result = CliRunner().invoke(engine, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


# What is asked for


def test_sizes_are_height_by_width() -> None:
    assert read_size("384x512") == (512, 384)
    assert read_size(" 384 X 512 ") == (512, 384)
    for text in ("512", "384x", "0.5x1", "384x512x3", "-16x16", ""):
        with pytest.raises(NetworkError, match="not HEIGHTxWIDTH"):
            read_size(text)
    assert default_size(find_any_card("cut3r_512_dpt")) == (512, 512)
    assert default_size(find_any_card("cut3r-small-dpt")) == (96, 64)
    wish = request("cut3r_512_dpt", "384x512", "8.6, 12.0", runtime="tensorrt_rtx")
    assert (wish.width, wish.height, wish.targets) == (512, 384, ("8.6", "12.0"))
    # The name of the weight file means the card.
    assert request("cut3r_512_dpt_4_64.pth", None).model == "cut3r_512_dpt"
    assert request("random-small", None).model == "random-small"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("build", "cut3r_512_dptt"), "did you mean cut3r_512_dpt?"),
        (("export", "cut3r-small-dtp"), "did you mean cut3r-small-dpt?"),
        (("build", "cut3r_512_dpt", "--size", "300x500"), "the nearest is 304x496"),
        (("check", "cut3r_512_dpt", "--size", "512"), "size '512' is not HEIGHTxWIDTH in pixels"),
        (("check", "cut3r_512_dpt", "--targets", "sm86"), "'sm86' is no compute capability"),
        (("build", "cut3r_512_dpt", "--targets", "8.6"), "tensorrt builds for this machine, not for 8.6"),
        (("build", "cut3r_512_dpt", "--runtime", "torch"), "'torch' needs nothing built"),
        (("build", "cut3r_512_dpt", "--precision", "int8"), "int8 is for runtime openvino"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(arguments: tuple[str, ...], expected: str, cache: Path) -> None:
    assert expected in run(*arguments, code=1)
    assert not cache.exists()


def test_check_wants_one_model_or_all() -> None:
    assert "either a model, or --all-small" in run("check", code=2)
    assert "either a model, or --all-small" in run("check", "cut3r_512_dpt", "--all-small", code=2)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_without_the_library_or_the_weights_it_says_what_to_get() -> None:
    said = run("build", "cut3r_512_dpt", code=1)
    assert "tensorrt cannot be used" in said
    assert "JetPack" in said
    said = run("export", "dust3r_512_dpt", code=1)
    assert "no weights at" in said


def test_without_tensorrt_rtx_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Library:
        raise NetworkError(f"{name} cannot be used; `pip install tensorrt-rtx`")

    monkeypatch.setattr(engine_table, "load_library", absent)
    assert "tensorrt_rtx cannot be used; `pip install tensorrt-rtx`" in run("check", "--all-small", code=1)


def test_help_loads_no_libraries() -> None:
    program = (
        "import sys, runpy\n"
        "sys.argv = ['recon', 'engine', *sys.argv[1:]]\n"
        "try: runpy.run_module('recon_ros.cli.main', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'onnx', 'openvino', 'tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    for arguments in (["build", "--help"], ["list"]):
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, cwd=ROOT, capture_output=True)


# What is listed

KEY = EngineKey(
    model="m",
    size=(96, 64),
    precision="fp16",
    attention="softmax32",
    bundle_digest="0",
    library="tensorrt",
    library_version="10.7.0",
    gpu="Orin",
    compute_capability="8.7",
    sm_count=16,
    driver="540.4",
)


def test_an_engine_that_does_not_fit_says_why() -> None:
    orin = Gpu("Orin", "8.7", 16, 16_000, "540.4", "12.6")
    library = Library(None, "tensorrt", "10.7.0")
    assert misfit(KEY, library, orin) == ""
    assert misfit(KEY, library, None) == "no GPU is found here, it is for Orin"
    assert misfit(KEY, Library(None, "tensorrt", "10.3.0"), orin) == "built by TensorRT 10.7.0, this is 10.3.0"
    said = misfit(KEY, library, Gpu("Thor", "11.0", 16, 1, "540.4", "13.0"))
    assert said == "for another GPU: Orin, this is Thor; for compute capability 8.7, not 11.0"
    rtx = EngineKey.from_dict(
        KEY.to_dict() | {"library": "tensorrt_rtx", "gpu": "", "compute_capability": "8.6,8.9", "driver": ""}
    )
    library = Library(None, "tensorrt_rtx", "10.7.0")
    assert misfit(rtx, library, Gpu("NVIDIA GeForce RTX 4090", "8.9", 128, 24_000, "570.1", "12.8")) == ""
    assert misfit(rtx, library, orin) == "for compute capability 8.6,8.9, not 8.7"
    assert misfit(rtx, library, None) == "no GPU is found here, it is for compute capability 8.6,8.9"


def test_list_shows_the_whole_cache_damage_included(cache: Path) -> None:
    assert "nothing is built yet" in run("list")
    engines = EngineCache(cache / "engines")
    whole = engines.build(KEY, _write)
    half = engines.build(EngineKey.from_dict(KEY.to_dict() | {"model": "n"}), _write)
    (half.folder / "step.engine").write_bytes(b"x")
    (cache / "onnx" / "m_64x96").mkdir(parents=True)
    (cache / "onnx" / "m_64x96" / "plan.json").write_text(json.dumps({"digest": "0", "facts": {"made_by": "torch 2"}}))
    (cache / "onnx" / "n_64x96").mkdir()
    (cache / "onnx" / "n_64x96" / "plan.json").write_text("{")
    said = run("list")
    assert re.search(r"m_64x96 0\.0 torch 2", said)
    assert "n_64x96 0.0 damaged: " in said
    assert re.search(rf"{whole.folder.name} 1\.5 Orin 8\.7 20\d\d-\d\d-\d\d, 0 s no: ", said)
    assert "no: truncated: engine file step.engine has 1 of 1500000 bytes" in said
    assert str(cache) in said


def _write(folder: Path) -> None:
    (folder / "step.engine").write_bytes(bytes(1_500_000))


# For real


@pytest.mark.slow
@needs_export
@needs_rtx
def test_built_once_and_then_found(tmp_path: Path) -> None:
    from tiny_bundles import HEIGHT, WIDTH, tiny_bundle

    model = "dust3r-small-linear"
    wish = {"runtime": "tensorrt_rtx", "precision": "fp32", "cache": str(tmp_path / "c")}
    # What an export would take ten seconds for; the next test exports.
    shutil.copytree(tiny_bundle(model).folder, bundle_place(request(model, f"{HEIGHT}x{WIDTH}", **wish)))
    arguments = ("engine", "build", model, *(word for name, value in wish.items() for word in (f"--{name}", value)))
    first = recon(*arguments)
    assert first.stdout.endswith("(no engine yet)\n")
    assert "building decode (2 of 2)" in first.stderr
    folders = dict(re.findall(r"(bundle|engines): (\S+),", first.stdout))
    assert sorted(path.name for path in Path(folders["engines"]).iterdir()) == [
        "decode.engine",
        "encode.engine",
        "engine.json",
    ]
    second = recon(*arguments)
    assert dict(re.findall(r"(bundle|engines): (\S+),", second.stdout)) == folders
    assert second.stdout.endswith("(all of it was here)\n")
    said = run("list", "--cache", tmp_path / "c")
    assert Path(folders["bundle"]).name in said
    assert Path(folders["engines"]).name in said


@pytest.mark.slow
@needs_export
@needs_rtx
def test_every_small_network_builds_for_every_rtx_card(cache: Path) -> None:
    """The gate of CI: exported in fp16, parsed, strongly typed, and lowered, without a GPU."""
    # Without a time limit: on two idle cores it takes a minute and a half.
    command = [sys.executable, "-m", "recon_ros.cli.main", "engine", "check", "--all-small"]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    assert "MISS" not in said
    for name in SMALL:
        assert re.search(rf"^{name} +export .* ok *$", said, re.MULTILINE), said
        assert re.search(rf"^{name} +\w+ +8\.6,8\.9,12\.0 .* ok *$", said, re.MULTILINE), said
    assert list(cache.iterdir()) == []
