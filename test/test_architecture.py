# SPDX-License-Identifier: Apache-2.0
"""Doors open one way: who may import whom in recon_ros (docs: ARCHITECTURE.md), read from the syntax trees.

Left to right, each room may import only rooms on its left; rooms of one rank may not import each other,
except within the base rank, where files refer to each other. `ros` imports `reconstructor` and what is left
of it; nobody imports `ros` but `cli`, and that inside functions.
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "recon_ros"
ROOT = Path(__file__).resolve().parents[1]

RANKS: tuple[tuple[str, ...], ...] = (
    ("geometry", "frame", "errors", "config", "disk", "resources", "messages", "pairing", "intake"),
    ("networks",),
    ("runtimes",),
    ("memory",),
    ("tracking",),
    ("mapping",),
    ("reconstructor",),
    ("datasets", "evaluation", "export", "training"),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
RANK_OF_RECONSTRUCTOR = RANK["reconstructor"]

# Packages that only a ROS installation has. rosbags is not one of them: it reads bags anywhere.
ROS_PACKAGES = {
    "ament_index_python",
    "builtin_interfaces",
    "launch",
    "launch_ros",
    "message_filters",
    "rclpy",
    "rosbag2_py",
    "rpyutils",
    "sensor_msgs_py",
    "tf2_ros",
    "unique_identifier_msgs",
}
ROS_SUFFIXES = ("_msgs", "_srvs", "_interfaces")
TORCH_PACKAGES = {"torch", "torchvision", "torchaudio"}


@dataclass(frozen=True)
class Import:
    """One imported module, as written in one place."""

    target: str
    line: int
    lazy: bool  # inside a function
    typing_only: bool  # under `if TYPE_CHECKING:`


def find_imports(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """All imports in a source text, relative ones resolved; `from a import b` counts as `a.b`."""

    def visit(node: ast.AST, lazy: bool, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy, typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, lazy, typing_only)
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for child in node.body:
                yield from visit(child, lazy, True)
            for child in node.orelse:
                yield from visit(child, lazy, typing_only)
        else:
            inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside, typing_only)

    yield from visit(ast.parse(source), False, False)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def room_of(module: str) -> str:
    """`recon_ros.geometry.se3` → `geometry`; the package itself → ``""``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def check(source: str, module: str, is_package: bool = False) -> list[str]:
    """What breaks the rules in one module: one sentence each, empty when all is well."""
    room = room_of(module)
    if room not in RANK and room not in ("", "ros"):
        return [f"{module}: unknown room {room!r}; give it a rank in RANKS and ARCHITECTURE.md"]
    problems = []
    for item in find_imports(source, module, is_package):
        where = f"{module}:{item.line} imports {item.target}"
        top = item.target.split(".")[0]
        if top == PACKAGE:
            problem = _check_room(room, item)
        elif top in ROS_PACKAGES or top.endswith(ROS_SUFFIXES):
            problem = None if room == "ros" else "ROS packages belong to recon_ros/ros"
        elif top in TORCH_PACKAGES:
            problem = None if item.typing_only else _check_torch(module, item)
        else:
            problem = None
        if problem:
            problems.append(f"{where}: {problem}")
    return problems


def _check_room(room: str, item: Import) -> str | None:
    target = room_of(item.target)
    if target not in RANK and target != "ros":
        # `from recon_ros import Frame`: a name of the package's front door, which is for users.
        return None if room in ("", "cli") else "import the module that defines the name, not the package"
    if target == room:
        return None
    if target == "ros":
        if room == "cli":
            return None if item.lazy or item.typing_only else "cli may import ros inside functions only"
        return "nobody imports ros but cli"
    if room == "":
        # The front door shows what users need; what needs more than the core stays behind it.
        return None if RANK[target] <= RANK_OF_RECONSTRUCTOR else f"the package must not import {target}"
    if room == "ros":
        if RANK[target] <= RANK_OF_RECONSTRUCTOR or target == "export":  # ~/save_map writes files
            return None
        return "ros may import reconstructor and what is left of it only"
    if RANK[target] < RANK[room] or RANK[target] == RANK[room] == 0:
        return None
    return f"{target} is not left of {room}"


def _check_torch(module: str, item: Import) -> str | None:
    room, name = room_of(module), module.rsplit(".", 1)[-1]
    if room in ("networks", "training"):
        return None  # nothing of them is loaded at import time: see test_light_imports
    if room == "runtimes" and name.startswith(("torch", "export")):
        return None
    return "torch belongs to networks, runtimes/torch*, runtimes/export* and training"


def modules() -> list[tuple[str, Path]]:
    """Every module of the package with its file."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_doors(module: str, path: Path) -> None:
    problems = check(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    assert not problems, "\n".join(problems)


def test_all_rooms_are_read() -> None:
    assert {room_of(name) for name, _ in modules()} >= {"geometry", "errors", "config", "cli", "ros"}


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("recon_ros.geometry.se3", "import recon_ros.networks.card", "networks is not left of geometry"),
        ("recon_ros.geometry.se3", "from recon_ros import memory", "memory is not left of geometry"),
        ("recon_ros.geometry.se3", "from ..memory import store", "memory is not left of geometry"),
        ("recon_ros.geometry.se3", "def f():\n    import recon_ros.mapping", "mapping is not left of"),
        ("recon_ros.geometry.se3", "from recon_ros import Frame", "not the package"),
        ("recon_ros.networks.card", "from recon_ros.runtimes import torch_step", "runtimes is not left of"),
        ("recon_ros.runtimes.cache", "from recon_ros.memory import store", "memory is not left of runtimes"),
        ("recon_ros.memory.store", "from recon_ros.mapping import graph", "mapping is not left of memory"),
        ("recon_ros.mapping.graph", "from recon_ros.reconstructor import X", "reconstructor is not left of"),
        ("recon_ros.reconstructor", "from recon_ros.export import ply", "export is not left of"),
        ("recon_ros.datasets.tum", "from recon_ros.evaluation import ate", "evaluation is not left of"),
        ("recon_ros.export.ply", "import recon_ros.cli.main", "cli is not left of export"),
        ("recon_ros.ros.node", "from recon_ros.datasets import bag", "ros may import reconstructor"),
        ("recon_ros.ros.node", "from recon_ros.cli import main", "ros may import reconstructor"),
        ("recon_ros.reconstructor", "def f():\n    import recon_ros.ros.node", "nobody imports ros but cli"),
        ("recon_ros.evaluation.ate", "from recon_ros import ros", "nobody imports ros but cli"),
        ("recon_ros.cli.main", "from recon_ros.ros import node", "inside functions only"),
        ("recon_ros.cli.main", "import rclpy", "ROS packages belong"),
        ("recon_ros.datasets.rosbag", "def f():\n    import sensor_msgs.msg", "ROS packages belong"),
        ("recon_ros.frame", "import tf2_ros", "ROS packages belong"),
        ("recon_ros.cli.demo", "from std_srvs.srv import Trigger", "ROS packages belong"),
        ("recon_ros.mapping.graph", "def f():\n    import torch", "torch belongs"),
        ("recon_ros.runtimes.onnx", "import torch.nn as nn", "torch belongs"),
        ("recon_ros.ros.node", "from torch import nn", "torch belongs"),
        ("recon_ros", "from recon_ros.datasets import tum", "the package must not import datasets"),
        ("recon_ros", "def f():\n    from recon_ros.ros import node", "nobody imports ros but cli"),
        ("recon_ros.kitchen", "", "unknown room 'kitchen'"),
    ],
)
def test_violations_are_reported(module: str, source: str, expected: str) -> None:
    problems = check(source, module)
    assert len(problems) == 1
    assert expected in problems[0]


def test_violation_in_a_package_file() -> None:
    """Relative imports of an `__init__.py` start one level lower."""
    assert check("from ..mapping import graph", "recon_ros.memory", is_package=True)
    assert not check("from .store import Store", "recon_ros.memory", is_package=True)
    assert not check("from . import store", "recon_ros.memory", is_package=True)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("recon_ros.geometry.camera", "from recon_ros.errors import InputError\nfrom .se3 import inverse"),
        ("recon_ros.frame", "from recon_ros.geometry.camera import Camera"),
        ("recon_ros.cli.main", "def demo():\n    from recon_ros.ros.node import main"),
        ("recon_ros.ros.node", "import rclpy\nfrom tf2_msgs.msg import TFMessage\nimport recon_ros.memory"),
        ("recon_ros.datasets.rosbag", "from rosbags.highlevel import AnyReader"),
        ("recon_ros.runtimes.torch_step", "import torch"),
        ("recon_ros.runtimes.export_onnx", "import torch"),
        ("recon_ros.networks.blocks", "import torch"),
        ("recon_ros.memory.store", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("recon_ros", "from recon_ros.reconstructor import Reconstructor\nfrom recon_ros.frame import Frame"),
    ],
)
def test_allowed_imports_pass(module: str, source: str) -> None:
    assert check(source, module) == []


# Import name → name of the distribution, where they differ.
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "open3d": "open3d-cpu", "yaml": "pyyaml"}
# Not in setup.cfg: installed with ROS, with JetPack, or by hand; imported where used, with a clear error.
OPTIONAL = {
    "cuda",
    "nncf",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "pynvml",
    "rerun",
    "safetensors",
    "tensorrt",
    "tensorrt_bindings",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
}


def declared() -> set[str]:
    """The requirements of setup.cfg, normalised."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    names = re.findall(r"^\s*([A-Za-z][\w.-]*)", config["options"]["install_requires"], re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def undeclared(source: str, module: str, requirements: set[str], is_package: bool = False) -> set[str]:
    """Third-party packages that `source` imports and setup.cfg does not name."""
    known = {PACKAGE, *OPTIONAL, *TORCH_PACKAGES, *ROS_PACKAGES, *sys.stdlib_module_names}
    tops = {item.target.split(".")[0] for item in find_imports(source, module, is_package)} - known
    tops = {top for top in tops if not top.endswith(ROS_SUFFIXES)}
    return {top for top in tops if DISTRIBUTIONS.get(top, top).replace("_", "-") not in requirements}


def test_what_is_imported_is_declared() -> None:
    """A package that is only there because another one needs it would vanish one day."""
    requirements = declared()
    for module, path in modules():
        source = path.read_text(encoding="utf-8")
        assert not undeclared(source, module, requirements, path.name == "__init__.py"), module


def test_undeclared_is_reported() -> None:
    source = "import os, cv2, yaml, small_gicp, pandas\nfrom tf2_msgs.msg import TFMessage\nimport torch"
    assert undeclared(source, "recon_ros.frame", declared()) == {"pandas"}


# Loaded where they are used, not by `import recon_ros` (a robot may lack them) nor by `recon --help` (slow).
FRAMEWORKS = {
    "rclpy",
    "torch",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "openvino",
    "nncf",
}
SLOW = FRAMEWORKS | {"open3d", "matplotlib", "evo"}


def loaded_modules(code: str) -> set[str]:
    """The top-level modules in sys.modules after running `code` in a fresh interpreter."""
    code += "\nimport sys\nprint('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split("LOADED ")[-1].split())


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("recon_ros", SLOW), ("recon_ros.cli.main", SLOW), ("recon_ros.reconstructor", FRAMEWORKS)],
)
def test_light_imports(module: str, unwanted: set[str]) -> None:
    assert not loaded_modules(f"import {module}") & unwanted


def test_heavy_imports_are_seen() -> None:
    assert loaded_modules("import matplotlib") & SLOW == {"matplotlib"}
