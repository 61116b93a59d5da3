# SPDX-License-Identifier: Apache-2.0
"""The way from an image to a network's pixel grid and back: one resize and one centred crop, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.geometry.camera import Camera

WINDOW = ("resized_width", "resized_height", "x", "y", "grid_width", "grid_height")


@dataclass(frozen=True)
class Grid:
    """Resize (width, height) to (resized_width, resized_height), then crop the window at (x, y).

    The same object carries images, depths and cameras along, so that they cannot disagree.
    """

    width: int
    height: int
    resized_width: int
    resized_height: int
    x: int
    y: int
    grid_width: int
    grid_height: int

    @staticmethod
    def fit(width: int, height: int, max_size: int, multiple: int = 1) -> Grid:
        """The grid whose longer side is at most `max_size` and whose sides are multiples of `multiple`.

        Images are never enlarged, except up to one `multiple` where they are smaller than that.
        """
        scale = min(1.0, max_size / max(width, height))
        resized = [max(multiple, round(side * scale)) for side in (width, height)]
        grid = [side // multiple * multiple for side in resized]
        return Grid(
            width,
            height,
            resized[0],
            resized[1],
            (resized[0] - grid[0]) // 2,
            (resized[1] - grid[1]) // 2,
            *grid,
        )

    def finer(self, max_size: int) -> int:
        """How many pixels there can be for one of the grid's, along each side: a whole number, at least 1, with which
        the longer side is at most `max_size` and no image is enlarged.
        """
        most = min(max_size / max(self.grid_width, self.grid_height), self.width / self.resized_width)
        return max(1, math.floor(min(most, self.height / self.resized_height)))

    def divided(self, n: int) -> Grid:
        """The same window with `n` x `n` pixels for each."""
        return Grid(self.width, self.height, *(n * getattr(self, name) for name in WINDOW))

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) image to the grid; area averaging, which does not alias."""
        return np.ascontiguousarray(self._crop(self._resize(image, cv2.INTER_AREA)))

    def depth(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """(H, W) depth to the grid; nearest, because a mean across an edge is a point in the air.

        The *exact* nearest: INTER_NEAREST takes the upper left of the pixels it stands for, off by half a grid pixel.
        """
        return np.ascontiguousarray(self._crop(self._resize(depth, cv2.INTER_NEAREST_EXACT)))

    def labels(self, labels: NDArray[Any]) -> NDArray[Any]:
        """(H, W) labels to the grid; each from the very pixel that `depth` takes."""
        return np.ascontiguousarray(self._crop(self._resize(labels, cv2.INTER_NEAREST_EXACT)))

    def camera(self, camera: Camera) -> Camera:
        """The camera of the grid's image."""
        resized = camera.resized(self.resized_width, self.resized_height)
        return resized.cropped(self.x, self.y, self.grid_width, self.grid_height)

    def camera_back(self, camera: Camera) -> Camera:
        """The inverse of `camera`."""
        uncropped = camera.cropped(-self.x, -self.y, self.resized_width, self.resized_height)
        return uncropped.resized(self.width, self.height)

    def depth_back(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """(h, w) depth of the grid to (H, W) of the image, NaN where the crop cut; nearest."""
        full = np.full((self.resized_height, self.resized_width), np.nan, dtype=np.float32)
        full[self.y : self.y + self.grid_height, self.x : self.x + self.grid_width] = depth
        if (self.resized_width, self.resized_height) == (self.width, self.height):
            return full
        back: NDArray[Any] = cv2.resize(full, (self.width, self.height), interpolation=cv2.INTER_NEAREST_EXACT)
        return back.astype(np.float32, copy=False)

    def _resize(self, array: NDArray[Any], interpolation: int) -> NDArray[Any]:
        if (self.resized_width, self.resized_height) == (self.width, self.height):
            return array
        return cv2.resize(array, (self.resized_width, self.resized_height), interpolation=interpolation)

    def _crop(self, array: NDArray[Any]) -> NDArray[Any]:
        return array[self.y : self.y + self.grid_height, self.x : self.x + self.grid_width]
