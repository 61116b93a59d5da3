# SPDX-License-Identifier: Apache-2.0
"""Poses from rays and depths, with an uncertainty that can be believed; points put on rays; focal lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from helpers import quick, random_pose, random_rotation, seeds, seen_points
from hypothesis import given
from hypothesis import strategies as st

from recon_ros.errors import InputError
from recon_ros.geometry import matching, ray_pose, se3
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.ray_pose import RayPose, RunningFocal, on_calibrated_rays, refine_ray_pose

CAMERA = Camera(640, 480, np.array([[500.0, 0, 310], [0, 510, 250], [0, 0, 1]]))
RAY_SIGMA, DEPTH_SIGMA = 0.003, 0.02
both = pytest.mark.parametrize("with_scale", [False, True])


@dataclass
class Scene:
    """Points as two cameras have them: (N, 3) in the source, (N, 3) rays and (N,) depths in the target."""

    truth: np.ndarray
    points: np.ndarray
    rays: np.ndarray
    depths: np.ndarray

    def refine(self, start: np.ndarray, *, with_scale: bool = False, weights: np.ndarray | None = None) -> RayPose:
        found = refine_ray_pose(
            start, self.points, self.rays, self.depths, RAY_SIGMA, DEPTH_SIGMA, weights, with_scale=with_scale
        )
        assert found is not None
        return found

    def with_noise(self, rng: np.random.Generator) -> Scene:
        """Rays off by RAY_SIGMA in both directions, depths by DEPTH_SIGMA of themselves."""
        length = np.linalg.norm(self.rays, axis=1, keepdims=True)
        rays = self.rays + rng.normal(0, RAY_SIGMA, self.rays.shape) * length
        # The depth is the one along the new ray, for the range to have the depth's noise alone.
        depths = self.depths * (rays[:, 2] / np.linalg.norm(rays, axis=1)) / (self.rays[:, 2] / length[:, 0])
        return Scene(self.truth, self.points, rays, depths * np.exp(rng.normal(0, DEPTH_SIGMA, len(depths))))


def scene(rng: np.random.Generator, count: int, scale: float = 1.0) -> Scene:
    """Without noise; the rays of random length."""
    pose = random_pose(rng)
    truth = se3.make(pose[:3, :3], pose[:3, 3], scale)
    seen = seen_points(rng, CAMERA, count, 1, 6)
    rays = seen / np.linalg.norm(seen, axis=1, keepdims=True) * rng.uniform(0.1, 10, (count, 1))
    return Scene(truth, se3.transform(se3.inverse(truth), seen), rays, seen[:, 2].copy())


def off(rng: np.random.Generator, T: np.ndarray, metres: float = 0.3, radians: float = 0.2) -> np.ndarray:
    return se3.make(random_rotation(rng, radians), rng.uniform(-1, 1, 3) * metres) @ T


def left_error(T: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(7,) twist and log scale that lead from the truth to T, in the target's frame."""
    delta = T @ se3.inverse(truth)
    scale = se3.scale_of(delta)
    return np.r_[se3.log(se3.make(delta[:3, :3] / scale, delta[:3, 3])), np.log(scale)]


# --- recovery


@quick
@given(seeds(), st.booleans())
def test_the_exact_pose_is_found(seed: int, with_scale: bool) -> None:
    rng = np.random.default_rng(seed)
    s = scene(rng, 40, rng.uniform(0.3, 3) if with_scale else 1.0)
    start = off(rng, s.truth)
    if with_scale:
        start[:3, :3] *= rng.uniform(0.6, 1.6)
    found = s.refine(start, with_scale=with_scale)
    np.testing.assert_allclose(found.T_target_source, s.truth, atol=1e-6)
    np.testing.assert_allclose(found.weights, 1.0)
    assert found.information.shape == ((7, 7) if with_scale else (6, 6))


@quick
@given(seeds(), st.booleans())
def test_a_pose_is_found_among_noise_and_outliers(seed: int, with_scale: bool) -> None:
    rng = np.random.default_rng(seed)
    s = scene(rng, 200, rng.uniform(0.3, 3) if with_scale else 1.0).with_noise(rng)
    wrong_ray, wrong_depth = rng.random(200) < 0.15, rng.random(200) < 0.15
    other = seen_points(rng, CAMERA, 200, 1, 6)
    angle = np.arccos((other * s.rays).sum(1) / np.linalg.norm(other, axis=1) / np.linalg.norm(s.rays, axis=1))
    s.rays[wrong_ray] = other[wrong_ray]
    s.depths[wrong_depth] *= rng.choice([0.5, 2.0], int(wrong_depth.sum()))
    found = s.refine(off(rng, s.truth, 0.15, 0.1), with_scale=with_scale)
    error = left_error(found.T_target_source, s.truth)
    # Without outliers 3 mrad and 2 % of 3.5 m, each √200-fold less: 0.2 mrad, 5 mm, 1.4 ‰. An outlier pulls as one
    # sample of 1.3 to 1.9 σ does, and 15 % of them may pull one way.
    assert np.abs(error[:3]).max() < 0.04 and np.abs(error[3:6]).max() < 0.01
    assert abs(error[6]) < (0.02 if with_scale else 1e-12)
    clearly = wrong_depth | (wrong_ray & (angle > 0.05))
    fine = ~wrong_ray & ~wrong_depth
    assert found.weights[clearly].max() < 0.5
    assert np.median(found.weights[fine]) > 0.9


def test_scale_is_estimated_only_where_asked_for() -> None:
    rng = np.random.default_rng(0)
    s = scene(rng, 100, 1.7)
    start = off(rng, s.truth, 0.05, 0.05)
    assert se3.scale_of(start) == pytest.approx(1.7)
    assert se3.scale_of(s.refine(start).T_target_source) == pytest.approx(1.7, abs=1e-9)
    start[:3, :3] /= 1.7
    assert se3.scale_of(s.refine(start).T_target_source) == pytest.approx(1, abs=1e-9)
    assert se3.scale_of(s.refine(start, with_scale=True).T_target_source) == pytest.approx(1.7, abs=1e-6)


def test_without_depths_rays_give_the_pose_of_known_points() -> None:
    """And leave the scale, which they do not tell, nearly where it was."""
    rng = np.random.default_rng(0)
    s = scene(rng, 60)
    start = off(rng, s.truth, 0.1, 0.1)
    s.depths[:] = np.nan
    np.testing.assert_allclose(s.refine(start).T_target_source, s.truth, atol=1e-6)
    free = s.refine(start, with_scale=True)
    # Camera and scene may grow together about the target's centre: every residual stays.
    grown = se3.make(np.eye(3), np.zeros(3), 1 / se3.scale_of(free.T_target_source)) @ free.T_target_source
    np.testing.assert_allclose(grown, s.truth, atol=1e-6)
    assert se3.scale_of(free.T_target_source) == pytest.approx(1, abs=0.05)
    assert free.information[6, 6] < 1e-3 < s.refine(start).information[0, 0]


def test_depths_of_zero_and_nan_are_unknown() -> None:
    rng = np.random.default_rng(0)
    s = scene(rng, 40).with_noise(rng)
    start = off(rng, s.truth, 0.05, 0.05)
    results = []
    for unknown in (np.nan, 0.0, -1.0, np.inf):
        s.depths[::2] = unknown
        results.append(s.refine(start))
    for result in results[1:]:
        np.testing.assert_array_equal(result.T_target_source, results[0].T_target_source)
    assert (results[0].weights > 0).all()


@both
def test_points_behind_the_start_come_back(with_scale: bool) -> None:
    """A start so far off that points are behind the camera, where pixels have no meaning."""
    rng = np.random.default_rng(3)
    s = scene(rng, 100)
    start = se3.exp(np.array([0, 0, -2.0, 0.4, 0, 0])) @ s.truth
    assert (se3.transform(start, s.points)[:, 2] < 0).sum() > 10
    np.testing.assert_allclose(s.refine(start, with_scale=with_scale).T_target_source, s.truth, atol=1e-6)


@both
def test_far_starts_converge(with_scale: bool) -> None:
    """Turned around, metres away, at half or double size: full steps diverge from 8 % of these with a scale."""
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        s = scene(rng, 100).with_noise(rng)
        start = off(rng, s.truth, 3.0, np.pi)
        if with_scale:
            start[:3, :3] *= rng.uniform(0.5, 2)
        error = left_error(s.refine(start, with_scale=with_scale).T_target_source, s.truth)
        found += np.abs(error[:3]).max() < 0.1 and np.abs(error[3:6]).max() < 0.01
    assert found >= 39


@both
@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e6, 1e12])
def test_absurd_starts_give_no_absurd_numbers(with_scale: bool, factor: float) -> None:
    """None, or a finite pose; no overflow on the way (a RuntimeWarning is an error here)."""
    rng = np.random.default_rng(0)
    s = scene(rng, 50)
    arguments = (s.points, s.rays, s.depths, RAY_SIGMA, DEPTH_SIGMA)
    for start in (
        se3.make(s.truth[:3, :3], s.truth[:3, 3] * factor, factor),
        se3.make(s.truth[:3, :3], [0.0, 0, factor]),
        se3.make(np.eye(3), -s.points[0] * factor, factor),  # a point in the camera's centre
    ):
        found = refine_ray_pose(start, *arguments, with_scale=with_scale)
        assert found is None or (
            np.isfinite(found.T_target_source).all()
            and np.isfinite(found.information).all()
            and se3.is_valid(se3.make(found.T_target_source[:3, :3] / se3.scale_of(found.T_target_source), np.zeros(3)))
        )


def test_pose_of_a_camera_from_matched_maps() -> None:
    """Two pointmaps of a wavy wall, matched by descriptors of the place: from seeds to a pose."""
    camera = Camera.from_focal(64, 48, 60.0)
    truth = se3.exp(np.array([0.3, -0.1, 0.1, 0.03, 0.05, -0.1]))  # T_target_source
    rng = np.random.default_rng(0)
    frequencies, phases = rng.normal(0, 2.0, (3, 24)), rng.uniform(0, 2 * np.pi, 24)
    maps, places = [], []
    for T in (np.eye(4), truth):  # T_camera_source
        depth = np.full((48, 64), 3.0)
        for _ in range(50):  # to where the ray meets z = 3 + 0.3 sin(2 x) of the source frame
            world = se3.transform(se3.inverse(T), camera.rays() * depth[..., None])
            depth += 3 + 0.3 * np.sin(2 * world[..., 0]) - world[..., 2]
        maps.append(camera.rays() * depth[..., None])
        descriptors = np.cos(world @ frequencies + phases)
        places.append((descriptors / np.linalg.norm(descriptors, axis=-1, keepdims=True)).astype(np.float32))
    pairs = matching.reciprocal_descriptors(*places, stride=4)
    source, target = (maps[i].reshape(-1, 3)[pairs[:, i]] for i in (0, 1))
    rays = camera.unproject(matching.pixels_of(pairs[:, 1], 64), np.ones(len(pairs)))
    found = refine_ray_pose(np.eye(4), source, rays, target[:, 2], 0.5 / 60, DEPTH_SIGMA)
    assert found is not None and (found.weights > 0.5).sum() > 80
    metres, radians = se3.distance(se3.inverse(truth) @ found.T_target_source)
    # Matches are off by up to half a pixel, 8 mrad or 25 mm; a hundred of them by a tenth of that.
    assert metres < 0.02 and radians < 0.006


# --- weights


@both
def test_a_weight_of_two_is_the_point_twice(with_scale: bool) -> None:
    rng = np.random.default_rng(0)
    s = scene(rng, 30).with_noise(rng)
    start = off(rng, s.truth, 0.05, 0.05)
    weights = np.where(np.arange(30) < 10, 2.0, 1.0)
    twice = np.r_[np.arange(30), np.arange(10)]
    weighted = s.refine(start, with_scale=with_scale, weights=weights)
    repeated = Scene(s.truth, s.points[twice], s.rays[twice], s.depths[twice]).refine(start, with_scale=with_scale)
    np.testing.assert_allclose(weighted.T_target_source, repeated.T_target_source, atol=1e-9)
    np.testing.assert_allclose(weighted.information, repeated.information, rtol=1e-5, atol=1e-2)


def test_what_cannot_be_used_is_left_out() -> None:
    rng = np.random.default_rng(0)
    s = scene(rng, 30).with_noise(rng)
    start = off(rng, s.truth, 0.05, 0.05)
    clean = Scene(s.truth, s.points[5:], s.rays[5:], s.depths[5:]).refine(start)
    weights = np.ones(30)
    s.points[0, 1] = np.nan
    s.rays[1, 2] = np.inf
    s.rays[2] = 0
    weights[3], weights[4] = 0, np.nan
    found = s.refine(start, weights=weights)
    np.testing.assert_array_equal(found.T_target_source, clean.T_target_source)
    np.testing.assert_array_equal(found.weights, np.r_[np.zeros(5), clean.weights])
    assert np.isnan(s.points[0, 1]) and start.shape == (4, 4)


def test_too_little_holds_no_pose() -> None:
    rng = np.random.default_rng(0)
    s = scene(rng, 30)
    arguments = (s.points, s.rays, s.depths, RAY_SIGMA, DEPTH_SIGMA)
    assert refine_ray_pose(s.truth, *(a[:7] for a in arguments[:3]), *arguments[3:]) is None
    assert refine_ray_pose(s.truth, *(a[:8] for a in arguments[:3]), *arguments[3:]) is not None
    assert refine_ray_pose(s.truth, *arguments, weights=np.zeros(30)) is None
    assert refine_ray_pose(np.full((4, 4), np.nan), *arguments) is None
    with pytest.raises(InputError, match="one length") as raised:
        refine_ray_pose(s.truth, s.points, s.rays[1:], s.depths, RAY_SIGMA, DEPTH_SIGMA)
    assert raised.value.reason == "alignment"


# --- derivatives and uncertainty


@quick
@given(seeds(), st.floats(0.3, 3))
def test_jacobian_is_the_derivative(seed: int, scale: float) -> None:
    """Central differences of the residuals by a left perturbation, far from the minimum too."""
    rng = np.random.default_rng(seed)
    s = scene(rng, 12, scale).with_noise(rng)
    s.depths[::4] = np.nan
    T = off(rng, s.truth)
    seen, usable = ray_pose._collect(s.points, s.rays, s.depths, None)
    assert usable.all()
    sigmas = np.array([RAY_SIGMA, RAY_SIGMA, RAY_SIGMA, DEPTH_SIGMA])
    residuals, jacobian = ray_pose._linearise(T, seen, sigmas)
    assert residuals.shape == (12, 4) and (residuals[::4, 3] == 0).all()
    numeric = np.empty_like(jacobian)
    step = 1e-6
    for k, delta in enumerate(np.eye(7) * step):
        ahead, behind = (ray_pose._linearise(ray_pose._increment(d) @ T, seen, sigmas)[0] for d in (delta, -delta))
        numeric[..., k] = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(jacobian, numeric, rtol=1e-4, atol=1e-5 * np.abs(jacobian).max())


def test_residuals_are_in_standard_deviations() -> None:
    """A ray off by 0.01 rad, and a depth that is 5 % too short: on the axis, and at 45° where range is not z."""
    angle = np.pi / 4
    points = np.array([[0, 0, 2.0], [0, 0, 2.0], [2.0, 0, 2.0]])
    rays = np.array([[np.sin(0.01), 0, np.cos(0.01)], [0, 0, 3], [np.sin(angle + 0.01), 0, np.cos(angle + 0.01)]])
    depths = np.array([np.nan, 2 / 1.05, 2 / 1.05 * np.cos(angle + 0.01) / np.cos(angle)])
    seen, _ = ray_pose._collect(points, rays, depths, None)
    residuals, _ = ray_pose._linearise(np.eye(4), seen, np.array([1e-3, 1e-3, 1e-3, 0.01]))
    np.testing.assert_allclose(np.linalg.norm(residuals[:, :3], axis=1), [10, 0, 10], rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(residuals[0, :3], [-10, 0, 0.05], rtol=1e-3)
    np.testing.assert_allclose(residuals[:, 3], [0, np.log(1.05) / 0.01, np.log(1.05) / 0.01])


@both
def test_the_predicted_scatter_is_the_real_one(with_scale: bool) -> None:
    """Noise as modelled, 200 times: errors as a left perturbation scatter as the inverse information says.

    Within a factor of 1.5 along all directions; 200 samples of 7 parameters spread these by 1 ± √(7/200) = 19 %.
    """
    rng = np.random.default_rng(0)
    s = scene(rng, 60, 1.5 if with_scale else 1.0)
    errors, covariances = [], []
    for _ in range(200):
        found = s.with_noise(rng).refine(s.truth, with_scale=with_scale)
        errors.append(left_error(found.T_target_source, s.truth)[: len(found.information)])
        covariances.append(np.linalg.inv(found.information))
    whiten = np.linalg.inv(np.linalg.cholesky(np.mean(covariances, axis=0)))
    deviations = np.sqrt(np.linalg.eigvalsh(whiten @ np.cov(np.array(errors).T) @ whiten.T))
    assert deviations.max() < 1.5
    assert deviations.min() > 1 / 1.5
    assert np.abs(whiten @ np.mean(errors, axis=0)).max() < 0.4, "biased"


# --- points on rays


def test_points_move_onto_their_rays_and_keep_their_depth() -> None:
    rng = np.random.default_rng(0)
    camera = Camera(40, 30, np.array([[35.0, 0, 18], [0, 36.0, 15], [0, 0, 1]]))
    points = rng.normal(size=(30, 40, 3)).astype(np.float32) + np.float32([0, 0, 5])
    points[3, 4] = np.nan
    points[5, 6, 2] = -1.0
    points[7, 8, 2] = 0.0
    before = points.copy()
    moved = on_calibrated_rays(points, camera)
    assert moved.dtype == np.float32 and moved.shape == points.shape
    np.testing.assert_array_equal(points, before)
    gone = np.zeros((30, 40), bool)
    gone[[3, 5, 7], [4, 6, 8]] = True
    np.testing.assert_array_equal(np.isnan(moved).all(axis=2), gone)
    np.testing.assert_array_equal(np.isfinite(moved).all(axis=2), ~gone)
    np.testing.assert_array_equal(moved[~gone][:, 2], points[~gone][:, 2])
    v, u = np.mgrid[:30, :40]
    np.testing.assert_allclose(camera.project(moved)[~gone], np.stack([u, v], axis=-1)[~gone], atol=1e-4)
    np.testing.assert_array_equal(on_calibrated_rays(moved, camera), moved)


def test_a_camera_of_another_size_is_refused() -> None:
    camera = Camera.from_focal(40, 30, 35.0)
    with pytest.raises(InputError, match="40x30") as raised:
        on_calibrated_rays(np.ones((40, 30, 3), np.float32), camera)
    assert raised.value.reason == "camera"


# --- the focal length of a stream


def pointmap_of(focal: float, width: int = 64, height: int = 48) -> np.ndarray:
    """(H, W, 3) of a wavy surface seen with this focal length."""
    camera = Camera.from_focal(width, height, focal)
    return camera.rays() * (3 + np.sin(camera.rays()[..., :1] * 5))


def test_running_focal_is_the_median_of_the_last_ones() -> None:
    running = RunningFocal(window=3)
    told = [running.update(pointmap_of(f)) for f in (60, 50, 55, 90, 91, 92)]
    np.testing.assert_allclose(told, [60, 55, 55, 55, 90, 91], rtol=1e-4)


@pytest.mark.parametrize(("width", "height"), [(512, 384), (511, 389), (224, 224), (1280, 720), (320, 16)])
def test_focal_from_a_share_of_the_pixels(width: int, height: int) -> None:
    """The grid's own centre and step are accounted for."""
    assert RunningFocal().update(pointmap_of(400, width, height)) == pytest.approx(400, rel=1e-5)


def test_focal_leaves_out_what_is_not_believed() -> None:
    points = pointmap_of(400, 512, 384)
    points[:, :300] = pointmap_of(100, 512, 384)[:, :300]
    confidence = np.ones((384, 512), np.float32)
    assert RunningFocal().update(points, confidence) < 200
    confidence[:, :300] = 0
    assert RunningFocal().update(points, confidence) == pytest.approx(400, rel=1e-5)


def test_a_pointmap_without_a_focal_length_changes_nothing() -> None:
    running = RunningFocal(window=2)
    running.update(pointmap_of(50))
    with pytest.raises(InputError) as raised:
        running.update(np.full((48, 64, 3), np.nan, np.float32))
    assert raised.value.reason == "focal"
    with pytest.raises(InputError):
        running.update(np.full((4, 6, 3), np.nan, np.float32))
    assert running.update(pointmap_of(60)) == pytest.approx(55, rel=1e-4)


def test_focal_lengths_of_another_size_are_not_mixed() -> None:
    running = RunningFocal()
    running.update(pointmap_of(50))
    assert running.update(pointmap_of(100, 128, 96)) == pytest.approx(100, rel=1e-4)
