# SPDX-License-Identifier: Apache-2.0
"""Finds, opens and builds the ways to execute one network, from what is installed and in the cache. Knows no torch."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from recon_ros.config import Config
from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes import golden
from recon_ros.runtimes.bundle import PLAN, Bundle, load_bundle
from recon_ros.runtimes.choice import Build, Checked, Lack, Machine, Opened, Size, Unusable
from recon_ros.runtimes.engine_build import BuildProcess
from recon_ros.runtimes.engine_cache import EngineCache, Engines, set_aside
from recon_ros.runtimes.engine_key import key_of
from recon_ros.runtimes.engine_prepare import INT8, build_options, bundle_place, exported_digest
from recon_ros.runtimes.engine_request import BuildRequest
from recon_ros.runtimes.executor import Executor
from recon_ros.runtimes.families import make_step
from recon_ros.runtimes.ladder import HALF_ATTENTION, Variant
from recon_ros.runtimes.shipped import find_shipped
from recon_ros.runtimes.torch_network import network_card, network_digest
from recon_ros.runtimes.trt.device import Gpu, find_gpu
from recon_ros.runtimes.trt.library import load_library

LOG = logging.getLogger("recon_ros.runtimes")


class Files(NamedTuple):
    """What a variant runs from."""

    bundle: Bundle
    engines: Engines | None = None


class NetworkWorkshop:
    """A `Workshop` (see `recon_ros/runtimes/choice.py`) for the network that the configuration names.

    Raises:
        NetworkError: nobody answers to the name, or neither its weights nor graphs exported from them are here.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._name = config.source
        self.card: ModelCard = network_card(config.source)
        self._no_weights = ""
        self._digest = self._find_digest()
        self._files: dict[Variant, Files] = {}
        self._bundles: dict[Path, tuple[int, Bundle]] = {}
        self._renewed: set[Variant] = set()

    @functools.cached_property
    def machine(self) -> Machine:
        """What there is to compute on. PyTorch is asked, which takes seconds, only where the driver has a GPU."""
        cuda = bf16 = False
        # A library that is there and broken is no reason to do without the others: it fails when it is to be used.
        with contextlib.suppress(NetworkError, ImportError, OSError):
            if _is_installed("openvino"):
                from recon_ros.runtimes.openvino_executor import cpu_precisions

                bf16 = "bf16" in cpu_precisions()
        with contextlib.suppress(ImportError, OSError):
            if self._gpu is not None and _is_installed("torch"):
                from recon_ros.runtimes.torch_device import has_cuda

                cuda = has_cuda()
        return Machine(cuda, bf16)

    # -- what is there ---------------------------------------------------------------------------------------

    def lack(self, variant: Variant, size: Size | None) -> Lack | None:
        """See `Workshop.lack`. Files that are there are read to the last byte."""
        lack = self._lack_here(variant)
        if lack is not None or size is None or variant.runtime == "torch":
            return lack
        try:
            found = self._find(variant, size)
        except OSError as error:  # a cache that may not be read, or a file that somebody removes right now
            return Lack(f"the cache cannot be read: {error.filename}: {error.strerror or error}")
        if isinstance(found, Lack):
            return found
        self._files[variant] = found
        return None

    def _lack_here(self, variant: Variant) -> Lack | None:
        """What no build can bring."""
        if variant.runtime == "torch":
            if not _is_installed("torch"):
                return Lack("PyTorch is not installed: pip install torch")
            return Lack(self._no_weights) if self._no_weights else None
        if variant.runtime == "openvino":
            if not _is_installed("openvino"):
                return Lack("OpenVINO is not installed: pip install openvino")
            return None
        if self._gpu is None:
            return Lack("no NVIDIA GPU here")
        try:
            load_library(variant.runtime)
        except NetworkError as error:
            return Lack(str(error))
        return None

    def _find(self, variant: Variant, size: Size) -> Files | Lack:
        request = self._request(variant, size)
        folder = bundle_place(request, self._digest)
        if not (folder / PLAN).exists():
            folder = self._shipped(request) or folder
        if not (folder / PLAN).exists():
            return self._to_be_made(variant, request, f"not exported for {size[0]}x{size[1]} yet")
        try:
            bundle = self._read_bundle(folder)
        except NetworkError as error:
            return self._to_be_made(variant, request, str(error))
        if variant.runtime == "openvino":
            return Files(bundle)
        key = key_of(bundle, load_library(variant.runtime), self._gpu, build_options(request, self._gpu))
        engines = EngineCache(request.cache_root / "engines").find(key)
        if isinstance(engines, Engines):
            return Files(bundle, engines)
        return Lack(engines.reason, self._command(variant, request), buildable=True)

    def _shipped(self, request: BuildRequest) -> Path | None:
        """Graphs of these very weights that came with the package."""
        folder = find_shipped(self.card, request.width, request.height, request.precision)
        if folder is None:
            return None
        try:
            bundle = self._read_bundle(folder)
        except NetworkError as error:
            LOG.warning("%s; the graphs that came with the package are not used", error)
            return None
        return folder if bundle.weights_digest == self._digest else None

    def _read_bundle(self, folder: Path) -> Bundle:
        """Checked to the last byte, but once only: it is asked for again and again while its engines are missing."""
        try:
            changed = (folder / PLAN).stat().st_mtime_ns
        except FileNotFoundError as error:
            raise NetworkError(f"{folder} holds no exported network") from error
        if self._bundles.get(folder, (0, None))[0] != changed:
            self._bundles[folder] = (changed, load_bundle(folder))
        return self._bundles[folder][1]

    def _to_be_made(self, variant: Variant, request: BuildRequest, reason: str) -> Lack:
        """Graphs are missing, or not whole: whether they can be made here, and how."""
        needs = self._needs(request)
        if needs:
            return Lack(f"{reason}; {needs}")
        return Lack(reason, self._command(variant, request), buildable=True)

    def _needs(self, request: BuildRequest) -> str:
        """What is not here that graphs are made with; empty when all is."""
        if request.precision == INT8:
            if not _is_installed("nncf"):
                return "NNCF, which rounds it, is not installed: pip install nncf"
            exact = bundle_place(replace(request, precision="fp32"), self._digest)
            with contextlib.suppress(NetworkError):
                self._read_bundle(exact)
                return ""  # rounded from graphs that are here
        if self._no_weights:
            return self._no_weights
        return "" if _is_installed("torch") else "PyTorch, which exports it, is not installed: pip install torch"

    # -- opening ---------------------------------------------------------------------------------------------

    def open(self, variant: Variant, size: Size) -> Opened:
        """See `Workshop.open`."""
        executor, answers, file = self._open_torch(variant, size) if variant.runtime == "torch" else self._open(variant)
        try:
            checked = None if answers is None else _check(executor, answers, variant.precision)
            return Opened(variant, make_step(executor, self.card), file, checked)
        except BaseException:
            executor.close()
            raise

    def _open_torch(self, variant: Variant, size: Size) -> _Loaded:
        from recon_ros.networks.graphs import GraphOptions
        from recon_ros.runtimes.torch_device import open_variant
        from recon_ros.runtimes.torch_network import open_network

        config = self._config
        opened = open_network(self._name, config.weights)
        options = GraphOptions(config.update_rule)
        executor, answers = open_variant(opened, variant, *size, options, config.engine.threads)
        return _Loaded(executor, answers, "")

    def _open(self, variant: Variant) -> _Loaded:
        bundle, engines = self._files.pop(variant)
        if engines is not None:
            return self._open_engines(variant, bundle, engines)
        from recon_ros.runtimes.openvino_executor import OpenVinoExecutor

        answers = bundle.golden()
        executor = OpenVinoExecutor(bundle, variant.precision, self._config.engine.threads)
        return _Loaded(executor, answers, str(bundle.folder))

    def _open_engines(self, variant: Variant, bundle: Bundle, engines: Engines) -> _Loaded:
        """Raises Unusable once for engines that the library refuses."""
        from recon_ros.runtimes.trt.cuda import find_cuda
        from recon_ros.runtimes.trt.engine import EngineRefused
        from recon_ros.runtimes.trt.runner import TrtExecutor

        library, answers = load_library(variant.runtime), bundle.golden()
        try:
            executor = TrtExecutor(bundle, engines.files, library, find_cuda())
        except EngineRefused as error:
            if variant in self._renewed:  # new ones would be refused as well
                raise
            self._renewed.add(variant)
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                set_aside(engines.folder)
            raise Unusable(str(error)) from error
        return _Loaded(executor, answers, str(engines.folder))

    # -- building --------------------------------------------------------------------------------------------

    def build(self, variant: Variant, size: Size) -> Build:
        """See `Workshop.build`."""
        process = BuildProcess(self._request(variant, size))
        process.start()
        return process

    def _request(self, variant: Variant, size: Size) -> BuildRequest:
        # OpenVINO computes in bf16 from graphs in float32.
        precision = "fp32" if (variant.runtime, variant.precision) == ("openvino", "bf16") else variant.precision
        config = self._config
        return BuildRequest(
            model=self._name,
            width=size[0],
            height=size[1],
            runtime=variant.runtime,
            precision=precision,
            attention=variant.attention,
            update_rule=config.update_rule,
            weights=config.weights,
            cache=config.engine.cache,
        )

    def _command(self, variant: Variant, request: BuildRequest) -> str:
        """What a user types for the same."""
        words = ["recon", "engine", "build", self._name, "--size", f"{request.height}x{request.width}"]
        words += ["--runtime", request.runtime, "--precision", request.precision]
        defaults = Config()
        for option, value, default in (
            ("--attention", variant.attention, HALF_ATTENTION),
            ("--update-rule", request.update_rule, defaults.update_rule),
            ("--weights", request.weights, ""),
            ("--cache", request.cache, ""),
        ):
            words += [option, value] if value != default else []
        return shlex.join(words)

    # -- the cache -------------------------------------------------------------------------------------------

    def _find_digest(self) -> str:
        """Of the weights; where they are not here, of those that the newest exported graphs of this network hold."""
        config = self._config
        try:
            return network_digest(self._name, config.weights)
        except NetworkError as error:
            exported = BuildRequest(model=self._name, width=1, height=1, cache=config.engine.cache).cache_root / "onnx"
            digest = "" if config.weights else exported_digest(exported, self.card.name)
            if not digest:
                raise
            self._no_weights = str(error)
            return digest

    @functools.cached_property
    def _gpu(self) -> Gpu | None:
        return find_gpu()


class _Loaded(NamedTuple):
    """An executor, the answers it is checked against, and where its files lie."""

    executor: Executor
    answers: Mapping[str, NDArray[Any]] | None
    file: str


def _check(executor: Executor, answers: Mapping[str, NDArray[Any]], precision: str) -> Checked:
    report = golden.check(executor, answers, precision)
    LOG.info("%s: %s", executor.runtime, report)
    return Checked(report.passed, report.error / report.tolerance, report.worst, report.failure)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
