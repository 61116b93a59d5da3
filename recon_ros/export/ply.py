# SPDX-License-Identifier: Apache-2.0
"""Point clouds as binary PLY with colour, confidence and normals, for Open3D, CloudCompare, MeshLab and others.

Written with numpy, although Open3D can: robots set up from apt have no Open3D, and one writer means that
equal clouds give equal bytes on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import ReconError
from recon_ros.frame import Cloud

POSITION, NORMAL, COLOUR = ("x", "y", "z"), ("nx", "ny", "nz"), ("red", "green", "blue")
VERTEX = np.dtype([*((n, "<f4") for n in POSITION), *((n, "u1") for n in COLOUR), ("confidence", "<f4")])
VERTEX_WITH_NORMAL = np.dtype([*((n, "<f4") for n in POSITION + NORMAL), *VERTEX.descr[3:]])
_PLY_TYPES = {"<f4": "float", "|u1": "uchar"}


def write_ply(path: Path | str, cloud: Cloud, comment: str = "") -> None:
    """Write a cloud, with normals if it has some; `comment` is one line for the header, for instance the unit."""
    vertices = np.empty(len(cloud), VERTEX if cloud.normals is None else VERTEX_WITH_NORMAL)
    _fill(vertices, POSITION, cloud.points)
    if cloud.normals is not None:
        _fill(vertices, NORMAL, cloud.normals)
    _fill(vertices, COLOUR, cloud.colours)
    vertices["confidence"] = cloud.confidence
    with Path(path).open("wb") as file:
        file.write(_header(vertices, comment))
        file.write(vertices.tobytes())


def read_ply(path: Path | str) -> Cloud:
    """Read a cloud that `write_ply` wrote.

    Raises:
        ReconError: for any other file.
    """
    data = Path(path).read_bytes()
    head, separator, body = data.partition(b"end_header\n")
    vertex = VERTEX_WITH_NORMAL if b"\nproperty float nx\n" in head else VERTEX
    count = next((int(line.split()[-1]) for line in head.splitlines() if line.startswith(b"element vertex ")), -1)
    if not separator or len(body) != count * vertex.itemsize:
        raise ReconError(f"{path} is not a cloud written by this package; read it with Open3D")
    v = np.frombuffer(body, vertex)
    normals = _stacked(v, NORMAL) if vertex is VERTEX_WITH_NORMAL else None
    return Cloud(_stacked(v, POSITION), _stacked(v, COLOUR), v["confidence"].copy(), normals)


def _fill(vertices: NDArray[Any], names: tuple[str, ...], values: NDArray[Any]) -> None:
    for axis, name in enumerate(names):
        vertices[name] = values[:, axis]


def _stacked(vertices: NDArray[Any], names: tuple[str, ...]) -> NDArray[Any]:
    return np.stack([vertices[name] for name in names], axis=1)


def _header(vertices: NDArray[Any], comment: str) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0"]
    if comment:
        lines.append("comment " + " ".join(comment.split()))
    lines.append(f"element vertex {len(vertices)}")
    dtype = vertices.dtype
    for name in dtype.names or ():
        lines.append(f"property {_PLY_TYPES[dtype[name].str]} {name}")
    return ("\n".join([*lines, "end_header"]) + "\n").encode("ascii", "replace")
