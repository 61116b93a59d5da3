# SPDX-License-Identifier: Apache-2.0
"""A folder that is replaced as a whole: whoever is killed at whatever moment leaves the old one or the new one.

The new folder is written beside the old one and reaches the disk before the old one steps aside. A folder cannot be
exchanged for another in one step on every file system, so for a moment the old one has another name; `find` knows it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recon_ros.disk import sync, sync_folder

OLD = ".old"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its place when the block ends without an error.

    Raises:
        OSError: when something cannot be written; what was there stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    unfinished = _sibling(folder)
    unfinished.mkdir()
    lock = os.open(unfinished, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as long as it is held, nobody sweeps the folder away
        yield unfinished
        sync_folder(unfinished)
        _take_the_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.close(lock)


def find(folder: Path) -> Path:
    """Where the contents of `folder` are: there, or where an interrupted replacement has put them."""
    if folder.exists():
        return folder
    aside = [path for path in _siblings(folder) if path.suffix == OLD]
    return max(aside, key=lambda path: path.stat().st_mtime_ns, default=folder)


def _sibling(folder: Path, suffix: str = "") -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}{suffix}")


def _siblings(folder: Path) -> list[Path]:
    """What replacements of `folder` have left beside it."""
    if not folder.parent.is_dir():
        return []
    start = f".{folder.name}."
    return [
        path
        for path in folder.parent.iterdir()
        if path.name.startswith(start) and _is_tag(path.name[len(start) :].removesuffix(OLD)) and path.is_dir()
    ]


def _is_tag(text: str) -> bool:
    return len(text) == 8 and all(c in "0123456789abcdef" for c in text)


def _sweep(folder: Path) -> None:
    """Take away what writers have left that were killed."""
    for path in _siblings(folder):
        if path.suffix == OLD and not folder.exists():
            continue  # the only map there is
        try:
            lock = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # somebody is at work on it
        finally:
            os.close(lock)


def _take_the_place(unfinished: Path, folder: Path) -> None:
    aside = _sibling(folder, OLD)
    if folder.exists():
        os.rename(folder, aside)
    try:
        os.rename(unfinished, folder)
    except OSError:
        if aside.exists():
            os.rename(aside, folder)
        raise
    sync(folder.parent)
    _sweep(folder)
