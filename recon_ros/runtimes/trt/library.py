# SPDX-License-Identifier: Apache-2.0
"""Which TensorRT is installed: the full one (JetPack, pip) or TensorRT-RTX, found and checked."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.runtimes.trt.logger import make_logger

# The bindings can be installed without the package that gives them their usual name.
_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_INSTALL = {
    "tensorrt": "on a Jetson it comes with JetPack 6.1 or newer (apt install python3-libnvinfer), elsewhere "
    "`pip install tensorrt`",
    "tensorrt_rtx": "`pip install tensorrt-rtx`",
}
OLDEST = {"tensorrt": (10, 3), "tensorrt_rtx": (1, 0)}
"""Versions below lack calls that are made here."""

_NEEDED = ("ILogger", "Builder", "OnnxParser", "Runtime")


@dataclass(frozen=True)
class Library:
    """An imported TensorRT.

    Attributes:
        module: the Python module.
        name: ``tensorrt`` or ``tensorrt_rtx``.
        version: in full, as the library tells it. An engine runs on this very version only.
    """

    module: Any
    name: str
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX: builds without a GPU, for GeForce and RTX cards, kernels made when it runs."""
        return self.name == "tensorrt_rtx"

    @cached_property
    def logger(self) -> Any:
        """The one logger of everything made with this library (`recon_ros.runtimes.trt.logger`)."""
        return make_logger(self.module)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@cache
def load_library(name: str) -> Library:
    """Import ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        NetworkError: it is not installed, cannot be loaded, is too old, or is a part without builder or parser.
    """
    if name not in _MODULES:
        raise NetworkError(f"no library is called {name!r}; there are {', '.join(_MODULES)}")
    problems = []
    for module_name in _MODULES[name]:
        try:
            module = importlib.import_module(module_name)
        except (ImportError, OSError) as error:  # OSError: a shared library that it opens itself
            problems.append(f"{module_name}: {error}")
            continue
        if missing := [part for part in _NEEDED if not hasattr(module, part)]:
            # A folder of that name on the path is importable too, and the lean runtime can only run.
            problems.append(f"{module_name}: has no {', '.join(missing)}")
            continue
        return _checked(Library(module, name, str(module.__version__)))
    raise NetworkError(f"{name} cannot be used ({'; '.join(problems)}); {_INSTALL[name]}")


def _checked(library: Library) -> Library:
    oldest = OLDEST[library.name]
    if _numbers(library.version)[: len(oldest)] < oldest:
        wanted = ".".join(map(str, oldest))
        raise NetworkError(f"{library} is too old, {wanted} or newer is needed; {_INSTALL[library.name]}")
    return library


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
