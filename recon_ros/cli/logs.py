# SPDX-License-Identifier: Apache-2.0
"""What the core logs, on the console."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from recon_ros.cli.results import warn

CORE = "recon_ros"


class _Handler(logging.Handler):
    """One line for a record; warnings look like those of the commands."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            warn(self._console, text)
        else:
            self._console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def say_logs(console: Console) -> Iterator[None]:
    """Show the core's records from INFO on while the block runs."""
    core, handler = logging.getLogger(CORE), _Handler(console)
    level = core.level
    core.addHandler(handler)
    core.setLevel(logging.INFO)
    try:
        yield
    finally:
        core.removeHandler(handler)
        core.setLevel(level)
