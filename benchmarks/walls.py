# SPDX-License-Identifier: Apache-2.0
"""How far apart a map shows one wall that was seen in two laps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from recon_ros.geometry import se3

MAX_RANGE = 3.5
"""Beyond it the sensor's noise is as thick as what is measured, metres."""
NEIGHBOURS = 24
SAME_WALL = 0.25
"""Points of both laps are of one wall when they are truly within this, and within `SAME_PLANE` of its plane, metres."""
SAME_PLANE = 0.03
FLATNESS = 0.05
"""Largest share of a patch's extent across its plane."""
PATCH = 0.5
"""Edge of the patches over which distances are averaged, metres: the sensor's noise is not the map's thickness."""
MIN_POINTS = 10

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """What a camera measured somewhere.

    Attributes:
        points: (..., 3) of the camera frame, NaN where there is none.
        T_mapped, T_true: (4, 4) T_world_camera by the map and in reality, in one world.
    """

    points: NDArray[np.floating]
    T_mapped: Matrix
    T_true: Matrix


@dataclass(frozen=True, eq=False)
class Lap:
    """The points of one lap.

    Attributes:
        true: (N, 3) where they really are.
        mapped: (N, 3) where the map has them.
        turn: (N, 3, 3) rotation from the real place to the map's.
    """

    true: Matrix
    mapped: Matrix
    turn: Matrix


def lap_points(views: Iterable[View]) -> Lap:
    """Points of views, in the map and in reality."""
    parts: list[tuple[Matrix, Matrix, Matrix]] = []
    for view in views:
        near = np.isfinite(view.points[..., 2]) & (view.points[..., 2] < MAX_RANGE)
        seen = view.points[near].astype(np.float64)
        turn = view.T_mapped[:3, :3] / se3.scale_of(view.T_mapped) @ view.T_true[:3, :3].T
        parts.append(
            (
                se3.transform(view.T_true, seen),
                se3.transform(view.T_mapped, seen),
                np.broadcast_to(turn, (len(seen), 3, 3)),
            )
        )
    true, mapped, turns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Lap(true, mapped, turns)


def thicknesses(first: Lap, second: Lap) -> Matrix:
    """(P,) distance of both laps' surfaces across each patch of wall seen in both, metres.

    What belongs together is told by where the points really are; how far apart it is, by where the map has them.
    """
    found = cKDTree(first.true).query(second.true, NEIGHBOURS, distance_upper_bound=SAME_WALL)
    distance, index = np.asarray(found[0]), np.asarray(found[1])
    met = np.isfinite(distance).all(axis=1)
    index, points, mapped = index[met], second.true[met], second.mapped[met]
    around = first.true[index]
    centre = around.mean(axis=1)
    spread = np.einsum("nki,nkj->nij", around - centre[:, None], around - centre[:, None])
    extent, axes = np.linalg.eigh(spread)
    normal = axes[:, :, 0]
    height = np.einsum("ni,ni->n", normal, points - centre)
    same = (np.abs(height) < SAME_PLANE) & (extent[:, 0] < FLATNESS * extent[:, 1])
    index, normal, mapped, centre = index[same], normal[same], mapped[same], centre[same]
    turned = np.einsum("nij,nj->ni", first.turn[index[:, 0]], normal)
    between = np.einsum("ni,ni->n", turned, mapped - first.mapped[index].mean(axis=1))
    return _patch_means(centre, normal, between)


def _patch_means(places: Matrix, normals: Matrix, values: Matrix) -> Matrix:
    """Size of the median of the values in each patch with enough of them."""
    axis = np.argmax(np.abs(normals), axis=1)
    sign = np.sign(np.take_along_axis(normals, axis[:, None], 1)[:, 0])
    keys = np.concatenate([np.floor(places / PATCH).astype(np.int64), axis[:, None]], axis=1)
    _, patch = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(patch, kind="stable")
    groups = np.split((values * sign)[order], np.flatnonzero(np.diff(patch[order])) + 1)
    return np.array([abs(float(np.median(group))) for group in groups if len(group) >= MIN_POINTS])
