# SPDX-License-Identifier: Apache-2.0
"""OpenVINO as an executor: the exported graphs on the CPU, without PyTorch.

bf16 is a matter of a hint, on the float32 graphs; int8 wants graphs that `recon_ros.runtimes.int8` made. No tensor is
copied on its way: a graph writes the memory and the answers where they are to stay, and reads from there. OpenVINO's
own cache of compiled models is not used: it would take a fifth off the loading time, and write as much again as the
graphs are, and hold as much again in memory.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import NetworkError
from recon_ros.networks.plan import IMAGE, NEXT, StepPlan
from recon_ros.runtimes.bundle import Bundle
from recon_ros.runtimes.executor import Arrays, check_image, check_memory

HostMemory = dict[str, NDArray[Any]]
"""The memory tensors of the plan by name. Any number of them may be kept; nobody writes to them."""

CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}
"""Precision → how OpenVINO calls a processor's ability for it."""

ACTIVATION_GROUP = 128
"""Channels of a token that share a scale when int8 graphs round them. Measured: 32 and 64 cost a tenth more time, 256
gains nothing, and no size is more accurate than another."""


class OpenVinoExecutor:
    """An `Executor` (see ``recon_ros/runtimes/executor.py``) that leaves every memory as it is, however old.

    Args:
        bundle: graphs in fp32, or in int8.
        precision: ``fp32`` or ``bf16`` of an fp32 bundle, ``int8`` of an int8 bundle.
        threads: of the computation; 0 leaves it to OpenVINO, which takes all physical cores.

    Raises:
        NetworkError: OpenVINO is not installed; the processor does not have this precision, or the bundle is not for
            it; the graphs cannot be read.
    """

    def __init__(self, bundle: Bundle, precision: str = "fp32", threads: int = 0) -> None:
        openvino = require_openvino()
        available = cpu_precisions()
        if precision not in available:
            raise NetworkError(f"OpenVINO has no {precision} on this processor, only {', '.join(available)}")
        made_for = "int8" if precision == "int8" else "fp32"
        if bundle.precision != made_for:
            raise NetworkError(
                f"OpenVINO runs {precision} from graphs in {made_for}, and those in {bundle.folder} are in "
                f"{bundle.precision}: recon engine export {bundle.model} --precision {made_for}"
            )
        self._plan = bundle.plan
        self._runtime = f"openvino {precision}"
        self._tensor: Any = openvino.Tensor
        self._initial = bundle.initial()
        core = openvino.Core()
        options = {exact: _options("fp32" if exact else precision, threads, available) for exact in (False, True)}
        self._requests = {
            graph.name: _request(core, bundle.onnx(graph.name), options[graph.exact]) for graph in bundle.plan.graphs
        }
        self._kept = {*bundle.plan.fetched, *(name + NEXT for name in bundle.plan.memory)}
        self._hand_over()

    @property
    def plan(self) -> StepPlan:
        return self._plan

    @property
    def runtime(self) -> str:
        return self._runtime

    def initial(self) -> HostMemory:
        return dict(self._initial)

    def step(self, memory: HostMemory, image: NDArray[np.uint8]) -> tuple[HostMemory, dict[str, NDArray[Any]]]:
        plan = self._plan
        check_image(plan, image)
        # OpenVINO shares nothing that it could not write to, such as an image that lies in a message.
        given = {**memory, IMAGE: np.require(image, requirements=("C", "W"))}
        answers: dict[str, NDArray[Any]] = {}
        for graph in plan.graphs:
            request = self._requests[graph.name]
            for index, name in enumerate(graph.inputs):
                if name in given:
                    request.set_input_tensor(index, self._tensor(given[name], shared_memory=True))
            for index, name in enumerate(graph.outputs):
                if name in self._kept:
                    given[name] = answers[name] = np.empty(plan.tensors[name].shape, plan.tensors[name].dtype)
                    request.set_output_tensor(index, self._tensor(answers[name], shared_memory=True))
            try:
                request.infer()
            except RuntimeError as error:
                raise NetworkError(f"{self._runtime} failed in the graph {graph.name}: {error}") from error
        after = {name: answers[name + NEXT] for name in plan.memory}
        # What is memory as well must not change when the caller changes his.
        return after, {name: answers[name].copy() if name.endswith(NEXT) else answers[name] for name in plan.fetched}

    def read(self, memory: HostMemory) -> dict[str, NDArray[Any]]:
        return {name: memory[name].copy() for name in self._plan.memory}

    def write(self, arrays: Arrays) -> HostMemory:
        check_memory(self._plan, arrays)
        return {name: np.array(arrays[name], order="C") for name in self._plan.memory}

    def close(self) -> None:
        self._requests.clear()
        self._initial.clear()

    def _hand_over(self) -> None:
        """Join the graphs: what one makes for a later one stays where it is, for good."""
        made: dict[str, Any] = {}
        for graph in self._plan.graphs:
            request = self._requests[graph.name]
            for index, name in enumerate(graph.inputs):
                if name in made:
                    request.set_input_tensor(index, made[name])
            for index, name in enumerate(graph.outputs):
                if name not in self._kept:
                    made[name] = request.get_output_tensor(index)


def require_openvino() -> Any:
    """The module, imported, and without its telemetry, which would report to its maker.

    Raises:
        NetworkError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise NetworkError(f"runtime openvino needs OpenVINO: pip install openvino ({error})") from error


def cpu_precisions() -> tuple[str, ...]:
    """Of ``fp32``, ``bf16``, ``int8``: what OpenVINO computes on this processor without emulation.

    Raises:
        NetworkError: OpenVINO is not installed, or knows no CPU here.
    """
    openvino = require_openvino()
    try:
        found = set(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    except RuntimeError as error:
        raise NetworkError(f"OpenVINO cannot use this processor: {error}") from error
    return tuple(precision for precision, name in CAPABILITIES.items() if name in found)


def _options(precision: str, threads: int, available: tuple[str, ...]) -> dict[str, Any]:
    half = precision != "fp32" and "bf16" in available
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        # A node has other work as well: its threads must be free to go where a core is.
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    if precision == "int8":
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = ACTIVATION_GROUP
    return options


def _request(core: Any, path: Path, options: Mapping[str, Any]) -> Any:
    try:
        return core.compile_model(core.read_model(path), "CPU", dict(options)).create_infer_request()
    except RuntimeError as error:
        raise NetworkError(f"OpenVINO cannot run {path}: {error}") from error
