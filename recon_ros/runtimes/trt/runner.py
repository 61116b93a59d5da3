# SPDX-License-Identifier: Apache-2.0
"""TensorRT as an executor: engines, buffers on the GPU, one CUDA graph per parity.

The memory never leaves the GPU and is never copied: a step reads one of two sets of buffers and writes the other
(`recon_ros.runtimes.trt.buffers`). A handle says in which set its memory lies and when it was written; once another
memory was written there, it is refused. Proven with simulated engines; on a GPU not yet.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import NetworkError
from recon_ros.networks.plan import IMAGE, StepPlan
from recon_ros.runtimes.executor import Arrays, check_image, check_memory
from recon_ros.runtimes.trt.buffers import PARITIES, Buffers
from recon_ros.runtimes.trt.contexts import Contexts
from recon_ros.runtimes.trt.cuda import Cuda
from recon_ros.runtimes.trt.library import Library

_LOGGER = logging.getLogger("recon_ros.runtimes.trt")


class BundleLike(Protocol):
    """What is needed of a bundle."""

    @property
    def plan(self) -> StepPlan:
        """What is run."""
        ...

    @property
    def precision(self) -> str:
        """Of the graphs."""
        ...

    def initial(self) -> dict[str, NDArray[Any]]:
        """The memory before the first image, by name."""
        ...


@dataclass(frozen=True, eq=False)
class DeviceMemory:
    """A memory on the GPU: in which of the two sets of buffers, and the how-many-th that was written."""

    parity: int
    generation: int
    owner: object


class TrtExecutor:
    """An `Executor` (see `recon_ros/runtimes/executor.py`) with TensorRT or TensorRT-RTX.

    Of all memories the two written last exist, by `step`, `initial` or `write`, a step that failed counted in; stepping
    again from the older one replaces the newer one. From one thread at a time.

    Args:
        bundle: plan, precision and first memory.
        engines: file by graph.
        library: that built them, in the very version.
        cuda: buffers and stream; closed with this.
        use_graphs: capture a step as a CUDA graph; where that fails, steps run without, and the log says so.

    Raises:
        NetworkError: an engine cannot be used (the message says why), or the GPU has not enough memory.
    """

    def __init__(
        self, bundle: BundleLike, engines: Mapping[str, Path], library: Library, cuda: Cuda, use_graphs: bool = True
    ) -> None:
        self._plan, self._cuda = bundle.plan, cuda
        self._runtime = f"{library} {bundle.precision}"
        self._contexts: Contexts | None = None
        self._graphs: list[Any] = []
        self._written = [0, 0]  # generation of what lies in each set of buffers; 0: nothing
        self._generation = 0
        try:
            self._initial = bundle.initial()
            check_memory(self._plan, self._initial)
            self._buffers = Buffers(self._plan, cuda)
            self._contexts = Contexts(library, self._plan, engines, self._buffers, cuda)
            self._warm_up()
            if use_graphs:
                self._graphs = self._capture()
        except BaseException:
            self.close()
            raise

    @property
    def plan(self) -> StepPlan:
        """See `Executor.plan`."""
        return self._plan

    @property
    def runtime(self) -> str:
        """``tensorrt 10.3.0 fp16``."""
        return self._runtime

    @property
    def uses_graphs(self) -> bool:
        """Whether steps run as CUDA graphs."""
        return bool(self._graphs)

    def initial(self) -> DeviceMemory:
        """See `Executor.initial`."""
        return self._put(self._initial)

    def step(self, memory: DeviceMemory, image: NDArray[np.uint8]) -> tuple[DeviceMemory, dict[str, NDArray[Any]]]:
        """See `Executor.step`."""
        parity = self._locate(memory)
        check_image(self._plan, image)
        self._written[1 - parity] = 0  # lost from here on, even if the step fails
        self._buffers.begin_upload(IMAGE, parity, image)
        self._run(parity)
        outputs = self._buffers.download(self._plan.fetched, parity)
        return self._handle(1 - parity), outputs

    def read(self, memory: DeviceMemory) -> dict[str, NDArray[Any]]:
        """See `Executor.read`."""
        return self._buffers.download(self._plan.memory, self._locate(memory))

    def write(self, arrays: Arrays) -> DeviceMemory:
        """See `Executor.write`."""
        self._check_open()
        check_memory(self._plan, arrays)
        return self._put(arrays)

    def close(self) -> None:
        """See `Executor.close`."""
        self._written = [0, 0]
        self._graphs = []
        if self._contexts is not None:
            try:
                self._cuda.synchronise()
            except NetworkError:
                _LOGGER.debug("closing after the GPU failed", exc_info=True)
            self._contexts.close()
            self._contexts = None
        self._cuda.close()

    def _put(self, arrays: Arrays) -> DeviceMemory:
        """A memory of the host's, in the buffers of the older of the two that exist."""
        self._check_open()
        parity = min(PARITIES, key=lambda parity: self._written[parity])
        self._written[parity] = 0
        self._buffers.write_memory(parity, arrays)
        return self._handle(parity)

    def _handle(self, parity: int) -> DeviceMemory:
        self._generation += 1
        self._written[parity] = self._generation
        return DeviceMemory(parity, self._generation, self)

    def _locate(self, memory: DeviceMemory) -> int:
        """In which buffers it lies, if it still does."""
        self._check_open()
        if not isinstance(memory, DeviceMemory) or memory.owner is not self:
            raise NetworkError("this memory is not of this executor; take it over with read and write")
        if self._written[memory.parity] != memory.generation:
            there = sorted(filter(None, self._written))
            raise NetworkError(
                f"this memory (number {memory.generation}) is gone, only {there} are there: the GPU keeps the latest "
                "and the one before it; keep older ones with read and write"
            )
        return memory.parity

    def _check_open(self) -> None:
        if self._contexts is None:
            raise NetworkError(f"{self._runtime} was closed")

    def _run(self, parity: int) -> None:
        if self._graphs:
            self._cuda.launch(self._graphs[parity])
        elif self._contexts is not None:
            self._contexts.enqueue(parity)

    def _warm_up(self) -> None:
        """Run each context once, as capturing asks for, on defined values: indices among them must stay in bounds."""
        assert self._contexts is not None
        for parity in PARITIES:
            self._buffers.write_memory(parity, self._initial)
        black = np.zeros(self._plan.tensors[IMAGE].shape, np.uint8)
        for parity in PARITIES:
            self._buffers.begin_upload(IMAGE, parity, black)
            self._contexts.enqueue(parity)
            self._cuda.synchronise()
        self._contexts.save_kernels()

    def _capture(self) -> list[Any]:
        """A CUDA graph per parity; none where that cannot be."""
        contexts = self._contexts
        assert contexts is not None
        if not contexts.can_be_captured():
            _LOGGER.warning("%s runs without CUDA graphs: an engine cannot be captured", self._runtime)
            return []
        try:
            graphs = []
            for parity in PARITIES:
                graphs.append(self._cuda.capture(lambda parity=parity: contexts.enqueue(parity)))  # type: ignore[misc]
            self._cuda.synchronise()
        except NetworkError as error:
            _LOGGER.warning("%s runs without CUDA graphs: %s", self._runtime, error)
            return []
        return graphs
