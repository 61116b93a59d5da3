# SPDX-License-Identifier: Apache-2.0
"""A cloud as a picture from above: which way is up, how to turn it, and the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Cloud, Trajectory
from recon_ros.geometry import se3

HEADROOM = 0.3  # points higher above the camera than this share of its own height are cut off, as ceilings are
STRAIGHTENING_POINTS, STRAIGHTENING_BINS = 40_000, 240
FILLING_ROUNDS = 10
MARGIN_PERCENTILE = 0.2
BRIGHTER = np.round(255.0 * (np.arange(256) / 255.0) ** 0.75).astype(np.uint8)  # shelves are dark inside


@dataclass(frozen=True, eq=False)
class TopView:
    """An image of a map from above.

    Attributes:
        image: (H, W, 4) uint8 RGBA, transparent where nothing is.
        extent: (x0, x1, y0, y1) of the image in the view's frame, its unit the map's.
        T_view_world: (4, 4) rigid; x right and y up the picture, z up, origin on the start of the trajectory.
    """

    image: NDArray[np.uint8]
    extent: tuple[float, float, float, float]
    T_view_world: NDArray[np.float64]


def top_view(cloud: Cloud, trajectory: Trajectory, pixels: int = 1000) -> TopView:
    """Look at a map from above.

    Up is the mean of the cameras' own up (−y), which needs no gravity-aligned world; the map is turned so
    that its walls lie straight, long side across.

    Args:
        cloud: the map; may be empty.
        trajectory: T_world_camera in the map's world, at least one pose.
        pixels: width of the image, roughly.
    """
    T = _levelled(trajectory)
    points, colours = _without_ceiling(cloud, trajectory, T)
    turn = se3.make(_straightening(points if len(points) else se3.transform(T, trajectory.positions)), np.zeros(3))
    T, points = turn @ T, se3.transform(turn, points)
    low, high = _bounds(points, se3.transform(T, trajectory.positions))
    cell = float(max(high[0] - low[0], 1e-6)) / pixels
    inside = np.all((points[:, :2] >= low) & (points[:, :2] < high), axis=1)
    image = _painted(points[inside], colours[inside], low, high, cell)
    return TopView(image, (float(low[0]), float(high[0]), float(low[1]), float(high[1])), T)


def _levelled(trajectory: Trajectory) -> NDArray[np.float64]:
    """T_level_world: z along the mean up of the cameras, origin at the first camera."""
    up = -trajectory.poses[:, :3, 1].mean(axis=0)
    norm = np.linalg.norm(up)
    z = up / norm if norm > 1e-6 else np.array([0.0, 0.0, 1.0])
    x = np.cross([0.0, 1.0, 0.0] if abs(z[1]) < 0.9 else [1.0, 0.0, 0.0], z)
    x /= np.linalg.norm(x)
    R = np.stack([x, np.cross(z, x), z])
    return se3.make(R, -R @ trajectory.positions[0])


def _without_ceiling(
    cloud: Cloud, trajectory: Trajectory, T: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    points = se3.transform(T, cloud.points.astype(np.float64))
    finite = np.all(np.isfinite(points), axis=1)
    points, colours = points[finite], cloud.colours[finite]
    if len(points) == 0:
        return points, colours
    eye = float(np.median(se3.transform(T, trajectory.positions)[:, 2]))
    floor = float(np.percentile(points[:, 2], 2))
    low_enough = points[:, 2] < eye + HEADROOM * max(eye - floor, 0.0)
    if low_enough.mean() < 0.2:  # the camera looks at things above it only
        return points, colours
    return points[low_enough], colours[low_enough]


def _straightening(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) rotation about z that lays walls and shelves straight, the longer side of the whole across.

    Walls are seen edge-on from above, so along their direction the points pile up in few rows: that angle is
    taken whose histograms across and along are the most uneven (largest sum of squares).
    """
    plane = points[:, :2] - np.median(points[:, :2], axis=0)
    plane = plane[:: max(1, len(plane) // STRAIGHTENING_POINTS)]
    radius = float(np.percentile(np.linalg.norm(plane, axis=1), 98)) + 1e-9

    def unevenness(angle: float) -> float:
        turned = plane @ _turn(angle)[:2, :2].T
        counts = [np.histogram(turned[:, k], bins=STRAIGHTENING_BINS, range=(-radius, radius))[0] for k in (0, 1)]
        return float(np.sum(np.square(counts, dtype=float)))

    coarse = max(np.radians(np.arange(0.0, 90.0, 2.0)), key=unevenness)
    angle = max(coarse + np.radians(np.arange(-2.0, 2.01, 0.25)), key=unevenness)
    width, height = np.ptp(np.percentile(plane @ _turn(angle)[:2, :2].T, [1, 99], axis=0), axis=0)
    # Of the four ways to lie straight: the long side across, and the smaller turn.
    angle += np.pi / 2 if height > width else 0.0
    return _turn(angle - np.pi if angle > np.pi / 2 else angle)


def _turn(angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _bounds(points: NDArray[np.float64], path: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners around nearly all points and the whole path, with a margin."""
    low, high = path[:, :2].min(axis=0), path[:, :2].max(axis=0)
    if len(points):
        p_low, p_high = np.percentile(points[:, :2], [MARGIN_PERCENTILE, 100 - MARGIN_PERCENTILE], axis=0)
        low, high = np.minimum(low, p_low), np.maximum(high, p_high)
    margin = 0.02 * float((high - low).max()) + 1e-3
    return low - margin, high + margin


def _painted(
    points: NDArray[np.float64],
    colours: NDArray[np.uint8],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    cell: float,
) -> NDArray[np.uint8]:
    """The highest point of each cell gives its colour; small gaps between points are closed."""
    width, height = np.maximum(np.ceil((high - low) / cell).astype(int), 1)
    image = np.zeros((height, width, 4), np.uint8)
    if len(points) == 0:
        return image
    order = np.argsort(points[:, 2], kind="stable")
    column = np.minimum(((points[order, 0] - low[0]) / cell).astype(int), width - 1)
    row = np.minimum(((high[1] - points[order, 1]) / cell).astype(int), height - 1)
    image[row, column, :3] = BRIGHTER[colours[order]]
    image[row, column, 3] = 255
    # First the gaps between points, then holes; with four neighbours straight edges do not grow.
    for round_ in range(FILLING_ROUNDS):
        image = _filled(image, neighbours=3 if round_ < 2 else 4)
    return image


def _filled(image: NDArray[np.uint8], neighbours: int) -> NDArray[np.uint8]:
    """Empty cells with at least so many of eight neighbours take their mean colour."""
    full = (image[..., 3] > 0).astype(np.float32)
    count = cv2.boxFilter(full, -1, (3, 3), normalize=False)
    total = cv2.boxFilter(image[..., :3].astype(np.float32) * full[..., None], -1, (3, 3), normalize=False)
    gaps = (full == 0) & (count >= neighbours)
    result = image.copy()
    result[gaps, :3] = (total[gaps] / count[gaps][:, None]).astype(np.uint8)
    result[gaps, 3] = 255
    return result
