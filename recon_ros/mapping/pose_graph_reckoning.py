# SPDX-License-Identifier: Apache-2.0
"""Where tracking alone puts the nodes of a pose graph, and how uncertain one is against another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from recon_ros.geometry import se3
from recon_ros.mapping import pose_graph_algebra as algebra
from recon_ros.mapping.pose_graph_problem import GraphProblem

Matrix = NDArray[np.float64]
Index = NDArray[np.int64]


class DeadReckoning:
    """The graph without its loops, thinned to its shortest trees, each rooted in its oldest node.

    Along a way, noise adds up, and drift too, but it goes one way: over a way of D metres its variance is D times the
    sum of each metre's. Both sums are kept in the frame of the root, where those of a stretch are differences.

    Attributes:
        dimension: 6 or 7.
        tree: (N,) number of the tree of each node.
        T_root: (N, 4, 4) poses relative to the root, T_root_node.
    """

    def __init__(self, problem: GraphProblem) -> None:
        self.dimension = problem.dimension
        tracked = np.flatnonzero(~problem.is_loop)
        a, b = (index[tracked] for index in problem.indices())
        rows = problem.edges[tracked]
        parent, edge, self.tree = _forest(len(problem.ids), a, b, rows["travelled"])
        self._ancestors = _ancestors(parent)
        self.T_root, noise, self._way, self._depth = _steps(rows, a, parent, edge)
        # Sums towards the root by doubling: over 1, 2, 4, … ancestors. A root adds nothing.
        for up in self._ancestors:
            self.T_root = self.T_root[up] @ self.T_root
        self._noise = algebra.moved(noise, self.T_root)
        self._drift = algebra.moved(self._way[:, None, None] * np.diag(problem.drift.variances), self.T_root)
        for sums in (self._noise, self._drift, self._way, self._depth):
            for up in self._ancestors:
                sums += sums[up]

    def least_way(self, a: Index, b: Index) -> Matrix:
        """A lower bound of `way`, exact where one descends from the other; for many pairs."""
        return np.where(self.tree[a] == self.tree[b], np.abs(self._way[a] - self._way[b]), np.inf)

    def way(self, a: Index, b: Index) -> Matrix:
        """Metres travelled between nodes; infinite between trees."""
        a, b = np.broadcast_arrays(a, b)
        way = self._way[a] + self._way[b] - 2 * self._way[self._common_ancestor(a, b)]
        return np.where(self.tree[a] == self.tree[b], way, np.inf)

    def covariance(self, a: Index, b: Index) -> Matrix:
        """(P, 7, 7) of the way between nodes of one tree, as a perturbation in the root's frame."""
        common = self._common_ancestor(a, b)
        noise, drift = (s[a] + s[b] - 2 * s[common] for s in (self._noise, self._drift))
        return np.asarray(noise + self.way(a, b)[:, None, None] * drift)

    def _common_ancestor(self, a: Index, b: Index) -> Index:
        """The deepest node that both descend from, by binary lifting; any where there is none."""
        deeper = self._depth[a] >= self._depth[b]
        a, b = np.where(deeper, a, b), np.where(deeper, b, a)
        below = self._depth[a] - self._depth[b]
        for power, up in enumerate(self._ancestors):
            a = np.where(below & (1 << power), up[a], a)
        for up in reversed(self._ancestors):
            apart = up[a] != up[b]
            a, b = np.where(apart, up[a], a), np.where(apart, up[b], b)
        return np.where(a == b, a, self._ancestors[0][a])


def _forest(n: int, a: Index, b: Index, way: Matrix) -> tuple[Index, Index, Index]:
    """Each node's parent (itself for a root), the edge between them (-1 for a root), and the number of its tree."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    shortest = np.argsort(way, kind="stable")
    keys, first = np.unique(low[shortest] * n + high[shortest], return_index=True)  # of parallel edges the shortest
    chosen = shortest[first]
    weights = coo_matrix((way[chosen] + 1e-9, (low[chosen], high[chosen])), shape=(n, n)).tocsr()
    tree = minimum_spanning_tree(weights)
    _, label = connected_components(tree, directed=False)
    own = np.arange(n)
    parent = own.copy()
    for root in np.unique(label, return_index=True)[1]:
        reached, predecessor = breadth_first_order(tree, root, directed=False)
        parent[reached[1:]] = predecessor[reached[1:]]
    edge = np.full(n, -1, np.int64)
    child = parent != own
    edge[child] = chosen[np.searchsorted(keys, (np.minimum(parent, own) * n + np.maximum(parent, own))[child])]
    return parent, edge, label.astype(np.int64)


def _ancestors(parent: Index) -> list[Index]:
    """Of each node, the 1st, 2nd, 4th, … ancestor, until all are roots."""
    ancestors = [parent]
    while (ancestors[-1] != ancestors[-1][ancestors[-1]]).any():
        ancestors.append(ancestors[-1][ancestors[-1]])
    return ancestors


def _steps(rows: NDArray[np.void], a: Index, parent: Index, edge: Index) -> tuple[Matrix, Matrix, Matrix, Index]:
    """From each node's parent to it: T_parent_node, covariance in the node's frame, way, and 1; of roots nothing."""
    n = len(parent)
    T, noise, way, count = np.tile(np.eye(4), (n, 1, 1)), np.zeros((n, 7, 7)), np.zeros(n), np.zeros(n, np.int64)
    child = np.flatnonzero(edge >= 0)
    chosen = rows[edge[child]]
    forward = (a[edge[child]] == parent[child])[:, None, None]
    covariance = algebra.covariances(chosen["information"], chosen["log_scale_sigma"])
    T[child] = np.where(forward, chosen["T_a_b"], se3.inverse(chosen["T_a_b"]))
    noise[child] = np.where(forward, covariance, algebra.moved(covariance, chosen["T_a_b"]))
    way[child] = chosen["travelled"]
    count[child] = 1
    return T, noise, way, count
