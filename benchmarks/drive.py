# SPDX-License-Identifier: Apache-2.0
"""Two laps of 75 m through a long warehouse, rendered once, and the camera whose calibration makes tracking drift."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from recon_ros.datasets.synthetic import AisleLoop, SyntheticWarehouse
from recon_ros.frame import Frame

STRETCH = 8
WIDTH, HEIGHT = 320, 240
RATE_HZ, SPEED = 10.0, 2.0
LAPS = 2
OVERRUN = 1.0
"""Metres driven beyond the last lap, into the place where the drive began."""

SCALE_ERROR = 0.01
"""Depth is too long by this share: every step of tracking, too."""
BEND = 0.006
"""Depth grows by this share more per unit of x / z. A surface at distance z then seems to turn by BEND / z radians for
each metre driven, and tracking turns the other way: at 3.4 m, the mean of this drive, by 1° in 10 m."""


def drive(laps: int = LAPS) -> SyntheticWarehouse:
    """The recording: noise of a stereo sensor, a little shake, and no frame twice from the same place."""
    length = laps * AisleLoop(STRETCH).length + OVERRUN
    frames = int(length / (SPEED / RATE_HZ)) + 1
    return SyntheticWarehouse(
        frames, WIDTH, HEIGHT, rate_hz=RATE_HZ, speed=SPEED, noise=True, shake=0.01, stretch=STRETCH
    )


def drive_bag(path: Path) -> Path:
    """The recording as a bag; made when it is not there, by a process of its own that takes the scene with it."""
    if not (path / "metadata.yaml").exists():
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        process = multiprocessing.get_context("spawn").Process(target=_render, args=(path,))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"rendering the drive failed with exit code {process.exitcode}")
    return path


def _render(path: Path) -> None:
    from recon_ros.datasets.bag_writer import write_bag

    unfinished = path.with_name(path.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    data = drive()
    write_bag(unfinished, data, data.ground_truth())
    unfinished.rename(path)


def miscalibrated(frames: Iterable[Frame], scale: float = SCALE_ERROR, bend: float = BEND) -> Iterator[Frame]:
    """The same frames from a depth camera that is too long, and more so to the right.

    Nothing in the reconstruction is touched: it measures what such a camera shows, and drifts by itself.
    """
    for frame in frames:
        assert frame.camera is not None and frame.depth is not None
        factor = depth_factor(frame.camera.rays()[..., 0], scale, bend)
        yield dataclasses.replace(frame, depth=(frame.depth * factor).astype(np.float32))


def depth_factor(x_over_z: np.ndarray, scale: float = SCALE_ERROR, bend: float = BEND) -> np.ndarray:
    """What the depth of pixels at these x / z is multiplied by."""
    return np.asarray((1 + scale) * (1 + bend * x_over_z))
