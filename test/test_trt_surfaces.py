# SPDX-License-Identifier: Apache-2.0
"""Every call of TensorRT that is made here exists in every version that is supported.

Told twice: from the syntax trees, by the names that TensorRT's objects always go by (see its __init__.py), and by
running builder and runner on modules that have the names of one version and no others. The surfaces are written by
scripts/trt_surfaces.py from NVIDIA's own bindings.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from test_trt_runner import Bench, images
from trt_fake import Behaviour, FakeCuda, FakeTrt, load_surface, surface_names

from recon_ros.errors import NetworkError
from recon_ros.runtimes.trt.builder import BuildOptions, build_engine
from recon_ros.runtimes.trt.engine import DTYPES
from recon_ros.runtimes.trt.library import OLDEST

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recon_ros" / "runtimes" / "trt"

# Expressions that are TensorRT's objects, and of which class.
OBJECTS = {
    "trt": "module",
    "library.module": "module",
    "self._library.module": "module",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "tensor": "ITensor",
    "parser": "OnnxParser",
    "problem": "ParserError",
    "config": "IBuilderConfig",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "severity": "ILoggerSeverity",
    # In rtx.py
    "self.config": "IRuntimeConfig",
    "self._cache": "IRuntimeCache",
}
FILES_WITHOUT = {"__init__", "buffers", "cuda", "cuda_python", "device", "files", "library", "runner"}
"""Files in which nothing is TensorRT's."""

ONLY_RTX = "rtx"
Use = tuple[str, str]


def uses(source: str) -> set[Use]:
    """(class, member) of all that a source text asks of TensorRT's objects."""
    found: set[Use] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        base = ast.unparse(node.value)
        if (kind := OBJECTS.get(base)) is not None:
            found.add((kind, node.attr))
        elif isinstance(node.value, ast.Attribute) and OBJECTS.get(ast.unparse(node.value.value)) == "module":
            found.add((node.value.attr, node.attr))  # a member of an enumeration, or a base's __init__
    return found


def missing(surface: dict[str, Any], asked: set[Use]) -> list[str]:
    """What a version lacks of it."""
    classes = {**surface["classes"], "module": surface["names"]}
    return sorted(f"{kind}.{name}" for kind, name in asked if name not in classes[kind])


def sources() -> dict[str, set[Use]]:
    return {path.stem: uses(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.py"))}


@pytest.mark.parametrize("name", surface_names())
def test_all_that_is_asked_for_is_there(name: str) -> None:
    surface = load_surface(name)
    for file, asked in sources().items():
        if file == ONLY_RTX and surface["library"] != "tensorrt_rtx":
            continue
        asked = {(kind, member) for kind, member in asked if kind != "ILoggerSeverity"}
        assert not missing(surface, asked), f"recon_ros/runtimes/trt/{file}.py on {name}"
        if file == "engine":
            assert not missing(surface, {("DataType", member) for member in DTYPES.values()})


def test_versions() -> None:
    versions = {load_surface(name)["library"]: load_surface(name)["version"] for name in surface_names()}
    assert len(surface_names()) == 7 and set(versions) == {"tensorrt", "tensorrt_rtx"}
    full = [load_surface(name)["version"] for name in surface_names() if "rtx" not in name]
    assert min(tuple(map(int, version.split(".")[:2])) for version in full) == OLDEST["tensorrt"]


def test_what_only_rtx_has_is_in_its_file() -> None:
    """`rtx.py` holds nothing that could as well be elsewhere: half of it is missing in 10.3."""
    asked = sources()[ONLY_RTX]
    lacking = missing(load_surface("tensorrt_10.3.0"), {use for use in asked if use[0] in ("IBuilderConfig", "module")})
    assert set(lacking) >= {"IBuilderConfig.set_compute_capability", "module.ComputeCapability"}


def test_the_eye_sees() -> None:
    source = "def f(trt, config):\n    config.int8_calibrator = 1\n    trt.BuilderFlag.FP16\n    trt.no_such\n"
    asked = uses(source)
    assert asked == {
        ("IBuilderConfig", "int8_calibrator"),
        ("module", "BuilderFlag"),
        ("BuilderFlag", "FP16"),
        ("module", "no_such"),
    }
    assert missing(load_surface("tensorrt_10.3.0"), asked) == ["module.no_such"]
    assert missing(load_surface("tensorrt_11.4.0.106"), asked) == [
        "BuilderFlag.FP16",
        "IBuilderConfig.int8_calibrator",
        "module.no_such",
    ]


def run_all(name: str, folder: Path) -> set[Use]:
    """Build and run everything on one version: what was asked of it."""
    surface = load_surface(name)
    bench = Bench(folder, name)
    executor = bench.open()
    memory = executor.initial()
    for image in images(3):
        memory, _ = executor.step(memory, image)
    executor.write(executor.read(memory))
    executor.close()
    again = Bench(folder, name)  # now there are kernels of TensorRT-RTX
    again.open().close()

    trt = FakeTrt(surface, FakeCuda())
    is_rtx = trt.library.is_rtx
    onnx = folder / "decode.onnx"
    onnx.write_bytes(b"a graph")
    cache = folder / "timing"
    target = "8.6,12.0" if is_rtx else None
    for tf32 in (False, True):  # the second time there is a timing cache
        options = BuildOptions(compute_capability=target, tf32=tf32, timing_cache=cache)
        build_engine(trt.library, onnx, folder / "out.engine", options)
    assert cache.exists() != is_rtx

    broken = FakeTrt(surface, FakeCuda(), behaviour=Behaviour(parse_errors=("unsupported",)))
    with pytest.raises(NetworkError, match="unsupported"):
        build_engine(broken.library, onnx, folder / "no.engine", BuildOptions())
    dynamic = FakeTrt(surface, FakeCuda(), behaviour=Behaviour(input_shape=(-1, 3)))
    with pytest.raises(NetworkError, match=r"input x of decode.onnx has the shape \(-1, 3\)"):
        build_engine(dynamic.library, onnx, folder / "no.engine", BuildOptions())
    return set().union(*(fake.used for fake in (bench.trt, again.trt, trt, broken, dynamic)))


@pytest.mark.parametrize("name", surface_names())
def test_builder_and_runner_on_each_version(name: str, tmp_path: Path) -> None:
    """No AttributeError; and what the eye sees in the sources is really what is called."""
    used = run_all(name, tmp_path)
    is_rtx = load_surface(name)["library"] == "tensorrt_rtx"
    expected = {
        use
        for file, asked in sources().items()
        for use in asked
        if (file == ONLY_RTX) <= is_rtx and use[0] != "ILoggerSeverity"
    }
    only_full = {use for use in expected if use[0] == "ITimingCache" or "timing_cache" in use[1]}
    if is_rtx:
        expected -= only_full
    assert expected - used == set(), "never called in this test"
    seen = used - {("DataType", member) for member in DTYPES.values()}
    assert seen - expected == set(), "called, but under a name that OBJECTS does not list"


def test_the_fake_refuses_what_a_version_lacks() -> None:
    new = FakeTrt(load_surface("tensorrt_11.4.0.106"), FakeCuda())
    with pytest.raises(AttributeError, match=r"11\.4.*BuilderFlag has no FP16"):
        _ = new.BuilderFlag.FP16
    with pytest.raises(AttributeError, match="has no ComputeCapability"):
        _ = new.ComputeCapability
    builder = new.Builder(new.library.logger)
    with pytest.raises(AttributeError, match="Builder has no platform_has_fast_fp16"):
        _ = builder.platform_has_fast_fp16
    config = builder.create_builder_config()
    with pytest.raises(AttributeError, match="IBuilderConfig has no int8_calibrator"):
        config.int8_calibrator = None


def test_files_without_tensorrt() -> None:
    """That a file asks nothing of TensorRT is either said, or a name is missing in OBJECTS."""
    assert {file for file, asked in sources().items() if not asked} == FILES_WITHOUT


def test_script() -> None:
    """What is kept of TensorRT-RTX is what the script writes of the installed one."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    path = ROOT / "test" / "data" / "trt_surfaces" / f"tensorrt_rtx_{trt.__version__}.json"
    if not path.exists():
        pytest.skip(f"no surface of TensorRT-RTX {trt.__version__} is kept")
    spec = importlib.util.spec_from_file_location("trt_surfaces", ROOT / "scripts" / "trt_surfaces.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.written(script.listed("tensorrt_rtx", {})) == path.read_text(encoding="utf-8")
