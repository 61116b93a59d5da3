# SPDX-License-Identifier: Apache-2.0
"""Two laps of 80 m through a long warehouse, rendered once, and a drift of tracking that can be switched on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.laps import rendered
from recon_ros.datasets.synthetic import AisleLoop, SyntheticWarehouse
from recon_ros.frame import Frame, Keyframe
from recon_ros.geometry import se3
from recon_ros.reconstructor import Reconstructor
from recon_ros.tracking.view import View

STRETCH = 9
WIDTH, HEIGHT = 320, 240
RATE_HZ, SPEED = 10.0, 2.0
LAPS = 2
OVERRUN = 1.0
"""Metres driven beyond the last lap, into the place where the drive began."""

SCALE_ERROR = 0.01
"""Every step is too long by this share."""
YAW_ERROR = float(np.radians(1.0)) / 10.0
"""And turns by this for each metre forward, radians."""

Matrix = NDArray[np.float64]


def drive(laps: int = LAPS) -> SyntheticWarehouse:
    """The recording: noise of a stereo sensor, a little shake, and no frame twice from the same place."""
    length = laps * AisleLoop(STRETCH).length + OVERRUN
    frames = int(length / (SPEED / RATE_HZ)) + 1
    return SyntheticWarehouse(
        frames, WIDTH, HEIGHT, rate_hz=RATE_HZ, speed=SPEED, noise=True, shake=0.01, stretch=STRETCH
    )


def drive_bag(path: Path) -> Path:
    """The recording as a bag; made when it is not there, by a process of its own that takes the scene with it."""
    return rendered(path, drive)


@contextmanager
def drifting(scale: float = SCALE_ERROR, yaw: float = YAW_ERROR) -> Iterator[None]:
    """Tracking drifts inside: what becomes a keyframe is too far from the one it was tracked against, and turned.

    Frames are then tracked against a keyframe that is wrong, and the edges of the graph inherit it; what is measured
    between the two ends of a loop is as it is.
    """

    def drifted(T_world_reference: Matrix, T_world_camera: Matrix) -> Matrix:
        step = se3.inverse(T_world_reference) @ T_world_camera
        step = step @ se3.exp(np.array([0.0, 0.0, 0.0, 0.0, yaw * step[2, 3], 0.0]))
        step[:3, 3] *= 1 + scale
        return se3.orthonormalised(T_world_reference @ step)

    with misplaced(drifted):
        yield


@contextmanager
def misplaced(moved: Callable[[Matrix, Matrix], Matrix]) -> Iterator[None]:
    """Inside, a keyframe is put where `moved` says, by the (4, 4) poses of the one it was tracked against and of its
    own."""
    make = Reconstructor._keyframe

    def elsewhere(self: Reconstructor, view: View, frame: Frame, T_world_camera: Matrix) -> Keyframe:
        store, reference_id = self._atlas.store, self._reference_id
        if reference_id is not None and reference_id in store:
            T_world_camera = moved(store[reference_id].T_world_camera, T_world_camera)
        return make(self, view, frame, T_world_camera)

    with mock.patch.object(Reconstructor, "_keyframe", elsewhere):
        yield
