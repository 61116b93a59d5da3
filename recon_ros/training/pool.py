# SPDX-License-Identifier: Apache-2.0
"""Pools of textures, drawn and photographed, from which scenes take their materials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.training import materials as draw
from recon_ros.training.materials import Rng, Texture
from recon_ros.training.photographs import Photograph, find_photographs
from recon_ros.training.surfaces import Material, Vector

# How many of each a pool has, and whether it may show a photograph.
KINDS: dict[str, tuple[int, Callable[..., Texture], bool]] = {
    "plaster": (8, draw.plaster, False),
    "wallpaper": (5, draw.wallpaper, False),
    "wood": (10, draw.wood, False),
    "parquet": (7, draw.parquet, False),
    "carpet": (9, draw.carpet, False),
    "tiles": (7, draw.tiles, False),
    "concrete": (6, draw.concrete, False),
    "bricks": (4, draw.bricks, False),
    "fabric": (12, draw.fabric, False),
    "plastic": (12, draw.plastic, False),
    "metal": (6, draw.metal, False),
    "poster": (12, draw.poster, True),
    "screen": (8, draw.screen, True),
    "books": (10, draw.books, False),
    "cardboard": (12, draw.cardboard, False),
    "door": (6, draw.door, False),
    "ceiling": (5, draw.ceiling, False),
    "outdoors": (8, draw.outdoors, True),
    "leaf": (4, draw.leaf, False),
    "paper": (4, draw.paper, False),
    "keyboard": (2, draw.keyboard, False),
    "drawers": (8, draw.drawers, False),
}
SURFACE_PHOTOGRAPHS = 12
PICTURES = 16


@dataclass(frozen=True)
class Pool:
    """Textures that some sequences share.

    Attributes:
        textures: (T, 256, 256, 3) uint8 RGB.
        kinds: indices of each kind; "photograph" are surfaces (may be empty).
        photographs: where the photographs in it come from.
    """

    textures: NDArray[np.uint8]
    kinds: dict[str, tuple[int, ...]]
    photographs: tuple[Photograph, ...]

    def pick(self, rng: Rng, *kinds: str, metres: float = 1.0, gloss: float = 0.0, vary: float = 0.12) -> Material:
        """A random material of one of the kinds, slightly recoloured."""
        choices = [i for kind in kinds for i in self.kinds.get(kind, ())] or list(self.kinds["plaster"])
        level = float(rng.uniform(0.75, 1.15))
        tint: Vector = tuple(np.clip(level * (1 + rng.normal(0, vary, 3)), 0.15, 1.35).tolist())
        return Material(int(choices[rng.integers(len(choices))]), metres, tint, 0.0, gloss)


def _tileable(patch: Texture) -> Texture:
    """Mirrored once in each direction, so that its borders fit."""
    half = cv2.resize(patch, (draw.SIZE // 2, draw.SIZE // 2), interpolation=cv2.INTER_AREA)
    row = np.concatenate([half, half[:, ::-1]], 1)
    return np.concatenate([row, row[::-1]], 0)


def _crop(rng: Rng, image: Texture, smallest: float) -> Texture:
    h, w = image.shape[:2]
    side = int(min(h, w) * rng.uniform(smallest, 1.0))
    x, y = int(rng.integers(0, w - side + 1)), int(rng.integers(0, h - side + 1))
    return cv2.resize(image[y : y + side, x : x + side], (draw.SIZE, draw.SIZE), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=1)
def pool(seed: int) -> Pool:
    """The pool of this seed; kept until another is asked for, because making it takes seconds."""
    rng = np.random.default_rng((seed, 77))
    found = find_photographs()
    pictures = [p for p in found if p.kind == "picture"]
    surfaces = [p for p in found if p.kind == "surface"]
    views = [_crop(rng, pictures[rng.integers(len(pictures))].read(), 0.4) for _ in range(PICTURES if pictures else 0)]
    textures: list[Texture] = []
    kinds: dict[str, tuple[int, ...]] = {}
    for kind, (count, make, photographed) in KINDS.items():
        first = len(textures)
        for _ in range(count):
            view = views[rng.integers(len(views))] if views else None
            textures.append(make(rng, view) if photographed else make(rng))
        kinds[kind] = tuple(range(first, len(textures)))
    first = len(textures)
    for _ in range(SURFACE_PHOTOGRAPHS if surfaces else 0):
        crop = _crop(rng, surfaces[rng.integers(len(surfaces))].read(), 0.3)
        textures.append(_tileable(crop) if rng.random() < 0.8 else crop)
    kinds["photograph"] = tuple(range(first, len(textures)))
    return Pool(np.stack(textures), kinds, tuple(found))
