# SPDX-License-Identifier: Apache-2.0
"""Procedural textures of the synthetic warehouse: seeded numpy noise and OpenCV drawing, no image files.

Every function takes a `numpy.random.Generator` and returns (H, W, 3) uint8 RGB; the same state gives the
same texture. They are rich in corners at every scale, so that features are found near and far.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Texture = NDArray[np.uint8]
Colour = tuple[int, ...]
Rng = np.random.Generator

INK: Colour = (38, 36, 34)
WHITE: Colour = (240, 238, 232)
YELLOW: Colour = (236, 184, 30)
SAFETY_COLOURS: list[Colour] = [
    (196, 40, 36),
    (22, 92, 168),
    (20, 128, 76),
    (236, 184, 30),
    (232, 110, 24),
    (36, 36, 40),
]
FONT = cv2.FONT_HERSHEY_DUPLEX


def noise(rng: Rng, height: int, width: int, cells: Sequence[int], weights: Sequence[float]) -> NDArray[np.float32]:
    """(height, width) float32 sum of smooth noise; cell sizes in pixels, weights are deviations."""
    total = np.zeros((height, width), np.float32)
    for cell, weight in zip(cells, weights, strict=True):
        grid = rng.standard_normal((height // cell + 3, width // cell + 3), dtype=np.float32) * weight
        if cell > 1:
            grid = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        total += grid[:height, :width]
    return total


def grained(
    rng: Rng, height: int, width: int, colour: Colour, cells: Sequence[int], weights: Sequence[float]
) -> Texture:
    """A plain colour with brightness noise."""
    shade = noise(rng, height, width, cells, weights)
    return np.stack([cv2.add(shade, float(c), dtype=cv2.CV_8U) for c in colour], axis=-1)


def paint(image: Texture, mask: Texture, colour: Colour, wear: NDArray[Any] | float = 0.0) -> None:
    """Blend `colour` into `image` where `mask` (H, W) is 255; `wear` in [0, 1] lets the ground through."""
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return
    window = np.s_[y : y + h, x : x + w]
    worn = wear[window] if isinstance(wear, np.ndarray) else wear
    alpha = (mask[window].astype(np.float32) / 255.0 * (1.0 - worn))[..., None]
    image[window] = (image[window] * (1.0 - alpha) + np.array(colour, np.float32) * alpha).astype(np.uint8)


def write(image: Texture, text: str, x: int, y: int, height: int, colour: Colour, thickness: int = 1) -> None:
    """Text whose capitals are `height` pixels tall, baseline at (x, y)."""
    cv2.putText(image, text, (x, y), FONT, height / 22.0, colour, thickness, cv2.LINE_AA)


def scratch(rng: Rng, image: Texture, count: int, length: float, colours: Sequence[Colour], thickness: int = 1) -> None:
    """Thin random strokes."""
    h, w = image.shape[:2]
    starts = rng.uniform(0, 1, (count, 2)) * (w, h)
    angles, lengths = rng.uniform(0, 2 * np.pi, count), rng.exponential(length, count)
    ends = starts + np.stack([np.cos(angles), np.sin(angles)], -1) * lengths[:, None]
    for start, end, pick in zip(
        starts.astype(int), ends.astype(int), rng.integers(len(colours), size=count), strict=True
    ):
        cv2.line(image, start.tolist(), end.tolist(), colours[pick], thickness, cv2.LINE_AA)


def chips(rng: Rng, image: Texture, count: int, radius: tuple[int, int], spread: float) -> None:
    """Small spots darker or brighter than what is under them."""
    h, w = image.shape[:2]
    centres = (rng.uniform(0, 1, (count, 2)) * (w, h)).astype(int)
    radii, factors = rng.integers(*radius, size=count, endpoint=True), rng.normal(1.0, spread, count)
    for (x, y), r, factor in zip(centres.tolist(), radii.tolist(), factors, strict=True):
        colour = np.clip(image[y, x] * factor, 0, 255).tolist()
        cv2.circle(image, (x, y), r, colour, -1, cv2.LINE_AA)


def barcode(rng: Rng, height: int, width: int) -> Texture:
    """Black bars on white."""
    bars = np.repeat(rng.integers(0, 2, size=width), rng.integers(1, 4, size=width))[:width]
    return np.repeat(np.where(bars, 30, 245).astype(np.uint8)[None, :, None], height, axis=0).repeat(3, axis=2)


def code(rng: Rng, letters: int, digits: int) -> str:
    """A random article number."""
    return "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVWXZ"), letters)) + "".join(map(str, rng.integers(0, 10, digits)))


def label(rng: Rng, height: int, width: int) -> Texture:
    """A white shipping label: rules, lines of text, a barcode."""
    image = np.full((height, width, 3), 238, np.uint8)
    cv2.rectangle(image, (1, 1), (width - 2, height - 2), INK, 1)
    write(image, code(rng, 3, 4), 4, height // 4, max(6, height // 7), INK)
    for row in range(height // 3, int(height * 0.55), max(4, height // 12)):
        cv2.line(image, (5, row), (int(width * rng.uniform(0.4, 0.9)), row), (90, 90, 90), 1)
    top, bottom = int(height * 0.6), height - 4
    image[top:bottom, 5 : width - 5] = barcode(rng, bottom - top, width - 10)
    return image


def paste(image: Texture, patch: Texture, x: int, y: int) -> None:
    """Copy `patch` into `image` at (x, y), cut off at the borders."""
    h, w = min(patch.shape[0], image.shape[0] - y), min(patch.shape[1], image.shape[1] - x)
    image[y : y + h, x : x + w] = patch[:h, :w]


def soiled_edges(image: Texture, amount: float) -> Texture:
    """Darkened towards the borders, as corners of boxes are."""
    h, w = image.shape[:2]
    x, y = np.minimum(np.arange(w), np.arange(w)[::-1]), np.minimum(np.arange(h), np.arange(h)[::-1])
    near = np.exp(-np.minimum(x[None], y[:, None]) / 5.0).astype(np.float32)
    return (image * (1.0 - amount * near)[..., None]).astype(np.uint8)


def cardboard(rng: Rng, height: int, width: int, printed: bool = True) -> Texture:
    """A face of a cardboard box: fluting, tape, print, labels; without print a top face."""
    base = np.array([184, 140, 92]) * rng.uniform(0.8, 1.12) + rng.normal(0, 6, 3)
    image = grained(rng, height, width, tuple(int(c) for c in base), (1, 3, 24), (3.0, 2.5, 5.0))
    image[:, ::4] = (image[:, ::4] * 0.97).astype(np.uint8)
    scratch(rng, image, 14, 18, [(206, 168, 122), (150, 112, 70)])
    if not printed or rng.random() < 0.6:
        _tape(rng, image)
    if printed:
        _print_marks(rng, image)
        h, w = int(height * rng.uniform(0.3, 0.45)), int(width * rng.uniform(0.25, 0.42))
        paste(image, label(rng, max(24, h), max(30, w)), *_corner(rng, image, w, h))
    elif rng.random() < 0.5:
        paste(image, label(rng, height // 4, width // 4), int(width * 0.1), int(height * 0.12))
    return soiled_edges(image, 0.45)


def _corner(rng: Rng, image: Texture, w: int, h: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    return int(rng.uniform(0.06, 0.9) * max(1, width - w - 12)) + 6, int(
        rng.uniform(0.1, 0.9) * max(1, height - h - 12)
    ) + 6


def _tape(rng: Rng, image: Texture) -> None:
    h, w = image.shape[:2]
    half = max(4, h // 14)
    middle = image[h // 2 - half : h // 2 + half]
    tint = np.array([206, 172, 120], np.float32) if rng.random() < 0.7 else np.array([220, 220, 214], np.float32)
    middle[:] = (middle * 0.45 + tint * 0.5).astype(np.uint8)
    cv2.line(image, (0, h // 2), (w, h // 2), (120, 88, 56), 1)


def _print_marks(rng: Rng, image: Texture) -> None:
    """Logo, article number, arrows and a fragile sign, printed in one ink."""
    h, w = image.shape[:2]
    ink = INK if rng.random() < 0.5 else SAFETY_COLOURS[rng.integers(4)]
    mask = np.zeros((h, w), np.uint8)
    size = int(h * rng.uniform(0.16, 0.28))
    cv2.putText(mask, code(rng, 4, 0), (int(w * 0.06), size + int(h * 0.06)), FONT, size / 22, 255, 2, cv2.LINE_AA)
    cv2.putText(mask, code(rng, 2, 5), (int(w * 0.06), h - int(h * 0.07)), FONT, size / 44, 255, 1, cv2.LINE_AA)
    x, y, s = int(w * 0.8), int(h * 0.84), max(6, int(h * 0.09))
    for dx in (0, int(2.2 * s)):  # "this side up"
        cv2.arrowedLine(mask, (x - dx, y + s), (x - dx, y - s), 255, 2, cv2.LINE_AA, 0, 0.5)
    kind = rng.integers(3)
    centre, r = (int(w * rng.uniform(0.45, 0.8)), int(h * 0.35)), max(6, int(h * 0.14))
    if kind == 0:
        cv2.circle(mask, centre, r, 255, 3, cv2.LINE_AA)
        cv2.circle(mask, centre, r // 2, 255, -1, cv2.LINE_AA)
    elif kind == 1:
        corners = np.array(centre) + np.array([[0, -r], [r, r], [-r, r]])
        cv2.polylines(mask, [corners.astype(np.int32)], True, 255, 3, cv2.LINE_AA)
        cv2.putText(mask, "!", (centre[0] - r // 6, centre[1] + r // 2), FONT, r / 40, 255, 2, cv2.LINE_AA)
    else:
        cv2.rectangle(mask, (centre[0] - r, centre[1] - r), (centre[0] + r, centre[1] + r), 255, -1)
        cv2.circle(mask, centre, int(r * 0.6), 0, -1, cv2.LINE_AA)
    paint(image, mask, ink, wear=np.clip(noise(rng, h, w, (2, 9), (0.15, 0.12)), 0, 0.8))


def crate(rng: Rng, height: int, width: int, colour: Colour) -> Texture:
    """The side of a plastic crate: ribs, grips, a label."""
    image = grained(rng, height, width, colour, (1, 12), (3.0, 4.0))
    dark, bright = (
        (np.array(colour) * 0.55).astype(int).tolist(),
        np.minimum(np.array(colour) * 1.3, 255).astype(int).tolist(),
    )
    for x in range(width // 12, width, max(8, width // 9)):
        cv2.line(image, (x, height // 5), (x, height - height // 6), dark, 2, cv2.LINE_AA)
        cv2.line(image, (x + 2, height // 5), (x + 2, height - height // 6), bright, 1, cv2.LINE_AA)
    for y in (height // 6, height - height // 7):
        cv2.line(image, (0, y), (width, y), dark, 2)
    cv2.rectangle(image, (int(width * 0.38), height // 4), (int(width * 0.62), int(height * 0.42)), (24, 24, 24), -1)
    paste(image, label(rng, height // 3, width // 3), int(width * rng.uniform(0.08, 0.6)), int(height * 0.52))
    scratch(rng, image, 25, 14, [tuple(dark), tuple(bright)])
    return soiled_edges(image, 0.4)


def wrapped_load(rng: Rng, height: int, width: int) -> Texture:
    """A whole pallet load of boxes under stretch film."""
    image = np.zeros((height, width, 3), np.uint8)
    rows, columns = int(rng.integers(3, 6)), int(rng.integers(3, 5))
    ys, xs = np.linspace(0, height, rows + 1).astype(int), np.linspace(0, width, columns + 1).astype(int)
    kinds = [cardboard(rng, ys[1] - ys[0] + 1, xs[1] - xs[0] + 1) for _ in range(3)]
    for top in ys[:-1]:
        for left in xs[:-1]:
            paste(image, kinds[rng.integers(len(kinds))], int(left), int(top))
    film = cv2.GaussianBlur(noise(rng, height, width, (3, 40), (10.0, 7.0)), (41, 3), 0) * 2.5
    haze = np.clip(34 + film, 0, 110)[..., None]
    image = np.clip(image * 0.72 + haze, 0, 255).astype(np.uint8)
    scratch(rng, image, 30, 70, [(222, 222, 222), (190, 186, 178)])
    paste(
        image,
        label(rng, height // 5, width // 4),
        int(width * rng.uniform(0.1, 0.6)),
        int(height * rng.uniform(0.15, 0.5)),
    )
    return soiled_edges(image, 0.35)


def wood(rng: Rng, height: int, width: int, boards: int) -> Texture:
    """Rough boards side by side along x, with grain, nails and gaps."""
    image = np.zeros((height, width, 3), np.uint8)
    edges = np.linspace(0, height, boards + 1).astype(int)
    for top, bottom in pairwise(edges.tolist()):
        tone = np.array([172, 138, 98]) * rng.uniform(0.72, 1.1)
        h = bottom - top
        grain = cv2.resize(rng.standard_normal((h, width // 40 + 2), dtype=np.float32), (width, h)) * 9
        grain += noise(rng, h, width, (1, 16), (3.0, 4.0))
        board = np.clip(tone + grain[..., None], 0, 255).astype(np.uint8)
        for x in np.linspace(width * 0.04, width * 0.96, 3):
            cv2.circle(board, (int(x), h // 2), 2, (60, 58, 56), -1, cv2.LINE_AA)
        cv2.line(board, (0, h - 1), (width, h - 1), (52, 40, 28), max(1, height // 80))
        image[top:bottom] = board
    return image


def painted_steel(rng: Rng, height: int, width: int, colour: Colour, holes: bool = False) -> Texture:
    """Powder-coated steel along x, scratched; uprights have two rows of holes."""
    image = grained(rng, height, width, colour, (1, 4, 60), (2.5, 2.0, 5.0))
    if holes:
        for x in range(8, width, 16):
            for y in (height // 3, 2 * height // 3):
                cv2.ellipse(image, (x, y), (4, 3), 0, 0, 360, (24, 26, 30), -1, cv2.LINE_AA)
    worn = tuple(int(c * 0.6 + 60) for c in colour)
    scratch(rng, image, width // 14, 12, [worn, (70, 64, 60), tuple(int(c * 0.6) for c in colour)])
    chips(rng, image, width // 18, (1, 3), 0.4)
    return image


def beam(rng: Rng, height: int, width: int, colour: Colour, names: Sequence[str]) -> Texture:
    """The front of a shelf beam with the places' name plates and barcodes."""
    image = painted_steel(rng, height, width, colour)
    for i, name in enumerate(names):
        x = int(width * (i + 0.5) / len(names)) - int(width * rng.uniform(0.02, 0.12))
        plate = np.full((height - 8, 118, 3), 240, np.uint8)
        write(plate, name, 3, (height - 8) // 2 + 7, 13, INK)
        plate[3:-3, 76:114] = barcode(rng, height - 14, 38)
        paste(image, plate, x, 4)
    return image


def bricks(rng: Rng, height: int, width: int, metres_per_pixel: float) -> Texture:
    """A brick wall in running bond with a painted plinth."""
    tall, wide = round(0.085 / metres_per_pixel), round(0.26 / metres_per_pixel)
    rows, columns = height // tall + 2, width // wide + 2
    tones = np.array([166, 104, 82]) + rng.normal(0, 1, (rows, columns, 1)) * np.array([15, 12, 10])
    y, x = np.mgrid[:height, :width]
    row = y // tall
    shifted = x + (row % 2) * (wide // 2)
    image = tones[row, shifted // wide] + noise(rng, height, width, (1, 3, 80), (5.0, 5.0, 6.0))[..., None]
    image[(y % tall < 2) | (shifted % wide < 2)] = (176, 170, 160)
    sill = round(height - 1.1 / metres_per_pixel)
    image[sill:] = image[sill:] * 0.35 + np.array([112, 118, 122], np.float32) * 0.62
    image[sill - 6 : sill] = (60, 66, 72)
    image = np.clip(image, 0, 255).astype(np.uint8)
    chips(rng, image, height * width // 5000, (1, 4), 0.25)
    scratch(rng, image, width // 20, 20, [(196, 180, 166), (110, 84, 72)])
    return image


def poster(rng: Rng, height: int, width: int) -> Texture:
    """A safety poster: a coloured band, a sign, words."""
    colour = SAFETY_COLOURS[rng.integers(len(SAFETY_COLOURS))]
    image = grained(rng, height, width, WHITE, (1, 30), (1.5, 3.0))
    cv2.rectangle(image, (0, 0), (width, height // 5), colour, -1)
    words = ["SAFETY", "CAUTION", "NOTICE", "EXIT", "DOCK", "ZONE", "STOP", "HALL"]
    write(image, words[rng.integers(len(words))], width // 14, height // 7, max(8, width // 9), WHITE, 2)
    centre, r = (width // 2, int(height * 0.44)), min(width // 4, int(height * 0.19))
    kind = rng.integers(3)
    if kind == 0:
        cv2.circle(image, centre, r, colour, max(3, r // 5), cv2.LINE_AA)
        cv2.line(
            image,
            (centre[0] - r // 2, centre[1] + r // 2),
            (centre[0] + r // 2, centre[1] - r // 2),
            colour,
            r // 4,
            cv2.LINE_AA,
        )
    elif kind == 1:
        corners = np.array(centre) + np.array([[0, -r], [r, r], [-r, r]])
        cv2.fillPoly(image, [corners.astype(np.int32)], YELLOW, cv2.LINE_AA)
        cv2.polylines(image, [corners.astype(np.int32)], True, INK, max(2, r // 8), cv2.LINE_AA)
        write(image, "!", centre[0] - r // 8, centre[1] + int(r * 0.7), r, INK, 3)
    else:
        cv2.rectangle(image, (centre[0] - r, centre[1] - r), (centre[0] + r, centre[1] + r), colour, -1)
        write(image, str(rng.integers(1, 99)), centre[0] - int(r * 0.7), centre[1] + r // 2, r, WHITE, 3)
    for y in range(int(height * 0.7), int(height * 0.94), max(5, height // 26)):
        cv2.line(image, (width // 10, y), (int(width * rng.uniform(0.4, 0.9)), y), (96, 96, 100), 2)
    return soiled_edges(image, 0.3)


def gate(rng: Rng, height: int, width: int, number: int) -> Texture:
    """A roller gate with slats, a number and hazard stripes at the sides."""
    image = grained(rng, height, width, (150, 158, 164), (1, 50), (2.5, 6.0))
    for y in range(0, height, 16):
        image[y : y + 2] = (image[y : y + 2] * 0.55).astype(np.uint8)
        image[y + 2 : y + 4] = np.minimum(image[y + 2 : y + 4] * 1.15, 255).astype(np.uint8)
    side = width // 14
    y, x = np.mgrid[:height, :width]
    edge = (x < side) | (x >= width - side)
    image[edge] = np.where(((x + y) // side % 2 == 0)[..., None], YELLOW, INK)[edge]
    mask = np.zeros((height, width), np.uint8)
    cv2.putText(
        mask,
        str(number),
        (int(width * 0.38), int(height * 0.55)),
        FONT,
        height / 90,
        255,
        height // 40,
        cv2.LINE_AA,
    )
    paint(image, mask, WHITE, 0.15)
    paste(image, label(rng, height // 7, width // 6), int(width * 0.7), int(height * 0.4))
    scratch(rng, image, 60, 25, [(104, 108, 112), (190, 194, 198)])
    return image


def ceiling(rng: Rng, height: int, width: int) -> Texture:
    """Trapezoidal roof sheets with seams and screws."""
    image = grained(rng, height, width, (148, 152, 156), (1, 90), (2.0, 6.0))
    for x in range(0, width, 25):
        image[:, x : x + 5] = (image[:, x : x + 5] * 0.72).astype(np.uint8)
    for y in range(100, height, 200):
        image[y : y + 3] = (image[y : y + 3] * 0.5).astype(np.uint8)
        for x in range(12, width, 50):
            cv2.circle(image, (x, y - 7), 2, (70, 72, 74), -1)
    return image
