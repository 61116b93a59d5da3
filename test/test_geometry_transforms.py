# SPDX-License-Identifier: Apache-2.0
"""Transforms against their definitions, and the alignments that estimate them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import quick, random_pose, random_rotation, seeds
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from recon_ros.errors import InputError
from recon_ros.geometry import pointmap, se3
from recon_ros.geometry.align import procrustes
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.focal import weiszfeld

scales = st.floats(0.05, 20)
angles = st.one_of(st.floats(0, 3.1), st.floats(0, 1e-4), st.sampled_from([1e-6, 9.9e-7, 1e-9, 0.0]))


def twist(seed: int, angle: float, metres: float = 5.0) -> np.ndarray:
    """(6,) twist that turns by `angle` about a random axis."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    return np.concatenate([rng.uniform(-metres, metres, 3), angle * axis / np.linalg.norm(axis)])


@quick
@given(seeds(), angles)
def test_exp_is_the_matrix_exponential(seed: int, angle: float) -> None:
    xi = twist(seed, angle)
    generator = np.zeros((4, 4))
    generator[:3, :3], generator[:3, 3] = se3.skew(xi[3:]), xi[:3]
    np.testing.assert_allclose(se3.exp(xi), expm(generator), atol=1e-8)


@quick
@given(seeds(), angles)
def test_log_inverts_exp(seed: int, angle: float) -> None:
    xi = twist(seed, angle)
    np.testing.assert_allclose(se3.log(se3.exp(xi)), xi, atol=1e-7)


@quick
@given(seeds())
def test_skew_is_the_cross_product(seed: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, 3))
    np.testing.assert_allclose(se3.skew(a) @ b, np.cross(a, b), atol=1e-12)


@quick
@given(seeds(), scales)
def test_inverse_undoes_sim3(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    T = se3.make(random_rotation(rng), rng.uniform(-9, 9, 3), scale)
    np.testing.assert_allclose(se3.inverse(T) @ T, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(T @ se3.inverse(T), np.eye(4), atol=1e-9)
    assert se3.scale_of(T) == pytest.approx(scale)
    assert se3.scale_of(se3.inverse(T)) == pytest.approx(1 / scale)


def test_inverse_of_many_at_once() -> None:
    rng = np.random.default_rng(0)
    T = np.stack([se3.make(random_rotation(rng), rng.normal(size=3), s) for s in (1.0, 1.0, 2.5)])
    np.testing.assert_allclose(se3.inverse(T), np.stack([se3.inverse(t) for t in T]))
    np.testing.assert_array_equal(se3.inverse(T)[:, 3], [[0, 0, 0, 1]] * 3)


@quick
@given(seeds(), scales)
def test_quaternion_there_and_back(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    R, t = random_rotation(rng), rng.normal(size=3)
    q = se3.quaternion(se3.make(R, t, scale))
    assert np.linalg.norm(q) == pytest.approx(1) and q[3] >= 0
    np.testing.assert_allclose(se3.from_quaternion(t, q), se3.make(R, t), atol=1e-9)
    np.testing.assert_allclose(se3.from_quaternion(t, -3.0 * q), se3.make(R, t), atol=1e-9)


def test_quaternion_is_x_y_z_w() -> None:
    quarter = np.sqrt(0.5)
    T = se3.from_quaternion(np.zeros(3), np.array([0, 0, quarter, quarter]))
    np.testing.assert_allclose(T[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(se3.quaternion(T), [0, 0, quarter, quarter], atol=1e-12)


@quick
@given(seeds(), scales)
def test_transform_is_the_matrix_applied(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    T = se3.make(random_rotation(rng), rng.normal(size=3), scale)
    points = rng.normal(size=(4, 5, 3))
    homogeneous = np.concatenate([points, np.ones((4, 5, 1))], axis=-1)
    np.testing.assert_allclose(se3.transform(T, points), (homogeneous @ T.T)[..., :3], atol=1e-9)
    assert se3.transform(T, points.astype(np.float32)).dtype == np.float32


def test_transform_does_not_truncate() -> None:
    """Integer points, as from a list of pixels or voxels, are moved by the real rotation."""
    T = se3.make(Rotation.from_euler("z", 45, degrees=True).as_matrix(), [0.5, 0, 0])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(se3.transform(T, np.array([[1, 0, 7]])), [[half + 0.5, half, 7]], atol=1e-12)


@quick
@given(seeds(), st.floats(0, 1))
def test_interpolation_goes_evenly_from_end_to_end(seed: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    T_a = random_pose(rng)
    T_b = T_a @ se3.exp(twist(seed, rng.uniform(0, 3)))
    np.testing.assert_allclose(se3.interpolate(T_a, T_b, 0), T_a, atol=1e-9)
    np.testing.assert_allclose(se3.interpolate(T_a, T_b, 1), T_b, atol=1e-7)
    between = se3.interpolate(T_a, T_b, fraction)
    assert se3.is_valid(between)
    whole, part = se3.log(se3.inverse(T_a) @ T_b), se3.log(se3.inverse(T_a) @ between)
    np.testing.assert_allclose(part, fraction * whole, atol=1e-7)


@quick
@given(seeds())
def test_orthonormalised_repairs_drift(seed: int) -> None:
    rng = np.random.default_rng(seed)
    T = random_pose(rng)
    drifted = T.copy()
    drifted[:3, :3] += rng.normal(0, 1e-3, (3, 3))
    repaired = se3.orthonormalised(drifted)
    np.testing.assert_allclose(repaired[:3, :3] @ repaired[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(repaired[:3, :3]) > 0
    np.testing.assert_allclose(repaired, T, atol=0.01)
    np.testing.assert_array_equal(repaired[:, 3], T[:, 3])


@quick
@given(seeds(), st.floats(0, np.pi), scales)
def test_distance(seed: int, angle: float, scale: float) -> None:
    xi = twist(seed, angle)
    T = se3.exp(xi)
    metres, radians = se3.distance(T)
    assert metres == pytest.approx(np.linalg.norm(T[:3, 3]))
    assert radians == pytest.approx(angle, abs=1e-6)
    assert se3.distance(se3.make(T[:3, :3], T[:3, 3], scale))[1] == pytest.approx(angle, abs=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        np.eye(3),
        np.full((4, 4), np.nan),
        np.diag([1.0, 1, -1, 1]),
        np.diag([2.0, 2, 2, 1]),
        np.zeros((4, 4)),
        se3.make(np.eye(3), [0, np.inf, 0]),
    ],
)
def test_what_is_no_pose_is_told(bad: np.ndarray) -> None:
    assert not se3.is_valid(bad)


def test_a_pose_is_valid() -> None:
    assert se3.is_valid(random_pose(np.random.default_rng(0)))


# --- Procrustes


@quick
@given(seeds(), scales, st.booleans(), st.integers(3, 40))
def test_procrustes_recovers_exactly(seed: int, scale: float, with_scale: bool, count: int) -> None:
    """Three points are enough; so is a plane, where the reflection fits as well as the rotation."""
    rng = np.random.default_rng(seed)
    T = se3.make(random_rotation(rng), rng.uniform(-9, 9, 3), scale if with_scale else 1.0)
    source = rng.uniform(-3, 3, (count, 3))
    if seed % 2:
        source[:, 2] = 1.0
    weights = rng.uniform(0.1, 5, count)
    found = procrustes(source, se3.transform(T, source), weights, with_scale)
    moved = se3.transform(found, source)
    np.testing.assert_allclose(moved, se3.transform(T, source), atol=1e-7 * max(scale, 1))
    assert np.linalg.det(found[:3, :3]) > 0
    np.testing.assert_allclose(found, T, atol=1e-4)


def test_procrustes_obeys_its_weights() -> None:
    rng = np.random.default_rng(1)
    T = random_pose(rng)
    source = rng.uniform(-3, 3, (50, 3))
    target = se3.transform(T, source)
    target[:20] += rng.uniform(1, 5, (20, 3))
    weights = np.ones(50)
    weights[:20] = 0
    np.testing.assert_allclose(procrustes(source, target, weights), T, atol=1e-9)
    assert se3.distance(se3.inverse(T) @ procrustes(source, target))[0] > 0.1, "outliers that do not matter"


def test_procrustes_minimises_the_weighted_squares() -> None:
    """No pose nearby is better than the one found."""
    rng = np.random.default_rng(2)
    source = rng.uniform(-3, 3, (30, 3))
    target = se3.transform(random_pose(rng), source) + rng.normal(0, 0.2, (30, 3))
    weights = rng.uniform(0, 2, 30)

    def cost(T: np.ndarray) -> float:
        return float(weights @ ((target - se3.transform(T, source)) ** 2).sum(axis=1))

    for with_scale in (False, True):
        found = procrustes(source, target, weights, with_scale)
        for _ in range(100):
            factor = np.diag([*[1 + with_scale * rng.normal(0, 1e-3)] * 3, 1.0])
            assert cost(found @ se3.exp(rng.normal(0, 1e-3, 6)) @ factor) >= cost(found)


def test_procrustes_never_reflects() -> None:
    """A set mirrored along its thinnest axis is best met as it stands, not by a mirror."""
    source = np.vstack([np.diag([1.0, 2.0, 3.0]), -np.diag([1.0, 2.0, 3.0])])
    np.testing.assert_allclose(procrustes(source, source * [-1, 1, 1]), np.eye(4), atol=1e-12)
    with_scale = procrustes(source, source * [-1, 1, 1], with_scale=True)
    # The scale that is best without the mirrored axis: (−1 + 4 + 9) / (1 + 4 + 9).
    np.testing.assert_allclose(with_scale, np.diag([12 / 14, 12 / 14, 12 / 14, 1]), atol=1e-12)


LINE = np.outer(np.arange(6.0), [1.0, 2.0, -1.0]) + [0.1, 0.7, 3.3]


@pytest.mark.parametrize(
    ("source", "target", "weights"),
    [
        (np.eye(3)[:2], np.eye(3)[:2], None),
        (np.zeros((0, 3)), np.zeros((0, 3)), None),
        (np.eye(3), np.ones((4, 3)), None),
        (LINE, LINE, None),
        (np.full((6, 3), 0.1), np.full((6, 3), 0.3), None),
        (np.eye(3), np.eye(3), np.zeros(3)),
        (np.eye(3), np.eye(3), np.ones(4)),
        (np.eye(3), np.eye(3), np.array([1, np.nan, 1])),
        (np.vstack([np.eye(3), LINE]), np.vstack([np.eye(3), LINE]), np.array([0, 0, 0, 1, 1, 1, 1, 1, 1])),
        (np.array([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]]), np.eye(3), None),
    ],
    ids=["two", "none", "unequal", "line", "one-place", "no-weight", "weights", "nan-weight", "weighted-line", "nan"],
)
def test_procrustes_refuses_what_fixes_no_pose(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray | None
) -> None:
    with pytest.raises(InputError) as caught:
        procrustes(source, target, weights)
    assert caught.value.reason == "alignment"


# --- focal length


def room_pointmap(rng: np.random.Generator, focal: float) -> np.ndarray:
    camera = Camera.from_focal(80, 60, focal)
    return pointmap.from_depth(rng.uniform(1, 5, (60, 80)).astype(np.float32), camera).astype(np.float64)


@quick
@given(seeds(), st.floats(25, 400))
def test_weiszfeld_recovers_the_focal_length(seed: int, focal: float) -> None:
    rng = np.random.default_rng(seed)
    points = room_pointmap(rng, focal)
    assert weiszfeld(points) == pytest.approx(focal, rel=1e-5)
    points[..., :2] *= rng.normal(1, 0.02, (60, 80, 1))
    points[30:35] = np.nan
    points[35:37, :, 2] *= -1
    wrong = rng.random((60, 80)) < 0.3
    points[wrong] *= rng.uniform([0.2, 0.2, 1], [0.8, 0.8, 1], (int(wrong.sum()), 3))
    # All that is wrong makes the focal length look longer. Weights of the L1 sum are ‖(x, y)/z‖, half as large for the
    # outliers: 0.3 · 0.5 of 0.85. Its median is the inliers' (0.425 / 0.7 =) 61 % quantile, 0.3 · 2 % away.
    assert weiszfeld(points) == pytest.approx(focal, rel=0.012)


@quick
@given(seeds())
def test_weiszfeld_obeys_confidence(seed: int) -> None:
    """Most points are wrong, but nothing vouches for them."""
    rng = np.random.default_rng(seed)
    points = room_pointmap(rng, 100.0)
    points[:40, :, :2] *= 0.4
    confidence = np.full((60, 80), 0.01)
    confidence[40:] = 1.0
    for iterations in (0, 10):  # at its start, the weighted median, and after
        assert weiszfeld(points, confidence, iterations=iterations) == pytest.approx(100, rel=0.01)


def test_weiszfeld_knows_the_principal_point() -> None:
    camera = Camera(80, 60, np.array([[90.0, 0, 30], [0, 90.0, 35], [0, 0, 1]]))
    points = pointmap.from_depth(np.full((60, 80), 2.0, np.float32), camera)
    assert weiszfeld(points, principal_point=(30, 35)) == pytest.approx(90, rel=1e-5)


@pytest.mark.parametrize(
    "points",
    [
        np.full((6, 8, 3), np.nan),
        np.zeros((6, 8, 3)),
        room_pointmap(np.random.default_rng(0), 90.0) * [1, 1, -1],
        room_pointmap(np.random.default_rng(0), 90.0) * [-1, -1, 1],
    ],
    ids=["nan", "zero", "behind", "upside-down"],
)
def test_weiszfeld_refuses_what_has_no_focal_length(points: np.ndarray) -> None:
    with pytest.raises(InputError) as caught:
        weiszfeld(points)
    assert caught.value.reason == "focal"
