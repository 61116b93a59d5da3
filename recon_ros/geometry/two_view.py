# SPDX-License-Identifier: Apache-2.0
"""Do two images show one place? Points found in both directions, depths, surfaces and free space must all agree.

A wrong loop bends a whole map, a missed one costs little, so each test here can only say no. Thresholds are measured on
all pairs of densely taken keyframes of a walk through an office (HoloLens) and two laps of the synthetic warehouse, and
against a warehouse whose racks are all filled alike:

- The number of inliers alone does not separate. Wrong poses reach 20 in the warehouse, where some boxes wear the same
  print, and 37 where all racks are alike; right ones with a change of view of 30° have as few. Nor does their share
  of the points looked for: 2 to 10 % in both.
- Free space does: of right pairs nearly none has more than 2 % of the one's points in front of what the other sees
  behind them; of wrong ones nearly all have 3 to 70 %.
- What still passes are views that show nothing but equal bays of two racks; only knowledge from outside the two
  images can tell them (`mapping.loops` has some).

Of 24,298 pairs whose frustums share less than 5 %, and 6,859 that share more, none was verified to a wrong pose; of
pairs that share 40 % and look the same way, all 320 in the warehouse were verified (0.3 cm off) and 32 of 86 in the
office (1.2 cm), 8 s or more apart. Where all racks are alike, 2 of 1,916 pairs were wrong, by one bay.

Where points are a network's and not metric, the scale is found along; with smooth errors of 3, 6 and 10 % in the depths
of rendered views, 8, 5 and 1 of 8 true pairs were recognised.

Where metric points are a network's, depths may differ by as much as its card says. With the compact network's (15 %),
9 of 13 true pairs of the warehouse were verified (6 cm off in the median, the worst 37 cm) and none of 1,421 wrong
ones; with the other tests loosened as well, 11 true ones were, and 2 wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from recon_ros.geometry import frustum, pnp, pointmap, se3, surface
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.features import Features, Pairs, match, match_guided
from recon_ros.geometry.pnp import Observations
from recon_ros.geometry.surface import Surface

Matrix = NDArray[np.float64]

MIN_SEEDS = 10
"""Points that RANSAC must find consistent in each direction before anything else is looked at."""
GUIDED_RADIUS = 10.0
"""Where a point is looked for once RANSAC has given a pose, pixels."""
AGREEMENT = 0.03
"""Largest difference of the two directions: of translations relative to the median depth, of angles in radians."""
DEPTH_TOLERANCE, DEPTH_TOLERANCE_OF_NETWORKS = 0.05, 0.15
"""Relative difference up to which two depths are the same (the second is an assumption, the first is measured)."""
DEPTH_SIGMAS, MOST_TOLERANCE = 2.0, 0.3
"""The same in standard deviations, where a source's depth is that bad; and at most, because with more nothing would
contradict anything.
"""
MAX_CONTRADICTION = 0.025
"""Largest share of points that would stand in front of what the other camera sees behind them."""
PROBE_POINTS, MIN_PROBED = 2000, 50
CELLS = 8
"""Cells along the width of an image in which inliers are counted."""
MIN_CELLS = 5
"""Cells that must hold an inlier in both images: one poster is not a place."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two images.

    Attributes:
        features: keypoints with descriptors and points of the camera frame, NaN where there is none.
        camera: undistorted, of the image the keypoints were found in.
        is_metric: the points are in metres.
        depth: (h, w) depth in the unit of the points, NaN where unknown, or None.
        depth_camera: undistorted, of `depth`; needed where there is one.
        surface: makes the depth surface; called for pairs that passed all else only. None: there is none.
    """

    features: Features
    camera: Camera
    is_metric: bool = True
    depth: NDArray[Any] | None = None
    depth_camera: Camera | None = None
    surface: Callable[[], Surface | None] | None = None


@dataclass(frozen=True)
class VerifySettings:
    """What two images must agree in.

    Attributes:
        min_inliers: keypoints that support the pose, in each direction.
        reprojection_threshold: of RANSAC, pixels.
        depth_sigma: relative standard deviation of depths.
        surface_sigma: see `surface.register`, metres; 0 leaves surfaces out.
    """

    min_inliers: int = 20
    reprojection_threshold: float = 3.0
    depth_sigma: float = 0.01
    surface_sigma: float = 0.02

    def depth_tolerance(self, a: Side, b: Side) -> float:
        """Relative difference up to which a depth of each side are the same."""
        usual = DEPTH_TOLERANCE if _both_metric(a, b) else DEPTH_TOLERANCE_OF_NETWORKS
        return max(usual, min(DEPTH_SIGMAS * self.depth_sigma, MOST_TOLERANCE))


DEFAULTS = VerifySettings()


@dataclass(frozen=True, eq=False)
class Verified:
    """Attributes:
    T_a_b: (4, 4) maps points of b to a; Sim(3) where a side is not metric, else SE(3).
    information: (6, 6) of a right perturbation (v, ω) of it in b's frame and unit.
    inliers: keypoints that support it, the smaller number of the two directions.
    ratio: their share of the points expected in the other image, the smaller one.
    """

    T_a_b: Matrix
    information: Matrix
    inliers: int
    ratio: float


@dataclass(frozen=True, eq=False)
class Sighting:
    """One side's points found in the other image.

    Attributes:
        T_to_from: (4, 4) Sim(3) from the side that gives the points to the side that gives the pixels.
        information: (6, 6) of a left perturbation (v, ω) in that camera's frame, in the unit of the points.
        pairs: (N, 2) inliers, indices into the keypoints of both.
        ratio: inliers among the points the pose puts into the image.
    """

    T_to_from: Matrix
    information: Matrix
    pairs: Pairs
    ratio: float


def verify(a: Side, b: Side, settings: VerifySettings = DEFAULTS) -> Verified | None:
    """The relative pose of two views of one place; None unless everything says that they are.

    Each side's points are located in the other's image (`locate`). The two poses must be inverse to each other.
    Where both sides have metric surfaces, these must register, and where they register weighs in. No side may see
    through what the other has seen (`contradiction`).
    """
    there = locate(a, b, settings)
    back = None if there is None else locate(b, a, settings)
    if there is None or back is None or not _agree(there, back, a, b, settings):
        return None
    T_a_b, information = _fused(there, back)
    if _both_metric(a, b) and settings.surface_sigma > 0:
        settled = _settled(a, b, T_a_b, information, settings.surface_sigma)
        if settled is None:
            return None
        T_a_b, information = settled
    tolerance = settings.depth_tolerance(a, b)
    through = (contradiction(a, b, se3.inverse(T_a_b), tolerance), contradiction(b, a, T_a_b, tolerance))
    if max(through) > MAX_CONTRADICTION:
        return None
    return Verified(T_a_b, information, min(len(there.pairs), len(back.pairs)), min(there.ratio, back.ratio))


def locate(a: Side, b: Side, settings: VerifySettings = DEFAULTS) -> Sighting | None:
    """The points of `a` in the image of `b`, and the pose this gives; None when too few are found, or all in one place.

    Free matches and RANSAC give a first pose. It says where in the image all other points must be; those found there
    count. Depths, where `b` has its own, must agree with it.
    """
    pairs = match(a.features, b.features)
    pairs = pairs[a.features.located[pairs[:, 0]]]
    if len(pairs) < MIN_SEEDS:
        return None
    found = pnp.ransac(_observations(a, b, pairs), b.camera, settings.reprojection_threshold)
    if found is None or len(found[1]) < MIN_SEEDS:
        return None
    T_b_a, seeds = found
    seed = pnp.refine(T_b_a, _observations(a, b, pairs[seeds]), b.camera, settings.depth_sigma)
    if seed is None:
        return None
    pairs, expected = _guided(a, b, seed.T_camera_w)
    if len(pairs) < settings.min_inliers:
        return None
    observations = _observations(a, b, pairs)
    refined = pnp.refine(seed.T_camera_w, observations, b.camera, settings.depth_sigma)
    if refined is None:
        return None
    pairs, observations = pairs[refined.inliers], observations[refined.inliers]
    scale = _scale(refined.T_camera_w, a, b, pairs, settings.depth_tolerance(a, b))
    ratio = len(pairs) / max(expected, 1)
    if scale is None or len(pairs) < settings.min_inliers:
        return None
    if min(_cells(a, pairs[:, 0]), _cells(b, pairs[:, 1])) < MIN_CELLS:
        return None
    T = refined.T_camera_w
    return Sighting(se3.make(T[:3, :3], scale * T[:3, 3], scale), refined.information, pairs, ratio)


def _observations(a: Side, b: Side, pairs: Pairs) -> Observations:
    """a's points at b's keypoints; b's depths count where both are metric."""
    points = a.features.points[pairs[:, 0]].astype(np.float64)
    depths = b.features.points[pairs[:, 1], 2].astype(np.float64)
    if not _both_metric(a, b):
        depths[:] = np.nan
    return Observations(points, b.features.pixels[pairs[:, 1]].astype(np.float64), depths, pairs[:, 1])


def _guided(a: Side, b: Side, T_b_a: Matrix) -> tuple[Pairs, int]:
    """Matches around where the pose puts a's points, and how many points it puts into the image."""
    expected = se3.transform(T_b_a, a.features.points.astype(np.float64))
    visible = np.flatnonzero(frustum.inside(expected, b.camera))
    pixels = b.camera.project(expected[visible])
    tree = cKDTree(b.features.pixels)
    pairs = match_guided(pixels, a.features.descriptors[visible], tree, b.features.descriptors, GUIDED_RADIUS)
    return np.stack([visible[pairs[:, 0]], pairs[:, 1]], axis=1), len(visible)


def _scale(T_b_a: Matrix, a: Side, b: Side, pairs: Pairs, tolerance: float) -> float | None:
    """Units of b in one of a, from the depths both know; None when they disagree, or metres are not metres."""
    here = se3.transform(T_b_a, a.features.points[pairs[:, 0]].astype(np.float64))[:, 2]
    there = b.features.points[pairs[:, 1], 2].astype(np.float64)
    known = np.isfinite(there)
    if np.count_nonzero(known) < MIN_SEEDS:
        return None
    quotient = there[known] / here[known]
    scale = float(np.median(quotient))
    if not scale > 0 or np.mean(np.abs(quotient / scale - 1) < tolerance) < 0.5:
        return None
    if _both_metric(a, b):
        return 1.0 if abs(scale - 1) < tolerance else None
    return scale


def _both_metric(a: Side, b: Side) -> bool:
    return a.is_metric and b.is_metric


def contradiction(a: Side, b: Side, T_b_a: Matrix, tolerance: float = DEPTH_TOLERANCE) -> float:
    """Share of a's points, of those where b knows depths, that would hide from b what b has seen; 0 without depths.

    What b has in front of them may hide them instead: that is no contradiction, nor is a depth that differs by no more
    than `tolerance`, relative.
    """
    if a.depth is None or a.depth_camera is None or b.depth is None or b.depth_camera is None:
        return 0.0
    points = pointmap.strided(pointmap.from_depth(a.depth.astype(np.float32), a.depth_camera), PROBE_POINTS)
    moved = se3.transform(T_b_a, points)
    moved = moved[frustum.inside(moved, b.depth_camera)]
    window = np.ones((3, 3), np.uint8)  # at an edge either depth will do
    nearest = cv2.erode(np.nan_to_num(b.depth.astype(np.float32), nan=np.inf), window)
    z = moved[:, 2]
    seen = pointmap.sample(nearest, b.depth_camera.project(moved))
    known = np.isfinite(seen)
    if np.count_nonzero(known) < MIN_PROBED:
        return 0.0
    return float(np.mean(z[known] < (1 - tolerance) * seen[known]))


def _cells(side: Side, features: NDArray[np.int64]) -> int:
    """Cells of the image that hold one of these keypoints."""
    cell = (side.features.pixels[features] * (CELLS / side.camera.width)).astype(np.int64)
    return len(np.unique(cell[:, 0] * 1000 + cell[:, 1]))


def _agree(there: Sighting, back: Sighting, a: Side, b: Side, settings: VerifySettings) -> bool:
    """The two directions give one pose: there and back again is where one was."""
    loop = back.T_to_from @ there.T_to_from
    depth = float(np.median(a.features.points[there.pairs[:, 0], 2]))
    moved, turned = se3.distance(loop)
    scaled = abs(np.log(se3.scale_of(loop)))
    return moved < AGREEMENT * depth and turned < AGREEMENT and scaled < settings.depth_tolerance(a, b)


def _fused(there: Sighting, back: Sighting) -> tuple[Matrix, Matrix]:
    """T_a_b and its information from both directions, which share their noise: the mean, not the sum."""
    T_a_b = se3.inverse(there.T_to_from)
    unit = np.diag([1 / se3.scale_of(there.T_to_from)] * 3 + [1.0] * 3)  # of a's to b's
    forward = unit @ there.information @ unit
    rigid = back.T_to_from.copy()
    scale = se3.scale_of(rigid)
    rigid[:3] /= scale  # in b's unit
    adjoint = np.zeros((6, 6))
    adjoint[:3, :3] = adjoint[3:, 3:] = rigid[:3, :3]
    adjoint[:3, 3:] = se3.skew(rigid[:3, 3]) @ rigid[:3, :3]
    backward = adjoint.T @ back.information @ adjoint
    total = forward + backward
    between = se3.inverse(T_a_b) @ back.T_to_from
    between[:3, :3] /= se3.scale_of(between)
    step = np.linalg.solve(total, backward @ se3.log(between))
    mean_scale = float(np.sqrt(scale / se3.scale_of(there.T_to_from)))
    T = T_a_b @ se3.exp(step)
    T[:3, :3] *= mean_scale / se3.scale_of(T)
    return T, 0.5 * total


def _settled(a: Side, b: Side, T_a_b: Matrix, information: Matrix, sigma: float) -> tuple[Matrix, Matrix] | None:
    """The pose weighed with the registration of the surfaces; None when they do not fit where features say."""
    target, source = (side.surface() if side.surface is not None else None for side in (a, b))
    if target is None or source is None:
        return T_a_b, information
    registration = surface.register(target, source, T_a_b, sigma)
    if registration is None:
        return None
    offset = se3.log(se3.inverse(T_a_b) @ registration.T_target_source)
    total = information + registration.information
    step = np.linalg.solve(total, registration.information @ offset)
    return se3.orthonormalised(T_a_b @ se3.exp(step)), total
