# SPDX-License-Identifier: Apache-2.0
"""What the full TensorRT measured while building, kept for the next build on the same GPU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.runtimes.trt.files import write_atomically

_LOGGER = logging.getLogger("recon_ros.runtimes.trt")


def load(config: Any, path: Path) -> None:
    """Give `config` the cache of a file; an empty one where it is missing, or of another GPU or version."""
    data = b""
    try:
        data = path.read_bytes()
    except OSError:
        _LOGGER.debug("no timing cache at %s yet", path)
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        _LOGGER.info("the timing cache %s is of another GPU or version; begun anew", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def save(config: Any, path: Path) -> None:
    """Write the cache that `config` has; only logged if that fails, the engine is good without it."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        write_atomically(path, cache.serialize())
    except NetworkError as error:
        _LOGGER.warning("the timing cache is lost: %s", error)
