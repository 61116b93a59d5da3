# SPDX-License-Identifier: Apache-2.0
"""The algorithm on a small synthetic room: where it is exact, where it fails and how it comes back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from textured_room import HALF_SIZE, TexturedRoom

from recon_ros import Config, Frame, Reconstructor, Update
from recon_ros.config import updated
from recon_ros.errors import ConfigError, InputError
from recon_ros.frame import Camera, Prediction, State
from recon_ros.geometry import se3
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes.depth import DepthSource
from recon_ros.tracking import relocalize, tracker

CAMERA = Camera.from_focal(240, 180, 195.0)
START_NS = 1_700_000_000_123_456_789
"""Not a number that a float can hold: the next ones are 256 ns apart."""
FAST = {"tracking.features": 500}
"""Enough for a room, and half the time."""

METRES, RADIANS = 0.02, 0.004
"""Errors that pass for tracked. Depth is exact; matched keypoints scatter by 1.5 px, which at 4 m and a focal length of
195 px is 31 mm. 350 of them give 1.6 mm (0.4 mrad), real errors are about five times the formal ones
(COVARIANCE_INFLATION), and three keyframes are strung together: √3 · 8 mm = 14 mm, 3.5 mrad."""


def pose(step: float) -> np.ndarray:
    """T_room_camera: a turn to the right in small steps, moving forward and to the side."""
    turned = se3.exp(np.array([0, 0, 0, 0, 0.05 * step, 0]))[:3, :3]
    return se3.make(turned, [-0.4 + 0.05 * step, 0, 0.02 * step])


def stamp(step: int) -> int:
    return START_NS + step * 33_333_333


def rendered(step: int, room: TexturedRoom | None = None, T_room_camera: np.ndarray | None = None) -> Frame:
    room = room or ROOM
    image, depth = room.render(pose(step) if T_room_camera is None else T_room_camera)
    return Frame(stamp(step), image, room.camera, depth, frame_id="eye")


def blank(step: int) -> Frame:
    """A covered lens: nothing to see, though the depth sensor goes on."""
    return Frame(stamp(step), np.full((180, 240, 3), 60, np.uint8), CAMERA, np.full((180, 240), 2.0, np.float32))


ROOM = TexturedRoom(CAMERA)
FRAMES = [rendered(i) for i in range(16)]


def reconstructor(**options: Any) -> Reconstructor:
    dotted = {name.replace("__", "."): value for name, value in options.items()}
    return Reconstructor(updated(Config(), FAST | dotted))


def run(frames: Iterable[Frame], **options: Any) -> tuple[Reconstructor, list[Update]]:
    r = reconstructor(**options)
    return r, [r.process(frame) for frame in frames]


def errors(update: Update, T_room_camera: np.ndarray, start: np.ndarray | None = None) -> tuple[float, float]:
    """Metres and radians the pose is off; the world is the first camera."""
    truth = se3.inverse(pose(0) if start is None else start) @ T_room_camera
    assert update.T_world_camera is not None
    return se3.distance(se3.inverse(truth) @ update.T_world_camera)


def assert_tracked(update: Update, T_room_camera: np.ndarray, factor: float = 1.0) -> None:
    assert update.state is State.TRACKING
    metres, radians = errors(update, T_room_camera)
    assert metres < factor * METRES and radians < factor * RADIANS, (metres, radians)


def bits(r: Reconstructor) -> list[bytes]:
    """Everything a reconstructor gives away, to the last bit."""
    final, live, cloud = r.trajectory(), r.live_trajectory(), r.map_cloud()
    arrays = [final.stamps_ns, final.poses, live.poses, cloud.points, cloud.colours, cloud.confidence]
    for k in r.keyframes:
        arrays += [np.array([k.id, k.stamp_ns]), k.T_world_camera, k.points, k.confidence, k.colour]
        arrays += [k.features.pixels, k.features.descriptors, k.features.points]
    return [a.tobytes() for a in arrays]


@pytest.fixture(scope="module")
def walk() -> tuple[Reconstructor, list[Update]]:
    """A whole walk, to be looked at only."""
    return run(FRAMES)


# --- what it gives


def test_every_frame_is_tracked(walk: tuple[Reconstructor, list[Update]]) -> None:
    for step, update in enumerate(walk[1]):
        assert_tracked(update, pose(step))
    assert len([u for u in walk[1] if u.keyframe_id is not None]) >= 3, "the walk is too short to tell"
    moved, turned = se3.distance(se3.inverse(pose(0)) @ pose(15))
    assert moved > 20 * METRES and turned > 100 * RADIANS


def test_the_same_frames_give_the_same_bits(walk: tuple[Reconstructor, list[Update]]) -> None:
    np.random.default_rng(1).normal(size=10)
    cv2.setRNGSeed(1234)  # whoever else uses OpenCV
    again, updates = run(FRAMES)
    assert bits(again) == bits(walk[0])
    for a, b in zip(updates, walk[1], strict=True):
        assert a.T_world_camera is not None and b.T_world_camera is not None
        assert a.T_world_camera.tobytes() == b.T_world_camera.tobytes()
        assert (a.inliers, a.confidence, a.keyframe_id) == (b.inliers, b.confidence, b.keyframe_id)


def test_stamps_and_frame_ids_are_passed_on_exactly(walk: tuple[Reconstructor, list[Update]]) -> None:
    r, updates = walk
    stamps = [stamp(i) for i in range(16)]
    assert [u.stamp_ns for u in updates] == stamps
    assert all(u.frame_id == "eye" for u in updates)
    for trajectory in (r.trajectory(), r.live_trajectory()):
        assert trajectory.stamps_ns.dtype == np.int64
        assert trajectory.stamps_ns.tolist() == stamps
    made = {u.keyframe_id: u.stamp_ns for u in updates if u.keyframe_id is not None}
    assert {k.id: k.stamp_ns for k in r.keyframes} == made
    assert all(k.frame_id == "eye" for k in r.keyframes)


def test_an_update_agrees_with_itself(walk: tuple[Reconstructor, list[Update]]) -> None:
    r, updates = walk
    by_id = {k.id: k for k in r.keyframes}
    for u in updates:
        assert u.T_world_camera is not None and u.T_reference_camera is not None and u.reference_id is not None
        through = by_id[u.reference_id].T_world_camera @ u.T_reference_camera
        np.testing.assert_allclose(through, u.T_world_camera, atol=1e-9)
        assert se3.is_valid(u.T_world_camera)
        assert u.is_metric and 0 <= u.confidence <= 1
        assert u.camera.same_as(CAMERA) and u.image.shape == (180, 240, 3)
        assert u.prediction.points_self.shape == (180, 240, 3)
        assert u.covariance is not None and np.linalg.eigvalsh(u.covariance).min() > 0
        np.testing.assert_allclose(u.covariance, u.covariance.T, rtol=1e-6)
        assert {"prepare", "step", "track", "remember"} <= set(u.timings_ms)
        if u.keyframe_id is not None:
            assert u.reference_id == u.keyframe_id
    live = r.live_trajectory().poses
    np.testing.assert_array_equal(live, np.stack([u.T_world_camera for u in updates]))
    np.testing.assert_allclose(r.trajectory().poses, live, atol=1e-9)  # nothing has been corrected


def test_errors_stay_within_what_is_said_of_them(walk: tuple[Reconstructor, list[Update]]) -> None:
    """Errors against the reference keyframe in units of the stated deviations: 3 of 6 x 15 numbers above 3 at most."""
    r, updates = walk
    steps = {k.id: (k.stamp_ns - START_NS) // 33_333_333 for k in r.keyframes}
    ratios = []
    for step, u in enumerate(updates):
        if u.keyframe_id is None and u.reference_id is not None and u.covariance is not None:
            truth = se3.inverse(pose(steps[u.reference_id])) @ pose(step)
            assert u.T_reference_camera is not None
            xi = se3.log(se3.inverse(truth) @ u.T_reference_camera)
            ratios.append(np.abs(xi) / np.sqrt(np.diag(u.covariance)))
    assert len(ratios) > 8
    assert np.count_nonzero(np.array(ratios) > 3) <= 3


def test_the_map_lies_on_the_walls(walk: tuple[Reconstructor, list[Update]]) -> None:
    cloud = walk[0].map_cloud()
    assert len(cloud) > 5000
    room = se3.transform(pose(0), cloud.points.astype(np.float64))
    off = np.abs(np.abs(room) - HALF_SIZE).min(axis=1)
    assert np.median(off) < METRES / 4 and np.percentile(off, 95) < METRES
    limited = walk[0].map_cloud(1000)
    assert len(limited) == 1000


def test_the_map_is_seen_in_its_own_colours(walk: tuple[Reconstructor, list[Update]]) -> None:
    """Projected into the first image, the map looks like it but for the averaging over 3 cm."""
    cloud = walk[0].map_cloud()
    pixels = CAMERA.project(cloud.points.astype(np.float64))
    inside = (pixels > 1).all(axis=1) & (pixels < [238, 178]).all(axis=1)
    u, v = np.round(pixels[inside]).astype(int).T
    image = cv2.GaussianBlur(FRAMES[0].image, (3, 3), 0).astype(float)
    difference = np.abs(image[v, u] - cloud.colours[inside].astype(float)).mean()
    swapped = np.abs(image[v, u, ::-1] - cloud.colours[inside].astype(float)).mean()
    assert difference < 0.5 * swapped


def test_the_map_version_changes_with_the_map() -> None:
    r, last, cloud = reconstructor(), -1, b""
    for frame in FRAMES[:8]:
        update = r.process(frame)
        if update.keyframe_id is not None:
            assert r.map_version != last
        else:
            assert r.map_version == last and r.map_cloud().points.tobytes() == cloud
        last, cloud = r.map_version, r.map_cloud().points.tobytes()


def test_updates_do_not_change_later() -> None:
    r = reconstructor()
    first = r.process(FRAMES[0])
    kept = {n: getattr(first, n).copy() for n in ("T_world_camera", "image", "covariance")}
    timings, live = dict(first.timings_ms), r.live_trajectory()
    for frame in FRAMES[1:4]:
        r.process(frame)
    for name, value in kept.items():
        np.testing.assert_array_equal(getattr(first, name), value)
    assert first.timings_ms == timings and len(live) == 1


@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_remembered_is_its_own(stride: int) -> None:
    """A driver may write the next image into the same memory."""
    frame = FRAMES[0]
    image, depth = frame.image.copy(), frame.depth.copy()
    r, _ = run([replace(frame, image=image, depth=depth)], memory__points_stride=stride)
    before = bits(r)
    image[:], depth[:] = 0, 1
    assert bits(r) == before


# --- bad input


BAD = {
    "no_camera_info": lambda f: replace(f, camera=None),
    "no_depth": lambda f: replace(f, depth=None),
    "depth_empty": lambda f: replace(f, depth=np.full_like(f.depth, np.nan)),
}


def test_unusable_frames_leave_no_trace(walk: tuple[Reconstructor, list[Update]]) -> None:
    r = reconstructor()
    for step, frame in enumerate(FRAMES):
        for reason, spoil in BAD.items():
            if step in (0, 3, 7):
                state, version = r.state, r.map_version
                with pytest.raises(InputError) as caught:
                    r.process(spoil(frame))
                assert caught.value.reason == reason
                assert (r.state, r.map_version) == (state, version)
        r.process(frame)
    assert bits(r) == bits(walk[0])


@pytest.mark.parametrize("value", [0.0, 0.05, 50.0])
def test_depth_out_of_range_is_no_depth(value: float) -> None:
    with pytest.raises(InputError, match=r"input\.min_depth 0\.1 .* input\.max_depth 8") as caught:
        reconstructor().process(replace(FRAMES[0], depth=np.full((180, 240), value, np.float32)))
    assert caught.value.reason == "depth_empty"


def test_holes_in_the_depth_do_no_harm() -> None:
    """A third of the pixels, a strip at the rim and everything beyond 5 m is missing."""
    rng = np.random.default_rng(0)
    frames = []
    for frame in FRAMES[:8]:
        assert frame.depth is not None
        depth = frame.depth.copy()
        depth[rng.random(depth.shape) < 0.3] = np.nan
        depth[:, :20] = 0
        depth[depth > 5] = np.inf
        frames.append(replace(frame, depth=depth))
    for step, update in enumerate(run(frames)[1]):
        assert_tracked(update, pose(step), factor=1.5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": np.zeros((180, 240), np.uint8)}, "image"),
        ({"image": np.zeros((180, 240, 4), np.uint8)}, "image"),
        ({"image": np.zeros((180, 240, 3), np.float32)}, "image"),
        ({"image": np.zeros((0, 240, 3), np.uint8)}, "image"),
        ({"depth": np.ones((90, 120), np.float32)}, "depth"),
        ({"depth": np.ones((180, 240), np.uint16)}, "depth"),
        ({"camera": Camera.from_focal(320, 240, 200.0)}, "camera"),
        ({"T_odom_camera": np.full((4, 4), np.nan)}, "odometry"),
        ({"T_odom_camera": np.eye(3)}, "odometry"),
        ({"T_odom_camera": np.zeros((4, 4))}, "odometry"),
    ],
)
def test_frames_that_cannot_be_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(FRAMES[0], **changes)
    assert caught.value.reason == reason


# --- starting, losing, finding


def test_nothing_to_see_at_first() -> None:
    r, updates = run([blank(0), blank(1), *FRAMES[2:4]])
    assert [u.state for u in updates] == [State.INITIALIZING] * 2 + [State.TRACKING] * 2
    assert updates[0].T_world_camera is None and updates[0].keyframe_id is None
    np.testing.assert_array_equal(updates[2].T_world_camera, np.eye(4))
    assert updates[2].keyframe_id == 0
    assert r.trajectory().stamps_ns.tolist() == [stamp(2), stamp(3)]


def test_lost_and_found() -> None:
    r, before = run(FRAMES[:8], tracking__lost_after=2)
    version, keyframes, logged = r.map_version, len(r.keyframes), len(r.trajectory())
    lost = [r.process(blank(8 + i)) for i in range(4)]
    assert [u.state for u in lost] == [State.RELOCALIZING] + [State.LOST] * 3
    for u in lost:
        assert u.T_world_camera is None and u.keyframe_id is None and u.covariance is None
        assert u.reference_id is None and u.T_reference_camera is None
        assert u.stamp_ns > before[-1].stamp_ns
    assert r.state is State.LOST
    assert (r.map_version, len(r.keyframes), len(r.trajectory())) == (version, keyframes, logged)

    found = r.process(rendered(12, T_room_camera=pose(7.5)))
    assert_tracked(found, pose(7.5))
    for i in range(2):
        assert_tracked(r.process(rendered(13 + i, T_room_camera=pose(8 + i))), pose(8 + i))
    assert len(r.trajectory()) == logged + 3


@pytest.mark.parametrize("candidates", [1, 2, 6])
def test_a_camera_carried_back_to_the_start_is_found(candidates: int) -> None:
    """Far from where it was last seen: only the stored keyframes know the place, and each has its turn."""
    r, _ = run(FRAMES, tracking__lost_after=2, tracking__relocalization_candidates=candidates)
    assert not any(u.T_world_camera is not None for u in [r.process(blank(16)), r.process(blank(17))])
    place = pose(-0.5)
    overlap = r._atlas.store.overlaps(np.array([[0.0, 0, 4.0]]), se3.inverse(pose(0)) @ place)[1]
    assert overlap[0] == 1 and overlap[-1] == 0, "the last keyframe sees the place as well"
    for i in range(len(r.keyframes) + 1):
        update = r.process(rendered(18 + i, T_room_camera=place))
        if update.state is State.TRACKING:
            break
    assert_tracked(update, place)


@pytest.mark.parametrize("candidates", [2, 3, 100])
def test_each_keyframe_has_its_turn(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is no pose: so many a frame and no more, and all of them in the end."""
    r, _ = run(FRAMES, memory__min_overlap=0.95, tracking__relocalization_candidates=candidates)
    owners = {id(k.features): k.id for k in r.keyframes}
    assert len(owners) >= 5
    tried: list[int] = []

    def recorded(keyframe: Any, *_: Any) -> None:
        tried.append(owners[id(keyframe.features)])

    monkeypatch.setattr(relocalize, "verify", recorded)
    elsewhere, seen = rendered(16, TexturedRoom(CAMERA, seed=77)), set()
    assert r.process(elsewhere).T_world_camera is None and not tried, "one lost frame may be a blurred one"
    in_turn = max(1, candidates // tracker.IN_TURN)
    for i in range(-(-len(owners) // in_turn)):
        tried.clear()
        assert r.process(replace(elsewhere, stamp_ns=stamp(17 + i))).T_world_camera is None
        assert len(tried) <= candidates + in_turn, "those that look alike, and some in turn"
        seen |= set(tried)
    assert seen == set(owners.values())


def test_what_happened_while_lost_is_no_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found at another place, and standing still there: the next search starts there, not as far away again."""
    r, _ = run([*FRAMES[:2], *(blank(2 + i) for i in range(6))])
    assert_tracked(r.process(rendered(8, T_room_camera=pose(7.5))), pose(7.5))
    monkeypatch.setattr(tracker, "match", lambda *_: np.zeros((0, 2), np.int64))
    assert r.process(rendered(9, T_room_camera=pose(7.6))).state is State.TRACKING


def test_a_strange_place_is_not_taken_for_a_known_one() -> None:
    r, _ = run(FRAMES[:4])
    elsewhere = TexturedRoom(CAMERA, seed=77)
    for i in range(3):
        assert r.process(rendered(4 + i, elsewhere)).T_world_camera is None


def test_reset_forgets_everything(walk: tuple[Reconstructor, list[Update]]) -> None:
    r, _ = run([*FRAMES[8:12], blank(12)])
    r.reset()
    assert r.state is State.INITIALIZING
    assert r.keyframes == () and len(r.trajectory()) == 0 and len(r.map_cloud()) == 0
    for frame in FRAMES:
        r.process(frame)
    assert bits(r) == bits(walk[0])


TURN = se3.exp(np.array([0.05, 0, 0, 0, 0.35, 0]))


def turned_away(step: int, *, with_odometry: bool) -> Frame:
    """A quick turn of 0.35 rad (70 px) between two frames, and odometry in a frame of its own that saw it."""
    T_room_camera = pose(0) @ TURN if step else pose(0)
    T_odom_room = se3.exp(np.array([3.0, -2, 1, 0.3, 0.8, -0.4]))
    drift = se3.exp(np.array([0.02, 0, 0.01, 0, 0.01, 0])) if step else np.eye(4)
    prior = T_odom_room @ T_room_camera @ drift
    frame = rendered(step, T_room_camera=T_room_camera)
    return replace(frame, T_odom_camera=prior) if with_odometry else frame


@pytest.mark.parametrize("with_odometry", [True, False])
def test_odometry_says_where_to_look(with_odometry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where free matching fails, as between look-alike shelves, the prior decides; its own drift does not show."""
    monkeypatch.setattr(tracker, "match", lambda *_: np.zeros((0, 2), np.int64))
    r, _ = run([turned_away(0, with_odometry=with_odometry)])
    update = r.process(turned_away(1, with_odometry=with_odometry))
    if with_odometry:
        assert_tracked(update, pose(0) @ TURN)
    else:
        assert update.T_world_camera is None, "the turn is too small to need odometry"


def test_odometry_carries_over_frames_without_a_pose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "match", lambda *_: np.zeros((0, 2), np.int64))
    r, _ = run([turned_away(0, with_odometry=True)])
    assert r.process(blank(1)).T_world_camera is None
    after = replace(turned_away(1, with_odometry=True), stamp_ns=stamp(2))
    assert_tracked(r.process(after), pose(0) @ TURN)


# --- cameras and sizes


def distorted_room(model: str, D: list[float]) -> TexturedRoom:
    """The room through a lens: pixels look along the rays that OpenCV says."""
    camera = Camera(CAMERA.width, CAMERA.height, CAMERA.K, model, np.array(D))
    room = TexturedRoom(CAMERA)
    v, u = np.mgrid[: CAMERA.height, : CAMERA.width].astype(np.float64)
    pixels = np.stack([u, v], axis=-1).reshape(-1, 1, 2)
    undistort = cv2.fisheye.undistortPoints if model == "equidistant" else cv2.undistortPoints
    rays = undistort(pixels, camera.K, camera.D).reshape(CAMERA.height, CAMERA.width, 2)
    room._rays = np.concatenate([rays, np.ones((*rays.shape[:2], 1))], axis=-1)
    room.camera = camera
    return room


@pytest.mark.parametrize(
    ("model", "D"),
    [("plumb_bob", [-0.25, 0.06, 0.001, -0.001, 0.0]), ("equidistant", [0.02, 0.005, -0.002, 0.0])],
)
def test_a_distorted_camera_is_undistorted(model: str, D: list[float]) -> None:
    room = distorted_room(model, D)
    _, updates = run([rendered(i, room) for i in range(0, 12, 2)])
    for i, update in enumerate(updates):
        assert_tracked(update, pose(2 * i))
        assert not update.camera.is_distorted
    ideal, known = FRAMES[10].depth, np.isfinite(updates[5].prediction.depth)
    assert known.mean() > 0.7 and ideal is not None
    off = np.abs(updates[5].prediction.depth - ideal)[known]
    assert np.percentile(off, 90) < 0.05, "the depth was not undistorted with the image"


def test_that_distortion_matters() -> None:
    """The same images with the lens kept secret are tracked worse, so that the test above can fail."""
    room = distorted_room("plumb_bob", [-0.25, 0.06, 0.001, -0.001, 0.0])
    room.camera = CAMERA
    last = run([rendered(i, room) for i in range(0, 12, 2)])[1][-1]
    assert last.T_world_camera is None or errors(last, pose(10))[0] > METRES


def test_large_images_are_reduced() -> None:
    """160 of 240 pixels: everything is coarser by 1.5, and fewer keypoints are found."""
    _, updates = run(FRAMES[::2], input__max_size=160)
    for i, update in enumerate(updates):
        assert update.image.shape == (120, 160, 3) == update.prediction.points_self.shape
        assert (update.camera.width, update.camera.height) == (160, 120)
        np.testing.assert_allclose(update.camera.fx, 130)
        np.testing.assert_allclose(update.camera.cx, 79.5)
        assert_tracked(update, pose(2 * i), factor=2)


def test_the_size_may_change_on_the_way() -> None:
    small = TexturedRoom(Camera.from_focal(200, 160, 150.0))
    r, _ = run(FRAMES[:4])
    assert_tracked(r.process(rendered(4, small)), pose(4), factor=1.5)
    assert_tracked(r.process(FRAMES[5]), pose(5), factor=1.5)


# --- bounds


def test_the_keyframe_bound_holds_and_the_path_survives() -> None:
    r = reconstructor(memory__max_keyframes=4, memory__min_overlap=0.95, memory__min_rotation=0.02)
    made = 0
    for step, frame in enumerate(FRAMES):
        update = r.process(frame)
        made += update.keyframe_id is not None
        assert len(r.keyframes) <= 4
        assert_tracked(update, pose(step), factor=2)
        assert update.reference_id in {k.id for k in r.keyframes}
    assert made >= 8, "the example makes too few keyframes"
    final = r.trajectory()
    assert len(final) == 16
    np.testing.assert_allclose(final.poses, r.live_trajectory().poses, atol=1e-9)
    # What the evicted ones put into the map is gone: what is left is what the four have seen.
    expected = reconstructor()
    for keyframe in r.keyframes:
        expected._atlas.drawing.draw(keyframe)
    assert r.map_cloud().points.tobytes() == expected.map_cloud().points.tobytes()


def test_keyframes_are_strided_without_being_shifted() -> None:
    for stride in (1, 2, 3):
        r, updates = run(FRAMES[:1], memory__points_stride=stride)
        (keyframe,) = r.keyframes
        assert keyframe.points.shape[:2] == keyframe.confidence.shape == keyframe.colour.shape[:2]
        assert keyframe.camera.width == keyframe.points.shape[1]
        v, u = np.mgrid[: keyframe.points.shape[0], : keyframe.points.shape[1]]
        seen = keyframe.camera.project(keyframe.points)
        np.testing.assert_allclose(seen, np.stack([u, v], axis=-1), atol=0.15)  # half precision of x and z
        start = stride // 2
        np.testing.assert_array_equal(keyframe.colour, updates[0].image[start::stride, start::stride])


def test_the_path_bound_holds() -> None:
    r = reconstructor(memory__max_poses=100)
    pose_ = np.eye(4)
    r.process(FRAMES[0])
    for i in range(1, 300):
        r._atlas.path.append(stamp(i), 0, pose_, pose_)
    assert len(r.trajectory()) <= 100


def test_dynamic_options_take_effect() -> None:
    r, _ = run(FRAMES[:2])
    r.set_config(updated(r.config, {"map.max_points": 1000, "tracking.min_inliers": 1000}))
    assert len(r.map_cloud()) == 1000
    assert r.process(FRAMES[2]).T_world_camera is None, "no frame has 1000 inliers of 500 features"
    r.set_config(updated(r.config, {"tracking.min_inliers": 20}))
    assert r.process(FRAMES[3]).T_world_camera is not None


# --- the contract with the source


class Counting(DepthSource):
    """A source whose memory is the number of its steps, with a grid and a confidence as networks have."""

    card = ModelCard("counting", "depth", max_size=200, multiple=14, is_metric=True, unbounded_confidence=True)

    def __init__(self) -> None:
        super().__init__(Config().input)
        self.seen: list[int] = []

    def initial_memory(self) -> int:
        return 0

    def step(self, memory: int, image: Any, camera: Any, depth: Any = None) -> tuple[int, Prediction]:
        self.seen.append(memory)
        _, prediction = super().step((), image, camera, depth)
        confidence = np.where(prediction.confidence > 0, 1 + 9 * prediction.confidence, 0).astype(np.float32)
        return memory + 1, replace(prediction, confidence=confidence)


def test_the_source_advances_with_each_usable_frame_only() -> None:
    source = Counting()
    r = Reconstructor(updated(Config(), FAST), source)
    updates = [r.process(FRAMES[0]), r.process(FRAMES[1])]
    with pytest.raises(InputError):
        r.process(BAD["depth_empty"](FRAMES[2]))
    updates.append(r.process(FRAMES[2]))
    r.process(blank(3))
    r.process(FRAMES[4])
    r.reset()
    r.process(FRAMES[5])
    assert source.seen == [0, 1, 2, 2, 3, 4, 0]

    for step, update in enumerate(updates):  # 200 x 150, cropped to multiples of 14
        assert update.image.shape == (140, 196, 3)
        assert_tracked(update, pose(step))
    confidence = r.keyframes[0].confidence
    assert confidence.max() < 0.95 and confidence[confidence > 0].min() > 0.5, "1 − 1/c of c in [1, 10]"


# --- changes while running


def test_dynamic_options_change_and_others_are_refused() -> None:
    r = Reconstructor(Config())
    r.set_config(updated(Config(), {"tracking.min_inliers": 30}))
    assert r.config.tracking.min_inliers == 30
    with pytest.raises(ConfigError, match=r"map\.voxel_size.*0\.03.*0\.1"):
        r.set_config(updated(Config(), {"map.voxel_size": 0.1}))
    assert r.config.map.voxel_size == 0.03 and r.config.tracking.min_inliers == 30


def test_a_source_that_was_chosen_for_us_stays_the_same_while_options_change() -> None:
    config = updated(Config(), {"source": "auto"})
    r = Reconstructor(config, DepthSource(config.input))
    chosen = r.config.source
    r.set_config(updated(config, {"tracking.min_inliers": 30}))
    assert r.config.source == chosen != "auto" and r.config.tracking.min_inliers == 30


def test_an_image_too_small_for_keypoints_is_refused() -> None:
    tiny = Frame(1, np.zeros((1, 1, 3), np.uint8), Camera.from_focal(1, 1, 1.0), np.ones((1, 1), np.float32))
    with pytest.raises(InputError, match="1x1"):
        Reconstructor(Config()).process(tiny)


def test_a_depth_range_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_depth 5\.0 is not below input\.max_depth 2\.0"):
        Reconstructor(updated(Config(), {"input.min_depth": 5.0, "input.max_depth": 2.0}))
