# SPDX-License-Identifier: Apache-2.0
"""Execution contexts of a plan: one per graph and parity, since a CUDA graph holds on to a context's addresses.

They run one after the other, so one block of device memory serves the intermediate results of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.networks.plan import StepPlan
from recon_ros.runtimes.trt import rtx
from recon_ros.runtimes.trt.buffers import PARITIES, Buffers
from recon_ros.runtimes.trt.cuda import Cuda
from recon_ros.runtimes.trt.engine import check_engine, open_engine, open_runtime, tensor_names
from recon_ros.runtimes.trt.library import Library


class Contexts:
    """The graphs of a plan, ready to be sent to the stream.

    Args:
        library: that built the engines.
        plan: whose graphs they are.
        files: engine by graph.
        buffers: of all tensors.
        cuda: for the block and the stream.

    Raises:
        NetworkError: an engine is missing, damaged, of another version or GPU, or not of this plan.
    """

    def __init__(
        self, library: Library, plan: StepPlan, files: Mapping[str, Path], buffers: Buffers, cuda: Cuda
    ) -> None:
        if missing := [graph.name for graph in plan.graphs if graph.name not in files]:
            raise NetworkError(f"no engine for graph {', '.join(missing)}; build it")
        self._library, self._cuda = library, cuda
        # Kept in this order, and let go in the reverse one.
        self._runtime = open_runtime(library)
        self._engines: list[Any] = []
        self._kernels: list[rtx.Kernels] = []
        self._steps: tuple[list[tuple[str, Any]], ...] = ([], [])
        for graph in plan.graphs:
            engine = open_engine(library, self._runtime, files[graph.name])
            check_engine(library, engine, graph, plan)
            self._engines.append(engine)
            strategy = self._strategy(engine, files[graph.name])
            for parity in PARITIES:
                context = self._create(engine, strategy, graph.name)
                self._bind(engine, context, buffers, parity)
                self._steps[parity].append((graph.name, context))
        self._share_memory()

    def enqueue(self, parity: int) -> None:
        """Send all graphs to the stream, in order.

        Raises:
            NetworkError: TensorRT refuses one.
        """
        for name, context in self._steps[parity]:
            if not context.execute_async_v3(self._cuda.stream):
                raise NetworkError(f"{self._library} cannot run graph {name}{self._library.logger.take_errors()}")

    def can_be_captured(self) -> bool:
        """Whether a step can be captured in a CUDA graph; the full TensorRT tells only when it is tried."""
        if not self._library.is_rtx:
            return True
        return all(rtx.can_be_captured(context, self._cuda.stream) for steps in self._steps for _, context in steps)

    def save_kernels(self) -> None:
        """Keep what TensorRT-RTX compiled for this GPU, for the next start."""
        for kernels in self._kernels:
            kernels.save()

    def close(self) -> None:
        """Let go of contexts, then engines, then the runtime; nothing may be running."""
        for steps in self._steps:
            steps.clear()
        self._kernels.clear()
        self._engines.clear()
        self._runtime = None

    def _strategy(self, engine: Any, file: Path) -> Any:
        """How contexts of this engine are made: their memory is ours."""
        if self._library.is_rtx:
            self._kernels.append(rtx.Kernels(self._library, engine, file))
            return self._kernels[-1].config
        return self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED

    def _create(self, engine: Any, strategy: Any, name: str) -> Any:
        context = engine.create_execution_context(strategy)
        if context is None:
            raise NetworkError(f"{self._library} cannot prepare graph {name}{self._library.logger.take_errors()}")
        return context

    def _bind(self, engine: Any, context: Any, buffers: Buffers, parity: int) -> None:
        for name in tensor_names(engine):
            if not context.set_tensor_address(name, buffers.address(name, parity)):
                raise NetworkError(f"{self._library} refuses the buffer of {name}{self._library.logger.take_errors()}")

    def _share_memory(self) -> None:
        nbytes = max(engine.device_memory_size_v2 for engine in self._engines)
        block = self._cuda.allocate(nbytes)
        for steps in self._steps:
            for _, context in steps:
                context.set_device_memory(block, nbytes)
