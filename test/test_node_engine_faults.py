# SPDX-License-Identifier: Apache-2.0
"""A cache that is damaged, full, or left by a killed build: each is said, and the node goes on with its frames."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("tf2_msgs", reason="needs tf2_msgs (scripts/build_tf2_msgs.py)")

from diagnostic_msgs.msg import DiagnosticStatus
from node_film import BUILD_TIMEOUT, OPENVINO, Film, Stage, filled_cache, find_bundles, needs
from node_harness import NodeProcess

from recon_ros.errors import NetworkError
from recon_ros.runtimes.bundle import GOLDEN, PLAN, load_bundle

pytestmark = [pytest.mark.ros, pytest.mark.faults]

AUTO = {**OPENVINO, "runtime": "auto"}
"""OpenVINO when its bundle is there, else PyTorch."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


# Damage


def truncate(bundle: Path) -> str:
    path = bundle / "step.onnx"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(1000)
    return f"{path} has 1000 bytes, not {size}: it is truncated or another"


def flip_a_bit(bundle: Path) -> str:
    path = bundle / "step.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return f"{path} is damaged or was replaced: its SHA-256 is not that in {PLAN}"


def be_of_another_version(bundle: Path) -> str:
    path = bundle / PLAN
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "export_version": 0}))
    return f"{path} is of export version 0, this program reads "


def spoiled(folder: Path, spoil: Callable[[Path], str]) -> tuple[Path, str]:
    """A copy of the cache that is not as it was, and what is to be said of it."""
    cache = shutil.copytree(filled_cache(), folder)
    (bundle,) = find_bundles(cache)
    expected = spoil(bundle)
    with pytest.raises(NetworkError):
        load_bundle(bundle)
    return cache, expected


def assert_works(film: Film, node: NodeProcess, runtime: str) -> None:
    """It processes the frames that come from now on, with that runtime; nothing went wrong that it did not foresee."""
    before = film.count("frames_processed", node)
    film.until(lambda: film.count("frames_processed", node) >= before + 2, f"two frames through {runtime}")
    assert film.value("runtime", node) == runtime and film.count("errors", node) == 0
    assert "Traceback" not in node.log and "[ERROR]" not in node.log


@needs("torch", "openvino")
def test_a_damaged_bundle_and_one_of_another_version_are_named_and_another_runtime_serves(
    stage: Stage, tmp_path: Path
) -> None:
    caches = [spoiled(tmp_path / spoil.__name__, spoil) for spoil in (flip_a_bit, be_of_another_version)]
    film = stage.film(*({**AUTO, "engine.cache": str(cache)} for cache, _ in caches))
    for node, (_, expected) in zip(film.nodes, caches, strict=True):
        assert_works(film, node, "torch fp32")
        (choice,) = (line for line in node.log.splitlines() if "runs with torch fp32 at 128x96; not taken: " in line)
        assert f"openvino fp32 ({expected}" in choice
        assert "run `recon engine build random-small --size 96x128 --runtime openvino" in choice
    assert [node.stop() for node in film.nodes] == [0, 0]


# Builds that end otherwise


def build_of(node: NodeProcess) -> psutil.Process:
    """The process that builds for a node, as soon as there is one."""

    def find() -> psutil.Process | None:
        for child in psutil.Process(node.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "recon_ros.runtimes.engine_build" in child.cmdline():
                    return child
        return None

    return node.wait(find, "process that builds")


def assert_given_up(film: Film, because: str) -> None:
    """The build has failed; PyTorch has served before and serves on; the reason is in the log and in /diagnostics."""
    (node,) = film.nodes
    film.until(lambda: "openvino fp32 is given up" in film.engine().message, "word of the failed build", BUILD_TIMEOUT)
    assert film.engine().level == DiagnosticStatus.WARN
    for said in (film.engine().message, node.log):
        assert f"openvino fp32 is given up: building it failed: {because}" in said
    assert_works(film, node, "torch fp32")


@pytest.mark.slow
@needs("torch", "openvino")
def test_kill_9_in_the_middle_of_replacing_a_truncated_bundle(stage: Stage, tmp_path: Path) -> None:
    cache, expected = spoiled(tmp_path / "cache", truncate)
    film = stage.film({**AUTO, "engine.build": True, "engine.cache": str(cache)})
    (node,) = film.nodes
    film.until(lambda: film.says("torch fp32 serves meanwhile"), "word of the build")
    build = build_of(node)
    film.until(lambda: list(cache.glob(f"onnx/*.part/{GOLDEN}")), "half a bundle", BUILD_TIMEOUT)
    build.suspend()
    assert not list(cache.glob(f"onnx/*.part/{PLAN}")), "it is not complete yet"
    assert_works(film, node, "torch fp32")
    build.kill()
    assert_given_up(film, "the build was killed, perhaps for want of memory")
    assert expected in node.log
    assert node.stop() == 0
    assert list(cache.glob("onnx/*.part"))

    film = stage.film({**OPENVINO, "engine.build": True, "engine.cache": str(cache)})
    film.until(lambda: film.count("frames_processed"), "a frame through a new bundle", BUILD_TIMEOUT)
    assert film.count("skipped.engine_building") > 0
    assert_works(film, film.nodes[0], "openvino fp32")
    (bundle,) = find_bundles(cache)
    assert load_bundle(bundle).precision == "fp32" and not list(cache.glob("onnx/*.part"))
    assert film.nodes[0].stop() == 0


@needs("torch", "openvino")
def test_a_disk_that_ends_in_the_middle_of_a_build(stage: Stage, tmp_path: Path) -> None:
    """The system itself refuses the last bytes: no file of the build may grow beyond some kilobytes."""
    film = stage.film({**AUTO, "engine.build": True, "engine.cache": str(tmp_path / "cache")})
    film.until(lambda: film.count("frames_received"), "first image")
    build_of(film.nodes[0]).rlimit(psutil.RLIMIT_FSIZE, (20_000, 20_000))
    assert_given_up(film, f"cannot write the exported network to {tmp_path / 'cache'}")
    assert "the disk is full (File too large); make room, or set engine.cache" in film.engine().message
    assert not find_bundles(tmp_path / "cache") and not list(tmp_path.glob("cache/onnx/*.part"))
    assert film.nodes[0].stop() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    refused = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if refused is None or refused.returncode:
        pytest.skip(f"no file system may be mounted here{f': {refused.stderr.strip()}' if refused else ''}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@needs("torch", "openvino")
def test_a_disk_without_room_for_the_bundle(small_disk: Path, stage: Stage) -> None:
    film = stage.film({**AUTO, "engine.build": True, "engine.cache": str(small_disk)})
    assert_given_up(film, f"{small_disk / 'onnx'} has 0 MB left, ")
    assert "make room, or set engine.cache to a folder on another disk" in film.engine().message
    assert not find_bundles(small_disk)
    assert film.nodes[0].stop() == 0
