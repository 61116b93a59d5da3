# SPDX-License-Identifier: Apache-2.0
"""Layouts of the training scenes: rooms, offices, corridors, warehouses and jumbles, from a seed.

World frame: z up, one corner of the floor at the origin, metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon_ros.training import furniture as pieces
from recon_ros.training.lighting import Lights
from recon_ros.training.pool import Pool
from recon_ros.training.shell import Mover, Room, door, lighting, shell
from recon_ros.training.surfaces import Builder, Floats, Quads

Rng = np.random.Generator
Piece = Callable[[Builder, Pool], None]
MAX_LAMPS = 10


@dataclass(frozen=True)
class Scene:
    """A layout.

    Attributes:
        kind: which layout.
        quads: all surfaces, movers at frame 0.
        lights: lamps and windows.
        size: (3,) length, width, height of the free space, from the origin.
        solids: (S, 2, 3) low and high corners of what a camera must not enter.
        movers: what moves.
    """

    kind: str
    quads: Quads
    lights: Lights
    size: NDArray[np.float64]
    solids: NDArray[np.float64]
    movers: tuple[Mover, ...]

    def corners_at(self, frame: int) -> Floats:
        """(N, 4, 3) corners of all quads at a frame."""
        corners = self.quads.corners.copy()
        for mover in self.movers:
            mine = self.quads.bodies == mover.body
            c, s = np.cos(mover.turn * frame), np.sin(mover.turn * frame)
            flat = (corners[mine][..., :2] - mover.centre) @ np.array([[c, s], [-s, c]])
            corners[mine, :, :2] = flat + mover.centre + mover.step * frame
        return corners


def along_walls(room: Room, density: float, choices: list[tuple[Piece, float, float]]) -> None:
    """Furniture (piece, width, depth) with its back to the walls."""
    r = room.b.rng
    for a, c, yaw in room.walls:
        span = float(np.hypot(c[0] - a[0], c[1] - a[1]))
        s = r.uniform(0.1, 1.5)
        while s < span - 0.6:
            piece, w, d = choices[r.integers(len(choices))]
            if s + w < span and r.random() < density:
                with (
                    room.b.at(a[0], a[1], 0, yaw),
                    room.b.at(s + w / 2, -d / 2 - r.uniform(0.02, 0.12), 0, r.normal(0, 0.02)),
                ):
                    piece(room.b, room.p)
                s += w
            s += r.uniform(0.05, 0.9)


def scattered(room: Room, count: int, choices: list[Piece], margin: float = 1.0) -> None:
    """Pieces anywhere, turned anyhow; mostly square to the walls."""
    r = room.b.rng
    for _ in range(count):
        x, y = r.uniform(margin, np.maximum(room.size[:2] - margin, margin + 0.1))
        yaw = float(r.integers(4)) * np.pi / 2 + (r.normal(0, 0.1) if r.random() < 0.6 else r.uniform(-3, 3))
        with room.b.at(x, y, 0, yaw):
            choices[r.integers(len(choices))](room.b, room.p)


def moving(room: Room, count: int) -> None:
    """People and boxes that go about."""
    r = room.b.rng
    for i in range(count):
        x, y = r.uniform(0.8, np.maximum(room.size[:2] - 0.8, 0.9))
        room.b.body = i + 1
        solids = list(room.b.solids)
        with room.b.at(x, y, 0, r.uniform(-3, 3)):
            (pieces.person if r.random() < 0.7 else pieces.chair)(room.b, room.p)
        room.b.body, room.b.solids = 0, solids
        heading, pace = r.uniform(-np.pi, np.pi), r.uniform(0.0, 0.25)
        step = pace * np.array([np.cos(heading), np.sin(heading)])
        room.movers.append(Mover(i + 1, np.array([x, y]), step, float(r.normal(0, 0.08))))


WALL_PIECES: list[tuple[Piece, float, float]] = [
    (pieces.shelf, 1.3, 0.4),
    (pieces.cabinet, 1.4, 0.55),
    (pieces.table, 1.8, 0.85),
    (pieces.sofa, 2.1, 0.95),
    (pieces.plant, 0.7, 0.7),
    (pieces.heap, 0.9, 0.8),
    (pieces.lamp, 0.5, 0.5),
    (pieces.chair, 0.6, 0.6),
]


def room_layout(room: Room) -> None:
    """A living room, a study, a meeting room."""
    r = room.b.rng
    shell(room, 0.45, 0.5)
    lighting(room)
    along_walls(room, r.uniform(0.3, 0.9), WALL_PIECES)
    area = float(room.size[0] * room.size[1])
    if r.random() < 0.5:
        x, y = room.size[:2] / 2 + r.normal(0, 0.4, 2)
        with room.b.at(x, y, 0, r.integers(2) * np.pi / 2):
            pieces.table(room.b, room.p, r.uniform(1.0, 2.2))
            for k in range(4):
                if r.random() < 0.7:
                    with room.b.at(
                        (-0.45, 0.45)[k % 2], (-0.75, 0.75)[k // 2], 0, (np.pi, 0)[k // 2] + r.normal(0, 0.2)
                    ):
                        pieces.chair(room.b, room.p)
    scattered(
        room,
        int(r.poisson(area * 0.12)),
        [pieces.chair, pieces.heap, pieces.table, pieces.plant, pieces.box, pieces.sofa],
    )
    if r.random() < 0.4:
        rug = room.p.pick(r, "fabric", "carpet", "wallpaper", metres=r.uniform(0.5, 2), vary=0.2)
        w, d = r.uniform(0.6, 1.3, 2)
        with room.b.at(room.size[0] / 2, room.size[1] / 2, 0, r.normal(0, 0.2)):
            room.b.box((-w, -d, 0), (w, d, 0.012), rug, solid=False)


def office_layout(room: Room) -> None:
    """Rows of desks with chairs, screens between them, pillars."""
    r = room.b.rng
    shell(room, 0.6, 0.6)
    lighting(room)
    along_walls(room, r.uniform(0.2, 0.7), WALL_PIECES)
    pitch_x, pitch_y = r.uniform(1.6, 2.2), r.uniform(1.9, 3.0)
    screens = r.random() < 0.4
    keep = r.uniform(0.5, 0.95)
    cloth = room.p.pick(r, "fabric", metres=0.8)
    for x in np.arange(1.7, room.size[0] - 1.6, pitch_x):
        for y in np.arange(1.8, room.size[1] - 1.6, pitch_y):
            if r.random() > keep:
                continue
            with room.b.at(x, y, 0, r.normal(0, 0.02)):
                pieces.table(room.b, room.p, pitch_x - 0.1, 0.75)
                if screens:
                    room.b.box((-0.8, 0.42, 0.1), (0.8, 0.46, 1.25), cloth)
                if r.random() < 0.8:
                    with room.b.at(r.normal(0, 0.2), -0.7, 0, np.pi + r.normal(0, 0.5)):
                        pieces.chair(room.b, room.p)
                if r.random() < 0.3:
                    with room.b.at(0.6, -0.6, 0):
                        pieces.heap(room.b, room.p)
    for _ in range(int(r.integers(0, 4))):
        x, y = r.uniform(1, room.size[:2] - 1)
        room.b.cylinder(
            (x, y, 0),
            r.uniform(0.15, 0.3),
            room.size[2],
            room.p.pick(r, "plaster", "concrete", metres=1.5),
            sides=int(r.choice([4, 12])),
        )


def corridor_layout(room: Room) -> None:
    """A long corridor with doors and notices, and a few things along its walls."""
    r = room.b.rng
    shell(room, 0.15, 1.0)
    lighting(room)
    for a, c, yaw in room.walls:
        span = float(np.hypot(c[0] - a[0], c[1] - a[1]))
        with room.b.at(a[0], a[1], 0, yaw):
            for s in np.arange(r.uniform(0.3, 2), span - 1.3, r.uniform(1.8, 4)):
                door(room, float(s), [])
    small: list[tuple[Piece, float, float]] = [
        (pieces.heap, 0.6, 0.5),
        (pieces.plant, 0.6, 0.5),
        (pieces.chair, 0.6, 0.5),
        (pieces.cabinet, 1.4, 0.5),
        (pieces.shelf, 1.2, 0.4),
    ]
    along_walls(room, r.uniform(0.05, 0.35), small)


def warehouse_layout(room: Room) -> None:
    """Racks along aisles, pallets and boxes on the floor."""
    r = room.b.rng
    shell(room, 0.15, 0.4)
    lighting(room)
    aisle, y = r.uniform(1.8, 3.2), r.uniform(0.6, 1.2)
    while y < room.size[1] - 0.6:
        bays = max(1, int((room.size[0] - 2.5) // 2.8))
        turn = r.random() < 0.5
        with room.b.at(1.2 + (room.size[0] - 2.6 if turn else 0), y, 0, np.pi if turn else 0.0):
            pieces.rack(room.b, room.p, bays, int(r.integers(2, 5)))
        y += (1.15 if r.random() < 0.3 else 1.1 + aisle) if not turn else 1.1 + aisle

    def stack(b: Builder, p: Pool) -> None:
        pieces.pallet(b, p, r.uniform(0.8, 1.2), 0.8, r.uniform(0.3, 1.5))

    scattered(room, int(r.integers(2, 9)), [stack, pieces.box, pieces.heap], 0.7)


def jumble_layout(room: Room) -> None:
    """Solids of all sizes anywhere, on the floor and in the air: what no habit of rooms explains."""
    b, p, r = room.b, room.p, room.b.rng
    shell(room, 0.3, 0.3)
    lighting(room)
    kinds = tuple(kind for kind in p.kinds if p.kinds[kind] and kind not in ("outdoors",))
    for _ in range(int(r.integers(15, 50))):
        x, y = r.uniform(0.3, room.size[:2] - 0.3)
        z = 0.0 if r.random() < 0.6 else r.uniform(0, room.size[2] - 0.5)
        w, d, h = np.exp(r.uniform(np.log(0.06), np.log(1.1), 3)) * r.uniform(0.5, 1.0)
        look = p.pick(r, *r.choice(kinds, 2).tolist(), metres=float(r.choice([0, 0.5, 1.0])), vary=0.2)
        with b.at(x, y, z, r.uniform(-3, 3)):
            if r.random() < 0.7:
                b.box((-w, -d, 0), (w, d, h), look, skip=())
            else:
                b.cylinder((0, 0, 0), w, h, look, top_radius=w * r.uniform(0.2, 1.2), sides=int(r.integers(5, 14)))
    scattered(room, int(r.integers(2, 8)), [piece for piece, _, _ in WALL_PIECES], 0.8)


# kind: (share, layout, low and high of length, width, height)
LAYOUTS: dict[str, tuple[float, Callable[[Room], None], tuple[float, ...], tuple[float, ...]]] = {
    "room": (0.38, room_layout, (3.0, 2.8, 2.3), (7.5, 6.0, 3.2)),
    "office": (0.26, office_layout, (5.0, 5.0, 2.4), (13.0, 11.0, 3.6)),
    "corridor": (0.12, corridor_layout, (7.0, 1.5, 2.3), (22.0, 3.2, 3.0)),
    "warehouse": (0.12, warehouse_layout, (9.0, 7.0, 3.5), (18.0, 12.0, 6.0)),
    "jumble": (0.12, jumble_layout, (3.0, 3.0, 2.2), (8.0, 8.0, 3.5)),
}


def scene(rng: Rng, pool: Pool) -> Scene:
    """A random layout."""
    shares = np.array([share for share, *_ in LAYOUTS.values()])
    kind = list(LAYOUTS)[rng.choice(len(LAYOUTS), p=shares / shares.sum())]
    _, layout, low, high = LAYOUTS[kind]
    room = Room(Builder(rng), pool, rng.uniform(low, high), [], [])
    layout(room)
    if rng.random() < 0.25:
        moving(room, int(rng.integers(1, 4)))
    lamps = room.lamps
    if len(lamps) > MAX_LAMPS:  # fewer, stronger ones
        chosen = rng.choice(len(lamps), MAX_LAMPS, replace=False)
        factor = min(2.5, len(lamps) / MAX_LAMPS)
        lamps = [(lamps[i][0], lamps[i][1] * factor, lamps[i][2]) for i in chosen]
    ambient = rng.uniform(0.2, 0.6) * np.array([1.0, rng.uniform(0.93, 1.03), rng.uniform(0.85, 1.1)])
    positions, powers, axes = (np.asarray([lamp[i] for lamp in lamps], np.float32).reshape(-1, 3) for i in range(3))
    lights = Lights(positions, powers, axes, ambient.astype(np.float32))
    solids = np.asarray(room.b.solids, np.float64).reshape(-1, 2, 3)
    return Scene(kind, room.b.quads(), lights, room.size, solids, tuple(room.movers))
