# SPDX-License-Identifier: Apache-2.0
"""A map as plain data: what is saved, loaded and merged. Everything else a map has is derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Keyframe, Trajectory
from recon_ros.geometry import se3
from recon_ros.mapping.loops import Loop
from recon_ros.mapping.pose_graph import GraphProblem, PoseGraph
from recon_ros.mapping.trajectory import corrected

SAME_MOUNT = (0.01, float(np.radians(1.0)))
"""Two mounts are one when they differ by less, metres and radians."""


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
        is_level: the world's y axis is that of gravity (`geometry.gravity`); else the world is the first camera's
            frame.
        T_base_camera: (4, 4) where the camera is on the robot, None where nobody knows.
    """

    keyframes: tuple[Keyframe, ...]
    next_id: int
    descriptors: Mapping[int, NDArray[np.float32]]
    graph: GraphProblem
    loops: Mapping[int, Loop]
    rejected: frozenset[int]
    path: NDArray[Any]
    source: SourceFacts
    is_level: bool = False
    T_base_camera: se3.Matrix | None = None

    @cached_property
    def placed(self) -> dict[int, Keyframe]:
        """Keyframes by id whose place in the world is known: those that are tied to the oldest. The others are of
        submaps that were never joined to the map, and in frames of their own."""
        first = next(iter(PoseGraph.restored(self.graph).components(self.rejected)), set())
        return {k.id: k for k in self.keyframes if k.id in first}

    @property
    def unplaced(self) -> int:
        """Tracked frames whose place in the world is not known."""
        return int(np.count_nonzero(~np.isin(self.path["reference_id"], list(self.placed))))

    @property
    def believed_loops(self) -> int:
        return len(self.loops.keys() - self.rejected)

    @property
    def unit(self) -> str:
        """In words."""
        return "metres" if self.source.is_metric else "of no known scale"

    def trajectory(self) -> Trajectory:
        """T_world_camera of the tracked frames after all corrections; of those whose place is known."""
        return corrected(self.path, self.placed)

    def keyframe_trajectory(self) -> Trajectory:
        """T_world_camera of the keyframes by id, without scale; of those whose place is known."""
        keyframes = list(self.placed.values())
        poses = np.array([k.T_world_camera for k in keyframes]).reshape(-1, 4, 4)
        return Trajectory(np.array([k.stamp_ns for k in keyframes], dtype=np.int64), se3.rigid(poses))


def other_mount(before: se3.Matrix | None, now: se3.Matrix) -> str | None:
    """A sentence when a camera sits elsewhere on the robot than when a map was made, None when it does not, or nobody
    knows; both (4, 4) T_base_camera.
    """
    if before is None:
        return None
    moved, turned = se3.distance(se3.inverse(before) @ now)
    if moved < SAME_MOUNT[0] and turned < SAME_MOUNT[1]:
        return None
    return (
        f"the map was made with the camera {moved * 100:.0f} cm and {np.degrees(turned):.1f}° away from where it is on "
        "the robot now; the map's frame stays the one it was made in. If nobody has moved the camera, correct its "
        "mount (TF or base_to_camera)"
    )
