# SPDX-License-Identifier: Apache-2.0
"""Pieces of furniture and clutter, built of boxes and cylinders around the builder's local origin on the floor.

Each function takes the builder and the pool of materials; fronts look to -y. Sizes are those of real pieces.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recon_ros.training.pool import Pool
from recon_ros.training.surfaces import Builder, Material


def _framed(pool: Pool, rng: np.random.Generator, kind: str, emission: float = 0.0) -> Material:
    """A texture shown once."""
    return replace(pool.pick(rng, kind, metres=0.0, vary=0.04), emission=emission)


def table(b: Builder, p: Pool, width: float | None = None, depth: float | None = None, things: bool = True) -> None:
    """A desk or table, perhaps with monitor, keyboard and clutter on it."""
    r = b.rng
    w, d, h = width or r.uniform(0.8, 2.0), depth or r.uniform(0.6, 0.9), r.uniform(0.68, 0.78)
    top = p.pick(r, "wood", "plastic", metres=r.uniform(0.8, 1.6), gloss=float(r.choice([0, 0, 0.12])))
    legs = p.pick(r, "metal", "wood", "plastic", metres=0.6)
    b.box((-w / 2, -d / 2, h - 0.035), (w / 2, d / 2, h), top, skip=(), solid=False)
    if r.random() < 0.6:
        for x in (-w / 2 + 0.03, w / 2 - 0.07):
            for y in (-d / 2 + 0.03, d / 2 - 0.07):
                b.box((x, y, 0), (x + 0.045, y + 0.045, h - 0.03), legs, solid=False)
    else:
        for x in (-w / 2, w / 2 - 0.03):
            b.box((x, -d / 2 + 0.02, 0), (x + 0.03, d / 2, h - 0.035), top, solid=False)
        b.box((-w / 2, d / 2 - 0.05, 0.2), (w / 2, d / 2 - 0.03, h - 0.035), top, solid=False)
    b.block((-w / 2, -d / 2, 0), (w / 2, d / 2, h + 0.05))
    if r.random() < 0.5:
        x = r.uniform(-w / 2 + 0.25, w / 2 - 0.25)
        with b.at(x, 0, 0):
            b.box((-0.2, -d / 2 + 0.06, 0.03), (0.2, d / 2 - 0.06, 0.58), _fronted(b, p, "drawers"), solid=False)
    if not things:
        return
    for _ in range(int(r.integers(0, 3))):
        with b.at(r.uniform(-w / 2 + 0.3, w / 2 - 0.3), d / 2 - 0.22, h, r.normal(0, 0.25)):
            monitor(b, p)
    for _ in range(int(r.integers(1, 9))):
        with b.at(r.uniform(-w / 2 + 0.1, w / 2 - 0.1), r.uniform(-d / 2 + 0.12, d / 2 - 0.1), h, r.uniform(-3, 3)):
            trinket(b, p)


def _fronted(b: Builder, p: Pool, kind: str) -> dict[str, Material]:
    side = p.pick(b.rng, "plastic", "wood", "metal", metres=1.0)
    return {"front": _framed(p, b.rng, kind), "rest": side}


def monitor(b: Builder, p: Pool) -> None:
    """A screen on a foot; may be off."""
    r = b.rng
    w, h = r.uniform(0.35, 0.7), r.uniform(0.28, 0.4)
    case = p.pick(r, "plastic", vary=0.02).tinted(0.4)
    on = r.random() < 0.7
    show = _framed(p, r, "screen", r.uniform(0.4, 1.4)) if on else replace(case.tinted(0.2), gloss=0.2)
    z = r.uniform(0.08, 0.16)
    b.box((-w / 2, -0.02, z), (w / 2, 0.03, z + h), {"front": show, "rest": case}, skip=(), solid=False)
    b.box((-0.03, 0, 0.01), (0.03, 0.04, z + 0.05), case, solid=False)
    b.box((-0.11, -0.08, 0), (0.11, 0.1, 0.012), case, solid=False)


def trinket(b: Builder, p: Pool) -> None:
    """Something small that lies about."""
    r = b.rng
    kind = r.integers(7)
    if kind == 0:
        b.box(
            (-0.105, -0.15, 0),
            (0.105, 0.15, 0.003),
            {"top": _framed(p, r, "paper"), "rest": p.pick(r, "plaster")},
            solid=False,
        )
    elif kind == 1:
        b.box(
            (-0.22, -0.07, 0),
            (0.22, 0.07, 0.02),
            {"top": _framed(p, r, "keyboard"), "rest": p.pick(r, "plastic")},
            solid=False,
        )
    elif kind == 2:
        b.cylinder(
            (0, 0, 0),
            r.uniform(0.03, 0.05),
            r.uniform(0.08, 0.25),
            p.pick(r, "plastic", "wood", metres=0.3, vary=0.3),
            sides=8,
            solid=False,
        )
    elif kind == 3:
        for i in range(int(r.integers(1, 6))):
            w, d, h = r.uniform(0.1, 0.16), r.uniform(0.13, 0.22), 0.03
            b.box(
                (-w, -d / 2, i * h),
                (w * 0.3, d / 2, i * h + h * 0.9),
                p.pick(r, "plastic", "fabric", "poster", metres=0.3, vary=0.3),
                solid=False,
            )
    elif kind == 4:
        w, d, h = r.uniform(0.04, 0.15, 3)
        b.box(
            (-w, -d, 0),
            (w, d, 1.5 * h),
            p.pick(r, "cardboard", "plastic", "photograph", metres=0.0, vary=0.3),
            solid=False,
        )
    elif kind == 5:
        w, d = 0.16, 0.12
        case = p.pick(r, "plastic", "metal")
        b.box((-w, -d, 0), (w, d, 0.015), {"top": _framed(p, r, "keyboard"), "rest": case}, solid=False)
        b.box((-w, d, 0.01), (w, d + 0.01, 0.22), {"front": _framed(p, r, "screen", 0.8), "rest": case}, solid=False)
    else:
        with b.at(0, 0):
            plant(b, p, r.uniform(0.15, 0.3))


def chair(b: Builder, p: Pool) -> None:
    """On four legs, or an office chair on a star."""
    r = b.rng
    seat = p.pick(r, "fabric", "wood", "plastic", metres=0.5, vary=0.25)
    legs = p.pick(r, "metal", "wood", "plastic", metres=0.5).tinted(0.7)
    w, d, h, back = r.uniform(0.4, 0.52), r.uniform(0.4, 0.5), r.uniform(0.42, 0.5), r.uniform(0.75, 1.15)
    t = r.uniform(0.03, 0.09)
    b.box((-w / 2, -d / 2, h - t), (w / 2, d / 2, h), seat, skip=(), solid=False)
    if r.random() < 0.5:
        b.cylinder((0, 0, 0.1), 0.03, h - 0.1 - t, legs, sides=6, solid=False)
        for i in range(5):
            with b.at(0, 0, 0, 2 * np.pi * i / 5 + 0.3):
                b.box((0, -0.025, 0.05), (0.28, 0.025, 0.1), legs, solid=False)
        b.box((-w / 2 + 0.02, d / 2 - 0.03, h + 0.12), (w / 2 - 0.02, d / 2 + 0.03, back), seat, skip=(), solid=False)
        b.box((-0.03, d / 2, h - t), (0.03, d / 2 + 0.04, h + 0.2), legs, solid=False)
        if r.random() < 0.6:
            for x in (-w / 2 - 0.04, w / 2):
                b.box((x, -d / 4, h + 0.16), (x + 0.05, d / 4, h + 0.2), legs, skip=(), solid=False)
                b.box((x, -0.03, h - t), (x + 0.03, 0.03, h + 0.17), legs, solid=False)
    else:
        for x in (-w / 2, w / 2 - 0.035):
            for y in (-d / 2, d / 2 - 0.035):
                b.box((x, y, 0), (x + 0.035, y + 0.035, h - t if y < 0 else back), legs, solid=False)
        for z in np.arange(h + 0.1, back - 0.02, r.uniform(0.1, 0.4)):
            b.box((-w / 2, d / 2 - 0.03, z), (w / 2, d / 2 - 0.005, min(back, z + 0.09)), seat, skip=(), solid=False)
    b.block((-w / 2, -d / 2, 0), (w / 2, d / 2, back))


def shelf(b: Builder, p: Pool, width: float | None = None, height: float | None = None) -> None:
    """An open shelf with books, boxes and things."""
    r = b.rng
    w, d, h = width or r.uniform(0.6, 1.6), r.uniform(0.25, 0.45), height or r.uniform(0.8, 2.3)
    wood = p.pick(r, "wood", "plastic", "metal", metres=r.uniform(0.6, 1.2))
    for x in (-w / 2, w / 2 - 0.025):
        b.box((x, -d / 2, 0), (x + 0.025, d / 2, h), wood, solid=False)
    if r.random() < 0.7:
        b.box((-w / 2, d / 2 - 0.01, 0), (w / 2, d / 2, h), wood.tinted(0.8), solid=False)
    levels = np.linspace(0.06, h - 0.02, max(2, round(h / r.uniform(0.28, 0.42)) + 1))
    for z, above in zip(levels, [*levels[1:], None], strict=True):
        b.box((-w / 2, -d / 2, z - 0.02), (w / 2, d / 2, z), wood, skip=(), solid=False)
        if above is None:
            room = 0.35 if r.random() < 0.4 else 0.0
        else:
            room = above - z - 0.04
        x = -w / 2 + 0.04
        while room > 0.1 and x < w / 2 - 0.12:
            step = r.uniform(0.1, 0.45)
            step = min(step, w / 2 - 0.03 - x)
            kind = r.random()
            tall = room * r.uniform(0.5, 0.97)
            if kind < 0.5:
                front = _framed(p, r, "books")
                b.box(
                    (x, -d / 2 + r.uniform(0.01, 0.08), z),
                    (x + step, d / 2 - 0.04, z + tall),
                    {"front": front, "rest": p.pick(r, "plastic", "paper")},
                    solid=False,
                )
            elif kind < 0.8:
                b.box(
                    (x, -d / 2 + r.uniform(0.0, 0.1), z),
                    (x + step * 0.9, d / 2 - 0.05, z + tall),
                    p.pick(r, "cardboard", "plastic", "drawers", "photograph", metres=0.0, vary=0.25),
                    solid=False,
                )
            elif kind < 0.9:
                b.cylinder(
                    (x + step / 2, 0, z),
                    min(step, d) * 0.35,
                    tall * 0.8,
                    p.pick(r, "plastic", "metal", metres=0.3, vary=0.3),
                    sides=8,
                    solid=False,
                )
            x += step + r.exponential(0.02)
    b.block((-w / 2, -d / 2, 0), (w / 2, d / 2, h))


def cabinet(b: Builder, p: Pool) -> None:
    """A closed cupboard or a row of drawers, perhaps with things on it."""
    r = b.rng
    w, d, h = r.uniform(0.4, 1.8), r.uniform(0.35, 0.6), float(r.choice([0.7, 1.1, 1.6, 2.0])) * r.uniform(0.85, 1.15)
    b.box((-w / 2, -d / 2, 0), (w / 2, d / 2, h), _fronted(b, p, "drawers" if r.random() < 0.7 else "door"))
    if h < 1.4:
        for _ in range(int(r.integers(0, 5))):
            with b.at(r.uniform(-w / 2 + 0.12, w / 2 - 0.12), r.uniform(-0.08, 0.08), h, r.uniform(-3, 3)):
                trinket(b, p)
    elif r.random() < 0.4:
        box(b, p, h, min(w, 0.5))


def box(b: Builder, p: Pool, z: float = 0.0, largest: float = 0.6) -> None:
    """A cardboard box or a crate."""
    r = b.rng
    w, d, h = r.uniform(0.4, 1.0, 3) * largest
    side = p.pick(r, "cardboard", "cardboard", "plastic", "photograph", metres=0.0, vary=0.15)
    b.box((-w / 2, -d / 2, z), (w / 2, d / 2, z + h), side)


def sofa(b: Builder, p: Pool) -> None:
    """A couch or an armchair."""
    r = b.rng
    cloth = p.pick(r, "fabric", "fabric", "plastic", metres=r.uniform(0.3, 0.8), vary=0.2)
    w, d, seat, back = (
        float(r.choice([0.8, 1.6, 2.1])),
        r.uniform(0.75, 0.95),
        r.uniform(0.38, 0.46),
        r.uniform(0.7, 0.95),
    )
    arm = r.uniform(0.1, 0.22)
    b.box((-w / 2, -d / 2, 0.06), (w / 2, d / 2 - 0.2, seat), cloth)
    b.box((-w / 2, d / 2 - 0.22, 0.06), (w / 2, d / 2, back), cloth.tinted(0.95))
    for x in (-w / 2, w / 2 - arm):
        b.box((x, -d / 2 - 0.01, 0.06), (x + arm, d / 2, seat + 0.18), cloth)
    for _ in range(int(r.integers(0, 4))):
        with b.at(r.uniform(-w / 2 + 0.35, w / 2 - 0.35), d / 2 - 0.32, seat, r.normal(0, 0.4)):
            b.box((-0.2, -0.07, 0), (0.2, 0.07, 0.36), p.pick(r, "fabric", metres=0.4, vary=0.3), solid=False)


def plant(b: Builder, p: Pool, height: float | None = None) -> None:
    """A pot with a cluster of leaves."""
    r = b.rng
    h = height or r.uniform(0.5, 1.8)
    pot = h * r.uniform(0.2, 0.3)
    b.cylinder(
        (0, 0, 0), pot * 0.4, pot, p.pick(r, "plastic", "concrete", metres=0.5), top_radius=pot * 0.52, solid=False
    )
    green = p.pick(r, "leaf", metres=0.0)
    for _ in range(int(r.integers(10, 36))):
        yaw, lift = r.uniform(0, 2 * np.pi), r.uniform(-0.3, 1.2)
        z = r.uniform(pot, 0.8 * h)
        out = np.array([np.cos(yaw) * np.cos(lift), np.sin(yaw) * np.cos(lift), np.sin(lift)])
        side = np.array([-np.sin(yaw), np.cos(yaw), r.normal(0, 0.3)]) * h * r.uniform(0.03, 0.08)
        root = np.array([*r.normal(0, 0.03 * h, 2), z])
        tip = root + out * h * r.uniform(0.15, 0.35)
        b.quad([root - side, tip - side, tip + side, root + side], green.tinted(r.uniform(0.6, 1.3)))
    b.block((-0.2 * h, -0.2 * h, 0), (0.2 * h, 0.2 * h, h))


def lamp(b: Builder, p: Pool) -> None:
    """A standing lamp."""
    r = b.rng
    h = r.uniform(1.2, 1.9)
    pole = p.pick(r, "metal").tinted(0.6)
    b.cylinder((0, 0, 0), 0.15, 0.03, pole, sides=8, solid=False)
    b.cylinder((0, 0, 0), 0.015, h, pole, sides=5, solid=False)
    b.cylinder(
        (0, 0, h - 0.05), 0.2, 0.28, replace(p.pick(r, "fabric", vary=0.03), emission=1.3), top_radius=0.12, solid=False
    )
    b.block((-0.2, -0.2, 0), (0.2, 0.2, h + 0.2))


def person(b: Builder, p: Pool) -> None:
    """Roughly a standing person, of cylinders."""
    r = b.rng
    s = r.uniform(0.9, 1.08)
    shirt, trousers = (p.pick(r, "fabric", metres=0.5, vary=0.25) for _ in range(2))
    skin = replace(p.pick(r, "plaster", vary=0.0), tint=(0.8, 0.58 * r.uniform(0.5, 1.1), 0.45 * r.uniform(0.5, 1.1)))
    for x in (-0.1, 0.1):
        b.cylinder((x * s, 0, 0), 0.07 * s, 0.85 * s, trousers, top_radius=0.1 * s, sides=7, solid=False)
        b.cylinder((2.3 * x * s, 0, 0.75 * s), 0.04 * s, 0.65 * s, shirt, top_radius=0.06 * s, sides=6, solid=False)
    b.cylinder((0, 0, 0.82 * s), 0.17 * s, 0.6 * s, shirt, top_radius=0.2 * s, sides=9, solid=False)
    b.cylinder((0, 0, 1.42 * s), 0.06 * s, 0.1 * s, skin, sides=6, solid=False)
    b.cylinder((0, 0, 1.5 * s), 0.09 * s, 0.14 * s, skin, top_radius=0.1 * s, sides=8, solid=False)
    b.cylinder(
        (0, 0, 1.63 * s),
        0.105 * s,
        0.1 * s,
        p.pick(r, "leaf", "wood").tinted(0.4),
        top_radius=0.06 * s,
        sides=8,
        solid=False,
    )
    b.block((-0.3, -0.25, 0), (0.3, 0.25, 1.8 * s))


def heap(b: Builder, p: Pool) -> None:
    """Bags, boxes and cables on the floor."""
    r = b.rng
    for _ in range(int(r.integers(1, 5))):
        with b.at(r.normal(0, 0.25), r.normal(0, 0.25), 0, r.uniform(-3, 3)):
            kind = r.random()
            if kind < 0.5:
                box(b, p, 0, r.uniform(0.2, 0.5))
            elif kind < 0.7:
                b.cylinder(
                    (0, 0, 0),
                    r.uniform(0.1, 0.2),
                    r.uniform(0.2, 0.5),
                    p.pick(r, "plastic", "metal", metres=0.5, vary=0.3),
                )
            else:
                trinket(b, p)


def rack(b: Builder, p: Pool, bays: int, levels: int) -> None:
    """Pallet racks, fronts to -y, from x = 0."""
    r = b.rng
    bay, d, rise = r.uniform(1.8, 2.8), r.uniform(0.8, 1.1), r.uniform(1.1, 1.7)
    post, beam = (p.pick(r, "metal", "plastic", metres=0.4, vary=0.4) for _ in range(2))
    top = rise * levels
    for i in range(bays + 1):
        for y in (-d / 2, d / 2 - 0.08):
            b.box((i * bay - 0.04, y, 0), (i * bay + 0.04, y + 0.08, top), post, solid=False)
        b.box(
            (i * bay - 0.02, -d / 2, top * 0.4), (i * bay + 0.02, d / 2, top * 0.4 + 0.04), post, skip=(), solid=False
        )
    for level in range(levels):
        z = level * rise
        if level:
            for y in (-d / 2, d / 2 - 0.05):
                b.box((0, y, z - 0.11), (bays * bay, y + 0.05, z), beam, skip=(), solid=False)
            b.box((0, -d / 2, z - 0.02), (bays * bay, d / 2, z), p.pick(r, "wood", "metal"), skip=(), solid=False)
        x = 0.1
        while x < bays * bay - 0.9:
            w = r.uniform(0.6, 1.2)
            if r.random() < 0.85:
                with b.at(x + w / 2, 0, z, r.normal(0, 0.03)):
                    pallet(b, p, w * 0.9, d * 0.9, (rise - 0.2) * r.uniform(0.3, 0.95))
            x += w
    b.block((0, -d / 2, 0), (bays * bay, d / 2, top))


def pallet(b: Builder, p: Pool, w: float, d: float, h: float) -> None:
    """A pallet with boxes on it, or one big load."""
    r = b.rng
    wood = p.pick(r, "wood", metres=0.6)
    b.box((-w / 2, -d / 2, 0.1), (w / 2, d / 2, 0.14), wood, skip=(), solid=False)
    for x in (-w / 2, -0.05, w / 2 - 0.1):
        b.box((x, -d / 2, 0), (x + 0.1, d / 2, 0.1), wood, solid=False)
    b.block((-w / 2, -d / 2, 0), (w / 2, d / 2, 0.14 + h))
    n, m = (int(r.integers(1, 4)), int(r.integers(1, 4)))
    kind = p.pick(r, "cardboard", "cardboard", "plastic", "photograph", metres=0.0, vary=0.15)
    for i in range(n):
        for k in range(m):
            if r.random() < 0.93:
                x0, z0 = -w / 2 + i * w / n, 0.14 + k * h / m
                y0 = -d / 2 + r.uniform(0, 0.06)
                face = kind if r.random() < 0.6 else p.pick(r, "cardboard", metres=0.0)
                b.box((x0, y0, z0), (x0 + w / n - 0.012, d / 2 - 0.02, z0 + h / m - 0.006), face, solid=False)
