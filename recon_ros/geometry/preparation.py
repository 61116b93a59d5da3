# SPDX-License-Identifier: Apache-2.0
"""A frame on a source's pixel grid: undistorted, then resized and cropped; image, depth and masks alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Frame
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.grid import Grid


@dataclass(frozen=True, eq=False)
class Prepared:
    """A frame as a source takes it, of the grid's size (h, w).

    Attributes:
        image: (h, w, 3) uint8 RGB.
        camera: undistorted calibration of it, or None when unknown.
        depth: (h, w) float32 metres, NaN where invalid; or None.
        mask: (h, w) bool, True where nothing is to be used; or None.
        fine: (n h, n w, 3) uint8 RGB of the same window, for keypoints; `image` where the input has no more to show.
    """

    image: NDArray[np.uint8]
    camera: Camera | None
    depth: NDArray[np.float32] | None
    mask: NDArray[np.bool_] | None
    fine: NDArray[np.uint8]


def prepare(frame: Frame, grid: Grid, fine_size: int = 0) -> Prepared:
    """A frame brought to the grid of its image's size, for keypoints to one of up to `fine_size` pixels."""
    image, camera, depth = frame.image, frame.camera, frame.depth
    if camera is not None and camera.is_distorted:
        map_x, map_y = camera.undistort_maps()
        image = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR)
        if depth is not None:
            depth = cv2.remap(depth, map_x, map_y, cv2.INTER_NEAREST, borderValue=float("nan"))
    n, on_grid = grid.finer(fine_size), grid.image(image)
    return Prepared(
        on_grid,
        None if camera is None else grid.camera(camera.undistorted()),
        None if depth is None else grid.depth(depth),
        None if frame.mask is None else labels_on_grid(frame.mask.view(np.uint8), camera, grid).view(np.bool_),
        on_grid if n == 1 else grid.divided(n).image(image),
    )


def labels_on_grid(labels: NDArray[Any], camera: Camera | None, grid: Grid) -> NDArray[Any]:
    """(H, W) uint8 or uint16 labels of an image's pixels to (h, w): each from the pixel whose depth is taken.

    Args:
        labels: of the image as it came.
        camera: of that image, whose distortion is taken out; None leaves it.
        grid: of the image's size.
    """
    if camera is not None and camera.is_distorted:
        map_x, map_y = camera.undistort_maps()
        labels = cv2.remap(labels, map_x, map_y, cv2.INTER_NEAREST)
    return grid.labels(labels)
