# SPDX-License-Identifier: Apache-2.0
"""CUDA by NVIDIA's own cuda-python, the runtime API. Checked against its names from 12.2 to 13.5, run on no GPU yet."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from recon_ros.runtimes.trt.cuda import CudaError

# cuda-python moved it in 12.6; JetPack 6 may have either.
_MODULES = ("cuda.bindings.runtime", "cuda.cudart")


def _import_runtime() -> Any:
    problems = []
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            problems.append(str(error))
    raise ImportError("; ".join(problems))


class CudaPython:
    """See `recon_ros.runtimes.trt.cuda.Cuda`."""

    def __init__(self, cudart: Any = None) -> None:
        """Open the first visible GPU.

        Args:
            cudart: the module to call; found if None.

        Raises:
            ImportError: cuda-python is not installed.
            CudaError: there is no GPU, or no driver.
        """
        self._cudart = cudart if cudart is not None else _import_runtime()
        self._memory: list[int] = []
        self._host: list[int] = []
        self._graphs: list[Any] = []
        self._stream: Any = None
        if self._call("cudaGetDeviceCount") < 1:
            raise CudaError("there is no GPU")
        self._stream = self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking)

    @property
    def name(self) -> str:
        """See `Cuda.name`."""
        version = self._call("cudaRuntimeGetVersion")
        return f"cuda-python (CUDA {version // 1000}.{version % 1000 // 10})"

    @property
    def stream(self) -> int:
        """See `Cuda.stream`."""
        return int(self._stream)

    def allocate(self, nbytes: int) -> int:
        """See `Cuda.allocate`."""
        address = int(self._call("cudaMalloc", max(1, nbytes)))
        self._memory.append(address)
        return address

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See `Cuda.pinned`."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        address = int(self._call("cudaHostAlloc", max(1, nbytes), self._cudart.cudaHostAllocDefault))
        self._host.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)).view(dtype).reshape(shape)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """See `Cuda.upload`."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: NDArray[Any], address: int) -> None:
        """See `Cuda.download`."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def synchronise(self) -> None:
        """See `Cuda.synchronise`."""
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """See `Cuda.capture`."""
        # Thread-local: other threads of the process (ROS, another network) may call CUDA meanwhile.
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            with contextlib.suppress(CudaError):  # leaves the mode; what was captured is void
                self._call("cudaStreamEndCapture", self._stream)
            raise
        captured = self._call("cudaStreamEndCapture", self._stream)
        try:
            graph = self._call("cudaGraphInstantiateWithFlags", captured, 0)
        finally:
            self._call("cudaGraphDestroy", captured)
        self._graphs.append(graph)
        return graph

    def launch(self, graph: Any) -> None:
        """See `Cuda.launch`."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def close(self) -> None:
        """See `Cuda.close`."""
        if self._stream is None:
            return
        # A device that failed refuses these as well; the process goes on without it.
        release = [("cudaStreamSynchronize", self._stream)]
        release += [("cudaGraphExecDestroy", graph) for graph in self._graphs]
        release += [("cudaFree", address) for address in self._memory]
        release += [("cudaFreeHost", address) for address in self._host]
        release += [("cudaStreamDestroy", self._stream)]
        for function, argument in release:
            with contextlib.suppress(CudaError):
                self._call(function, argument)
        self._graphs, self._memory, self._host, self._stream = [], [], [], None

    def _copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        direction = getattr(self._cudart.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", target, source, nbytes, direction, self._stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        """Its result. All functions give (status,) or (status, result)."""
        try:
            status, *results = getattr(self._cudart, function)(*arguments)
        except RuntimeError as error:  # no driver's library, or one too old to know the function
            raise CudaError(f"{function}: {error}") from error
        if int(status) != 0:
            raise CudaError(f"{function} failed: {status.name} ({int(status)})")
        return results[0] if results else None
