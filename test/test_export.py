# SPDX-License-Identifier: Apache-2.0
"""Files other tools read: TUM trajectories and PLY clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from recon_ros.errors import DatasetError
from recon_ros.export.ply import write_ply
from recon_ros.export.tum import format_stamp, read_tum, write_tum
from recon_ros.frame import Cloud, Trajectory
from recon_ros.geometry import se3

stamps = st.integers(min_value=0, max_value=4 * 10**18)
twists = nps.arrays(np.float64, 6, elements=st.floats(-2.0, 2.0))


@given(st.lists(st.tuples(stamps, twists), max_size=8))
def test_tum_round_trip_is_exact_in_stamps(tmp_path_factory: pytest.TempPathFactory, items: list) -> None:
    path = tmp_path_factory.mktemp("tum") / "trajectory.tum"
    poses = np.array([se3.exp(twist) for _, twist in items]).reshape(-1, 4, 4)
    write_tum(path, Trajectory(np.array([stamp for stamp, _ in items], dtype=np.int64), poses))
    back = read_tum(path)
    assert back.stamps_ns.tolist() == [stamp for stamp, _ in items]
    np.testing.assert_allclose(back.poses, poses, atol=5e-9)


def test_tum_line_is_spelled_out(tmp_path: Path) -> None:
    T = se3.make(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), [1.5, -2.0, -1e-12])
    write_tum(tmp_path / "t.tum", Trajectory(np.array([1_700_000_000_000_000_001]), T[None]))
    line = (tmp_path / "t.tum").read_text().splitlines()[1]
    assert line == (
        "1700000000.000000001 1.500000000 -2.000000000 0.000000000 0.000000000 0.000000000 0.707106781 0.707106781"
    )


def test_tum_reads_what_others_write(tmp_path: Path) -> None:
    path = tmp_path / "t.tum"
    path.write_text("# comment\n\n1305031102.1753 1 2 3 0 0 0 1\n1.3050311022e+09,1,2,3,0,0,0,1\n5 0 0 0 0 0 0 2\n")
    back = read_tum(path)
    assert back.stamps_ns.tolist() == [1305031102175300000, 1305031102200000000, 5 * 10**9]
    np.testing.assert_allclose(back.poses[2], np.eye(4))


@pytest.mark.parametrize(
    "line", ["1 2 3", "x 0 0 0 0 0 0 1", "1 0 0 0 0 0 0 0", "1 nan 0 0 0 0 0 1", "1e999 0 0 0 0 0 0 1"]
)
def test_tum_names_the_bad_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.tum"
    path.write_text("1 0 0 0 0 0 0 1\n" + line + "\n")
    with pytest.raises(DatasetError, match="line 2"):
        read_tum(path)


def test_tum_missing_file_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot read"):
        read_tum(tmp_path / "none.tum")


def test_format_stamp_keeps_every_nanosecond() -> None:
    assert format_stamp(1_700_000_000_123_456_789) == "1700000000.123456789"
    assert format_stamp(5) == "0.000000005"
    assert format_stamp(-1) == "-0.000000001"


def _cloud(n: int) -> Cloud:
    rng = np.random.default_rng(3)
    points = rng.standard_normal((n, 3)).astype(np.float32)
    return Cloud(points, rng.integers(0, 256, (n, 3), dtype=np.uint8), rng.random(n, dtype=np.float32))


def test_ply_is_read_by_open3d(tmp_path: Path) -> None:
    o3d = pytest.importorskip("open3d")
    cloud = _cloud(500)
    write_ply(tmp_path / "map.ply", cloud, comment="unit: metre")
    back = o3d.t.io.read_point_cloud(str(tmp_path / "map.ply"))
    np.testing.assert_array_equal(back.point.positions.numpy(), cloud.points)
    np.testing.assert_array_equal(back.point.colors.numpy(), cloud.colours)
    np.testing.assert_array_equal(back.point.confidence.numpy().ravel(), cloud.confidence)


def test_ply_bytes_are_the_same_every_time_and_start_with_its_header(tmp_path: Path) -> None:
    for name in ("a.ply", "b.ply"):
        write_ply(tmp_path / name, _cloud(7))
    data = (tmp_path / "a.ply").read_bytes()
    assert data == (tmp_path / "b.ply").read_bytes()
    header, _, body = data.partition(b"end_header\n")
    assert b"element vertex 7\n" in header
    assert len(body) == 7 * 19


def test_empty_cloud_and_trajectory_are_written(tmp_path: Path) -> None:
    write_ply(tmp_path / "map.ply", _cloud(0))
    assert b"element vertex 0" in (tmp_path / "map.ply").read_bytes()
    write_tum(tmp_path / "t.tum", Trajectory(np.zeros(0, np.int64), np.zeros((0, 4, 4))))
    assert len(read_tum(tmp_path / "t.tum")) == 0


def test_trajectory_and_cloud_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="float"):
        Trajectory(np.array([1.5]), np.eye(4)[None])
    with pytest.raises(ValueError, match="not \\(N,\\)"):
        Trajectory(np.array([1, 2]), np.eye(4)[None])
    with pytest.raises(ValueError, match="uint8"):
        Cloud(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1))
    with pytest.raises(ValueError, match="not \\(N, 3\\)"):
        Cloud(np.zeros((2, 3)), np.zeros((1, 3), np.uint8), np.zeros(2))
