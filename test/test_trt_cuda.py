# SPDX-License-Identifier: Apache-2.0
"""Memory, copies, streams and graphs by cuda-python and by PyTorch; the GPU; and which TensorRT is there.

cuda-python is simulated here: its functions return (status, result), as the real ones do. PyTorch does its copies on
the CPU. That both do the same on a GPU is for a machine with one.
"""

from __future__ import annotations

import ctypes
import enum
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recon_ros.errors import NetworkError
from recon_ros.runtimes.trt import cuda as cuda_module
from recon_ros.runtimes.trt.cuda import Cuda, CudaError, find_cuda
from recon_ros.runtimes.trt.cuda_python import CudaPython
from recon_ros.runtimes.trt.device import Gpu, find_gpu
from recon_ros.runtimes.trt.library import Library, load_library
from recon_ros.runtimes.trt.logger import make_logger


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2


class Kind(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class FakeCudart:
    """The runtime API as cuda-python gives it; device memory is the host's."""

    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, devices: int = 1, room: int = 10**6) -> None:
        self.devices, self.room = devices, room
        self.blocks: dict[int, Any] = {}
        self.freed: list[tuple[str, Any]] = []
        self.capturing = False
        self.captured: list[Any] = []

    def cudaGetDeviceCount(self) -> tuple[Status, int]:
        return Status.cudaSuccess, self.devices

    def cudaRuntimeGetVersion(self) -> tuple[Status, int]:
        return Status.cudaSuccess, 12060

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, int]:
        assert flags == self.cudaStreamNonBlocking
        return Status.cudaSuccess, 99

    def cudaMalloc(self, nbytes: int) -> tuple[Status, Any]:
        if nbytes > self.room:
            return Status.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(b"\xcd" * nbytes, nbytes)
        self.blocks[ctypes.addressof(block)] = block
        return Status.cudaSuccess, ctypes.addressof(block)

    def cudaHostAlloc(self, nbytes: int, flags: int) -> tuple[Status, Any]:
        return self.cudaMalloc(nbytes)

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: Kind, stream: int) -> tuple[Status]:
        assert stream == 99 and isinstance(kind, Kind)

        def work() -> None:
            ctypes.memmove(target, source, nbytes)

        return self._send(work)

    def _send(self, work: Any) -> tuple[Status]:
        if self.capturing:
            self.captured.append(work)
        else:
            work()
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        return (Status.cudaErrorInvalidValue if self.capturing else Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:
        assert mode == 1
        self.capturing, self.captured = True, []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, list[Any]]:
        self.capturing = False
        return Status.cudaSuccess, self.captured

    def cudaGraphInstantiateWithFlags(self, graph: list[Any], flags: int) -> tuple[Status, list[Any]]:
        return (Status.cudaSuccess, graph) if graph else (Status.cudaErrorInvalidValue, graph)

    def cudaGraphLaunch(self, graph: list[Any], stream: int) -> tuple[Status]:
        for work in graph:
            work()
        return (Status.cudaSuccess,)

    def __getattr__(self, name: str) -> Any:
        if name not in ("cudaGraphDestroy", "cudaGraphExecDestroy", "cudaFree", "cudaFreeHost", "cudaStreamDestroy"):
            raise AttributeError(name)

        def free(what: Any) -> tuple[Status]:
            self.freed.append((name, what))
            return (Status.cudaSuccess,)

        return free


def torch_cuda() -> Cuda:
    pytest.importorskip("torch", reason="needs PyTorch")
    from recon_ros.runtimes.torch_cuda import TorchCuda

    return TorchCuda("cpu")


MAKERS = {"cuda-python": lambda: CudaPython(FakeCudart()), "PyTorch": torch_cuda}


@pytest.fixture(params=list(MAKERS))
def cuda(request: pytest.FixtureRequest) -> Cuda:
    made: Cuda = MAKERS[request.param]()
    return made


@pytest.mark.parametrize(("shape", "dtype"), [((3, 4), np.float32), ((), np.int32), ((5, 2, 3), np.uint8)])
def test_there_and_back(cuda: Cuda, shape: tuple[int, ...], dtype: Any) -> None:
    random = np.random.default_rng(1)
    there, back = cuda.pinned(shape, dtype), cuda.pinned(shape, dtype)
    assert there.shape == shape and there.dtype == dtype and there.flags.c_contiguous and there.flags.writeable
    there[...] = random.integers(0, 100, shape)
    address = cuda.allocate(there.nbytes)
    cuda.upload(address, there)
    cuda.download(back, address)
    cuda.synchronise()
    np.testing.assert_array_equal(there, back)
    cuda.close()
    cuda.close()


def test_name(cuda: Cuda) -> None:
    assert cuda.name.startswith(("cuda-python (CUDA 12.6)", "PyTorch 2"))


def test_capture_runs_nothing() -> None:
    cuda = CudaPython(FakeCudart())
    host = cuda.pinned((4,), np.uint8)
    host[:] = 1
    address = cuda.allocate(4)
    graph = cuda.capture(lambda: cuda.upload(address, host))
    host[:] = 5
    cuda.launch(graph)
    host[:] = 0
    cuda.download(host, address)
    assert host.tolist() == [5] * 4


def test_capture_that_fails_leaves_a_usable_stream() -> None:
    cudart = FakeCudart()
    cuda = CudaPython(cudart)

    def work() -> None:
        raise NetworkError("refused")

    with pytest.raises(NetworkError, match="refused"):
        cuda.capture(work)
    cuda.synchronise()
    with pytest.raises(CudaError, match="cudaGraphInstantiateWithFlags failed: cudaErrorInvalidValue"):
        cuda.capture(lambda: None)
    cuda.synchronise()
    assert [name for name, _ in cudart.freed] == ["cudaGraphDestroy"]


def test_all_is_given_back() -> None:
    cudart = FakeCudart()
    cuda = CudaPython(cudart)
    addresses = [cuda.allocate(8), cuda.allocate(16)]
    array = cuda.pinned((4,), np.uint8)
    graph = cuda.capture(lambda: cuda.upload(addresses[0], array))
    cudart.freed.clear()
    cuda.close()
    assert cudart.freed == [
        ("cudaGraphExecDestroy", graph),
        ("cudaFree", addresses[0]),
        ("cudaFree", addresses[1]),
        ("cudaFreeHost", array.ctypes.data),
        ("cudaStreamDestroy", 99),
    ]
    cuda.close()
    assert len(cudart.freed) == 5


def test_no_room() -> None:
    with pytest.raises(CudaError, match=r"cudaMalloc failed: cudaErrorMemoryAllocation \(2\)"):
        CudaPython(FakeCudart(room=10)).allocate(11)


def test_no_device() -> None:
    with pytest.raises(CudaError, match="no GPU"):
        CudaPython(FakeCudart(devices=0))


def test_no_driver() -> None:
    cudart = FakeCudart()

    def no_driver() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    cudart.cudaGetDeviceCount = no_driver  # type: ignore[method-assign,assignment]
    with pytest.raises(CudaError, match=r"cudaGetDeviceCount: Failed to dlopen"):
        CudaPython(cudart)


def test_torch_without_cuda() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from recon_ros.runtimes.torch_cuda import TorchCuda

    with pytest.raises(CudaError, match=r"built without CUDA|sees no GPU"):
        TorchCuda()


def test_find_cuda(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing() -> Cuda:
        raise ImportError("No module named 'cuda'")

    def without() -> Cuda:
        raise CudaError("it sees no GPU")

    found = CudaPython(FakeCudart())
    with caplog.at_level(logging.INFO):
        monkeypatch.setattr(cuda_module, "_cuda_python", missing)
        monkeypatch.setattr(cuda_module, "_torch", lambda: found)
        assert find_cuda() is found
    assert "No module named 'cuda'" in caplog.text
    monkeypatch.setattr(cuda_module, "_torch", without)
    with pytest.raises(NetworkError, match=r"cuda-python: No module.*PyTorch: it sees no GPU.*pip install"):
        find_cuda()


# -- the GPU -----------------------------------------------------------------------------------------------

DRIVER = """
#include <string.h>
#include <stdlib.h>
int cuInit(unsigned flags) { return getenv("NO_GPU") ? 100 : 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 5; return ordinal; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 16 ? 14 : -1;
    return device != 5;
}
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Orin", length); return device != 5; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 15656ul << 20; return device != 5; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
"""


def test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    source, library, version = tmp_path / "driver.c", tmp_path / "libcuda.so.1", tmp_path / "version"
    source.write_text(DRIVER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.3.0  Release Build  (x@y)\n")
    expected = Gpu("Orin", "8.7", 14, 15656, "540.3.0", "12.6")
    assert find_gpu(str(library), version) == expected
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    assert find_gpu(str(library), version).driver == "550.54.15"  # type: ignore[union-attr]
    assert find_gpu(str(library), tmp_path / "none").driver == ""  # type: ignore[union-attr]
    monkeypatch.setenv("NO_GPU", "1")
    assert find_gpu(str(library), version) is None


def test_no_driver_is_no_gpu(tmp_path: Path) -> None:
    assert find_gpu(str(tmp_path / "libcuda.so.1")) is None
    assert find_gpu("libc.so.6") is None  # a library that is no driver


# -- the library -------------------------------------------------------------------------------------------


class FakeLogger:
    """An `ILogger` to derive from."""


def module(name: str, version: str, *parts: str) -> ModuleType:
    made = ModuleType(name)
    made.__version__ = version  # type: ignore[attr-defined]
    for part in parts or ("ILogger", "Builder", "OnnxParser", "Runtime"):
        setattr(made, part, FakeLogger)
    return made


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of the modules is there; `sys.modules` can be filled."""
    load_library.cache_clear()
    for name in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("recon_ros.runtimes.trt.library.load_library", load_library)
    yield monkeypatch
    load_library.cache_clear()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"])
def test_all_names_are_tried(modules: pytest.MonkeyPatch, name: str) -> None:
    made = module(name, "10.3.0")
    modules.setitem(sys.modules, name, made)
    wanted = name.removesuffix("_bindings")
    library = load_library(wanted)
    assert library == Library(made, wanted, "10.3.0")
    assert library.is_rtx == ("rtx" in name) and str(library) == f"{wanted} 10.3.0"


def test_not_installed(modules: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match=r"tensorrt cannot be used .*JetPack.*pip install tensorrt"):
        load_library("tensorrt")
    with pytest.raises(NetworkError, match=r"tensorrt_rtx cannot be used .*pip install tensorrt-rtx"):
        load_library("tensorrt_rtx")
    with pytest.raises(NetworkError, match="no library is called"):
        load_library("tensorflow")


def test_shared_library_missing(modules: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    modules.syspath_prepend(tmp_path)
    modules.delitem(sys.modules, "tensorrt")
    with pytest.raises(NetworkError, match=r"libnvinfer\.so\.10: cannot open"):
        load_library("tensorrt")


def test_a_folder_of_that_name_is_passed_over(modules: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    modules.syspath_prepend(tmp_path)
    modules.delitem(sys.modules, "tensorrt")
    with pytest.raises(NetworkError, match=r"tensorrt: has no ILogger, Builder, OnnxParser, Runtime"):
        load_library("tensorrt")


@pytest.mark.parametrize(
    ("version", "fits"), [("8.6.1", False), ("10.0.1", False), ("10.3.0", True), ("11.4.0.106", True)]
)
def test_oldest(modules: pytest.MonkeyPatch, version: str, fits: bool) -> None:
    modules.setitem(sys.modules, "tensorrt", module("tensorrt", version))
    if fits:
        assert load_library("tensorrt").version == version
    else:
        with pytest.raises(NetworkError, match=r"is too old, 10\.3 or newer"):
            load_library("tensorrt")


def test_logger(caplog: pytest.LogCaptureFixture) -> None:
    logger = make_logger(SimpleNamespace(ILogger=FakeLogger))
    severities = {
        name: SimpleNamespace(name=name) for name in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR")
    }
    with caplog.at_level(logging.DEBUG):
        for name, severity in severities.items():
            logger.log(severity, f"it is {name}")
        logger.log(severities["ERROR"], "it is ERROR")
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG", "WARNING", "ERROR", "ERROR", "ERROR"]
    assert logger.take_errors() == ": it is ERROR; it is INTERNAL_ERROR"
    assert logger.take_errors() == ""


def test_one_logger_for_all() -> None:
    library = Library(SimpleNamespace(ILogger=FakeLogger), "tensorrt", "10.3.0")
    assert library.logger is library.logger
