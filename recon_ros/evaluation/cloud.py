# SPDX-License-Identifier: Apache-2.0
"""How close a map cloud is to the truth: accuracy (map → truth) and completeness (truth → map).

The truth is the recording's own depth fused at the true poses, up to a range. It knows nothing of what no
camera saw from within that range, so a map point counts for accuracy only where the truth looked: inside some
view's frustum, in the free space before a measured surface or up to `BEHIND` behind it (so that doubled walls
count). Every truth point counts for completeness, since the map was shown the same images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from recon_ros.errors import DatasetError
from recon_ros.evaluation.trajectory import TOLERANCE_NS
from recon_ros.frame import Cloud, Frame, Trajectory
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera

PIXEL_STRIDE = 2
VIEW_STRIDE = 4  # of the depth kept to tell where the truth looked
VIEW_DISTANCE, VIEW_ANGLE = 0.2, 0.15  # metres, radians between the views kept
BEHIND = 0.3
NEAR = 0.05  # the ratios are shares of points nearer than this, metres
MAX_QUERIES = 200_000


@dataclass(frozen=True, eq=False)
class View:
    """What one camera saw: (4, 4) T_camera_world, the camera and its (h, w) float32 depth, NaN unknown."""

    T_camera_world: NDArray[np.float64]
    camera: Camera
    depth: NDArray[np.float32]

    def observes(self, points: NDArray[np.float32], max_range: float) -> NDArray[np.bool_]:
        """(N,) True for world points in this view's free space or near its surfaces, up to `max_range`."""
        local = se3.transform(self.T_camera_world, points)
        with np.errstate(invalid="ignore"):
            pixels = np.rint(np.nan_to_num(self.camera.project(local), nan=-1.0)).astype(int)
        u, v = pixels.T
        inside = (u >= 0) & (v >= 0) & (u < self.camera.width) & (v < self.camera.height)
        surface = self.depth[v[inside], u[inside]]
        observed = inside.copy()
        observed[inside] = local[inside, 2] <= np.where(surface > max_range, max_range, surface + BEHIND)
        return observed


@dataclass(frozen=True, eq=False)
class TruthCloud:
    """The true surface, (N, 3) float32 metres, and the views it was fused from."""

    points: NDArray[np.float32]
    views: list[View]
    max_range: float

    def observed(self, points: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(N,) True for the points some view looked at."""
        observed = np.zeros(len(points), bool)
        for view in self.views:
            rest = np.flatnonzero(~observed)
            observed[rest[view.observes(points[rest], self.max_range)]] = True
        return observed


def truth_cloud(frames: Iterable[Frame], truth: Trajectory, max_range: float = 5.0, voxel: float = 0.02) -> TruthCloud:
    """Depth of the frames fused at their true poses; each occupied voxel gives the mean of its points.

    Args:
        frames: with depth and an undistorted camera; others are passed over.
        truth: T_truth_camera; a frame without a pose within 5 ms is passed over.
        max_range: depth beyond it, metres along z, is not used.
        voxel: edge in metres.

    Raises:
        DatasetError: when no frame has depth, camera and pose.
    """
    fusion = _VoxelMean(voxel)
    views: list[View] = []
    for frame in frames:
        pose = _pose_at(truth, frame.stamp_ns)
        if frame.depth is None or frame.camera is None or pose is None:
            continue
        rows = np.s_[PIXEL_STRIDE // 2 :: PIXEL_STRIDE, PIXEL_STRIDE // 2 :: PIXEL_STRIDE]
        depth = frame.depth[rows]
        points = (frame.camera.rays()[rows] * depth[..., None])[depth <= max_range]
        fusion.add(se3.transform(pose, points.astype(np.float64)))
        if not views or _moved(views[-1].T_camera_world @ pose):
            views.append(_view(frame.camera, frame.depth, pose))
    if not views:
        raise DatasetError("no frame has depth, a camera and a true pose: there is no true cloud to compare with")
    return TruthCloud(fusion.points(), views, max_range)


def _pose_at(truth: Trajectory, stamp_ns: int) -> NDArray[np.float64] | None:
    if len(truth) == 0:
        return None
    nearest = int(np.argmin(np.abs(truth.stamps_ns - stamp_ns)))
    return truth.poses[nearest] if abs(int(truth.stamps_ns[nearest]) - stamp_ns) <= TOLERANCE_NS else None


def _moved(motion: NDArray[np.float64]) -> bool:
    distance, angle = se3.distance(motion)
    return distance > VIEW_DISTANCE or angle > VIEW_ANGLE


def _view(camera: Camera, depth: NDArray[np.float32], pose: NDArray[np.float64]) -> View:
    small = depth[VIEW_STRIDE // 2 :: VIEW_STRIDE, VIEW_STRIDE // 2 :: VIEW_STRIDE].copy()
    shifted = camera.cropped(VIEW_STRIDE // 2, VIEW_STRIDE // 2, small.shape[1], small.shape[0])
    K = shifted.K.copy()
    K[:2] /= VIEW_STRIDE  # pixel (0, 0) of the subsampled image is the pixel the crop begins with
    return View(se3.inverse(pose), Camera(small.shape[1], small.shape[0], K), small)


class _VoxelMean:
    """Sums of points per voxel, merged now and then so that memory follows the surface, not the frames."""

    LIMIT = 3_000_000

    def __init__(self, voxel: float) -> None:
        self.voxel = voxel
        self.keys = np.zeros(0, np.int64)
        self.sums = np.zeros((0, 4))
        self.pending: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []

    def add(self, points: NDArray[np.float64]) -> None:
        """(N, 3) points."""
        cells = np.floor(points / self.voxel).astype(np.int64) + 2**20
        keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
        self.pending.append(_summed(keys, np.hstack([points, np.ones((len(points), 1))])))
        if sum(len(k) for k, _ in self.pending) > self.LIMIT:
            self._merge()

    def _merge(self) -> None:
        parts = [(self.keys, self.sums), *self.pending]
        self.keys, self.sums = _summed(np.concatenate([k for k, _ in parts]), np.concatenate([s for _, s in parts]))
        self.pending.clear()

    def points(self) -> NDArray[np.float32]:
        """(M, 3) means, ordered by voxel."""
        self._merge()
        return (self.sums[:, :3] / self.sums[:, 3:]).astype(np.float32)


def _summed(keys: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The distinct keys in order and the sum of each one's values."""
    if len(keys) == 0:
        return keys, values
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], np.add.reduceat(values[order], starts, axis=0)


def evaluate_cloud(cloud: Cloud, truth: TruthCloud, T_truth_world: NDArray[np.float64]) -> dict[str, Any] | None:
    """Distances of the map to the truth and back, as plain numbers ready for JSON.

    Args:
        cloud: the map, in its own world.
        truth: from `truth_cloud`.
        T_truth_world: (4, 4) alignment of the trajectories, from `evaluation.trajectory.alignment`.

    Returns:
        ``accuracy_mean, accuracy_median`` in metres and ``accuracy_ratio_5cm``; ``completeness_…`` likewise;
        ``judged``: map points that counted for accuracy, ``points`` all of them, ``truth_points``. None when
        no point of the map lies where the truth looked. Of more than 200,000 points every n-th is used.
    """
    points = se3.transform(T_truth_world, cloud.points.astype(np.float64)).astype(np.float32)
    points = points[np.all(np.isfinite(points), axis=1)]
    judged = points[truth.observed(points)]
    if len(judged) == 0 or len(truth.points) == 0:
        return None
    result: dict[str, Any] = {}
    for name, source, target in (("accuracy", judged, truth.points), ("completeness", truth.points, points)):
        distances, _ = cKDTree(target).query(source[:: -(-len(source) // MAX_QUERIES)])
        result[f"{name}_mean"] = float(np.mean(distances))
        result[f"{name}_median"] = float(np.median(distances))
        result[f"{name}_ratio_5cm"] = float(np.mean(distances < NEAR))
    return result | {"judged": len(judged), "points": len(points), "truth_points": len(truth.points)}
