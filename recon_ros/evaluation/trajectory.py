# SPDX-License-Identifier: Apache-2.0
"""Errors of an estimated trajectory against the truth: absolute (ATE), relative (RPE) and coverage.

Definitions: Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems", IROS 2012. Alignment:
Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991.
Computed by evo.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from evo.core import geometry, metrics, sync
from evo.core.filters import FilterException
from evo.core.trajectory import PosePath3D
from evo.core.units import Unit
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from recon_ros.errors import DatasetError
from recon_ros.frame import Trajectory
from recon_ros.geometry import se3

TOLERANCE_NS = 5_000_000
MIN_PAIRS = 3
# Positions that deviate less than this, relative to their extent, from a line do not fix a rotation.
LINE_RATIO = 1e-3


def evaluate_trajectory(estimate: Trajectory, truth: Trajectory, tolerance_ns: int = TOLERANCE_NS) -> dict[str, Any]:
    """All errors of a trajectory, as plain numbers ready for JSON.

    Args:
        estimate: T_world_camera, in any world frame and of any scale.
        truth: T_truth_camera, metres.
        tolerance_ns: two poses belong together when their stamps differ by at most this.

    Returns:
        ``se3_rmse, se3_mean, se3_median, se3_max``: position errors in metres after the best rigid alignment;
        ``sim3_…``: the same after the best similarity alignment, with its ``scale`` (what the estimate must
        be multiplied by);
        ``rpe_frame_m, rpe_frame_rad``: rmse of the relative motion between consecutive pairs, unaligned;
        ``rpe_metre_m, rpe_metre_rad``: the same over each metre of the true path, None where it is shorter;
        ``coverage``: share of the true poses that have an estimate; ``pairs``: how many were compared;
        ``path_length``: metres of the true path.

    Raises:
        DatasetError: when fewer than three poses belong together.
    """
    matched, reference = associate(estimate, truth, tolerance_ns)
    result: dict[str, Any] = {}
    for name, with_scale in (("se3", False), ("sim3", True)):
        T_truth_world = alignment(matched, reference, with_scale)
        errors = position_errors(matched, reference, T_truth_world)
        result |= {f"{name}_{statistic}": value for statistic, value in _statistics(errors).items()}
    result["scale"] = se3.scale_of(T_truth_world)
    result |= _relative_errors(matched, reference)
    result["coverage"] = len(matched) / len(truth)
    result["pairs"] = len(matched)
    result["path_length"] = float(np.linalg.norm(np.diff(truth.positions, axis=0), axis=1).sum())
    return result


def associate(
    estimate: Trajectory, truth: Trajectory, tolerance_ns: int = TOLERANCE_NS
) -> tuple[Trajectory, Trajectory]:
    """The poses of both that belong together by their stamps, in two trajectories of equal length.

    Each pose of the shorter trajectory takes the nearest of the longer one.

    Raises:
        DatasetError: when fewer than three pairs are found.
    """
    if len(estimate) < MIN_PAIRS or len(truth) < MIN_PAIRS:
        raise DatasetError(
            f"cannot compare a trajectory of {len(estimate)} poses with a truth of {len(truth)}: "
            f"at least {MIN_PAIRS} of each are needed"
        )
    # evo counts in float seconds, which hold nanoseconds only near zero.
    origin = truth.stamps_ns[0]
    shorter, longer = sorted((estimate, truth), key=len)
    in_shorter, in_longer = sync.matching_time_indices(
        (shorter.stamps_ns - origin) * 1e-9, (longer.stamps_ns - origin) * 1e-9, (tolerance_ns + 0.5) * 1e-9
    )
    if len(in_shorter) < MIN_PAIRS:
        raise DatasetError(
            f"only {len(in_shorter)} of the poses have a true pose within {tolerance_ns / 1e6:g} ms; "
            f"the estimate runs from {estimate.stamps_ns[0]} to {estimate.stamps_ns[-1]} ns, the truth from "
            f"{truth.stamps_ns[0]} to {truth.stamps_ns[-1]} ns"
        )
    pair = _selected(shorter, in_shorter), _selected(longer, in_longer)
    return pair if shorter is estimate else (pair[1], pair[0])


def _selected(trajectory: Trajectory, indices: list[int]) -> Trajectory:
    return Trajectory(trajectory.stamps_ns[indices], trajectory.poses[indices])


def alignment(estimate: Trajectory, truth: Trajectory, with_scale: bool = False) -> NDArray[np.float64]:
    """The T_truth_world that brings an estimate closest to the truth.

    Positions decide (Umeyama). Where they all lie on one line, or in one point, they leave a rotation open;
    then the mean difference of the orientations decides about it.

    Args:
        estimate, truth: of equal length, as from `associate`.
        with_scale: also find the scale, Sim(3) instead of SE(3).

    Returns:
        (4, 4) float64.
    """
    x, y = estimate.positions, truth.positions
    if _on_a_line(x) or _on_a_line(y):
        return _aligned_by_orientation(estimate, truth, with_scale)
    R, t, scale = geometry.umeyama_alignment(x.T, y.T, with_scale)
    return se3.make(R, t, scale)


def _on_a_line(positions: NDArray[np.float64]) -> bool:
    extents = np.linalg.svd(positions - positions.mean(axis=0), compute_uv=False)
    return bool(extents[1] <= LINE_RATIO * extents[0])


def _aligned_by_orientation(estimate: Trajectory, truth: Trajectory, with_scale: bool) -> NDArray[np.float64]:
    """Rotation by the chordal mean of the orientations' differences, the rest by least squares."""
    turns = truth.poses[:, :3, :3] @ se3.inverse(estimate.poses)[:, :3, :3]
    R = Rotation.from_matrix(turns).mean().as_matrix()
    x_mean, y_mean = estimate.positions.mean(axis=0), truth.positions.mean(axis=0)
    x, y = (estimate.positions - x_mean) @ R.T, truth.positions - y_mean
    spread = float(np.sum(x * x))
    scale = float(np.sum(x * y)) / spread if with_scale and spread > 0 else 1.0
    if scale <= 0:
        scale = 1.0
    return se3.make(R, y_mean - scale * R @ x_mean, scale)


def position_errors(estimate: Trajectory, truth: Trajectory, T_truth_world: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) metres between the true and the aligned estimated camera centres of associated trajectories."""
    aligned = se3.transform(T_truth_world, estimate.positions)
    distances: NDArray[np.float64] = np.linalg.norm(aligned - truth.positions, axis=1)
    return distances


def transformed(trajectory: Trajectory, T_truth_world: NDArray[np.float64]) -> Trajectory:
    """The trajectory in the frame of the truth; a scale goes to the positions, the poses stay rigid."""
    poses = T_truth_world @ trajectory.poses
    poses[:, :3, :3] /= se3.scale_of(T_truth_world)
    return Trajectory(trajectory.stamps_ns, poses)


def _statistics(errors: NDArray[np.float64]) -> dict[str, float]:
    return {
        "rmse": float(np.sqrt(np.mean(errors**2))),
        "mean": float(np.mean(errors)),
        "median": float(np.median(errors)),
        "max": float(np.max(errors)),
    }


def _relative_errors(estimate: Trajectory, truth: Trajectory) -> dict[str, float | None]:
    """RPE between neighbours and over a metre."""
    data = tuple(PosePath3D(poses_se3=list(t.poses)) for t in (truth, estimate))
    result: dict[str, float | None] = {}
    for name, delta, unit in (("frame", 1, Unit.frames), ("metre", 1.0, Unit.meters)):
        for suffix, relation in (
            ("m", metrics.PoseRelation.translation_part),
            ("rad", metrics.PoseRelation.rotation_angle_rad),
        ):
            metric = metrics.RPE(relation, delta, unit, all_pairs=True, pairs_from_reference=True)
            try:
                metric.process_data(data)
            except FilterException:  # no two poses are a metre apart
                result[f"rpe_{name}_{suffix}"] = None
            else:
                result[f"rpe_{name}_{suffix}"] = float(metric.get_statistic(metrics.StatisticsType.rmse))
    return result
