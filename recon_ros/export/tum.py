# SPDX-License-Identifier: Apache-2.0
"""Trajectories in the format of the TUM RGB-D benchmark: a line `stamp x y z qx qy qz qw` per pose.

Format: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import DatasetError
from recon_ros.frame import Trajectory
from recon_ros.geometry import se3

HEADER = "# timestamp tx ty tz qx qy qz qw\n"


def write_tum(path: Path | str, trajectory: Trajectory) -> None:
    """Write T_world_camera, metres; stamps and numbers have nine decimals, equal input gives equal bytes."""
    stamps = trajectory.stamps_ns.tolist()
    lines = [_line(stamp, pose) for stamp, pose in zip(stamps, trajectory.poses, strict=True)]
    Path(path).write_text(HEADER + "".join(lines))


def read_tum(path: Path | str) -> Trajectory:
    """Read what `write_tum` or another tool wrote; stamps are parsed as decimals, never as floats.

    Raises:
        DatasetError: when the file cannot be read, or a line is not a pose (with its number).
    """
    path = Path(path)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read the trajectory {path}: {error}") from error
    stamps, poses = [], []
    for number, line in enumerate(lines, start=1):
        fields = line.partition("#")[0].replace(",", " ").split()
        if not fields:
            continue
        try:
            stamp, values = _nanoseconds(fields[0]), np.array([float(x) for x in fields[1:8]])
            if len(values) != 7 or not np.all(np.isfinite(values)) or not np.any(values[3:]):
                raise ValueError(line)
        except ValueError as error:
            raise DatasetError(
                f"line {number} of {path} is not 'stamp x y z qx qy qz qw' with numbers: {line[:80]!r}"
            ) from error
        stamps.append(stamp)
        poses.append(se3.from_quaternion(values[:3], values[3:]))
    return Trajectory(np.array(stamps, dtype=np.int64), np.array(poses).reshape(-1, 4, 4))


def format_stamp(stamp_ns: int) -> str:
    """Integer nanoseconds as seconds with nine decimals, exactly."""
    sign, stamp_ns = ("-", -stamp_ns) if stamp_ns < 0 else ("", stamp_ns)
    return f"{sign}{stamp_ns // 10**9}.{stamp_ns % 10**9:09d}"


def _line(stamp_ns: int, T: NDArray[np.float64]) -> str:
    # Adding 0.0 turns -0.0 into 0.0, which would otherwise print a sign that means nothing.
    values = np.concatenate([T[:3, 3], se3.quaternion(T)]).round(9) + 0.0
    return f"{format_stamp(stamp_ns)} " + " ".join(f"{x:.9f}" for x in values) + "\n"


def _nanoseconds(text: str) -> int:
    """Nanoseconds of seconds in decimal or, as some tools write, scientific notation."""
    sign = -1 if text.startswith("-") else 1
    whole, _, fraction = text.lstrip("+-").partition(".")
    if "e" in text.lower():
        seconds = float(text)
        if not math.isfinite(seconds):
            raise ValueError(text)
        return round(seconds * 1e9)
    if not (whole + fraction).isdecimal():
        raise ValueError(text)
    return sign * (int(whole or 0) * 10**9 + int(fraction[:9].ljust(9, "0")))
