# SPDX-License-Identifier: Apache-2.0
"""What the tracker looks at: one prepared frame with its prediction, and what is derived from them on demand."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from recon_ros.frame import Camera, Prediction
from recon_ros.geometry import pointmap
from recon_ros.geometry.features import Detector, Features
from recon_ros.geometry.surface import Surface

OVERLAP_POINTS = 400


class View:
    """One frame on the processing grid. Where an (H, W) mask is True there is nothing, but in `image`, `prediction`.

    Keypoints are found in `fine`, where there is one: (n H, n W, 3) of the same window. A small network's grid is too
    coarse for them. Their positions are in its pixels all the same.
    """

    def __init__(
        self,
        stamp_ns: int,
        image: NDArray[np.uint8],
        camera: Camera,
        prediction: Prediction,
        detector: Detector,
        mask: NDArray[np.bool_] | None = None,
        fine: NDArray[np.uint8] | None = None,
    ) -> None:
        self.stamp_ns = stamp_ns
        self.image = image
        self.camera = camera
        self.prediction = prediction
        self._detector = detector
        self._mask = mask
        self._fine = image if fine is None else fine
        self._finer = len(self._fine) // len(image)

    @cached_property
    def points(self) -> NDArray[np.float32]:
        """(H, W, 3) points of the prediction that tracking and map may use; NaN where there is none."""
        if self._mask is None:
            return self.prediction.points_self
        return np.where(self._mask[..., None], np.float32(np.nan), self.prediction.points_self)

    @cached_property
    def depth(self) -> NDArray[np.float32]:
        """(H, W) depth free of single-pixel holes and noise, NaN at edges."""
        return pointmap.smoothed_depth(self.points[..., 2])

    @cached_property
    def features(self) -> Features:
        """Keypoints, located where the smoothed depth knows one."""
        pixels, descriptors = self._detector(self._fine, self._fine_mask)
        if self._finer > 1:
            pixels = (pixels + np.float32(0.5)) / np.float32(self._finer) - np.float32(0.5)
        points = self.camera.unproject(pixels, pointmap.sample(self.depth, pixels)) if len(pixels) else pixels
        return Features(pixels, descriptors, points.astype(np.float32).reshape(-1, 3))

    @property
    def _fine_mask(self) -> NDArray[np.bool_] | None:
        if self._mask is None or self._finer == 1:
            return self._mask
        return self._mask.repeat(self._finer, axis=0).repeat(self._finer, axis=1)

    @cached_property
    def tree(self) -> cKDTree:
        """k-d tree of the keypoints' pixels."""
        return cKDTree(self.features.pixels)

    @cached_property
    def probe(self) -> NDArray[np.float64]:
        """(N, 3) a few hundred points spread over the image, to measure overlap with."""
        return pointmap.strided(self.points, OVERLAP_POINTS)

    @cached_property
    def median_depth(self) -> float:
        """Of the probe points; 1 where there is none."""
        return float(np.median(self.probe[:, 2])) if len(self.probe) else 1.0

    @cached_property
    def surface(self) -> Surface | None:
        """The depth surface for registration; None when there are too few points."""
        return Surface.of_depth(self.depth, self.camera)
