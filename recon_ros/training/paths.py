# SPDX-License-Identifier: Apache-2.0
"""Camera paths through a scene: hand-held or on a robot, steps like a video's or like a keyframe selector's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon_ros.training.render_cpu import LitScene, rays_of
from recon_ros.training.scenes import Scene
from recon_ros.training.surfaces import Floats

Rng = np.random.Generator
GRID = (16, 12)  # of the coarse look that judges a view
CLEARANCE = 0.2
NEAREST = 0.25
MEDIAN_RANGE = (0.7, 6.5)


@dataclass
class _State:
    """Where a camera is: position, and yaw, pitch (up positive), roll in radians."""

    position: NDArray[np.float64]
    angles: NDArray[np.float64]

    def pose(self) -> NDArray[np.float64]:
        """(4, 4) T_world_camera, optical."""
        yaw, pitch, roll = self.angles
        forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        down = np.cross(forward, right)
        c, s = np.cos(roll), np.sin(roll)
        T = np.eye(4)
        T[:3, :3] = np.stack([c * right + s * down, -s * right + c * down, forward], 1)
        T[:3, 3] = self.position
        return T


class Walker:
    """Makes paths through one scene.

    Args:
        scene, lit: the layout, and the same as a ray caster.
        K: (4,) fx, fy, cx, cy in pixels.
        width, height: image size in pixels.
    """

    def __init__(self, scene: Scene, lit: LitScene, K: Floats, width: int, height: int, rng: Rng) -> None:
        self.scene, self.lit, self.rng = scene, lit, rng
        step = width / GRID[0], height / GRID[1]
        coarse = np.array([K[0] / step[0], K[1] / step[1], (K[2] + 0.5) / step[0] - 0.5, (K[3] + 0.5) / step[1] - 0.5])
        self.directions = rays_of(coarse.astype(np.float32), *GRID)
        self.fov = 2 * float(np.arctan(width / 2 / K[0]))

    def path(self, frames: int) -> NDArray[np.float64] | None:
        """(F, 4, 4) T_world_camera, or None where no good view was found."""
        r = self.rng
        keyframes = r.random() < 0.5
        back = r.random() < 0.3
        out = frames // 2 + 1 if back else frames
        states: list[_State] = []
        start = self._start()
        if start is None:
            return None
        states.append(start)
        heading = self._drift()
        turn = r.choice([-1.0, 1.0])
        level = start.angles[1:].copy()
        while len(states) < out:
            for _ in range(12):
                candidate = self._next(states[-1], keyframes, heading, turn, level)
                if self._good(candidate, len(states)):
                    break
                heading, turn = self._drift(), -turn
            else:
                candidate = self._jittered(states[-1], 0.02, 0.02)
                if not self._good(candidate, len(states), strict=False):
                    return None
            states.append(candidate)
            if r.random() < 0.15:
                heading = self._drift()
            if r.random() < 0.15:
                turn = -turn
        while len(states) < frames:  # the way back, not quite the same
            old = states[2 * out - 2 - len(states)] if 2 * out - 2 - len(states) >= 0 else states[0]
            candidate = self._jittered(old, 0.06, 0.05)
            states.append(candidate if self._good(candidate, len(states), strict=False) else old)
        return np.stack([state.pose() for state in states])

    def _drift(self) -> float:
        """Direction of the motion against the view, radians."""
        r = self.rng
        return float(r.choice([0.0, np.pi / 2, -np.pi / 2, np.pi], p=[0.5, 0.2, 0.2, 0.1]) + r.normal(0, 0.4))

    def _start(self) -> _State | None:
        r = self.rng
        tall = self.scene.size[2]
        for _ in range(60):
            where = r.uniform(CLEARANCE, self.scene.size[:2] - CLEARANCE)
            kind = r.random()
            z = r.uniform(1.15, 1.8) if kind < 0.72 else (r.uniform(0.3, 0.8) if kind < 0.9 else r.uniform(0.5, 2.0))
            robot = kind >= 0.72 and r.random() < 0.6
            pitch = r.normal(-2, 4) if robot else r.normal(-10, 11)
            pitch = float(np.clip(pitch, -35, 20))
            roll = 0.0 if robot else float(np.clip(r.normal(0, 3), -8, 8))
            angles = np.array([r.uniform(-np.pi, np.pi), np.deg2rad(pitch), np.deg2rad(roll)])
            state = _State(np.array([*where, min(z, tall - 0.25)]), angles)
            if self._good(state, 0, fussy=True):
                return state
        return None

    def _next(self, state: _State, keyframes: bool, heading: float, turn: float, level: NDArray[np.float64]) -> _State:
        r = self.rng
        limit = np.rad2deg(self.fov) / 3
        if keyframes:
            length, angle = r.uniform(0.1, 0.5), r.uniform(0, min(20.0, limit))
        else:
            length, angle = r.uniform(0.03, 0.15), r.uniform(1, min(8.0, limit))
        if r.random() < 0.12:
            length *= 0.2
        if abs(np.cos(heading)) < 0.5 and r.random() < 0.7:  # going sideways: look back at what was seen
            turn = np.sign(np.sin(heading)) * -1.0
        way = state.angles[0] + heading
        position = state.position + np.array([length * np.cos(way), length * np.sin(way), 0.15 * length * r.normal()])
        share = r.dirichlet([3.0, 1.2, 0.6]) * np.deg2rad(angle)
        angles = state.angles + np.array([turn * share[0], r.normal() * share[1], r.normal() * share[2]])
        angles[1:] += 0.25 * (level - angles[1:])
        angles[1], angles[2] = np.clip(angles[1], -0.65, 0.38), np.clip(angles[2], -0.16, 0.16)
        return _State(position, angles)

    def _jittered(self, state: _State, metres: float, radians: float) -> _State:
        r = self.rng
        return _State(state.position + r.normal(0, metres, 3), state.angles + r.normal(0, radians, 3) * (1, 0.6, 0.3))

    def _good(self, state: _State, frame: int, strict: bool = True, fussy: bool = False) -> bool:
        """Free of solids, and a view worth having."""
        p, size = state.position, self.scene.size
        if (p < CLEARANCE).any() or (p > size - CLEARANCE).any():
            return False
        low, high = self.scene.solids[:, 0] - CLEARANCE, self.scene.solids[:, 1] + CLEARANCE
        if ((p > low) & (p < high)).all(1).any():
            return False
        T = state.pose()
        depth, quads = self.lit.distances(p.astype(np.float32), self.directions @ T[:3, :3].T.astype(np.float32))
        if frame and self.scene.movers and depth.min() < NEAREST:
            return False
        median = float(np.median(depth))
        if depth.min() < NEAREST or (strict and not MEDIAN_RANGE[0] < median < MEDIAN_RANGE[1]):
            return False
        # Bare walls are seen now and then, as in real offices, but not at every second look.
        return not fussy or len(np.unique(quads)) > self.rng.choice([2, 8, 14, 20, 20])
