# SPDX-License-Identifier: Apache-2.0
"""Arrays of keyframes in files that have no name, looked into by memory-mapped arrays.

The name is gone before anything is written (where the file system can, there never was one: O_TMPFILE). Whoever is
killed at whatever moment leaves nothing behind, nobody else can change what was written, and the file goes with the
last array that looks into it, whichever thread holds that. Many keyframes share a file, because each mapping holds a
file descriptor, of which a process often has 1024.

Like memory that was swapped out, what a broken disk does not give back ends the process.
"""

from __future__ import annotations

import errno
import mmap
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from recon_ros.frame import Keyframe
from recon_ros.geometry.features import Features

ALIGNMENT = 64
"""Bytes; arrays begin at multiples of it, so that rows of any type can be read as they are."""
SPARE = 256 << 20
"""Bytes of a disk that are left to others."""
RAM_DISKS = {"tmpfs", "ramfs"}


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a keyframe holds: points, confidence, colour, and pixels, descriptors and points of its features."""

    arrays: tuple[NDArray[Any], ...]

    @classmethod
    def of(cls, keyframe: Keyframe) -> Arrays:
        """The arrays a keyframe has now, shared."""
        f = keyframe.features
        return cls((keyframe.points, keyframe.confidence, keyframe.colour, f.pixels, f.descriptors, f.points))

    def give(self, keyframe: Keyframe) -> None:
        """Have a keyframe hold these instead; they are the same numbers in another place."""
        keyframe.points, keyframe.confidence, keyframe.colour = self.arrays[:3]
        keyframe.features = Features(*self.arrays[3:])

    @property
    def nbytes(self) -> int:
        """Of all arrays, wherever they are."""
        return sum(a.nbytes for a in self.arrays)

    @property
    def ram_bytes(self) -> int:
        """Of those that are not memory-mapped."""
        return sum(a.nbytes for a in self.arrays if mapping_of(a) is None)

    def in_ram(self) -> Arrays:
        """Copies in pages of their own, not in the heap: what goes from there leaves holes, and a process with holes
        grows to twice what it holds.
        """
        size = sum(_padded(a.nbytes) for a in self.arrays) + ALIGNMENT
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        copies = _laid_out(self.arrays, pages)
        for copy, array in zip(copies, self.arrays, strict=True):
            copy[...] = array
        return Arrays(tuple(copies))

    def mappings(self) -> list[mmap.mmap]:
        """What the memory-mapped ones look into."""
        return [m for m in map(mapping_of, self.arrays) if m is not None]


def mapping_of(array: NDArray[Any]) -> mmap.mmap | None:
    """The read-only mapping that an array looks into, or None when it is in RAM."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) and not array.flags.writeable else None


def written(folder: Path, seen: Sequence[Arrays]) -> list[Arrays]:
    """The same arrays in a new file in a folder; those that are somewhere on a disk already go along.

    Raises:
        OSError: the disk is full, or nearly so, or cannot be written to; nothing is left there.
    """
    everything = [array for arrays in seen for array in arrays.arrays]
    size = sum(_padded(array.nbytes) for array in everything)
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        text = f"{free >> 20} MB are free there, {SPARE >> 20} MB of which are left to others"
        raise OSError(errno.ENOSPC, text, str(folder))
    with tempfile.TemporaryFile(dir=folder) as file:
        for array in everything:
            file.write(np.ascontiguousarray(array).data if array.size else b"")
            file.write(bytes(_padded(array.nbytes) - array.nbytes))
        file.write(bytes(ALIGNMENT))  # a file of nothing cannot be mapped
        file.flush()
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    there = iter(_laid_out(everything, mapping))
    return [Arrays(tuple(next(there) for _ in arrays.arrays)) for arrays in seen]


def _laid_out(like: Iterable[NDArray[Any]], buffer: mmap.mmap) -> list[NDArray[Any]]:
    """Arrays like these, one after the other in a buffer."""
    found, offset = [], 0
    for array in like:
        found.append(np.ndarray(array.shape, array.dtype, buffer=buffer, offset=offset))
        offset += _padded(array.nbytes)
    return found


def let_go(mappings: Iterable[mmap.mmap]) -> None:
    """Take what was read of mapped files out of the process; the next look takes it from the kernel's cache again."""
    for mapping in mappings:
        mapping.madvise(mmap.MADV_DONTNEED)


def folder_for(wanted: str) -> Path:
    """The folder to write to, made when it is not there: the wanted one, or one for temporary files on a disk.

    Raises:
        OSError: there is none that can be made, or only in RAM.
    """
    folders = [Path(wanted).expanduser()] if wanted else [Path(tempfile.gettempdir()), Path("/var/tmp")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_in_ram(folder.resolve()):
            return folder
    raise OSError(errno.EINVAL, "it is in RAM, where nothing would be saved", str(folders[-1]))


def _is_in_ram(folder: Path) -> bool:
    mounts = {Path(m.mountpoint): m.fstype for m in psutil.disk_partitions(all=True)}
    place = next((path for path in (folder, *folder.parents) if path in mounts), None)
    return place is not None and mounts[place] in RAM_DISKS


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
