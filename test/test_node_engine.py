# SPDX-License-Identifier: Apache-2.0
"""The node while the engine of its network is missing, is being built, and is there; over DDS, as processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("tf2_msgs", reason="needs tf2_msgs (scripts/build_tf2_msgs.py)")

from diagnostic_msgs.msg import DiagnosticStatus
from node_film import BUILD_TIMEOUT, OPENVINO, RANDOM, Stage, filled_cache, find_bundles, needs, shared_cache

pytestmark = pytest.mark.ros


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {item.key: item.value for item in status.values}


@needs("torch", "openvino")
def test_a_missing_engine_is_said_and_the_node_is_there(stage: Stage, tmp_path: Path) -> None:
    made = stage.film({**OPENVINO, "engine.cache": str(tmp_path)})
    made.until(lambda: made.count("skipped.engine_missing") >= 2, "frames skipped for want of an engine")
    assert "recon" in made.graph.node.get_node_names()
    status = made.graph.status()
    assert status["engine"] == "missing" and status["frames_processed"] == "0" and status["errors"] == "0"
    assert made.says("MISSING: random-small (runtime openvino) has nothing to run with at 128x96")
    made.until(lambda: made.engine().level == DiagnosticStatus.ERROR, "an error in /diagnostics")
    assert "run `recon engine build random-small --size 96x128 --runtime openvino" in made.engine().message
    assert values(made.engine())["state"] == "missing" and values(made.engine())["runtime"] == "none"
    assert made.graph.process.stop() == 0


@pytest.mark.faults
@needs("torch", "openvino")
def test_an_engine_is_built_once_while_two_nodes_are_up(stage: Stage) -> None:
    """Both find the cache empty; one exports, the other waits for it, and both serve."""
    cache = shared_cache()
    made = stage.film(*[{**OPENVINO, "engine.build": True, "engine.cache": str(cache)}] * 2)
    made.until_each(lambda node: made.says("BUILDING: building openvino fp32", node), "word of the build")
    made.until(lambda: made.engine().level == DiagnosticStatus.WARN, "a warning in /diagnostics")
    assert "frames are skipped until it is ready" in made.engine().message
    made.until_each(lambda node: made.count("frames_processed", node) >= 2, "frames through it", BUILD_TIMEOUT)
    exporting, waiting = (
        [node for node in made.nodes if made.has_said(phase, node)]
        for phase in ("export of step", "waiting for another process that exports it")
    )
    assert len(exporting) == len(waiting) == 1 and exporting != waiting
    assert len(find_bundles(cache)) == 1
    made.until(lambda: values(made.engine())["state"] == "ready", "all well in /diagnostics")
    assert made.engine().level == DiagnosticStatus.OK
    found = values(made.engine())
    assert found["precision"] == "fp32" and str(cache) in found["file"]
    assert 0 <= float(found["self_check"]) < 1
    for node in made.nodes:
        assert made.value("runtime", node) == "openvino fp32" and made.count("skipped.engine_building", node) > 0
        assert "building openvino fp32: " in node.log
        assert "runs with openvino fp32 at 128x96, self-check at" in node.log
        assert "Traceback" not in node.log and "[ERROR]" not in node.log
    assert [node.stop() for node in made.nodes] == [0, 0]


@needs("torch", "openvino")
def test_build_only_ends_with_what_is_ready(stage: Stage) -> None:
    cache = str(filled_cache())
    process = stage.start({**OPENVINO, "build_only": True, "engine.size": "240x320", "engine.cache": cache})
    assert process.process.wait(BUILD_TIMEOUT) == 0, process.log
    assert "ready for images of 128x96: openvino fp32 serves" in process.log


@needs("torch")
def test_build_only_says_what_it_cannot_build(stage: Stage) -> None:
    depth = stage.start({"source": "depth", "build_only": True})
    wide = stage.start({**RANDOM, "engine.size": "wide", "build_only": True})
    for process, sentence in (
        (depth, "cannot build: source 'depth' is no network"),
        (wide, "option 'engine.size' is 'wide'; it must be height x width"),
    ):
        assert process.process.wait(20) == 1
        assert sentence in process.log and "Traceback" not in process.log


@needs("torch", "openvino")
def test_the_end_of_the_node_is_the_end_of_the_build(stage: Stage, tmp_path: Path) -> None:
    made = stage.film({**OPENVINO, "engine.build": True, "engine.cache": str(tmp_path)})
    made.until(lambda: made.says("BUILDING"), "word of the build")
    builds = psutil.Process(made.graph.process.process.pid).children(recursive=True)
    assert builds
    assert made.graph.process.stop() == 0
    _, alive = psutil.wait_procs(builds, timeout=10)
    assert not alive and "[ERROR]" not in made.graph.process.log
