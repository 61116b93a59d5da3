# SPDX-License-Identifier: Apache-2.0
"""A map as plain data: what is saved, loaded and merged. Everything else a map has is derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Keyframe, Trajectory
from recon_ros.geometry import se3
from recon_ros.mapping.loops import Loop
from recon_ros.mapping.pose_graph import GraphProblem
from recon_ros.mapping.trajectory import corrected


@dataclass(frozen=True)
class SourceFacts:
    """What made a map's points: name, family and weight licence of the model card, and whether it knows the metre."""

    name: str
    family: str
    weight_licence: str
    is_metric: bool


@dataclass(frozen=True, eq=False)
class MapData:
    """A map at one moment. Nothing in it changes afterwards, so another thread may write it.

    Attributes:
        keyframes: by id.
        next_id: of the next keyframe; ids of those that were evicted are never used again.
        descriptors: keyframe id → (D,) float32 place descriptor of a network, for those that have one.
        graph: what ties the keyframes together; its nodes are the keyframes.
        loops: edge id → loop, believed or not.
        rejected: ids of those that are not believed.
        path: (N,) of dtype `trajectory.POSE`, the tracked frames of all sessions in the order of processing.
        source: what made the points.
    """

    keyframes: tuple[Keyframe, ...]
    next_id: int
    descriptors: Mapping[int, NDArray[np.float32]]
    graph: GraphProblem
    loops: Mapping[int, Loop]
    rejected: frozenset[int]
    path: NDArray[Any]
    source: SourceFacts

    @property
    def believed_loops(self) -> int:
        return len(self.loops.keys() - self.rejected)

    @property
    def unit(self) -> str:
        """In words."""
        return "metres" if self.source.is_metric else "of no known scale"

    def trajectory(self) -> Trajectory:
        """T_world_camera of all tracked frames after all corrections, without scale."""
        path = corrected(self.path, {k.id: k for k in self.keyframes})
        return Trajectory(path.stamps_ns, rigid(path.poses))

    def keyframe_trajectory(self) -> Trajectory:
        """T_world_camera of the keyframes by id, without scale."""
        poses = np.array([k.T_world_camera for k in self.keyframes]).reshape(-1, 4, 4)
        return Trajectory(np.array([k.stamp_ns for k in self.keyframes], dtype=np.int64), rigid(poses))


def rigid(T: se3.Matrix) -> se3.Matrix:
    """(N, 4, 4) Sim(3) poses without their scale."""
    result = T.copy()
    result[:, :3, :3] /= np.cbrt(np.linalg.det(T[:, :3, :3]))[:, None, None]
    return result
