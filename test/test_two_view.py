# SPDX-License-Identifier: Apache-2.0
"""Two views of one place are recognised, with the right pose and scale; two of different places never are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import make_keyframe, quick, random_pose, seeds
from hypothesis import given
from hypothesis import strategies as st
from revisits import room_view, turning
from textured_room import TexturedRoom

from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.features import Features
from recon_ros.geometry.two_view import Side, Sighting, VerifySettings, _fused, contradiction, locate, verify
from recon_ros.memory.sides import image_camera
from recon_ros.tracking.relocalize import side_of_view
from recon_ros.tracking.view import View

HOLO_WALK = Path(__file__).parents[2] / "shared" / "data" / "holo_walk"


@pytest.fixture(scope="module")
def room() -> TexturedRoom:
    return TexturedRoom()


def near(T: np.ndarray, metres: float = 0.4, degrees: float = 12.0) -> np.ndarray:
    """A pose a step and a glance away."""
    return T @ se3.exp(np.array([metres, 0.05, -0.5 * metres, 0.0, np.deg2rad(-degrees), 0.02]))


@pytest.fixture(scope="module")
def pair(room: TexturedRoom) -> tuple[Side, Side, np.ndarray]:
    """Two views of the room and the true T_a_b."""
    T_a = turning(1)
    T_b = near(T_a)
    a, b = (side_of_view(room_view(room, T)) for T in (T_a, T_b))
    return a, b, se3.inverse(T_a) @ T_b


def in_unit(side: Side, unit: float) -> Side:
    """What a network would say of the view whose unit is so many metres."""
    features = replace(side.features, points=side.features.points / np.float32(unit))
    assert side.depth is not None
    return replace(side, features=features, depth=side.depth / unit, is_metric=False, surface=None)


def assert_close(T: np.ndarray, expected: np.ndarray, metres: float, radians: float) -> None:
    moved, turned = se3.distance(se3.inverse(T) @ expected)
    assert moved < metres and turned < radians, f"{moved:.3f} m and {turned:.4f} rad off"


# --- the same place


def test_pose_of_two_views(pair: tuple[Side, Side, np.ndarray]) -> None:
    a, b, T_a_b = pair
    verified = verify(a, b)
    assert verified is not None
    assert_close(verified.T_a_b, T_a_b, 0.01, 0.004)
    assert se3.is_valid(verified.T_a_b)
    assert verified.inliers >= VerifySettings().min_inliers and 0 < verified.ratio <= 1


def test_depth_is_held_to_what_is_known_of_it(pair: tuple[Side, Side, np.ndarray]) -> None:
    """Depth that is 10 % too near on one side: too much for a sensor, not for a network whose card says 15 %."""
    a, b, T_a_b = pair
    a = replace(in_unit(a, 1.1), is_metric=True, surface=None)
    b = replace(b, surface=None)
    assert verify(a, b) is None
    rough = VerifySettings(depth_sigma=0.15, surface_sigma=0.0)
    assert VerifySettings().depth_tolerance(a, b) == 0.05 and rough.depth_tolerance(a, b) == 0.3
    assert VerifySettings(depth_sigma=0.9).depth_tolerance(a, b) == 0.3, "else nothing would contradict anything"
    verified = verify(a, b, rough)
    assert verified is not None and se3.is_valid(verified.T_a_b), "metres are metres: no scale is found along"
    assert_close(verified.T_a_b, T_a_b, 0.2, 0.05)  # 5 % of the depth of the room, half of what the two disagree by


def test_both_orders_say_the_same(pair: tuple[Side, Side, np.ndarray]) -> None:
    a, b, _ = pair
    there, back = verify(a, b), verify(b, a)
    assert there is not None and back is not None
    assert_close(there.T_a_b @ back.T_a_b, np.eye(4), 0.01, 0.004)


def test_it_is_deterministic(pair: tuple[Side, Side, np.ndarray]) -> None:
    a, b, _ = pair
    one, other = verify(a, b), verify(a, b)
    assert one is not None and other is not None
    np.testing.assert_array_equal(one.T_a_b, other.T_a_b)
    np.testing.assert_array_equal(one.information, other.information)


def test_features_alone_are_enough(pair: tuple[Side, Side, np.ndarray]) -> None:
    a, b, T_a_b = pair
    verified = verify(replace(a, surface=None, depth=None), replace(b, surface=None, depth=None))
    assert verified is not None
    assert_close(verified.T_a_b, T_a_b, 0.03, 0.01)


@pytest.mark.parametrize(("unit_a", "unit_b"), [(1.0, 0.4), (2.5, 1.0), (0.3, 3.0)])
def test_scale_where_units_differ(pair: tuple[Side, Side, np.ndarray], unit_a: float, unit_b: float) -> None:
    a, b, T_a_b = pair
    verified = verify(in_unit(a, unit_a), in_unit(b, unit_b))
    assert verified is not None
    assert se3.scale_of(verified.T_a_b) == pytest.approx(unit_b / unit_a, rel=0.01)
    in_metres = verified.T_a_b.copy()
    in_metres[:3, 3] *= unit_a
    in_metres[:3, :3] /= se3.scale_of(in_metres)
    assert_close(in_metres, T_a_b, 0.04, 0.01)


@quick
@given(seeds(), st.floats(0.2, 5.0))
def test_information_of_both_directions_is_about_one_perturbation(seed: int, scale: float) -> None:
    """The backward information, moved to b's frame and unit, is the forward one; so their mean is, too."""
    rng = np.random.default_rng(seed)
    rigid = random_pose(rng)  # T_a_b in a's unit
    T_a_b = se3.make(rigid[:3, :3], rigid[:3, 3], scale)
    root = rng.normal(size=(6, 6))
    wanted = root @ root.T + np.eye(6)  # right perturbation in b's frame and unit
    to_a_unit = np.diag([1 / scale] * 3 + [1.0] * 3)  # a perturbation in a's unit to b's
    forward = to_a_unit @ wanted @ to_a_unit
    in_b_unit = se3.make(rigid[:3, :3], rigid[:3, 3] / scale)
    columns = [se3.log(se3.inverse(in_b_unit) @ se3.exp(1e-6 * e) @ in_b_unit) / 1e-6 for e in np.eye(6)]
    left_to_right = np.stack(columns, axis=1)
    backward = left_to_right.T @ wanted @ left_to_right
    pairs = np.zeros((1, 2), np.int64)
    T, information = _fused(Sighting(se3.inverse(T_a_b), forward, pairs, 1.0), Sighting(T_a_b, backward, pairs, 1.0))
    np.testing.assert_allclose(T, T_a_b, atol=1e-8)
    np.testing.assert_allclose(information, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


# --- not the same place


def test_other_rooms_are_not_recognised(room: TexturedRoom) -> None:
    other = TexturedRoom(seed=1)
    views = [side_of_view(room_view(room, turning(i, 4))) for i in range(4)]
    others = [side_of_view(room_view(other, turning(i, 4))) for i in range(4)]
    assert not [(i, j) for i, a in enumerate(views) for j, b in enumerate(others) if verify(a, b) is not None]


def test_other_sides_of_a_room_are_not_recognised(room: TexturedRoom) -> None:
    views = [side_of_view(room_view(room, turning(i, 4))) for i in range(4)]
    assert not [(i, j) for i in range(4) for j in range(i) if verify(views[i], views[j]) is not None]


def test_metres_must_be_metres(pair: tuple[Side, Side, np.ndarray]) -> None:
    """A model of the room at another size shows the same image."""
    a, b, _ = pair
    small = replace(in_unit(b, 1.3), is_metric=True)
    assert verify(a, replace(in_unit(b, 1.01), is_metric=True), VerifySettings(surface_sigma=0.0)) is not None
    assert verify(a, small, VerifySettings(surface_sigma=0.0)) is None


def test_one_poster_is_not_a_place(pair: tuple[Side, Side, np.ndarray]) -> None:
    a, b, _ = pair
    sighting = locate(a, b)
    assert sighting is not None
    middle = np.median(b.features.pixels[sighting.pairs[:, 1]], axis=0)
    on_poster = np.abs(b.features.pixels - middle).max(axis=1) < 36
    poster = Features(*(getattr(b.features, n)[on_poster] for n in ("pixels", "descriptors", "points")))
    lenient = VerifySettings(min_inliers=8)
    assert np.isin(sighting.pairs[:, 1], np.flatnonzero(on_poster)).sum() > 15  # there is enough of it
    assert verify(a, replace(b, features=poster), lenient) is None


def test_seeing_through_a_wall_is_a_contradiction(pair: tuple[Side, Side, np.ndarray]) -> None:
    """Features agree, but a third of b's image has free space where a has seen a wall."""
    a, b, T_a_b = pair
    assert b.depth is not None
    assert contradiction(a, b, se3.inverse(T_a_b)) < 0.005
    open_door = b.depth.copy()
    open_door[:, :110] *= 1.5
    changed = replace(b, depth=open_door, surface=None)
    assert contradiction(a, changed, se3.inverse(T_a_b)) > 0.1
    assert contradiction(changed, a, T_a_b) < 0.005  # what is behind a's wall is hidden from a
    assert verify(a, replace(b, surface=None)) is not None
    assert verify(a, changed) is None


def test_no_depth_is_no_contradiction(pair: tuple[Side, Side, np.ndarray]) -> None:
    a, b, T_a_b = pair
    assert a.depth is not None
    blind = replace(b, depth=np.full_like(a.depth, np.nan))
    assert contradiction(a, blind, se3.inverse(T_a_b)) == 0 == contradiction(blind, a, T_a_b)
    assert contradiction(a, replace(b, depth=None), se3.inverse(T_a_b)) == 0


def test_surfaces_that_do_not_fit_are_a_no(pair: tuple[Side, Side, np.ndarray], room: TexturedRoom) -> None:
    a, b, _ = pair
    elsewhere = side_of_view(room_view(room, turning(9)))
    assert verify(a, replace(b, surface=elsewhere.surface)) is None


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_features_are_no_place(pair: tuple[Side, Side, np.ndarray], count: int) -> None:
    a, b, _ = pair
    few = Features(*(getattr(b.features, n)[:count] for n in ("pixels", "descriptors", "points")))
    assert verify(a, replace(b, features=few)) is None
    assert verify(replace(b, features=few), a) is None


def test_points_without_depth_are_no_points(pair: tuple[Side, Side, np.ndarray]) -> None:
    a, b, _ = pair
    nowhere = replace(b.features, points=np.full_like(b.features.points, np.nan))
    assert verify(a, replace(b, features=nowhere)) is None


# --- keyframes


@quick
@given(seeds(), st.integers(1, 7))
def test_camera_of_the_image_of_a_keyframe(seed: int, stride: int) -> None:
    """It follows from the keypoints, whatever the stride of the stored pointmap was."""
    rng = np.random.default_rng(seed)
    camera = Camera(320, 240, np.array([[250.0, 0, 155.5], [0, 255.0, 118.0], [0, 0, 1]]))
    pixels = rng.uniform(0, [319, 239], (30, 2))
    points = camera.unproject(pixels, rng.uniform(1, 6, 30)).astype(np.float32)
    height, width = (240 - stride // 2 + stride - 1) // stride, (320 - stride // 2 + stride - 1) // stride
    K = camera.cropped(stride // 2, stride // 2, width * stride, height * stride).K.copy()
    K[:2] /= stride
    keyframe = make_keyframe(0, np.eye(4))
    keyframe.features = Features(pixels.astype(np.float32), rng.integers(0, 256, (30, 32), dtype=np.uint8), points)
    keyframe.camera = Camera(width, height, K)
    np.testing.assert_allclose(image_camera(keyframe).K, camera.K, atol=1e-9)


# --- a recording


@pytest.mark.data
@pytest.mark.skipif(not HOLO_WALK.exists(), reason="needs ../shared/data/holo_walk")
def test_real_revisit_and_real_other_places() -> None:
    """Ten seconds later the same tables are recognised, to centimetres; other rooms of the office are not."""
    from recon_ros.datasets.rosbag import BagReader
    from recon_ros.frame import Prediction
    from recon_ros.geometry import pointmap
    from recon_ros.geometry.features import Detector

    seen, others = (266, 350), (0, 30, 60, 90, 120)
    detector = Detector(1200)
    with BagReader(HOLO_WALK) as bag:
        truth = bag.ground_truth()
        assert truth is not None
        pose = dict(zip(truth.stamps_ns.tolist(), truth.poses, strict=True))
        sides, poses = {}, {}
        for i, frame in enumerate(bag.frames()):
            if i in seen + others:
                assert frame.camera is not None and frame.depth is not None
                points = pointmap.from_depth(frame.depth, frame.camera)
                prediction = Prediction(points, np.isfinite(frame.depth).astype(np.float32), is_metric=True)
                sides[i] = side_of_view(View(frame.stamp_ns, frame.image, frame.camera, prediction, detector))
                poses[i] = pose[frame.stamp_ns]
    a, b = seen
    verified = verify(sides[a], sides[b])
    assert verified is not None
    assert_close(verified.T_a_b, se3.inverse(poses[a]) @ poses[b], 0.08, 0.03)
    assert not [(i, j) for i in seen for j in others if verify(sides[i], sides[j]) is not None]
