# SPDX-License-Identifier: Apache-2.0
"""Keyframes as sides of a two-view verification, their neighbours, and whether two answers contradict each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Keyframe
from recon_ros.geometry import pointmap, se3
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.two_view import Side
from recon_ros.memory.store import KeyframeStore

PROBE_POINTS = 400
NEIGHBOUR_OVERLAP = 0.2
SAME_PLACE = (0.1, 0.1)
"""Two answers are one when they differ by less than this share of the depth, and this angle in radians."""


def side_of(keyframe: Keyframe, store: KeyframeStore) -> Side:
    """A stored keyframe as one of two views; its surface is the store's."""
    return Side(
        keyframe.features,
        image_camera(keyframe),
        keyframe.is_metric,
        keyframe.points[..., 2],
        keyframe.camera,
        lambda: store.surface(keyframe.id),
    )


def image_camera(keyframe: Keyframe) -> Camera:
    """The camera of the image a keyframe's keypoints were found in, `keyframe.camera` being that of its pointmap.

    The pointmap is every n-th pixel beginning with n // 2; n follows from where both cameras see the located keypoints.
    """
    features, camera = keyframe.features.only_located(), keyframe.camera
    if len(features) < 2:
        return camera
    strided = camera.project(features.points.astype(np.float64))
    stride = max(1, round(float(np.ptp(features.pixels, axis=0).max() / max(np.ptp(strided, axis=0).max(), 1e-6))))
    K = camera.K.copy()
    K[:2] *= stride
    K[:2, 2] += stride // 2
    return Camera(camera.width * stride, camera.height * stride, K)


def median_depth(keyframe: Keyframe) -> float:
    """Of its points, in their own unit; 1 without any."""
    z = pointmap.strided(keyframe.points.astype(np.float32), PROBE_POINTS)[:, 2]
    return float(np.median(z)) if len(z) else 1.0


def neighbours(keyframe: Keyframe, store: KeyframeStore, count: int) -> list[Keyframe]:
    """The keyframes that see most of what this one sees, by the present poses, best first."""
    near = covisible(keyframe, keyframe.T_world_camera, store.submap_of(keyframe.id), store)
    return [k for k in near if k.id != keyframe.id][:count]


def covisible(
    keyframe: Keyframe, T_world_camera: NDArray[np.float64], submap: int, store: KeyframeStore
) -> list[Keyframe]:
    """The keyframes that see most of what this one would see from a pose in a submap, best first."""
    probe = pointmap.strided(keyframe.points.astype(np.float32), PROBE_POINTS)
    ids, shares = store.overlaps(probe, T_world_camera, submap)
    order = np.argsort(-shares, kind="stable")
    return [store[int(ids[i])] for i in order if shares[i] > NEIGHBOUR_OVERLAP]


def are_one(T_a: NDArray[np.float64], T_b: NDArray[np.float64], depth: float) -> bool:
    """Whether two poses of one camera are the same, seen against the depth of its view (in the world's unit)."""
    between = se3.inverse(T_a) @ T_b
    moved, turned = se3.distance(between)
    scale = se3.scale_of(T_a)  # the distance is in the camera's own unit
    return moved * scale < SAME_PLACE[0] * depth and turned < SAME_PLACE[1]
