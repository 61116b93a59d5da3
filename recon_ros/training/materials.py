# SPDX-License-Identifier: Apache-2.0
"""Textures of the training scenes: seeded noise, drawing, and the photographs that happen to be installed.

All are (256, 256, 3) uint8 RGB; those that are tiled wrap around.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Texture = NDArray[np.uint8]
Floats = NDArray[np.float32]
Rng = np.random.Generator
SIZE = 256
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX)


def colour(rng: Rng, saturation: float, low: float, high: float) -> Floats:
    """A random (3,) colour, 0..255: brightness in [low, high], saturation up to the given."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0, saturation), rng.uniform(low, high)]]], np.float32)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255, np.float32)


def noise(rng: Rng, slope: float, stretch: tuple[float, float] = (1.0, 1.0)) -> Floats:
    """(256, 256) tileable noise of unit deviation whose amplitude falls with frequency to the power `slope`."""
    f = np.fft.fftfreq(SIZE)[:, None] * stretch[1], np.fft.rfftfreq(SIZE)[None] * stretch[0]
    size = np.hypot(*f)
    size[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((SIZE, SIZE), dtype=np.float32)) / size**slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (SIZE, SIZE))
    return np.asarray(field / field.std(), np.float32)


def _shaded(base: Floats, *layers: Floats) -> Texture:
    total = base.reshape(-1, 3)[0] if base.ndim == 1 else base
    shade = sum(layers, np.zeros((SIZE, SIZE), np.float32))
    return np.clip(np.asarray(total) + shade[..., None], 0, 255).astype(np.uint8)


def plaster(rng: Rng) -> Texture:
    base = colour(rng, 0.12, 0.72, 0.95)
    return _shaded(base, noise(rng, rng.uniform(0.3, 1.0)) * rng.uniform(0.5, 3), noise(rng, 1.8) * rng.uniform(0, 2.5))


def wallpaper(rng: Rng) -> Texture:
    base = colour(rng, 0.3, 0.5, 0.95)
    ink = np.clip(base * rng.uniform(0.6, 1.2) + rng.normal(0, 15, 3), 0, 255).astype(np.float32)
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = base
    n = int(rng.choice([2, 4, 8]))
    y, x = np.mgrid[:SIZE, :SIZE] * (n / SIZE)
    kind = rng.integers(4)
    wave = [
        np.sin(2 * np.pi * x),
        np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y),
        np.sin(2 * np.pi * (x + y)),
        np.sin(2 * np.pi * x + 2 * np.sin(2 * np.pi * y)),
    ][kind]
    alpha = np.clip((wave - rng.uniform(-0.5, 0.6)) * 6, 0, 1)[..., None] * rng.uniform(0.2, 1.0)
    return _shaded(image * (1 - alpha) + ink * alpha, noise(rng, 0.5) * 3)


def wood(rng: Rng) -> Texture:
    base = np.array(rng.choice([(178, 130, 84), (120, 82, 52), (205, 170, 125), (150, 100, 66), (90, 66, 50)]))
    base = base * rng.uniform(0.8, 1.15) + rng.normal(0, 8, 3)
    grain = noise(rng, 1.3, (0.6, 12.0)) if rng.random() < 0.9 else noise(rng, 1.3, (3.0, 8.0))
    rings = np.sin(noise(rng, 1.9, (0.5, 5.0)) * rng.uniform(2, 8))
    return _shaded(base.astype(np.float32), grain * rng.uniform(4, 14), rings * rng.uniform(2, 9), noise(rng, 0.3) * 3)


def parquet(rng: Rng) -> Texture:
    boards = int(rng.choice([4, 6, 8]))
    tone = wood(rng).astype(np.float32)
    h = SIZE / boards
    result = np.empty_like(tone)
    for i in range(boards):
        a, b = round(i * h), round((i + 1) * h)
        cut = int(rng.integers(SIZE))
        rows = np.roll(np.roll(tone, int(rng.integers(SIZE)), 0), cut, 1)[a:b].copy()
        left, right = sorted(rng.integers(0, SIZE, 2).tolist())
        rows[:, left:right] *= rng.uniform(0.8, 1.15)
        rows *= rng.uniform(0.85, 1.12)
        rows[:1] *= 0.6
        rows[:, left : left + 1] *= 0.6
        rows[:, right : right + 1] *= 0.6
        result[a:b] = rows
    return np.clip(result, 0, 255).astype(np.uint8)


def carpet(rng: Rng) -> Texture:
    base = colour(rng, 0.4, 0.15, 0.65)
    image = _shaded(base, noise(rng, 0.1) * rng.uniform(5, 16), noise(rng, 1.2) * rng.uniform(1, 10))
    if rng.random() < 0.4:  # carpet tiles, laid in turns
        half = SIZE // 2
        image[:half, :half] = (image[:half, :half] * rng.uniform(0.8, 0.97)).astype(np.uint8)
        image[half:, half:] = (image[half:, half:] * rng.uniform(0.8, 0.97)).astype(np.uint8)
    if rng.random() < 0.25:
        image[:, :: int(rng.choice([16, 32, 64]))] = colour(rng, 0.5, 0.3, 0.9).astype(np.uint8)
    return image


def tiles(rng: Rng) -> Texture:
    n = int(rng.choice([1, 2, 4]))
    base, grout = colour(rng, 0.3, 0.35, 0.95), colour(rng, 0.1, 0.25, 0.8)
    tone = np.repeat(np.repeat(rng.normal(0, rng.uniform(0, 12), (n, n)), SIZE // n, 0), SIZE // n, 1)
    image = _shaded(base, tone.astype(np.float32), noise(rng, 1.3) * rng.uniform(1, 12), noise(rng, 0.3) * 2)
    width = int(rng.integers(1, 5))
    for i in range(0, SIZE, SIZE // n):
        image[i : i + width] = grout
        image[:, i : i + width] = grout
    return image


def concrete(rng: Rng) -> Texture:
    image = _shaded(colour(rng, 0.08, 0.35, 0.7), noise(rng, 1.4) * rng.uniform(4, 14), noise(rng, 0.4) * 5)
    for _ in range(int(rng.integers(0, 6))):
        points = np.cumsum(rng.normal(0, 14, (10, 2)), 0) + rng.uniform(0, SIZE, 2)
        cv2.polylines(image, [points.astype(np.int32)], False, (70, 68, 66), 1, cv2.LINE_AA)
    return image


def bricks(rng: Rng) -> Texture:
    rows, columns = 8, 4
    base = np.array([160, 95, 75]) if rng.random() < 0.6 else colour(rng, 0.3, 0.5, 0.9)
    y, x = np.mgrid[:SIZE, :SIZE]
    row = y // (SIZE // rows)
    shifted = (x + (row % 2) * (SIZE // columns // 2)) % SIZE
    tones = rng.normal(0, 14, (rows, columns)).astype(np.float32)[row, shifted // (SIZE // columns)]
    image = _shaded(base.astype(np.float32), tones, noise(rng, 0.5) * 7)
    image[(y % (SIZE // rows) < 3) | (shifted % (SIZE // columns) < 3)] = (178, 172, 164)
    return image


def fabric(rng: Rng) -> Texture:
    base = colour(rng, 0.35 if rng.random() < 0.6 else 0.8, 0.08, 0.8)
    y, x = np.mgrid[:SIZE, :SIZE]
    weave = (((x // 2 + y // 2) % 2) * 2.0 - 1.0).astype(np.float32) * rng.uniform(1, 8)
    image = _shaded(base, weave, noise(rng, 1.5) * rng.uniform(2, 10), noise(rng, 0.1) * rng.uniform(2, 7))
    if rng.random() < 0.25:  # checks
        step = int(rng.choice([32, 64]))
        for axis in (x, y):
            image[(axis % step) < step // 4] = (image[(axis % step) < step // 4] * 0.7).astype(np.uint8)
    return image


def plastic(rng: Rng) -> Texture:
    tone = colour(rng, 0.1, 0.08, 0.95) if rng.random() < 0.75 else colour(rng, 0.75, 0.3, 0.9)
    return _shaded(tone, noise(rng, 0.4) * rng.uniform(0.5, 4), noise(rng, 1.8) * rng.uniform(0.5, 4))


def metal(rng: Rng) -> Texture:
    stretch = (0.2, 20.0) if rng.random() < 0.5 else (1.0, 1.0)
    return _shaded(colour(rng, 0.12, 0.3, 0.75), noise(rng, 1.0, stretch) * rng.uniform(2, 9), noise(rng, 1.7) * 4)


def _lines(rng: Rng, image: Texture, box: tuple[int, int, int, int], ink: Floats, step: int) -> None:
    """Lines of words in a box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    for y in range(y0 + step, y1, step):
        x = x0
        end = x0 + (x1 - x0) * rng.uniform(0.4, 1.0)
        while x < end:
            w = int(rng.integers(step, 5 * step))
            cv2.line(image, (x, y), (min(x + w, int(end)), y), ink.tolist(), max(1, step // 3))
            x += w + max(2, step // 2)


def poster(rng: Rng, picture: Texture | None = None) -> Texture:
    """A framed picture or a notice with words."""
    ground, ink = colour(rng, 0.6, 0.6, 1.0), colour(rng, 0.9, 0.0, 0.5)
    image = _shaded(ground, noise(rng, 1.5) * 3)
    if picture is not None and rng.random() < 0.75:
        m = int(rng.integers(0, 30))
        image[m : SIZE - m, m : SIZE - m] = cv2.resize(picture, (SIZE - 2 * m, SIZE - 2 * m))
    else:
        for _ in range(int(rng.integers(1, 7))):
            shape = colour(rng, 1.0, 0.2, 1.0).tolist()
            x, y, r = (int(v) for v in rng.integers(20, 230, 3))
            if rng.random() < 0.5:
                cv2.circle(image, (x, y), r // 3, shape, -1, cv2.LINE_AA)
            else:
                cv2.rectangle(image, (x, y), (x + r // 2, y + r // 3), shape, -1)
        words = "".join(chr(int(c)) for c in rng.integers(65, 91, int(rng.integers(3, 9))))
        scale = float(rng.uniform(0.8, 2.0))
        cv2.putText(image, words, (12, int(rng.integers(30, 90))), FONTS[rng.integers(3)], scale, ink.tolist(), 2, 16)
        if rng.random() < 0.8:
            _lines(rng, image, (20, int(rng.integers(100, 180)), 236, 240), ink, int(rng.integers(6, 14)))
    cv2.rectangle(image, (0, 0), (SIZE - 1, SIZE - 1), colour(rng, 0.3, 0.0, 0.8).tolist(), int(rng.integers(1, 12)))
    return image


def screen(rng: Rng, picture: Texture | None = None) -> Texture:
    """What a monitor shows: windows with text, or a picture, in a dark frame."""
    dark = rng.random() < 0.5
    ground = colour(rng, 0.5, 0.02, 0.25) if dark else colour(rng, 0.4, 0.6, 1.0)
    image = _shaded(ground, noise(rng, 2.0) * 6)
    if picture is not None and rng.random() < 0.4:
        image = picture.copy()
    for _ in range(int(rng.integers(0, 4))):
        x0, y0 = (int(v) for v in rng.integers(8, 150, 2))
        x1, y1 = min(248, x0 + int(rng.integers(60, 200))), min(248, y0 + int(rng.integers(50, 200)))
        cv2.rectangle(image, (x0, y0), (x1, y1), colour(rng, 0.3, 0.05, 1.0).tolist(), -1)
        cv2.rectangle(image, (x0, y0), (x1, y0 + 10), colour(rng, 0.6, 0.2, 0.9).tolist(), -1)
        _lines(rng, image, (x0 + 6, y0 + 14, x1 - 6, y1 - 4), colour(rng, 0.8, 0.1, 1.0), int(rng.integers(5, 10)))
    cv2.rectangle(image, (0, 0), (SIZE - 1, SIZE - 1), (22, 22, 24), 10)
    return image


def books(rng: Rng) -> Texture:
    """A row of book spines or folders, upright, standing over the whole width."""
    image = np.full((SIZE, SIZE, 3), 25, np.uint8)
    x = 0
    folders = rng.random() < 0.3
    while x < SIZE:
        w = int(rng.integers(24, 44)) if folders else int(rng.integers(7, 30))
        top = int(rng.integers(0, 70)) if not folders else 6
        tone = colour(rng, 0.8, 0.1, 0.95)
        cv2.rectangle(image, (x, top), (x + w - 2, SIZE), tone.tolist(), -1)
        cv2.line(image, (x, top), (x, SIZE), (tone * 0.5).tolist(), 1)
        label = colour(rng, 0.5, 0.1, 1.0).tolist()
        y = int(rng.integers(top + 10, 170))
        cv2.rectangle(image, (x + w // 4, y), (x + 3 * w // 4, y + int(rng.integers(8, 70))), label, -1)
        x += w
    return image


def cardboard(rng: Rng) -> Texture:
    base = np.array([184, 140, 92]) * rng.uniform(0.75, 1.12) + rng.normal(0, 7, 3)
    image = _shaded(base.astype(np.float32), noise(rng, 0.5, (1.0, 0.3)) * 4, noise(rng, 1.6) * 5)
    if rng.random() < 0.7:
        a = int(rng.integers(90, 150))
        image[a : a + 26] = (image[a : a + 26] * 0.5 + np.array([206, 172, 120]) * 0.45).astype(np.uint8)
    ink = colour(rng, 0.9, 0.05, 0.5)
    if rng.random() < 0.7:
        words = "".join(chr(int(c)) for c in rng.integers(48, 91, int(rng.integers(2, 7))))
        cv2.putText(image, words, (16, int(rng.integers(50, 230))), FONTS[rng.integers(3)], 1.6, ink.tolist(), 3, 16)
    if rng.random() < 0.7:
        x, y = (int(v) for v in rng.integers(10, 150, 2))
        cv2.rectangle(image, (x, y), (x + 80, y + 56), (238, 238, 232), -1)
        _lines(rng, image, (x + 5, y + 3, x + 75, y + 52), np.array([40, 40, 40], np.float32), 7)
    cv2.rectangle(image, (0, 0), (SIZE - 1, SIZE - 1), (base * 0.6).tolist(), 3)
    return image


def door(rng: Rng) -> Texture:
    image = wood(rng) if rng.random() < 0.5 else plastic(rng)
    image = np.ascontiguousarray(image.transpose(1, 0, 2))
    tone = image.mean((0, 1))
    cv2.rectangle(image, (0, 0), (SIZE - 1, SIZE - 1), (tone * 0.5).tolist(), 3)
    for _ in range(int(rng.integers(0, 4))):
        x0, y0 = int(rng.integers(20, 70)), int(rng.integers(10, 180))
        y1 = min(245, y0 + int(rng.integers(30, 120)))
        cv2.rectangle(image, (x0, y0), (SIZE - x0, y1), (tone * 0.7).tolist(), 2)
    if rng.random() < 0.2:
        cv2.rectangle(image, (150, 25), (215, 110), (170, 190, 200), -1)
    cv2.rectangle(image, (14, 128), (44, 134), (90, 90, 94), -1)
    cv2.rectangle(image, (0, 0), (SIZE, 2), (tone * 0.4).tolist(), -1)
    return image


def ceiling(rng: Rng) -> Texture:
    """Panels with pinholes, 4 in a texture, or plain plaster."""
    if rng.random() < 0.45:
        return plaster(rng)
    image = _shaded(colour(rng, 0.05, 0.75, 0.95), noise(rng, 0.3) * 4)
    holes = rng.random((SIZE, SIZE)) < 0.03
    image[holes] = (image[holes] * 0.8).astype(np.uint8)
    line = colour(rng, 0.05, 0.5, 1.0)
    for i in (0, SIZE // 2):
        image[i : i + 4], image[:, i : i + 4] = line, line
    return image


def outdoors(rng: Rng, picture: Texture | None = None) -> Texture:
    """What is seen through a window: sky, houses, greenery."""
    if picture is not None and rng.random() < 0.6:
        return picture.copy()
    blue = rng.uniform(0, 0.5)
    sky, horizon = 250 * np.array([1 - blue, 1 - 0.45 * blue, 1.0], np.float32), int(rng.integers(80, 180))
    fade = np.linspace(1, 1.3, SIZE, dtype=np.float32)[:, None, None]
    image = np.clip(sky * fade[::-1] / 1.3 + noise(rng, 2.0)[..., None] * 8, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(1, 7))):
        x, w, top = int(rng.integers(-40, 230)), int(rng.integers(30, 120)), horizon - int(rng.integers(0, 90))
        cv2.rectangle(image, (x, top), (x + w, SIZE), colour(rng, 0.4, 0.3, 0.85).tolist(), -1)
        pane = colour(rng, 0.3, 0.1, 0.6).tolist()
        for yy in range(top + 8, SIZE, 20):
            for xx in range(x + 6, x + w - 8, 16):
                cv2.rectangle(image, (xx, yy), (xx + 7, yy + 10), pane, -1)
    green = noise(rng, 1.1) * 25 + horizon + 30 > np.arange(SIZE)[:, None]
    leaves = _shaded(colour(rng, 0.2, 0.2, 0.4) * (0.8, 1.3, 0.6), noise(rng, 0.7) * 22)
    image[~green] = leaves[~green]
    return image


def leaf(rng: Rng) -> Texture:
    base = colour(rng, 0.2, 0.25, 0.6) * np.array([0.7, 1.2, 0.5], np.float32)
    return _shaded(base, noise(rng, 1.0, (0.5, 4.0)) * 16, noise(rng, 0.3) * 6)


def paper(rng: Rng) -> Texture:
    image = _shaded(colour(rng, 0.05, 0.85, 1.0), noise(rng, 1.0) * 2)
    _lines(rng, image, (24, 24, 232, 236), colour(rng, 0.5, 0.0, 0.4), int(rng.integers(8, 16)))
    return image


def keyboard(rng: Rng) -> Texture:
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    image[:] = colour(rng, 0.05, 0.03, 0.3)
    key = colour(rng, 0.1, 0.05, 0.95).tolist()
    for y in range(10, 240, 48):
        for x in range(6, 246, 16):
            cv2.rectangle(image, (x, y), (x + 12, y + 38), key, -1)
    return image


def drawers(rng: Rng) -> Texture:
    image = plastic(rng) if rng.random() < 0.6 else wood(rng)
    tone = image.mean((0, 1)) * 0.45
    n, m = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    for i in range(n):
        for j in range(m):
            x0, y0, x1, y1 = j * SIZE // m, i * SIZE // n, (j + 1) * SIZE // m - 2, (i + 1) * SIZE // n - 2
            cv2.rectangle(image, (x0, y0), (x1, y1), tone.tolist(), 2)
            cv2.rectangle(image, ((x0 + x1) // 2 - 14, y0 + 12), ((x0 + x1) // 2 + 14, y0 + 17), (60, 60, 64), -1)
    return image
