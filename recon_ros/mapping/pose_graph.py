# SPDX-License-Identifier: Apache-2.0
"""What is known of the poses of keyframes relative to each other: a graph that grows, and is thinned out.

Solving it is `optimise`, asking whether to believe one more loop `would_be_consistent`; both work on a `GraphProblem`,
a frozen copy, so that they may run elsewhere while the graph goes on.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Set

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError
from recon_ros.geometry import se3
from recon_ros.mapping.pose_graph_consensus import Verdict, would_be_consistent
from recon_ros.mapping.pose_graph_problem import (
    EDGE,
    Drift,
    Edge,
    GraphProblem,
    Solution,
    compose,
    edge_of,
    fuse,
    proper_edge,
    proper_gravity,
    proper_pose,
    reverse,
    row_of,
)
from recon_ros.mapping.pose_graph_solve import optimise, require

__all__ = [
    "Drift",
    "Edge",
    "GraphProblem",
    "PoseGraph",
    "Solution",
    "Verdict",
    "optimise",
    "require",
    "would_be_consistent",
]

Matrix = NDArray[np.float64]


class PoseGraph:
    """Nodes are keyframe poses, edges are what was measured between them.

    Args:
        scale_drifts: poses are Sim(3); else SE(3), for sources whose scale is anchored (depth, odometry).
        drift: how far tracking may be off.
    """

    def __init__(self, scale_drifts: bool, drift: Drift | None = None) -> None:
        self.scale_drifts = scale_drifts
        self.drift = drift or Drift()
        self._poses: dict[int, Matrix] = {}
        self._gravity: dict[int, Matrix] = {}
        self._edges: dict[int, Edge] = {}
        self._at: dict[int, set[int]] = {}
        self._next_edge = 0
        self._table = np.zeros(64, EDGE)
        self._rows: list[int] = []

    @classmethod
    def restored(cls, problem: GraphProblem) -> PoseGraph:
        """The graph a snapshot was taken of; its edges keep their ids."""
        graph = cls(problem.scale_drifts, problem.drift)
        graph.add_nodes(problem)
        for row in problem.edges:
            graph._next_edge = int(row["id"])
            graph.add_edge(edge_of(row))
        return graph

    @property
    def nodes(self) -> Mapping[int, Matrix]:
        """Id → (4, 4) T_world_camera."""
        return self._poses

    @property
    def edges(self) -> Mapping[int, Edge]:
        """Edge id → edge."""
        return self._edges

    def add_nodes(self, problem: GraphProblem) -> None:
        """Add the nodes of another graph; see `add_node`."""
        for node_id, pose, gravity in zip(problem.ids.tolist(), problem.poses, problem.gravity, strict=True):
            self.add_node(node_id, pose, None if np.isnan(gravity).any() else gravity)

    def add_node(self, node_id: int, T_world_camera: Matrix, gravity: Matrix | None = None) -> None:
        """Add a keyframe where it is taken to be.

        Args:
            node_id: not yet in the graph.
            T_world_camera: (4, 4).
            gravity: (3,) unit vector down in the camera's frame, for a level world; None where it is not known.

        Raises:
            InputError: ``node`` for an id that is there already, ``pose`` for one that is none of this graph's group,
                ``gravity`` for what is no unit vector.
        """
        if node_id in self._poses:
            raise InputError("node", f"node {node_id} is in the graph already")
        pose = proper_pose(f"the pose of node {node_id}", T_world_camera, self.scale_drifts)
        self._gravity[node_id] = proper_gravity(f"gravity of node {node_id}", gravity)
        self._poses[node_id] = pose
        self._at[node_id] = set()

    def add_edge(self, edge: Edge) -> int:
        """Add a measurement; returns the edge's id, never used again.

        Raises:
            InputError: ``edge`` for unknown or equal nodes, a T_a_b that is none of this graph's group, or an
                information that is not finite, symmetric and positive semi-definite.
        """
        edge = proper_edge(edge, self._poses, self.scale_drifts)
        edge_id = self._next_edge
        self._next_edge += 1
        self._edges[edge_id] = edge
        self._at[edge.a].add(edge_id)
        self._at[edge.b].add(edge_id)
        if len(self._rows) == len(self._table):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        self._table[len(self._rows)] = row_of(edge_id, edge)
        self._rows.append(edge_id)
        return edge_id

    def remove_edge(self, edge_id: int) -> None:
        """Forget a measurement."""
        edge = self._edges.pop(edge_id)
        self._at[edge.a].discard(edge_id)
        self._at[edge.b].discard(edge_id)
        row = self._rows.index(edge_id)
        last = len(self._rows) - 1
        self._table[row:last] = self._table[row + 1 : last + 1]  # in order of ids, so that results do not depend on it
        del self._rows[row]

    def remove_node(self, node_id: int) -> None:
        """Forget a keyframe; what it tied together stays tied, by its edges composed two by two.

        That is marginalisation, thinned to a tree of its neighbours: exact for a node in a chain, too modest for one of
        more edges. The tree ties what is close to each other, so that no node gathers all edges. Parallel edges are
        fused where they agree.
        """
        edge_ids = sorted(self._at[node_id])
        edges = [self._edges[i] for i in edge_ids]
        outward = [edge if edge.a == node_id else reverse(edge) for edge in edges]
        for edge_id in edge_ids:
            self.remove_edge(edge_id)
        del self._poses[node_id], self._gravity[node_id], self._at[node_id]
        for i, j in self._tree(outward):
            self._tie(compose(reverse(outward[i]), outward[j]))

    def components(self, without: Set[int] = frozenset()) -> list[set[int]]:
        """Ids of the nodes that are tied to each other, by the oldest in each; `without` are ids of edges that do not
        count."""
        found: list[set[int]] = []
        unseen = set(self._poses)
        for start in sorted(self._poses):
            if start in unseen:
                found.append(self._reached(start, without))
                unseen -= found[-1]
        return found

    def near(self, node_id: int, way: float, without: Set[int] = frozenset()) -> set[int]:
        """Nodes that drift cannot have taken far from a node: those less than `way` from it over the edges.

        Args:
            node_id: where to begin; it is one of them.
            way: as `Edge.way` counts it; loops have none.
            without: ids of edges that do not count.
        """
        found: dict[int, float] = {}
        waiting = [(0.0, node_id)]
        while waiting:
            travelled, node = heapq.heappop(waiting)
            if node in found:
                continue
            found[node] = travelled
            for edge_id in self._at[node] - without:
                edge = self._edges[edge_id]
                other, length = (edge.b if edge.a == node else edge.a), travelled + edge.way
                if other not in found and length < way:
                    heapq.heappush(waiting, (length, other))
        return set(found)

    def snapshot(self) -> GraphProblem:
        """A frozen copy that another thread or process may optimise while this graph goes on."""
        ids = np.array(sorted(self._poses), dtype=np.int64)
        poses = np.array([self._poses[i] for i in ids.tolist()]).reshape(-1, 4, 4)
        gravity = np.array([self._gravity[i] for i in ids.tolist()]).reshape(-1, 3)
        edges = self._table[: len(self._rows)].copy()
        for array in (ids, poses, edges, gravity):
            array.flags.writeable = False
        return GraphProblem(self.scale_drifts, self.drift, ids, poses, edges, gravity)

    def apply(self, solution: Solution) -> dict[int, Matrix]:
        """Move the nodes to a solution of an earlier snapshot; returns the poses of all nodes.

        Nodes that came after the snapshot move with what they are tied to, those that went are ignored.
        """
        before = self._poses
        after = {i: pose.copy() for i, pose in solution.poses.items() if i in before}
        waiting = sorted(before.keys() - after.keys())
        while waiting:
            tied = {i: near for i in waiting if (near := self._neighbours(i) & after.keys())}
            for i, near in tied.items():
                after[i] = after[min(near)] @ se3.inverse(before[min(near)]) @ before[i]
            after.update({i: before[i] for i in waiting} if not tied else {})
            waiting = [i for i in waiting if i not in after]
        self._poses = {i: after[i] for i in before}
        return {i: pose.copy() for i, pose in after.items()}

    def _neighbours(self, node_id: int, without: Set[int] = frozenset()) -> set[int]:
        edges = self._at[node_id] - without
        return {n for i in edges for n in (self._edges[i].a, self._edges[i].b)} - {node_id}

    def _reached(self, start: int, without: Set[int]) -> set[int]:
        reached, stack = {start}, [start]
        while stack:
            new = self._neighbours(stack.pop(), without) - reached
            reached |= new
            stack.extend(new)
        return reached

    def _tree(self, edges: list[Edge]) -> list[tuple[int, int]]:
        """Pairs of edges from one node that tie all their ends over ways as short as can be: first without loops, so
        that tracking stays in one piece."""
        ends = np.array([edge.b for edge in edges], dtype=np.int64)
        loops = np.array([edge.kind == "loop" for edge in edges], dtype=bool)
        at = np.array([self._poses[end][:3, 3] for end in ends.tolist()]).reshape(-1, 3)
        i, j = np.triu_indices(len(edges), 1)
        order = np.lexsort((np.linalg.norm(at[i] - at[j], axis=1), loops[i] | loops[j]))
        part = np.arange(len(edges))
        chosen = []
        for k in order[ends[i[order]] != ends[j[order]]]:
            one, other = part[i[k]], part[j[k]]
            if one != other:
                part[part == other] = one
                chosen.append((int(i[k]), int(j[k])))
        return chosen

    def _tie(self, edge: Edge) -> None:
        """Add an edge, fused with one of its sort where there is one that agrees."""
        for edge_id in sorted(self._at[edge.a] & self._at[edge.b]):
            known = self._edges[edge_id]
            if (known.kind == "loop") != (edge.kind == "loop"):
                continue
            both = fuse(known, edge if known.a == edge.a else reverse(edge))
            if both is None and edge.kind == "loop":
                continue  # one of them is wrong, the consensus of loops will tell which
            self.remove_edge(edge_id)
            edge = both or min(known, edge, key=_rank)
        self.add_edge(edge)


def _rank(edge: Edge) -> tuple[bool, float, int]:
    """Least first: a loop may be wrong, and the less uncertain the better."""
    return edge.kind == "loop", float(np.trace(edge.covariance[:6, :6])) + edge.way * 1e-6, edge.b
