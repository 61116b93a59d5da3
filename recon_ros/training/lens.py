# SPDX-License-Identifier: Apache-2.0
"""From linear light to the picture a cheap camera gives: exposure, blur, vignetting, noise, tone curve, JPEG."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.training.surfaces import Floats

Rng = np.random.Generator


def random_K(rng: Rng, width: int, height: int) -> Floats:
    """(4,) fx, fy, cx, cy in pixels: 45° to 95° across, principal point a little (crops: more) off the centre."""
    fov = np.deg2rad(rng.uniform(45, 95))
    fx = width / 2 / np.tan(fov / 2)
    fy = fx * (1 + rng.normal(0, 0.01))
    off = rng.normal(0, 0.015 if rng.random() < 0.8 else 0.06, 2)
    return np.array([fx, fy, width * (0.5 + off[0]) - 0.5, height * (0.5 + off[1]) - 0.5], np.float32)


@dataclass(frozen=True)
class Lens:
    """What a camera does to the light, the same for a sequence; `Lens.random` draws one.

    Attributes:
        exposure: mean of the linear picture after automatic exposure.
        hunting: deviation of the exposure from frame to frame (log).
        balance: (3,) gains of the channels.
        gamma, contrast, saturation: of the tone curve.
        vignetting: light lost in the corners, 0..1.
        blur: deviation in pixels.
        smear: mean length of motion blur in pixels.
        grain: deviation of read noise, 0..1 after the tone curve; shot noise is derived.
        jpeg: quality, 0 for none.
    """

    exposure: float
    hunting: float
    balance: NDArray[np.float32]
    gamma: float
    contrast: float
    saturation: float
    vignetting: float
    blur: float
    smear: float
    grain: float
    jpeg: int

    @staticmethod
    def random(rng: Rng) -> Lens:
        """A camera drawn from what cheap cameras do."""
        return Lens(
            exposure=float(np.exp(rng.normal(np.log(0.26), 0.35))),
            hunting=float(rng.choice([0.0, 0.05, 0.15])),
            balance=np.exp(rng.normal(0, 0.08, 3)).astype(np.float32),
            gamma=float(rng.uniform(1.9, 2.5)),
            contrast=float(rng.uniform(0.0, 0.5)),
            saturation=float(rng.uniform(0.5, 1.15)),
            vignetting=float(rng.choice([0.0, rng.uniform(0, 0.5)])),
            blur=float(rng.choice([0.0, rng.uniform(0.3, 0.9)])),
            smear=float(rng.choice([0.0, 0.0, rng.uniform(0, 3.5)])),
            grain=float(min(rng.exponential(0.01), 0.035)),
            jpeg=int(rng.integers(50, 96)) * int(rng.integers(0, 2)),
        )

    def picture(self, linear: Floats, rng: Rng) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of (H, W, 3) float32 linear light."""
        height, width = linear.shape[:2]
        # Metered on what is not much brighter than the rest, as cameras do; a window may burn out.
        brightness = linear.mean(-1)
        metered = np.minimum(brightness, 3 * np.median(brightness) + 1e-4).mean()
        image = linear * (self.exposure / (metered + 1e-4) * np.exp(rng.normal(0, self.hunting))) * self.balance
        if self.smear:
            image = cv2.filter2D(image, -1, _streak(rng.exponential(self.smear), rng.uniform(0, np.pi)))
        if self.blur:
            image = cv2.GaussianBlur(image, (0, 0), self.blur)
        if self.vignetting:
            image = image * _vignette(height, width, self.vignetting)
        grey = image.mean(-1, keepdims=True)
        image = np.maximum(grey + self.saturation * (image - grey), 0)
        image = image * (1 + 0.15 * image) / (1 + image * (0.15 + 0.6 * self.contrast))  # shoulder
        image = np.clip(image, 0, 1) ** (1 / self.gamma)
        image = image + self.contrast * 0.5 * (image - 0.45) * (1 - image)
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        if self.grain > 0.012:
            noise = cv2.GaussianBlur(noise, (3, 3), 0.6)
        image = image + noise * self.grain * (0.5 + np.sqrt(np.clip(image, 0, 1)))
        result = np.clip(image * 255, 0, 255).astype(np.uint8)
        if self.jpeg:
            ok, data = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])
            result = cv2.imdecode(data, cv2.IMREAD_COLOR) if ok else result
        return np.asarray(result, np.uint8)


def _streak(length: float, angle: float) -> Floats:
    """A kernel that smears along a line."""
    size = 2 * int(np.ceil(min(length, 12.0) / 2)) + 1
    kernel = np.zeros((size, size), np.float32)
    t = np.linspace(-0.5, 0.5, 32) * min(length, 12.0)
    x, y = t * np.cos(angle) + size // 2, t * np.sin(angle) + size // 2
    np.add.at(kernel, (np.rint(y).astype(int).clip(0, size - 1), np.rint(x).astype(int).clip(0, size - 1)), 1.0)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _vignette(height: int, width: int, loss: float) -> Floats:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    r2 = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) * 2
    return np.asarray(1 - loss * r2, np.float32)[..., None]
