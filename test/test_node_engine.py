# SPDX-License-Identifier: Apache-2.0
"""The node while the engine of its network is missing, is being built, and is there; over DDS, as processes."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("tf2_msgs", reason="needs tf2_msgs (scripts/build_tf2_msgs.py)")

from diagnostic_msgs.msg import DiagnosticStatus
from node_harness import OWN_MOUNT, Graph, NodeProcess, Walker
from textured_room import TexturedRoom

pytestmark = pytest.mark.ros


def needs(*modules: str) -> pytest.MarkDecorator:
    """Not imported here: the node is a process of its own."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


RANDOM = {"source": "random-small", **OWN_MOUNT}
OPENVINO = {**RANDOM, "runtime": "openvino", "precision": "fp32"}
BUILD_TIMEOUT = 180.0
"""Seconds: PyTorch is loaded and exports, on a machine that may be busy."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Filled by the build that is tested here, and used by later tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Start nodes that end with the test."""
    running: list[NodeProcess] = []

    def begin(parameters: dict[str, Any]) -> NodeProcess:
        running.append(NodeProcess(tmp_path / str(len(running)), parameters))
        return running[-1]

    yield begin
    for process in running:
        process.end()


class Film:
    """Sends images until something is seen in the node's answers."""

    def __init__(self, process: NodeProcess) -> None:
        self.graph = Graph(process)
        process.wait(self.graph.images.get_subscription_count, "subscription to the image")
        self._walker = Walker(self.graph, TexturedRoom())

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 20.0) -> None:
        def sent() -> Any:
            self._walker.send()
            time.sleep(0.1)
            return condition()

        self.graph.process.wait(sent, what, timeout)

    def says(self, text: str) -> bool:
        """Whether ~/status has these words in its message now."""
        return any(text in status.message for status in self.graph.received["~/status"][-1:])

    def engine(self) -> DiagnosticStatus:
        """The newest Engine task of /diagnostics."""
        arrays = self.graph.process.wait(lambda: self.graph.received["/diagnostics"], "/diagnostics")
        return next(status for status in arrays[-1].status if status.name == "recon: Engine")


@pytest.fixture
def film(start: Callable[..., NodeProcess]) -> Iterator[Callable[[dict[str, Any]], Film]]:
    films: list[Film] = []

    def begin(parameters: dict[str, Any]) -> Film:
        films.append(Film(start(parameters)))
        return films[-1]

    yield begin
    for made in films:
        made.graph.close()


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {item.key: item.value for item in status.values}


@needs("torch", "openvino")
def test_a_missing_engine_is_said_and_the_node_is_there(film: Callable[[dict[str, Any]], Film], tmp_path: Path) -> None:
    made = film({**OPENVINO, "engine.cache": str(tmp_path)})
    made.until(lambda: made.graph.count("skipped.engine_missing") >= 2, "frames skipped for want of an engine")
    assert "recon" in made.graph.node.get_node_names()
    status = made.graph.status()
    assert status["engine"] == "missing" and status["frames_processed"] == "0" and status["errors"] == "0"
    assert made.says("MISSING: random-small (runtime openvino) has nothing to run with at 128x96")
    made.until(lambda: made.engine().level == DiagnosticStatus.ERROR, "an error in /diagnostics")
    assert "run `recon engine build random-small --size 96x128 --runtime openvino" in made.engine().message
    assert values(made.engine())["state"] == "missing" and values(made.engine())["runtime"] == "none"
    assert made.graph.process.stop() == 0


@needs("torch", "openvino")
def test_an_engine_is_built_while_the_node_is_up(film: Callable[[dict[str, Any]], Film], cache: Path) -> None:
    made = film({**OPENVINO, "engine.build": True, "engine.cache": str(cache)})
    made.until(lambda: made.says("BUILDING: building openvino fp32"), "word of the build")
    assert made.graph.status()["engine"] == "building"
    made.until(lambda: made.engine().level == DiagnosticStatus.WARN, "a warning in /diagnostics")
    assert "frames are skipped until it is ready" in made.engine().message
    made.until(lambda: made.graph.count("frames_processed") >= 2, "two frames through the network", BUILD_TIMEOUT)
    status = made.graph.status()
    assert status["runtime"] == "openvino fp32" and int(status["skipped.engine_building"]) > 0
    made.until(lambda: values(made.engine())["state"] == "ready", "all well in /diagnostics")
    assert made.engine().level == DiagnosticStatus.OK
    found = values(made.engine())
    assert found["precision"] == "fp32" and str(cache) in found["file"]
    assert 0 <= float(found["self_check"]) < 1
    log = made.graph.process.log
    assert "building openvino fp32: " in log and "runs with openvino fp32 at 128x96, self-check at" in log
    assert "Traceback" not in log and "[ERROR]" not in log
    assert made.graph.process.stop() == 0


@needs("torch", "openvino")
def test_build_only_ends_with_what_is_ready(start: Callable[..., NodeProcess], cache: Path) -> None:
    process = start({**OPENVINO, "build_only": True, "engine.size": "240x320", "engine.cache": str(cache)})
    assert process.process.wait(BUILD_TIMEOUT) == 0, process.log
    assert "ready for images of 128x96: openvino fp32 serves" in process.log


@needs("torch")
def test_build_only_says_what_it_cannot_build(start: Callable[..., NodeProcess]) -> None:
    depth = start({"source": "depth", "build_only": True})
    wide = start({**RANDOM, "engine.size": "wide", "build_only": True})
    for process, sentence in (
        (depth, "cannot build: source 'depth' is no network"),
        (wide, "option 'engine.size' is 'wide'; it must be height x width"),
    ):
        assert process.process.wait(20) == 1
        assert sentence in process.log and "Traceback" not in process.log


@needs("torch", "openvino")
def test_the_end_of_the_node_is_the_end_of_the_build(film: Callable[[dict[str, Any]], Film], tmp_path: Path) -> None:
    made = film({**OPENVINO, "engine.build": True, "engine.cache": str(tmp_path)})
    made.until(lambda: made.says("BUILDING"), "word of the build")
    builds = psutil.Process(made.graph.process.process.pid).children(recursive=True)
    assert builds
    assert made.graph.process.stop() == 0
    _, alive = psutil.wait_procs(builds, timeout=10)
    assert not alive and "[ERROR]" not in made.graph.process.log
