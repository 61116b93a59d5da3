# SPDX-License-Identifier: Apache-2.0
"""ROS messages to arrays: round trips over encodings, padding and byte order; refusals name the value."""

from __future__ import annotations

import array
import io
import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from message_factory import camera_info, compressed, encoded, image, make

from recon_ros.errors import InputError
from recon_ros.messages import (
    IMAGE_LAYOUTS,
    camera_from_message,
    depth_from_message,
    image_from_message,
    stamp_ns,
)

some = settings(max_examples=40, deadline=None)

pictures = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda s: hnp.arrays(np.uint8, (*s, 3)))
paddings = st.integers(0, 5)

# What each encoding stores for an RGB picture, and what is left of the picture after it.
ENCODE = {
    "rgb8": lambda rgb: rgb,
    "bgr8": lambda rgb: rgb[..., ::-1],
    "8UC3": lambda rgb: rgb[..., ::-1],
    "rgba8": lambda rgb: np.dstack([rgb, rgb[..., 0]]),
    "bgra8": lambda rgb: np.dstack([rgb[..., ::-1], rgb[..., 0]]),
    "8UC4": lambda rgb: np.dstack([rgb[..., ::-1], rgb[..., 0]]),
    "mono8": lambda rgb: rgb[..., 0],
    "8UC1": lambda rgb: rgb[..., 0],
}


def as_grey(rgb: np.ndarray) -> np.ndarray:
    return np.repeat(rgb[..., :1], 3, axis=2)


@pytest.mark.parametrize("encoding", ENCODE)
@some
@given(rgb=pictures, padding=paddings, big_endian=st.booleans())
def test_eight_bit_encodings_give_back_the_picture(encoding, rgb, padding, big_endian):
    msg = image(ENCODE[encoding](rgb), encoding, padding=padding, big_endian=big_endian)
    result = image_from_message(msg)
    expected = as_grey(rgb) if encoding in ("mono8", "8UC1") else rgb
    assert result.dtype == np.uint8 and result.flags.c_contiguous and result.flags.owndata
    np.testing.assert_array_equal(result, expected)


@some
@given(grey=hnp.arrays(np.uint16, (3, 5)), padding=paddings, big_endian=st.booleans())
def test_mono16_is_scaled_by_its_full_range(grey, padding, big_endian):
    result = image_from_message(image(grey, "mono16", padding=padding, big_endian=big_endian))
    expected = np.rint(grey / 65535 * 255)
    assert np.abs(result.astype(float) - expected[..., None]).max() <= 1
    assert (result[grey == 65535] == 255).all() and (result[grey == 0] == 0).all()


@some
@given(yuv=st.tuples(*[st.integers(16, 235)] * 3), padding=paddings)
def test_yuv_is_bt601_in_both_orders(yuv, padding):
    y, u, v = yuv
    uyvy = np.tile(np.array([[u, y], [v, y]], dtype=np.uint8), (3, 2, 1))
    yuyv = uyvy[..., ::-1]
    expected = np.clip(
        [
            1.164 * (y - 16) + 1.596 * (v - 128),
            1.164 * (y - 16) - 0.813 * (v - 128) - 0.391 * (u - 128),
            1.164 * (y - 16) + 2.018 * (u - 128),
        ],
        0,
        255,
    )
    for encoding, pixels in {"yuv422": uyvy, "uyvy": uyvy, "yuv422_yuy2": yuyv, "yuyv": yuyv}.items():
        result = image_from_message(image(pixels, encoding, padding=padding))
        assert result.shape == (3, 4, 3)
        assert np.abs(result - expected).max() <= 2, encoding


def test_yuv_of_odd_width_is_refused():
    with pytest.raises(InputError, match="even width, this one is 3") as caught:
        image_from_message(image(np.zeros((2, 3, 2), np.uint8), "uyvy"))
    assert caught.value.reason == "image"


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, lambda b: array.array("B", b), lambda b: np.frombuffer(b, np.uint8)]
)
def test_data_may_be_any_buffer(kind):
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    msg = image(rgb, "rgb8", padding=2)
    msg = SimpleNamespace(**{**vars_of(msg), "data": kind(msg.data.tobytes())})
    np.testing.assert_array_equal(image_from_message(msg), rgb)


def vars_of(msg):
    return {name: getattr(msg, name) for name in ("height", "width", "encoding", "is_bigendian", "step", "data")}


def test_rclpy_messages_are_read_like_those_of_rosbags():
    messages = pytest.importorskip("sensor_msgs.msg", reason="needs ROS 2 (sensor_msgs)")
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    msg = messages.Image(height=4, width=6, encoding="bgr8", step=18)
    msg.data = array.array("B", rgb[..., ::-1].tobytes())
    np.testing.assert_array_equal(image_from_message(msg), rgb)
    packed = messages.CompressedImage(format="png")
    packed.data = array.array("B", encoded(rgb[..., ::-1], ".png"))
    np.testing.assert_array_equal(image_from_message(packed), rgb)
    info = messages.CameraInfo(width=6, height=4, distortion_model="plumb_bob", d=[0.1, 0.0, 0.0, 0.0, 0.0])
    info.k = [5.0, 0.0, 2.5, 0.0, 5.0, 1.5, 0.0, 0.0, 1.0]
    camera = camera_from_message(info)
    assert (camera.width, camera.height, camera.fx, camera.cx, camera.D[0]) == (6, 4, 5.0, 2.5, 0.1)


def test_the_picture_does_not_change_with_the_message():
    msg = image(np.zeros((2, 2, 3), np.uint8), "rgb8")
    result = image_from_message(msg)
    msg.data[:] = 255
    assert (result == 0).all()


def test_data_that_is_cut_off_is_refused_with_its_sizes():
    msg = image(np.zeros((4, 5, 3), np.uint8), "bgr8", padding=1)
    msg.data = msg.data[:-10]
    with pytest.raises(InputError, match=r"54 bytes.*5x4 bgr8 with step 16 takes 64") as caught:
        image_from_message(msg)
    assert caught.value.reason == "image"


def test_the_padding_of_the_last_row_may_be_missing():
    rgb = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    msg = image(rgb, "rgb8", padding=3)
    msg.data = msg.data[:-3]
    np.testing.assert_array_equal(image_from_message(msg), rgb)


@pytest.mark.parametrize(
    ("field", "value", "text"), [("step", 14, "step 14.*15 bytes"), ("width", 0, "0x4"), ("height", 0, "5x0")]
)
def test_impossible_sizes_are_refused(field, value, text):
    msg = image(np.zeros((4, 5, 3), np.uint8), "rgb8")
    setattr(msg, field, value)
    with pytest.raises(InputError, match=text) as caught:
        image_from_message(msg)
    assert caught.value.reason == "image"


def test_an_unknown_encoding_is_refused_with_the_list_of_those_accepted():
    with pytest.raises(InputError, match="bayer_rggb8") as caught:
        image_from_message(image(np.zeros((2, 2), np.uint8), "bayer_rggb8"))
    assert caught.value.reason == "encoding"
    assert all(encoding in str(caught.value) for encoding in IMAGE_LAYOUTS)


def test_swapped_topics_are_recognised():
    with pytest.raises(InputError, match="is the image topic the depth topic"):
        image_from_message(image(np.zeros((2, 2), np.uint16), "16UC1"))
    with pytest.raises(InputError, match="is the depth topic the image topic"):
        depth_from_message(image(np.zeros((2, 2, 3), np.uint8), "rgb8"), 0.001)


def smooth_picture() -> np.ndarray:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[..., 0] = np.linspace(0, 255, 64)
    rgb[..., 1] = np.linspace(0, 255, 48)[:, None]
    return rgb


def test_png_and_jpeg_give_rgb():
    rgb = smooth_picture()
    bgr = rgb[..., ::-1]
    np.testing.assert_array_equal(
        image_from_message(compressed(encoded(bgr, ".png"), "rgb8; png compressed bgr8")), rgb
    )
    jpeg = image_from_message(compressed(encoded(bgr, ".jpg"), "bgr8; jpeg compressed bgr8"))
    assert np.abs(jpeg.astype(int) - rgb).max() < 30
    padded = image_from_message(compressed(encoded(bgr, ".jpg") + bytes(100), "jpeg"))
    np.testing.assert_array_equal(padded, jpeg)


def test_exif_orientation_does_not_turn_the_picture():
    Image = pytest.importorskip("PIL.Image")
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer would turn it by 90°
    file = io.BytesIO()
    Image.fromarray(smooth_picture()).save(file, "JPEG", exif=exif)
    assert image_from_message(compressed(file.getvalue(), "jpeg")).shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
def test_cut_pictures_are_refused(suffix, share):
    data = encoded(smooth_picture(), suffix)
    with pytest.raises(InputError, match="cannot be decoded") as caught:
        image_from_message(compressed(data[: int(len(data) * share)], "jpeg"))
    assert caught.value.reason == "image"


@some
@given(junk=st.binary(max_size=200))
def test_junk_is_refused_and_nothing_else_happens(junk):
    for decode in (image_from_message, lambda msg: depth_from_message(msg, 0.001)):
        with pytest.raises(InputError):
            decode(compressed(junk, "16UC1; compressedDepth png"))


@pytest.mark.parametrize("encoding", ["16UC1", "mono16"])
@some
@given(raw=hnp.arrays(np.uint16, (3, 4)), padding=paddings, big_endian=st.booleans())
def test_sixteen_bit_depth_is_scaled_and_zero_is_invalid(encoding, raw, padding, big_endian):
    depth = depth_from_message(image(raw, encoding, padding=padding, big_endian=big_endian), 0.001)
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(depth), raw == 0)
    np.testing.assert_allclose(depth[raw > 0], raw[raw > 0] * 0.001, rtol=1e-6)


@some
@given(
    raw=hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32)),
    padding=paddings,
    big_endian=st.booleans(),
)
def test_float_depth_is_metres_and_only_finite_positive_values_are_valid(raw, padding, big_endian):
    depth = depth_from_message(image(raw, "32FC1", padding=padding, big_endian=big_endian), 123.0)
    valid = np.isfinite(raw) & (raw > 0)
    assert depth.dtype == np.float32 and depth.dtype.isnative
    np.testing.assert_array_equal(np.isnan(depth), ~valid)
    np.testing.assert_array_equal(depth[valid], raw[valid])


def test_cut_depth_is_refused_with_its_sizes():
    msg = image(np.ones((4, 5), np.uint16), "16UC1")
    msg.data = msg.data[:-1]
    with pytest.raises(InputError, match=r"39 bytes.*takes 40") as caught:
        depth_from_message(msg, 0.001)
    assert caught.value.reason == "depth"


RAW_DEPTH = np.random.default_rng(1).integers(0, 6000, (12, 16), dtype=np.uint16)


@pytest.mark.parametrize(
    ("form", "head"),
    [
        ("16UC1; compressedDepth", struct.pack("<iff", 0, 0, 0)),
        ("16UC1; compressedDepth png", struct.pack("<iff", 1, 7, 9)),
        ("16UC1; compressedDepth", b""),
        ("16UC1; png compressed", b""),
        ("png", b""),
    ],
)
def test_sixteen_bit_depth_in_png(form, head):
    depth = depth_from_message(compressed(head + encoded(RAW_DEPTH, ".png"), form), 0.002)
    np.testing.assert_allclose(np.nan_to_num(depth), RAW_DEPTH * 0.002, rtol=1e-6)
    assert np.isnan(depth[RAW_DEPTH == 0]).all()


def test_float_compressed_depth_is_quantised_inverse_depth():
    depth = np.random.default_rng(2).uniform(0.5, 9.0, (12, 16)).astype(np.float32)
    depth[0, 0] = np.nan
    # As compressed_depth_image_transport writes it: depth_max 10 m, depth_quantization 100.
    a = np.float32(100 * 101)
    b = np.float32(1 - a / 10)
    stored = np.where(np.isnan(depth), 0, a / depth + b).astype(np.uint16)
    msg = compressed(struct.pack("<iff", 0, a, b) + encoded(stored, ".png"), "32FC1; compressedDepth png")
    result = depth_from_message(msg, 0.001)
    assert np.isnan(result[0, 0]) and np.isnan(result).sum() == 1
    assert np.nanmax(np.abs(result - depth) / depth**2) < 1.01 / a  # one step of inverse depth


@pytest.mark.parametrize(
    ("data", "form", "reason"),
    [
        (encoded(np.zeros((4, 4), np.uint8), ".png"), "png", "encoding"),
        (encoded(smooth_picture(), ".jpg"), "jpeg", "encoding"),
        (b"\0" * 40, "16UC1; compressedDepth rvl", "encoding"),
        (b"\0" * 12 + encoded(RAW_DEPTH, ".png")[:-30], "16UC1; compressedDepth png", "depth"),
        (b"", "16UC1; compressedDepth png", "depth"),
    ],
)
def test_other_compressed_depth_is_refused(data, form, reason):
    with pytest.raises(InputError) as caught:
        depth_from_message(compressed(data, form), 0.001)
    assert caught.value.reason == reason


def test_camera_info_of_both_ros_generations():
    modern = camera_info(D=(0.1, -0.2, 0.0, 0.0, 0.3))
    fields = ("width", "height", "distortion_model", "binning_x", "binning_y", "roi")
    old = SimpleNamespace(**{name: getattr(modern, name) for name in fields}, K=modern.k, D=modern.d)
    camera = camera_from_message(modern)
    assert camera.same_as(camera_from_message(old))
    assert (camera.width, camera.height, camera.model) == (64, 48, "plumb_bob")
    assert camera.fx == 50 and camera.cx == 31.5 and camera.D.tolist() == [0.1, -0.2, 0.0, 0.0, 0.3]


@some
@given(
    binning=st.tuples(st.sampled_from([0, 1, 2, 4]), st.sampled_from([0, 1, 2, 4])),
    roi=st.sampled_from([(0, 0, 0, 0), (0, 0, 64, 48), (8, 4, 32, 16), (16, 8, 48, 40)]),
)
def test_binning_and_roi_keep_what_a_pixel_sees(binning, roi):
    full = camera_from_message(camera_info())
    camera = camera_from_message(camera_info(binning=binning, roi=roi))
    x, y, width, height = roi if roi[2] else (0, 0, 64, 48)
    bin_x, bin_y = max(1, binning[0]), max(1, binning[1])
    assert (camera.width, camera.height) == (width // bin_x, height // bin_y)
    point = np.array([0.3, -0.2, 2.0])
    # The centre of a binned pixel is the centre of the block of sensor pixels that it sums up.
    expected = (full.project(point) - (x, y) + 0.5) / (bin_x, bin_y) - 0.5
    np.testing.assert_allclose(camera.project(point), expected)


def test_a_zero_K_is_refused():
    with pytest.raises(InputError, match="fx=0") as caught:
        camera_from_message(camera_info(focal=0.0))
    assert caught.value.reason == "camera"


@some
@given(sec=st.integers(0, 2**31 - 1), nanosec=st.integers(0, 999_999_999))
def test_stamps_are_exact(sec, nanosec):
    result = stamp_ns(make("builtin_interfaces/Time", sec=sec, nanosec=nanosec))
    assert type(result) is int and divmod(result, 1_000_000_000) == (sec, nanosec)


def test_the_factory_pads_rows():
    """The padding tests would prove nothing if the factory did not pad."""
    msg = image(np.zeros((2, 3, 3), np.uint8), "rgb8", padding=4)
    assert msg.step == 13 and msg.data.size == 26 and cv2.countNonZero(msg.data.reshape(2, 13)) == 8
