# SPDX-License-Identifier: Apache-2.0
"""The poses that fit a pose graph best, by GTSAM's Levenberg–Marquardt (Dellaert and Kaess 2017).

Loops that cannot be true are left out first (`pose_graph_consensus`); the others are fitted plainly, so that a true
loop may pull as far as tracking has drifted, and then once more under a Geman–McClure kernel, which takes away from
those that are merely inaccurate. Where gravity is known, poses do not tilt against it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2

from recon_ros.errors import ConfigError
from recon_ros.geometry import gravity, se3
from recon_ros.mapping import pose_graph_algebra as algebra
from recon_ros.mapping.pose_graph_consensus import believed_loops
from recon_ros.mapping.pose_graph_problem import GraphProblem, Solution

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

MAX_ITERATIONS = 50
TOLERANCE = 1e-7
"""Relative decrease of the error below which the solution counts as found."""
PRIOR_SIGMA = 1e-2
"""Of the gauge, which is put back exactly afterwards; any value serves that is of the order of an edge's."""
GRAVITY_SIGMA = float(np.radians(1.0))
"""Of the direction of gravity in a camera's frame: an accelerometer's low-pass and a mount that is not quite known."""
KERNEL_SIGNIFICANCE = 1e-3
"""Share of true loops whose residual exceeds the kernel's width; only where one does, a kernel is used at all."""
REJECTED_WEIGHT = 0.05

# GTSAM's tangent is (ω, v, λ), ours (v, ω, λ).
ORDER = np.array([3, 4, 5, 0, 1, 2, 6])


def require() -> None:
    """Raise ConfigError when gtsam is not installed."""
    if importlib.util.find_spec("gtsam") is None:
        raise ConfigError("closing loops needs gtsam, which is not installed: pip install gtsam, or switch loops off")


def optimise(problem: GraphProblem) -> Solution:
    """The poses that fit the edges best; a pure function, the same problem gives the same bytes.

    The oldest node of each component stays where it is; where gravity is known, it keeps its place and its heading, and
    tilts as all that is known of gravity says. Components that only loops tie together are first put next to each
    other by one of those.

    Raises:
        ConfigError: when gtsam is not installed.
    """
    require()
    believed, _ = believed_loops(problem)
    tree = _components(problem, believed)
    start = _joined(problem, believed)
    fitted, iterations = _fit(problem, believed, start, tree, robust=False)
    chi2s, weights = _chi2(problem, fitted), believed.astype(np.float64)
    if (chi2s[believed & problem.is_loop] > _kernel_width(problem)).any():
        fitted, more = _fit(problem, believed, fitted, tree, robust=True)
        chi2s, iterations = _chi2(problem, fitted), iterations + more
        weights *= _weights(problem, chi2s)
    return Solution(
        ids=problem.ids,
        matrices=fitted,
        edge_ids=problem.edges["id"].copy(),
        distances=chi2s,
        robust_weights=weights,
        rejected=tuple(problem.edges["id"][weights < REJECTED_WEIGHT].tolist()),
        iterations=iterations,
        error_before=0.5 * float(weights @ _chi2(problem, problem.poses)),
        error_after=0.5 * float(weights @ chi2s),
    )


def _components(problem: GraphProblem, edges: Mask) -> NDArray[np.int64]:
    """(N,) number of the component each node is in, by some of the edges."""
    a, b = problem.indices()
    n = len(problem.ids)
    ties = coo_matrix((np.ones(int(edges.sum())), (a[edges], b[edges])), shape=(n, n))
    return np.asarray(connected_components(ties, directed=False)[1], dtype=np.int64)


def _joined(problem: GraphProblem, believed: Mask) -> Matrix:
    """(N, 4, 4) start: what tracking ties together is moved as a whole to where the first loop to older ones says."""
    poses = problem.poses.copy()
    part = _components(problem, believed & ~problem.is_loop)
    settled = np.zeros(part.max(initial=-1) + 1, bool)
    loops = np.flatnonzero(believed & problem.is_loop)
    a, b = (index[loops] for index in problem.indices())
    T_a_b = problem.edges["T_a_b"][loops]
    for root in np.unique(part, return_index=True)[1]:  # the oldest nodes of the parts, ascending
        if settled[part[root]]:
            continue
        settled[part[root]] = True
        while True:
            ahead, behind = settled[part[a]] & ~settled[part[b]], settled[part[b]] & ~settled[part[a]]
            if not (ahead | behind).any():
                break
            k = int(np.argmax(ahead | behind))
            near, far, T = (a[k], b[k], T_a_b[k]) if ahead[k] else (b[k], a[k], se3.inverse(T_a_b[k]))
            moving = part == part[far]
            poses[moving] = poses[near] @ T @ se3.inverse(poses[far]) @ poses[moving]
            settled[part[far]] = True
    return poses


def _fit(
    problem: GraphProblem, edges: Mask, start: Matrix, component: NDArray[np.int64], robust: bool
) -> tuple[Matrix, int]:
    """(N, 4, 4) poses by Levenberg–Marquardt over some of the edges, and its iterations."""
    import gtsam

    if not edges.any():
        return start, 0
    graph, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
    for key, pose in enumerate(_poses(problem, start)):
        values.insert(key, pose)
    for factor in _factors(problem, edges, robust):
        graph.push_back(factor)
    anchors = np.unique(component, return_index=True)[1].tolist()
    levelled = np.unique(component[np.isfinite(problem.gravity).all(axis=1)])
    prior = gtsam.PriorFactorSimilarity3 if problem.scale_drifts else gtsam.PriorFactorPose3
    at = gtsam.Values.atSimilarity3 if problem.scale_drifts else gtsam.Values.atPose3
    for part, anchor in enumerate(anchors):
        noise = _gauge(problem, start[anchor], part in levelled)
        graph.push_back(prior(anchor, at(values, anchor), noise))
    for node, pose, noise in _gravity_priors(problem, start):
        graph.push_back(prior(node, pose, noise))
    parameters = gtsam.LevenbergMarquardtParams()
    parameters.setMaxIterations(MAX_ITERATIONS)
    parameters.setRelativeErrorTol(TOLERANCE)
    parameters.setAbsoluteErrorTol(TOLERANCE)
    optimizer = gtsam.LevenbergMarquardtOptimizer(graph, values, parameters)
    solved = optimizer.optimize()
    fitted = np.stack([_matrix(at(solved, key), problem.scale_drifts) for key in range(len(start))])
    back = np.stack([_back(start[a], fitted[a], part in levelled) for part, a in enumerate(anchors)])
    fitted = back[component] @ fitted
    for part, anchor in enumerate(anchors):
        if part not in levelled:
            fitted[anchor] = start[anchor]
    return fitted, int(optimizer.iterations())


def _gauge(problem: GraphProblem, pose: Matrix, is_level: bool) -> Any:
    """Noise of the prior that keeps a component in place: in a level one it says nothing of tilt."""
    import gtsam

    weights = np.eye(problem.dimension) / PRIOR_SIGMA
    if is_level:
        down = pose[:3, :3].T @ gravity.DOWN / se3.scale_of(pose)
        weights[:3, :3] = np.outer(down, down) / PRIOR_SIGMA
    return gtsam.noiseModel.Gaussian.SqrtInformation(weights)


def _back(start: Matrix, fitted: Matrix, is_level: bool) -> Matrix:
    """(4, 4) that puts a component's oldest node back where it was; in a level one its tilt stays as it was found."""
    back = start @ se3.inverse(fitted)
    if not is_level:
        return back
    scale = se3.scale_of(back)
    R = gravity.heading(back[:3, :3] / scale)
    return se3.make(R, start[:3, 3] - scale * R @ fitted[:3, 3], scale)


def _gravity_priors(problem: GraphProblem, start: Matrix) -> Iterator[tuple[int, Any, Any]]:
    """Node, pose and noise of priors that know of tilt alone: the pose is the start's, tilted as gravity says; turning
    it about the vertical, moving and scaling it costs nothing."""
    import gtsam

    known = np.flatnonzero(np.isfinite(problem.gravity).all(axis=1))
    if len(known) == 0:
        return
    upright = start[known].copy()
    upright[:, :3, :3] = gravity.towards_down(upright, problem.gravity[known]) @ upright[:, :3, :3]
    for node, pose, down in zip(known.tolist(), _poses(problem, upright), problem.gravity[known], strict=True):
        weights = np.zeros((problem.dimension, problem.dimension))
        weights[:3, :3] = (np.eye(3) - np.outer(down, down)) / GRAVITY_SIGMA
        yield node, pose, gtsam.noiseModel.Gaussian.SqrtInformation(weights)


def _poses(problem: GraphProblem, matrices: Matrix) -> list[Any]:
    """GTSAM's objects of (N, 4, 4) matrices. Its similarity is p ↦ s (R p + t)."""
    import gtsam

    if not problem.scale_drifts:
        return [gtsam.Pose3(matrix) for matrix in matrices]
    scales = algebra.scales(matrices)
    return [gtsam.Similarity3(T[:3, :3] / s, T[:3, 3] / s, s) for T, s in zip(matrices, scales, strict=True)]


def _matrix(pose: Any, is_similarity: bool) -> Matrix:
    """(4, 4) of one of GTSAM's poses."""
    if not is_similarity:
        return np.asarray(pose.matrix())
    scale = pose.scale()
    return se3.make(pose.rotation().matrix(), scale * pose.translation(), scale)


def _factors(problem: GraphProblem, edges: Mask, robust: bool) -> list[Any]:
    """One factor an edge; loops under a kernel where `robust`."""
    import gtsam

    d = problem.dimension
    order = ORDER[:d]
    between = gtsam.BetweenFactorSimilarity3 if problem.scale_drifts else gtsam.BetweenFactorPose3
    kernel = gtsam.noiseModel.mEstimator.GemanMcClure(float(np.sqrt(_kernel_width(problem))))
    a, b = problem.indices()
    factors = []
    chosen = np.flatnonzero(edges)
    measured = _poses(problem, problem.edges["T_a_b"][chosen])
    for i, T_a_b, covariance in zip(chosen, measured, _covariances(problem)[chosen], strict=True):
        noise = gtsam.noiseModel.Gaussian.Covariance(covariance[np.ix_(order, order)])
        if robust and problem.is_loop[i]:
            noise = gtsam.noiseModel.Robust.Create(kernel, noise)
        factors.append(between(int(a[i]), int(b[i]), T_a_b, noise))
    return factors


def _covariances(problem: GraphProblem) -> Matrix:
    """(E, 7, 7) noise and drift of each edge. Over its correlation length drift goes one way, so that a short edge
    must be allowed more than its share."""
    edges, drift = problem.edges, problem.drift
    way = edges["travelled"]
    drifted = (way * np.maximum(way, drift.correlation))[:, None] * drift.variances
    return algebra.covariances(edges["information"], edges["log_scale_sigma"]) + drifted[:, :, None] * np.eye(7)


def _chi2(problem: GraphProblem, poses: Matrix) -> Matrix:
    """(E,) squared Mahalanobis distances of the measurements from poses."""
    a, b = problem.indices()
    d = problem.dimension
    difference = algebra.local(se3.inverse(problem.edges["T_a_b"]) @ se3.inverse(poses[a]) @ poses[b])[:, :d]
    return algebra.mahalanobis(difference, _covariances(problem)[:, :d, :d])


def _weights(problem: GraphProblem, chi2s: Matrix) -> Matrix:
    """(E,) Geman–McClure weights of loops, 1 for the others."""
    width = _kernel_width(problem)
    return np.where(problem.is_loop, np.square(width / (width + chi2s)), 1.0)


def _kernel_width(problem: GraphProblem) -> float:
    return float(chi2.ppf(1 - KERNEL_SIGNIFICANCE, problem.dimension))
