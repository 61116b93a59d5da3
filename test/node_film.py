# SPDX-License-Identifier: Apache-2.0
"""Nodes with a small network that see the same film, what each of them says meanwhile, and a cache they share."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from node_harness import OWN_MOUNT, Graph, NodeProcess, Walker
from textured_room import TexturedRoom

from recon_ros.ros import interface
from recon_ros.runtimes.bundle import PLAN
from recon_ros.runtimes.engine_build import BuildProcess
from recon_ros.runtimes.engine_request import BuildRequest

RANDOM = {"source": "random-small", **OWN_MOUNT}
OPENVINO = {**RANDOM, "runtime": "openvino", "precision": "fp32"}
BUILD_TIMEOUT = 180.0
"""Seconds: PyTorch is loaded and exports, on a machine that may be busy."""
NAMES = ("recon", "second", "third")


def needs(*modules: str) -> pytest.MarkDecorator:
    """Not imported here: the node is a process of its own."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="node_cache")


def shared_cache() -> Path:
    """One for all tests, so that one export does for most of them; not to be damaged. Empty at first."""
    return Path(_folder().name)


def filled_cache() -> Path:
    """It, with the bundle of `OPENVINO` in it: that of an earlier test, or, where there was none, made now."""
    if not find_bundles(shared_cache()):
        build = BuildProcess(
            BuildRequest(
                model="random-small",
                width=128,
                height=96,
                runtime="openvino",
                precision="fp32",
                cache=str(shared_cache()),
            )
        )
        build.start()
        assert build.wait(BUILD_TIMEOUT) and build.done, build.failed
    return shared_cache()


def find_bundles(cache: Path) -> list[Path]:
    """Folders of the bundles that lie in a cache."""
    return [path.parent for path in cache.glob(f"onnx/*/{PLAN}") if path.parent.suffix != ".part"]


class Stage:
    """Starts nodes and films; `close` ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: list[NodeProcess] = []
        self._films: list[Film] = []

    def start(self, parameters: dict[str, Any], name: str = NAMES[0]) -> NodeProcess:
        self._nodes.append(NodeProcess(self._folder / f"node_{len(self._nodes)}", parameters, name=name))
        return self._nodes[-1]

    def film(self, *parameters: dict[str, Any]) -> Film:
        """A film that as many nodes see as there are sets of parameters."""
        nodes = [self.start(given, name) for given, name in zip(parameters, NAMES, strict=False)]
        self._films.append(Film(*nodes))
        return self._films[-1]

    def close(self) -> None:
        for node in self._nodes:
            node.end()
        for film in self._films:
            film.graph.close()


class Film:
    """Sends images to nodes until something is seen in their answers; the first of them is called `recon`."""

    def __init__(self, first: NodeProcess, *others: NodeProcess) -> None:
        self.nodes = (first, *others)
        self.graph = Graph(first)
        for node in others:
            self.graph.listen(f"/{node.name}/status", interface.STATUS.type, interface.STATUS.qos)
        for node in self.nodes:
            node.wait(
                lambda: self.graph.images.get_subscription_count() >= len(self.nodes), "subscription to the image"
            )
        self._walker = Walker(self.graph, TexturedRoom())

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 20.0) -> None:
        """Send ten images a second until `condition` is true."""
        end = time.monotonic() + timeout
        while True:
            self._walker.send()
            time.sleep(0.1)
            if condition():
                return
            ended = [node.name for node in self.nodes if node.process.poll() is not None]
            if ended or time.monotonic() > end:
                why = f"{', '.join(ended)} ended" if ended else f"{timeout} s have passed"
                pytest.fail("\n".join([f"{why}, and no {what}; the nodes say:", *(node.log for node in self.nodes)]))

    def until_each(self, condition: Callable[[NodeProcess], Any], what: str, timeout: float = 20.0) -> None:
        """The same, until it is true of every node at once."""
        self.until(lambda: all(map(condition, self.nodes)), what, timeout)

    # -- ~/status ---------------------------------------------------------------------------------------------

    def statuses(self, node: NodeProcess | None = None) -> list[DiagnosticStatus]:
        """All of a node, the first without one, since the film began."""
        node = node or self.nodes[0]
        return self.graph.received["~/status" if node is self.nodes[0] else f"/{node.name}/status"]

    def says(self, text: str, node: NodeProcess | None = None) -> bool:
        """Whether ~/status has these words in its message now."""
        return any(text in status.message for status in self.statuses(node)[-1:])

    def has_said(self, text: str, node: NodeProcess | None = None) -> bool:
        """Whether it ever had."""
        return any(text in status.message for status in self.statuses(node))

    def value(self, key: str, node: NodeProcess | None = None) -> str:
        """Of the newest ~/status; empty while there is none."""
        return next((item.value for s in self.statuses(node)[-1:] for item in s.values if item.key == key), "")

    def count(self, key: str, node: NodeProcess | None = None) -> int:
        """A counter of the newest ~/status."""
        return int(self.value(key, node) or "0")

    # -- /diagnostics -----------------------------------------------------------------------------------------

    def engine(self) -> DiagnosticStatus:
        """The newest Engine task of the first node."""

        def newest() -> DiagnosticStatus | None:
            arrays = self.graph.received["/diagnostics"]
            return next((s for array in reversed(arrays) for s in array.status if s.name == "recon: Engine"), None)

        return self.graph.process.wait(newest, "/diagnostics")
