# SPDX-License-Identifier: Apache-2.0
"""Any number of frames from one rendered lap: a small recording, played again and again with stamps that go on."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recon_ros.datasets.rosbag import BagReader
from recon_ros.frame import Frame, Trajectory

if TYPE_CHECKING:
    from recon_ros.datasets.synthetic import SyntheticWarehouse

FRAMES = 250
WIDTH, HEIGHT = 320, 240
RATE_HZ = 10.0
LAP_NS = round(FRAMES / RATE_HZ * 1e9)

RawMessage = tuple[str, str, int, bytes]


def lap_bag(path: Path) -> Path:
    """A recording of one whole lap through the synthetic warehouse; made when it is not there.

    Rendered by a process of its own, so that the scene does not count as memory of the one that is watched.
    """
    return rendered(path, lap)


def lap() -> SyntheticWarehouse:
    """One lap in `FRAMES` frames."""
    from recon_ros.datasets.synthetic import SyntheticWarehouse

    speed = SyntheticWarehouse(1).lap_length / (FRAMES / RATE_HZ)
    return SyntheticWarehouse(FRAMES, WIDTH, HEIGHT, rate_hz=RATE_HZ, speed=speed, noise=True)


def rendered(path: Path, make: Callable[[], SyntheticWarehouse]) -> Path:
    """What `make`, a module's function, describes as a bag; rendered when it is not there, in a process of its own."""
    if not (path / "metadata.yaml").exists():
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        process = multiprocessing.get_context("spawn").Process(target=_render, args=(path, make))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"rendering {path.name} failed with exit code {process.exitcode}")
    return path


def _render(path: Path, make: Callable[[], SyntheticWarehouse]) -> None:
    from recon_ros.datasets.bag_writer import write_bag

    unfinished = path.with_name(f"{path.name}.part") / path.name  # a bag's files are named after its folder
    shutil.rmtree(unfinished.parent, ignore_errors=True)
    unfinished.parent.mkdir()
    recording = make()
    write_bag(unfinished, recording, recording.ground_truth())
    unfinished.rename(path)
    unfinished.parent.rmdir()


def frames(reader: BagReader, count: int) -> Iterator[Frame]:
    """The first `count` frames of endless laps."""
    for lap in range(-(-count // FRAMES)):
        for i, frame in enumerate(reader.frames()):
            if lap * FRAMES + i == count:
                return
            yield dataclasses.replace(frame, stamp_ns=frame.stamp_ns + lap * LAP_NS)


def messages(reader: BagReader, topics: list[str], count: int) -> Iterator[RawMessage]:
    """The serialised messages of the same frames; their stamps are changed where CDR keeps a header's."""
    for lap in range(-(-count // FRAMES)):
        for i, (topic, kind, time_ns, data) in enumerate(reader.raw_messages(topics)):
            if lap * FRAMES + i // len(topics) == count:
                return
            yield topic, kind, time_ns + lap * LAP_NS, _restamped(data, lap * LAP_NS)


def truth(reader: BagReader, count: int) -> Trajectory:
    """The true poses of the same frames."""
    lap = reader.ground_truth()
    assert lap is not None
    laps = -(-count // FRAMES)
    stamps = np.concatenate([lap.stamps_ns + i * LAP_NS for i in range(laps)])
    return Trajectory(stamps[:count], np.concatenate([lap.poses] * laps)[:count])


def _restamped(data: bytes, offset_ns: int) -> bytes:
    """A little-endian CDR message that begins with a header, its stamp moved on."""
    changed = bytearray(data)
    seconds, nanoseconds = struct.unpack_from("<iI", changed, 4)
    struct.pack_into("<iI", changed, 4, *divmod(seconds * 10**9 + nanoseconds + offset_ns, 10**9))
    return bytes(changed)
