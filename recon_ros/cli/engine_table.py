# SPDX-License-Identifier: Apache-2.0
"""What `recon engine check` and `list` do: tables."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context, parent_process
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recon_ros.errors import NetworkError
from recon_ros.networks.fetch import cache_folder
from recon_ros.networks.small import SMALL
from recon_ros.runtimes.bundle import PLAN
from recon_ros.runtimes.engine_cache import EngineCache, Entry, Missing
from recon_ros.runtimes.engine_key import TITLES, EngineKey, misfit
from recon_ros.runtimes.engine_request import BuildRequest
from recon_ros.runtimes.trt.builder import BuildOptions, build_engine
from recon_ros.runtimes.trt.device import Gpu, find_gpu
from recon_ros.runtimes.trt.library import Library, load_library


def small_models() -> tuple[str, ...]:
    """Names of the small networks, of every family and head."""
    return tuple(SMALL)


class Silent:
    """Hears of progress and goes on."""

    def update(self, phase: str, fraction: float) -> bool:
        """See `ProgressSink.update`."""
        return True


@dataclass(frozen=True)
class Row:
    """One graph of one model for one target, or for several that one build serves.

    Attributes:
        model, graph, target: what was tried; `graph` is empty when the model was not even exported.
        seconds: how long it took.
        megabytes: of the engine.
        problem: why there is none; empty when all is well.
    """

    model: str
    graph: str
    target: str
    seconds: float
    megabytes: float = 0.0
    problem: str = ""


def show_check(requests: Sequence[BuildRequest]) -> bool:
    """Export and build each, and show what came of it; whether all is well.

    Raises:
        NetworkError: TensorRT-RTX is not installed.
    """
    library = load_library("tensorrt_rtx")
    rows: list[Row] = []
    with Console(stderr=True).status("checking") as status:
        for done, found in enumerate(_check_all(requests)):
            rows += found
            status.update(f"checked {done + 1} of {len(requests)}")
    table = Table("model", "graph", "target", "seconds", "MB", "ok", box=None, pad_edge=False)
    for row in rows:
        mark = "[bold red]MISS[/]" if row.problem else "[green]ok[/]"
        size = f"{row.megabytes:.2f}" if not row.problem else ""
        table.add_row(row.model, row.graph or "export", row.target, f"{row.seconds:.1f}", size, mark)
    console = _wide_console()
    console.print(table)
    missed = [row for row in rows if row.problem]
    for row in missed:
        where = " ".join(part for part in (row.model, row.graph, row.target) if part)
        console.print(f"[red]{escape(where)}[/]: {escape(row.problem)}", highlight=False, soft_wrap=True)
    console.print(
        f"{len(rows) - len(missed)} of {len(rows)} builds with TensorRT-RTX {library.version}, nothing was executed",
        highlight=False,
    )
    return not missed


def _check_all(requests: Sequence[BuildRequest]) -> Iterator[list[Row]]:
    """The rows of each; several are checked at once, one on each core."""
    if len(requests) == 1:
        yield check(requests[0])
        return
    workers = min(len(requests), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker) as pool:
        try:
            yield from pool.map(check, requests)
        except BrokenProcessPool as error:
            raise NetworkError("a process that checks was ended, perhaps for want of memory") from error


def _begin_worker() -> None:
    # Processes that share the cores do not wait for each other's threads; read when PyTorch is loaded.
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Of itself a worker goes on when its parent is killed, and then waits for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def check(request: BuildRequest) -> list[Row]:
    """A row for the export and one for each graph, in a folder that is removed afterwards."""
    return list(_check(request, load_library("tensorrt_rtx")))


def _check(request: BuildRequest, library: Library) -> Iterator[Row]:
    from recon_ros.runtimes.engine_prepare import build_options, export

    root = request.cache_root
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="check-", dir=root) as folder:
        started = time.monotonic()
        try:
            bundle = export(request, Path(folder) / "bundle", Silent())
        except Exception as error:  # whatever PyTorch raises, the others are checked as well
            problem = str(error) if isinstance(error, NetworkError) else f"{type(error).__name__}: {error}"
            yield Row(request.model, "", "", time.monotonic() - started, problem=problem)
            return
        yield Row(request.model, "", "", time.monotonic() - started, _megabytes(bundle.folder))
        options = build_options(request, None)
        for graph in bundle.plan.graphs:
            yield from _build(request, graph.name, bundle.onnx(graph.name), library, options)


def _build(request: BuildRequest, graph: str, onnx: Path, library: Library, options: BuildOptions) -> Iterator[Row]:
    """One build for all targets; when it fails, one for each, to see whose fault it is."""
    target = str(options.compute_capability)
    engine = onnx.with_suffix(".engine")
    started = time.monotonic()
    try:
        build_engine(library, onnx, engine, options, Silent())
    except NetworkError as error:
        whole = Row(request.model, graph, target, time.monotonic() - started, problem=str(error))
        singles = [
            row
            for single in target.split(",")
            if single != target
            for row in _build(request, graph, onnx, library, replace(options, compute_capability=single))
        ]
        # Every target for the same reason, or each of them alone is fine: then it is said once.
        yield from singles if len({row.problem for row in singles}) > 1 else [whole]
        return
    yield Row(request.model, graph, target, time.monotonic() - started, engine.stat().st_size / 1e6)
    engine.unlink()


# The cache


def show_list(cache: Path | None) -> None:
    """Graphs and engines in a cache, and whether this machine can use them."""
    root = cache or cache_folder()
    console = _wide_console()
    bundles = list(_bundles(root / "onnx"))
    table = Table("graphs", "MB", "made by", "", box=None, pad_edge=False)
    for bundle in bundles:
        table.add_row(bundle.folder.name, f"{_megabytes(bundle.folder):.1f}", bundle.made_by, bundle.problem)
    if bundles:
        console.print(table)
    entries = EngineCache(root / "engines").entries()
    table = Table("engine", "MB", "for", "built", "usable here", box=None, pad_edge=False)
    digests = {bundle.digest for bundle in bundles}
    machine = _Machine()
    for entry in entries:
        table.add_row(entry.folder.name, f"{_megabytes(entry.folder):.1f}", *_facts(entry, machine, digests))
    if entries:
        console.print(table)
    nothing = "" if bundles or entries else "nothing is built yet; "
    console.print(f"[dim]{nothing}graphs and engines lie in {escape(str(root))}[/]", highlight=False, soft_wrap=True)


def _facts(entry: Entry, machine: _Machine, digests: set[str]) -> tuple[str, str, str]:
    found = entry.found
    if isinstance(found, Missing):
        return "", "", f"[red]no: {escape(found.reason)}[/]"
    key = found.key
    problem = machine.misfit(key)
    if not problem and key.bundle_digest not in digests:
        problem = "its graphs are no longer here"
    purpose = f"{key.gpu} {key.compute_capability}".strip()
    return purpose, f"{found.built_at[:10]}, {found.duration_s:.0f} s", escape(f"no: {problem}") if problem else "yes"


@dataclass(frozen=True)
class _BundleRow:
    folder: Path
    digest: str = ""
    made_by: str = ""
    problem: str = ""


def _bundles(folder: Path) -> Iterator[_BundleRow]:
    """What lies in the folder of graphs; files are not read to the last byte."""
    for plan in sorted(folder.glob(f"*/{PLAN}")):
        if plan.parent.suffix in (".part", ".old"):
            continue
        try:
            data = json.loads(plan.read_text(encoding="utf-8"))
            yield _BundleRow(plan.parent, str(data["digest"]), str(data["facts"]["made_by"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield _BundleRow(plan.parent, problem=f"[red]damaged: {escape(str(error))}[/]")


class _Machine:
    """Libraries and GPU of this machine, looked for once and only when something is for them."""

    @cached_property
    def gpu(self) -> Gpu | None:
        return find_gpu()

    def misfit(self, key: EngineKey) -> str:
        """Why an engine does not run here; empty when nothing is known that speaks against it."""
        try:
            library = load_library(key.library)
        except NetworkError:
            return f"{TITLES.get(key.library, key.library)} is not installed here"
        return misfit(key, library, self.gpu)


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6


def _wide_console() -> Console:
    """A table in a pipe is not cut to 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
