# SPDX-License-Identifier: Apache-2.0
"""Pointmaps and depth, and how much of one camera's points another sees."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import cameras, make_keyframe, quick, random_pose, random_rotation, seeds, seen_points
from hypothesis import given
from hypothesis import strategies as st

from recon_ros.geometry import frustum, pointmap, se3
from recon_ros.geometry.camera import Camera
from recon_ros.memory.store import KeyframeStore

CAMERA = Camera(80, 60, np.array([[70.0, 0, 37], [0, 75.0, 31], [0, 0, 1]]))


def slanted(camera: Camera = CAMERA) -> np.ndarray:
    """(H, W) depth of a plane that leans away, as a floor does."""
    normal = np.array([0.15, -0.3, -0.942])
    return (-2.0 / (camera.rays() @ normal)).astype(np.float32)


# --- depth and points


@quick
@given(cameras(largest=120), seeds())
def test_depth_there_and_back(camera: Camera, seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.2, 9, (camera.height, camera.width)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.2] = np.nan
    points = pointmap.from_depth(depth, camera)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(pointmap.valid(points), np.isfinite(depth))
    np.testing.assert_array_equal(pointmap.to_depth(points, camera), depth)


def test_points_are_where_the_camera_says() -> None:
    points = pointmap.from_depth(np.full((60, 80), 3.0, np.float32), CAMERA)
    np.testing.assert_allclose(points[31, 37], [0, 0, 3], atol=1e-6)
    np.testing.assert_allclose(points[31, 37 + 35], [1.5, 0, 3], atol=1e-6)
    np.testing.assert_allclose(points[31 - 25, 37], [0, -1, 3], atol=1e-6)


def test_the_nearest_point_hides_the_others() -> None:
    behind, before, elsewhere = [0.0, 0, 4], [0.0, 0, 2], [0.0, 0, -1]
    outside, missing = [100.0, 0, 1], [np.nan, 0, 1]
    for order in ([behind, before], [before, behind]):
        depth = pointmap.to_depth(np.array([*order, elsewhere, outside, missing]), CAMERA)
        assert depth[31, 37] == 2
        assert np.count_nonzero(np.isfinite(depth)) == 1


# --- smoothed depth


def test_smoothing_leaves_a_slanted_plane_where_it_is() -> None:
    """Of a plane, 1/z is linear in the image: means over windows are off by the square of the slope only."""
    depth = slanted()
    smooth = pointmap.smoothed_depth(depth)
    inside = np.isfinite(smooth)
    assert inside[2:-2, 2:-2].all()
    slope = np.abs(np.gradient(depth, axis=0) / depth).max()
    assert slope > 0.004, "hardly slanted"
    assert np.abs(smooth[inside] / depth[inside] - 1).max() < 2 * slope**2


def test_smoothing_fills_holes_and_averages_noise() -> None:
    rng = np.random.default_rng(0)
    depth = slanted()
    noisy = depth * rng.normal(1, 0.005, depth.shape).astype(np.float32)
    holes = rng.random(depth.shape) < 0.3
    noisy[holes] = np.nan
    smooth = pointmap.smoothed_depth(noisy)
    inner = np.s_[2:-2, 2:-2]
    assert np.isfinite(smooth[inner]).mean() > 0.97
    assert np.isfinite(smooth[inner][holes[inner]]).mean() > 0.95
    error = (smooth / depth - 1)[inner]
    # About 6 of 9 pixels are known: 0.5 % / √6 = 0.2 %, and unevenly spread over a slope of 0.4 % a pixel.
    assert np.nanstd(error) < 0.0035
    assert abs(np.nanmean(error)) < 2e-4


@pytest.mark.parametrize("transpose", [False, True])
def test_smoothing_leaves_edges_out(transpose: bool) -> None:
    """No point hangs between a near and a far surface."""
    depth = np.full((40, 40), 2.0, np.float32)
    depth[:, 20:] = 3.0
    smooth = pointmap.smoothed_depth(depth.T if transpose else depth)
    smooth = smooth.T if transpose else smooth
    assert np.isnan(smooth[:, 18:22]).all()
    np.testing.assert_allclose(smooth[1:-1, 1:18], 2.0, rtol=1e-6)
    np.testing.assert_allclose(smooth[1:-1, 22:-1], 3.0, rtol=1e-6)


def test_smoothing_invents_nothing() -> None:
    depth = np.full((30, 30), np.nan, np.float32)
    depth[15, 15] = 2.0
    assert np.isnan(pointmap.smoothed_depth(depth)).all()
    depth[10:20, 10:20] = 2.0
    known = np.isfinite(pointmap.smoothed_depth(depth))
    assert known[11:19, 11:19].all()
    assert not known[:8].any() and not known[22:].any()
    assert np.isnan(depth[0, 0]) and depth[15, 15] == 2, "the argument was changed"


def test_smoothing_at_the_image_border_has_no_slope_error() -> None:
    """A window cut by the border has its mean elsewhere than its pixel; the outermost pixels stay out."""
    smooth = pointmap.smoothed_depth(slanted())
    for rim in (smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1]):
        assert np.isnan(rim).all()


# --- sampling


def test_sample_takes_the_nearest_pixel() -> None:
    values = np.arange(12).reshape(3, 4)
    pixels = np.array([[0.4, 0.4], [2.6, 1.2], [-3.0, 9.0], [3.49, 0.0]])
    np.testing.assert_array_equal(pointmap.sample(values, pixels), [0, 7, 8, 3])


@quick
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 5000), seeds())
def test_strided_spreads_evenly(height: int, width: int, most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(height, width, 3)).astype(np.float32)
    points[..., 0], points[..., 1] = np.meshgrid(np.arange(width), np.arange(height))
    points[rng.random((height, width)) < 0.1, 2] = np.nan
    chosen = pointmap.strided(points, most)
    assert chosen.dtype == np.float64 and np.isfinite(chosen).all()
    assert len(np.unique(chosen, axis=0)) == len(chosen)
    assert set(map(tuple, chosen)) <= set(map(tuple, points.reshape(-1, 3).astype(np.float64)))
    # A regular grid: rounding its stride up keeps below `most`, but for a row and a column at the rim.
    assert len(chosen) <= most + (height + width) / np.sqrt(height * width / most) + 1
    if len(chosen) > 3:
        steps = np.unique(np.diff(np.unique(chosen[:, 0])))
        stride = steps.min() if len(steps) else 1
        assert (steps % stride == 0).all()


def test_strided_is_about_as_many_as_asked_for() -> None:
    points = np.ones((480, 640, 3))
    assert 0.7 * 400 < len(pointmap.strided(points, 400)) < 1.3 * 400
    assert 0.6 * 12000 < len(pointmap.strided(points, 12000)) < 1.3 * 12000
    assert len(pointmap.strided(points[:10, :10], 400)) == 100


# --- what one camera sees of another's points


def overlap_by_the_book(points: np.ndarray, T: np.ndarray, other: Camera, max_ratio: float) -> float:
    """One point after another, with nothing but K."""
    count = 0
    for point in points:
        x, y, z = (T @ [*point, 1.0])[:3]
        if z <= 0:
            continue
        u, v, _ = other.K @ [x / z, y / z, 1.0]
        size_ratio = z / (point[2] * np.cbrt(np.linalg.det(T[:3, :3])))
        if -0.5 <= u <= other.width - 0.5 and -0.5 <= v <= other.height - 0.5:
            count += 1 / max_ratio < size_ratio < max_ratio
    return count / len(points)


@quick
@given(cameras(), cameras(), seeds(), st.floats(1.1, 4), st.floats(0.2, 5))
def test_overlap_is_what_its_definition_says(
    camera: Camera, other: Camera, seed: int, max_ratio: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    points = seen_points(rng, camera, 50, 1, 8)
    T = se3.make(random_rotation(rng, 0.6), rng.uniform(-3, 3, 3) * scale, scale)
    expected = overlap_by_the_book(points, T, other, max_ratio)
    assert frustum.overlap(points, T, other, max_ratio) == pytest.approx(expected)


def test_overlap_of_simple_views() -> None:
    rng = np.random.default_rng(0)
    points = seen_points(rng, CAMERA, 500, 1, 8)
    about = se3.exp(np.array([0, 0, 0, 0, np.pi, 0]))
    assert frustum.overlap(points, np.eye(4), CAMERA) == 1
    assert frustum.overlap(points, about, CAMERA) == 0
    assert frustum.overlap(np.zeros((0, 3)), np.eye(4), CAMERA) == 0
    aside = se3.exp(np.array([0, 0, 0, 0, np.arctan(40 / 70), 0]))  # half a field of view
    assert 0.3 < frustum.overlap(points, aside, CAMERA) < 0.6


@quick
@given(seeds(), st.sampled_from([2.0**-5, 0.5, 2.0, 1024.0]))
def test_overlap_has_no_unit(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    points = seen_points(rng, CAMERA, 50, 1, 8)
    T = se3.make(random_rotation(rng, 0.6), rng.uniform(-3, 3, 3))
    scaled = se3.make(T[:3, :3], T[:3, 3] * scale)
    assert frustum.overlap(points * scale, scaled, CAMERA) == frustum.overlap(points, T, CAMERA)


@quick
@given(cameras(), seeds(), st.floats(-2, 8))
def test_inside_agrees_with_projection(camera: Camera, seed: int, margin: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-4, 4, (100, 3))
    u, v = camera.project(points).T
    expected = (u >= margin - 0.5) & (v >= margin - 0.5)
    expected &= (u <= camera.width - 0.5 - margin) & (v <= camera.height - 0.5 - margin)
    np.testing.assert_array_equal(frustum.inside(points, camera, margin), expected)


@quick
@given(seeds(), st.booleans())
def test_overlaps_of_the_store_are_those_of_each_keyframe(seed: int, with_scale: bool) -> None:
    """The fast way for all keyframes at once against the plain one for each."""
    rng = np.random.default_rng(seed)
    store = KeyframeStore(100)
    for i in range(6):
        pose = random_pose(rng, 2.0, 0.8)
        scale = rng.uniform(0.3, 3) if with_scale else 1.0
        camera = Camera.from_focal(int(rng.integers(20, 60)), int(rng.integers(20, 60)), rng.uniform(20, 60))
        store.add(make_keyframe(i, se3.make(pose[:3, :3], pose[:3, 3], scale), camera=camera))
    store.remove(2)
    points = seen_points(rng, CAMERA, 60, 1, 6)
    T_world_camera = random_pose(rng, 1.0, 0.5)
    ids, shares = store.overlaps(points, T_world_camera)
    assert ids.tolist() == [0, 1, 3, 4, 5]
    for keyframe_id, share in zip(ids, shares, strict=True):
        keyframe = store[int(keyframe_id)]
        T = se3.inverse(keyframe.T_world_camera) @ T_world_camera
        assert share == pytest.approx(frustum.overlap(points, T, keyframe.camera))


def test_overlaps_without_keyframes_or_points() -> None:
    store = KeyframeStore(10)
    assert [len(a) for a in store.overlaps(np.ones((5, 3)), np.eye(4))] == [0, 0]
    store.add(make_keyframe(0, np.eye(4)))
    assert [len(a) for a in store.overlaps(np.zeros((0, 3)), np.eye(4))] == [0, 0]
