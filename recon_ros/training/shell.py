# SPDX-License-Identifier: Apache-2.0
"""What all rooms have: floor, ceiling, walls with windows, doors and pictures, and lamps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recon_ros.training.pool import Pool
from recon_ros.training.surfaces import Builder, Material

Rng = np.random.Generator


@dataclass(frozen=True)
class Mover:
    """A body that goes straight on and turns.

    Attributes:
        body: its number in `Quads.bodies`.
        centre: (2,) where it turns about at frame 0, metres.
        step: (2,) metres a frame.
        turn: radians a frame.
    """

    body: int
    centre: NDArray[np.float64]
    step: NDArray[np.float64]
    turn: float


@dataclass
class Room:
    """What the layouts share while they build."""

    b: Builder
    p: Pool
    size: NDArray[np.float64]
    lamps: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]
    movers: list[Mover]

    @property
    def walls(self) -> list[tuple[tuple[float, float], tuple[float, float], float]]:
        """(left end, right end, yaw of the line) of the four walls as seen from inside."""
        length, width = self.size[:2].tolist()
        return [
            ((0, width), (length, width), 0.0),
            ((length, width), (length, 0), -np.pi / 2),
            ((length, 0), (0, 0), np.pi),
            ((0, 0), (0, width), np.pi / 2),
        ]


def shell(room: Room, windowed: float, doored: float) -> None:
    """Floor, ceiling and walls; `windowed` and `doored` are how likely a wall has some."""
    b, p, r = room.b, room.p, room.b.rng
    length, width, height = room.size.tolist()
    gloss = float(r.choice([0, 0, 0, 0.06, 0.15]))
    floor = p.pick(
        r,
        *r.choice(
            [
                ("parquet", "wood"),
                ("carpet", "carpet"),
                ("tiles", "tiles"),
                ("concrete", "photograph"),
                ("carpet", "plastic"),
            ]
        ),
        metres=r.uniform(0.6, 2.4),
        gloss=gloss,
    )
    b.quad([(0, width, 0), (length, width, 0), (length, 0, 0), (0, 0, 0)], floor)
    ceiling = p.pick(r, "ceiling", metres=1.2, vary=0.03)
    ceiling = replace(ceiling, tint=tuple(np.maximum(ceiling.tint, 0.85).tolist()))
    b.quad([(0, 0, height), (length, 0, height), (length, width, height), (0, width, height)], ceiling)
    plain = p.pick(r, "plaster", metres=r.uniform(1, 3), vary=0.05)
    skirting = p.pick(r, "wood", "plastic", "metal", metres=1.0)
    low = r.random() < 0.6
    for a, c, yaw in room.walls:
        span = float(np.hypot(c[0] - a[0], c[1] - a[1]))
        wall = plain
        if r.random() < 0.35:
            wall = p.pick(
                r, "plaster", "wallpaper", "bricks", "concrete", "wood", "photograph", metres=r.uniform(0.8, 3)
            )
        holes = _windows(r, span, height) if r.random() < windowed else []
        b.panel(a, c, 0, height, wall, holes)
        with b.at(a[0], a[1], 0, yaw):
            for hole in holes:
                _window(room, hole)
            if low:
                b.box((0, -0.015, 0), (span, 0, r.uniform(0.06, 0.12)), skirting, solid=False)
            if r.random() < doored:
                door(room, r.uniform(0.1, max(0.2, span - 1.3)), holes)
            for _ in range(int(r.poisson(0.35 * span))):
                _hanging(room, span, holes)


def _windows(r: Rng, span: float, height: float) -> list[tuple[float, float, float, float]]:
    low, high = float(r.choice([0.1, 0.9, 1.0])), min(height - 0.2, r.uniform(1.9, 2.6))
    wide, gap = r.uniform(0.8, 2.4), r.uniform(0.2, 1.2)
    first = r.uniform(0.2, 1.0)
    count = int((span - first - 0.2 + gap) // (wide + gap))
    keep = r.random() * 0.6 + 0.4
    return [
        (first + i * (wide + gap), first + i * (wide + gap) + wide, low, high)
        for i in range(max(0, count))
        if r.random() < keep
    ]


def _window(room: Room, hole: tuple[float, float, float, float]) -> None:
    """Reveal, frame, what is outside, and the light that comes in; the wall runs along x, outside is y > 0."""
    b, p, r = room.b, room.p, room.b.rng
    s0, s1, z0, z1 = hole
    deep = r.uniform(0.08, 0.3)
    plain = p.pick(r, "plaster", vary=0.03)
    frame = p.pick(r, "plastic", "wood", vary=0.03)
    b.quad([(s0, 0, z0), (s0, deep, z0), (s0, deep, z1), (s0, 0, z1)], plain)
    b.quad([(s1, deep, z0), (s1, 0, z0), (s1, 0, z1), (s1, deep, z1)], plain)
    b.quad([(s0, deep, z0), (s1, deep, z0), (s1, 0, z0), (s0, 0, z0)], plain)
    b.quad([(s0, 0, z1), (s1, 0, z1), (s1, deep, z1), (s0, deep, z1)], plain)
    for x in np.linspace(s0, s1 - 0.05, int(r.integers(2, 4))):
        b.box((x, deep - 0.05, z0), (x + 0.05, deep, z1), frame, solid=False)
    for z in (z0, z1 - 0.05):
        b.box((s0, deep - 0.05, z), (s1, deep, z + 0.05), frame, skip=(), solid=False)
    glow = r.uniform(0.7, 3.0)
    if r.random() < 0.25:  # a blind, let down over a part
        z = z0 + (z1 - z0) * r.uniform(0.0, 0.8)
        blind = replace(p.pick(r, "plaster", "fabric", metres=0.5), emission=0.3 * glow)
        b.box((s0, deep - 0.08, z), (s1, deep - 0.06, z1), blind, skip=(), solid=False)
    far = r.uniform(3, 15)
    spread = 2.5 * far
    view = replace(p.pick(r, "outdoors", metres=0.0, vary=0.05), emission=glow)
    middle = (s0 + s1) / 2
    b.quad(
        [
            (middle - spread, far, z1 + spread * 0.7),
            (middle + spread, far, z1 + spread * 0.7),
            (middle + spread, far, z0 - spread * 0.7),
            (middle - spread, far, z0 - spread * 0.7),
        ],
        view,
    )
    power = glow * (s1 - s0) * (z1 - z0) * r.uniform(0.3, 0.8)
    _shine(room, (middle, -0.3, (z0 + z1) / 2), power * np.array([0.9, 0.97, 1.08]), (0, -1, -0.2))


def _shine(room: Room, place: tuple[float, float, float], power: NDArray[np.float64], axis: tuple[float, ...]) -> None:
    """A light at a place of the current local frame."""
    b = room.b
    direction = b._R @ np.asarray(axis, float)
    norm = np.linalg.norm(direction)
    room.lamps.append((b._R @ np.asarray(place) + b._t, power, direction / norm if norm > 0 else direction))


def door(room: Room, s: float, holes: list[tuple[float, float, float, float]]) -> None:
    b, p, r = room.b, room.p, room.b.rng
    w, h = r.uniform(0.8, 1.0), min(r.uniform(1.95, 2.15), room.size[2] - 0.1)
    if any(hole[0] < s + w + 0.1 and hole[1] > s - 0.1 for hole in holes):
        return
    frame = p.pick(r, "wood", "plastic", "metal")
    leaf = replace(p.pick(r, "door", metres=0.0), gloss=0.0)
    b.box((s - 0.07, -0.03, 0), (s, 0, h + 0.07), frame, solid=False)
    b.box((s + w, -0.03, 0), (s + w + 0.07, 0, h + 0.07), frame, solid=False)
    b.box((s, -0.03, h), (s + w, 0, h + 0.07), frame, solid=False)
    b.box((s, -0.012, 0), (s + w, 0, h), leaf, solid=False)
    if r.random() < 0.25:  # ajar: the leaf stands in the room
        with b.at(s, -0.03, 0, -r.uniform(0.3, 1.8)):
            b.box((0, -0.04, 0.01), (w, 0, h), leaf)


def _hanging(room: Room, span: float, holes: list[tuple[float, float, float, float]]) -> None:
    """A picture, a board, a clock, a radiator or a switch on the wall that runs along x."""
    b, p, r = room.b, room.p, room.b.rng
    kind = r.random()
    w, h, z = r.uniform(0.2, 1.1), r.uniform(0.2, 0.9), r.uniform(1.2, 1.8)
    t = 0.02
    face = replace(p.pick(r, "poster", metres=0.0, vary=0.05), gloss=float(r.choice([0, 0, 0.08])))
    if kind < 0.12:
        w, h, z, face = r.uniform(1.2, 2.4), 1.1, 1.45, replace(p.pick(r, "plaster", "paper", metres=0), gloss=0.05)
    elif kind < 0.25:
        w, h, z, t, face = r.uniform(0.6, 1.6), 0.55, 0.42, 0.1, p.pick(r, "metal", "plastic", metres=0.5, vary=0.02)
    elif kind < 0.4:
        w, h, z, face = 0.09, 0.09, float(r.choice([0.3, 1.1])), p.pick(r, "plastic", metres=0.2, vary=0.02)
    elif kind < 0.5:
        w, h, z, face = r.uniform(0.6, 1.2), r.uniform(0.4, 0.8), 1.6, p.pick(r, "screen", metres=0.0)
        t = 0.06
    if span < w + 0.3:
        return
    s = r.uniform(0.1, span - w - 0.1)
    z0, z1 = z - h / 2, min(z + h / 2, room.size[2] - 0.05)
    if any(q[0] < s + w and q[1] > s and q[2] < z1 and q[3] > z0 for q in holes):
        return
    edge = p.pick(r, "wood", "metal", "plastic", metres=0.4)
    b.box((s, -t, z0), (s + w, 0, z1), {"front": face, "rest": edge}, skip=("back",), solid=False)


def lighting(room: Room) -> None:
    """Ceiling lamps on a grid; some do not burn."""
    b, r = room.b, room.b.rng
    length, width, height = room.size.tolist()
    n, m = max(1, round(length / r.uniform(1.8, 3.5))), max(1, round(width / r.uniform(1.8, 3.5)))
    w, d = (0.6, 0.6) if r.random() < 0.4 else (1.2, 0.25)
    warm = np.array([1.0, r.uniform(0.82, 1.0), r.uniform(0.6, 1.0)])
    power, lit = r.uniform(1.0, 4.0), r.uniform(0.5, 1.0)
    hang = 0.02 if r.random() < 0.7 else r.uniform(0.1, 0.6)
    for i in range(n):
        for j in range(m):
            on = r.random() < lit
            x, y = (i + 0.5) * length / n, (j + 0.5) * width / m
            face = Material(room.p.kinds["plaster"][0], 0.0, tuple(warm.tolist()), 2.5 if on else 0.0)
            with b.at(x, y):
                b.box(
                    (-w / 2, -d / 2, height - hang - 0.03),
                    (w / 2, d / 2, height - hang),
                    face,
                    skip=("top",),
                    solid=False,
                )
                if on:
                    _shine(
                        room, (0, 0, height - hang - 0.25), power * warm, (0, 0, -1) if r.random() < 0.5 else (0, 0, 0)
                    )
