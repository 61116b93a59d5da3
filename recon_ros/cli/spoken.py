# SPDX-License-Identifier: Apache-2.0
"""How `recon` says that something went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from recon_ros.errors import ReconError


@contextmanager
def spoken_errors() -> Iterator[None]:
    """An expected error is one sentence on stderr and exit code 1, never a stack trace."""
    try:
        yield
    except ReconError as error:
        _fail(str(error), error)
    except OSError as error:  # a full disk, or a file that is not ours to write
        _fail(f"{error.filename or 'the results'}: {error.strerror or error}", error)


def _fail(sentence: str, cause: Exception) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(sentence)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1) from cause
