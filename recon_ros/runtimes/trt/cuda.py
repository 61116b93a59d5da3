# SPDX-License-Identifier: Apache-2.0
"""The little of CUDA that running engines takes: memory, copies, one stream, graphs; by whatever package is there.

Everything asynchronous goes to one private stream, never the default one, with which TensorRT would wait for the
whole device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import DTypeLike, NDArray

from recon_ros.errors import NetworkError

_LOGGER = logging.getLogger("recon_ros.runtimes.trt")


class CudaError(NetworkError):
    """A call of CUDA failed."""


class Cuda(Protocol):
    """Memory, copies, a stream and graphs on the first visible GPU. All methods raise CudaError."""

    @property
    def name(self) -> str:
        """Which package does it, with its version."""
        ...

    @property
    def stream(self) -> int:
        """Handle of the private stream, as TensorRT takes it."""
        ...

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory, aligned to 256 bytes at least."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A contiguous array of the host in page-locked memory. Not to be used after `close`."""
        ...

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Begin to copy a `pinned` array to the device memory that begins at an address of `allocate`."""
        ...

    def download(self, array: NDArray[Any], address: int) -> None:
        """Begin to copy from device memory that begins at an address of `allocate` to a `pinned` array."""
        ...

    def synchronise(self) -> None:
        """Wait until all that was begun is done."""
        ...

    def capture(self, work: Callable[[], None]) -> Any:
        """What `work` sends to the stream, not run but as a graph for `launch`; the stream is usable if it fails."""
        ...

    def launch(self, graph: Any) -> None:
        """Begin to run a graph of `capture`."""
        ...

    def close(self) -> None:
        """Give everything back: graphs, memory, the stream. May be called twice."""
        ...


def find_cuda() -> Cuda:
    """CUDA by cuda-python if it is there, which is small, else by PyTorch.

    Raises:
        NetworkError: neither is there, or no GPU; says why.
    """
    reasons = []
    for name, make in (("cuda-python", _cuda_python), ("PyTorch", _torch)):
        try:
            cuda = make()
        except (ImportError, OSError, CudaError) as error:
            reasons.append(f"{name}: {error}")
            continue
        _LOGGER.info("buffers on the GPU by %s%s", cuda.name, f" ({'; '.join(reasons)})" if reasons else "")
        return cuda
    raise NetworkError(
        f"no way to the memory of a GPU ({'; '.join(reasons)}); with a GPU and its driver there, "
        "`pip install cuda-python` of the CUDA version it has, or PyTorch with CUDA"
    )


def _cuda_python() -> Cuda:
    from recon_ros.runtimes.trt.cuda_python import CudaPython

    return CudaPython()


def _torch() -> Cuda:
    from recon_ros.runtimes.torch_cuda import TorchCuda

    return TorchCuda()
