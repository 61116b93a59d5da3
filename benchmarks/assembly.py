# SPDX-License-Identifier: Apache-2.0
"""The map from keyframes: our incremental voxel sums beside Open3D's voxel_down_sample of all clouds together."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Row, row
from recon_ros.config import MapConfig
from recon_ros.frame import Keyframe
from recon_ros.geometry import se3
from recon_ros.mapping.fusion import VoxelMap

CONFIG = MapConfig(max_points=20_000_000)
REPETITIONS = 3


@dataclass(frozen=True)
class Assembly:
    """What `measure` found.

    Attributes:
        rows: of the table.
        ratios: how many times as long Open3D takes: ``cold`` for all keyframes at once, ``per_keyframe`` for one
            more in the end.
        points: of the two clouds; the voxel grids have different origins, so they differ a little.
    """

    rows: list[Row]
    ratios: dict[str, float]
    points: dict[str, int]


def measure(keyframes: list[Keyframe], advance: Callable[[], None]) -> Assembly:
    """Assemble the map from scratch, and add the last keyframe to the map of the others; both ways, in turns.

    Either way ends with a cloud of points and colours. Open3D has no way to add to a down-sampled cloud without
    averaging averages, so one more keyframe means to sample all again.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for repetition in range(REPETITIONS + 1):
        ours, cold = _timed(_cold, keyframes)
        theirs, cold_theirs = _timed(_cold_open3d, keyframes)
        known, known_theirs = VoxelMap(CONFIG), _Open3D(keyframes[:-1])
        for keyframe in keyframes[:-1]:
            known.add(keyframe)
        _, add = _timed(known.add, keyframes[-1])
        _, cloud = _timed(known.cloud)
        _, more_theirs = _timed(_one_more_open3d, known_theirs, keyframes[-1])
        if repetition > 0:  # the first one warms up
            for name, ms in (("ours", cold), ("theirs", cold_theirs), ("add", add), ("cloud", cloud)):
                times[name].append(ms)
            times["ours_more"].append(add + cloud)
            times["theirs_more"].append(more_theirs)
        advance()
    ratios = {
        "cold": min(times["theirs"]) / min(times["ours"]),
        "per_keyframe": min(times["theirs_more"]) / min(times["ours_more"]),
    }
    points = {"ours": len(ours.points), "Open3D": len(theirs.points)}
    return Assembly(_rows(keyframes, times, ratios), ratios, points)


def _rows(keyframes: list[Keyframe], times: dict[str, list[float]], ratios: dict[str, float]) -> list[Row]:
    count = sum(int(np.isfinite(k.points[..., 2]).sum()) for k in keyframes)
    source = f"{len(keyframes)} keyframes, {count / 1e6:.1f} M points"
    rows = []
    for key, name, note in (
        ("ours", "all at once: VoxelMap", ""),
        ("theirs", "all at once: Open3D voxel_down_sample", f"{ratios['cold']:.2f} × ours"),
        ("ours_more", "one more keyframe: VoxelMap", ""),
        ("add", "· add", "what each keyframe costs"),
        ("cloud", "· cloud", "only when the map is published"),
        ("theirs_more", "one more keyframe: Open3D, all again", f"{ratios['per_keyframe']:.2f} × ours"),
    ):
        rows.append(row("map", name, source, times[key], note=note))
    return rows


def _cold(keyframes: list[Keyframe]) -> Any:
    voxels = VoxelMap(CONFIG)
    for keyframe in keyframes:
        voxels.add(keyframe)
    return voxels.cloud()


def _cold_open3d(keyframes: list[Keyframe]) -> Any:
    return _Open3D(keyframes).cloud()


def _one_more_open3d(others: _Open3D, keyframe: Keyframe) -> Any:
    others.add(keyframe)
    return others.cloud()


class _Open3D:
    """World points and colours of keyframes as Open3D wants them, those that VoxelMap would take as well."""

    def __init__(self, keyframes: list[Keyframe]) -> None:
        self._points: list[NDArray[np.float64]] = []
        self._colours: list[NDArray[np.float64]] = []
        for keyframe in keyframes:
            self.add(keyframe)

    def add(self, keyframe: Keyframe) -> None:
        usable = np.isfinite(keyframe.points[..., 2]) & (keyframe.confidence >= CONFIG.min_confidence)
        self._points.append(se3.transform(keyframe.T_world_camera, keyframe.points[usable].astype(np.float64)))
        self._colours.append(keyframe.colour[usable] / 255.0)

    def cloud(self) -> Any:
        import open3d as o3d

        cloud = o3d.geometry.PointCloud()
        cloud.points = o3d.utility.Vector3dVector(np.concatenate(self._points))
        cloud.colors = o3d.utility.Vector3dVector(np.concatenate(self._colours))
        return cloud.voxel_down_sample(CONFIG.voxel_size)


def _timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call(*arguments)
    return result, (time.perf_counter() - start) * 1e3
