# SPDX-License-Identifier: Apache-2.0
"""The warehouse scene: a hall with racks, pallets and boxes around an aisle loop.

World frame: origin in a corner of the hall on the floor, x along the aisles, y across them, z up, metres.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.datasets import textures as tx
from recon_ros.datasets.floor import FloorPainter
from recon_ros.datasets.raycast import Quads, TexturedScene

LENGTH, WIDTH, HEIGHT = 16.2, 12.2, 5.0
BAY, DEPTH = 2.7, 0.95
SHELVES = (0.0, 1.45, 2.85)
RACK_HEIGHT = 3.9
# Rack rows: x of the first upright, y of the front, side the front looks to (+1: north), bays, name.
ROWS = ((2.7, 1.1, 1, 4, "A"), (4.05, 5.1, -1, 3, "B"), (4.05, 7.1, 1, 3, "C"), (2.7, 11.1, -1, 4, "D"))
# The middle of the driven way: a rectangle (x0, y0, x1, y1) with rounded corners, driven counter-clockwise.
LOOP = (2.2, 3.1, 14.0, 9.1)
FLOOR_TEXEL, WALL_TEXEL = 0.005, 0.0065
BLUE, ORANGE, STEEL = (34, 70, 140), (226, 98, 26), (128, 132, 136)

FACES = ("front", "back", "left", "right", "top", "bottom")
# Corners of the unit box for each face, in the texture's order; front looks to -y.
CORNERS = {
    "front": ((0, 0, 1), (1, 0, 1), (1, 0, 0), (0, 0, 0)),
    "back": ((1, 1, 1), (0, 1, 1), (0, 1, 0), (1, 1, 0)),
    "left": ((0, 1, 1), (0, 0, 1), (0, 0, 0), (0, 1, 0)),
    "right": ((1, 0, 1), (1, 1, 1), (1, 1, 0), (1, 0, 0)),
    "top": ((0, 1, 1), (1, 1, 1), (1, 0, 1), (0, 0, 1)),
    "bottom": ((0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)),
}
Vector = tuple[float, float, float]


def driven_rectangle(stretch: int = 0) -> tuple[float, float, float, float]:
    """`LOOP` in a hall that is `stretch` bays longer."""
    x0, y0, x1, y1 = LOOP
    return x0, y0, x1 + stretch * BAY, y1


class WarehouseBuilder:
    """Collects the quads and textures of one warehouse; the same arguments give the same one.

    Args:
        seed: of everything that is random.
        stretch: bays by which the rows of racks, and the hall with them, are longer.
    """

    def __init__(self, seed: int, stretch: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.extra = stretch * BAY
        self.length = LENGTH + self.extra
        self.loop = driven_rectangle(stretch)
        self.rows = tuple((x, y, side, bays + stretch, name) for x, y, side, bays, name in ROWS)
        self.quads = Quads()
        self.textures: list[tx.Texture] = []
        self._make_textures()

    def _keep(self, *images: tx.Texture) -> list[int]:
        """Indices of newly added textures."""
        self.textures.extend(images)
        return list(range(len(self.textures) - len(images), len(self.textures)))

    def _make_textures(self) -> None:
        rng = self.rng
        self.fronts = self._keep(*(tx.cardboard(rng, 168, int(rng.integers(176, 260))) for _ in range(44)))
        self.tops = self._keep(*(tx.cardboard(rng, 176, 200, printed=False) for _ in range(10)))
        self.crates = self._keep(*(tx.crate(rng, 120, 210, colour) for colour in tx.SAFETY_COLOURS[:5] * 2))
        self.loads = self._keep(*(tx.wrapped_load(rng, 330, 350) for _ in range(10)))
        self.wood = self._keep(*(tx.wood(rng, 260, 300, 7) for _ in range(4)))
        self.plank = self._keep(*(tx.wood(rng, 60, 300, 1) for _ in range(3)))
        self.decks = self._keep(*(tx.wood(rng, 230, 640, 5) for _ in range(3)))
        self.uprights = self._keep(*(tx.painted_steel(rng, 30, 1000, BLUE, holes=True) for _ in range(4)))
        self.blue = self._keep(tx.painted_steel(rng, 40, 500, BLUE))
        self.orange = self._keep(*(tx.painted_steel(rng, 40, 700, ORANGE) for _ in range(2)))
        self.yellow = self._keep(tx.painted_steel(rng, 120, 300, tx.YELLOW))
        self.dark = self._keep(tx.painted_steel(rng, 120, 300, (52, 54, 58)))
        wall = (round(HEIGHT / WALL_TEXEL), round(3.0 / WALL_TEXEL))
        self.walls = self._keep(*(tx.bricks(rng, *wall, WALL_TEXEL) for _ in range(6)))
        self.posters = self._keep(*(tx.poster(rng, 260, 190) for _ in range(18)))
        self.gates = self._keep(*(tx.gate(rng, 420, 440, number) for number in (1, 2, 3, 4)))
        self.ceiling = self._keep(tx.ceiling(rng, 500, 660))
        self.lamp = self._keep(np.full((32, 32, 3), 250, np.uint8))

    def pick(self, choices: list[int]) -> int:
        """One of the textures."""
        return choices[self.rng.integers(len(choices))]

    @staticmethod
    def next(choices: list[int]) -> int:
        """Each of the textures in turn, for what should not be seen twice side by side."""
        choices.append(choices.pop(0))
        return choices[-1]

    def box(
        self,
        low: Vector,
        size: Vector,
        faces: dict[str, int],
        *,
        yaw: float = 0.0,
        tint: Vector = (1.0, 1.0, 1.0),
        windows: dict[str, tuple[float, float, float, float]] | None = None,
        emission: float = 0.0,
    ) -> None:
        """A box from its lowest corner; `faces` has the textures by face, "" stands for the rest."""
        unit = np.array([CORNERS[face] for face in FACES], dtype=float)
        corners = unit * size + low
        if yaw:
            middle = np.array(low[:2]) + np.array(size[:2]) / 2
            turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
            corners[..., :2] = (corners[..., :2] - middle) @ turn.T + middle
        for face, quad in zip(FACES, corners, strict=True):
            window = (windows or {}).get(face, (0.0, 0.0, 1.0, 1.0))
            self.quads.add(quad, faces.get(face, faces[""]), window, tint, emission)

    def steel(self, low: Vector, size: Vector, texture: int, length: float) -> None:
        """A bar along its longest side, cut at random from `length` metres of texture."""
        long = int(np.argmax(size))
        share = min(1.0, size[long] / length)
        start = float(self.rng.uniform(0, 1 - share))
        along, turned = (start, 0.0, start + share, 1.0), (0.0, 0.0, 1.0, 1.0)
        if long == 2:  # an upright: turn the faces so that the texture runs down
            unit = np.array([CORNERS[face] for face in FACES], dtype=float) * size + low
            for face, quad in zip(FACES, unit, strict=True):
                standing = face not in ("top", "bottom")
                self.quads.add(quad[[3, 0, 1, 2]] if standing else quad, texture, along if standing else turned)
            return
        sides = ("front", "back", "top", "bottom") if long == 0 else ("left", "right")
        self.box(low, size, {"": texture}, windows=dict.fromkeys(sides, along))

    def hall(self) -> None:
        """Floor, walls with posters and gates, ceiling with lamps."""
        floor = self._keep(self._painted_floor())[0]
        self.quads.add([(0, WIDTH, 0), (self.length, WIDTH, 0), (self.length, 0, 0), (0, 0, 0)], floor)
        for x0 in np.arange(0, self.length, 3.3):
            for y0 in np.arange(0, WIDTH, 2.5):
                x1, y1 = min(x0 + 3.3, self.length), min(y0 + 2.5, WIDTH)
                window = (0.0, 0.0, (x1 - x0) / 3.3, (y1 - y0) / 2.5)
                corners = [(x0, y0, HEIGHT), (x1, y0, HEIGHT), (x1, y1, HEIGHT), (x0, y1, HEIGHT)]
                self.quads.add(corners, self.ceiling[0], window)
        for y in np.arange(1.2, WIDTH, 1.96):
            self.steel((0, y, HEIGHT - 0.35), (self.length, 0.14, 0.14), self.dark[0], self.length)
        for a, b in (
            ((0, 0), (0, WIDTH)),
            ((0, WIDTH), (self.length, WIDTH)),
            ((self.length, WIDTH), (self.length, 0)),
            ((self.length, 0), (0, 0)),
        ):
            self._wall(np.array(a, float), np.array(b, float))

    def _wall(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        """Brick panels from a to b, clockwise around the hall seen from above, and what hangs on them."""
        rng = self.rng
        length = float(np.linalg.norm(b - a))
        along = (b - a) / length
        panels = max(1, round(length / 3.0))
        for i in range(panels):
            p, q = a + along * length * i / panels, a + along * length * (i + 1) / panels
            flip = bool(rng.integers(2))
            self.quads.add(_upright(p, q, 0.0, HEIGHT), self.pick(self.walls), (1, 0, 0, 1) if flip else (0, 0, 1, 1))
        inward = np.array([along[1], -along[0]])
        position = float(rng.uniform(0.4, 0.9))
        while position < length - 1.2:
            if length < 15 and rng.random() < 0.34 and position < length - 3.4:
                self._hang(a, along, inward, position, 2.6, 0.0, 2.5, self.next(self.gates))
                position += 2.6
            else:
                w = float(rng.uniform(0.45, 0.85))
                h = w * 1.37
                low = float(rng.uniform(1.25, 2.9 - h))
                self._hang(a, along, inward, position, w, low, h, self.next(self.posters))
                if rng.random() < 0.6:
                    self._hang(
                        a,
                        along,
                        inward,
                        position + 0.1,
                        w * 0.7,
                        low + h + 0.25,
                        h * 0.7,
                        self.next(self.posters),
                    )
                position += w
            position += float(rng.uniform(0.25, 0.9))

    def _hang(self, a: Any, along: Any, inward: Any, at: float, w: float, low: float, h: float, texture: int) -> None:
        p = a + along * at + inward * 0.015
        self.quads.add(_upright(p, p + along * w, low, low + h), texture)

    def _painted_floor(self) -> tx.Texture:
        painter = FloorPainter(self.rng, self.length, WIDTH, FLOOR_TEXEL)
        for x, y, side, bays, name in self.rows:
            painter.line((x - 0.3, y + side * 0.25), (x + bays * BAY + 0.3, y + side * 0.25), 0.1)
            for bay in range(bays):
                painter.text(f"{name}{bay + 1}", x + (bay + 0.5) * BAY, y + side * 0.62, 0.3, 0 if side < 0 else 180)
        painter.hazard((3.6, 5.0, 3.95, 7.2))
        painter.hazard((12.25 + self.extra, 5.0, 12.6 + self.extra, 7.2))
        for x in np.arange(3.6, self.length - 4.0, 3.6).tolist():
            painter.arrow(x, self.loop[1], 0.0)
            painter.arrow(x + 0.8, self.loop[3], 180.0)
        painter.arrow(self.loop[2], 6.1, 90.0)
        painter.arrow(self.loop[0], 6.1, -90.0)
        for words, x, y, angle in (
            ("STOP", 13.3 + self.extra, 3.1, 90),
            ("SLOW", 2.9, 9.1, 90),
            ("KEEP CLEAR", 14.9 + self.extra, 4.4, 90),
            ("HALL 4", 1.0, 8.2, -90),
        ):
            painter.text(words, x, y, 0.34, angle)
        painter.frame((0.25, 0.3, 1.7, 4.6))
        painter.frame((14.7 + self.extra, 7.4, 15.95 + self.extra, 11.9))
        painter.frame((0.25, 9.4, 1.7, 11.9))
        return painter.image

    def rack(self, x: float, front: float, side: int, bays: int, name: str) -> None:
        """One row of shelves, loaded; `front` is the y of its open side and `side` where that looks to."""
        back = front - side * DEPTH
        low = min(front, back)
        for i in range(bays + 1):
            for y in (front - side * 0.09, back + side * 0.02):
                self.steel(
                    (x + i * BAY - 0.045, min(y, y + side * 0.07), 0),
                    (0.09, 0.07, RACK_HEIGHT),
                    self.pick(self.uprights),
                    4.2,
                )
            for z in np.arange(0.35, RACK_HEIGHT - 0.3, 0.62):
                self.steel((x + i * BAY - 0.015, low + 0.08, z), (0.03, DEPTH - 0.16, 0.04), self.blue[0], 2.0)
        for bay in range(bays):
            for shelf, z in enumerate(SHELVES):
                left = x + bay * BAY + 0.05
                if z > 0:
                    self._shelf(left, front, side, z, [f"{name}{bay + 1}{shelf}{place}" for place in "AB"])
                self._load_places(left, low, z + (0.02 if z > 0 else 0.0), 1.0 if shelf == 0 else 0.88)

    def _shelf(self, left: float, front: float, side: int, z: float, names: list[str]) -> None:
        """Two beams and a deck; the front beam carries name plates."""
        width = BAY - 0.1
        plate = self._keep(tx.beam(self.rng, 34, 760, ORANGE, names))[0]
        face = "back" if side > 0 else "front"
        y = front - 0.05 if side > 0 else front
        self.box((left, y, z - 0.12), (width, 0.05, 0.12), {"": self.pick(self.orange), face: plate})
        back = front - side * (DEPTH - 0.05)
        self.steel((left, min(back, back + side * 0.05), z - 0.12), (width, 0.05, 0.12), self.pick(self.orange), 4.0)
        low = min(front, front - side * DEPTH)
        self.box((left, low + 0.05, z - 0.02), (width, DEPTH - 0.1, 0.03), {"": self.pick(self.decks)})

    def _load_places(self, left: float, low: float, z: float, room: float) -> None:
        """Two pallet places of one shelf; some stay empty."""
        for place in range(2):
            if self.rng.random() < 0.88:
                x = left + 0.06 + place * 1.27 + float(self.rng.uniform(-0.02, 0.04))
                self.pallet(x, low + float(self.rng.uniform(0.0, 0.08)), z, 1.16, 0.86, room)

    def pallet(self, x: float, y: float, z: float, w: float, d: float, room: float) -> None:
        """A wooden pallet with a random load at most `room` metres high."""
        wood, plank = {"": self.pick(self.wood)}, self.pick(self.plank)
        self.box((x, y, z + 0.1), (w, d, 0.03), wood | dict.fromkeys(FACES[:4], plank))
        for i in range(3):
            self.box((x + i * (w - 0.1) / 2, y, z), (0.1, d, 0.1), {"": plank})
        top = z + 0.13
        kind = self.rng.random()
        if kind < 0.62:
            self._stack(x, y, top, w, d, room)
        elif kind < 0.84:
            h = float(self.rng.uniform(0.6, 0.95)) * room
            faces = {face: self.pick(self.loads) for face in FACES[:4]} | {"": self.pick(self.tops)}
            self.box((x + 0.03, y + 0.03, top), (w - 0.06, d - 0.06, h), faces, tint=self._tint(0.06))
        else:
            self._crates(x, y, top, w, d, room)

    def _tint(self, spread: float) -> Vector:
        bright = float(self.rng.uniform(0.84, 1.1))
        r, g, b = (bright * (1 + self.rng.uniform(-spread, spread, 3))).tolist()
        return r, g, b

    def _stack(self, x: float, y: float, z: float, w: float, d: float, room: float) -> None:
        """Layers of boxes of one size each, the topmost incomplete, none placed quite straight."""
        rng = self.rng
        top = z + room * float(rng.uniform(0.55, 1.0))
        columns, rows = int(rng.integers(2, 4)), int(rng.integers(1, 3))
        while True:
            h = float(rng.uniform(0.24, 0.42))
            if z + h > top:
                return
            bw, bd = w / columns, d / rows
            last = z + 2 * h > top
            for i in range(columns):
                for j in range(rows):
                    if last and rng.random() < 0.35:
                        continue
                    gap = rng.uniform(0.008, 0.05, 2)
                    low = (x + i * bw + gap[0] / 2, y + j * bd + gap[1] / 2, z)
                    faces = {face: self.pick(self.fronts) for face in FACES[:4]} | {"": self.pick(self.tops)}
                    size = (bw - gap[0], bd - gap[1], h * float(rng.uniform(0.9, 1.0)) if last else h)
                    self.box(low, size, faces, yaw=float(rng.normal(0, 0.025)), tint=self._tint(0.08))
            z += h
            if rng.random() < 0.3:
                columns, rows = int(rng.integers(2, 4)), int(rng.integers(1, 3))

    def _crates(self, x: float, y: float, z: float, w: float, d: float, room: float) -> None:
        """Two columns of stacked plastic crates."""
        for i in range(2):
            height = 0.0
            for _ in range(int(self.rng.integers(1, 4))):
                if height + 0.31 > room:
                    break
                side = self.pick(self.crates)
                self.box(
                    (x + i * w / 2 + 0.01, y + 0.02, z + height),
                    (w / 2 - 0.02, d - 0.04, 0.3),
                    {"": side, "top": self.dark[0]},
                    yaw=float(self.rng.normal(0, 0.02)),
                    tint=self._tint(0.05),
                )
                height += 0.305

    def yard(self) -> None:
        """What stands at the ends of the hall: pallets on the floor, empty ones stacked, a fork lift."""
        for x, y in (
            (0.35, 0.5),
            (0.4, 1.75),
            (0.35, 3.2),
            (14.78 + self.extra, 7.7),
            (14.75 + self.extra, 9.0),
            (14.8 + self.extra, 10.6),
            (0.4, 9.7),
            (0.35, 10.8),
        ):
            self.pallet(x, y, 0.0, 1.16, 0.86, float(self.rng.uniform(0.7, 1.5)))
        for x, y, count in ((14.8 + self.extra, 0.7, 7), (14.75 + self.extra, 1.8, 4), (0.3, 5.4, 9)):
            for i in range(count):
                low = (x + float(self.rng.normal(0, 0.012)), y + float(self.rng.normal(0, 0.012)), i * 0.145)
                plank = self.pick(self.plank)
                self.box(
                    (low[0], low[1], low[2] + 0.1),
                    (1.16, 0.86, 0.04),
                    {"": plank, "top": self.pick(self.wood)},
                )
                for j in range(3):
                    self.box((low[0] + j * 0.53, low[1], low[2]), (0.1, 0.86, 0.1), {"": plank})
        self._fork_lift(14.75 + self.extra, 3.3)

    def _fork_lift(self, x: float, y: float) -> None:
        """A counterbalance truck facing -y, made of boxes."""
        yellow, dark = {"": self.yellow[0]}, {"": self.dark[0]}
        self.box((x, y + 0.75, 0.18), (1.0, 1.25, 0.62), yellow)
        self.box((x + 0.05, y + 1.55, 0.8), (0.9, 0.45, 0.28), yellow | {"back": self.dark[0]})
        self.box((x + 0.25, y + 1.05, 0.8), (0.5, 0.5, 0.35), dark)
        for dx, dy in ((0.02, 0.8), (0.92, 0.8), (0.02, 1.85), (0.92, 1.85)):
            self.box((x + dx, y + dy, 0.8), (0.06, 0.06, 1.25), dark)
        self.box((x, y + 0.8, 2.05), (1.0, 1.13, 0.06), dark)
        for dx in (0.15, 0.75):
            self.box((x + dx, y + 0.6, 0.05), (0.09, 0.1, 2.25), {"": self.blue[0]})
            self.box((x + dx, y - 0.4, 0.06), (0.1, 1.0, 0.05), dark)
        for dx in (-0.08, 0.92):
            for dy in (0.85, 1.6):
                self.box((x + dx, y + dy, 0.0), (0.16, 0.42, 0.42), dark)

    def lamps(self) -> NDArray[np.float64]:
        """Two strips of lamps over each aisle; the (L, 3) points of light beneath them."""
        positions = []
        for y in (self.loop[1], self.loop[3]):
            for x in np.arange(1.8, self.length - 1, 2.55):
                self.box((x - 0.7, y - 0.08, HEIGHT - 0.5), (1.4, 0.16, 0.06), {"": self.lamp[0]}, emission=1.0)
                positions += [(x - 0.35, y, HEIGHT - 0.55), (x + 0.35, y, HEIGHT - 0.55)]
        for x in (1.0, self.length - 1.0):
            self.box((x - 0.08, 5.3, HEIGHT - 0.5), (0.16, 1.6, 0.06), {"": self.lamp[0]}, emission=1.0)
            positions += [(x, 5.7, HEIGHT - 0.55), (x, 6.5, HEIGHT - 0.55)]
        return np.array(positions)

    def build(self) -> TexturedScene:
        """The whole scene."""
        self.hall()
        for row in self.rows:
            self.rack(*row)
        self.yard()
        lamps = self.lamps()
        return TexturedScene(self.quads, self.textures, lamps)


def _upright(a: NDArray[Any], b: NDArray[Any], low: float, high: float) -> list[Vector]:
    """A vertical quad over the floor line from a (left, as seen) to b."""
    (ax, ay), (bx, by) = a.tolist(), b.tolist()
    return [(ax, ay, high), (bx, by, high), (bx, by, low), (ax, ay, low)]


@lru_cache(maxsize=2)
def warehouse(seed: int = 0, stretch: int = 0) -> TexturedScene:
    """The scene of these arguments; kept, because building it takes seconds."""
    return WarehouseBuilder(seed, stretch).build()
