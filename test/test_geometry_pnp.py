# SPDX-License-Identifier: Apache-2.0
"""A pose from points: found among outliers, refined, and with an uncertainty that can be believed."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import quick, random_pose, random_rotation, seeds, seen_points
from hypothesis import given
from hypothesis import strategies as st

from recon_ros.geometry import pnp, se3
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.pnp import PIXEL_SIGMA, Observations
from recon_ros.geometry.surface import MAX_CORRESPONDENCE, Surface, register

CAMERA = Camera(640, 480, np.array([[500.0, 0, 310], [0, 510, 250], [0, 0, 1]]))
DEPTH_SIGMA = 0.01


def observations(
    rng: np.random.Generator, T_camera_w: np.ndarray, count: int, pixel_sigma: float = 0.0, depth_sigma: float = 0.0
) -> Observations:
    """Points all over the image, as the camera sees them with this noise."""
    points = seen_points(rng, CAMERA, count, 1, 6)
    return Observations(
        se3.transform(se3.inverse(T_camera_w), points),
        CAMERA.project(points) + rng.normal(0, 1, (count, 2)) * pixel_sigma,
        points[:, 2] * (1 + rng.normal(0, 1, count) * depth_sigma),
        np.arange(count),
    )


def error(T: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    return se3.distance(se3.inverse(truth) @ T)


# --- RANSAC and refinement


@quick
@given(seeds())
def test_a_pose_is_found_among_outliers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_pose(rng)
    seen = observations(rng, truth, 150, pixel_sigma=0.5)
    wrong = rng.random(150) < 0.3
    seen.pixels[wrong] = rng.uniform(0, [640, 480], (int(wrong.sum()), 2))
    found = pnp.ransac(seen, CAMERA, threshold=3.0)
    assert found is not None
    T, inliers = found
    # 105 points of 0.5 px at 3.5 m / 500 px: below a millimetre; EPnP without refinement is a few times worse.
    metres, radians = error(T, truth)
    assert metres < 0.03 and radians < 0.01
    assert len(set(inliers)) == len(inliers)
    assert np.mean(~wrong[inliers]) > 0.97
    assert len(inliers) > 0.9 * np.count_nonzero(~wrong)


def test_the_same_input_gives_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    seen = observations(rng, random_pose(rng), 100, pixel_sigma=1.0)
    seen.pixels[:40] = rng.uniform(0, [640, 480], (40, 2))
    a = pnp.ransac(seen, CAMERA, 3.0)
    np.random.default_rng(1).normal(size=100)
    pnp.ransac(observations(rng, random_pose(rng), 50), CAMERA, 3.0)  # another call between draws no samples from it
    b = pnp.ransac(seen, CAMERA, 3.0)
    assert a is not None and b is not None
    assert a[0].tobytes() == b[0].tobytes() and a[1].tobytes() == b[1].tobytes()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_points_are_no_pose(count: int) -> None:
    assert pnp.ransac(observations(np.random.default_rng(0), np.eye(4), count), CAMERA, 3.0) is None


def test_points_in_one_place_are_no_crash() -> None:
    seen = Observations(np.ones((20, 3)), np.full((20, 2), 300.0), np.full(20, np.nan), np.arange(20))
    found = pnp.ransac(seen, CAMERA, 3.0)
    assert found is None or se3.is_valid(found[0])
    refined = pnp.refine(np.eye(4), seen, CAMERA, DEPTH_SIGMA)
    assert refined is None or np.isfinite(refined.T_camera_w).all()


@quick
@given(seeds(), st.booleans())
def test_refinement_ends_at_the_pose(seed: int, with_depth: bool) -> None:
    """Without noise it is exact, with a fifth of gross outliers too: the kernel takes their weight."""
    rng = np.random.default_rng(seed)
    truth = random_pose(rng)
    seen = observations(rng, truth, 80)
    if not with_depth:
        seen.depths[:] = np.nan
    seen.pixels[:16] += rng.choice([-1, 1], (16, 2)) * rng.uniform(60, 200, (16, 2))
    start = se3.exp(rng.normal(0, 0.003, 6)) @ truth
    refined = pnp.refine(start, seen, CAMERA, DEPTH_SIGMA)
    assert refined is not None and se3.is_valid(refined.T_camera_w)
    # An outlier of r ≥ 40 σ weighs (r/1.5 σ)⁻⁴ < 2e-6 and pulls with r · w < 1e-4 σ: a few micrometres.
    metres, radians = error(refined.T_camera_w, truth)
    assert metres < 5e-5 and radians < 1e-5
    np.testing.assert_array_equal(refined.inliers, np.arange(80) >= 16)


def test_depth_fixes_what_pixels_cannot() -> None:
    """A small far patch leaves the distance open; the depth of its points does not."""
    rng = np.random.default_rng(0)
    truth = random_pose(rng)
    points = seen_points(rng, Camera.from_focal(60, 60, 500.0), 40, 3.0, 3.02)
    pixels = CAMERA.project(points) + rng.normal(0, PIXEL_SIGMA, (40, 2))
    world = se3.transform(se3.inverse(truth), points)
    distance, sigma = {}, {}
    for known in (False, True):
        depths = points[:, 2] if known else np.full(40, np.nan)
        refined = pnp.refine(truth, Observations(world, pixels, depths, np.arange(len(world))), CAMERA, DEPTH_SIGMA)
        assert refined is not None
        distance[known] = se3.transform(refined.T_camera_w, world)[:, 2].mean()
        sigma[known] = np.sqrt(np.linalg.inv(refined.information)[2, 2])
    # 40 depths of 1 % of 3 m fix the distance to 5 mm; the pixels: 1.5 px on a patch 50 px across to some 3 %.
    assert distance[True] == pytest.approx(points[:, 2].mean(), abs=0.01)
    assert sigma[False] > 5 * sigma[True]


def test_observations_are_joined_and_cut_alike() -> None:
    rng = np.random.default_rng(0)
    a, b = observations(rng, np.eye(4), 5), observations(rng, np.eye(4), 3)
    joined = Observations.concatenated([a, b])
    assert len(joined) == 8 and len(Observations.concatenated([])) == 0
    for name in ("points", "pixels", "depths"):
        np.testing.assert_array_equal(getattr(joined[5:], name), getattr(b, name))


# --- derivatives and uncertainty


@quick
@given(seeds())
def test_jacobian_is_the_derivative(seed: int) -> None:
    """Central differences of the residuals by a left perturbation, but for the depth residual's own scale.

    The residual (z − d)/(σ z) is whitened by the predicted z; its scale counts as constant, which is right where
    z = d.
    """
    rng = np.random.default_rng(seed)
    T = random_pose(rng)
    seen = observations(rng, T, 12, pixel_sigma=2.0)
    seen.depths[::4] = np.nan
    _, jacobian = pnp._linearise(T, seen, CAMERA, DEPTH_SIGMA)
    step = 1e-6
    numeric = np.empty_like(jacobian)
    for k in range(6):
        delta = np.zeros(6)
        delta[k] = step
        ahead, behind = (pnp._linearise(se3.exp(sign * delta) @ T, seen, CAMERA, DEPTH_SIGMA)[0] for sign in (1, -1))
        numeric[..., k] = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(jacobian, numeric, rtol=1e-4, atol=1e-4 * np.abs(jacobian).max())


def test_residuals_are_in_standard_deviations() -> None:
    seen = Observations(
        np.array([[0.0, 0, 2], [0, 0, 2]]), np.array([[313.0, 250], [310, 250]]), np.array([2.0, 1.9]), np.arange(2)
    )
    residuals, _ = pnp._linearise(np.eye(4), seen, CAMERA, DEPTH_SIGMA)
    np.testing.assert_allclose(residuals[0], [-3 / PIXEL_SIGMA, 0, 0], atol=1e-9)
    np.testing.assert_allclose(residuals[1], [0, 0, 0.1 / (0.01 * 2)], atol=1e-9)


def test_the_predicted_scatter_is_the_real_one() -> None:
    """Noise as modelled, 150 times: errors as a left perturbation scatter as the inverse information says.

    Within a factor of 1.5, six parameters and their correlations: the robust kernel costs information (it is made
    for noise with outliers), which the prediction sees only roughly. 150 samples fix a deviation to 6 %.
    """
    rng = np.random.default_rng(0)
    truth = random_pose(rng)
    points = seen_points(rng, CAMERA, 60, 1, 6)
    world = se3.transform(se3.inverse(truth), points)
    left, right, covariances = [], [], []
    for _ in range(150):
        pixels = CAMERA.project(points) + rng.normal(0, PIXEL_SIGMA, (60, 2))
        depths = points[:, 2] * rng.normal(1, DEPTH_SIGMA, 60)
        refined = pnp.refine(truth, Observations(world, pixels, depths, np.arange(len(world))), CAMERA, DEPTH_SIGMA)
        assert refined is not None
        left.append(se3.log(refined.T_camera_w @ se3.inverse(truth)))
        right.append(se3.log(se3.inverse(truth) @ refined.T_camera_w))
        covariances.append(np.linalg.inv(refined.information))
    whiten = np.linalg.inv(np.linalg.cholesky(np.mean(covariances, axis=0)))

    def deviations(errors: list[np.ndarray]) -> np.ndarray:
        """Of the errors in units of the predicted ones, along all directions; 1 would be perfect."""
        return np.sqrt(np.linalg.eigvalsh(whiten @ np.cov(np.array(errors).T) @ whiten.T))

    # Sampling 6 x 6 from 150 spreads these by 1 ± √(6/150) by itself.
    assert deviations(left).max() < 1.5
    assert deviations(left).min() > (1 - np.sqrt(6 / 150)) / 1.5
    assert deviations(right).max() > 3, "the example does not tell one frame from the other"
    assert np.abs(whiten @ np.mean(left, axis=0)).max() < 0.4, "biased"


# --- surfaces


def box_corner(rng: np.random.Generator, T_room_camera: np.ndarray, count: int, noise: float) -> np.ndarray:
    """(count, 3) camera-frame points of the corner of a room: three walls at right angles, 3 m wide, with noise
    across them."""
    points = rng.uniform(0, 3, (count, 3))
    wall = rng.integers(0, 3, count)
    points[np.arange(count), wall] = rng.normal(0, noise, count)
    return se3.transform(se3.inverse(T_room_camera), points)


def surface(points: np.ndarray) -> Surface:
    made = Surface.of(points)
    assert made is not None
    return made


FACING = se3.make(
    np.array([[0.7071, 0.4082, -0.5774], [-0.7071, 0.4082, -0.5774], [0, -0.8165, -0.5774]]), [2.0, 2.0, 2.0]
)
"""T_room_camera of a camera that looks into the corner."""


@pytest.mark.parametrize("seed", range(4))
def test_registration_recovers_a_small_motion(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = 0.004
    facing = se3.orthonormalised(FACING)
    motion = se3.exp(np.concatenate([rng.uniform(-0.02, 0.02, 3), rng.uniform(-0.01, 0.01, 3)]))
    target = surface(box_corner(rng, facing, 6000, noise))
    source = surface(box_corner(rng, facing @ motion, 6000, noise))
    registration = register(target, source, np.eye(4), sigma=2 * noise)
    assert registration is not None
    # 4 mm over thousands of points is 0.1 mm; voxels that straddle the seams pull by about a millimetre.
    metres, radians = error(registration.T_target_source, motion)
    assert metres < 0.002 and radians < 0.001
    start = se3.distance(motion)
    assert metres < 0.2 * start[0] and radians < 0.2 * start[1], "it hardly moved"
    deviation = np.sqrt(np.diag(np.linalg.inv(registration.information)))
    assert (deviation[:3] < 0.001).all() and (deviation[3:] < 0.001).all()
    twice = register(target, source, np.eye(4), sigma=4 * noise)
    assert twice is not None
    np.testing.assert_allclose(twice.information, registration.information / 4)


def test_a_single_wall_fixes_three_directions_only() -> None:
    """Its information is about its normal and the two tilts, in the *source* camera's frame.

    GICP gives every point a little grip along the wall (1/1000 of that across); more would drag a pose.
    """
    rng = np.random.default_rng(0)
    wall = np.column_stack([rng.uniform(-1.5, 1.5, (6000, 2)), rng.normal(0, 0.003, 6000)])
    T_wall_target = se3.make(random_rotation(rng), rng.normal(size=3))
    T_wall_source = se3.make(random_rotation(rng), rng.normal(size=3))
    target = surface(se3.transform(se3.inverse(T_wall_target), wall[:3000]))
    source = surface(se3.transform(se3.inverse(T_wall_source), wall[3000:]))
    registration = register(target, source, se3.inverse(T_wall_target) @ T_wall_source, sigma=0.008)
    assert registration is not None

    # Adjoint: a perturbation at the wall's origin, along its axes, written in the source frame.
    T_source_wall = se3.inverse(T_wall_source)
    R, t = T_source_wall[:3, :3], T_source_wall[:3, 3]
    adjoint = np.block([[R, se3.skew(t) @ R], [np.zeros((3, 3)), R]])
    at_wall = adjoint.T @ registration.information @ adjoint
    slide_x, slide_y, across, tilt_x, tilt_y, spin = np.diag(at_wall)
    assert across > 1e6, "a wall of thousands of samples of 8 mm is known to a millimetre"
    assert max(slide_x, slide_y) < 3e-3 * across
    assert spin < 3e-3 * min(tilt_x, tilt_y)
    assert min(tilt_x, tilt_y) > 0.1 * across  # 0.75 m² is the mean square of ±1.5 m
    assert max(tilt_x, tilt_y) < 2 * across


def test_surfaces_apart_are_not_registered() -> None:
    rng = np.random.default_rng(0)
    corner = box_corner(rng, se3.orthonormalised(FACING), 4000, 0.002)
    target, source = surface(corner), surface(corner + [0, 0, 5.0])
    assert register(target, source, np.eye(4), 0.008) is None


def test_a_registration_that_wanders_off_is_refused() -> None:
    """A start further away than correspondences reach is no start."""
    rng = np.random.default_rng(0)
    facing = se3.orthonormalised(FACING)
    target = surface(box_corner(rng, facing, 6000, 0.002))
    start = se3.exp(np.array([0.15, 0.1, 0.1, 0, 0, 0]))
    registration = register(target, target, start, 0.008)
    if registration is not None:
        assert se3.distance(se3.inverse(start) @ registration.T_target_source)[0] <= MAX_CORRESPONDENCE


def test_a_surface_needs_points() -> None:
    assert Surface.of(np.zeros((0, 3))) is None
    assert Surface.of(np.random.default_rng(0).normal(size=(50, 3))) is None
    assert Surface.of(np.zeros((5000, 3))) is None, "thousands of points in one place are one sample"
