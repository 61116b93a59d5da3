# SPDX-License-Identifier: Apache-2.0
"""Rendering of scenes on the CPU: Open3D casts the rays, numpy and OpenCV shade them.

A scene is lit once (ambient light with occlusion, lamps and windows with shadows) into a coarse atlas; a frame
then costs one ray and two texture look-ups a pixel, a second ray where a floor mirrors, three more along edges.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import DatasetError
from recon_ros.geometry.raster import in_rows, on_an_edge
from recon_ros.training.lighting import Lights, light, normals_of
from recon_ros.training.surfaces import Floats, Quads

MIP_LEVELS = 6
PADDING = 32
CELL = 256 + 2 * PADDING
COLUMNS = 12
# Offsets in pixels of the extra rays along edges: with the pixel's own ray a rotated grid.
ANTIALIAS = ((-0.375, 0.125), (0.125, 0.375), (0.3, -0.3))


class Atlas:
    """All textures of a pool and their halvings in one image.

    Level 0 is the left two thirds, level l begins at x = width, y = height (1 − 2^(1−l)).
    """

    def __init__(self, textures: NDArray[np.uint8]) -> None:
        rows = -(-len(textures) // COLUMNS)
        height, width = rows * CELL, COLUMNS * CELL
        self.image = np.zeros((height, width * 3 // 2, 3), np.uint8)
        index = np.arange(len(textures))
        self.origins = np.stack([index % COLUMNS, index // COLUMNS], 1).astype(np.float32) * CELL + PADDING
        for texture, (x, y) in zip(textures, self.origins.astype(int) - PADDING, strict=True):
            self.image[y : y + CELL, x : x + CELL] = cv2.copyMakeBorder(texture, *[PADDING] * 4, cv2.BORDER_WRAP)
        level, top = self.image[:, :width], 0
        for _ in range(1, MIP_LEVELS):
            level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
            self.image[top : top + level.shape[0], width : width + level.shape[1]] = level
            top += level.shape[0]
        self.height, self.width = height, width


class LitScene:
    """Quads with baked light, ready to be rendered.

    Args:
        quads: the geometry; moving bodies where they are at the first frame.
        atlas: the textures.
        lights: lamps and windows.
        rng: small differences of the light.
    """

    def __init__(self, quads: Quads, atlas: Atlas, lights: Lights, rng: np.random.Generator) -> None:
        self.quads, self._atlas = quads, atlas
        self.caster = _caster(quads.corners)
        self._count = len(quads)
        # One row a quad: all that shading asks, in one look-up; rays that hit nothing read the last row.
        self._table = np.zeros((self._count + 1, 15), np.float32)
        table, windows = self._table[:-1], quads.windows
        table[:, 0:2] = atlas.origins[quads.textures]
        table[:, 2], table[:, 3] = windows[:, 0], windows[:, 2] - windows[:, 0]
        table[:, 4], table[:, 5] = windows[:, 1], windows[:, 3] - windows[:, 1]
        table[:, 6] = texel_sizes(quads)
        table[:, 7:10] = normals_of(quads.corners)
        lightmap = light(quads, lights, self.occluded, rng)
        self._light, table[:, 10:14] = lightmap.atlas, lightmap.places
        table[:, 14] = quads.gloss

    def move(self, corners: Floats) -> None:
        """Put the quads somewhere else; their light stays."""
        self.caster = _caster(corners)
        self._table[:-1, 7:10] = normals_of(corners)

    def render(self, T_world_camera: NDArray[np.float64], K: Floats, width: int, height: int) -> tuple[Floats, Floats]:
        """One view.

        Args:
            T_world_camera: (4, 4) pose of the optical frame.
            K: (4,) fx, fy, cx, cy in pixels.

        Returns:
            (H, W, 3) float32 linear light, and (H, W) float32 exact depth along z in metres at the pixel
            centres, infinite where nothing is hit.
        """
        origin = T_world_camera[:3, 3].astype(np.float32)
        rotation = T_world_camera[:3, :3].astype(np.float32)
        directions = rays_of(K, width, height) @ rotation.T
        quad, depth, colour = self._cast(origin, directions, float(K[0]))
        edges = on_an_edge(quad)
        if edges.any():
            samples = [colour[edges]]
            for dx, dy in ANTIALIAS:
                offset = rotation @ np.array([dx / K[0], dy / K[1], 0.0], np.float32)
                beside = in_rows(directions[edges] + offset)
                samples.append(self._cast(origin, beside, float(K[0]))[2].reshape(-1, 3)[: len(samples[0])])
            colour[edges] = np.mean(samples, axis=0)
        return colour, depth

    def distances(self, origin: Floats, directions: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """(...,) ray parameter of the first hit, and the quad's index (count for none), for (..., 3) directions."""
        rays = np.empty((*directions.shape[:-1], 6), np.float32)
        rays[..., :3], rays[..., 3:] = origin, directions
        hit = self.caster.cast_rays(_tensor(rays), nthreads=1)
        return hit["t_hit"].numpy(), np.minimum(hit["primitive_ids"].numpy() >> 1, self._count).astype(np.int64)

    def _cast(self, origin: Floats, directions: Floats, focal: float) -> tuple[NDArray[Any], Floats, Floats]:
        rays = np.empty((*directions.shape[:2], 6), np.float32)
        rays[..., :3], rays[..., 3:] = origin, directions
        hit = self.caster.cast_rays(_tensor(rays), nthreads=1)
        depth = hit["t_hit"].numpy()
        quad, s, t = _places(hit, self._count)
        row = np.take(self._table, quad, axis=0)
        colour = self._shaded(row, s, t, depth, directions, focal, 0.0)
        mirror = row[..., 14] > 0
        if mirror.any():
            self._mirror(colour, mirror, rays, row, depth, focal)
        return quad, depth, colour

    def _mirror(
        self, colour: Floats, mirror: NDArray[np.bool_], rays: Floats, row: Floats, depth: Floats, focal: float
    ) -> None:
        """Add what glossy faces reflect, blurred by a coarser mip level."""
        d, n = rays[..., 3:][mirror], row[mirror][:, 7:10]
        length = np.linalg.norm(d, axis=1, keepdims=True)
        cosine = np.einsum("ij,ij->i", d, n)[:, None]
        n = np.where(cosine > 0, -n, n)
        cosine = np.minimum(np.abs(cosine) / length, 1.0)
        bounced = in_rows(
            np.concatenate(
                [rays[..., :3][mirror] + d * depth[mirror][:, None] + 2e-3 * n, d + 2 * cosine * length * n], 1
            )
        )
        hit = self.caster.cast_rays(_tensor(bounced), nthreads=1)
        quad, s, t = _places(hit, self._count)
        rows = np.take(self._table, quad, axis=0)
        far = hit["t_hit"].numpy() + np.resize(depth[mirror], quad.shape)
        seen = self._shaded(rows, s, t, far, bounced[..., 3:], focal, 2.0).reshape(-1, 3)[: len(d)]
        share = row[mirror][:, 14:15]
        share = share + (1 - share) * share * 2 * (1 - cosine) ** 4
        colour[mirror] = colour[mirror] * (1 - 0.6 * share) + share * seen

    def _shaded(
        self, row: Floats, s: Floats, t: Floats, depth: Floats, directions: Floats, focal: float, blur: float
    ) -> Floats:
        level = _mip_level(row, depth, directions, focal, blur)
        u, v = row[..., 2] + row[..., 3] * s, row[..., 4] + row[..., 5] * t
        # What is shown once ends at 1 exactly, which must not wrap to 0.
        u, v = u - np.floor(u - 1e-6), v - np.floor(v - 1e-6)
        shrink = np.exp2(-level)
        coarse = level > 0
        x = (row[..., 0] + 256 * u) * shrink + coarse * self._atlas.width - 0.5
        y = (row[..., 1] + 256 * v) * shrink + coarse * (self._atlas.height - 2 * self._atlas.height * shrink) - 0.5
        albedo = cv2.remap(self._atlas.image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)
        light = cv2.remap(
            self._light, row[..., 10] * s + row[..., 11], row[..., 12] * t + row[..., 13], cv2.INTER_LINEAR
        )
        linear = _LINEAR[albedo]
        return np.asarray(linear * light, np.float32)

    def occluded(self, points: Floats, directions: Floats, far: float) -> NDArray[np.bool_]:
        """(N,) whether something is nearer than far · |direction|, for (N, 3) points and directions."""
        rays = np.concatenate([points, directions], axis=1).astype(np.float32)
        blocked: NDArray[np.bool_] = self.caster.test_occlusions(_tensor(rays), 0.0, far, nthreads=1).numpy()
        return blocked


_LINEAR = ((np.arange(256, dtype=np.float32) / 255.0) ** 2.2).astype(np.float32)


@lru_cache(maxsize=8)
def _rays(key: bytes, width: int, height: int) -> Floats:
    fx, fy, cx, cy = np.frombuffer(key, np.float32)
    u, v = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u)], -1)


def rays_of(K: Floats, width: int, height: int) -> Floats:
    """(H, W, 3) float32 rays of the pixel centres, z = 1."""
    return _rays(np.ascontiguousarray(K, np.float32).tobytes(), width, height)


def texel_sizes(quads: Quads) -> Floats:
    """(N,) metres that a texel of level 0 measures, the mean over both directions."""
    corners, windows = quads.corners, quads.windows
    across = np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1)
    down = np.linalg.norm(corners[:, 3] - corners[:, 0], axis=1)
    texels = np.maximum(np.abs(windows[:, 2:] - windows[:, :2]) * 256, 1e-3)
    return np.asarray(np.sqrt(across * down / (texels[:, 0] * texels[:, 1])), np.float32)


def _places(hit: Any, count: int) -> tuple[NDArray[np.int32], Floats, Floats]:
    """Quad and its coordinates s, t from barycentrics of the triangles (0, 1, 2) and (0, 2, 3)."""
    primitive = hit["primitive_ids"].numpy()
    b = hit["primitive_uvs"].numpy()
    second = (primitive & 1).astype(np.float32)
    quad = np.minimum(primitive >> 1, count).astype(np.int32)
    return quad, b[..., 0] + b[..., 1] * (1 - second), b[..., 1] + b[..., 0] * second


def _mip_level(row: Floats, depth: Floats, directions: Floats, focal: float, blur: float) -> Floats:
    """log2 of the pixel's footprint in texels; foreshortening counts half, between blur and aliasing."""
    cosine = np.abs(np.einsum("...i,...i->...", row[..., 7:10], directions))
    footprint = depth / focal / (row[..., 6] * np.sqrt(np.maximum(cosine, 0.02)) + 1e-9)
    level = np.rint(np.log2(np.clip(footprint, 1e-3, 1e6)) + blur)
    return np.asarray(np.clip(level, 0, MIP_LEVELS - 1), np.float32)


def _open3d() -> Any:
    try:
        import open3d as o3d
    except ImportError as error:  # robots set up from apt have none
        raise DatasetError("training scenes are rendered with Open3D: pip install open3d-cpu") from error
    return o3d


def _tensor(array: NDArray[Any]) -> Any:
    return _open3d().core.Tensor.from_numpy(np.ascontiguousarray(array))


def _caster(corners: Floats) -> Any:
    """Each quad as the triangles (0, 1, 2) and (0, 2, 3), so that a primitive's quad is its index halved."""
    scene = _open3d().t.geometry.RaycastingScene()
    first = 4 * np.arange(len(corners), dtype=np.uint32)[:, None, None]
    triangles = first + np.array([[0, 1, 2], [0, 2, 3]], np.uint32)
    scene.add_triangles(_tensor(corners.reshape(-1, 3)), _tensor(triangles.reshape(-1, 3)))
    return scene
