# SPDX-License-Identifier: Apache-2.0
"""Point clouds as binary PLY with colour and confidence, for Open3D, CloudCompare, MeshLab and others.

Written with numpy, although Open3D can: robots set up from apt have no Open3D, and one writer means that
equal clouds give equal bytes on every machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recon_ros.errors import ReconError
from recon_ros.frame import Cloud

VERTEX = np.dtype(
    [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("red", "u1"),
        ("green", "u1"),
        ("blue", "u1"),
        ("confidence", "<f4"),
    ]
)
_PLY_TYPES = {"<f4": "float", "|u1": "uchar"}


def write_ply(path: Path | str, cloud: Cloud, comment: str = "") -> None:
    """Write a cloud; `comment` is one line for the header, for instance whether the unit is the metre."""
    vertices = np.empty(len(cloud), VERTEX)
    for axis, name in enumerate(("x", "y", "z")):
        vertices[name] = cloud.points[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = cloud.colours[:, channel]
    vertices["confidence"] = cloud.confidence
    with Path(path).open("wb") as file:
        file.write(_header(len(cloud), comment))
        file.write(vertices.tobytes())


def read_ply(path: Path | str) -> Cloud:
    """Read a cloud that `write_ply` wrote.

    Raises:
        ReconError: for any other file.
    """
    data = Path(path).read_bytes()
    head, separator, body = data.partition(b"end_header\n")
    count = next((int(line.split()[-1]) for line in head.splitlines() if line.startswith(b"element vertex ")), -1)
    if not separator or len(body) != count * VERTEX.itemsize:
        raise ReconError(f"{path} is not a cloud written by this package; read it with Open3D")
    v = np.frombuffer(body, VERTEX)
    points = np.stack([v["x"], v["y"], v["z"]], axis=1)
    return Cloud(points, np.stack([v["red"], v["green"], v["blue"]], axis=1), v["confidence"].copy())


def _header(count: int, comment: str) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0"]
    if comment:
        lines.append("comment " + " ".join(comment.split()))
    lines.append(f"element vertex {count}")
    for name in VERTEX.names or ():
        lines.append(f"property {_PLY_TYPES[VERTEX[name].str]} {name}")
    return ("\n".join([*lines, "end_header"]) + "\n").encode("ascii", "replace")
