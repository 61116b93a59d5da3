# SPDX-License-Identifier: Apache-2.0
"""What the core logs, as lines of the node: on the console and on /rosout."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

CORE = "recon_ros"


class _Handler(logging.Handler):
    """Hands records to a logger of rclpy."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        # rclpy wants one level from one line of code, so each has a line of its own.
        self._say = {
            logging.ERROR: lambda text: logger.error(text),
            logging.WARNING: lambda text: logger.warning(text),
            logging.INFO: lambda text: logger.info(text),
            logging.DEBUG: lambda text: logger.debug(text),
        }

    def emit(self, record: logging.LogRecord) -> None:
        level = next((level for level in self._say if record.levelno >= level), logging.DEBUG)
        try:
            self._say[level](self.format(record))
        except Exception:
            self.handleError(record)


def say_logs(logger: Any) -> Callable[[], None]:
    """Have the core's records said by `logger` of rclpy, which decides by level; the returned function ends it."""
    core, handler = logging.getLogger(CORE), _Handler(logger)
    level, propagate = core.level, core.propagate
    core.addHandler(handler)
    core.setLevel(logging.DEBUG)
    core.propagate = False

    def undo() -> None:
        core.removeHandler(handler)
        core.setLevel(level)
        core.propagate = propagate

    return undo
