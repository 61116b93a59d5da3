# SPDX-License-Identifier: Apache-2.0
"""`build_only`: make what the runtime of a source lacks before the robot needs it, and end."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from recon_ros.config import Config
from recon_ros.errors import ConfigError, NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.reconstructor import grid_for
from recon_ros.ros.statistics import Throttle
from recon_ros.runtimes import make_source
from recon_ros.runtimes.source import NetworkSource
from recon_ros.runtimes.status import BUILDING, RuntimeStatus

ASPECT = 4 / 3
"""Of the image, where neither the configuration nor the card tells its size."""


def build_for(config: Config, log: Any, stop: threading.Event, idle: Callable[[], None]) -> None:
    """Build, load and check what `config.source` needs for images of ``engine.size``; return when it is ready.

    Args:
        config: as the node would run with; ``engine.build`` is taken for set.
        log: logger of the node; hears of the progress every five seconds.
        stop: ends the build.
        idle: called again and again meanwhile; takes a moment.

    Raises:
        ConfigError: the source is no network, or the size cannot be read.
        NetworkError: it cannot be built, was stopped, or what was built gives wrong numbers.
    """
    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, build=True))
    source = make_source(config)
    if not isinstance(source, NetworkSource):
        raise ConfigError(f"source '{config.source}' is no network, so there is nothing to build for it")
    width, height = network_size(config, source.card)
    throttle = Throttle()

    def tell(status: RuntimeStatus) -> None:
        if status.state == BUILDING and throttle.passes(BUILDING):
            log.info(status.message)

    with ThreadPoolExecutor(1, thread_name_prefix="recon_build") as pool:
        try:
            job = pool.submit(source.prepare, width, height, tell)
            while not job.done():
                if stop.is_set():
                    source.close()
                idle()
            job.result()
            status = source.runtime_status
        finally:
            source.close()
    if config.runtime not in ("auto", status.runtime.split(" ")[0]):
        raise NetworkError(f"runtime {config.runtime} is not usable for {source.card.name}: {status.message}")
    log.info(f"ready for images of {width}x{height}: {status.message} ({status.file or 'no files needed'})")


def network_size(config: Config, card: ModelCard) -> tuple[int, int]:
    """(width, height) of the network's image for a camera's image of ``engine.size``.

    Raises:
        ConfigError: the size cannot be read.
    """
    largest = card.max_size or config.input.max_size
    width, height = getattr(card, "input_size", (largest, round(largest / ASPECT)))
    if config.engine.size:
        found = re.fullmatch(r"\s*(\d{2,5})\s*[xX]\s*(\d{2,5})\s*", config.engine.size)
        if found is None:
            raise ConfigError(
                f"option 'engine.size' is '{config.engine.size}'; it must be height x width, as 480x640, or empty"
            )
        height, width = int(found[1]), int(found[2])
    grid = grid_for(config, card, width, height)
    return grid.grid_width, grid.grid_height
