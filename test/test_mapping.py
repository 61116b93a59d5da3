# SPDX-License-Identifier: Apache-2.0
"""The map as an exact sum over keyframes, and the path that follows them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from helpers import make_keyframe, quick, random_pose, seeds
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from recon_ros.config import Config, MapConfig, updated
from recon_ros.frame import Cloud, Keyframe
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera
from recon_ros.mapping.fusion import VoxelMap
from recon_ros.mapping.trajectory import TrajectoryLog

SMALL = Camera.from_focal(12, 9, 10.0)


def map_config(**options: float) -> MapConfig:
    return updated(Config(), {"map.voxel_size": 0.2} | {f"map.{name}": v for name, v in options.items()}).map


def random_keyframe(keyframe_id: int, seed: int) -> Keyframe:
    rng = np.random.default_rng((seed, keyframe_id))
    depth = rng.uniform(0.5, 2, (9, 12)).astype(np.float32)
    depth[rng.random((9, 12)) < 0.1] = np.nan
    return make_keyframe(keyframe_id, random_pose(rng, 1.0), camera=SMALL, depth=depth, seed=seed)


def assert_same_bits(a: Cloud, b: Cloud) -> None:
    for name in ("points", "colours", "confidence", "normals"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name


# --- the voxel map


@quick
@given(seeds(), st.lists(st.integers(0, 5), max_size=14), st.randoms(use_true_random=False))
def test_what_was_removed_was_never_there(seed: int, toggles: list[int], random: object) -> None:
    """Keyframes come and go in any order, some moved meanwhile: the map is that of the survivors, bit by bit."""
    keyframes = [random_keyframe(i, seed) for i in range(6)]
    added_at = [k.T_world_camera.copy() for k in keyframes]
    voxels, inside = VoxelMap(map_config()), set[int]()
    for i in toggles:
        if i in inside:
            voxels.remove(keyframes[i])
        else:
            added_at[i] = keyframes[i].T_world_camera.copy()
            voxels.add(keyframes[i])
        inside ^= {i}
        keyframes[i].T_world_camera = se3.exp(np.full(6, 0.1)) @ keyframes[i].T_world_camera
    expected = VoxelMap(map_config())
    survivors = list(inside)
    random.shuffle(survivors)  # type: ignore[attr-defined]
    for i in survivors:
        keyframes[i].T_world_camera = added_at[i]
        expected.add(keyframes[i])
    assert_same_bits(voxels.cloud(), expected.cloud())
    assert len(voxels) == len(expected)
    if not inside:
        assert len(voxels) == 0


def test_a_keyframe_goes_as_it_came_though_the_threshold_has_changed() -> None:
    voxels = VoxelMap(map_config(min_confidence=0.1))
    keyframe = random_keyframe(0, 0)
    voxels.add(keyframe)
    voxels.set_config(map_config(min_confidence=0.7))
    voxels.remove(keyframe)
    assert len(voxels) == 0


def cloud_by_the_book(keyframes: list[Keyframe], config: MapConfig) -> dict[tuple[int, ...], tuple]:
    """Voxel → (mean point, mean colour, mean weight), one point after another; weights are rounded to 1/256."""
    gathered = defaultdict(list)
    for k in keyframes:
        for point, confidence, colour in zip(
            k.points.reshape(-1, 3).astype(float),
            k.confidence.ravel().astype(float),
            k.colour.reshape(-1, 3),
            strict=True,
        ):
            if np.isfinite(point[2]) and confidence >= config.min_confidence:
                world = (k.T_world_camera @ [*point, 1])[:3]
                voxel = tuple(np.floor(world / config.voxel_size).astype(int))
                gathered[voxel].append((world, colour, round(confidence * 256) / 256))
    book = {}
    for voxel, members in gathered.items():
        if len(members) >= config.min_observations:
            weight = np.array([m[2] for m in members])
            point = np.average([m[0] for m in members], axis=0, weights=weight)
            colour = np.average([m[1] for m in members], axis=0, weights=weight)
            book[voxel] = (*point, *colour, weight.mean())
    return book


@quick
@given(seeds(), st.sampled_from([0.02, 0.1, 0.6]), st.integers(1, 3))
def test_the_cloud_is_what_its_definition_says(seed: int, min_confidence: float, min_observations: int) -> None:
    config = map_config(min_confidence=min_confidence, min_observations=min_observations)
    keyframes = [random_keyframe(i, seed) for i in range(3)]
    voxels = VoxelMap(config)
    for keyframe in keyframes:
        voxels.add(keyframe)
    cloud, book = voxels.cloud(), cloud_by_the_book(keyframes, config)
    assert len(cloud) == len(book)
    expected = np.array(list(book.values())).reshape(-1, 7)
    _, found = cKDTree(expected[:, :3]).query(cloud.points)
    assert len(set(found)) == len(book)
    expected = expected[found]
    np.testing.assert_allclose(cloud.points, expected[:, :3], atol=0.2 / 4096)  # of a voxel of 0.2 m
    np.testing.assert_allclose(cloud.colours.astype(float), expected[:, 3:6], atol=0.51)
    np.testing.assert_allclose(cloud.confidence, expected[:, 6], atol=1e-6)


def test_points_are_placed_to_a_fraction_of_a_millimetre() -> None:
    keyframe = make_keyframe(0, se3.make(np.eye(3), [10.0, -20.0, 30.0]), camera=SMALL)
    keyframe.confidence[:] = 1
    voxels = VoxelMap(updated(Config(), {"map.voxel_size": 0.03}).map)
    voxels.add(keyframe)
    expected = keyframe.points.reshape(-1, 3).astype(float) + [10, -20, 30]
    cloud = voxels.cloud()
    assert len(cloud) == len(expected), "the example's points share voxels"
    distance = np.linalg.norm(cloud.points[:, None].astype(float) - expected[None], axis=2).min(axis=1)
    assert distance.max() < 0.03 / 4096 + 4e-6  # float32 at 30 m is 2 µm
    np.testing.assert_array_equal(np.sort(cloud.colours, axis=0), np.sort(keyframe.colour.reshape(-1, 3), axis=0))


def test_a_scaled_keyframe_is_placed_by_its_scale() -> None:
    T = random_pose(np.random.default_rng(0))
    keyframe = make_keyframe(0, se3.make(T[:3, :3], T[:3, 3], 2.0), camera=SMALL)
    keyframe.confidence[:] = 1
    voxels = VoxelMap(map_config())
    voxels.add(keyframe)
    local = se3.transform(se3.inverse(keyframe.T_world_camera), voxels.cloud().points.astype(float))
    assert local[:, 2].min() > 1.9 and local[:, 2].max() < 3.1


def test_the_configured_limit_holds() -> None:
    voxels = VoxelMap(updated(Config(), {"map.voxel_size": 0.02, "map.max_points": 1000}).map)
    for i in range(20):
        voxels.add(random_keyframe(i, 1))
    assert len(voxels) > 1000
    assert len(voxels.cloud()) == 1000


def test_points_without_confidence_stay_out() -> None:
    keyframe = random_keyframe(0, 0)
    keyframe.confidence[:] = 0
    voxels = VoxelMap(map_config(min_confidence=0))
    voxels.add(keyframe)
    assert len(voxels.cloud()) == 0
    keyframe = random_keyframe(1, 0)
    keyframe.points[:] = np.nan
    voxels.add(keyframe)
    assert len(voxels.cloud()) == 0


def test_the_version_tells_of_every_change() -> None:
    voxels, seen = VoxelMap(map_config()), []
    keyframe = random_keyframe(0, 0)
    steps = [
        lambda: None,
        lambda: voxels.add(keyframe),
        lambda: voxels.set_config(map_config(min_observations=2)),
        lambda: voxels.remove(keyframe),
    ]
    for step in steps:
        step()
        seen.append(voxels.version)
        voxels.cloud()
        assert voxels.version == seen[-1]
    assert len(set(seen)) == len(seen)


# --- the path


class Walk:
    """A log filled with poses near a few keyframes."""

    def __init__(self, count: int, max_poses: int, keyframes: int = 5) -> None:
        rng = np.random.default_rng(count)
        self.keyframes = {i: make_keyframe(i, random_pose(rng), camera=SMALL) for i in range(keyframes)}
        self.log = TrajectoryLog(max_poses)
        self.poses = np.stack([random_pose(rng) for _ in range(count)])
        self.stamps = 10**18 + np.arange(count) * 33_333_333
        for i, pose in enumerate(self.poses):
            reference = self.keyframes[i * keyframes // count]
            relative = se3.inverse(reference.T_world_camera) @ pose
            self.log.append(int(self.stamps[i]), reference.id, relative, pose)


def test_the_path_is_what_was_logged() -> None:
    walk = Walk(2500, 5000)  # more than it first has room for
    for trajectory in (walk.log.live(), walk.log.corrected(walk.keyframes)):
        np.testing.assert_array_equal(trajectory.stamps_ns, walk.stamps)
        np.testing.assert_allclose(trajectory.poses, walk.poses, atol=1e-9)
    assert len(walk.log) == 2500


def test_an_empty_path() -> None:
    log = TrajectoryLog(100)
    assert len(log.live()) == len(log.corrected({})) == len(log) == 0


def test_the_path_follows_a_keyframe_that_moves() -> None:
    walk = Walk(50, 1000)
    correction = se3.exp(np.array([1.0, 2.0, -0.5, 0.1, 0.2, 0.3]))
    walk.keyframes[2].T_world_camera = correction @ walk.keyframes[2].T_world_camera
    corrected = walk.log.corrected(walk.keyframes).poses
    moved = np.arange(50) * 5 // 50 == 2
    np.testing.assert_allclose(corrected[moved], correction @ walk.poses[moved], atol=1e-9)
    np.testing.assert_allclose(corrected[~moved], walk.poses[~moved], atol=1e-9)
    np.testing.assert_allclose(walk.log.live().poses, walk.poses, atol=1e-12)


def test_a_keyframe_that_grows_takes_its_poses_along_and_they_stay_rigid() -> None:
    walk = Walk(50, 1000)
    grown = se3.make(se3.exp(np.array([0, 0, 0, 0, 0.4, 0]))[:3, :3], [1.0, 0.0, -2.0], 1.5)
    walk.keyframes[3].T_world_camera = grown @ walk.keyframes[3].T_world_camera
    corrected = walk.log.corrected(walk.keyframes).poses
    moved = np.arange(50) * 5 // 50 == 3
    np.testing.assert_allclose(corrected[moved], se3.rigid(grown @ walk.poses[moved]), atol=1e-9)
    assert all(se3.is_valid(pose) for pose in corrected)


def test_re_anchored_poses_stay_and_then_follow_their_new_keyframe() -> None:
    walk = Walk(50, 1000)
    gone = walk.keyframes.pop(2)
    walk.log.re_anchor(gone, walk.keyframes[4])
    np.testing.assert_allclose(walk.log.corrected(walk.keyframes).poses, walk.poses, atol=1e-9)
    correction = se3.exp(np.array([1.0, 0, 0, 0, 0, 0.5]))
    walk.keyframes[4].T_world_camera = correction @ walk.keyframes[4].T_world_camera
    corrected = walk.log.corrected(walk.keyframes).poses
    follows = np.isin(np.arange(50) * 5 // 50, [2, 4])
    np.testing.assert_allclose(corrected[follows], correction @ walk.poses[follows], atol=1e-9)
    np.testing.assert_allclose(corrected[~follows], walk.poses[~follows], atol=1e-9)


@pytest.mark.parametrize("count", [100, 101, 150, 151, 1000, 3000])
def test_a_bounded_path_is_thinned_where_it_is_old(count: int) -> None:
    walk = Walk(count, 100)
    live, corrected = walk.log.live(), walk.log.corrected(walk.keyframes)
    assert len(live) == len(walk.log) <= 100
    assert len(live) >= min(count, 75)
    np.testing.assert_array_equal(live.stamps_ns, corrected.stamps_ns)
    np.testing.assert_allclose(live.poses, corrected.poses, atol=1e-9)
    kept = np.searchsorted(walk.stamps, live.stamps_ns)
    np.testing.assert_array_equal(walk.stamps[kept], live.stamps_ns)
    np.testing.assert_allclose(live.poses, walk.poses[kept], atol=1e-12)
    assert kept[0] == 0 and kept[-1] == count - 1, "the path has lost an end"
    gaps = np.diff(kept)
    assert (gaps[-25:] == 1).all(), "the newest poses are all there"
    # The 50 to 75 older ones are spread over all of the rest, evenly but for a factor of two either way.
    assert gaps.max() <= max(2, 4 * count / 50), "a hole in the path"


def test_given_trajectories_do_not_change_later() -> None:
    walk = Walk(10, 100)
    live = walk.log.live()
    before = live.poses.copy()
    walk.log.append(1, 0, np.eye(4), np.eye(4))
    live.poses[0] = 0
    np.testing.assert_array_equal(walk.log.live().poses[0], before[0])


def test_rows_of_emptied_voxels_are_used_again() -> None:
    """Eviction for hours takes no more room than the map at its largest."""
    voxels = VoxelMap(Config().map)
    rng = np.random.default_rng(0)
    keyframes = [make_keyframe(i, random_pose(rng, 1.0), camera=SMALL, seed=i) for i in range(6)]
    for keyframe in keyframes[:3]:
        voxels.add(keyframe)
    room = voxels._table.capacity
    for i in range(30):
        voxels.remove(keyframes[i % 3])
        voxels.add(keyframes[i % 3])
    assert voxels._table.capacity == room
    for keyframe in keyframes[:3]:
        voxels.remove(keyframe)
    assert len(voxels) == 0 and not voxels._table.blocks
