# SPDX-License-Identifier: Apache-2.0
"""Engines on disk: built once for all processes, whole or not there at all, and explained when they do not fit.

A folder for each key, in it ``<graph>.engine`` for each graph and ``engine.json`` with the full key and the SHA-256
of each file. An engine is built in a folder beside it (``….building``) and renamed when all of it is on the disk, so
that neither a full disk nor a killed process leaves half of one. Whoever builds holds ``….lock``, which the system
takes back when the process dies, however it dies.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recon_ros.disk import sync, sync_folder
from recon_ros.errors import NetworkError
from recon_ros.networks.fetch import cache_folder, file_digest
from recon_ros.runtimes.bundle import NO_ROOM
from recon_ros.runtimes.engine_key import EngineKey, differences

SIDECAR = "engine.json"
SUFFIX = ".engine"
BUILDING = ".building"
LOCK = ".lock"
DAMAGED = ".damaged"
FORMAT = 1
POLL_S = 0.2


class BuildStopped(NetworkError):
    """The one who waited for another process's build wants it no more."""


@dataclass(frozen=True)
class Engines:
    """The engines of one key, whole and as they were built.

    Attributes:
        key: what they were built from and for.
        folder: where they lie.
        files: by name of the graph.
        built_at: UTC, ISO 8601.
        duration_s: how long the build took, seconds.
    """

    key: EngineKey
    folder: Path
    files: dict[str, Path]
    built_at: str
    duration_s: float

    @property
    def nbytes(self) -> int:
        """Size of all files together."""
        return sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True)
class Missing:
    """No engine for a key, and why."""

    reason: str


@dataclass(frozen=True)
class Entry:
    """A folder of the cache: its engines, or what is wrong with them."""

    folder: Path
    found: Engines | Missing


class EngineCache:
    """All engines of a user."""

    def __init__(self, root: Path | None = None) -> None:
        """Without `root`: ``engines/`` in the user's cache. Nothing is written before something is built."""
        self.root = root if root is not None else cache_folder() / "engines"

    def find(self, key: EngineKey) -> Engines | Missing:
        """The engines of that key, every byte checked; or the reason why there are none that can be used."""
        folder = self.root / key.folder_name
        if folder.is_dir():
            found = read_engines(folder)
            if isinstance(found, Missing) or found.key.serves(key):
                return found
        others = [found for found in self._whole(key) if found.key.is_like(key)]
        for other in others:
            if other.key.serves(key):
                return read_engines(other.folder)
        if not others:
            return Missing("no engine yet")
        nearest = min([differences(other.key, key) for other in others], key=lambda clauses: len(clauses))
        return Missing("; ".join(nearest))

    def _whole(self, key: EngineKey) -> Iterator[Engines]:
        """Other entries that may be the wanted network's, not read to the last byte."""
        for folder in self._folders():
            if folder.name != key.folder_name and isinstance(found := read_engines(folder, whole=False), Engines):
                yield found

    def entries(self) -> list[Entry]:
        """All entries by name. Sizes are checked, contents are not: that would take seconds for each."""
        return [Entry(folder, read_engines(folder, whole=False)) for folder in self._folders()]

    def _folders(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if path.is_dir() and path.suffix not in (BUILDING, DAMAGED))

    def build(
        self,
        key: EngineKey,
        make: Callable[[Path], None],
        waiting: Callable[[float], bool] = lambda seconds: True,
    ) -> Engines:
        """The engines of that key; made if they are not here. Two processes at once make them once.

        Args:
            key: of the engines.
            make: writes ``<graph>.engine`` for each graph into the folder it is given.
            waiting: told every fraction of a second for how many seconds another process has been building these
                engines; False gives up.

        Raises:
            NetworkError: the folder cannot be written, the disk is full, or `make` raised it. What was there
                before is as it was.
            BuildStopped: `waiting` returned False.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._locked(key, waiting):
                found = self.find(key)
                if isinstance(found, Engines):
                    return found
                self._sweep(mine=key.folder_name)
                return self._make(key, make)
        except OSError as error:
            raise NetworkError(self._trouble(key, error)) from error

    @contextmanager
    def _locked(self, key: EngineKey, waiting: Callable[[float], bool]) -> Iterator[None]:
        lock = FileLock(self._beside(key.folder_name, LOCK))
        started = time.monotonic()
        while not _take(lock):
            if not waiting(time.monotonic() - started):
                raise BuildStopped(f"{key.folder_name}: gave up waiting for the process that builds it")
            time.sleep(POLL_S)
        try:
            yield
        finally:
            lock.release()

    def _make(self, key: EngineKey, make: Callable[[Path], None]) -> Engines:
        """Make, seal and rename; the lock is held."""
        folder, building = self.root / key.folder_name, self._beside(key.folder_name, BUILDING)
        building.mkdir()
        try:
            started = time.monotonic()
            make(building)
            _seal(building, key, time.monotonic() - started)
            if folder.exists():
                set_aside(folder)
            os.rename(building, folder)
            sync(self.root)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        # Set aside just now, or by who was refused these engines.
        shutil.rmtree(self._beside(key.folder_name, DAMAGED), ignore_errors=True)
        engines = read_engines(folder, whole=False)
        if isinstance(engines, Missing):
            raise NetworkError(f"{folder}: {engines.reason} right after it was built; is the disk at fault?")
        return engines

    def _sweep(self, mine: str) -> None:
        """Remove what builds left that died: folders whose lock nobody holds, or we ourselves."""
        for building in self.root.glob(f"*{BUILDING}"):
            name = building.name.removesuffix(BUILDING)
            lock = FileLock(self._beside(name, LOCK))
            if name == mine or _take(lock):
                shutil.rmtree(building, ignore_errors=True)
                lock.release()

    def _beside(self, name: str, suffix: str) -> Path:
        return self.root / f"{name}{suffix}"

    def _trouble(self, key: EngineKey, error: OSError) -> str:
        if error.errno not in NO_ROOM:
            return f"{key.folder_name}: {error.filename or self.root}: {error.strerror or error}"
        free = shutil.disk_usage(self.root).free if self.root.is_dir() else 0
        return (
            f"{key.folder_name}: the disk is full ({error.strerror}): {self.root} has {free / 1e6:.0f} MB left; make "
            "room, or set engine.cache to a folder on another disk"
        )


def _take(lock: FileLock) -> bool:
    """Take a lock if nobody has it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def read_engines(folder: Path, whole: bool = True) -> Engines | Missing:
    """The engines in a folder, or what is wrong with them.

    Args:
        folder: of one key.
        whole: read every byte; otherwise sizes alone are checked.
    """
    try:
        sidecar = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        if sidecar["format"] != FORMAT:
            return Missing(f"written by another version of this program (format {sidecar['format']!r})")
        key = EngineKey.from_dict(sidecar["key"])
        facts: dict[str, dict[str, Any]] = sidecar["engines"]
        for graph, fact in facts.items():
            if problem := _problem(folder / f"{graph}{SUFFIX}", fact, whole):
                return Missing(problem)
        files = {graph: folder / f"{graph}{SUFFIX}" for graph in facts}
        return Engines(key, folder, files, str(sidecar["built_at"]), float(sidecar["duration_s"]))
    except FileNotFoundError as error:
        return Missing(f"incomplete: {Path(error.filename or SIDECAR).name} is missing")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Missing(f"damaged: {SIDECAR} cannot be read ({type(error).__name__}: {error})")


def _problem(path: Path, fact: dict[str, Any], whole: bool) -> str:
    size = path.stat().st_size
    if size != fact["bytes"]:
        return f"truncated: engine file {path.name} has {size} of {fact['bytes']} bytes"
    if whole and file_digest(path) != fact["sha256"]:
        return f"damaged: engine file {path.name} is not as it was built (its SHA-256 differs)"
    return ""


def set_aside(folder: Path) -> Path:
    """Take an entry out of use; it is removed when its successor is there.

    For engines that are whole and that the library refuses all the same, before `EngineCache.build` makes new ones.
    """
    damaged = folder.with_name(folder.name + DAMAGED)
    shutil.rmtree(damaged, ignore_errors=True)
    os.rename(folder, damaged)
    return damaged


def _seal(folder: Path, key: EngineKey, duration_s: float) -> None:
    """Write the sidecar, and have everything on the disk."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        raise NetworkError(f"{key.folder_name}: the build ended and wrote no engine")
    sidecar = {
        "format": FORMAT,
        "key": key.to_dict(),
        "engines": {
            path.name.removesuffix(SUFFIX): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            for path in files
        },
        "built_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "duration_s": round(duration_s, 3),
    }
    (folder / SIDECAR).write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
    sync_folder(folder)
