# SPDX-License-Identifier: Apache-2.0
"""What TensorRT says, into Python's logging; its latest errors are kept for our own messages."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

_LOGGER = logging.getLogger("recon_ros.runtimes.trt")
_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    # Hundreds of lines a build, about nothing that a user could change.
    "INFO": logging.DEBUG,
    "VERBOSE": logging.DEBUG,
}
ERRORS_KEPT = 5


def make_logger(trt: Any) -> Any:
    """An `ILogger` of this module; has ``take_errors() -> str``. Must outlive all that is created with it."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            # Not super(): TensorRT asks for this very call, without which the object is half a C++ one.
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=ERRORS_KEPT)

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT, from any of its threads."""
            level = _LEVELS.get(severity.name, logging.DEBUG)
            if level >= logging.ERROR:
                self.errors.append(msg)
            _LOGGER.log(level, "%s", msg)

        def take_errors(self) -> str:
            """The errors since the last call as one text: ``": …"``, or nothing."""
            said = "; ".join(dict.fromkeys(self.errors))
            self.errors.clear()
            return f": {said}" if said else ""

    return Logger()
