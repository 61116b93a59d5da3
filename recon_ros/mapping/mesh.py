# SPDX-License-Identifier: Apache-2.0
"""A triangle mesh of the map: the keyframes' depth fused into a truncated signed distance field (Curless and Levoy
1996) with Open3D, and its zero level (Lorensen and Cline 1987).

A block of the field is updated by every keyframe that has it in view, not only by those that see a surface in it: what
more keyframes have seen through than have seen leaves the mesh.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import ConfigError, ReconError
from recon_ros.frame import Keyframe
from recon_ros.geometry import se3
from recon_ros.mapping.contribution import usable
from recon_ros.mapping.voxels import pack, unpack

LOGGER = logging.getLogger("recon_ros.mapping")

EDGE = 8
"""Voxels along the edge of a block of the field."""
TRUNCATION = 4.0
"""The field is kept up to this many voxels from a surface."""
MAX_BLOCKS = 30_000
"""About 30 kB each, with the triangles in them. A map that takes more gets larger voxels."""
LOWEST_WEIGHT = 0.5
"""Of the field for its zero level to count; a keyframe weighs 1."""


def require_open3d() -> None:
    """Raise ConfigError when Open3D, which has no Debian package, is not installed."""
    if importlib.util.find_spec("open3d") is None:
        raise ConfigError("a mesh needs Open3D: pip install open3d-cpu, or do without")


def fused(
    keyframes: Sequence[Keyframe], voxel_size: float, min_confidence: float = 0.1, max_blocks: int = MAX_BLOCKS
) -> Any:
    """Fuse keyframes where they are now into one surface.

    Args:
        keyframes: with Sim(3) poses.
        voxel_size: edge of a voxel of the field, in the world's unit.
        min_confidence: points below it are left out.
        max_blocks: bound of the memory; voxels are made larger until the field fits.

    Returns:
        open3d.geometry.TriangleMesh with vertex colours and normals; empty when there is nothing to see.

    Raises:
        ConfigError: when Open3D is missing.
    """
    require_open3d()
    import open3d as o3d

    blocks = _blocks(keyframes, min_confidence, voxel_size)
    while len(blocks) > max_blocks:
        voxel_size *= 1.05 * (len(blocks) / max_blocks) ** 0.5
        LOGGER.warning("the mesh would take too much memory; its voxels are enlarged to %.3g", voxel_size)
        blocks = _blocks(keyframes, min_confidence, voxel_size)
    if not len(blocks):
        return o3d.geometry.TriangleMesh()
    grid = _grid(voxel_size, len(blocks))
    centres = (blocks + 0.5) * (EDGE * voxel_size)
    for keyframe in keyframes:
        view = _View(keyframe, min_confidence)
        seen = view.has_in_view(centres, EDGE * voxel_size)
        if seen.any():
            view.integrate_into(grid, blocks[seen])
    surface = grid.extract_triangle_mesh(weight_threshold=LOWEST_WEIGHT).to_legacy()
    surface.vertex_colors = o3d.utility.Vector3dVector(np.clip(np.asarray(surface.vertex_colors), 0, 1))
    surface.compute_vertex_normals()
    return surface


def write_mesh(path: Path | str, surface: Any) -> None:
    """Write what `fused` has made as a PLY file (or whatever the file's name ends in).

    Raises:
        ReconError: when it cannot be written.
    """
    import open3d as o3d

    if not o3d.io.write_triangle_mesh(str(path), surface):
        raise ReconError(f"cannot write the mesh to {path}")


class _View:
    """A keyframe as Open3D wants it: a rigid pose, and depth in the world's unit, 0 where there is none."""

    def __init__(self, keyframe: Keyframe, min_confidence: float) -> None:
        import open3d as o3d

        scale = se3.scale_of(keyframe.T_world_camera)
        depth = keyframe.points[..., 2].astype(np.float32) * np.float32(scale)
        depth[~usable(keyframe, min_confidence)] = 0
        rigid = se3.make(keyframe.T_world_camera[:3, :3] / scale, keyframe.T_world_camera[:3, 3])
        self._camera = keyframe.camera
        self._T_camera_world = se3.inverse(rigid)
        self._reach = float(depth.max(initial=0))
        self._depth = o3d.t.geometry.Image(np.ascontiguousarray(depth))
        self._colour = o3d.t.geometry.Image(keyframe.colour.astype(np.float32) / 255)
        K = keyframe.camera.K.copy()
        K[:2, 2] += 0.5  # Open3D takes the pixel that a projection is rounded down to; here centres are whole numbers
        self._K = o3d.core.Tensor(K)
        self._extrinsic = o3d.core.Tensor(self._T_camera_world)

    def blocks(self, grid: Any) -> NDArray[np.int64]:
        """(N, 3) indices of the blocks near the surfaces it sees."""
        if self._reach == 0:
            return np.zeros((0, 3), np.int64)
        found = grid.compute_unique_block_coordinates(
            self._depth, self._K, self._extrinsic, 1.0, self._reach + 1, TRUNCATION
        )
        return np.asarray(found.numpy().astype(np.int64))

    def has_in_view(self, centres: NDArray[Any], edge: float) -> NDArray[np.bool_]:
        """(N,) True for the cubes of which a part may lie before its surfaces."""
        local = se3.transform(self._T_camera_world, centres)
        radius = edge * 3**0.5 / 2
        seen = (local[:, 2] > -radius) & (local[:, 2] < self._reach + radius)
        for axis, focal, middle, size in (
            (0, self._camera.fx, self._camera.cx, self._camera.width),
            (1, self._camera.fy, self._camera.cy, self._camera.height),
        ):
            for bound, sign in ((-0.5 - middle, 1), (size - 0.5 - middle, -1)):
                inward = sign * (focal * local[:, axis] - bound * local[:, 2])
                seen &= inward > -radius * float(np.hypot(focal, bound))
        return np.asarray(seen)

    def integrate_into(self, grid: Any, blocks: NDArray[np.int64]) -> None:
        import open3d as o3d

        grid.integrate(
            o3d.core.Tensor(blocks.astype(np.int32)),
            self._depth,
            self._colour,
            self._K,
            self._K,
            self._extrinsic,
            1.0,
            self._reach + 1,
            TRUNCATION,
        )


def _blocks(keyframes: Sequence[Keyframe], min_confidence: float, voxel_size: float) -> NDArray[np.int64]:
    """(N, 3) indices of the blocks near any surface."""
    grid = _grid(voxel_size, 1)
    found = np.zeros(0, np.int64)
    for keyframe in keyframes:
        found = np.union1d(found, pack(_View(keyframe, min_confidence).blocks(grid)))
    return unpack(found)


def _grid(voxel_size: float, blocks: int) -> Any:
    import open3d as o3d

    real = o3d.core.float32
    return o3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight", "color"), (real, real, real), ((1,), (1,), (3,)), voxel_size, EDGE, blocks
    )
