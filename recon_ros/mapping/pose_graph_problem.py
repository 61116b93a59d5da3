# SPDX-License-Identifier: Apache-2.0
"""What a pose graph is made of: measured relative poses, how tracking drifts, the problem they pose, its solution."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from recon_ros.errors import InputError
from recon_ros.geometry import se3
from recon_ros.mapping import pose_graph_algebra as algebra

Matrix = NDArray[np.float64]
Kind = Literal["odometry", "covisible", "loop"]

KINDS: tuple[Kind, ...] = ("odometry", "covisible", "loop")
LOOP = KINDS.index("loop")
METRES_PER_RADIAN = 1.0
"""A camera that turns on the spot travels as well, as far as drift goes."""
CONTRADICTION = float(chi2.ppf(0.9999, 6))
"""Squared Mahalanobis distance beyond which two measurements do not mean the same thing."""

EXACT = 1e-6
"""Standard deviation of a log scale that is known."""

EDGE = np.dtype(
    [
        ("id", np.int64),
        ("a", np.int64),
        ("b", np.int64),
        ("kind", np.int64),
        ("T_a_b", np.float64, (4, 4)),
        ("information", np.float64, (6, 6)),
        ("log_scale_sigma", np.float64),
        ("travelled", np.float64),
    ]
)
"""One row of `GraphProblem.edges`; `kind` counts in `KINDS`."""


@dataclass(frozen=True, eq=False)
class Edge:
    """One measurement of a relative pose.

    Attributes:
        a, b: ids of the nodes.
        T_a_b: (4, 4) float64, Sim(3) allowed where the graph's scale drifts.
        information: (6, 6) float64 of a right perturbation (v, ω) of T_a_b, in b's frame.
        kind: ``odometry`` and ``covisible`` (measured while tracking; they drift, see `Drift`) or ``loop`` (a place
            met again; may be wrong, and is then rejected).
        log_scale_sigma: standard deviation of the logarithm of T_a_b's scale; of no effect in SE(3).
        travelled: way over which the edge may have drifted, metres; None takes what T_a_b itself covers, and zero for
            a loop.
    """

    a: int
    b: int
    T_a_b: Matrix
    information: Matrix
    kind: Kind = "odometry"
    log_scale_sigma: float = 0.01
    travelled: float | None = None

    @property
    def way(self) -> float:
        """`travelled`, or what it is by default."""
        if self.travelled is not None:
            return self.travelled
        if self.kind == "loop":
            return 0.0
        metres, radians = se3.distance(self.T_a_b)
        return metres + METRES_PER_RADIAN * radians

    @property
    def covariance(self) -> Matrix:
        """(7, 7) of (v, ω, log scale), without drift."""
        return algebra.covariances(np.asarray(self.information), np.asarray(self.log_scale_sigma))


@dataclass(frozen=True)
class Drift:
    """What tracking loses beyond what its informations say: they know of noise, not of its common causes.

    Drift goes one way for long (a slightly wrong focal length, a bent depth), so that it grows with the way travelled
    instead of its root. The defaults are those of an uncalibrated visual tracker.

    Attributes:
        translation: standard deviation as a share of the way.
        rotation: radians per metre (1° in 10 m).
        log_scale: per metre (1 % in 10 m); where scale drifts only.
        correlation: metres after which an edge's drift is taken for independent when errors are distributed.
    """

    translation: float = 0.01
    rotation: float = float(np.radians(0.1))
    log_scale: float = 0.001
    correlation: float = 5.0

    @property
    def variances(self) -> Matrix:
        """(7,) squared rates of (v, ω, log scale)."""
        return np.repeat(np.square([self.translation, self.rotation, self.log_scale]), [3, 3, 1])


@dataclass(frozen=True, eq=False)
class GraphProblem:
    """A pose graph at one moment, as plain arrays that nobody writes to.

    Attributes:
        scale_drifts: poses are Sim(3), else SE(3).
        drift: see there.
        ids: (N,) int64 node ids, ascending: the oldest first.
        poses: (N, 4, 4) float64 T_world_camera.
        edges: (E,) of dtype `EDGE`.
        gravity: (N, 3) float64 unit vectors down in the cameras' frames, NaN where unknown; where one is known the
            world is level (`geometry.gravity`).
    """

    scale_drifts: bool
    drift: Drift
    ids: NDArray[np.int64]
    poses: Matrix
    edges: NDArray[Any]
    gravity: Matrix

    @property
    def dimension(self) -> int:
        """Degrees of freedom of a pose."""
        return 7 if self.scale_drifts else 6

    @property
    def is_loop(self) -> NDArray[np.bool_]:
        """(E,) which edges are loops."""
        return np.asarray(self.edges["kind"] == LOOP)

    def indices(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(E,) positions in `ids` of each edge's a and b."""
        return np.searchsorted(self.ids, self.edges["a"]), np.searchsorted(self.ids, self.edges["b"])

    def with_edge(self, edge: Edge) -> GraphProblem:
        """The problem with one more edge, the last.

        Raises:
            InputError: ``edge``, see `PoseGraph.add_edge`.
        """
        edge = proper_edge(edge, set(self.ids.tolist()), self.scale_drifts)
        edge_id = int(self.edges["id"].max(initial=-1)) + 1
        return replace(self, edges=np.append(self.edges, row_of(edge_id, edge)))


@dataclass(frozen=True, eq=False)
class Solution:
    """What `pose_graph_solve.optimise` found; arrays, which travel fast.

    Attributes:
        ids: (N,) int64 node ids, ascending.
        matrices: (N, 4, 4) T_world_camera of the nodes; the oldest of each component is where it was.
        edge_ids: (E,) int64.
        distances: (E,) squared Mahalanobis distances of the measurements from the solution.
        robust_weights: (E,) in [0, 1]; 1 for edges that are not loops, 0 for loops that were left out.
        rejected: ids of the loops that were not believed, ascending.
        iterations: of Levenberg–Marquardt.
        error_before, error_after: half the weighted sum of squares that was minimised.
    """

    ids: NDArray[np.int64]
    matrices: Matrix
    edge_ids: NDArray[np.int64]
    distances: Matrix
    robust_weights: Matrix
    rejected: tuple[int, ...]
    iterations: int
    error_before: float
    error_after: float

    @cached_property
    def poses(self) -> dict[int, Matrix]:
        """Node id → (4, 4) T_world_camera."""
        return dict(zip(self.ids.tolist(), self.matrices, strict=True))

    @cached_property
    def chi2(self) -> dict[int, float]:
        """Edge id → squared Mahalanobis distance."""
        return dict(zip(self.edge_ids.tolist(), self.distances.tolist(), strict=True))

    @cached_property
    def weights(self) -> dict[int, float]:
        """Edge id → robust weight."""
        return dict(zip(self.edge_ids.tolist(), self.robust_weights.tolist(), strict=True))


def reverse(edge: Edge) -> Edge:
    """The same measurement, from b to a."""
    return _with_covariance(
        replace(edge, a=edge.b, b=edge.a, T_a_b=se3.inverse(edge.T_a_b), travelled=edge.way),
        algebra.moved(edge.covariance, edge.T_a_b),
    )


def compose(first: Edge, second: Edge) -> Edge:
    """From first.a to second.b by way of their common node; a loop if one of them is."""
    kind = KINDS[max(KINDS.index(first.kind), KINDS.index(second.kind))]
    carried = algebra.moved(first.covariance, se3.inverse(second.T_a_b))
    return _with_covariance(
        Edge(
            a=first.a,
            b=second.b,
            T_a_b=first.T_a_b @ second.T_a_b,
            information=second.information,
            kind=kind,
            travelled=first.way + second.way,
        ),
        carried + second.covariance,
    )


def fuse(first: Edge, second: Edge) -> Edge | None:
    """Two measurements of one relative pose as one, weighed by their informations; None where they contradict."""
    difference = algebra.local(se3.inverse(first.T_a_b) @ second.T_a_b)
    A, B = first.covariance, second.covariance
    if algebra.mahalanobis(difference, A + B) > CONTRADICTION:
        return None
    gain = A @ np.linalg.inv(A + B)
    kind = KINDS[min(KINDS.index(first.kind), KINDS.index(second.kind))]
    fused = replace(
        first,
        T_a_b=first.T_a_b @ algebra.retract(gain @ difference),
        kind=kind,
        travelled=min(first.way, second.way),
    )
    return _with_covariance(fused, A - gain @ A)


def _with_covariance(edge: Edge, covariance: Matrix) -> Edge:
    information = np.linalg.inv(covariance[:6, :6])
    return replace(
        edge, information=(information + information.T) / 2, log_scale_sigma=float(np.sqrt(covariance[6, 6]))
    )


def proper_pose(named: str, T: Matrix, scale_drifts: bool) -> Matrix:
    """A pose of the group, its rotation made orthonormal.

    Raises:
        InputError: ``pose`` when it is none.
    """
    T = np.array(T, dtype=np.float64)
    group = "Sim(3)" if scale_drifts else "SE(3)"
    if T.shape == (4, 4) and np.isfinite(T).all() and (scale := se3.scale_of(T)) > 0:
        R = T[:3, :3] / scale
        skewed, scaled = np.abs(R @ R.T - np.eye(3)).max(), 0.0 if scale_drifts else abs(scale - 1.0)
        if max(skewed, scaled) < 1e-12:
            return T
        if max(skewed, scaled) < 1e-3:
            return se3.make(
                se3.orthonormalised(se3.make(R, T[:3, 3]))[:3, :3], T[:3, 3], scale if scale_drifts else 1.0
            )
    raise InputError("pose", f"{named} is no {group} matrix: {T!r}")


def proper_gravity(named: str, gravity: Matrix | None) -> Matrix:
    """A unit vector down, of length 1; NaN for None, which is not known.

    Raises:
        InputError: ``gravity`` when it is none.
    """
    if gravity is None:
        return np.full(3, np.nan)
    gravity = np.asarray(gravity, dtype=np.float64)
    length = float(np.linalg.norm(gravity))
    if gravity.shape != (3,) or not abs(length - 1) < 1e-3:
        raise InputError("gravity", f"{named} is no unit vector of three numbers: {gravity!r}")
    return gravity / length


def proper_edge(edge: Edge, nodes: Container[int], scale_drifts: bool) -> Edge:
    """An edge checked and made good for a graph of these nodes.

    Raises:
        InputError: ``edge`` or ``pose``, see `PoseGraph.add_edge`.
    """
    named = f"edge {edge.a} → {edge.b}"
    if edge.a == edge.b or edge.a not in nodes or edge.b not in nodes:
        raise InputError("edge", f"{named} must tie two nodes of the graph")
    if edge.kind not in KINDS:
        raise InputError("edge", f"{named} is of kind {edge.kind!r}, it must be one of {', '.join(KINDS)}")
    T_a_b = proper_pose(f"T_a_b of {named}", edge.T_a_b, scale_drifts)
    information = np.array(edge.information, dtype=np.float64)
    if information.shape != (6, 6) or not np.isfinite(information).all():
        raise InputError("edge", f"{named}: the information must be a finite (6, 6) matrix, it is {information!r}")
    largest = np.abs(information).max()
    if not np.allclose(information, information.T, rtol=1e-6, atol=1e-6 * largest):
        raise InputError("edge", f"{named}: the information is not symmetric: {information!r}")
    information = (information + information.T) / 2
    least = float(np.linalg.eigvalsh(information)[0])
    if least < -1e-9 * largest:
        raise InputError("edge", f"{named}: the information has the negative eigenvalue {least:g}")
    if not (0 < edge.log_scale_sigma < np.inf and 0 <= edge.way < np.inf):
        raise InputError("edge", f"{named}: log_scale_sigma must be above and travelled not below zero, both finite")
    sigma = edge.log_scale_sigma if scale_drifts else EXACT
    return replace(edge, T_a_b=T_a_b, information=information, log_scale_sigma=sigma, travelled=edge.way)


def row_of(edge_id: int, edge: Edge) -> NDArray[Any]:
    """An edge as a row of dtype `EDGE`."""
    row = np.zeros((), EDGE)
    row["id"], row["a"], row["b"], row["kind"] = edge_id, edge.a, edge.b, KINDS.index(edge.kind)
    row["T_a_b"], row["information"] = edge.T_a_b, edge.information
    row["log_scale_sigma"], row["travelled"] = edge.log_scale_sigma, edge.way
    return row


def edge_of(row: Any) -> Edge:
    """The edge a row of dtype `EDGE` holds."""
    return Edge(
        a=int(row["a"]),
        b=int(row["b"]),
        T_a_b=np.array(row["T_a_b"]),
        information=np.array(row["information"]),
        kind=KINDS[int(row["kind"])],
        log_scale_sigma=float(row["log_scale_sigma"]),
        travelled=float(row["travelled"]),
    )
