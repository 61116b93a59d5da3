# SPDX-License-Identifier: Apache-2.0
"""From a request to files: the exported graphs, and the engines of the runtimes that need engines."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.runtimes.bundle import PLAN, Bundle, bundle_folder, load_bundle
from recon_ros.runtimes.engine_cache import EngineCache, Engines
from recon_ros.runtimes.engine_key import EngineKey, key_of
from recon_ros.runtimes.engine_request import TARGETS, BuildRequest, check_size
from recon_ros.runtimes.torch_network import SEEDED, network_card, network_digest, open_network
from recon_ros.runtimes.trt.builder import BuildOptions, build_engine
from recon_ros.runtimes.trt.device import Gpu, find_gpu
from recon_ros.runtimes.trt.library import Library, load_library
from recon_ros.runtimes.trt.progress import Part, ProgressSink, tell

EXPORTED = 0.3
"""Share of the whole that an export is taken to be; the engines are the rest."""
ROUNDED = 0.7
"""The same where rounding to int8 follows."""
INT8 = "int8"
"""Made for OpenVINO from the graphs in fp32; all other precisions are exported."""


@dataclass(frozen=True)
class Prepared:
    """What a request asked for.

    Attributes:
        bundle: the exported graphs.
        engines: None where the runtime needs none.
        why: what was missing, or wrong with what was here; empty where everything was here already.
    """

    bundle: Bundle
    engines: Engines | None = None
    why: str = ""


def prepare_paths(request: BuildRequest, progress: ProgressSink) -> dict[str, Any]:
    """`prepare`, and where the results lie, as JSON can say it."""
    prepared = prepare(request, progress)
    engines = str(prepared.engines.folder) if prepared.engines else ""
    paths = {"bundle": str(prepared.bundle.folder), "engines": engines, "why": prepared.why}
    if prepared.bundle.precision != INT8:
        return paths
    from recon_ros.runtimes.int8 import read_cost

    return paths | {"cost": str(read_cost(prepared.bundle))}


def prepare(request: BuildRequest, progress: ProgressSink) -> Prepared:
    """Make what is missing of a request; what is here already is only checked.

    Raises:
        BuildCancelled: `progress` asked for the end.
        NetworkError: the weights, PyTorch or the runtime's library are missing, the size is not usable, a graph
            cannot be exported or built, or the disk is full.
    """
    if request.runtime == "openvino":
        return _find_or_export(request, progress)
    library = load_library(request.runtime)  # said before the minutes of an export
    gpu = find_gpu()
    if gpu is None and not library.is_rtx:
        raise NetworkError(f"{library} builds engines for the GPU of this machine, and none is found here")
    exported = _find_or_export(request, Part(progress, 0.0, EXPORTED))
    options = build_options(request, gpu)
    key = key_of(exported.bundle, library, gpu, options)
    cache = EngineCache(request.cache_root / "engines")
    found = cache.find(key)
    if isinstance(found, Engines):
        return replace(exported, engines=found)
    part = Part(progress, EXPORTED, 1.0)
    tell(part, f"{found.reason}; building", 0.0)
    return Prepared(exported.bundle, _build(cache, key, exported.bundle, library, options, part), found.reason)


# Graphs


def _find_or_export(request: BuildRequest, progress: ProgressSink) -> Prepared:
    """The graphs of a request; exported if they are not in their folder, or not whole."""
    folder = bundle_place(request)
    why = "not exported yet"
    if request.out:
        if folder.exists() and not (folder / PLAN).exists() and (folder.is_file() or any(folder.iterdir())):
            raise NetworkError(f"{folder} is there and holds no exported network; name another folder, or a new one")
        # What lies there may be of another network: the export looks at it.
        why = ""
    elif (folder / PLAN).exists():
        try:
            return Prepared(load_bundle(folder))
        except NetworkError as error:
            why = str(error)
    make = _quantise if request.precision == INT8 else export
    return Prepared(make(request, folder, progress), why=why)


def _quantise(request: BuildRequest, folder: Path, progress: ProgressSink) -> Bundle:
    """Round the graphs in float32 to int8; those are exported first if they are not here."""
    from recon_ros.runtimes import int8

    exact = _find_or_export(replace(request, precision="fp32", out=""), Part(progress, 0.0, ROUNDED))
    return int8.quantise(exact.bundle, folder=folder, progress=Part(progress, ROUNDED, 1.0))


def bundle_place(request: BuildRequest, digest: str = "") -> Path:
    """The folder of a request's graphs. `digest` is that of the weights, where it is known already.

    Raises:
        NetworkError: the weights are not here, nor anything that was exported from them.
    """
    if request.out:
        return Path(request.out).expanduser()
    model = network_card(request.model).name
    folder = bundle_folder(
        model,
        request.width,
        request.height,
        request.precision,
        request.attention,
        {"update_rule": request.update_rule, "outputs": request.outputs},
        digest or _find_digest(request, model),
    )
    return request.cache_root / "onnx" / folder.name


def _find_digest(request: BuildRequest, model: str) -> str:
    """Of the weights; where they are not here, of those in the newest graphs, which another machine exported."""
    try:
        return network_digest(request.model, request.weights, request.seeded)
    except NetworkError:
        digest = "" if request.weights else exported_digest(request.cache_root / "onnx", model)
        if not digest:
            raise
        return digest


def exported_digest(folder: Path, model: str) -> str:
    """Digest of the weights in the newest exported graphs of a network; empty when there are none.

    Random weights, exported to try something, do not count.
    """
    for path in sorted(folder.glob(f"*/{PLAN}"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
            if facts["model"] == model and not str(facts["weights_digest"]).startswith(SEEDED):
                return str(facts["weights_digest"])
    return ""


def export(request: BuildRequest, folder: Path, progress: ProgressSink) -> Bundle:
    """Export into a folder, which appears whole or not at all.

    Raises:
        BuildCancelled: `progress` asked for the end.
        NetworkError: see `prepare`.
    """
    check_size(network_card(request.model), request.width, request.height)
    tell(progress, "loading PyTorch and the weights", 0.0)
    opened = open_network(request.model, request.weights, request.seeded)
    from recon_ros.networks.graphs import GraphOptions
    from recon_ros.runtimes.export import export_bundle

    options = GraphOptions(request.update_rule, request.outputs)
    return export_bundle(
        opened,
        request.width,
        request.height,
        request.precision,
        request.attention,
        options,
        folder,
        progress,
    )


# Engines


def build_options(request: BuildRequest, gpu: Gpu | None) -> BuildOptions:
    """How the engines of a request are built on this machine."""
    if request.runtime != "tensorrt_rtx":
        return BuildOptions(timing_cache=request.cache_root / "engines" / "timing.cache")
    here = (gpu.compute_capability,) if gpu else TARGETS
    return BuildOptions(compute_capability=",".join(request.targets or here))


def _build(
    cache: EngineCache, key: EngineKey, bundle: Bundle, library: Library, options: BuildOptions, progress: ProgressSink
) -> Engines:
    def make(folder: Path) -> None:
        build_all(bundle, library, options, folder, progress)

    def waiting(seconds: float) -> bool:
        return progress.update("waiting for another process that builds it", 0.0)

    return cache.build(key, make, waiting)


def build_all(bundle: Bundle, library: Library, options: BuildOptions, folder: Path, progress: ProgressSink) -> None:
    """``<graph>.engine`` in `folder` for every graph of a bundle."""
    names = [graph.name for graph in bundle.plan.graphs]
    for index, name in enumerate(names):
        title = f"building {name} ({index + 1} of {len(names)})"
        part = Part(progress, index / len(names), (index + 1) / len(names))
        build_engine(library, bundle.onnx(name), folder / f"{name}.engine", options, Titled(part, title))


@dataclass(frozen=True)
class Titled:
    """A sink under whose title all phases are one."""

    sink: ProgressSink
    title: str

    def update(self, phase: str, fraction: float) -> bool:
        """See `ProgressSink.update`."""
        return self.sink.update(self.title, fraction)
