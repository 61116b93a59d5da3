# SPDX-License-Identifier: Apache-2.0
"""The camera: intrinsics that travel with an image through every resize, crop and undistortion."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError

PINHOLE_MODELS = ("", "none", "plumb_bob", "rational_polynomial")
FISHEYE_MODELS = ("equidistant", "fisheye")
MAX_SKEW = 0.01
"""Pixels; more than rounding, and the pixel axes are not at a right angle."""
PINHOLE_COEFFICIENTS, FISHEYE_COEFFICIENTS = (4, 5, 8, 12, 14), (4,)


@dataclass(frozen=True, eq=False)
class Camera:
    """A calibrated camera in the convention of OpenCV and sensor_msgs/CameraInfo.

    Pixel (0, 0) is the *centre* of the top left pixel; the optical frame has x right, y down, z forward.

    Attributes:
        width, height: image size in pixels.
        K: (3, 3) float64 intrinsic matrix, pixels.
        model: distortion model as in CameraInfo: ``plumb_bob``, ``rational_polynomial``, ``equidistant`` or
            ``none``.
        D: (N,) float64 distortion coefficients in the model's order; empty or zero means a pinhole.

    Raises:
        InputError: ``camera`` when the size or K cannot be a camera's (zero focal length, NaN, wrong shape).
    """

    width: int
    height: int
    K: NDArray[np.float64]
    model: str = "none"
    D: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        K = np.array(self.K, dtype=np.float64)
        if K.shape != (3, 3):
            raise InputError("camera", f"K has shape {K.shape}, expected (3, 3)")
        if self.width <= 0 or self.height <= 0:
            raise InputError("camera", f"camera size {self.width}x{self.height} is not positive")
        if not np.all(np.isfinite(K)) or K[0, 0] <= 0 or K[1, 1] <= 0:
            raise InputError(
                "camera",
                f"K has focal lengths fx={K[0, 0]}, fy={K[1, 1]}; an uncalibrated driver publishes zeros: calibrate "
                "the camera or run without camera_info",
            )
        if abs(K[0, 1]) > MAX_SKEW:
            raise InputError("camera", f"K has a skew of {K[0, 1]} px; recon_ros handles cameras without: use 0")
        K[0, 1] = 0.0
        K.setflags(write=False)
        D = np.array(self.D, dtype=np.float64).ravel()
        if not np.all(np.isfinite(D)):
            raise InputError("camera", f"distortion coefficients {D.tolist()} are not finite")
        if self.model not in PINHOLE_MODELS + FISHEYE_MODELS and np.any(D):
            raise InputError(
                "camera",
                f"distortion model '{self.model}' is unknown; known: {PINHOLE_MODELS + FISHEYE_MODELS}",
            )
        counts = FISHEYE_COEFFICIENTS if self.model in FISHEYE_MODELS else PINHOLE_COEFFICIENTS
        if np.any(D) and len(D) not in counts:
            raise InputError("camera", f"'{self.model}' takes {counts} coefficients, D has {len(D)}")
        D.setflags(write=False)
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "D", D)

    @staticmethod
    def from_focal(width: int, height: int, focal: float) -> Camera:
        """A pinhole with square pixels and a centred principal point; `focal` in pixels."""
        K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
        return Camera(width, height, K)

    @property
    def fx(self) -> float:
        return float(self.K[0, 0])

    @property
    def fy(self) -> float:
        return float(self.K[1, 1])

    @property
    def cx(self) -> float:
        return float(self.K[0, 2])

    @property
    def cy(self) -> float:
        return float(self.K[1, 2])

    @property
    def is_distorted(self) -> bool:
        return bool(np.any(self.D))

    def same_as(self, other: Camera | None) -> bool:
        """True when both describe the same calibration to the last bit."""
        return (
            other is not None
            and (self.width, self.height, self.model) == (other.width, other.height, other.model)
            and np.array_equal(self.K, other.K)
            and np.array_equal(self.D, other.D)
        )

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the same image resampled to (width, height), pixel centres kept consistent."""
        sx, sy = width / self.width, height / self.height
        K = self.K.copy()
        K[0] *= sx
        K[1] *= sy
        K[0, 2] = (self.cx + 0.5) * sx - 0.5
        K[1, 2] = (self.cy + 0.5) * sy - 0.5
        return replace(self, width=int(width), height=int(height), K=K)

    def cropped(self, x: int, y: int, width: int, height: int) -> Camera:
        """The camera of the window whose top left pixel is (x, y); the window may reach outside (padding)."""
        K = self.K.copy()
        K[0, 2] -= x
        K[1, 2] -= y
        return replace(self, width=int(width), height=int(height), K=K)

    def undistorted(self) -> Camera:
        """The pinhole with the same K and size; see `undistort_maps` for the matching resampling."""
        return replace(self, model="none", D=np.zeros(0))

    def undistort_maps(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Maps for `cv2.remap`, two (H, W) float32 arrays, that take this image to that of `undistorted()`."""
        return _undistort_maps(self.width, self.height, self.K.tobytes(), self.model, self.D.tobytes())

    def rays(self) -> NDArray[np.float32]:
        """(H, W, 3) float32 points of depth z = 1 along each pixel's ray. Pinhole only.

        Raises:
            InputError: ``camera`` when the camera is distorted (undistort first).
        """
        if self.is_distorted:
            raise InputError("camera", "rays() needs an undistorted camera; call undistorted() first")
        return _rays(self.width, self.height, self.K.tobytes())

    def project(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """(..., 3) points of the camera frame, metres, to (..., 2) pixels; NaN where z ≤ 0. Pinhole only."""
        points = np.asarray(points, dtype=np.float64)
        z = np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
        pixels = points @ self.K.T
        return pixels[..., :2] / z

    def unproject(self, pixels: NDArray[Any], depth: NDArray[Any]) -> NDArray[np.float64]:
        """(..., 2) pixels and (...) depths z, metres, to (..., 3) points of the camera frame. Pinhole only."""
        pixels = np.asarray(pixels, dtype=np.float64)
        depth = np.asarray(depth, dtype=np.float64)
        x = (pixels[..., 0] - self.cx) / self.fx
        y = (pixels[..., 1] - self.cy) / self.fy
        return np.stack([x * depth, y * depth, depth], axis=-1)


@lru_cache(maxsize=8)
def _rays(width: int, height: int, K_bytes: bytes) -> NDArray[np.float32]:
    """Rays of a pinhole; cached because a stream asks for the same ones with every frame."""
    camera = Camera(width, height, np.frombuffer(K_bytes).reshape(3, 3))
    u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    rays = camera.unproject(np.stack([u, v], axis=-1), np.ones((height, width))).astype(np.float32)
    rays.setflags(write=False)
    return rays


@lru_cache(maxsize=4)
def _undistort_maps(
    width: int, height: int, K_bytes: bytes, model: str, D_bytes: bytes
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    K, D = np.frombuffer(K_bytes).reshape(3, 3), np.frombuffer(D_bytes)
    initialise = cv2.fisheye.initUndistortRectifyMap if model in FISHEYE_MODELS else cv2.initUndistortRectifyMap
    map_x, map_y = initialise(K, D, np.eye(3), K, (width, height), cv2.CV_32FC1)
    return map_x, map_y
