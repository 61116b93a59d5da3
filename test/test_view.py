# SPDX-License-Identifier: Apache-2.0
"""Keypoints are found in the finest image there is, and told in the pixels of the source's grid."""

from __future__ import annotations

import numpy as np
import pytest
from textured_room import CAMERA, TexturedRoom

from recon_ros.frame import Frame, Prediction
from recon_ros.geometry import pointmap, se3
from recon_ros.geometry.features import Detector, match
from recon_ros.geometry.grid import Grid
from recon_ros.geometry.preparation import Prepared, prepare
from recon_ros.tracking.view import View

GRID = Grid.fit(CAMERA.width, CAMERA.height, 160, 32)
DETECTOR = Detector(800)


def prepared(T_room_camera: np.ndarray, fine_size: int, mask: np.ndarray | None = None) -> Prepared:
    image, depth = TexturedRoom().render(T_room_camera)
    return prepare(Frame(0, image, CAMERA, depth, mask=mask), GRID, fine_size)


def view_of(given: Prepared) -> View:
    assert given.camera is not None and given.depth is not None
    prediction = Prediction(pointmap.from_depth(given.depth, given.camera), np.ones_like(given.depth), is_metric=True)
    return View(0, given.image, given.camera, prediction, DETECTOR, given.mask, given.fine)


def test_the_fine_image_is_of_the_same_window() -> None:
    coarse, fine = prepared(np.eye(4), 0), prepared(np.eye(4), 640)
    assert coarse.fine is coarse.image and coarse.image.shape == (96, 160, 3)
    assert fine.fine.shape == (192, 320, 3)
    np.testing.assert_array_equal(fine.image, coarse.image)
    np.testing.assert_array_equal(fine.fine, TexturedRoom().render(np.eye(4))[0][24:216])
    assert prepared(np.eye(4), 319).fine.shape == (96, 160, 3), "half of a pixel is none"


def test_keypoints_are_where_they_are_on_the_grid() -> None:
    given = prepared(np.eye(4), 640)
    view = view_of(given)
    found, _ = DETECTOR(given.fine)
    np.testing.assert_allclose(view.features.pixels * 2 + 0.5, found, atol=1e-4)
    assert len(view.tree.data) == len(found)


def test_they_are_found_again_more_exactly() -> None:
    """Matches of two views against the truth, in pixels of the grid: half as far off, and more of them."""
    T_a_b = se3.exp(np.array([0.1, 0.02, 0.05, 0.0, 0.03, 0.01]))
    errors = {}
    for size in (0, 640):
        a, b = view_of(prepared(np.eye(4), size)), view_of(prepared(T_a_b, size))
        pairs = match(a.features, b.features)
        pairs = pairs[a.features.located[pairs[:, 0]]]
        there = se3.transform(se3.inverse(T_a_b), a.features.points[pairs[:, 0]].astype(np.float64))
        off = np.linalg.norm(b.camera.project(there) - b.features.pixels[pairs[:, 1]], axis=1)
        errors[size] = off[off < 3]
    assert len(errors[640]) > 1.2 * len(errors[0])
    assert np.median(errors[640]) < 0.75 * np.median(errors[0])


@pytest.mark.parametrize("size", [0, 640])
def test_none_is_where_a_mask_is(size: int) -> None:
    mask = np.zeros((CAMERA.height, CAMERA.width), bool)
    mask[60:180, 100:220] = True
    given = prepared(np.eye(4), size, mask)
    assert given.mask is not None and given.mask.shape == (96, 160)
    pixels = np.rint(view_of(given).features.pixels).astype(int)
    assert len(pixels) > 50
    assert not given.mask[pixels[:, 1], pixels[:, 0]].any()
