# SPDX-License-Identifier: Apache-2.0
"""Rendering of scenes with torch: every ray against every triangle, in batches of views, on a GPU.

Rays are carried into each triangle's own frame by one affine map (Baldwin and Weber 2016, "Fast ray-triangle
intersections by coordinate transformation", JCGT 5(3)), so that almost all of the work is matrix products. It
runs on a CPU too, some hundred times slower than `render_cpu`, which it agrees with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_ros.training.lighting import Lights, light
from recon_ros.training.render_cpu import ANTIALIAS, MIP_LEVELS, texel_sizes
from recon_ros.training.surfaces import Floats, Quads

EDGE = 1e-5  # so that no ray slips through between two triangles
LINEAR_GAMMA = 2.2


class Textures:
    """A pool's textures and their halvings on a device, one after the other in one tensor, in linear light."""

    def __init__(self, textures: NDArray[np.uint8], device: torch.device | str) -> None:
        level = torch.from_numpy(textures).to(device).float().permute(0, 3, 1, 2)
        parts, offsets, start = [], [], 0
        for _ in range(MIP_LEVELS):
            flat = level.permute(0, 2, 3, 1).reshape(-1, 3)
            parts.append(flat)
            offsets.append(start)
            start += len(flat)
            level = torch.nn.functional.avg_pool2d(level, 2)
        self.values = (torch.cat(parts) / 255.0).half()
        self.offsets = torch.tensor(offsets, device=device)
        self.size = textures.shape[1]

    def look_up(self, texture: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        """(N, 3) linear light at texture coordinates in repetitions, of mip levels (N,) int64."""
        size = self.size >> level
        x, y = u * size - 0.5, v * size - 0.5
        x0, y0 = x.floor(), y.floor()
        base = self.offsets[level] + texture * size * size
        result = torch.zeros(len(u), 3, device=u.device)
        for dx in (0, 1):
            for dy in (0, 1):
                weight = (1 - (x - x0 - dx).abs()) * (1 - (y - y0 - dy).abs())
                column, row = (x0.long() + dx) % size, (y0.long() + dy) % size
                result += weight[:, None] * self.values[base + row * size + column].float()
        return result**LINEAR_GAMMA


class TorchScene:
    """Quads with light, on a device; `render`, `distances`, `occluded` and `move` as `render_cpu.LitScene` has.

    Args:
        quads: the geometry; moving bodies where they are at the first frame.
        textures: the pool, on the same device.
        lights: lamps and windows.
        rng: small differences of the light.
        device: where to compute.
        pairs: ray-triangle pairs that are held at a time; a pair takes about 32 bytes.
    """

    def __init__(
        self,
        quads: Quads,
        textures: Textures,
        lights: Lights,
        rng: np.random.Generator,
        device: torch.device | str,
        pairs: int = 1 << 26,
    ) -> None:
        self.quads, self.textures, self.device, self.pairs = quads, textures, torch.device(device), pairs
        self.move(quads.corners)
        self._windows = self._to(quads.windows)
        self._texels = self._to(texel_sizes(quads))
        self._gloss = self._to(quads.gloss)
        self._indices = torch.from_numpy(quads.textures.astype(np.int64)).to(self.device)
        lightmap = light(quads, lights, self.occluded, rng)
        self._light, self._places = self._to(lightmap.atlas), self._to(lightmap.places)

    def _to(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)

    def move(self, corners: Floats) -> None:
        """Put the quads somewhere else; their light stays."""
        c = corners.astype(np.float64)
        origin = np.repeat(c[:, 0], 2, axis=0)
        first = np.stack([c[:, 1], c[:, 2]], 1).reshape(-1, 3) - origin
        second = np.stack([c[:, 2], c[:, 3]], 1).reshape(-1, 3) - origin
        normal = np.cross(first, second)
        frame = np.stack([first, second, normal], -1)
        # Triangles without area are never hit.
        flat = np.einsum("ij,ij->i", normal, normal) < 1e-18
        frame[flat] = np.eye(3)
        inverse = np.linalg.inv(frame)
        offset = -np.einsum("ijk,ik->ij", inverse, origin)
        inverse[flat] = 0.0
        offset[flat] = -1.0
        self._linear = self._to(inverse.transpose(1, 2, 0))  # (3 coordinates, 3 axes, triangles)
        self._offset = self._to(offset.T)
        across, down = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]
        normals = np.cross(down, across)
        self._normals = self._to(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12))

    def _chunk(self) -> int:
        return max(1, self.pairs // self._offset.shape[1])

    def _hits(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ray parameter (inf: none), triangle and its barycentrics of (R, 3) rays."""
        a, b, c = self._linear
        with torch.no_grad():
            o2 = torch.addmm(self._offset[2], origins, c)
            d2 = directions @ c
            t = -o2 / d2
            u = torch.addmm(self._offset[0], origins, a) + t * (directions @ a)
            v = torch.addmm(self._offset[1], origins, b) + t * (directions @ b)
            hit = (t > 1e-6) & (u >= -EDGE) & (v >= -EDGE) & (u + v <= 1 + EDGE)
            t = torch.where(hit, t, torch.inf)
            nearest, triangle = t.min(dim=1)
            pick = triangle[:, None]
            return nearest, triangle, u.gather(1, pick)[:, 0], v.gather(1, pick)[:, 0]

    def occluded(self, points: Floats, directions: Floats, far: float) -> NDArray[np.bool_]:
        """(N,) whether something is nearer than far · |direction|, for (N, 3) points and directions."""
        o, d, step = self._to(points), self._to(directions), self._chunk()
        parts = [self._hits(o[i : i + step], d[i : i + step])[0] < far for i in range(0, len(o), step)]
        blocked: NDArray[np.bool_] = (torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)).cpu().numpy()
        return blocked

    def distances(self, origin: Floats, directions: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """(...,) ray parameter of the first hit, and the quad's index (count for none), for (..., 3) directions."""
        d = self._to(directions).reshape(-1, 3)
        t, triangle, _, _ = self._hits(self._to(origin).expand_as(d), d)
        quad = torch.where(torch.isfinite(t), triangle >> 1, len(self.quads))
        shape = directions.shape[:-1]
        return t.cpu().numpy().reshape(shape), quad.cpu().numpy().reshape(shape)

    def render(self, T_world_camera: NDArray[np.float64], K: Floats, width: int, height: int) -> tuple[Floats, Floats]:
        """One view: (H, W, 3) float32 linear light, (H, W) float32 exact depth, infinite where nothing is hit."""
        colour, depth = self.render_batch(T_world_camera[None], K[None], width, height)
        return colour[0].cpu().numpy(), depth[0].cpu().numpy()

    def render_batch(
        self, T_world_camera: NDArray[np.float64], K: Floats, width: int, height: int
    ) -> tuple[Tensor, Tensor]:
        """B views of the scene as it stands.

        Args:
            T_world_camera: (B, 4, 4).
            K: (B, 4) fx, fy, cx, cy in pixels.

        Returns:
            (B, H, W, 3) float32 linear light and (B, H, W) float32 depth along z in metres, on the device.
        """
        poses, k = self._to(T_world_camera), self._to(K)
        v, u = torch.meshgrid(*(torch.arange(n, device=self.device).float() for n in (height, width)), indexing="ij")
        total: Tensor | None = None
        depth = torch.empty(0)
        for dx, dy in ((0.0, 0.0), *ANTIALIAS):  # all pixels alike: a GPU gains nothing from edges only
            x = (u + dx - k[:, 2, None, None]) / k[:, 0, None, None]
            y = (v + dy - k[:, 3, None, None]) / k[:, 1, None, None]
            rays = torch.stack([x, y, torch.ones_like(x)], -1).reshape(len(k), -1, 3) @ poses[:, :3, :3].mT
            origins = poses[:, None, :3, 3].expand_as(rays)
            focal = k[:, :1].expand(len(k), height * width)
            parts = [
                self._seen(o, d, f)
                for o, d, f in zip(
                    *(q.reshape(-1, *q.shape[2:]).split(self._chunk()) for q in (origins, rays, focal)), strict=True
                )
            ]
            colour = torch.cat([part[0] for part in parts])
            if total is None:
                total, depth = colour, torch.cat([part[1] for part in parts])
            else:
                total = total + colour
        assert total is not None
        shape = (len(k), height, width)
        return (total / (1 + len(ANTIALIAS))).reshape(*shape, 3), depth.reshape(shape)

    def _seen(self, origins: Tensor, directions: Tensor, focal: Tensor) -> tuple[Tensor, Tensor]:
        """Light and ray parameter of (R, 3) rays, with one reflection."""
        t, triangle, b0, b1 = self._hits(origins, directions)
        quad = triangle >> 1
        colour = self._shaded(quad, triangle, b0, b1, t, directions, focal, 0.0)
        mirror = torch.nonzero((self._gloss[quad] > 0) & torch.isfinite(t))[:, 0]
        if len(mirror):
            d, n = directions[mirror], self._normals[quad[mirror]]
            length = d.norm(dim=1, keepdim=True)
            cosine = (d * n).sum(1, keepdim=True)
            n = torch.where(cosine > 0, -n, n)
            cosine = (cosine.abs() / length).clamp(max=1.0)
            start = origins[mirror] + d * t[mirror, None] + 2e-3 * n
            bounced = d + 2 * cosine * length * n
            far, other, c0, c1 = self._hits(start, bounced)
            seen = self._shaded(other >> 1, other, c0, c1, far + t[mirror], bounced, focal[mirror], 2.0)
            share = self._gloss[quad[mirror], None]
            share = share + (1 - share) * share * 2 * (1 - cosine) ** 4
            colour[mirror] = colour[mirror] * (1 - 0.6 * share) + share * seen
        return colour, t

    def _shaded(
        self,
        quad: Tensor,
        triangle: Tensor,
        b0: Tensor,
        b1: Tensor,
        depth: Tensor,
        directions: Tensor,
        focal: Tensor,
        blur: float,
    ) -> Tensor:
        second = (triangle & 1).float()
        s, t = b0 + b1 * (1 - second), b1 + b0 * second
        hit = torch.isfinite(depth)
        s, t = (torch.where(hit, c, 0.0).clamp(0.0, 1.0) for c in (s, t))
        cosine = (self._normals[quad] * directions).sum(1).abs().clamp(min=0.02)
        footprint = torch.where(hit, depth, 1.0) / focal / (self._texels[quad] * cosine.sqrt() + 1e-9)
        level = (footprint.clamp(1e-3, 1e6).log2() + blur).round().clamp(0, MIP_LEVELS - 1).long()
        w = self._windows[quad]
        albedo = self.textures.look_up(
            self._indices[quad], w[:, 0] + (w[:, 2] - w[:, 0]) * s, w[:, 1] + (w[:, 3] - w[:, 1]) * t, level
        )
        return albedo * self._light_at(quad, s, t) * hit[:, None]

    def _light_at(self, quad: Tensor, s: Tensor, t: Tensor) -> Tensor:
        place, (height, width) = self._places[quad], self._light.shape[:2]
        x, y = place[:, 0] * s + place[:, 1], place[:, 2] * t + place[:, 3]
        x0, y0 = x.floor(), y.floor()
        result = torch.zeros(len(s), 3, device=self.device)
        for dx in (0, 1):
            for dy in (0, 1):
                weight = (1 - (x - x0 - dx).abs()) * (1 - (y - y0 - dy).abs())
                row, column = (y0.long() + dy).clamp(0, height - 1), (x0.long() + dx).clamp(0, width - 1)
                result += weight[:, None] * self._light[row, column]
        return result
