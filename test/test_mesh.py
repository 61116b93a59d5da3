# SPDX-License-Identifier: Apache-2.0
"""The surface of a map as triangles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from furnished_room import ROOM, Box, keyframe_of, look
from helpers import make_keyframe
from scipy.spatial import cKDTree

from recon_ros.errors import ConfigError, ReconError
from recon_ros.frame import Keyframe
from recon_ros.geometry import se3
from recon_ros.mapping import mesh
from recon_ros.mapping.mesh import fused, write_mesh

o3d = pytest.importorskip("open3d")

VOXEL = 0.05
CRATE = Box((-0.4, 0.3, 1.2), (0.4, 1.5, 2.0))


def keyframes(count: int, crate_until: int = 0, scale: float = 1.0) -> list[Keyframe]:
    made = []
    for i in range(count):
        yaw = 0.9 * np.sin(0.7 * i)
        pose = look(-1.8 * np.sin(yaw), 1.2 - 2.4 * np.cos(yaw), yaw, -0.2)
        keyframe = keyframe_of(i, pose, [CRATE] if i < crate_until else [])
        keyframe.T_world_camera = se3.make(np.eye(3), [0, 0, 0], scale) @ keyframe.T_world_camera
        made.append(keyframe)
    return made


def distance_to_walls(points: np.ndarray) -> np.ndarray:
    return np.minimum(np.abs(points - ROOM[0]), np.abs(points - ROOM[1])).min(axis=1)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_mesh_is_the_room(scale: float) -> None:
    surface = fused(keyframes(6, scale=scale), VOXEL * scale)
    vertices, normals = np.asarray(surface.vertices) / scale, np.asarray(surface.vertex_normals)
    assert len(vertices) > 3000
    assert np.percentile(distance_to_walls(vertices), 90) < VOXEL / 5
    assert np.percentile(distance_to_walls(vertices), 99.5) < VOXEL  # corners are cut
    behind = np.abs(vertices[:, 2] - ROOM[1][2]) < 0.01
    np.testing.assert_allclose(np.median(normals[behind], axis=0), [0, 0, -1], atol=0.02)
    seen = [se3.transform(k.T_world_camera, k.points[2:-2:4, 2:-2:4].astype(float)) for k in keyframes(6)]
    gap, _ = cKDTree(vertices).query(np.concatenate(seen).reshape(-1, 3))
    assert np.percentile(gap, 95) < 2 * VOXEL


def test_what_most_have_seen_through_is_not_in_it() -> None:
    vertices = [np.asarray(fused(keyframes(12, crate_until=n), VOXEL).vertices) for n in (12, 4)]
    above_floor = Box(CRATE.low, (CRATE.high[0], 1.3, CRATE.high[2]))
    there, gone = (np.count_nonzero(above_floor.holds(v)) for v in vertices)
    assert there > 500
    assert gone < 0.1 * there


def test_the_mesh_has_the_colours_of_what_was_seen() -> None:
    keyframe = make_keyframe(0, np.eye(4))
    keyframe.confidence[:] = 1
    keyframe.colour[:] = (200, 100, 50)
    colours = np.asarray(fused([keyframe], VOXEL).vertex_colors)
    np.testing.assert_allclose(np.median(colours, axis=0) * 255, (200, 100, 50), atol=1)


def test_memory_is_bounded_by_larger_voxels(caplog: pytest.LogCaptureFixture) -> None:
    fine = fused(keyframes(3), VOXEL)
    coarse = fused(keyframes(3), VOXEL, max_blocks=100)
    assert "memory" in caplog.text
    assert 50 < len(coarse.vertices) < len(fine.vertices) / 3
    assert np.percentile(distance_to_walls(np.asarray(coarse.vertices)), 90) < 0.2


def test_nothing_makes_an_empty_mesh(tmp_path: Path) -> None:
    blind = make_keyframe(0, np.eye(4))
    blind.confidence[:] = 0
    for surface in (fused([], VOXEL), fused([blind], VOXEL)):
        assert len(surface.vertices) == 0


def test_a_mesh_is_written_and_read(tmp_path: Path) -> None:
    surface = fused(keyframes(1), VOXEL)
    write_mesh(tmp_path / "mesh.ply", surface)
    back = o3d.io.read_triangle_mesh(str(tmp_path / "mesh.ply"))
    assert len(back.triangles) == len(surface.triangles) > 0 and back.has_vertex_colors() and back.has_vertex_normals()
    with pytest.raises(ReconError, match="cannot write the mesh"):
        write_mesh(tmp_path / "nowhere" / "mesh.ply", surface)


def test_a_missing_open3d_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="open3d"):
        fused([], VOXEL)
