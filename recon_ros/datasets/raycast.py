# SPDX-License-Identifier: Apache-2.0
"""A small renderer for scenes made of textured quads: Open3D casts the rays, numpy and OpenCV shade them.

Built for many frames of one static scene: textures lie in one mip-mapped atlas, light and shadow are computed
once and kept in a second, coarse atlas, so that a frame costs one ray and two texture look-ups a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import DatasetError
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.raster import in_rows, on_an_edge

try:
    import open3d as o3d
except ImportError as error:  # robots set up from apt have none
    raise DatasetError("the synthetic warehouse is rendered with Open3D: pip install open3d-cpu") from error

Floats = NDArray[np.float32]

MIP_LEVELS = 6
ALIGNMENT = 2 ** (MIP_LEVELS - 1)
PADDING = 16
LIGHT_TEXEL = 0.11
LIGHT_UNIT = 128.0  # the value of the 8-bit light atlas that leaves a texture as it is
OCCLUSION_RANGE = 1.4
AMBIENT = 0.8
# Offsets in pixels of the extra rays along edges: with the pixel's own ray a rotated grid.
ANTIALIAS = ((-0.375, 0.125), (0.125, 0.375), (0.3, -0.3))


@dataclass
class Quads:
    """The scene as it is being built; four corners each, in the order of the texture's corners.

    Attributes:
        corners: (4, 3) world corners each: top left, top right, bottom right, bottom left, seen from outside.
        textures: index of each quad's texture.
        windows: (s0, t0, s1, t1) part of the texture shown, in [0, 1].
        tints: (r, g, b) factor.
        emission: 1 for what shines by itself.
    """

    corners: list[Any] = field(default_factory=list)
    textures: list[int] = field(default_factory=list)
    windows: list[tuple[float, float, float, float]] = field(default_factory=list)
    tints: list[tuple[float, float, float]] = field(default_factory=list)
    emission: list[float] = field(default_factory=list)

    def add(
        self,
        corners: Any,
        texture: int,
        window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
        tint: tuple[float, float, float] = (1.0, 1.0, 1.0),
        emission: float = 0.0,
    ) -> None:
        """Append one quad."""
        self.corners.append(corners)
        self.textures.append(texture)
        self.windows.append(window)
        self.tints.append(tint)
        self.emission.append(emission)


class TexturedScene:
    """Quads, textures and lamps, ready to be rendered.

    Args:
        quads: the geometry.
        textures: (H, W, 3) uint8 RGB each.
        lamps: (L, 3) positions of point lights that shine downwards, metres.
    """

    def __init__(self, quads: Quads, textures: Sequence[NDArray[np.uint8]], lamps: NDArray[Any]) -> None:
        corners = np.asarray(quads.corners, dtype=np.float32)
        self._count = len(corners)
        self._scene = _raycasting_scene(corners)
        self._albedo, places = _texture_atlas(textures)
        across, down = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]
        normals = np.cross(down, across)
        self._normals = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)

        place = places[np.asarray(quads.textures)]
        s0, t0, s1, t1 = np.asarray(quads.windows, dtype=np.float32).T
        table = np.empty((self._count + 1, 12), np.float32)
        table[:-1, 0], table[:-1, 1] = place[:, 2] * (s1 - s0), place[:, 0] + place[:, 2] * s0
        table[:-1, 2], table[:-1, 3] = place[:, 3] * (t1 - t0), place[:, 1] + place[:, 3] * t0
        self._light, table[:-1, 4:8] = self._baked_light(quads, corners, np.asarray(lamps, dtype=np.float32))
        texel = np.linalg.norm(across, axis=1) / np.maximum(np.abs(table[:-1, 0]), 1e-6)
        table[:-1, 8], table[:-1, 9:] = texel, self._normals
        table[-1] = table[-2]  # rays that hit nothing read something
        self._table = np.ascontiguousarray(table)

    def render(self, T_world_camera: NDArray[np.float64], camera: Camera) -> tuple[NDArray[np.uint8], Floats]:
        """One view.

        Args:
            T_world_camera: (4, 4) pose of the optical frame.
            camera: an undistorted camera.

        Returns:
            (H, W, 3) uint8 RGB, and (H, W) float32 exact depth along z in metres at the pixel centres,
            infinite where nothing is hit.
        """
        origin = T_world_camera[:3, 3].astype(np.float32)
        rotation = T_world_camera[:3, :3].astype(np.float32)
        directions = camera.rays() @ rotation.T
        quad, depth, colour = self._cast(origin, directions, camera.fx)
        edges = on_an_edge(quad)
        if edges.any():
            samples: list[NDArray[Any]] = [colour[edges]]
            for dx, dy in ANTIALIAS:
                offset = rotation @ np.array([dx / camera.fx, dy / camera.fy, 0.0], np.float32)
                rays = in_rows(directions[edges] + offset)
                samples.append(self._cast(origin, rays, camera.fx)[2].reshape(-1, 3)[: len(samples[0])])
            colour[edges] = np.mean(samples, axis=0)
        return colour, depth

    def _cast(self, origin: Floats, directions: Floats, focal: float) -> tuple[NDArray[Any], Floats, NDArray[np.uint8]]:
        """Quad, depth and colour of (H, W, 3) rays whose length along the optical axis is 1."""
        rays = np.empty((*directions.shape[:2], 6), np.float32)
        rays[..., :3], rays[..., 3:] = origin, directions
        hit = self._scene.cast_rays(o3d.core.Tensor.from_numpy(rays))
        depth = hit["t_hit"].numpy()
        primitive = hit["primitive_ids"].numpy()
        b = hit["primitive_uvs"].numpy()
        quad = np.minimum(primitive >> 1, self._count).astype(np.int32)
        # Barycentrics of the triangles (0, 1, 2) and (0, 2, 3) to the quad's own coordinates.
        second = (primitive & 1).astype(np.float32)
        s = b[..., 0] + b[..., 1] * (1 - second)
        t = b[..., 1] + b[..., 0] * second
        return quad, depth, self._shaded(quad, s, t, depth, directions, focal)

    def _shaded(
        self, quad: NDArray[Any], s: Floats, t: Floats, depth: Floats, directions: Floats, focal: float
    ) -> NDArray[np.uint8]:
        row = np.take(self._table, quad, axis=0)
        level = _mip_level(row, depth, directions, focal)
        height, width = self._albedo.shape[0], self._albedo.shape[1] * 2 // 3
        shrink = np.exp2(-level)
        x = (row[..., 0] * s + row[..., 1]) * shrink + (level > 0) * width - 0.5
        y = (row[..., 2] * t + row[..., 3]) * shrink + (level > 0) * (height - 2 * height * shrink) - 0.5
        albedo = cv2.remap(self._albedo, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)
        light = cv2.remap(self._light, row[..., 4] * s + row[..., 5], row[..., 6] * t + row[..., 7], cv2.INTER_LINEAR)
        shaded: NDArray[np.uint8] = cv2.multiply(albedo, light, scale=1.0 / LIGHT_UNIT)
        return shaded

    def _baked_light(self, quads: Quads, corners: Floats, lamps: Floats) -> tuple[NDArray[np.uint8], Floats]:
        """The light atlas and each quad's (scale, offset) along x and y into it."""
        sizes = np.stack(
            [
                np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1),
                np.linalg.norm(corners[:, 3] - corners[:, 0], axis=1),
            ],
            1,
        )
        texels = np.clip(np.ceil(sizes / LIGHT_TEXEL), 2, 400).astype(int)
        origins, (height, width) = _packed(texels + 2)
        light = np.zeros((height, width, 3), np.float32)
        points, normals, spans, start = [], [], [], 0
        for corner, normal, (nx, ny) in zip(corners, self._normals, texels, strict=True):
            # One texel beyond each border, clamped to it, for the bilinear look-up.
            s = np.clip((np.arange(nx + 2, dtype=np.float32) - 0.5) / nx, 0.02, 0.98)[None, :, None]
            t = np.clip((np.arange(ny + 2, dtype=np.float32) - 0.5) / ny, 0.02, 0.98)[:, None, None]
            grid = corner[0] + s * (corner[1] - corner[0]) + t * (corner[3] - corner[0])
            points.append((grid + 4e-3 * normal).reshape(-1, 3))
            normals.append(np.broadcast_to(normal, (len(points[-1]), 3)))
            spans.append((start, start + len(points[-1])))
            start = spans[-1][1]
        value = self._illumination(np.concatenate(points), np.concatenate(normals), lamps)
        for (x, y), (nx, ny), (a, b), tint, emission in zip(
            origins, texels, spans, quads.tints, quads.emission, strict=True
        ):
            part = np.maximum(value[a:b], emission * 1.9).reshape(ny + 2, nx + 2, 1)
            light[y : y + ny + 2, x : x + nx + 2] = part * np.asarray(tint, np.float32)
        to_atlas = np.stack([texels[:, 0], origins[:, 0] + 0.5, texels[:, 1], origins[:, 1] + 0.5], axis=1)
        return np.clip(light * LIGHT_UNIT, 0, 255).astype(np.uint8), to_atlas.astype(np.float32)

    def _illumination(self, points: Floats, normals: Floats, lamps: Floats) -> Floats:
        """Ambient light with occlusion plus the lamps with shadows, for each point."""
        directions = _hemisphere(24)
        ambient = np.zeros(len(points), np.float32)
        total = np.zeros(len(points), np.float32)
        for d in directions:
            # Mirrored into the point's hemisphere: uniform over it, weighted by the cosine.
            cosine = normals @ d
            ray = np.where(cosine[:, None] < 0, -d, d)
            free = ~self._occluded(points, ray, OCCLUSION_RANGE)
            ambient += np.abs(cosine) * free
            total += np.abs(cosine)
        direct = np.zeros(len(points), np.float32)
        for lamp in lamps:
            towards = lamp - points
            distance = np.linalg.norm(towards, axis=1)
            cosine = np.einsum("ij,ij->i", towards, normals) / distance
            downwards = np.clip(towards[:, 2] / distance, 0, 1)
            lit = (cosine > 0) & (downwards > 0)
            strength = np.where(lit, cosine * downwards / (1.5 + distance**2), 0.0)
            lit = strength > 2e-4
            strength[lit] *= ~self._occluded(points[lit], towards[lit], 0.98)
            direct += strength
        light = AMBIENT * ambient / total + 24.0 / len(lamps) * direct
        return np.asarray(light * 1.45 / (1.0 + 0.45 * light), dtype=np.float32)  # a soft shoulder, as film has

    def _occluded(self, points: Floats, directions: Floats, far: float) -> NDArray[np.bool_]:
        rays = np.concatenate([points, directions], axis=1).astype(np.float32)
        blocked: NDArray[np.bool_] = self._scene.test_occlusions(o3d.core.Tensor.from_numpy(rays), 0.0, far).numpy()
        return blocked


def _raycasting_scene(corners: Floats) -> Any:
    """Each quad as the triangles (0, 1, 2) and (0, 2, 3), so that a primitive's quad is its index halved."""
    scene = o3d.t.geometry.RaycastingScene()
    first = 4 * np.arange(len(corners), dtype=np.uint32)[:, None, None]
    triangles = first + np.array([[0, 1, 2], [0, 2, 3]], np.uint32)
    scene.add_triangles(*(o3d.core.Tensor.from_numpy(a.reshape(-1, 3)) for a in (corners, triangles)))
    return scene


def _mip_level(row: Floats, depth: Floats, directions: Floats, focal: float) -> Floats:
    """log2 of the pixel's footprint in texels; foreshortening counts half, between blur and aliasing."""
    cosine = np.abs(np.einsum("...i,...i->...", row[..., 9:], directions))
    footprint = depth / focal / (row[..., 8] * np.sqrt(np.maximum(cosine, 0.02)))
    level = np.rint(np.log2(np.maximum(footprint, 1e-3)))
    return np.clip(level, 0, MIP_LEVELS - 1)


def _texture_atlas(textures: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """All textures and their halvings in one image, and each one's (x, y, width, height) in level 0.

    Level 0 is the left two thirds of the image, level l begins at x = width, y = height (1 − 2^(1−l)).
    """
    sizes = np.array([t.shape[1::-1] for t in textures])
    cells = -(-(sizes + 2 * PADDING) // ALIGNMENT) * ALIGNMENT
    origins, (height, width) = _packed(cells, 4096)
    height, width = -(-height // ALIGNMENT) * ALIGNMENT, -(-width // ALIGNMENT) * ALIGNMENT
    atlas = np.zeros((height, width * 3 // 2, 3), np.uint8)
    for texture, (x, y), (w, h), (cw, ch) in zip(textures, origins, sizes, cells, strict=True):
        rest = (ch - h - PADDING, cw - w - PADDING)
        framed = cv2.copyMakeBorder(texture, PADDING, rest[0], PADDING, rest[1], cv2.BORDER_REPLICATE)
        atlas[y : y + ch, x : x + cw] = framed
    level = atlas[:, :width]
    top = 0
    for _ in range(1, MIP_LEVELS):
        level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
        atlas[top : top + level.shape[0], width : width + level.shape[1]] = level
        top += level.shape[0]
    return atlas, np.concatenate([origins + PADDING, sizes], axis=1).astype(np.float32)


def _packed(sizes: NDArray[Any], width: int = 2048) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """(N, 2) corners of rectangles (w, h) put on shelves, tallest first, and the (height, width) needed."""
    width = max(width, int(sizes[:, 0].max()))
    origins = np.zeros((len(sizes), 2), np.int64)
    x = y = shelf = 0
    for i in np.argsort(-sizes[:, 1], kind="stable"):
        w, h = sizes[i]
        if x + w > width:
            x, y, shelf = 0, y + shelf, 0
        origins[i] = x, y
        x, shelf = x + int(w), max(shelf, int(h))
    return origins, (y + shelf, width)


def _hemisphere(count: int) -> Floats:
    """(count, 3) evenly spread unit directions of the upper half space (Fibonacci spiral)."""
    i = np.arange(count) + 0.5
    z, angle = i / count, i * np.pi * (3 - np.sqrt(5))
    r = np.sqrt(1 - z**2)
    return np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1).astype(np.float32)
