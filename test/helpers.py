# SPDX-License-Identifier: Apache-2.0
"""What the tests of the core share: random cameras, poses and keyframes."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from recon_ros.frame import Keyframe
from recon_ros.geometry import pointmap, se3
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.features import Features

quick = settings(deadline=None, max_examples=40, derandomize=True)
"""Hypothesis settings: the same examples each time, and no clock."""


def seeds() -> st.SearchStrategy[int]:
    """Seeds of numpy generators, for what is too large to be drawn number by number."""
    return st.integers(0, 2**32 - 1)


@st.composite
def cameras(draw: st.DrawFn, largest: int = 2000) -> Camera:
    """Undistorted cameras of plausible size and field of view, principal point anywhere near the middle."""
    width, height = draw(st.integers(32, largest)), draw(st.integers(32, largest))
    fx, fy = (draw(st.floats(0.4, 3.0)) * max(width, height) for _ in range(2))
    cx, cy = (draw(st.floats(0.3, 0.7)) * side for side in (width, height))
    return Camera(width, height, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))


def random_rotation(rng: np.random.Generator, most: float = np.pi) -> np.ndarray:
    """(3, 3) rotation about a random axis by at most `most` radians."""
    axis = rng.normal(size=3)
    twist = np.concatenate([np.zeros(3), axis / np.linalg.norm(axis) * rng.uniform(0, most)])
    return se3.exp(twist)[:3, :3]


def random_pose(rng: np.random.Generator, metres: float = 5.0, radians: float = np.pi) -> np.ndarray:
    """(4, 4) SE(3)."""
    return se3.make(random_rotation(rng, radians), rng.uniform(-metres, metres, 3))


def seen_points(rng: np.random.Generator, camera: Camera, count: int, near: float, far: float) -> np.ndarray:
    """(count, 3) points of the camera frame that lie inside its image."""
    pixels = rng.uniform(0, [camera.width - 1, camera.height - 1], (count, 2))
    return camera.unproject(pixels, rng.uniform(near, far, count))


def make_keyframe(
    keyframe_id: int,
    T_world_camera: np.ndarray,
    *,
    camera: Camera | None = None,
    depth: np.ndarray | None = None,
    seed: int = 0,
) -> Keyframe:
    """A keyframe with a pointmap of the given depth (a slanted plane when None), random colour and confidence."""
    camera = camera or Camera.from_focal(40, 30, 35.0)
    rng = np.random.default_rng((seed, keyframe_id))
    if depth is None:
        depth = np.linspace(2.0, 3.0, camera.width, dtype=np.float32)[None].repeat(camera.height, 0)
    points = pointmap.from_depth(depth, camera).astype(np.float16)
    confidence = np.where(np.isfinite(depth), rng.uniform(0, 1, depth.shape), 0)
    return Keyframe(
        id=keyframe_id,
        stamp_ns=1_000_000_000 + keyframe_id,
        frame_id="camera",
        camera=camera,
        T_world_camera=T_world_camera,
        points=points,
        confidence=confidence.astype(np.float16),
        colour=rng.integers(0, 256, (*depth.shape, 3), dtype=np.uint8),
        features=Features(np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8), np.zeros((0, 3), np.float32)),
    )
