# SPDX-License-Identifier: Apache-2.0
"""PyTorch as an executor: the modules as they are written, compiled, or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_ros.errors import NetworkError
from recon_ros.networks.graphs import StepGraphs
from recon_ros.networks.plan import IMAGE, NEXT, StepPlan
from recon_ros.runtimes.executor import Arrays, check_image, check_memory

TorchMemory = dict[str, Tensor]
"""The memory tensors of the plan by name, on the executor's device. Any number of them may be kept."""

MODES = ("eager", "compile", "graphs", "compile_graphs")
WARM_UPS = 3


class TorchExecutor:
    """An `Executor` (see ``recon_ros/runtimes/executor.py``) that leaves every memory as it is, however old.

    Args:
        graphs: of the step; the modules move to the device.
        device: where they run.
        mode: ``eager``, as written; ``compile``, through torch.compile; ``graphs``, all launches of a step recorded
            once and replayed (CUDA only); ``compile_graphs``, both.
        precision: of the network, for the name.

    Raises:
        NetworkError: there is no such device or mode; or compiling or recording failed, which takes place here.
    """

    def __init__(self, graphs: StepGraphs, device: str = "cpu", mode: str = "eager", precision: str = "fp32") -> None:
        if mode not in MODES:
            raise NetworkError(f"PyTorch runs as {', '.join(MODES)}, not {mode!r}")
        self.device = torch.device(device)
        is_cuda = self.device.type == "cuda"
        if is_cuda and not torch.cuda.is_available():
            raise NetworkError(f"device {device}: PyTorch {torch.__version__} sees no CUDA device here")
        if mode in ("graphs", "compile_graphs") and not is_cuda:
            raise NetworkError(f"torch mode '{mode}' needs a CUDA device; on {device} take eager or compile")
        self._plan = graphs.plan
        self._runtime = " ".join(["torch", precision, *([mode] * (mode != "eager")), *([device] * is_cuda)])
        self._modules: dict[str, Any] = {name: module.to(self.device) for name, module in graphs.modules.items()}
        self._initial = {name: self._tensor(array) for name, array in graphs.initial.items()}
        self._recording: _Recording | None = None
        if mode != "eager":
            self._make_ready(mode)

    @property
    def plan(self) -> StepPlan:
        return self._plan

    @property
    def runtime(self) -> str:
        return self._runtime

    def initial(self) -> TorchMemory:
        return dict(self._initial)

    @torch.inference_mode()
    def step(self, memory: TorchMemory, image: NDArray[np.uint8]) -> tuple[TorchMemory, dict[str, NDArray[Any]]]:
        check_image(self._plan, image)
        given = {**memory, IMAGE: self._tensor(image)}
        after = self._run(given) if self._recording is None else self._recording.replay(given)
        fetched = {name: after[name].to("cpu", copy=True).numpy() for name in self._plan.fetched}
        return {name: after[name + NEXT] for name in self._plan.memory}, fetched

    def read(self, memory: TorchMemory) -> dict[str, NDArray[Any]]:
        return {name: memory[name].to("cpu", copy=True).numpy() for name in self._plan.memory}

    def write(self, arrays: Arrays) -> TorchMemory:
        check_memory(self._plan, arrays)
        return {name: self._tensor(arrays[name]) for name in self._plan.memory}

    def close(self) -> None:
        self._recording = None
        self._modules.clear()
        self._initial.clear()

    @torch.inference_mode()
    def _tensor(self, array: NDArray[Any]) -> Tensor:
        """A copy on the device; of one kind with what steps give, or compiled code would be compiled anew for it."""
        return torch.tensor(array, device=self.device)

    def _run(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All graphs one after the other; the tensors given and those that they gave."""
        tensors = dict(given)
        for graph in self._plan.graphs:
            outputs = self._modules[graph.name](*(tensors[name] for name in graph.inputs))
            tensors.update(zip(graph.outputs, outputs, strict=True))
        return tensors

    @torch.inference_mode()
    def _make_ready(self, mode: str) -> None:
        """Compile and record now, so that no frame waits for it, and what fails fails here."""
        image = torch.zeros(self._plan.tensors[IMAGE].shape, dtype=torch.uint8, device=self.device)
        try:
            if mode in ("compile", "compile_graphs"):
                self._modules = {name: torch.compile(m, dynamic=False) for name, m in self._modules.items()}
            if self.device.type == "cuda" and mode != "compile":
                kept = (*self._plan.fetched, *(name + NEXT for name in self._plan.memory))
                self._recording = _Recording(self._run, {**self._initial, IMAGE: image}, kept)
            else:
                self._run({**self._initial, IMAGE: image})
        except Exception as error:  # dynamo, inductor, the compiler of the system, the driver: each has its own
            reason = (str(error).strip().splitlines() or [""])[0]
            raise NetworkError(f"torch mode '{mode}' failed: {type(error).__name__}: {reason}") from error


class _Recording:
    """A function on the GPU whose launches are recorded once, on tensors that stay where they are.

    Args:
        run: tensors by name → tensors by name.
        given: an example of what it is given; shapes and dtypes stay.
        kept: which of its results `replay` returns.
    """

    def __init__(self, run: Any, given: Mapping[str, Tensor], kept: Sequence[str]) -> None:
        self._given = {name: tensor.clone() for name, tensor in given.items()}
        self._kept = tuple(kept)
        self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Libraries choose algorithms and take workspace at the first calls, which cannot be recorded.
            for _ in range(WARM_UPS):
                run(self._given)
        self._stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of a node may use CUDA meanwhile; by default that would break the recording.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            self._results = run(self._given)

    def replay(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The kept results, in tensors of their own."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for name, tensor in given.items():
                self._given[name].copy_(tensor, non_blocking=True)
            self._graph.replay()
            results = {name: self._results[name].clone() for name in self._kept}
        # Whoever uses them next does so on the stream that was current.
        torch.cuda.current_stream().wait_stream(self._stream)
        return results
