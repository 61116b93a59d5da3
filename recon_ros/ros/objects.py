# SPDX-License-Identifier: Apache-2.0
"""~/object_points: the pixels that a mask says are an object, as points of the camera, in whatever order both come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError
from recon_ros.frame import Camera, Frame, Update
from recon_ros.geometry import pointmap
from recon_ros.geometry.grid import Grid
from recon_ros.geometry.preparation import labels_on_grid
from recon_ros.intake import Intake
from recon_ros.messages import labels_from_message, stamp_ns
from recon_ros.ros import interface
from recon_ros.ros.conversions import cloud_message
from recon_ros.ros.outputs import Outputs
from recon_ros.ros.statistics import Statistics, Throttle

SHOTS = 30
"""Frames kept for masks still to come: a segmenter may take a second at 30 Hz. 80 MB at VGA, while somebody listens."""
WAITING = 10
"""Masks that may wait for their frame."""
MISSES = 5
"""So many masks in a row without a frame are worth a word."""


@dataclass(frozen=True, eq=False)
class Shot:
    """What is kept of a processed frame.

    Attributes:
        stamp_ns: of the image.
        size: width and height of the image as it came. camera: its calibration, or None.
        grid: from there to the processing grid, on which are the following.
        depth: (h, w) float32. confidence: (h, w) float16 in [0, 1]. image: (h, w, 3) uint8.
        pinhole: calibration of the grid.
        frame_id: optical frame.
    """

    stamp_ns: int
    size: tuple[int, int]
    camera: Camera | None
    grid: Grid
    depth: NDArray[np.float32]
    confidence: NDArray[np.float16]
    image: NDArray[np.uint8]
    pinhole: Camera
    frame_id: str


class Objects:
    """Brings processed frames and object masks together by their stamps. For the worker's thread only.

    Nothing is kept or computed while nobody listens.
    """

    def __init__(
        self, outputs: Outputs, intake: Intake, statistics: Statistics, warn: Callable[[str], Any], tolerance_ns: int
    ) -> None:
        self._outputs, self._intake, self._statistics, self._warn = outputs, intake, statistics, warn
        self._tolerance_ns = tolerance_ns
        self._misses = 0
        self._throttle = Throttle(30.0)
        self._shots: deque[Shot] = deque(maxlen=SHOTS)
        self._waiting: deque[Any] = deque(maxlen=WAITING)

    def clear(self) -> None:
        """Time has jumped back."""
        self._shots.clear()
        self._waiting.clear()

    def add_frame(
        self, frame: Frame, update: Update, confidence: NDArray[np.float32], grid: Grid, frame_id: str
    ) -> None:
        """A frame has been processed; masks that waited for it are answered."""
        if not self._wanted:
            self.clear()
            return
        height, width = frame.image.shape[:2]
        depth, weight = np.ascontiguousarray(update.prediction.depth), confidence.astype(np.float16)
        shot = Shot(
            update.stamp_ns,
            (width, height),
            frame.camera,
            grid,
            depth,
            weight,
            update.image,
            update.camera,
            frame_id,
        )
        self._shots.append(shot)
        for _ in range(len(self._waiting)):
            self.add_mask(self._waiting.popleft())

    def add_mask(self, message: Any) -> None:
        """A mask has come; it is answered now, or when its frame has been processed. One of no frame is counted."""
        if not self._wanted:
            return
        stamp = stamp_ns(message.header.stamp)
        if not self._shots or stamp > self._shots[-1].stamp_ns:
            if len(self._waiting) == WAITING:
                self._miss(stamp_ns(self._waiting.popleft().header.stamp))
            self._waiting.append(message)
            return
        shot = self._nearest(stamp)
        if abs(shot.stamp_ns - stamp) > self._tolerance_ns:
            self._miss(stamp)
            return
        self._misses = 0
        try:
            self._publish(shot, labels_from_message(message, *shot.size, "object_mask"))
        except InputError as error:
            self._intake.skip(error)

    def _nearest(self, stamp: int) -> Shot:
        return min(self._shots, key=lambda s: abs(s.stamp_ns - stamp))

    def _miss(self, stamp: int) -> None:
        """No frame for a mask. One in between is of a frame that was dropped; many are of another camera or clock."""
        self._statistics.count("object_masks_unpaired")
        self._misses += 1
        if self._misses >= MISSES and self._throttle.passes("miss"):
            gap = f"{(self._nearest(stamp).stamp_ns - stamp) / 1e6:+.3f} ms away" if self._shots else "none at all"
            self._warn(
                f"{self._misses} object masks in a row found no processed frame of their stamp (the nearest: "
                f"{gap}): a mask must have its image's stamp, and come before {SHOTS} frames have followed"
            )

    @property
    def _wanted(self) -> bool:
        return self._outputs.wanted(interface.OBJECT_POINTS)

    def _publish(self, shot: Shot, labels: NDArray[Any]) -> None:
        """All points of the pixels that are not 0, however confident; an empty cloud where there is none."""
        labels = labels_on_grid(labels, shot.camera, shot.grid)
        chosen = (labels != 0) & np.isfinite(shot.depth)
        message = cloud_message(
            pointmap.from_depth(shot.depth, shot.pinhole)[chosen],
            shot.image[chosen],
            shot.stamp_ns,
            shot.frame_id,
            shot.confidence[chosen].astype(np.float32),
            labels[chosen].astype(np.uint32),
        )
        self._outputs.publish(interface.OBJECT_POINTS, message)
