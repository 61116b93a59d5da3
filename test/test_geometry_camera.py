# SPDX-License-Identifier: Apache-2.0
"""A camera carried through resize, crop and undistortion still says where things are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers import cameras, quick, seeds, seen_points
from hypothesis import given
from hypothesis import strategies as st

from recon_ros.errors import InputError
from recon_ros.geometry import pointmap
from recon_ros.geometry.camera import Camera
from recon_ros.geometry.grid import Grid

sizes = st.integers(16, 1500)
max_sizes, multiples = st.integers(64, 2000), st.sampled_from([1, 2, 8, 14, 16, 32])


def assert_same(a: Camera, b: Camera) -> None:
    assert (a.width, a.height, a.model) == (b.width, b.height, b.model)
    np.testing.assert_allclose(a.K, b.K, rtol=1e-9, atol=1e-6)
    np.testing.assert_array_equal(a.D, b.D)


@quick
@given(cameras(), sizes, sizes)
def test_resized_there_and_back(camera: Camera, width: int, height: int) -> None:
    assert_same(camera.resized(width, height).resized(camera.width, camera.height), camera)


@quick
@given(cameras(), st.integers(-500, 500), st.integers(-500, 500), sizes, sizes)
def test_cropped_there_and_back(camera: Camera, x: int, y: int, width: int, height: int) -> None:
    assert_same(camera.cropped(x, y, width, height).cropped(-x, -y, camera.width, camera.height), camera)


@quick
@given(cameras(), max_sizes, multiples)
def test_grid_camera_there_and_back(camera: Camera, max_size: int, multiple: int) -> None:
    grid = Grid.fit(camera.width, camera.height, max_size, multiple)
    assert_same(grid.camera_back(grid.camera(camera)), camera)


@quick
@given(st.integers(1, 3000), st.integers(1, 3000), max_sizes, multiples)
def test_grid_fits(width: int, height: int, max_size: int, multiple: int) -> None:
    grid = Grid.fit(width, height, max_size, multiple)
    assert grid.grid_width % multiple == grid.grid_height % multiple == 0
    assert grid.grid_width > 0 and grid.grid_height > 0
    assert max(grid.grid_width, grid.grid_height) <= max(max_size, multiple)
    for side, resized, start, inside in (
        (width, grid.resized_width, grid.x, grid.grid_width),
        (height, grid.resized_height, grid.y, grid.grid_height),
    ):
        assert resized <= max(side, multiple), "enlarged"
        assert start >= 0 and start + inside <= resized, "window outside the image"
        assert abs((resized - inside) - 2 * start) <= 1, "window not in the middle"
    if max(width, height) <= max_size and multiple == 1:
        assert (grid.grid_width, grid.grid_height) == (width, height), "changed without need"


@quick
@given(cameras(), seeds(), st.integers(16, 400), multiples, st.integers(1, 3000))
def test_a_finer_grid_is_of_the_same_window(
    camera: Camera, seed: int, max_size: int, multiple: int, fine_size: int
) -> None:
    """A whole number of pixels for each, so that a point is where it was, and no image is enlarged for it."""
    grid = Grid.fit(camera.width, camera.height, max_size, multiple)
    n = grid.finer(fine_size)
    fine = grid.divided(n)
    assert n >= 1 and fine.divided(1) == fine
    assert (fine.grid_width, fine.grid_height) == (n * grid.grid_width, n * grid.grid_height)
    if n > 1:
        assert max(fine.grid_width, fine.grid_height) <= fine_size
        assert fine.resized_width <= camera.width and fine.resized_height <= camera.height
    points = seen_points(np.random.default_rng(seed), camera, 20, 0.5, 20)
    there = (fine.camera(camera).project(points) + 0.5) / n - 0.5
    np.testing.assert_allclose(there, grid.camera(camera).project(points), atol=1e-6)


@pytest.mark.parametrize(("width", "height", "n"), [(640, 480, 2), (540, 360, 2), (1280, 720, 2), (500, 375, 1)])
def test_how_much_finer_a_small_networks_grid_can_be(width: int, height: int, n: int) -> None:
    assert Grid.fit(width, height, 256, 32).finer(640) == n


@quick
@given(cameras(), seeds())
def test_project_inverts_unproject(camera: Camera, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels, depth = rng.uniform(-100, 2000, (20, 2)), rng.uniform(0.1, 50, 20)
    points = camera.unproject(pixels, depth)
    np.testing.assert_allclose(points[:, 2], depth)
    np.testing.assert_allclose(camera.project(points), pixels, atol=1e-6)
    homogeneous = points @ camera.K.T
    np.testing.assert_allclose(homogeneous[:, :2] / homogeneous[:, 2:], pixels, atol=1e-6)


@pytest.mark.parametrize(("skew", "accepted"), [(0.0, True), (1e-7, True), (8.0, False), (-0.02, False)])
def test_skew_is_refused_and_rounding_is_not(skew: float, accepted: bool) -> None:
    """Only part of the code could honour it; 8 px were 34 mrad of error after ten steps."""
    K = np.array([[500.0, skew, 320], [0, 500, 240], [0, 0, 1]])
    if accepted:
        assert Camera(640, 480, K).K[0, 1] == 0
    else:
        with pytest.raises(InputError, match="skew"):
            Camera(640, 480, K)


def test_nothing_is_projected_from_behind() -> None:
    camera = Camera.from_focal(64, 48, 50.0)
    pixels = camera.project(np.array([[0.1, 0.2, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert np.isnan(pixels[:2]).all()
    np.testing.assert_allclose(pixels[2], [31.5, 23.5])


@quick
@given(cameras(), seeds(), max_sizes, multiples)
def test_a_point_goes_where_its_pixel_goes(camera: Camera, seed: int, max_size: int, multiple: int) -> None:
    """Pixel centres are at integers, so that an edge of the image is at -0.5 before and after a resize."""
    grid = Grid.fit(camera.width, camera.height, max_size, multiple)
    points = seen_points(np.random.default_rng(seed), camera, 20, 0.5, 20)
    size, resized = (camera.width, camera.height), (grid.resized_width, grid.resized_height)
    moved = (camera.project(points) + 0.5) / size * resized - 0.5 - (grid.x, grid.y)
    np.testing.assert_allclose(grid.camera(camera).project(points), moved, atol=1e-6)


@pytest.mark.parametrize(("width", "height", "max_size", "multiple"), [
    (200, 150, 100, 1), (200, 150, 67, 1), (321, 243, 128, 14), (640, 480, 224, 16), (90, 70, 640, 8),
])  # fmt: skip
def test_image_and_camera_are_carried_along_alike(width: int, height: int, max_size: int, multiple: int) -> None:
    """The centroid of a blob painted where a point projects to is where the grid's camera projects it to."""
    camera = Camera.from_focal(width, height, 0.9 * width)
    grid = Grid.fit(width, height, max_size, multiple)
    v, u = np.mgrid[:height, :width]
    for point in np.array([[0.05, 0.1, 1.0], [-0.2, 0.13, 1.0], [0.3, -0.2, 1.0]]):
        x, y = camera.project(point)
        blob = np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * (0.02 * width) ** 2))
        image = grid.image(np.repeat(np.round(255 * blob)[..., None], 3, axis=2).astype(np.uint8))
        assert image.shape == (grid.grid_height, grid.grid_width, 3)
        weight = image[..., 1].astype(np.float64)
        rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
        centroid = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        np.testing.assert_allclose(centroid, grid.camera(camera).project(point), atol=0.03)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 2.5])
def test_depth_and_camera_are_carried_along_alike(factor: float) -> None:
    """Depth of a slanted plane, reduced, still lies on the plane: no sample is taken from a pixel's corner."""
    camera = Camera.from_focal(600, 450, 500.0)
    normal, distance = np.array([0.6, -0.48, -0.64]), -2.0  # n·p = distance
    depth = (distance / (camera.rays() @ normal)).astype(np.float32)
    grid = Grid.fit(600, 450, round(600 / factor))
    points = pointmap.from_depth(grid.depth(depth), grid.camera(camera))
    off = points.astype(np.float64) @ normal - distance
    # Nearest is at most half a pixel of the full image off in u and v, on a plane of this slope and distance:
    step = np.abs(np.gradient(depth, axis=1)).max() + np.abs(np.gradient(depth, axis=0)).max()
    assert np.abs(off).max() <= 0.51 * step
    if factor in (1, 3, 5):  # there is a pixel in the very middle
        np.testing.assert_allclose(off, 0, atol=1e-5)


def test_depth_goes_back_to_where_it_came_from() -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 2, (105, 147)).astype(np.float32)
    unchanged = Grid.fit(147, 105, 640, multiple=14)  # 140 x 98, a crop only
    back = unchanged.depth_back(unchanged.depth(depth))
    assert back.shape == depth.shape
    inside = np.zeros(depth.shape, bool)
    inside[3:101, 3:143] = True
    np.testing.assert_array_equal(back[inside], depth[inside])
    assert np.isnan(back[~inside]).all()

    v, u = np.mgrid[:120, :160].astype(np.float32)
    reduced = Grid.fit(160, 120, 40)
    for ramp in (u, v):  # every pixel gets the value of the block of four by four it lies in
        back = reduced.depth_back(reduced.depth(ramp))
        assert np.abs(back - ramp).max() <= 2
        assert abs(float(np.mean(back - ramp))) <= 0.51


DISTORTIONS = {
    "plumb_bob": [-0.28, 0.09, 0.0008, -0.0006, -0.01],
    "rational_polynomial": [0.6, -0.3, 0.0005, -0.0004, 0.02, 0.9, -0.25, 0.03],
    "equidistant": [-0.01, 0.006, -0.003, 0.0008],
}


def distorted(model: str) -> Camera:
    K = np.array([[310.0, 0, 322.0], [0, 305.0, 238.0], [0, 0, 1]])
    return Camera(640, 480, K, model, np.array(DISTORTIONS[model]))


@pytest.mark.parametrize("model", DISTORTIONS)
def test_undistortion_agrees_with_opencv(model: str) -> None:
    """A pixel of the undistorted image is fetched from where the lens puts its ray."""
    camera = distorted(model)
    map_x, map_y = camera.undistort_maps()
    assert map_x.shape == map_y.shape == (480, 640)
    pixels = np.random.default_rng(0).integers(0, [640, 480], (200, 2))
    rays = camera.undistorted().rays()[pixels[:, 1], pixels[:, 0]].astype(np.float64)
    project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    points = rays[:, None] if model == "equidistant" else rays
    expected = project(points, np.zeros(3), np.zeros(3), camera.K, camera.D)[0].reshape(-1, 2)
    fetched = np.stack([map_x[pixels[:, 1], pixels[:, 0]], map_y[pixels[:, 1], pixels[:, 0]]], axis=1)
    np.testing.assert_allclose(fetched, expected, atol=0.01)
    assert np.abs(expected - pixels).max() > 5, "the example hardly distorts"


def test_equidistant_is_what_its_name_says() -> None:
    """Without coefficients to speak of, the distance from the centre is focal length times angle."""
    K = np.array([[300.0, 0, 320], [0, 300, 240], [0, 0, 1]])
    camera = Camera(640, 480, K, "equidistant", np.array([1e-12, 0, 0, 0]))
    map_x, map_y = camera.undistort_maps()
    assert map_x[240, 620] == pytest.approx(320 + 300 * np.arctan(1.0), abs=1e-3)
    assert map_y[240, 620] == pytest.approx(240, abs=1e-3)


def test_undistorted_is_a_pinhole_of_the_same_size() -> None:
    camera = distorted("plumb_bob")
    pinhole = camera.undistorted()
    assert camera.is_distorted and not pinhole.is_distorted
    assert (pinhole.width, pinhole.height) == (640, 480)
    np.testing.assert_array_equal(pinhole.K, camera.K)
    with pytest.raises(InputError, match="undistort"):
        camera.rays()


def test_zero_coefficients_are_no_distortion() -> None:
    """As image_geometry has it; simulators publish zeros under every model's name."""
    for model in ("plumb_bob", "rational_polynomial", "equidistant", "", "unheard_of"):
        assert not Camera(640, 480, np.diag([300.0, 300, 1]), model, np.zeros(5)).is_distorted


@quick
@given(cameras(largest=200))
def test_rays_meet_their_pixels(camera: Camera) -> None:
    rays = camera.rays()
    assert rays.shape == (camera.height, camera.width, 3) and rays.dtype == np.float32
    assert (rays[..., 2] == 1).all()
    corners = [(0, 0), (0, camera.width - 1), (camera.height - 1, 0), (camera.height // 2, camera.width // 3)]
    for v, u in corners:
        np.testing.assert_allclose(camera.project(7.0 * rays[v, u].astype(np.float64)), [u, v], atol=1e-3)


def test_rays_of_one_camera_are_not_those_of_another() -> None:
    a, b = Camera.from_focal(64, 48, 50.0), Camera.from_focal(64, 48, 60.0)
    assert not np.array_equal(a.rays(), b.rays())
    with pytest.raises(ValueError, match="read-only"):
        a.rays()[0, 0] = 0


def test_centred_camera_looks_along_its_axis() -> None:
    camera = Camera.from_focal(3, 5, 10.0)
    np.testing.assert_allclose(camera.rays()[2, 1], [0, 0, 1])
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (10, 10, 1, 2)


GOOD_K = np.array([[300.0, 0, 320], [0, 300, 240], [0, 0, 1]])


def broken(row: int, column: int, value: float) -> np.ndarray:
    K = GOOD_K.copy()
    K[row, column] = value
    return K


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((640, 480, np.zeros((3, 3))), "calibrate"),
        ((640, 480, broken(0, 0, 0)), "fx=0"),
        ((640, 480, broken(1, 1, -5)), "fy=-5"),
        ((640, 480, broken(0, 2, np.nan)), "calibrate"),
        ((640, 480, broken(0, 0, np.inf)), "fx=inf"),
        ((640, 480, np.eye(4)), r"\(4, 4\)"),
        ((640, 480, np.ones(9)), r"\(9,\)"),
        ((0, 480, GOOD_K), "0x480"),
        ((640, -1, GOOD_K), "640x-1"),
        ((640, 480, GOOD_K, "plumb_bob", np.array([0.1, np.nan, 0, 0, 0])), "finite"),
        ((640, 480, GOOD_K, "fov", np.array([0.9])), "'fov' is unknown"),
        ((640, 480, GOOD_K, "equidistant", np.full(5, 0.01)), "5"),
        ((640, 480, GOOD_K, "plumb_bob", np.full(3, 0.01)), "3"),
    ],
)
def test_impossible_cameras_are_refused(arguments: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Camera(*arguments)
    assert caught.value.reason == "camera"


def test_a_camera_does_not_change() -> None:
    K, D = GOOD_K.copy(), np.full(5, 0.01)
    camera = Camera(640, 480, K, "plumb_bob", D)
    K[0, 0], D[0] = 1.0, 9.0
    assert camera.fx == 300 and camera.D[0] == 0.01
    for array in (camera.K, camera.D):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_same_as_compares_every_number() -> None:
    camera = distorted("plumb_bob")
    assert camera.same_as(distorted("plumb_bob"))
    assert not camera.same_as(None)
    assert not camera.same_as(distorted("equidistant"))
    assert not camera.same_as(Camera(640, 480, camera.K * (1 + 1e-12), camera.model, camera.D))
    assert not camera.same_as(Camera(640, 481, camera.K, camera.model, camera.D))
    assert not camera.same_as(Camera(640, 480, camera.K, camera.model, camera.D + 1e-12))
