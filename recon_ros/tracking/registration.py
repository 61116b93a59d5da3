# SPDX-License-Identifier: Apache-2.0
"""A view against keyframes: their points found again in it, and its surface laid onto theirs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Keyframe
from recon_ros.geometry import frustum, se3
from recon_ros.geometry.features import match_guided
from recon_ros.geometry.pnp import Observations
from recon_ros.geometry.surface import register
from recon_ros.memory.store import KeyframeStore
from recon_ros.tracking.view import View

Matrix = NDArray[np.float64]


def observe(view: View, keyframes: Sequence[Keyframe], T_world_camera: Matrix, radius: float) -> Observations:
    """The keyframes' points found again within so many pixels of where a (4, 4) pose puts them."""
    T_camera_world = se3.inverse(T_world_camera)
    parts = []
    for keyframe in keyframes:
        points = se3.transform(keyframe.T_world_camera, keyframe.features.points.astype(np.float64))
        expected = se3.transform(T_camera_world, points)
        visible = np.flatnonzero(frustum.inside(expected, view.camera))
        pairs = match_guided(
            view.camera.project(expected[visible]),
            keyframe.features.descriptors[visible],
            view.tree,
            view.features.descriptors,
            radius,
        )
        parts.append(observations_of(view, points[visible[pairs[:, 0]]], pairs[:, 1]))
    return Observations.concatenated(parts)


def observations_of(view: View, points: Matrix, feature: NDArray[np.int64]) -> Observations:
    """Observations of (N, 3) world points at the view's features of (N,) given indices."""
    features = view.features
    pixels, depths = features.pixels[feature].astype(np.float64), features.points[feature, 2].astype(np.float64)
    return Observations(points, pixels, depths, feature)


def settle(
    view: View,
    store: KeyframeStore,
    keyframes: Sequence[Keyframe],
    T_world_camera: Matrix,
    information: Matrix,
    surface_sigma: float,
) -> tuple[Matrix, Matrix]:
    """A pose from features fused with registrations of the view's surface, each weighed by its information.

    Args:
        view: the frame.
        store: with the keyframes' surfaces.
        keyframes: to register it with.
        T_world_camera: (4, 4).
        information: (6, 6) of a right perturbation (v, ω) of it.
        surface_sigma: see `surface.register`; not above 0, nothing is registered.

    Returns:
        The pose and its information, as they were where there is no surface.
    """
    # Distances to surfaces mean something in metres only.
    if surface_sigma <= 0 or not view.prediction.is_metric or view.surface is None:
        return T_world_camera, information
    total, pull = information.copy(), np.zeros(6)
    for keyframe in keyframes:
        target = store.surface(keyframe.id)
        if target is None:
            continue
        T_keyframe_camera = se3.inverse(keyframe.T_world_camera) @ T_world_camera
        registration = register(target, view.surface, T_keyframe_camera, surface_sigma)
        if registration is not None:
            offset = se3.log(se3.inverse(T_keyframe_camera) @ registration.T_target_source)
            total += registration.information
            pull += registration.information @ offset
    settled = T_world_camera @ se3.exp(np.linalg.solve(total, pull))
    return se3.orthonormalised(settled), total
