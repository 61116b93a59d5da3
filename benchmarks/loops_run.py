# SPDX-License-Identifier: Apache-2.0
"""One pass over the drive of `loops`, and what tracking waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks import drive
from benchmarks.measure import Spans
from recon_ros.config import Config
from recon_ros.frame import Frame, Keyframe, Trajectory
from recon_ros.mapping.atlas import Atlas
from recon_ros.mapping.drawing import Drawing
from recon_ros.mapping.loops import Loop
from recon_ros.mapping.pose_graph import PoseGraph
from recon_ros.memory.places import PlaceIndex
from recon_ros.memory.store import KeyframeStore
from recon_ros.reconstructor import Reconstructor

SEEN_EVERY, SEEN_STRIDE = 4, 6
"""Frames and pixels of which points are kept, to see where the laps have the walls."""
PATIENCE_S = 5.0
"""How long a live run's jobs may take after its last frame."""

DRAWN = "told what to draw"
GRAPH = (
    ("loops taken in", Atlas, "_take_loops"),
    ("snapshot of the graph", PoseGraph, "snapshot"),
    ("poses taken over", PoseGraph, "apply"),
    ("keyframes moved", Atlas, "_apply"),
    ("tied to neighbours", Atlas, "_tie"),
    ("places asked", PlaceIndex, "query"),
    ("place described", PlaceIndex, "add"),
    ("store frozen", KeyframeStore, "frozen"),
    ("surplus removed", Atlas, "_prune"),
    (DRAWN, Drawing, "_tell"),
)
"""What of the map that moves is done by the thread that tracks."""
ON_KEYFRAMES = ("tied to neighbours", "places asked", "place described", "store frozen", "surplus removed")

Matrix = NDArray[np.float64]


@dataclass
class Run:
    """What one pass over the drive left.

    Attributes:
        keyframes: at the end.
        loops: believed at the end; disbelieved: found, but rejected by the graph.
        frame_of: keyframe id → index of the frame it was.
        seen: index of a frame → its stamp, and (h, w, 3) points that it measured; of every `SEEN_EVERY`-th.
        blocks_ms: by frame, time that tracking waited for the graph: corrections, and loops asked for.
        undrawn: by frame, keyframes whose place in the cloud was still to be drawn.
        busy_ms: by frame, processor time of the corrections, in which a busy machine does not show.
        parts_ms: by frame, parts of the blocks; frames_ms: all of `Reconstructor.process`.
        lost: frames without a pose.
    """

    trajectory: Trajectory
    keyframes: Sequence[Keyframe]
    loops: Sequence[Loop]
    disbelieved: int
    frame_of: dict[int, int] = field(default_factory=dict)
    seen: dict[int, tuple[int, Matrix]] = field(default_factory=dict)
    blocks_ms: list[float] = field(default_factory=list)
    busy_ms: list[float] = field(default_factory=list)
    undrawn: list[int] = field(default_factory=list)
    parts_ms: list[dict[str, float]] = field(default_factory=list)
    frames_ms: list[float] = field(default_factory=list)
    lost: int = 0


def run(frames: Iterator[Frame], config: Config, live: bool, rate_hz: float | None, progress: Any = None) -> Run:
    """Track the frames; `rate_hz` is that of a camera that waits for nobody, None for as fast as can be."""
    reconstructor = Reconstructor(config, live=live)
    found = Run(Trajectory(np.zeros(0, np.int64), np.zeros((0, 4, 4))), (), (), 0)
    spans = Spans()
    try:
        with spans.patched(GRAPH), drive.drifting(), _processor_time(Atlas, "follow", found.busy_ms):
            begin = time.perf_counter()
            for i, frame in enumerate(frames):
                if rate_hz is not None:
                    time.sleep(max(0.0, begin + i / rate_hz - time.perf_counter()))
                start = time.perf_counter()
                update = reconstructor.process(frame)
                found.frames_ms.append((time.perf_counter() - start) * 1e3)
                parts = spans.take()
                found.parts_ms.append(parts)
                asked = sum(parts.get(name, 0.0) for name in ON_KEYFRAMES)
                found.blocks_ms.append(update.timings_ms["correct"] + asked)
                found.undrawn.append(reconstructor._atlas.drawing.waiting)
                found.lost += update.T_world_camera is None
                if update.keyframe_id is not None:
                    found.frame_of[update.keyframe_id] = i
                if i % SEEN_EVERY == 0:
                    points = update.prediction.points_self[::SEEN_STRIDE, ::SEEN_STRIDE]
                    found.seen[i] = update.stamp_ns, points.astype(np.float64)
                if progress is not None:
                    progress()
        _finish(reconstructor, live)
        found.trajectory, found.keyframes = reconstructor.trajectory(), reconstructor.keyframes
        found.loops = reconstructor.loops
        found.disbelieved = len(reconstructor._atlas._loops) - len(found.loops)
    finally:
        reconstructor.close()
    return found


@contextmanager
def _processor_time(owner: Any, name: str, taken_ms: list[float]) -> Iterator[None]:
    """Note the processor time of this thread in each call of a method."""
    method = getattr(owner, name)

    def timed(*arguments: Any) -> Any:
        start = time.thread_time()
        try:
            return method(*arguments)
        finally:
            taken_ms.append((time.thread_time() - start) * 1e3)

    with mock.patch.object(owner, name, timed):
        yield


def _finish(reconstructor: Reconstructor, live: bool) -> None:
    """Take over what is still being worked on."""
    end = time.perf_counter() + (PATIENCE_S if live else 0.0)
    reconstructor.settle()
    while time.perf_counter() < end:
        time.sleep(0.05)
        reconstructor.settle()
