# SPDX-License-Identifier: Apache-2.0
"""What the stages are measured on: a synthetic warehouse, and a real recording where there is one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recon_ros.config import InputConfig
from recon_ros.datasets.rosbag import BagReader
from recon_ros.datasets.synthetic import SyntheticWarehouse
from recon_ros.frame import Frame, Keyframe
from recon_ros.geometry import se3
from recon_ros.geometry.features import Features
from recon_ros.runtimes.depth import DepthSource

HOLO_WALK = Path(__file__).resolve().parents[2] / "shared" / "data" / "holo_walk"
SYNTHETIC_FRAMES = 40
HOLO_FRAMES = 100
MAP_KEYFRAMES = 40
NO_FEATURES = Features(np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8), np.zeros((0, 3), np.float32))


@dataclass(frozen=True, eq=False)
class Input:
    """Frames to measure on, in memory."""

    name: str
    frames: list[Frame]


def synthetic(count: int, advance: Callable[[], None]) -> Input:
    """A drive of a quarter of a lap with the errors of a stereo sensor, 640x480; `advance` is called per frame."""
    drive = SyntheticWarehouse(count, 640, 480, rate_hz=5.0, noise=True)
    return Input("warehouse", list(_counted(drive, advance)))


def holo_walk(count: int, advance: Callable[[], None]) -> Input:
    """The first frames of the recording beside the project, which need not be there: see `HOLO_WALK`."""
    with BagReader(HOLO_WALK) as reader:
        return Input("holo_walk", list(_counted(itertools.islice(reader.frames(), count), advance)))


def map_keyframes(count: int, advance: Callable[[], None], stride: int = 2) -> list[Keyframe]:
    """Keyframes spread over one lap of the warehouse at their true poses, as `Reconstructor` would store them."""
    lap, speed = SyntheticWarehouse(1).lap_length, 1.2
    drive = SyntheticWarehouse(count, 640, 480, rate_hz=count * speed / lap, speed=speed, noise=True)
    T_start = se3.inverse(drive.pose(0))
    return [_keyframe(i, f, T_start @ drive.pose(i), stride) for i, f in enumerate(_counted(drive, advance))]


def _keyframe(index: int, frame: Frame, T_world_camera: se3.Matrix, stride: int) -> Keyframe:
    assert frame.camera is not None
    source = DepthSource(InputConfig())
    _, prediction = source.step((), frame.image, frame.camera, frame.depth)
    kept = (slice(stride // 2, None, stride),) * 2
    height, width = prediction.confidence[kept].shape
    return Keyframe(
        id=index,
        stamp_ns=frame.stamp_ns,
        frame_id=frame.frame_id,
        camera=frame.camera.resized(width, height),
        T_world_camera=T_world_camera,
        points=prediction.points_self[kept].astype(np.float16),
        confidence=source.card.normalised(prediction.confidence)[kept].astype(np.float16),
        colour=np.ascontiguousarray(frame.image[kept]),
        features=NO_FEATURES,
    )


def _counted(frames: Iterator[Frame] | SyntheticWarehouse, advance: Callable[[], None]) -> Iterator[Frame]:
    for frame in frames:
        yield frame
        advance()
