# SPDX-License-Identifier: Apache-2.0
"""Which loops to believe: those that drift can explain and that do not contradict each other.

One false loop bends a map. The decision is taken before the optimisation, on cycles: two loops and the ways travelled
between their ends must lead back to where they began, up to noise and the drift of those ways (pairwise consistency,
Mangelson et al. 2018). Of loops that contradict each other those go that contradict most.

Robust kernels alone decide by a loop's own residual, after an optimisation that takes all drift for random. Measured on
two laps of 150 m: a Geman–McClure kernel follows a false loop where tracking is loose (its neighbours give way, not
it), and GTSAM's graduated non-convexity, five times slower, throws away the first true loop, and all of them after
tracking has jumped once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from recon_ros.geometry import se3
from recon_ros.mapping import pose_graph_algebra as algebra
from recon_ros.mapping.pose_graph_problem import Edge, GraphProblem
from recon_ros.mapping.pose_graph_reckoning import DeadReckoning

Matrix = NDArray[np.float64]
Index = NDArray[np.int64]

SIGNIFICANCE = 1e-4
"""Share of true loops, or pairs of them, that noise alone may make contradict."""
NEAREST, FARTHER = 12, 16
"""Other loops each loop is compared with: those whose ends are nearest, which tell most, and some at growing distance,
so that many false ones in a row cannot keep among themselves."""
NEAR = 0.25
"""A neighbour tells something when the ways to it are at most this share of the way the loop closes."""
TOGETHER = 5.0
"""Loops that agree and are less than this many metres of way apart have one vote together: where two places look
alike, all neighbours are taken in by it."""
MIN_SUPPORT = 2
"""Such neighbours that must agree to make a loop believable that drift cannot explain: tracking itself was wrong."""


@dataclass(frozen=True)
class Verdict:
    """Whether a loop is to be believed, and why.

    Attributes:
        consistent: the decision.
        chi2: squared Mahalanobis distance from what tracking alone says, drift included; NaN where the nodes are
            tied by loops only.
        limit: what `chi2` may be at most.
        supporters: near loops that agree with it.
        opponents: loops that contradict it.
    """

    consistent: bool
    chi2: float
    limit: float
    supporters: int
    opponents: int


def would_be_consistent(problem: GraphProblem, edge: Edge) -> Verdict:
    """Whether a loop agrees with tracking and the loops of a graph, if it were added to it.

    Raises:
        InputError: ``edge`` when it does not fit to the graph.
    """
    believed, evidence = believed_loops(problem.with_edge(edge))
    return Verdict(
        consistent=bool(believed[-1]),
        chi2=float(evidence.chi2[-1]),
        limit=_limit(problem),
        supporters=int(np.count_nonzero(evidence.supports[-1])),
        opponents=int(np.count_nonzero(evidence.contradicts[-1])),
    )


@dataclass(frozen=True, eq=False)
class Evidence:
    """What loops say of each other.

    Attributes:
        chi2: (L,) squared distance from tracking, NaN where tracking says nothing.
        contradicts: (L, L) which cannot both be true.
        supports: (L, L) which agree, and are near enough for that to mean something.
        together: (L, L) which of these are of one place; each is of one place with itself.
    """

    chi2: Matrix
    contradicts: NDArray[np.bool_]
    supports: NDArray[np.bool_]
    together: NDArray[np.bool_]


def believed_loops(problem: GraphProblem) -> tuple[NDArray[np.bool_], Evidence]:
    """(E,) edges to optimise with, which are all but some loops, and the evidence about the loops in their order."""
    keep = ~problem.is_loop
    loops = np.flatnonzero(~keep)
    evidence = _evidence(problem, loops)
    explained = ~(evidence.chi2 > _limit(problem))
    alive = np.ones(len(loops), bool)
    while (evidence.contradicts & np.outer(alive, alive)).any():
        alive[_least_credible(evidence, explained, alive)] = False
    supported = (evidence.supports & alive).sum(axis=1) >= MIN_SUPPORT
    keep[loops] = alive & (explained | supported)
    return keep, evidence


def _least_credible(evidence: Evidence, explained: NDArray[np.bool_], alive: NDArray[np.bool_]) -> int:
    """Of the loops that are contradicted, the one most votes are against; then least are for; then the newest."""
    votes = alive / np.maximum((evidence.together & alive).sum(axis=1), 1)
    against = (evidence.contradicts & alive[:, None]) @ votes
    support = (evidence.supports & alive).sum(axis=1)
    contradicted = np.flatnonzero(against > 0)
    return int(max(contradicted, key=lambda i: (round(against[i], 6), -support[i], not explained[i], i)))


def _limit(problem: GraphProblem) -> float:
    return float(chi2.ppf(1 - SIGNIFICANCE, problem.dimension))


def _evidence(problem: GraphProblem, loops: Index) -> Evidence:
    n = len(loops)
    evidence = Evidence(np.full(n, np.nan), np.zeros((n, n), bool), np.zeros((n, n), bool), np.eye(n, dtype=bool))
    if n == 0:
        return evidence
    track = DeadReckoning(problem)
    a, b = (index[loops] for index in problem.indices())
    T_a_b, noise = _measurements(problem, loops)
    closed = np.flatnonzero(track.tree[a] == track.tree[b])
    evidence.chi2[closed] = _against_tracking(track, a[closed], b[closed], T_a_b[closed], noise[closed])
    span = np.where(track.tree[a] == track.tree[b], track.way(a, b), np.inf)
    i, j = _neighbours(track, a, b)
    c, d, T_c_d, noise_j = a[j], b[j], T_a_b[j], noise[j]
    crossed = track.way(a[i], d) + track.way(b[i], c) < track.way(a[i], c) + track.way(b[i], d)
    T_d_c = se3.inverse(T_c_d)
    noise_j = np.where(crossed[:, None, None], algebra.moved(noise_j, T_c_d), noise_j)
    T_c_d = np.where(crossed[:, None, None], T_d_c, T_c_d)
    c, d = np.where(crossed, d, c), np.where(crossed, c, d)
    distance = _around(track, (a[i], b[i], T_a_b[i], noise[i]), (c, d, T_c_d, noise_j))
    agree = distance <= _limit(problem)
    apart = track.way(a[i], c) + track.way(b[i], d)
    near = apart <= NEAR * np.minimum(span[i], span[j])
    for matrix, true in (
        (evidence.contradicts, ~agree),
        (evidence.supports, agree & near),
        (evidence.together, agree & near & (apart <= TOGETHER)),
    ):
        matrix[i[true], j[true]] = True
        matrix |= matrix.T
    return evidence


def _against_tracking(track: DeadReckoning, a: Index, b: Index, T_a_b: Matrix, noise: Matrix) -> Matrix:
    """(L,) squared distance of loops from what the way between their ends says."""
    T_root_b = track.T_root[b]
    difference = se3.inverse(T_a_b) @ se3.inverse(track.T_root[a]) @ T_root_b
    tracked = algebra.moved(track.covariance(a, b), se3.inverse(T_root_b))
    return _squared(track, difference, noise + tracked)


Loops = tuple[Index, Index, Matrix, Matrix]
"""a, b, T_a_b and its covariance in b's frame."""


def _around(track: DeadReckoning, first: Loops, second: Loops) -> Matrix:
    """(P,) squared distance from the identity of a → c → d → b → a, for loops a–b and c–d."""
    (a, b, T_a_b, noise), (c, d, T_c_d, noise_other) = first, second
    T_b_root = se3.inverse(track.T_root[b])
    T_root_d = track.T_root[d]
    turn = track.T_root[c] @ T_c_d @ se3.inverse(T_root_d)  # how far the other loop is from closing
    difference = se3.inverse(T_a_b) @ se3.inverse(track.T_root[a]) @ turn @ track.T_root[b]
    total = noise + algebra.moved(noise_other, T_b_root @ T_root_d)
    total += algebra.moved(track.covariance(b, d), T_b_root)
    total += algebra.moved(track.covariance(a, c), T_b_root @ se3.inverse(turn))
    return _squared(track, difference, total)


def _neighbours(track: DeadReckoning, a: Index, b: Index) -> tuple[Index, Index]:
    """Pairs of loops whose ends are tied by tracking."""
    straight = track.least_way(a[:, None], a[None]) + track.least_way(b[:, None], b[None])
    crossed = track.least_way(a[:, None], b[None]) + track.least_way(b[:, None], a[None])
    ways = np.minimum(straight, crossed)
    np.fill_diagonal(ways, np.inf)
    others = len(a) - 1  # each loop itself is the last in its row
    ranks = np.arange(others)
    if others > NEAREST + FARTHER:
        farther = np.geomspace(NEAREST, others - 1, FARTHER).round().astype(np.int64)
        ranks = np.union1d(np.arange(NEAREST), farther)
    order = np.argsort(ways, axis=1, kind="stable")[:, ranks]
    i = np.repeat(np.arange(len(a)), order.shape[1])
    j = order.ravel()
    tied = np.isfinite(ways[i, j])
    return i[tied], j[tied]


def _measurements(problem: GraphProblem, edges: Index) -> tuple[Matrix, Matrix]:
    """(L, 4, 4) T_a_b and (L, 7, 7) covariances, with the drift of what a loop was composed with."""
    rows = problem.edges[edges]
    covariance = algebra.covariances(rows["information"], rows["log_scale_sigma"])
    drift = np.square(rows["travelled"])[:, None] * problem.drift.variances
    return rows["T_a_b"], covariance + drift[:, :, None] * np.eye(7)


def _squared(track: DeadReckoning, difference: Matrix, covariance: Matrix) -> Matrix:
    """Squared Mahalanobis distance in the degrees of freedom the graph has."""
    d = track.dimension
    return algebra.mahalanobis(algebra.local(difference)[:, :d], covariance[:, :d, :d])
