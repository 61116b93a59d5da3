# SPDX-License-Identifier: Apache-2.0
"""Scenes as lists of textured quads, and the solids that furniture is made of.

World frame: z up, floor at z = 0, metres. Everything is a quad, so that one description serves both renderers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rng = np.random.Generator
Vector = tuple[float, float, float]

FACES = ("front", "back", "left", "right", "top", "bottom")
# Corners of the unit box for each face: top left, top right, bottom right, bottom left, seen from outside;
# front looks to -y.
UNIT_BOX = np.array(
    [
        [(0, 0, 1), (1, 0, 1), (1, 0, 0), (0, 0, 0)],
        [(1, 1, 1), (0, 1, 1), (0, 1, 0), (1, 1, 0)],
        [(0, 1, 1), (0, 0, 1), (0, 0, 0), (0, 1, 0)],
        [(1, 0, 1), (1, 1, 1), (1, 1, 0), (1, 0, 0)],
        [(0, 1, 1), (1, 1, 1), (1, 0, 1), (0, 0, 1)],
        [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)],
    ],
    np.float32,
)


@dataclass(frozen=True)
class Material:
    """What a surface looks like.

    Attributes:
        texture: index into the pool of textures.
        metres: size of one repetition; 0 stretches the texture over the face once.
        tint: (r, g, b) factor on the texture.
        emission: radiance of what shines by itself; 1 is the light a white wall sends back.
        gloss: share of the light that is mirrored when looked at straight, 0..1.
    """

    texture: int
    metres: float = 1.0
    tint: Vector = (1.0, 1.0, 1.0)
    emission: float = 0.0
    gloss: float = 0.0

    def tinted(self, factor: float) -> Material:
        """The same, brighter or darker."""
        r, g, b = self.tint
        return replace(self, tint=(r * factor, g * factor, b * factor))


@dataclass(frozen=True)
class Quads:
    """N quads, ready to be rendered.

    Attributes:
        corners: (N, 4, 3) float32 world corners, in the order of the texture's corners (see `UNIT_BOX`).
        textures: (N,) int32 texture indices.
        windows: (N, 4) float32 (u0, v0, u1, v1) shown part of the texture, in repetitions.
        tints: (N, 3) float32.
        emission: (N,) float32.
        gloss: (N,) float32.
        bodies: (N,) int32: 0 stands still, the others are moving bodies 1, 2, …
    """

    corners: Floats
    textures: NDArray[np.int32]
    windows: Floats
    tints: Floats
    emission: Floats
    gloss: Floats
    bodies: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.corners)


@dataclass
class Builder:
    """Collects quads; solids are given in the frame that the innermost `at` has set.

    Attributes:
        rng: shifts tiled textures, so that equal solids do not look equal.
        solids: (low, high) world bounds of what a camera must not enter.
    """

    rng: Rng
    solids: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)
    body: int = 0
    _corners: list[Floats] = field(default_factory=list)
    _rows: list[tuple[float, ...]] = field(default_factory=list)
    _R: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    _t: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    @contextmanager
    def at(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> Iterator[None]:
        """A local frame at (x, y, z) of the current one, turned by `yaw` radians about z."""
        R, t = self._R, self._t
        c, s = np.cos(yaw), np.sin(yaw)
        self._t = t + R @ np.array([x, y, z])
        self._R = R @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        yield
        self._R, self._t = R, t

    def quad(self, corners: object, material: Material, shift: bool = True) -> None:
        """One quad from its (4, 3) corners, `UNIT_BOX`'s order."""
        points = np.asarray(corners, np.float64) @ self._R.T + self._t
        u0 = v0 = 0.0
        u1 = v1 = 1.0
        if material.metres > 0:
            if shift:
                u0, v0 = self.rng.random(2).tolist()
            u1 = u0 + float(np.linalg.norm(points[1] - points[0])) / material.metres
            v1 = v0 + float(np.linalg.norm(points[3] - points[0])) / material.metres
        self._corners.append(points.astype(np.float32))
        self._rows.append(
            (material.texture, u0, v0, u1, v1, *material.tint, material.emission, material.gloss, self.body)
        )

    def box(
        self,
        low: Vector,
        high: Vector,
        material: Material | Mapping[str, Material],
        skip: tuple[str, ...] = ("bottom",),
        solid: bool = True,
    ) -> None:
        """An axis-parallel box of the local frame; a mapping gives faces of their own, "rest" the others."""
        a, b = np.asarray(low, np.float64), np.asarray(high, np.float64)
        corners = a + UNIT_BOX * (b - a)
        for face, quad in zip(FACES, corners, strict=True):
            if face in skip:
                continue
            self.quad(quad, material if isinstance(material, Material) else material.get(face, material["rest"]))
        if solid:
            self.block(low, high)

    def block(self, low: Vector, high: Vector) -> None:
        """Keep cameras out of a box of the local frame."""
        points = (np.asarray(low) + UNIT_BOX[:2].reshape(-1, 3) * (np.asarray(high) - low)) @ self._R.T + self._t
        self.solids.append((points.min(axis=0), points.max(axis=0)))

    def cylinder(
        self,
        centre: Vector,
        radius: float,
        height: float,
        material: Material,
        top_radius: float | None = None,
        sides: int = 10,
        solid: bool = True,
    ) -> None:
        """An upright prism or cone; `centre` is the middle of its base."""
        angle = 2 * np.pi * (np.arange(sides) + self.rng.random()) / sides
        ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(sides)], 1)
        base = np.asarray(centre) + ring * radius
        top = np.asarray(centre) + (0, 0, height) + ring * (radius if top_radius is None else top_radius)
        for i in range(sides):
            j = (i + 1) % sides
            # Seen from outside, the counter-clockwise next corner is on the right.
            self.quad([top[i], top[j], base[j], base[i]], material, shift=False)
        for i in range(sides // 2 - 1):
            a, b, c, d = i, i + 1, sides - 2 - i, sides - 1 - i
            self.quad([top[a], top[b], top[c], top[d]][::-1], material)
        if solid:
            r = max(radius, top_radius or 0.0)
            x, y, z = centre
            self.block((x - r, y - r, z), (x + r, y + r, z + height))

    def panel(
        self,
        a: tuple[float, float],
        b: tuple[float, float],
        low: float,
        high: float,
        material: Material,
        holes: list[tuple[float, float, float, float]] | None = None,
    ) -> None:
        """An upright wall over the floor line from a (left, as seen) to b, with rectangular holes.

        Args:
            holes: (s0, s1, z0, z1) metres along the line and above the floor; they do not overlap.
        """
        start, end = np.array([*a, 0.0]), np.array([*b, 0.0])
        length = float(np.linalg.norm(end - start))
        along = (end - start) / length
        cuts = sorted({0.0, length, *(s for hole in holes or [] for s in hole[:2])})
        for s0, s1 in pairwise(cuts):
            inside = [h for h in holes or [] if h[0] < (s0 + s1) / 2 < h[1]]
            bands = [(low, high)] if not inside else [(low, inside[0][2]), (inside[0][3], high)]
            for z0, z1 in bands:
                if z1 - z0 < 1e-3:
                    continue
                p, q = start + s0 * along, start + s1 * along
                self.quad([p + (0, 0, z1), q + (0, 0, z1), q + (0, 0, z0), p + (0, 0, z0)], material, shift=False)
                if material.metres > 0:  # one pattern over all pieces
                    row = list(self._rows[-1])
                    m = material.metres
                    row[1:5] = s0 / m, (high - z1) / m, s1 / m, (high - z0) / m
                    self._rows[-1] = tuple(row)

    def quads(self) -> Quads:
        """Everything so far."""
        rows = np.asarray(self._rows, np.float32)
        return Quads(
            corners=np.stack(self._corners),
            textures=rows[:, 0].astype(np.int32),
            windows=np.ascontiguousarray(rows[:, 1:5]),
            tints=np.ascontiguousarray(rows[:, 5:8]),
            emission=rows[:, 8].copy(),
            gloss=rows[:, 9].copy(),
            bodies=rows[:, 10].astype(np.int32),
        )
