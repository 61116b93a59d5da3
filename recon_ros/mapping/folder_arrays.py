# SPDX-License-Identifier: Apache-2.0
"""A map as a few large arrays, and back with every number checked.

What all keyframes saw lies one behind the other in one array each, so that a map opens in one go and only what is
looked at is read (the arrays are memory-mapped).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError, ReconError
from recon_ros.frame import Camera, Keyframe
from recon_ros.geometry.features import Features
from recon_ros.mapping.loops import Loop
from recon_ros.mapping.map_data import MapData
from recon_ros.mapping.pose_graph import Drift, GraphProblem, PoseGraph
from recon_ros.mapping.pose_graph_problem import EDGE
from recon_ros.mapping.trajectory import POSE

MAX_SIDE = 1 << 16
MAX_EVIDENCE = 16
"""Witnesses of a loop that are kept."""
RIGID = 1e-3
"""How far a rotation may be from one."""

KEYFRAME = np.dtype(
    [
        ("id", "<i8"),
        ("stamp_ns", "<i8"),
        ("frame", "<i4"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("features", "<i4"),
        ("is_metric", "?"),
        ("has_descriptor", "?"),
        ("K", "<f8", (3, 3)),
        ("T_world_camera", "<f8", (4, 4)),
    ]
)
FEATURE = np.dtype([("pixel", "<f4", (2,)), ("point", "<f4", (3,)), ("descriptor", "u1", (32,))])
NODE = np.dtype([("id", "<i8"), ("T_world_camera", "<f8", (4, 4)), ("gravity", "<f8", (3,))])
LOOP = np.dtype(
    [
        ("edge", "<i8"),
        ("a", "<i8"),
        ("b", "<i8"),
        ("inliers", "<i8"),
        ("is_believed", "?"),
        ("T_a_b", "<f8", (4, 4)),
        ("information", "<f8", (6, 6)),
        ("evidence", "<i8", (MAX_EVIDENCE,)),
    ]
)

ARRAYS: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "keyframes.npy": (KEYFRAME, ()),
    "points.npy": (np.dtype("<f2"), (3,)),
    "confidence.npy": (np.dtype("<f2"), ()),
    "colours.npy": (np.dtype("u1"), (3,)),
    "features.npy": (FEATURE, ()),
    "nodes.npy": (NODE, ()),
    "edges.npy": (EDGE, ()),
    "loops.npy": (LOOP, ()),
    "path.npy": (POSE, ()),
}
"""File → dtype, and shape of one row."""
DESCRIPTORS = "descriptors.npy"
"""(K, D) float32, a row for each keyframe that has one."""


# -- writing -----------------------------------------------------------------------------------------------------


def write_arrays(data: MapData, folder: Path) -> None:
    """Write the arrays of a map into a folder.

    Raises:
        OSError: when one cannot be written.
    """
    keyframes = data.keyframes
    pixels = sum(k.camera.width * k.camera.height for k in keyframes)
    tables = {"keyframes.npy": _keyframe_rows(data), **_graph_rows(data), "path.npy": data.path}
    for name, rows in tables.items():
        _write(folder / name, len(rows), [rows])
    _write(folder / "points.npy", pixels, (_without_infinity(k.points) for k in keyframes))
    _write(folder / "confidence.npy", pixels, (np.nan_to_num(k.confidence) for k in keyframes))
    _write(folder / "colours.npy", pixels, (k.colour for k in keyframes))
    _write(folder / "features.npy", sum(len(k.features) for k in keyframes), map(_feature_rows, keyframes))
    described = [data.descriptors[k.id] for k in keyframes if k.id in data.descriptors]
    np.save(folder / DESCRIPTORS, np.array(described, np.float32).reshape(len(described), -1 if described else 0))


def frame_names(data: MapData) -> list[str]:
    """The optical frames that keyframes are of, in the order in which `keyframes.npy` counts them."""
    return sorted({k.frame_id for k in data.keyframes})


def _write(path: Path, rows: int, parts: Iterator[NDArray[Any]] | Sequence[NDArray[Any]]) -> None:
    """One array from its parts, without holding it as a whole."""
    dtype, shape = ARRAYS[path.name]
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, *shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).tobytes())


def _keyframe_rows(data: MapData) -> NDArray[Any]:
    rows, frames = np.zeros(len(data.keyframes), KEYFRAME), frame_names(data)
    for row, k in zip(rows, data.keyframes, strict=True):
        row["id"], row["stamp_ns"], row["frame"] = k.id, k.stamp_ns, frames.index(k.frame_id)
        row["width"], row["height"], row["K"] = k.camera.width, k.camera.height, k.camera.K
        row["features"], row["is_metric"], row["T_world_camera"] = len(k.features), k.is_metric, k.T_world_camera
        row["has_descriptor"] = k.id in data.descriptors
    return rows


def _feature_rows(keyframe: Keyframe) -> NDArray[Any]:
    rows = np.zeros(len(keyframe.features), FEATURE)
    rows["pixel"], rows["point"] = keyframe.features.pixels, keyframe.features.points
    rows["descriptor"] = keyframe.features.descriptors
    return rows


def _graph_rows(data: MapData) -> dict[str, NDArray[Any]]:
    nodes, loops = np.zeros(len(data.graph.ids), NODE), np.zeros(len(data.loops), LOOP)
    nodes["id"], nodes["T_world_camera"] = data.graph.ids, data.graph.poses
    nodes["gravity"] = data.graph.gravity
    for row, (edge, loop) in zip(loops, data.loops.items(), strict=True):
        row["edge"], row["a"], row["b"], row["inliers"] = edge, loop.a, loop.b, loop.inliers
        row["T_a_b"], row["information"], row["is_believed"] = loop.T_a_b, loop.information, edge not in data.rejected
        evidence = loop.evidence[:MAX_EVIDENCE]
        row["evidence"] = [*evidence, *[-1] * (MAX_EVIDENCE - len(evidence))]
    return {"nodes.npy": nodes, "edges.npy": data.graph.edges, "loops.npy": loops}


def _without_infinity(points: NDArray[np.float16]) -> NDArray[np.float16]:
    """No point where a float16 cannot hold one."""
    return np.where(np.isinf(points), np.float16(np.nan), points)


# -- reading -----------------------------------------------------------------------------------------------------


class Arrays:
    """The arrays of a map folder, opened and checked one by one.

    Raises:
        ReconError: that names the file whose contents cannot be a map's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table = {name: self._open(name, dtype, shape) for name, (dtype, shape) in ARRAYS.items()}
        self._described = self._open(DESCRIPTORS, np.dtype("<f4"), None)

    def path(self, keyframe_ids: set[int]) -> NDArray[Any]:
        """(N,) of dtype `trajectory.POSE`."""
        rows = np.array(self._table["path.npy"])
        self._need("path.npy", set(rows["reference_id"].tolist()) <= keyframe_ids, "refers to keyframes there are not")
        for name in ("T_reference_camera", "T_world_camera"):
            self._need("path.npy", _are_poses(rows[name]), f"has a {name} that is no pose")
        return rows

    def keyframes(self, frames: Sequence[str], next_id: int) -> tuple[Keyframe, ...]:
        """The keyframes; their points, confidence and colours are read when they are looked at."""
        rows, name = np.array(self._table["keyframes.npy"]), "keyframes.npy"
        ids = rows["id"]
        self._need(name, bool(np.all(np.diff(ids) > 0) and np.all((ids >= 0) & (ids < next_id))), "has wrong ids")
        self._need(name, bool(np.all((rows["frame"] >= 0) & (rows["frame"] < len(frames)))), "has unknown frames")
        sizes = rows["width"], rows["height"], rows["features"] + 1
        self._need(name, all(bool(np.all((n > 0) & (n <= MAX_SIDE))) for n in sizes), "has sizes that cannot be")
        self._need(name, _are_poses(rows["T_world_camera"]), "has a T_world_camera that is no pose")
        self._check_what_was_seen(rows)
        return tuple(self._keyframes(rows, frames))

    def descriptors(self) -> dict[int, NDArray[np.float32]]:
        """Keyframe id → descriptor, for those that have one."""
        rows = self._table["keyframes.npy"]
        ids = rows["id"][rows["has_descriptor"]].tolist()
        self._need(DESCRIPTORS, len(self._described) == len(ids), f"has {len(self._described)} rows, not {len(ids)}")
        self._need(DESCRIPTORS, bool(np.isfinite(self._described).all()), "has numbers that are not finite")
        return dict(zip(ids, np.array(self._described), strict=True))

    def graph(self, keyframe_ids: set[int], scale_drifts: bool, drift: Drift) -> GraphProblem:
        """The pose graph; its nodes are the keyframes."""
        nodes, edges = np.array(self._table["nodes.npy"]), np.array(self._table["edges.npy"])
        ids = nodes["id"]
        self._need("nodes.npy", bool(np.all(np.diff(ids) > 0)), "has ids out of order")
        self._need("nodes.npy", set(ids.tolist()) == keyframe_ids, "has nodes that are not the keyframes")
        self._need("nodes.npy", _are_poses(nodes["T_world_camera"]), "has a T_world_camera that is no pose")
        self._need("edges.npy", bool(np.all(np.diff(edges["id"]) > 0)), "has ids out of order")
        self._need("edges.npy", bool(np.all((edges["kind"] >= 0) & (edges["kind"] < 3))), "has unknown kinds")
        gravity = nodes["gravity"]
        known = ~np.isnan(gravity).all(axis=1)
        unit = np.abs(np.linalg.norm(gravity[known], axis=1) - 1) < RIGID
        self._need("nodes.npy", bool(unit.all()), "has a gravity that is no unit vector")
        problem = GraphProblem(scale_drifts, drift, ids, nodes["T_world_camera"], edges, gravity)
        try:
            return PoseGraph.restored(problem).snapshot()
        except InputError as error:
            raise self._damaged("edges.npy", str(error)) from error

    def loops(self) -> tuple[dict[int, Loop], frozenset[int]]:
        """The loops by edge, and which of them are not believed."""
        rows, name = np.array(self._table["loops.npy"]), "loops.npy"
        self._need(name, len(set(rows["edge"].tolist())) == len(rows), "has an edge twice")
        self._need(name, bool(np.isfinite(rows["information"]).all()), "has informations that are not finite")
        self._need(name, _are_poses(rows["T_a_b"]), "has a T_a_b that is no pose")
        loops = {int(row["edge"]): _loop_of(row) for row in rows}
        return loops, frozenset(rows["edge"][~rows["is_believed"]].tolist())

    def _check_what_was_seen(self, rows: NDArray[Any]) -> None:
        """Whether the large arrays are as long as the keyframes say, and finite."""
        pixels = int((rows["width"].astype(np.int64) * rows["height"]).sum())
        features = int(rows["features"].astype(np.int64).sum())
        expected = {"points.npy": pixels, "confidence.npy": pixels, "colours.npy": pixels, "features.npy": features}
        for name, count in expected.items():
            self._need(name, len(self._table[name]) == count, f"has {len(self._table[name])} rows, not {count}")
        self._need("points.npy", not np.isinf(self._table["points.npy"]).any(), "has infinite numbers")
        confidence = self._table["confidence.npy"]
        self._need(
            "confidence.npy", bool(np.all(confidence >= 0) and np.isfinite(confidence).all()), "is no confidence"
        )
        self._need("features.npy", bool(np.isfinite(self._table["features.npy"]["pixel"]).all()), "is not finite")
        self._need("features.npy", not np.isinf(self._table["features.npy"]["point"]).any(), "is not finite")

    def _keyframes(self, rows: NDArray[Any], frames: Sequence[str]) -> Iterator[Keyframe]:
        pixel, feature = 0, 0
        points, confidence, colours, features = (
            np.asarray(self._table[f"{name}.npy"]) for name in ("points", "confidence", "colours", "features")
        )
        for row in rows:
            width, height, count = int(row["width"]), int(row["height"]), int(row["features"])
            seen, found = slice(pixel, pixel + width * height), features[feature : feature + count]
            try:
                camera = Camera(width, height, row["K"])
            except InputError as error:
                raise self._damaged("keyframes.npy", str(error)) from error
            yield Keyframe(
                id=int(row["id"]),
                stamp_ns=int(row["stamp_ns"]),
                frame_id=frames[row["frame"]],
                camera=camera,
                T_world_camera=row["T_world_camera"].copy(),
                points=points[seen].reshape(height, width, 3),
                confidence=confidence[seen].reshape(height, width),
                colour=colours[seen].reshape(height, width, 3),
                features=Features(found["pixel"].copy(), found["descriptor"].copy(), found["point"].copy()),
                is_metric=bool(row["is_metric"]),
            )
            pixel, feature = pixel + width * height, feature + count

    def _open(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None) -> NDArray[Any]:
        try:
            array = np.load(self._folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(name, f"cannot be read as an array ({error})") from error
        fits = array.ndim == 2 if shape is None else array.shape[1:] == shape
        self._need(name, array.dtype == dtype and array.ndim > 0 and fits, f"has {array.dtype} of shape {array.shape}")
        return array

    def _need(self, name: str, is_well: bool, otherwise: str) -> None:
        if not is_well:
            raise self._damaged(name, otherwise)

    def _damaged(self, name: str, what: str) -> ReconError:
        return ReconError(f"the map cannot be loaded: {self._folder / name} {what}")


def _loop_of(row: Any) -> Loop:
    evidence = tuple(int(i) for i in row["evidence"] if i >= 0)
    T_a_b, information = np.array(row["T_a_b"]), np.array(row["information"])
    return Loop(int(row["a"]), int(row["b"]), T_a_b, information, int(row["inliers"]), evidence)


def _are_poses(T: NDArray[np.float64]) -> bool:
    """Whether (N, 4, 4) matrices are similarities."""
    if not np.isfinite(T).all():
        return False
    determinant = np.linalg.det(T[:, :3, :3])
    if not np.all(determinant > 1e-12):
        return False
    R = T[:, :3, :3] / np.cbrt(determinant)[:, None, None]
    skewed = np.abs(R @ np.swapaxes(R, 1, 2) - np.eye(3)).max(initial=0.0)
    return bool(skewed < RIGID and np.all(T[:, 3] == [0, 0, 0, 1]))
