# SPDX-License-Identifier: Apache-2.0
"""Which GPU this process would compute on, asked of the driver itself.

The driver's library is all that is opened: no Python package has to be there, no CUDA context is created, and no
TensorRT, which may crash where there is no GPU. What it says does not depend on who else is installed, as it must be
for the key of an engine.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DRIVER_LIBRARY = "libcuda.so.1"
_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
# CUdevice_attribute of cuda.h
_MULTIPROCESSORS = 16
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """A GPU and its driver.

    Attributes:
        name: as the driver calls it, ``NVIDIA GeForce RTX 3090``, ``Orin``.
        compute_capability: ``8.7``.
        sm_count: number of multiprocessors.
        memory_mb: all of its memory in MiB; on a Jetson that of the whole machine.
        driver: version of the kernel driver, ``540.3.0``; empty where it cannot be told.
        cuda: newest CUDA that the driver knows, ``12.6``.
    """

    name: str
    compute_capability: str
    sm_count: int
    memory_mb: int
    driver: str
    cuda: str


def find_gpu(library: str = _DRIVER_LIBRARY, driver_file: Path = _DRIVER_VERSION) -> Gpu | None:
    """The first visible GPU (CUDA_VISIBLE_DEVICES counts), on which everything here runs; None where there is none.

    Args:
        library: the driver's, by name or path.
        driver_file: where the kernel driver tells its version.
    """
    try:
        cuda = ctypes.CDLL(library)
        return _ask(cuda, _kernel_driver(driver_file))
    except (OSError, AttributeError, _DriverError):
        return None


class _DriverError(Exception):
    """A call of the driver said no."""


def _ask(cuda: Any, driver: str) -> Gpu:
    def call(function: str, *arguments: Any) -> None:
        status = getattr(cuda, function)(*arguments)
        if status != 0:
            raise _DriverError(f"{function} returned {status}")

    call("cuInit", ctypes.c_uint(0))
    device = ctypes.c_int()
    call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), device)
        return value.value

    name = ctypes.create_string_buffer(256)
    call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    memory = ctypes.c_size_t()
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    version = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(version))
    return Gpu(
        name=name.value.decode(errors="replace").strip(),
        compute_capability=f"{attribute(_CAPABILITY_MAJOR)}.{attribute(_CAPABILITY_MINOR)}",
        sm_count=attribute(_MULTIPROCESSORS),
        memory_mb=memory.value // 2**20,
        driver=driver,
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _kernel_driver(path: Path) -> str:
    """``540.3.0`` of ``NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.3.0  Release Build …``."""
    try:
        found = re.search(r"Module.*?\s(\d+\.[\d.]+)\s", path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found.group(1) if found else ""
