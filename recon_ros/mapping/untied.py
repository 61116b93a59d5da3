# SPDX-License-Identifier: Apache-2.0
"""Keyframes that a correction has brought together: by their poses they see one place, and nothing says so yet.

A loop that was closed elsewhere moves places onto each other that had been too far apart to be recognised, or to be
believed. Who lies where is known in the graph, so that this is told by poses, edges and depths of view alone, in the
process that solves it; whether keyframes really show one place is for `LoopDetector` to find out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from recon_ros.mapping import pose_graph_algebra as algebra
from recon_ros.mapping.pose_graph import GraphProblem, Solution, optimise

NEAR = 0.5
"""Of two views of one place, cameras and what they look at are less than this apart, in depths of view."""
TURNED = 0.7
"""Cosine of the angle between two such views, at least."""
TIED_WAY = 6.0
"""Two keyframes are tied when the way between them over the edges is less than this many depths of view: tracking has
then looked at both (`tracker.LOCAL_WAY`)."""
EDGE_FLOOR = 1e-9
"""Way of a loop, which is none; a sparse graph has no edges of length zero."""

Matrix = NDArray[np.float64]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of the solver.

    Attributes:
        problem: the graph.
        depths: (N,) median depth of each node's view, in its camera's unit.
        count: pairs at most.
        apart: nodes with fewer nodes between them, in the order of ids, are no pair.
    """

    problem: GraphProblem
    depths: Matrix
    count: int
    apart: int


@dataclass(frozen=True, eq=False)
class Answer:
    """The solution, and the pairs (older id, newer id) that it has brought together, nearest first."""

    solution: Solution
    pairs: tuple[Pair, ...]


def solve(request: Request, known: frozenset[Pair] = frozenset()) -> Answer:
    """Solve a graph and tell what has come together; `known` pairs are not told again.

    Raises:
        ConfigError: when gtsam is not installed.
    """
    solution = optimise(request.problem)
    pairs = tuple(untied(request, solution, known)) if request.count else ()
    return Answer(solution, pairs)


def untied(request: Request, solution: Solution, known: frozenset[Pair] = frozenset()) -> list[Pair]:
    """Pairs of nodes (older id, newer id) that see one place and are not tied, nearest first, well spread.

    Of pairs whose ends are tied to each other one is enough: if it is a loop, it ties the others.
    """
    depth = request.depths * algebra.scales(solution.matrices)
    i, j, distance = _of_one_place(solution.matrices, depth)
    far = j - i > request.apart
    i, j, distance = i[far], j[far], distance[far]
    limit = TIED_WAY * np.minimum(depth[i], depth[j])
    way = _Ways(request.problem, solution, np.union1d(i, j), float(limit.max(initial=0.0)))
    chosen: list[Pair] = []
    pairs: list[Pair] = []
    for k in np.lexsort((j, i, distance)):
        (a, b), near = (int(i[k]), int(j[k])), limit[k]
        pair = int(solution.ids[a]), int(solution.ids[b])
        if pair in known or way(a, b) < near or any(way(a, c) < near and way(b, d) < near for c, d in chosen):
            continue
        chosen.append((a, b))
        pairs.append(pair)
        if len(pairs) == request.count:
            break
    return pairs


def _of_one_place(poses: Matrix, depth: Matrix) -> tuple[NDArray[np.int64], NDArray[np.int64], Matrix]:
    """Positions i < j of views that are much the same, and how far they are apart, in depths of view."""
    at = poses[:, :3, 3]
    forward = poses[:, :3, 2] / algebra.scales(poses)[:, None]
    target = at + depth[:, None] * forward
    near = cKDTree(at).query_pairs(NEAR * float(depth.max(initial=0.0)), output_type="ndarray")
    i, j = near.min(axis=1), near.max(axis=1)
    unit = np.minimum(depth[i], depth[j])
    moved = np.linalg.norm(at[i] - at[j], axis=1) / unit
    looked = np.linalg.norm(target[i] - target[j], axis=1) / unit
    alike = (moved < NEAR) & (looked < NEAR) & (np.einsum("nk,nk->n", forward[i], forward[j]) > TURNED)
    return i[alike], j[alike], (moved + looked)[alike]


class _Ways:
    """Metres between some nodes over the edges that are believed, as far as a limit; infinite beyond."""

    def __init__(self, problem: GraphProblem, solution: Solution, nodes: NDArray[np.int64], limit: float) -> None:
        n = len(problem.ids)
        believed = ~np.isin(problem.edges["id"], solution.rejected)
        a, b = (index[believed] for index in problem.indices())
        low, high = np.minimum(a, b), np.maximum(a, b)
        length = np.maximum(problem.edges["travelled"][believed], EDGE_FLOOR)
        order = np.lexsort((length, low * n + high))  # of parallel edges the shortest
        kept = order[np.unique((low * n + high)[order], return_index=True)[1]]
        graph = coo_matrix((length[kept], (low[kept], high[kept])), shape=(n, n)).tocsr()
        self._row = {int(node): row for row, node in enumerate(nodes)}
        self._metres = dijkstra(graph, directed=False, indices=nodes, limit=limit) if len(nodes) else np.zeros((0, n))

    def __call__(self, a: int, b: int) -> float:
        return float(self._metres[self._row[a], b])
