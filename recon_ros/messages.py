# SPDX-License-Identifier: Apache-2.0
"""ROS messages to arrays, by duck typing: the same code for rclpy's message objects and those of rosbags.

Formats: sensor_msgs/Image (REP-118 for depth), sensor_msgs/CompressedImage with the transports ``compressed``
and ``compressedDepth`` of image_transport_plugins, sensor_msgs/CameraInfo. Nothing of ROS is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError
from recon_ros.geometry.camera import Camera

__all__ = ["camera_from_message", "depth_from_message", "image_from_message", "labels_from_message", "stamp_ns"]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8"
JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class _Layout:
    """How the pixels of an encoding lie in memory: dtype, values per pixel, and OpenCV's code to RGB."""

    dtype: str
    channels: int
    to_rgb: int | None = None


# 8UC3 and 8UC4 do not name an order; OpenCV's own, blue first, is what their publishers (cv_bridge) mean.
IMAGE_LAYOUTS = {
    "rgb8": _Layout("u1", 3),
    "bgr8": _Layout("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": _Layout("u1", 4, cv2.COLOR_RGBA2RGB),
    "bgra8": _Layout("u1", 4, cv2.COLOR_BGRA2RGB),
    "mono8": _Layout("u1", 1, cv2.COLOR_GRAY2RGB),
    "mono16": _Layout("u2", 1, cv2.COLOR_GRAY2RGB),
    "yuv422": _Layout("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Layout("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Layout("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": _Layout("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
    "8UC1": _Layout("u1", 1, cv2.COLOR_GRAY2RGB),
    "8UC3": _Layout("u1", 3, cv2.COLOR_BGR2RGB),
    "8UC4": _Layout("u1", 4, cv2.COLOR_BGRA2RGB),
}
DEPTH_LAYOUTS = {"16UC1": _Layout("u2", 1), "mono16": _Layout("u2", 1), "32FC1": _Layout("f4", 1)}
LABEL_LAYOUTS = {
    "mono8": _Layout("u1", 1),
    "8UC1": _Layout("u1", 1),
    "mono16": _Layout("u2", 1),
    "16UC1": _Layout("u2", 1),
}
MAX_ASPECT_ERROR = 0.02
"""A mask of another size than the image shows the same view only if it is as wide for its height, to rounding."""


def stamp_ns(stamp: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time, exactly: integers all the way."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def image_from_message(msg: Any) -> NDArray[np.uint8]:
    """The picture of a sensor_msgs/Image or CompressedImage.

    Sixteen-bit grey is scaled by its full range (65535 → 255) as cv_bridge does, so that brightness does not
    change from image to image.

    Returns:
        (H, W, 3) uint8 RGB, contiguous, owning its memory.

    Raises:
        InputError: ``encoding`` when the encoding is not among `IMAGE_LAYOUTS`; ``image`` when sizes and data
            do not fit or compressed data cannot be decoded.
    """
    if _is_compressed(msg):
        return _compressed_image(msg)
    layout = _layout(msg.encoding, IMAGE_LAYOUTS, "image")
    pixels = _pixels(msg, layout, "image")
    if layout.channels == 2 and msg.width % 2:
        raise InputError("image", f"a {msg.encoding} image must be of even width, this one is {msg.width} wide")
    if layout.dtype == "u2":
        pixels = cv2.convertScaleAbs(pixels.astype(np.uint16, order="C"), alpha=255.0 / 65535.0)
    if layout.to_rgb is None:
        return pixels.copy()
    return np.asarray(cv2.cvtColor(pixels, layout.to_rgb))


def depth_from_message(msg: Any, scale: float) -> NDArray[np.float32]:
    """The depth of a sensor_msgs/Image or CompressedImage (``compressedDepth``, or a 16-bit PNG).

    Args:
        msg: 16UC1 or mono16 in units of `scale`, or 32FC1 in metres (REP-118).
        scale: metres per unit of 16-bit depth.

    Returns:
        (H, W) float32 metres; NaN where the message has 0, a negative value, infinity or NaN.

    Raises:
        InputError: ``encoding`` when the encoding is not a depth encoding; ``depth`` when sizes and data do
            not fit or compressed data cannot be decoded.
    """
    if _is_compressed(msg):
        raw, is_metres = _compressed_depth(msg)
    else:
        layout = _layout(msg.encoding, DEPTH_LAYOUTS, "depth")
        raw, is_metres = _pixels(msg, layout, "depth"), layout.dtype == "f4"
    if is_metres:
        # One comparison chain catches NaN as well: it fails every comparison.
        valid = (raw > 0) & (raw < np.inf)
        return np.where(valid, raw, np.float32(np.nan)).astype(np.float32, copy=False)
    depth = np.multiply(raw, np.float32(scale), dtype=np.float32)
    depth[raw == 0] = np.nan
    return depth


def labels_from_message(msg: Any, width: int, height: int, kind: str = "mask") -> NDArray[Any]:
    """The labels of a mask's pixels, of a sensor_msgs/Image or a PNG CompressedImage, one for each pixel of an image.

    Args:
        msg: mono8, 8UC1, mono16 or 16UC1; of another size than the image it is resized, nearest, for labels have no
            mean.
        width, height: of the image, pixels.
        kind: what the messages and the reasons of errors call it.

    Returns:
        (height, width) uint8 or uint16, contiguous; 0 is nothing.

    Raises:
        InputError: ``encoding`` when it is none of labels; the kind's name when sizes and data do not fit or compressed
            data cannot be decoded without loss; ``<kind>_size`` when it is not as wide for its height as the image.
    """
    if _is_compressed(msg):
        labels = _compressed_labels(msg, kind)
    else:
        pixels = _pixels(msg, _layout(msg.encoding, LABEL_LAYOUTS, kind), kind)
        labels = pixels.astype(pixels.dtype.newbyteorder("="), order="C")
    rows, columns = labels.shape
    if abs(columns * height / (rows * width) - 1) > MAX_ASPECT_ERROR:
        raise InputError(
            f"{kind}_size",
            f"the {kind} is {columns}x{rows}, the image {width}x{height}: it must show the same view, whole and "
            "undistorted by its size",
        )
    if (rows, columns) == (height, width):
        return labels
    return np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))


def camera_from_message(msg: Any) -> Camera:
    """The calibration in a sensor_msgs/CameraInfo, of the image that it accompanies.

    K and the size of a CameraInfo are those of the full sensor; its region of interest (in full-resolution
    pixels) and then its binning are applied here, pixel centres kept, so that the result fits the image.

    Raises:
        InputError: ``camera`` when K is zero (an uncalibrated driver) or otherwise no camera's.
    """
    K = np.array(_either(msg, "k", "K"), dtype=np.float64)
    if K.size != 9:
        raise InputError("camera", f"K of the camera_info has {K.size} numbers, expected 9")
    D = np.array(_either(msg, "d", "D"), dtype=np.float64)
    camera = Camera(int(msg.width), int(msg.height), K.reshape(3, 3), msg.distortion_model, D)
    roi = msg.roi
    if roi.width and roi.height and (roi.width, roi.height) != (msg.width, msg.height):
        camera = camera.cropped(int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height))
    bin_x, bin_y = max(1, int(msg.binning_x)), max(1, int(msg.binning_y))
    if bin_x > 1 or bin_y > 1:
        camera = camera.resized(camera.width // bin_x, camera.height // bin_y)
    return camera


def _is_compressed(msg: Any) -> bool:
    return hasattr(msg, "format") and not hasattr(msg, "encoding")


def _either(msg: Any, *names: str) -> Any:
    """The first of the attributes that exists: ROS 2 spells k and d, ROS 1 K and D."""
    return next(getattr(msg, name) for name in names if hasattr(msg, name))


def _layout(encoding: str, layouts: dict[str, _Layout], kind: str) -> _Layout:
    if encoding in layouts:
        return layouts[encoding]
    hint = ""
    if kind == "image" and encoding in DEPTH_LAYOUTS:
        hint = " (this is a depth encoding: is the image topic the depth topic?)"
    elif kind == "depth" and encoding in IMAGE_LAYOUTS:
        hint = " (this is a picture: is the depth topic the image topic?)"
    raise InputError("encoding", f"{kind} encoding '{encoding}' is not accepted{hint}; accepted: {', '.join(layouts)}")


def _pixels(msg: Any, layout: _Layout, kind: str) -> NDArray[Any]:
    """(H, W) or (H, W, C) view into the message's data, row padding skipped, byte order applied."""
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    data = np.frombuffer(msg.data, dtype=np.uint8)
    dtype = np.dtype(layout.dtype).newbyteorder(">" if msg.is_bigendian else "<")
    row = width * layout.channels * dtype.itemsize
    if height <= 0 or width <= 0:
        raise InputError(kind, f"{kind} is {width}x{height}: it has no pixels")
    if step < row:
        raise InputError(kind, f"{kind} has step {step}, but a row of {width} {msg.encoding} pixels takes {row} bytes")
    # Some drivers leave the padding of the last row away.
    needed = (height - 1) * step + row
    if data.size < needed:
        raise InputError(
            kind,
            f"{kind} data is cut off: {data.size} bytes, but {width}x{height} {msg.encoding} with step "
            f"{step} takes {height * step}",
        )
    shape: tuple[int, ...] = (height, width)
    strides: tuple[int, ...] = (step, layout.channels * dtype.itemsize)
    if layout.channels > 1:
        shape, strides = (*shape, layout.channels), (*strides, dtype.itemsize)
    return np.ndarray(shape, dtype, data, strides=strides)


def _compressed_image(msg: Any) -> NDArray[np.uint8]:
    data = np.frombuffer(msg.data, dtype=np.uint8)
    # OpenCV 4 fills up a cut JPEG with grey without a word, so look for its end marker (cameras may pad it
    # with zeros).
    is_cut = data[:2].tobytes() == JPEG_MAGIC and not data[-4096:].tobytes().rstrip(b"\0").endswith(JPEG_END)
    # CameraInfo describes the pixels as they are stored: an EXIF orientation must not turn them.
    bgr = None if is_cut else _decoded(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise InputError(
            "image",
            f"compressed image of {data.size} bytes with format '{msg.format}' cannot be decoded: it is "
            + ("cut off" if is_cut else "corrupt, or neither JPEG nor PNG"),
        )
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def _compressed_depth(msg: Any) -> tuple[NDArray[Any], bool]:
    """(H, W) raw depth and whether it is in metres already.

    ``compressedDepth`` is a PNG behind a header of three little-endian words: the format and the parameters A
    and B. 32-bit depth is stored as inverse depth in 16 bits, depth = A / (x - B)
    (compressed_depth_image_transport, codec.cpp).
    """
    data = np.frombuffer(msg.data, dtype=np.uint8)
    form = str(msg.format)
    if "rvl" in form.lower():
        raise InputError("encoding", f"compressed depth format '{form}' is not accepted; set the transport to PNG")
    # Writers other than image_transport's leave the header away.
    has_header = "compressedDepth" in form and data[: len(PNG_MAGIC)].tobytes() != PNG_MAGIC
    raw = _decoded(data[12:] if has_header else data, cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise InputError(
            "depth",
            f"compressed depth of {data.size} bytes with format '{form}' cannot be decoded as 16-bit PNG",
        )
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise InputError(
            "encoding",
            f"compressed depth '{form}' holds {raw.dtype} of shape {raw.shape}; accepted: 16-bit PNG of one channel",
        )
    if not (has_header and "32FC1" in form):
        return raw, False
    a, b = np.frombuffer(data[4:12].tobytes(), dtype="<f4")
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = a / (raw.astype(np.float32) - b)
    depth[raw == 0] = np.nan
    return depth, True


def _compressed_labels(msg: Any, kind: str) -> NDArray[Any]:
    """(H, W) uint8 or uint16; a JPEG is refused, for it smears labels over their outlines."""
    data = np.frombuffer(msg.data, dtype=np.uint8)
    is_png = data[: len(PNG_MAGIC)].tobytes() == PNG_MAGIC
    labels = _decoded(data, cv2.IMREAD_UNCHANGED) if is_png else None
    if labels is None or labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16):
        raise InputError(
            kind,
            f"the compressed {kind} of {data.size} bytes with format '{msg.format}' is no PNG of one channel, which a "
            f"{kind} must be: others lose what belongs to which pixel",
        )
    return labels


def _decoded(data: NDArray[np.uint8], flags: int) -> NDArray[Any] | None:
    """The decoded picture, or None when OpenCV cannot."""
    if data.size == 0:
        return None
    try:
        return cv2.imdecode(data, flags)
    except cv2.error:
        return None
