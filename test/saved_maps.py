# SPDX-License-Identifier: Apache-2.0
"""Small maps for tests of what saves, loads and joins them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from helpers import make_keyframe, random_pose

from recon_ros.config import Config, nested
from recon_ros.export.snapshot import Snapshot, write_snapshot
from recon_ros.frame import Camera, Cloud
from recon_ros.geometry import se3
from recon_ros.geometry.features import Features
from recon_ros.mapping.loops import Loop
from recon_ros.mapping.map_data import MapData, SourceFacts
from recon_ros.mapping.pose_graph import Edge, PoseGraph
from recon_ros.mapping.trajectory import TrajectoryLog

DEPTH = SourceFacts("depth", "depth", "", is_metric=True)
CLOUD = Cloud(np.ones((3, 3), np.float32), np.zeros((3, 3), np.uint8), np.ones(3, np.float32))


def made_up(keyframes: int = 4, scale_drifts: bool = True) -> MapData:
    """A map of random numbers that has everything: gaps in the ids, several sizes, loops, descriptors."""
    rng = np.random.default_rng(keyframes)
    graph, log, made = PoseGraph(scale_drifts), TrajectoryLog(1000), []
    for i in range(keyframes):
        pose = random_pose(rng)
        scaled = se3.make(pose[:3, :3], pose[:3, 3], rng.uniform(0.5, 2.0) if scale_drifts else 1.0)
        camera = Camera.from_focal(20 + 4 * i, 10 + 2 * i, 18.0)
        n = 5 * i
        features = Features(
            rng.uniform(0, 10, (n, 2)).astype(np.float32),
            rng.integers(0, 256, (n, 32), dtype=np.uint8),
            rng.normal(size=(n, 3)).astype(np.float32),
        )
        keyframe = make_keyframe(2 * i, scaled, camera=camera)
        keyframe.points[0, 0] = np.nan
        made.append(replace(keyframe, features=features, frame_id=("left", "right")[i % 2]))
        down = rng.normal(size=3)
        graph.add_node(2 * i, scaled, down / np.linalg.norm(down) if i % 2 else None)
        if i:
            a = made[i - 1]
            T_a_b = se3.inverse(a.T_world_camera) @ scaled
            graph.add_edge(Edge(a.id, 2 * i, T_a_b, np.eye(6) * 100))
        log.append(1_700_000_000_123_456_789 + i, 2 * i, random_pose(rng), random_pose(rng))
    loops = {}
    for evidence in ((), (2, 4)):
        T_a_b = se3.inverse(made[0].T_world_camera) @ made[-1].T_world_camera
        edge = graph.add_edge(Edge(0, made[-1].id, T_a_b, np.eye(6) * 50, "loop"))
        loops[edge] = Loop(0, made[-1].id, T_a_b, np.eye(6) * 50, 33, evidence)
    return MapData(
        keyframes=tuple(made),
        next_id=2 * keyframes + 3,
        descriptors={made[1].id: rng.normal(size=8).astype(np.float32)},
        graph=graph.snapshot(),
        loops=loops,
        rejected=frozenset({max(loops)}),
        path=log.rows(),
        source=replace(DEPTH, is_metric=not scale_drifts),
        is_level=True,
        T_base_camera=random_pose(rng),
    )


def save(data: MapData, folder: Path) -> Path:
    return write_snapshot(Snapshot(data, CLOUD, nested(Config())), folder)
