# SPDX-License-Identifier: Apache-2.0
"""What only TensorRT-RTX has: targets without a GPU, kernels compiled when an engine is loaded, and their cache.

The running half of it (contexts, the cache of kernels) needs a card that TensorRT-RTX supports; it was never run on
one yet.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.runtimes.trt.files import write_atomically
from recon_ros.runtimes.trt.library import Library

_LOGGER = logging.getLogger("recon_ros.runtimes.trt")

KERNELS_SUFFIX = ".kernels"
"""Of the file beside an engine that keeps the kernels compiled for this GPU."""


def targets(library: Library) -> tuple[str, ...]:
    """Compute capabilities that this version builds for: ``("7.5", "8.0", …)``."""
    names = library.module.ComputeCapability.__members__
    numbers = sorted(int(name[2:]) for name in names if name.startswith("SM"))
    return tuple(f"{number // 10}.{number % 10}" for number in numbers)


def aim(library: Library, config: Any, compute_capability: str | None) -> None:
    """Build for these compute capabilities (``8.6``, or several with commas); for all from 8.0 on if None.

    Raises:
        NetworkError: one of them is none that this version builds for.
    """
    if compute_capability is None:
        return
    wanted = [part.strip() for part in compute_capability.split(",")]
    known = targets(library)
    if refused := [target for target in wanted if target not in known]:
        raise NetworkError(
            f"{library} does not build for compute capability {', '.join(refused)}, only for {', '.join(known)}; "
            "Jetson and data-centre GPUs need the full TensorRT (library tensorrt)"
        )
    trt = library.module
    config.num_compute_capabilities = len(wanted)
    for index, target in enumerate(wanted):
        member = trt.ComputeCapability.__members__[f"SM{target.replace('.', '')}"]
        if not config.set_compute_capability(member, index):
            raise NetworkError(f"{library} refuses compute capability {target}{library.logger.take_errors()}")


def require_user_memory(library: Library, config: Any) -> None:
    """Have an engine that never allocates while it runs, so that its runs can be captured in a CUDA graph."""
    config.set_flag(library.module.BuilderFlag.REQUIRE_USER_ALLOCATION)


class Kernels:
    """The kernels of one engine, compiled for this GPU when they are first needed, and kept in a file beside it."""

    def __init__(self, library: Library, engine: Any, engine_file: Path) -> None:
        self._file = engine_file.with_name(engine_file.name + KERNELS_SUFFIX)
        self.config = engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(
            library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._cache = self.config.create_runtime_cache()
        self._known = self._load()
        if not self.config.set_runtime_cache(self._cache):
            _LOGGER.warning("%s: the cache of kernels is refused; they are compiled anew each time", engine_file.name)

    def _load(self) -> bytes:
        try:
            data = self._file.read_bytes()
        except OSError:
            return b""
        if data and self._cache.deserialize(data):
            return data
        _LOGGER.info("%s is of another GPU, driver or version; its kernels are compiled anew", self._file.name)
        return b""

    def save(self) -> None:
        """Keep what was compiled since; only logged if that fails."""
        serialized = self._cache.serialize()
        if serialized is None or bytes(serialized) == self._known:
            return
        self._known = bytes(serialized)
        try:
            write_atomically(self._file, self._known)
        except NetworkError as error:
            _LOGGER.warning("compiled kernels are lost: %s", error)


def can_be_captured(context: Any, stream: int) -> bool:
    """Whether runs of this context can be captured in a CUDA graph."""
    return bool(context.is_stream_capturable(stream))
