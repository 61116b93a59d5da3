#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write what each supported TensorRT has by which name: test/data/trt_surfaces/<library>_<version>.json.

The wheels `tensorrt_cu12_bindings` (and the one of TensorRT-RTX) load without TensorRT, a driver or a GPU where
libraries of the right names stand in for it, so that their classes can be listed on any machine. A test then holds
every call of `recon_ros/runtimes/trt` against every version (test/test_trt_surfaces.py).

`.venv/bin/python scripts/trt_surfaces.py --download` gets the wheels with pip; `--wheels DIR` takes them from a
folder. Needs gcc and the Python that the wheels are for. Nothing of the wheels is kept but names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "test" / "data" / "trt_surfaces"
VERSIONS = {
    "tensorrt": ("10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106"),
    "tensorrt_rtx": ("1.7.1.116",),
}
WHEELS = {"tensorrt": "tensorrt_cu12_bindings", "tensorrt_rtx": "tensorrt_rtx_cu12_bindings"}

# Layers and plugins are parsed from ONNX here, never made by hand.
LEFT_OUT = re.compile(r"^(I\w+Layer|IPlugin\w*|Plugin\w*|\w*Plugin\w*|\w+Operation|IAlgorithm\w*|IInt8\w*)$")

# What the bindings' extension asks of the libraries that it is linked with.
STAND_IN = """
void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
void *getPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void *logger, const char *scope) { return 0; }
"""
LIBRARIES = {
    "tensorrt": [
        f"lib{name}.so.{major}" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser") for major in (10, 11)
    ],
    "tensorrt_rtx": [f"lib{name}.so.1" for name in ("tensorrt_rtx", "tensorrt_onnxparser_rtx")],
}

# Runs in a process of its own per version: two of one name cannot be loaded together.
LIST = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
names = sorted(name for name in dir(trt) if not name.startswith("_"))
kinds = {name: getattr(trt, name) for name in names if isinstance(getattr(trt, name), type)}
public = lambda kind: sorted(name for name in dir(kind) if not name.startswith("_"))
print(json.dumps({"version": trt.__version__, "names": names, "classes": {n: public(k) for n, k in kinds.items()}}))
"""


def stand_in_libraries(folder: Path, names: list[str]) -> None:
    """Empty libraries of these names."""
    source = folder / "stand_in.c"
    source.write_text(STAND_IN)
    for name in names:
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}"]
        subprocess.run(["gcc", *options, "-o", str(folder / name), str(source)], check=True)


def download(library: str, version: str, folder: Path) -> None:
    """Get a wheel with pip."""
    requirement = f"{WHEELS[library]}=={version}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*command, requirement], check=True)


def surface(library: str, version: str, wheels: Path) -> dict[str, object]:
    """What the bindings of this version have, as the interpreter sees it.

    Raises:
        SystemExit: no such wheel.
    """
    found = sorted(wheels.glob(f"{WHEELS[library]}-{version}-*.whl"))
    if not found:
        raise SystemExit(f"no wheel of {WHEELS[library]} {version} in {wheels}; use --download")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with zipfile.ZipFile(found[0]) as wheel:
            wheel.extractall(folder)
        stand_in_libraries(folder, LIBRARIES[library])
        return listed(library, {"LD_LIBRARY_PATH": scratch, "PYTHONPATH": scratch})


def listed(library: str, environment: dict[str, str]) -> dict[str, object]:
    """What the bindings have that an interpreter with these environment variables finds."""
    command = [sys.executable, "-c", LIST, f"{library}_bindings"]
    run = subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, text=True)
    return without_layers({"library": library, **json.loads(run.stdout)})


def without_layers(found: dict[str, object]) -> dict[str, object]:
    """Less what nobody here would call."""
    names, classes = found["names"], found["classes"]
    assert isinstance(names, list) and isinstance(classes, dict)
    kept = {name: members for name, members in classes.items() if not LEFT_OUT.match(name)}
    return {**found, "names": [name for name in names if not LEFT_OUT.match(name)], "classes": kept}


def written(found: dict[str, object]) -> str:
    """As JSON, a line for each class: small, and readable where two versions differ."""
    classes = found["classes"]
    assert isinstance(classes, dict)
    head = {key: value for key, value in found.items() if key != "classes"}
    lines = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    members = ",\n".join(f'"{name}": {json.dumps(classes[name])}' for name in sorted(classes))
    return "{\n" + ",\n".join([*lines, '"classes": {\n' + members + "\n}"]) + "\n}\n"


def main() -> None:
    """Write all surfaces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--download", action="store_true", help="get the wheels with pip")
    parser.add_argument("--wheels", type=Path, action="append", default=[], help="folder with wheels; several may do")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON files go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch)
        for folder in options.wheels:
            for wheel in folder.glob("*_bindings-*.whl"):
                (wheels / wheel.name).symlink_to(wheel.resolve())
        for library, versions in VERSIONS.items():
            for version in versions:
                if options.download:
                    download(library, version, wheels)
                text = written(surface(library, version, wheels))
                path = options.out / f"{library}_{version}.json"
                path.write_text(text, encoding="utf-8")
                print(f"{path.name}: {len(text) // 1024} kB")


if __name__ == "__main__":
    main()
