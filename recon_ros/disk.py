# SPDX-License-Identifier: Apache-2.0
"""Having what was written on the disk before anybody relies on it: for maps, ONNX graphs and engines alike."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Have a file, or the names that a folder lists, on the disk.

    Raises:
        OSError: it is not there, or the disk does not take it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have all files of a folder, which has no folders inside, and their names on the disk.

    Raises:
        OSError: see `sync`.
    """
    for path in folder.iterdir():
        sync(path)
    sync(folder)
