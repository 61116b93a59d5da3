# SPDX-License-Identifier: Apache-2.0
"""A pose graph of a camera that drove two laps and drifted, for tests that close and thin it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recon_ros.geometry import se3
from recon_ros.mapping.pose_graph import Edge, PoseGraph, Solution, optimise

STEP = 0.5
LAP = 150
LOOPS = tuple(range(LAP, 2 * LAP, 15))
NOISE = np.repeat([0.005, 0.001], 3)
LOOP_NOISE = np.repeat([0.01, 0.002], 3)
YAW_DRIFT = np.radians(1.0) / 10
SCALE_DRIFT = 0.01


def two_laps() -> NDArray[np.float64]:
    """(301, 4, 4) a camera that drives twice around a rectangle of 75 m, 150 m in all, turning on arcs of 2 m."""
    turn, straight = np.pi * 2.0 / 2, [20.0, (75 - 40 - 4 * np.pi) / 2] * 2
    ends = np.cumsum([length for s in straight for length in (s, turn)])
    at = STEP * np.arange(LAP + 1)
    turned = sum(np.clip(at - end + turn, 0, turn) for end in ends[1::2]) / 2.0
    lap = [np.eye(4)]
    for angle in np.diff(turned):
        lap.append(lap[-1] @ se3.exp(np.array([0, 0, STEP, 0, angle, 0])))
    assert se3.distance(lap[-1])[0] < 0.1
    return np.stack(lap[:-1] * 2 + lap[:1])


@dataclass
class World:
    truth: NDArray[np.float64]
    graph: PoseGraph
    loops: list[int]

    def errors(self, poses: dict[int, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Distance of each pose from the truth, metres."""
        return np.array([np.linalg.norm(pose[:3, 3] - self.truth[i][:3, 3]) for i, pose in poses.items()])

    def add_loop(self, a: int, b: int, shift: NDArray[np.float64]) -> int:
        T = se3.inverse(self.truth[a]) @ self.truth[b] @ se3.exp(shift)
        return self.graph.add_edge(Edge(a, b, T, np.diag(LOOP_NOISE**-2), "loop"))


def driven(scale_drifts: bool, loops: tuple[int, ...] = LOOPS) -> World:
    """A fresh copy of `drive`."""
    return deepcopy(drive(scale_drifts, loops))


@cache
def drive(scale_drifts: bool, loops: tuple[int, ...]) -> World:
    """Two laps as tracking sees them: noise, 1 % too long or growing by 1 % in 10 m, and a yaw of 1° in 10 m."""
    rng = np.random.default_rng(3)
    truth = two_laps()
    drift = se3.exp(np.array([0, 0, 0, 0, YAW_DRIFT * STEP, 0]))
    if scale_drifts:
        drift = drift @ se3.make(np.eye(3), np.zeros(3), np.exp(SCALE_DRIFT / 10 * STEP))
    steps = []
    for a, b in pairwise(truth):
        step = se3.inverse(a) @ b
        step[:3, 3] *= 1 if scale_drifts else 1 + SCALE_DRIFT
        steps.append(step @ drift @ se3.exp(rng.normal(0, NOISE)))
    graph = PoseGraph(scale_drifts)
    pose = truth[0]
    graph.add_node(0, pose)
    for i, step in enumerate(steps):
        pose = pose @ step
        graph.add_node(i + 1, pose)
        graph.add_edge(Edge(i, i + 1, step, np.diag(NOISE**-2), log_scale_sigma=0.002))
        if i > 0:
            T = steps[i - 1] @ step @ se3.exp(rng.normal(0, 2 * NOISE))
            graph.add_edge(Edge(i - 1, i + 1, T, np.diag((2 * NOISE) ** -2), "covisible", log_scale_sigma=0.004))
    world = World(truth, graph, [])
    world.loops = [world.add_loop(b - LAP, b, rng.normal(0, LOOP_NOISE)) for b in loops]
    return world


@cache
def solved(scale_drifts: bool) -> Solution:
    return optimise(driven(scale_drifts).graph.snapshot())
