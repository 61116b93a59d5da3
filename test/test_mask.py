# SPDX-License-Identifier: Apache-2.0
"""What a mask excludes is in no feature, no pose and no map; the depth image alone still shows it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import quick, seeds
from hypothesis import given
from test_reconstructor import CAMERA, FRAMES, METRES, RADIANS, ROOM, errors, pose, run

from recon_ros.errors import InputError
from recon_ros.frame import Frame, State
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.features import OUTLINE, Detector
from recon_ros.geometry.grid import Grid
from recon_ros.geometry.preparation import labels_on_grid, prepare

NEAR = 0.6
"""Depth of what is carried in front of the camera, metres; the room begins behind a metre."""
BLOCK = np.s_[40:150, 80:180]


def carried(frame: Frame, masked: bool) -> Frame:
    """Something colourful that moves with the camera and covers a quarter of what it sees."""
    texture = np.random.default_rng(5).integers(0, 256, (19, 17, 3), dtype=np.uint8)
    texture = np.kron(texture, np.ones((6, 6, 1), np.uint8))[:110, :100]
    image, depth, mask = frame.image.copy(), frame.depth.copy(), np.zeros(frame.image.shape[:2], bool)
    image[BLOCK], depth[BLOCK], mask[BLOCK] = texture, NEAR, True
    return replace(frame, image=image, depth=depth, mask=mask if masked else None)


def test_what_moves_with_the_camera_is_tracked_without_a_mask() -> None:
    """The fault that the next test shows the cure of: were it harmless, that one could not fail."""
    r, updates = run(carried(frame, False) for frame in FRAMES)
    off = errors(updates[-1], pose(len(FRAMES) - 1))[0] if updates[-1].T_world_camera is not None else np.inf
    assert off > 5 * METRES
    assert (np.linalg.norm(r.map_cloud().points, axis=1) < 1.0).any()


def test_a_mask_keeps_it_out_of_tracking_and_map() -> None:
    r, updates = run(carried(frame, True) for frame in FRAMES)
    for step, update in enumerate(updates):
        metres, radians = errors(update, pose(step))
        assert metres < METRES and radians < RADIANS, step
    for keyframe in r.keyframes:
        z = keyframe.points[..., 2].astype(np.float32)
        assert np.nanmin(z) > 2 * NEAR and np.isfinite(z).mean() > 0.3
        assert keyframe.features.points[:, 2].min() > 2 * NEAR
        inside = (keyframe.features.pixels > [80, 40]) & (keyframe.features.pixels < [180, 150])
        assert not inside.all(axis=1).any()
    distances = [np.linalg.norm(r.map_cloud().points - k.T_world_camera[:3, 3], axis=1) for k in r.keyframes]
    assert np.min(distances) > 2 * NEAR


def test_the_depth_image_still_shows_it_with_confidence_0() -> None:
    _, (update,) = run([carried(FRAMES[0], True)])
    prediction = update.prediction
    np.testing.assert_allclose(prediction.depth[BLOCK], NEAR)
    assert (prediction.confidence[BLOCK] == 0).all()
    outside = np.ones(prediction.depth.shape, bool)
    outside[BLOCK] = False
    assert (prediction.confidence[outside] > 0).mean() > 0.8


def test_an_empty_mask_changes_nothing() -> None:
    nothing = np.zeros(FRAMES[0].image.shape[:2], bool)
    _, plain = run(FRAMES[:5])
    _, masked = run(replace(frame, mask=nothing) for frame in FRAMES[:5])
    for one, other in zip(plain, masked, strict=True):
        np.testing.assert_array_equal(one.T_world_camera, other.T_world_camera)
        np.testing.assert_array_equal(one.prediction.confidence, other.prediction.confidence)


def test_where_all_is_masked_there_is_no_pose_and_the_map_stays() -> None:
    everything = np.ones(FRAMES[0].image.shape[:2], bool)
    _, updates = run([*FRAMES[:3], replace(FRAMES[3], mask=everything), FRAMES[4]])
    assert updates[3].T_world_camera is None and updates[3].state is State.RELOCALIZING
    assert errors(updates[4], pose(4))[0] < METRES


@pytest.mark.parametrize("mask", [np.zeros((3, 3), bool), np.zeros((180, 240), np.uint8)])
def test_a_mask_of_another_size_or_kind_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected bool") as error:
        replace(FRAMES[0], mask=mask)
    assert error.value.reason == "mask"


def test_keypoints_keep_away_from_the_outline_and_use_the_rest() -> None:
    image = FRAMES[0].image
    mask = np.zeros(image.shape[:2], bool)
    mask[:, :120] = True
    everywhere, _ = Detector(200)(image)
    pixels, descriptors = Detector(200)(image, mask)
    assert pixels[:, 0].min() >= 119 + OUTLINE and len(descriptors) == len(pixels)
    right = everywhere[everywhere[:, 0] >= 119 + OUTLINE]
    assert len(pixels) > 1.2 * len(right), "the half that is left gets the keypoints of the other"


@quick
@given(seeds())
def test_a_label_goes_where_the_depth_of_its_pixel_goes(seed: int) -> None:
    """Through distortion, any resize and crop: depth that says its pixel's label agrees with the label."""
    rng = np.random.default_rng(seed)
    width, height = (int(n) for n in rng.integers(40, 200, 2))
    distorted = Camera(width, height, Camera.from_focal(width, height, 90.0).K, "plumb_bob", rng.normal(0, 0.05, 5))
    labels = rng.integers(1, 60000, (height, width)).astype(np.uint16)
    frame = Frame(1, np.zeros((height, width, 3), np.uint8), distorted, labels.astype(np.float32), mask=labels > 30000)
    grid = Grid.fit(width, height, int(rng.integers(32, 200)), int(rng.choice([1, 8, 16])))
    prepared, placed = prepare(frame, grid), labels_on_grid(labels, distorted, grid)
    assert prepared.depth is not None and prepared.mask is not None and prepared.mask.dtype == np.bool_
    known = np.isfinite(prepared.depth)
    assert known.any()
    np.testing.assert_array_equal(placed[known], prepared.depth[known])
    np.testing.assert_array_equal(prepared.mask[known], prepared.depth[known] > 30000)


def test_what_has_gone_behind_a_mask_is_neither_seen_nor_carved() -> None:
    """A wall that a person stands before keeps its points, however often it is not seen: nobody saw through it."""
    r, _ = run(FRAMES[:4], map__carving=1)
    before = len(r.map_cloud())
    for frame in FRAMES[4:]:
        r.process(carried(frame, True))
    assert len(r.map_cloud()) >= before


def test_the_room_is_what_the_tests_take_it_for() -> None:
    assert min(frame.depth.min() for frame in FRAMES) > 1.0 and CAMERA is ROOM.camera
    assert cv2.countNonZero(carried(FRAMES[0], True).mask.view(np.uint8)) > 0.25 * 180 * 240
