# SPDX-License-Identifier: Apache-2.0
"""Which keyframes hold what they saw in RAM, and which have it on the disk: a bound of RAM, whatever the map's size.

**What counts.** Pointmap, confidence, colour and features of a keyframe, 0.9 MB at the defaults, while they are in
memory that only the process has (`RssAnon` of Linux). On the disk they are memory-mapped and used in place; what is
read of them there is the kernel's cache, which it takes back when others need memory. It would still be shown as the
process's RSS (`RssFile`), so when the camera comes to another keyframe it is let go of (MADV_DONTNEED). A loaded map,
which is memory-mapped as well, is treated alike. Not counted is what is made of keyframes: the voxel map, the index of
places, 24 surfaces.

**What goes.** Beyond `memory.max_ram_mb` the keyframes farthest from the camera, until a tenth of the bound is free.
Farthest are those of submaps that are not joined to the camera's, oldest first; then by the distance between their
centre and that of the keyframe the camera is tracked against. What a keyframe saw never changes, so it is written once
at most: one that comes back and goes again is only forgotten.

**What comes.** The nearest keyframes, as many as fit in a quarter of the bound, a few at a time. So who walks back
finds what is before him in RAM, and nothing goes to and fro.

**What is given back.** A keyframe that is culled leaves its part of the file, and the file goes with its last one; when
less than half of a file is in use, the rest is written anew. The disk holds no more than twice what is needed, and
64 files.

**Who does it.** A worker, beside the tracking (or at once, where every run is to be the same); tracking takes over what
is done with an assignment. While the worker is at it, or when the disk does not take what it should, keyframes stay in
RAM, beyond the bound: it is said once, counted, and tried again every half minute.
"""

from __future__ import annotations

import functools
import logging
import mmap
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from recon_ros.config import MemoryConfig
from recon_ros.frame import Keyframe
from recon_ros.memory.mapped import Arrays, folder_for, let_go, written

LOGGER = logging.getLogger("recon_ros.memory")

KEPT = 0.9
"""Share of the bound that is in use after keyframes have gone."""
NEAR = 0.25
"""Share of the bound that the nearest keyframes come back to."""
AT_ONCE = 8
"""Keyframes that come back in one go."""
IN_USE = 0.5
"""Share of a file below which it is written anew."""
FILES = 64
"""Files there may be; beyond it the smaller half is written anew as one."""
RETRY_S = 30.0


class Done(Protocol):
    """A job that has ended: what it returned, or what it raised."""

    @property
    def value(self) -> Any: ...
    @property
    def error(self) -> Exception | None: ...


class Worker(Protocol):
    """Does jobs, at once or beside; see `mapping.backend`."""

    def submit(self, job: Callable[[], Any]) -> int: ...
    def poll(self) -> Sequence[Done]: ...
    def close(self) -> None: ...


@dataclass(eq=False)
class _File:
    """A file with what keyframes saw: its bytes, and those of the keyframes that still need it, by id."""

    mappings: list[mmap.mmap]
    size: int
    used: dict[int, int]


@dataclass(eq=False)
class _Place:
    """Where a keyframe is: its arrays, the bytes of them that are in RAM, and the same on the disk when they are there
    (of a loaded map all but features)."""

    keyframe: Keyframe
    total: int
    ram: int
    disk: Arrays | None = None
    file: _File | None = None


@dataclass(frozen=True, eq=False)
class _Moved:
    """What the worker has done: arrays that are in a new file, and arrays that are in RAM, by keyframe id."""

    gone: dict[int, Arrays] = field(default_factory=dict)
    come: dict[int, Arrays] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """Keyframes that are on the disk only, bytes of all in RAM and in files, and how often the disk took none."""

    spilled: int
    ram_bytes: int
    disk_bytes: int
    failures: int


class Spill:
    """Keeps what keyframes hold within a bound of RAM.

    Args:
        config: with the bound and the folder.
        worker: who writes and reads.
    """

    def __init__(self, config: MemoryConfig, worker: Worker) -> None:
        self._most = config.max_ram_mb * 2**20
        self._folder = config.spill_folder
        self._worker = worker
        self._places: dict[int, _Place] = {}
        self._files: list[_File] = []
        self._loaded: dict[int, mmap.mmap] = {}
        self._ram = self._total = 0
        self._at: int | None = None
        self._is_settled = False
        self._moving: dict[int, _Place] | None = None
        self._is_closed = False
        self._failures = 0
        self._retry_at = 0.0

    def close(self) -> None:
        """End; keyframes stay where they are."""
        self._is_closed = True
        self._worker.close()

    @property
    def usage(self) -> Usage:
        spilled = sum(place.ram == 0 for place in self._places.values())
        return Usage(spilled, self._ram, sum(file.size for file in self._files), self._failures)

    def add(self, keyframe: Keyframe) -> None:
        """Count a keyframe in; from now on its arrays are where they can be counted."""
        arrays = Arrays.of(keyframe)
        place = _Place(keyframe, arrays.nbytes, arrays.ram_bytes)
        if place.ram < place.total:
            place.disk = arrays
            self._loaded |= {id(mapping): mapping for mapping in arrays.mappings()}
        else:
            arrays.in_ram().give(keyframe)
        self._places[keyframe.id] = place
        self._ram += place.ram
        self._total += place.total
        self._is_settled = False

    def remove(self, keyframe_id: int) -> None:
        """Forget a keyframe."""
        place = self._places.pop(keyframe_id)
        self._ram -= place.ram
        self._total -= place.total
        self._is_settled = False
        self._leave_file(place)

    def restore(self, keyframes: Iterable[Keyframe]) -> None:
        """Begin anew with these."""
        self._places, self._files, self._loaded = {}, [], {}
        self._ram, self._total, self._at = 0, 0, None
        for keyframe in keyframes:
            self.add(keyframe)

    def settle(self, at: int, nearest_first: Callable[[], Sequence[int]]) -> None:
        """Keep the bound, the camera being by keyframe `at`. Never waits for a worker that works beside.

        Args:
            at: id of that keyframe.
            nearest_first: gives the ids of all keyframes; asked when something may have to be done.
        """
        self._take_over()
        if self._is_closed or self._moving is not None or time.monotonic() < self._retry_at:
            return
        if self._is_settled and at == self._at:
            return
        self._at, self._is_settled = at, True
        if self._ram == self._total <= self._most and not self._files:
            return
        order = nearest_first()
        near = self._near(order)
        coming = [i for i in near if self._places[i].ram < self._places[i].total]
        self._is_settled = len(coming) <= AT_ONCE
        coming = coming[:AT_ONCE]
        going = self._going(order[len(near) :], sum(self._places[i].total - self._places[i].ram for i in coming))
        self._move(coming, going)
        self._take_over()

    def _near(self, order: Sequence[int]) -> Sequence[int]:
        """The nearest keyframes that fit in their share of the bound."""
        room = NEAR * self._most
        for n, i in enumerate(order):
            room -= self._places[i].total
            if room < 0:
                return order[:n]
        return order

    def _going(self, rest: Sequence[int], coming: int) -> list[int]:
        """The farthest of the rest that must make room, when so many bytes come."""
        if self._ram + coming <= self._most:
            return []
        surplus, going = self._ram + coming - KEPT * self._most, []
        for i in reversed(rest):
            if surplus <= 0:
                break
            surplus -= self._places[i].ram
            if self._places[i].ram:
                going.append(i)
        return going

    def _move(self, coming: Sequence[int], going: Sequence[int]) -> None:
        """Forget what is on the disk already; the rest is the worker's."""
        writing: dict[int, Arrays] = {}
        for i in going:
            place = self._places[i]
            if place.disk is not None and place.disk.ram_bytes == 0:
                self._put(place, place.disk)
            else:
                writing[i] = place.disk or Arrays.of(place.keyframe)
        writing |= self._scattered()
        reading = {i: Arrays.of(self._places[i].keyframe) for i in coming}
        mappings = [*self._loaded.values(), *(mapping for file in self._files for mapping in file.mappings)]
        if writing or mappings:
            self._moving = {i: self._places[i] for i in (*writing, *reading)}
            self._worker.submit(functools.partial(_moved, self._folder, writing, reading, mappings))

    def _scattered(self) -> dict[int, Arrays]:
        """What is to be written anew, because most of the file that it is in is not used any more, or because there are
        too many files."""
        found = {}
        files = [f for f in self._files if sum(f.used.values()) < IN_USE * f.size]
        if len(self._files) > FILES:
            files += sorted(self._files, key=lambda f: f.size)[: FILES // 2]
        for file in files:
            for place in [self._places[i] for i in file.used]:
                if place.ram:  # it will be written when it goes again
                    self._leave_file(place)
                elif place.disk is not None:
                    found[place.keyframe.id] = place.disk
        return found

    def _take_over(self) -> None:
        for finished in self._worker.poll():
            asked, self._moving = self._moving or {}, None
            if finished.error is not None:
                self._has_failed(finished.error)
                continue
            moved: _Moved = finished.value
            there = {i for i, place in asked.items() if self._places.get(i) is place}  # others were culled meanwhile
            self._take_file(moved.gone, there)
            for i in there & moved.come.keys():
                self._put(self._places[i], moved.come[i])

    def _take_file(self, gone: dict[int, Arrays], there: Set[int]) -> None:
        """Have the keyframes that are still there look into a file that was written."""
        used = {i: arrays.nbytes for i, arrays in gone.items() if i in there}
        if not used:
            return
        mappings = {id(mapping): mapping for i in used for mapping in gone[i].mappings()}
        file = _File(list(mappings.values()), sum(arrays.nbytes for arrays in gone.values()), used)
        self._files.append(file)
        for i in used:
            place = self._places[i]
            self._leave_file(place)
            place.disk, place.file = gone[i], file
            self._put(place, gone[i])

    def _leave_file(self, place: _Place) -> None:
        """What is in a file for a keyframe is not needed any more."""
        file = place.file
        if file is not None:
            place.disk, place.file = None, None
            del file.used[place.keyframe.id]
            if not file.used:
                self._files.remove(file)

    def _put(self, place: _Place, arrays: Arrays) -> None:
        """Have a keyframe hold these arrays from now on."""
        arrays.give(place.keyframe)
        ram = arrays.ram_bytes
        self._ram += ram - place.ram
        place.ram = ram

    def _has_failed(self, error: Exception) -> None:
        self._failures += 1
        self._is_settled = False
        self._retry_at = time.monotonic() + RETRY_S
        if self._failures == 1:
            LOGGER.warning(
                "keyframes stay in RAM, beyond memory.max_ram_mb: they cannot be moved to the disk (%s); make room, or "
                "set memory.spill_folder to a folder on another disk",
                error,
            )


def _moved(
    folder: str, writing: dict[int, Arrays], reading: dict[int, Arrays], mappings: Sequence[mmap.mmap]
) -> _Moved:
    """The worker's job."""
    gone = written(folder_for(folder), list(writing.values())) if writing else []
    come = {i: arrays.in_ram() for i, arrays in reading.items()}
    let_go(mappings)
    return _Moved(dict(zip(writing, gone, strict=True)), come)
