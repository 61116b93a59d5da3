# SPDX-License-Identifier: Apache-2.0
"""Light of a scene, computed once: ambient with occlusion, lamps and windows with shadows, in a coarse atlas.

Which rays are blocked is asked of a renderer, so that all of them light a scene alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.training.surfaces import Floats, Quads

TEXEL = 0.13
OCCLUSION_RANGE = 1.5
# (points (N, 3), directions (N, 3), far) → (N,) whether something is nearer than far · |direction|.
Occluded = Callable[[Floats, Floats, float], NDArray[np.bool_]]


@dataclass(frozen=True)
class Lights:
    """What shines.

    Attributes:
        positions: (L, 3) metres.
        colours: (L, 3) linear power; 1 at 1 m lights a white face fully.
        axes: (L, 3) unit direction a lamp shines to, zero for all directions.
        ambient: (3,) light from everywhere.
    """

    positions: Floats
    colours: Floats
    axes: Floats
    ambient: Floats


@dataclass(frozen=True)
class Lightmap:
    """The light on all quads.

    Attributes:
        atlas: (H, W, 3) float32 linear factor on the texture, tint and emission within.
        places: (N, 4) float32 scale and offset along x, scale and offset along y: the light at (s, t) of a
            quad is the atlas, interpolated, at x = places[0] · s + places[1], y = places[2] · t + places[3],
            where integers are the centres of texels.
    """

    atlas: Floats
    places: Floats


def normals_of(corners: Floats) -> Floats:
    """(N, 3) unit normals of (N, 4, 3) corners, on the side the texture is seen from."""
    normals = np.cross(corners[:, 3] - corners[:, 0], corners[:, 1] - corners[:, 0])
    return np.asarray(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12), np.float32)


def light(quads: Quads, lights: Lights, occluded: Occluded, rng: np.random.Generator) -> Lightmap:
    """The light on all quads; `rng` softens the shadows."""
    corners = quads.corners
    across, down = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]
    sizes = np.stack([np.linalg.norm(across, axis=1), np.linalg.norm(down, axis=1)], 1)
    texels = np.clip(np.ceil(sizes / TEXEL), 1, 90).astype(int)
    value = illumination(*_texel_points(corners, across, down, texels), lights, occluded, rng)
    origins, (height, width) = _packed(texels + 2)
    # One texel beyond each border, equal to the one beside it, for the bilinear look-up.
    index, place = _counted((texels + 2).prod(1))
    columns = (texels[:, 0] + 2)[index]
    i, j = place % columns, place // columns
    inner = np.clip(i - 1, 0, texels[index, 0] - 1) + np.clip(j - 1, 0, texels[index, 1] - 1) * texels[index, 0]
    first = np.cumsum(texels.prod(1)) - texels.prod(1)
    shine = np.maximum(value[first[index] + inner], quads.emission[index, None]) * quads.tints[index]
    atlas = np.zeros((height, width, 3), np.float32)
    atlas[origins[index, 1] + j, origins[index, 0] + i] = shine
    places = np.stack([texels[:, 0], origins[:, 0] + 0.5, texels[:, 1], origins[:, 1] + 0.5], axis=1)
    return Lightmap(atlas, places.astype(np.float32))


def illumination(
    points: Floats, normals: Floats, lights: Lights, occluded: Occluded, rng: np.random.Generator
) -> Floats:
    """(N, 3) light that falls on points with normals."""
    open_sky, total = np.zeros(len(points), np.float32), np.zeros(len(points), np.float32)
    for d in _directions(12):
        cosine = normals @ d
        ray = np.where(cosine[:, None] < 0, -d, d)
        open_sky += np.abs(cosine) * ~occluded(points, ray, OCCLUSION_RANGE)
        total += np.abs(cosine)
    # Corners get light from the walls beside them too, so nothing is black.
    result = (0.25 + 0.75 * open_sky / total)[:, None] * lights.ambient
    for position, colour, axis in zip(lights.positions, lights.colours, lights.axes, strict=True):
        # A lamp has a size; its shadow is soft once the texels are interpolated.
        towards = position - points + rng.uniform(-0.07, 0.07, points.shape).astype(np.float32)
        squared = np.einsum("ij,ij->i", towards, towards)
        cosine = np.einsum("ij,ij->i", towards, normals) / np.sqrt(squared)
        if axis.any():
            cosine = cosine * np.clip(-(towards @ axis) / np.sqrt(squared), 0, 1)
        strength = np.maximum(cosine, 0) / (0.3 + squared)
        lit = np.flatnonzero(strength > 3e-3)
        strength[lit] *= ~occluded(points[lit], towards[lit], 0.98)
        result = result + strength[:, None] * colour
    return np.asarray(result, np.float32)


def _texel_points(corners: Floats, across: Floats, down: Floats, texels: NDArray[Any]) -> tuple[Floats, Floats]:
    """Points and normals of all texels, row by row, quad by quad."""
    index, place = _counted(texels.prod(1))
    i, j = place % texels[index, 0], place // texels[index, 0]
    # Not quite to the borders, where neighbours are touched.
    s = np.clip((i + 0.5) / texels[index, 0], 0.04, 0.96).astype(np.float32)[:, None]
    t = np.clip((j + 0.5) / texels[index, 1], 0.04, 0.96).astype(np.float32)[:, None]
    normals = normals_of(corners)[index]
    return corners[index, 0] + s * across[index] + t * down[index] + 4e-3 * normals, normals


def _counted(counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """For counts (2, 3): indices (0, 0, 1, 1, 1) and places (0, 1, 0, 1, 2)."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _packed(sizes: NDArray[Any], width: int = 1024) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """(N, 2) corners of rectangles (w, h) put on shelves, tallest first, and the (height, width) needed."""
    order = np.argsort(-sizes[:, 1], kind="stable")
    origins = np.zeros((len(sizes), 2), np.int64)
    x = y = shelf = 0
    for i, w, h in zip(order.tolist(), sizes[order, 0].tolist(), sizes[order, 1].tolist(), strict=True):
        if x + w > width:
            x, y, shelf = 0, y + shelf, 0
        origins[i] = x, y
        x, shelf = x + w, max(shelf, h)
    return origins, (y + shelf, width)


@lru_cache(maxsize=1)
def _directions(count: int) -> Floats:
    """(count, 3) evenly spread unit directions of the upper half space (Fibonacci spiral)."""
    i = np.arange(count) + 0.5
    z, angle = i / count, i * np.pi * (3 - np.sqrt(5))
    r = np.sqrt(1 - z**2)
    return np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1).astype(np.float32)
