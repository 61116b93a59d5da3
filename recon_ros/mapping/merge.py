# SPDX-License-Identifier: Apache-2.0
"""Two saved maps as one, where they show a common place: loops between them, verified as those within a map are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import Config
from recon_ros.errors import ReconError
from recon_ros.frame import Keyframe
from recon_ros.geometry import se3
from recon_ros.mapping.loops import Loop, LoopDetector, candidates
from recon_ros.mapping.map_data import MapData
from recon_ros.mapping.pose_graph import Edge, GraphProblem, PoseGraph, optimise
from recon_ros.mapping.pose_graph_problem import edge_of
from recon_ros.memory.places import PlaceIndex
from recon_ros.memory.sides import median_depth
from recon_ros.memory.store import KeyframeStore

INFLATION = 25.0
"""Registrations take errors for independent that share causes, as in `atlas`."""
LOOPS_NEEDED = 2
"""Loops that must put the second map at one place."""
MAX_TURN = 0.3
"""Two loops that turn the second map more differently than this contradict each other, radians."""

Matrix = NDArray[np.float64]


def merge(
    first: MapData, second: MapData, config: Config, report: Callable[[int], None] = lambda done: None
) -> MapData:
    """One map in the frame of the first; the second's ids follow the first's.

    Args:
        first, second: maps of one source.
        config: of the search for loops.
        report: is told how many of the second's keyframes have been looked at.

    Raises:
        ReconError: when the maps are of different sources, or no place is found that both show.
    """
    if first.source != second.source:
        raise ReconError(
            f"maps of different sources cannot be joined: '{first.source.name}' and '{second.source.name}'"
        )
    second = _renumbered(second, first.next_id)
    loops = _find_loops(first, second, config, report)
    agreed, T_first_second = _agreed(loops, first, second, config)
    if len(agreed) < LOOPS_NEEDED:
        raise ReconError(
            f"the maps could not be joined: {len(agreed)} verified views of a common place agree with each other, "
            f"{LOOPS_NEEDED} are needed; drive once more through a part that both maps show"
        )
    return _joined(first, _moved(second, T_first_second), agreed)


def _renumbered(data: MapData, offset: int) -> MapData:
    """The map with its keyframes counted on from `offset`."""
    edges, path = data.graph.edges.copy(), data.path.copy()
    edges["a"] += offset
    edges["b"] += offset
    path["reference_id"] += offset
    return replace(
        data,
        keyframes=tuple(replace(k, id=k.id + offset) for k in data.keyframes),
        next_id=data.next_id + offset,
        descriptors={i + offset: descriptor for i, descriptor in data.descriptors.items()},
        graph=replace(data.graph, ids=data.graph.ids + offset, edges=edges),
        loops={edge: _loop_renumbered(loop, offset) for edge, loop in data.loops.items()},
        path=path,
    )


def _loop_renumbered(loop: Loop, offset: int) -> Loop:
    return replace(loop, a=loop.a + offset, b=loop.b + offset, evidence=tuple(i + offset for i in loop.evidence))


def _find_loops(first: MapData, second: MapData, config: Config, report: Callable[[int], None]) -> list[Loop]:
    """Loops from keyframes of the first map to those of the second."""
    store, index, detector = KeyframeStore(config.memory.max_keyframes), PlaceIndex(), LoopDetector(config)
    store.restore((*first.keyframes, *second.keyframes), second.next_id)
    for keyframe in first.keyframes:
        index.add(keyframe.id, keyframe.features, first.descriptors.get(keyframe.id))
    store.split(part for data in (first, second) for part in PoseGraph.restored(data.graph).components(data.rejected))
    found: list[Loop] = []
    for done, keyframe in enumerate(second.keyframes, 1):
        alike = candidates(keyframe, store, index, config.loops, second.descriptors.get(keyframe.id))
        found += detector.detect(keyframe, store, alike)
        report(done)
    return found


def _agreed(loops: Sequence[Loop], first: MapData, second: MapData, config: Config) -> tuple[list[Loop], Matrix]:
    """The most loops that put the second map at one place, as far as it may have drifted, and T_first_second."""
    a, b = {k.id: k for k in first.keyframes}, {k.id: k for k in second.keyframes}
    best: tuple[list[Loop], Matrix] = [], np.eye(4)
    for loop in sorted(loops, key=lambda loop: -loop.inliers):
        T_first_second = a[loop.a].T_world_camera @ loop.T_a_b @ se3.inverse(b[loop.b].T_world_camera)
        agreed = [other for other in loops if _agree(T_first_second, loop, other, a, b, config.loops.max_drift)]
        if len(agreed) > len(best[0]):
            best = agreed, T_first_second
    return best


def _agree(
    T_first_second: Matrix, loop: Loop, other: Loop, a: dict[int, Keyframe], b: dict[int, Keyframe], max_drift: float
) -> bool:
    """Whether another loop puts its keyframe where this one puts it."""
    there = b[other.b].T_world_camera
    expected, said = T_first_second @ there, a[other.a].T_world_camera @ other.T_a_b
    way = float(np.linalg.norm(there[:3, 3] - b[loop.b].T_world_camera[:3, 3]))
    allowed = max_drift * (way + median_depth(b[other.b]) * se3.scale_of(there)) * se3.scale_of(T_first_second)
    apart = float(np.linalg.norm(expected[:3, 3] - said[:3, 3]))
    return apart < allowed and se3.distance(se3.inverse(expected) @ said)[1] < MAX_TURN


def _moved(data: MapData, T: Matrix) -> MapData:
    """The map in another frame."""
    path = data.path.copy()
    path["T_world_camera"] = T @ path["T_world_camera"]
    return replace(
        data,
        keyframes=tuple(replace(k, T_world_camera=T @ k.T_world_camera) for k in data.keyframes),
        graph=replace(data.graph, poses=T @ data.graph.poses),
        path=path,
    )


def _edge(loop: Loop) -> Edge:
    information = np.asarray((loop.information + loop.information.T) / (2 * INFLATION))
    return Edge(loop.a, loop.b, loop.T_a_b, information, "loop")


def _without_gravity(graph: GraphProblem) -> GraphProblem:
    """For a world that is not level: there, nobody knows which way is down."""
    return replace(graph, gravity=np.full_like(graph.gravity, np.nan))


def _joined(first: MapData, second: MapData, loops: Sequence[Loop]) -> MapData:
    """Both maps as one, with the loops between them, and everything where it fits best."""
    graph = PoseGraph.restored(first.graph)
    graph.add_nodes(second.graph if first.is_level else _without_gravity(second.graph))
    edge_ids = {int(row["id"]): graph.add_edge(edge_of(row)) for row in second.graph.edges}
    known = dict(first.loops) | {edge_ids[i]: loop for i, loop in second.loops.items() if i in edge_ids}
    between = {graph.add_edge(_edge(loop)): loop for loop in loops}
    known.update(between)
    solution = optimise(graph.snapshot())
    if between.keys() <= set(solution.rejected):
        raise ReconError("the maps could not be joined: no view of a common place fits into both maps")
    poses = graph.apply(solution)
    return MapData(
        keyframes=tuple(replace(k, T_world_camera=poses[k.id]) for k in (*first.keyframes, *second.keyframes)),
        next_id=second.next_id,
        descriptors={**first.descriptors, **second.descriptors},
        graph=graph.snapshot(),
        loops=known,
        rejected=frozenset(solution.rejected),
        path=np.concatenate([first.path, second.path]),
        source=first.source,
        is_level=first.is_level,
        T_base_camera=first.T_base_camera,
    )
