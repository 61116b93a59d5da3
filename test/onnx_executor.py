# SPDX-License-Identifier: Apache-2.0
"""Runs the graphs of a bundle as they are written, whatever their precision, to compare them with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.networks.plan import IMAGE, NEXT, StepPlan
from recon_ros.runtimes.bundle import Bundle

Arrays = Mapping[str, NDArray[Any]]


class OnnxExecutor:
    """An `Executor` on ONNX Runtime, or on OpenVINO for bfloat16, for which ONNX Runtime has no kernels on a CPU."""

    def __init__(self, bundle: Bundle) -> None:
        self._plan: StepPlan = bundle.plan
        self._initial = bundle.initial()
        with_openvino = bundle.precision == "bf16"
        self.runtime = f"{'openvino' if with_openvino else 'onnxruntime'} {bundle.precision}"
        load = _with_openvino if with_openvino else _with_onnxruntime
        self._run = {graph.name: load(str(bundle.onnx(graph.name))) for graph in bundle.plan.graphs}

    @property
    def plan(self) -> StepPlan:
        return self._plan

    def initial(self) -> dict[str, NDArray[Any]]:
        return dict(self._initial)

    def step(self, memory: Arrays, image: NDArray[np.uint8]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        tensors = {**memory, IMAGE: image}
        for graph in self._plan.graphs:
            tensors |= self._run[graph.name]({name: tensors[name] for name in graph.inputs})
        for name, array in tensors.items():
            spec = self._plan.tensors[name]
            assert (array.shape, array.dtype) == (spec.shape, spec.dtype), name
        after = {name: tensors[name + NEXT] for name in self._plan.memory}
        return after, {name: tensors[name] for name in self._plan.fetched}

    def read(self, memory: Arrays) -> dict[str, NDArray[Any]]:
        return dict(memory)

    def write(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        return dict(arrays)

    def close(self) -> None:
        self._run.clear()


Run = Callable[[Arrays], dict[str, NDArray[Any]]]


def _with_onnxruntime(path: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(None, dict(given)), strict=True))


def _with_openvino(path: str) -> Run:
    from recon_ros.runtimes.openvino_executor import require_openvino

    openvino = require_openvino()
    # The graph says what is rounded to bfloat16; the rest is to stay as it says.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(path, "CPU", options)

    def run(given: Arrays) -> dict[str, NDArray[Any]]:
        results = model(dict(given))
        return {port.get_any_name(): np.array(results[port]) for port in model.outputs}

    return run
