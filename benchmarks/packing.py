# SPDX-License-Identifier: Apache-2.0
"""Packing a large PointCloud2: ours beside the ways that are common."""

from __future__ import annotations

import array
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2, PointField

from benchmarks.measure import Row, repeated, row
from recon_ros.ros.conversions import XYZRGB, cloud_message, header

POINTS = 200_000
TARGET_MS = 2.0
STRUCTURE = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")])
FIELDS = [PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, n in enumerate(XYZRGB)]


def measure(advance: Callable[[], None]) -> list[Row]:
    """One row for each way. All end with a message of the same bytes, which is checked."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(POINTS, 3)).astype(np.float32)
    colours = rng.integers(0, 256, (POINTS, 3), dtype=np.uint8)
    expected = bytes(cloud_message(points, colours, 1, "map").data)
    rows = []
    for name, (way, repetitions) in ways().items():
        assert bytes(way(points, colours).data) == expected, f"{name} packs something else"
        times = repeated(lambda way=way: way(points, colours), repetitions)  # type: ignore[misc]
        target = TARGET_MS if name.endswith("(ours)") else None
        rows.append(row("packing", name, f"{POINTS:,} points", times, target_ms=target))
        advance()
    return rows


def ways() -> dict[str, tuple[Callable[..., Any], int]]:
    """Name → function of points and colours, and how often it is worth repeating."""
    found: dict[str, tuple[Callable[..., Any], int]] = {
        "cloud_message (ours)": (lambda points, colours: cloud_message(points, colours, 1, "map"), 60),
        "structured array, array.array": (_structured_array, 60),
        "structured array, bytes": (_structured_bytes, 60),
        "structured array, assigned as uint8 array": (_structured_assigned, 5),
    }
    if importlib.util.find_spec("sensor_msgs_py") is not None:
        found["sensor_msgs_py.create_cloud"] = (_with_sensor_msgs_py, 20)
    return found


def _structured(points: NDArray[np.float32], colours: NDArray[np.uint8]) -> NDArray[Any]:
    """The textbook way: a structured array, filled field by field."""
    packed = np.zeros(len(points), STRUCTURE)
    packed["x"], packed["y"], packed["z"] = points.T
    r, g, b = colours.astype(np.uint32).T
    packed["rgb"] = (r << 16) | (g << 8) | b
    return packed


def _message() -> PointCloud2:
    message = PointCloud2(header=header(1, "map"), fields=FIELDS, height=1, width=POINTS)
    message.point_step, message.row_step = STRUCTURE.itemsize, STRUCTURE.itemsize * POINTS
    message.is_dense = True
    return message


def _structured_array(points: NDArray[np.float32], colours: NDArray[np.uint8]) -> PointCloud2:
    message, data = _message(), array.array("B")
    data.frombytes(_structured(points, colours).view(np.uint8).data)
    message.data = data
    return message


def _structured_bytes(points: NDArray[np.float32], colours: NDArray[np.uint8]) -> PointCloud2:
    message = _message()
    message.data = _structured(points, colours).tobytes()
    return message


def _structured_assigned(points: NDArray[np.float32], colours: NDArray[np.uint8]) -> PointCloud2:
    message = _message()
    message.data = _structured(points, colours).view(np.uint8)
    return message


def _with_sensor_msgs_py(points: NDArray[np.float32], colours: NDArray[np.uint8]) -> Any:
    from sensor_msgs_py import point_cloud2

    as_declared = np.dtype([(name, "<f4") for name in XYZRGB])
    return point_cloud2.create_cloud(header(1, "map"), FIELDS, _structured(points, colours).view(as_declared))
