# SPDX-License-Identifier: Apache-2.0
"""The voxel map's own bounds, its blocks, its normals, and how it forgets what has moved away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from furnished_room import Box, keyframe_of, look
from helpers import make_keyframe, quick, random_pose, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from recon_ros.config import Config, MapConfig, updated
from recon_ros.export.ply import read_ply, write_ply
from recon_ros.frame import Cloud, Keyframe
from recon_ros.geometry import normals, se3
from recon_ros.geometry.camera import Camera
from recon_ros.mapping.contribution import contribution
from recon_ros.mapping.fusion import GONE, KEPT, VoxelMap
from recon_ros.mapping.voxels import BLOCK_EDGE, COUNT, LOCAL_BITS, OFFSET, pack, unpack

VOXEL = 0.05
SMALL = Camera.from_focal(32, 24, 26.0)
CRATE = Box((-0.3, 0.6, 1.2), (0.3, 1.5, 1.8))
CRATE_ABOVE = Box((-0.3, 0.6, 1.2), (0.3, 1.2, 1.8))  # what is not next to the floor
POLE = Box((0.5, -1.5, 1.5), (0.54, 1.5, 1.54))
TABLE = Box((-1.6, 0.5, 1.0), (-0.8, 0.55, 1.9))


def config(**options: float) -> MapConfig:
    defaults = {"map.voxel_size": VOXEL, "map.carving": 2}
    return updated(Config(), defaults | {f"map.{name}": value for name, value in options.items()}).map


def round_walk(step: int) -> np.ndarray:
    """A pose on an arc around the middle of the room, looking at it."""
    angle = 0.9 * np.sin(0.7 * step)
    return look(-1.8 * np.sin(angle) + 0.05 * step % 0.3, 1.2 - 2.4 * np.cos(angle), angle, -0.25)


def mapped(keyframes: list[Keyframe], **options: float) -> VoxelMap:
    voxels = VoxelMap(config(**options))
    for keyframe in keyframes:
        voxels.add(keyframe)
    return voxels


def assert_same(a: Cloud, b: Cloud) -> None:
    for name in ("points", "colours", "confidence", "normals"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name


# --- names of voxels


@quick
@given(st.lists(st.tuples(*[st.integers(-OFFSET, OFFSET - 1)] * 3), min_size=1, max_size=20))
def test_keys_name_voxels_and_sort_them_by_block(index: list[tuple[int, int, int]]) -> None:
    wanted = np.array(index, np.int64)
    keys = pack(wanted)
    assert keys.min() >= 0
    np.testing.assert_array_equal(unpack(keys), wanted)
    blocks = np.floor_divide(wanted, BLOCK_EDGE)
    for i in range(len(keys)):
        same = (blocks == blocks[i]).all(axis=1)
        np.testing.assert_array_equal(keys >> LOCAL_BITS == keys[i] >> LOCAL_BITS, same)


# --- what has moved away goes


def test_what_has_moved_away_leaves_the_map_and_the_room_stays() -> None:
    keyframes = [keyframe_of(i, round_walk(i), [CRATE] if i < 6 else [], noise=1.0) for i in range(16)]
    before, after = mapped(keyframes[:6]).cloud().points, mapped(keyframes).cloud().points
    assert np.count_nonzero(CRATE_ABOVE.holds(before)) > 300
    assert np.count_nonzero(CRATE_ABOVE.holds(after)) <= 0.01 * np.count_nonzero(CRATE_ABOVE.holds(before))
    room = mapped(keyframes, carving=0).cloud().points
    room = room[~CRATE.holds(room, 0.15)]
    distance, _ = cKDTree(after).query(room)
    assert np.mean(distance < 1e-6) > 0.999


def test_what_stands_is_not_eaten() -> None:
    """A pole thinner than a voxel, a table's edge: with noise in depth and poses, seen from everywhere, all stay."""
    furniture = [POLE, TABLE]
    keyframes = [keyframe_of(i, round_walk(i), furniture, noise=1.0, pose_noise=0.005) for i in range(24)]
    carved, whole = mapped(keyframes).cloud().points, mapped(keyframes, carving=0).cloud().points
    assert len(carved) > 0.998 * len(whole)
    for thing in furniture:
        part = whole[thing.holds(whole, 0.02)]
        assert len(part) > 50
        assert cKDTree(carved).query(part)[0].max() < 1.5 * VOXEL


def test_where_nothing_is_measured_nothing_is_contradicted() -> None:
    """A crate that gives no depth any more, black or too near, stays."""
    keyframes = [keyframe_of(i, round_walk(i), [CRATE], noise=1.0) for i in range(12)]
    for keyframe in keyframes[3:]:
        world = se3.transform(keyframe.T_world_camera, keyframe.points.reshape(-1, 3).astype(float))
        keyframe.points[CRATE.holds(world).reshape(keyframe.points.shape[:2])] = np.nan
    carved, whole = mapped(keyframes).cloud().points, mapped(keyframes, carving=0).cloud().points
    crate = whole[CRATE_ABOVE.holds(whole)]
    assert np.mean(cKDTree(carved).query(crate)[0] < 1e-6) > 0.98


def test_what_arrives_is_shown_at_once_and_again_when_it_returns() -> None:
    crate_at = {12, 13, 20}
    keyframes = [keyframe_of(i, round_walk(i), [CRATE] if i in crate_at else []) for i in range(21)]
    voxels = VoxelMap(config())
    seen = []
    for keyframe in keyframes:
        voxels.add(keyframe)
        seen.append(np.count_nonzero(CRATE_ABOVE.holds(voxels.cloud().points)))
    assert max(seen[:12]) == 0
    assert seen[13] > seen[12] > 100
    assert seen[19] <= 0.02 * seen[13], "gone"
    assert seen[20] > 100, "back"


def test_contradictions_go_with_who_made_them() -> None:
    keyframes = [keyframe_of(i, round_walk(i), [CRATE] if i < 3 else []) for i in range(9)]
    voxels = mapped(keyframes)
    gone = len(voxels.cloud())
    for keyframe in keyframes[3:]:
        voxels.remove(keyframe)
    assert_same(voxels.cloud(), mapped(keyframes[:3]).cloud())
    for keyframe in keyframes[3:]:
        keyframe.T_world_camera = look(0, 0, np.pi)  # they have looked the other way after all
        voxels.add(keyframe)
    assert len(voxels.cloud()) > gone
    assert np.count_nonzero(CRATE_ABOVE.holds(voxels.cloud().points)) > 200


def test_who_does_not_know_its_place_contradicts_nobody() -> None:
    keyframes = [keyframe_of(i, round_walk(i), [CRATE] if i < 3 else []) for i in range(9)]
    voxels = mapped(keyframes[:3])
    for keyframe in keyframes[3:]:
        voxels.add(keyframe, carves=False)
    assert_same(voxels.cloud(), mapped(keyframes, carving=0).cloud())
    for keyframe in keyframes[3:]:
        voxels.remove(keyframe)
        voxels.add(keyframe)
    assert_same(voxels.cloud(), mapped(keyframes).cloud())


room_steps = st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["toggle", "move"])), max_size=20)


@settings(quick, max_examples=15)
@given(room_steps, st.integers(1, 3), st.randoms(use_true_random=False))
def test_the_map_depends_on_its_keyframes_alone(steps: list[tuple[int, str]], carving: int, random: object) -> None:
    """They come, move and go in any order: the map is that of those which are there, bit by bit."""
    keyframes = [keyframe_of(i, round_walk(i), [CRATE] if i % 5 < 2 else [], camera=SMALL) for i in range(8)]
    voxels, inside = mapped(keyframes[:5], carving=carving), set(range(5))
    for i, what in steps:
        if i in inside and what == "toggle":
            voxels.remove(keyframes[i])
        if what == "move":  # one that is there moves there
            keyframes[i].T_world_camera = keyframes[i].T_world_camera @ se3.exp(np.array([0.3, 0, -0.2, 0, 0.1, 0]))
        if what == "move" or i not in inside:
            voxels.add(keyframes[i])
            inside.add(i)
        else:
            inside.discard(i)
    order = sorted(inside)
    random.shuffle(order)  # type: ignore[attr-defined]
    fresh = mapped([keyframes[i] for i in order], carving=carving)
    assert_same(voxels.cloud(), fresh.cloud())
    assert len(voxels) == len(fresh)


def test_the_example_of_the_last_test_is_carved() -> None:
    keyframes = [keyframe_of(i, round_walk(i), [CRATE] if i % 5 < 2 else [], camera=SMALL) for i in range(5)]
    shown = [len(mapped(keyframes, carving=carving).cloud()) for carving in (1, 2, 0)]
    assert shown[0] < shown[1] < shown[2]


# --- the bound


def in_room(keyframe_id: int, room: int) -> Keyframe:
    """A keyframe of one of several equal rooms in a row, 12 m apart."""
    keyframe = keyframe_of(keyframe_id, look(0, 0, 0))
    keyframe.T_world_camera[0, 3] += 12.0 * room
    return keyframe


def test_the_bound_holds_and_what_is_far_goes_first() -> None:
    keyframes = [in_room(i, i) for i in range(3)]
    per_room = len(mapped(keyframes[:1], max_voxels=10**6))
    most = int(2.4 * per_room)
    voxels = mapped(keyframes, max_voxels=most)
    assert KEPT * most - 1 <= len(voxels) <= most
    x = voxels.cloud().points[:, 0]
    left = [np.count_nonzero(np.abs(x - 12 * i) < 6) for i in range(3)]
    assert left[2] == per_room, "nothing goes where the camera is"
    assert 0 < left[0] < left[1], "the far room is thinner, but not torn out"
    for keyframe in keyframes:
        voxels.remove(keyframe)
    assert len(voxels) == 0


def assert_sound(voxels: VoxelMap, inside: dict[int, Keyframe]) -> None:
    """Each voxel's sums are those of the keyframes that still count it as theirs."""
    table = voxels._table
    expected = np.zeros_like(table.sums)
    for i, keyframe in inside.items():
        added = voxels._added[i]
        _, sums = contribution(keyframe, added.T_world_camera, added.min_confidence, VOXEL)
        there = added.rows != GONE
        expected[added.rows[there]] += sums[there]
    rows = np.concatenate([b.rows for b in table.blocks.values()] or [np.zeros(0, int)])
    assert len(rows) == len(set(rows.tolist())) == len(voxels)
    np.testing.assert_array_equal(table.sums[rows], expected[rows])
    assert (table.sums[rows, COUNT] > 0).all()
    assert np.count_nonzero(expected[:, COUNT]) == len(rows)
    assert not len(rows) or table.misses[rows].min() >= 0


@settings(quick, max_examples=15)
@given(room_steps, st.integers(1000, 2500))
def test_what_was_forgotten_is_not_subtracted(steps: list[tuple[int, str]], most: int) -> None:
    keyframes = [keyframe_of(i, round_walk(i), [CRATE] if i % 5 < 2 else [], camera=SMALL) for i in range(8)]
    voxels, inside = VoxelMap(config(max_voxels=most)), {}
    for i, what in [*((i, "toggle") for i in range(5)), *steps]:
        if i in inside and what == "toggle":
            voxels.remove(inside.pop(i))
        else:  # one that is there moves
            voxels.add(keyframes[i])
            inside[i] = keyframes[i]
        if what == "move":
            keyframes[i].T_world_camera = keyframes[i].T_world_camera @ se3.exp(np.array([0.3, 0, -0.2, 0, 0.1, 0]))
        assert len(voxels) <= most
        assert_sound(voxels, inside)
    voxels.set_config(config(max_voxels=10**6))
    for keyframe in inside.values():
        voxels.add(keyframe)
        assert_sound(voxels, inside)
        assert keyframe.id in voxels
    assert_same(voxels.cloud(), mapped(list(inside.values())).cloud())


@quick
@given(seeds(), st.integers(0, 4000))
def test_a_limited_cloud_takes_the_same_share_everywhere(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    voxels = VoxelMap(config())
    for i in range(3):
        voxels.add(make_keyframe(i, random_pose(rng, 4.0), camera=SMALL, seed=seed))
    everything, limited = voxels.cloud(), voxels.cloud(most)
    assert len(limited) == min(most, len(everything))
    known = {p.tobytes() for p in everything.points}
    assert all(p.tobytes() in known for p in limited.points)
    share = len(limited) / len(everything)
    for block in np.unique(_blocks(everything), axis=0):
        there = [np.count_nonzero((_blocks(c) == block).all(axis=1)) for c in (everything, limited)]
        assert abs(there[1] - share * there[0]) < 1


def _blocks(cloud: Cloud) -> np.ndarray:
    return np.floor(cloud.points.astype(float) / (BLOCK_EDGE * VOXEL)).astype(int)


def test_a_limited_cloud_is_spread_over_each_block() -> None:
    """No hole in it is much larger than it must be."""
    cloud = mapped([keyframe_of(0, look(0, 0, 0))]).cloud(1 << 30)
    limited = mapped([keyframe_of(0, look(0, 0, 0))]).cloud(len(cloud) // 10)
    gap, _ = cKDTree(limited.points).query(cloud.points)
    assert np.percentile(gap, 99) < 4.5 * VOXEL, "sown at random it would be 3.8"


# --- blocks


@settings(quick, max_examples=15)
@given(room_steps, st.integers(0, 4))
def test_who_takes_over_what_has_changed_has_the_map(steps: list[tuple[int, str]], every: int) -> None:
    keyframes = [keyframe_of(i, round_walk(i), [CRATE] if i % 5 < 2 else [], camera=SMALL) for i in range(8)]
    voxels, inside = VoxelMap(config(max_voxels=2000)), set[int]()
    mirror: dict[tuple[int, int, int], Cloud] = {}
    taken = 0
    for count, (i, _) in enumerate(steps):
        (voxels.remove if i in inside else voxels.add)(keyframes[i])
        inside ^= {i}
        if count % (every + 1) == 0:
            mirror |= voxels.changed_since(taken)
            taken = voxels.version
            assert voxels.changed_since(taken) == {}
            points = [c.points for c in mirror.values() if len(c)]
            theirs = np.concatenate(points or [np.zeros((0, 3), np.float32)])
            np.testing.assert_array_equal(np.sort(theirs, axis=0), np.sort(voxels.cloud().points, axis=0))


def test_only_what_has_changed_is_derived_again(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = mapped([in_room(i, i) for i in range(4)])
    derived: list[int] = []
    original = VoxelMap._derived
    monkeypatch.setattr(VoxelMap, "_derived", lambda self, rows: derived.append(1) or original(self, rows))
    voxels.cloud()
    blocks = len(derived)
    assert blocks == len(voxels._table.blocks) == len(voxels.changed_since(0))
    voxels.cloud()
    voxels.cloud(100)
    assert len(derived) == blocks
    version = voxels.version
    voxels.add(in_room(4, 0))
    voxels.cloud()
    assert 0 < len(derived) - blocks == len(voxels.changed_since(version)) <= blocks / 2
    for x, _, _ in voxels.changed_since(version):
        assert -4 <= x * BLOCK_EDGE * VOXEL <= 4


def test_a_given_cloud_does_not_change_later() -> None:
    keyframe = keyframe_of(0, look(0, 0, 0))
    voxels = mapped([keyframe])
    cloud = voxels.cloud()
    points = cloud.points.copy()
    cloud.points[:] = 7
    np.testing.assert_array_equal(voxels.cloud().points, points)


# --- normals


@quick
@given(seeds())
def test_normals_of_a_plane(seed: int) -> None:
    rng = np.random.default_rng(seed)
    facing = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), -1.0])
    facing /= np.linalg.norm(facing)
    depth = (-2.0 / (SMALL.rays().astype(np.float64) @ facing)).astype(np.float32)
    depth[(depth <= 0) | (depth > 20)] = np.nan
    found = normals.of_depth(depth, SMALL)
    known = found[..., 2] != 0
    np.testing.assert_allclose(found[known], np.broadcast_to(facing, found[known].shape), atol=2e-3)
    if facing[2] < -0.95:
        assert known[2:-2, 2:-2].all()


def test_there_are_no_normals_at_edges_and_holes() -> None:
    depth = np.full((24, 32), 2.0, np.float32)
    depth[:, 16:] = 3.0
    depth[8:14, 4:10] = np.nan
    known = (normals.of_depth(depth, SMALL) != 0).any(axis=-1)
    assert not known[:, 15:17].any() and not known[10:12, 6:8].any()
    assert known[2:-2, 20:-2].all()
    depth[12, 25] = np.nan
    assert (normals.of_depth(depth, SMALL)[12, 24] == [0, 0, -1]).all(), "a pixel missing does no harm"


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_normals_of_the_map_look_back_at_the_camera(scale: float, tmp_path: Path) -> None:
    pose = se3.make(look(0, 0, 0.2)[:3, :3], [0, 0, 0], scale)
    cloud = mapped([keyframe_of(0, pose @ se3.make(np.eye(3), [0, 0, 0], 1 / scale))]).cloud()
    assert cloud.normals is not None
    length = np.linalg.norm(cloud.normals, axis=1)
    known = length > 0
    assert known.mean() > 0.9
    np.testing.assert_allclose(length[known], 1, atol=1e-5)
    assert np.einsum("ij,ij->i", cloud.normals, cloud.points)[known].max() < 0
    ahead = np.abs(cloud.points[:, 2] - 4) < 0.01
    np.testing.assert_allclose(np.median(cloud.normals[ahead], axis=0), [0, 0, -1], atol=0.02)
    write_ply(tmp_path / "map.ply", cloud)
    assert_same(read_ply(tmp_path / "map.ply"), cloud)
    o3d = pytest.importorskip("open3d")
    back = o3d.t.io.read_point_cloud(str(tmp_path / "map.ply"))
    np.testing.assert_array_equal(back.point.normals.numpy(), cloud.normals)
    np.testing.assert_array_equal(back.point.colors.numpy(), cloud.colours)


def test_normals_must_fit_their_points() -> None:
    with pytest.raises(ValueError, match="normals"):
        Cloud(np.zeros((2, 3)), np.zeros((2, 3), np.uint8), np.zeros(2), np.zeros((1, 3)))
