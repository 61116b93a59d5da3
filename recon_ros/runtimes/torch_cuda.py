# SPDX-License-Identifier: Apache-2.0
"""CUDA by PyTorch, for TensorRT where cuda-python is not installed; PyTorch computes nothing. Run on no GPU yet."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from recon_ros.runtimes.trt.cuda import CudaError


class TorchCuda:
    """See `recon_ros.runtimes.trt.cuda.Cuda`. Memory is kept as flat uint8 tensors, by address."""

    def __init__(self, device: str = "cuda:0") -> None:
        """Open the first visible GPU.

        Args:
            device: another one, for tests: without CUDA there are no streams, and nothing is pinned.

        Raises:
            CudaError: there is no GPU, or PyTorch was built without CUDA.
        """
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise CudaError("it is built without CUDA" if torch.version.cuda is None else "it sees no GPU")
        self._tensors: dict[int, torch.Tensor] = {}
        self._on_gpu = self._device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(self._device) if self._on_gpu else None

    @property
    def name(self) -> str:
        """See `Cuda.name`."""
        return f"PyTorch {torch.__version__}"

    @property
    def stream(self) -> int:
        """See `Cuda.stream`."""
        return int(self._stream.cuda_stream) if self._stream is not None else 0

    def allocate(self, nbytes: int) -> int:
        """See `Cuda.allocate`."""
        with self._work():
            return self._keep(torch.empty(max(1, nbytes), dtype=torch.uint8, device=self._device))

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See `Cuda.pinned`."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        with self._work():
            memory = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._keep(memory)
        return memory.numpy().view(dtype).reshape(shape)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """See `Cuda.upload`."""
        self._copy(address, array.ctypes.data, array.nbytes)

    def download(self, array: NDArray[Any], address: int) -> None:
        """See `Cuda.download`."""
        self._copy(array.ctypes.data, address, array.nbytes)

    def synchronise(self) -> None:
        """See `Cuda.synchronise`."""
        with self._work():
            if self._stream is not None:
                self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Any:
        """See `Cuda.capture`."""
        with self._work():
            graph = torch.cuda.CUDAGraph()
            # Thread-local: other threads of the process (ROS, another network) may call CUDA meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
            return graph

    def launch(self, graph: Any) -> None:
        """See `Cuda.launch`."""
        with self._work():
            graph.replay()

    def close(self) -> None:
        """See `Cuda.close`."""
        if self._stream is not None:
            with contextlib.suppress(RuntimeError):  # a device that failed; the process goes on without it
                self._stream.synchronize()
        self._tensors.clear()
        self._stream = None

    def _keep(self, memory: torch.Tensor) -> int:
        self._tensors[memory.data_ptr()] = memory
        return memory.data_ptr()

    def _copy(self, target: int, source: int, nbytes: int) -> None:
        with self._work():
            self._tensors[target][:nbytes].copy_(self._tensors[source][:nbytes], non_blocking=True)

    @contextlib.contextmanager
    def _work(self) -> Iterator[None]:
        """PyTorch's work goes to our stream, and its errors are ours."""
        try:
            with torch.cuda.stream(self._stream):  # does nothing for None
                yield
        except RuntimeError as error:
            raise CudaError(f"PyTorch: {error}") from error
