# SPDX-License-Identifier: Apache-2.0
"""The warehouse's floor: one unique texture for the whole hall, so that no two places look alike."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.datasets.textures import FONT, WHITE, YELLOW, Rng, Texture, chips, noise, paint, scratch

Rectangle = tuple[float, float, float, float]


class FloorPainter:
    """Draws in metres of the world (x right, y up the image) on a concrete floor."""

    def __init__(self, rng: Rng, length: float, width: float, metres_per_pixel: float) -> None:
        self.rng = rng
        self.scale = 1.0 / metres_per_pixel
        self.shape = (round(width * self.scale), round(length * self.scale))
        self.image = self._concrete()
        # Paint wears off in patches and in specks.
        self.wear = np.clip(noise(rng, *self.shape, (2, 6, 40), (0.16, 0.12, 0.1)) + 0.12, 0.0, 0.85)

    def _concrete(self) -> Texture:
        """Slabs of slightly different grey, with joints, stains, chips and scratches."""
        rng, (h, w) = self.rng, self.shape
        shade = noise(rng, h, w, (1, 3, 10, 50, 260), (4.0, 5.0, 4.0, 6.0, 7.0))
        slab = round(1.5 * self.scale)
        tones = rng.normal(0, 5, (h // slab + 1, w // slab + 1)).astype(np.float32)
        shade += np.repeat(np.repeat(tones, slab, 0), slab, 1)[:h, :w]
        self._stain(shade)
        image = np.stack([cv2.add(shade, c, dtype=cv2.CV_8U) for c in (138.0, 136.0, 131.0)], axis=-1)
        for x in range(slab, w, slab):
            image[:, x : x + 2] = (image[:, x : x + 2] * 0.45).astype(np.uint8)
        for y in range(slab, h, slab):
            image[y : y + 2] = (image[y : y + 2] * 0.45).astype(np.uint8)
        chips(rng, image, h * w // 900, (1, 3), 0.22)
        scratch(rng, image, h * w // 9000, 30, [(112, 110, 106), (164, 162, 156), (98, 96, 92)])
        return image

    def _stain(self, shade: NDArray[np.float32]) -> None:
        """Oil stains and tyre marks, soft, drawn at a quarter of the resolution."""
        rng, (h, w) = self.rng, self.shape
        small = np.zeros((h // 4 + 1, w // 4 + 1), np.uint8)
        for _ in range(70):
            centre = (int(rng.uniform(0, w / 4)), int(rng.uniform(0, h / 4)))
            axes = (int(rng.uniform(3, 22)), int(rng.uniform(3, 14)))
            cv2.ellipse(small, centre, axes, rng.uniform(0, 180), 0, 360, int(rng.uniform(20, 110)), -1)
        for _ in range(26):
            a, b = rng.uniform(0, 1, (2, 2)) * (w / 4, h / 4)
            bend = (a + b) / 2 + rng.normal(0, 40, 2)
            t = np.linspace(0, 1, 24)[:, None]
            curve = ((1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * b).astype(np.int32)
            cv2.polylines(small, [curve], False, int(rng.uniform(30, 70)), int(rng.integers(2, 5)), cv2.LINE_AA)
        soft = cv2.resize(cv2.GaussianBlur(small, (0, 0), 1.2), (w, h), interpolation=cv2.INTER_LINEAR)
        shade -= soft.astype(np.float32) * 0.5

    def _pixel(self, x: float, y: float) -> tuple[int, int]:
        return round(x * self.scale), self.shape[0] - round(y * self.scale)

    def line(self, a: tuple[float, float], b: tuple[float, float], thickness: float) -> None:
        """A yellow marking line, metres."""
        mask = np.zeros(self.shape, np.uint8)
        cv2.line(mask, self._pixel(*a), self._pixel(*b), 255, round(thickness * self.scale), cv2.LINE_AA)
        paint(self.image, mask, YELLOW, self.wear)

    def frame(self, rectangle: Rectangle, thickness: float = 0.09) -> None:
        """Lines around (x0, y0, x1, y1)."""
        x0, y0, x1, y1 = rectangle
        for a, b in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
            self.line(a, b, thickness)

    def hazard(self, rectangle: Rectangle) -> None:
        """Yellow and black diagonal stripes in (x0, y0, x1, y1)."""
        x0, y0, x1, y1 = rectangle
        (left, bottom), (right, top) = self._pixel(x0, y0), self._pixel(x1, y1)
        mask = np.zeros(self.shape, np.uint8)
        mask[top:bottom, left:right] = 255
        paint(self.image, mask, (44, 42, 40), self.wear)
        y, x = np.mgrid[top:bottom, left:right]
        mask[top:bottom, left:right] = np.where((x + y) // round(0.12 * self.scale) % 2, 255, 0)
        paint(self.image, mask, YELLOW, self.wear)

    def text(self, words: str, x: float, y: float, height: float, angle: float = 0.0) -> None:
        """White stencilled words centred at (x, y), turned by `angle` degrees counter-clockwise."""
        mask = np.zeros(self.shape, np.uint8)
        size, thickness = height * self.scale / 22.0, max(2, round(height * self.scale / 7))
        (w, h), _ = cv2.getTextSize(words, FONT, size, thickness)
        u, v = self._pixel(x, y)
        cv2.putText(mask, words, (u - w // 2, v + h // 2), FONT, size, 255, thickness, cv2.LINE_AA)
        self._turn(mask, u, v, angle)
        paint(self.image, mask, WHITE, self.wear)

    def arrow(self, x: float, y: float, angle: float) -> None:
        """A white arrow of 1.2 m, pointing `angle` degrees counter-clockwise from +x."""
        mask = np.zeros(self.shape, np.uint8)
        shape = np.array([[-0.6, -0.06], [0.2, -0.06], [0.2, -0.2], [0.6, 0], [0.2, 0.2], [0.2, 0.06], [-0.6, 0.06]])
        u, v = self._pixel(x, y)
        cv2.fillPoly(mask, [np.round(shape * (self.scale, -self.scale) + (u, v)).astype(np.int32)], 255, cv2.LINE_AA)
        self._turn(mask, u, v, angle)
        paint(self.image, mask, WHITE, self.wear)

    def _turn(self, mask: Texture, u: int, v: int, angle: float) -> None:
        if angle:
            _, _, w, h = cv2.boundingRect(mask)
            r = int(np.hypot(w, h) / 2) + 2
            top, left = max(0, v - r), max(0, u - r)
            window = mask[top : v + r, left : u + r]
            turn = cv2.getRotationMatrix2D((u - left, v - top), angle, 1.0)
            window[:] = cv2.warpAffine(window, turn, window.shape[::-1])
