# SPDX-License-Identifier: Apache-2.0
"""Which way is down: a map that begins level and stays so, and a robot's map that stands upright."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from driven_graph import driven
from helpers import quick, random_pose, random_rotation, seeds
from hypothesis import given
from revisits import turning
from saved_maps import made_up, save
from scipy.spatial.transform import Rotation
from textured_room import CAMERA, TexturedRoom

from recon_ros import Config, Frame, Reconstructor
from recon_ros.config import updated
from recon_ros.errors import InputError
from recon_ros.geometry import gravity, se3
from recon_ros.geometry.gravity import DOWN
from recon_ros.mapping.folder import read_map
from recon_ros.mapping.map_data import other_mount
from recon_ros.mapping.pose_graph import Edge, PoseGraph, optimise

OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""A camera that looks ahead along the x axis of its base."""


def tilt(poses: Any, down: Any) -> np.ndarray:
    """Angles between what poses say is down and what is, radians."""
    said = [T[:3, :3] / se3.scale_of(T) @ d for T, d in zip(poses, down, strict=True)]
    return np.arccos(np.clip(np.array(said) @ DOWN, -1, 1))


# --- geometry


@quick
@given(seeds())
def test_a_level_frame_has_gravity_along_y_and_looks_where_the_camera_does(seed: int) -> None:
    R_true = random_rotation(np.random.default_rng(seed), np.pi)  # of a level world
    R = gravity.level(R_true.T @ DOWN)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(R @ R_true.T @ DOWN, DOWN, atol=1e-12)
    assert np.linalg.det(R) > 0
    ahead = R[:, 2]  # the optical axis
    if abs(ahead[1]) < gravity.PLUMB:
        assert ahead[2] > 0 and abs(ahead[0]) < 1e-9
    else:
        assert abs(R[0, 1]) < 0.3, "the image's up is ahead"


@pytest.mark.parametrize("down", [(0, 0, 1.0), (0, 0, -1.0)])
def test_a_camera_that_looks_down_or_up_has_a_level_frame(down: tuple[float, float, float]) -> None:
    R = gravity.level(np.array(down))
    np.testing.assert_allclose(R @ down, DOWN, atol=1e-12)
    assert abs(R[2, 1]) == 1, "the top of the image when it looks down, its bottom when it looks up"


@quick
@given(seeds())
def test_the_smallest_rotation_makes_poses_upright(seed: int) -> None:
    rng = np.random.default_rng(seed)
    poses = np.stack([random_pose(rng) for _ in range(4)])
    poses[3, :3, :3] *= 2.0
    down = rng.normal(size=(4, 3))
    down /= np.linalg.norm(down, axis=1, keepdims=True)
    turns = gravity.towards_down(poses, down)
    upright = poses.copy()
    upright[:, :3, :3] = turns @ poses[:, :3, :3]
    assert tilt(upright, down).max() < 1e-6
    np.testing.assert_allclose(np.linalg.norm(Rotation.from_matrix(turns).as_rotvec(), axis=1), tilt(poses, down))
    heading = gravity.heading(turns[0])
    np.testing.assert_allclose(heading @ DOWN, DOWN, atol=1e-12)


def test_upside_down_is_turned_over() -> None:
    (turn,) = gravity.towards_down(np.eye(4)[None], -DOWN[None])
    np.testing.assert_allclose(turn @ -DOWN, DOWN, atol=1e-12)


# --- the graph


def tilted(scale_drifts: bool, loops: bool = True) -> tuple[PoseGraph, list[np.ndarray], np.ndarray]:
    """Two laps that also roll by 2° in 10 m; their graph with noisy gravity, the truth, and gravity without noise."""
    rng = np.random.default_rng(0)
    world = driven(scale_drifts) if loops else driven(scale_drifts, ())
    graph, pose = PoseGraph(scale_drifts), world.truth[0]
    down = np.stack([T[:3, :3].T @ DOWN for T in world.truth])
    edges = list(world.graph.edges.values())
    roll = se3.exp(np.array([0, 0, 0, 0, 0, np.radians(2.0) / 20]))
    steps = {e.b: e for e in edges if e.kind == "odometry"}
    noisy = down + rng.normal(0, 0.01, down.shape)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    for i in range(len(world.truth)):
        if i:
            pose = pose @ steps[i].T_a_b @ roll
        graph.add_node(i, pose, noisy[i] if i % 2 == 0 else None)
    for edge in edges:
        drift = np.linalg.matrix_power(roll, edge.b - edge.a) if edge.kind != "loop" else np.eye(4)
        graph.add_edge(replace(edge, T_a_b=edge.T_a_b @ drift))
    return graph, list(world.truth), down


@pytest.mark.parametrize("scale_drifts", [False, True], ids=["SE3", "Sim3"])
@pytest.mark.parametrize("loops", [False, True], ids=["no loops", "loops"])
def test_gravity_takes_the_tilt_out_of_a_graph(scale_drifts: bool, loops: bool) -> None:
    graph, truth, down = tilted(scale_drifts, loops)
    assert tilt(graph.nodes.values(), down).max() > np.radians(4)
    problem = graph.snapshot()
    solution = optimise(problem)
    assert tilt(solution.matrices, down).max() < np.radians(1.3), "where noise is 0.6°"
    blind = optimise(replace(problem, gravity=np.full_like(problem.gravity, np.nan)))
    assert tilt(blind.matrices, down).max() > 3 * tilt(solution.matrices, down).max()
    np.testing.assert_allclose(solution.matrices[0, :3, 3], truth[0][:3, 3], atol=1e-9)
    turned = gravity.heading(solution.matrices[0, :3, :3] @ truth[0][:3, :3].T)
    np.testing.assert_allclose(turned, np.eye(3), atol=1e-4)
    again = optimise(problem)
    np.testing.assert_array_equal(again.matrices, solution.matrices)


@pytest.mark.parametrize("scale_drifts", [False, True], ids=["SE3", "Sim3"])
def test_a_graph_whose_oldest_node_is_tilted_is_put_upright_as_a_whole(scale_drifts: bool) -> None:
    """Nothing but gravity has a say in its tilt; its place stays, and so does where it heads."""
    truth = [se3.make(se3.exp([0, 0, 0, 0, 0.4 * i, 0])[:3, :3], [1.0 + i, 0.5, 2.0]) for i in range(3)]
    lean = se3.exp(np.array([0, 0, 0, np.radians(5.0), 0, 0]))[:3, :3]
    about = se3.make(lean, truth[0][:3, 3] - lean @ truth[0][:3, 3])
    graph = PoseGraph(scale_drifts)
    for i, T in enumerate(truth):
        graph.add_node(i, about @ T, T[:3, :3].T @ DOWN)
        if i:
            graph.add_edge(Edge(i - 1, i, se3.inverse(truth[i - 1]) @ T, np.eye(6) * 1e4))
    for solved, T in zip(optimise(graph.snapshot()).matrices, truth, strict=True):
        np.testing.assert_allclose(solved, T, atol=1e-3)


def test_gravity_says_nothing_of_heading_place_and_scale() -> None:
    rng = np.random.default_rng(1)
    T = [se3.make(gravity.level(DOWN), np.zeros(3)), se3.make(se3.exp([0, 0, 0, 0, 2.0, 0])[:3, :3], [3, 0, 1], 1.3)]
    graph = PoseGraph(True)
    for i, pose in enumerate(T):
        graph.add_node(i, pose, pose[:3, :3].T @ DOWN / se3.scale_of(pose))
    graph.add_edge(Edge(0, 1, se3.inverse(T[0]) @ T[1], np.eye(6) * rng.uniform(1, 2)))
    for pose, solved in zip(T, optimise(graph.snapshot()).matrices, strict=True):
        np.testing.assert_allclose(solved, pose, atol=1e-6)


def test_what_is_no_direction_is_refused() -> None:
    graph = PoseGraph(False)
    for wrong in (np.array([0, 2.0, 0]), np.array([np.nan, 0, 1]), np.array([0.0, 1.0])):
        with pytest.raises(InputError, match="gravity of node 3"):
            graph.add_node(3, np.eye(4), wrong)
        with pytest.raises(InputError, match="gravity"):
            Frame(0, np.zeros((4, 4, 3), np.uint8), gravity=wrong)


def test_a_graph_is_saved_with_its_gravity(tmp_path: Any) -> None:
    data = made_up()
    assert np.isfinite(data.graph.gravity).any() and np.isnan(data.graph.gravity).any()
    back = PoseGraph.restored(read_map(save(data, tmp_path / "map")).graph).snapshot()
    np.testing.assert_array_equal(back.gravity, data.graph.gravity)


# --- the map

ROOM = TexturedRoom()
T_LEVEL_FIRST = se3.exp(np.array([0, 0, 0, 0.25, 0, 0.1]))
"""The first camera looks 14° up and is rolled."""


def frame(step: int, down: bool = True) -> Frame:
    T_room_camera = turning(step, 48)
    image, depth = ROOM.render(T_room_camera)
    up = T_LEVEL_FIRST @ se3.inverse(turning(0, 48)) @ T_room_camera
    known = up[:3, :3].T @ DOWN if down else None
    return Frame(10**9 + step * 10**8, image, CAMERA, depth, gravity=known)


def run(count: int = 3, **options: object) -> Reconstructor:
    r = Reconstructor(updated(Config(), {"tracking.features": 800, **options}))
    for step in range(count):
        r.process(frame(step))
    return r


def test_a_map_begins_level_where_its_first_frame_knows_how() -> None:
    r, bent = run(), run(**{"map.level": False})
    down = [frame(step).gravity for step in range(3)]
    assert tilt(r.trajectory().poses, down).max() < np.radians(0.3)
    np.testing.assert_array_equal(bent.trajectory().poses[0], np.eye(4))
    first = r.trajectory().poses[0]
    np.testing.assert_allclose(first @ bent.trajectory().poses, r.trajectory().poses, atol=2e-3)
    assert r.state_of_map().is_level and not bent.state_of_map().is_level
    assert np.isfinite(r.state_of_map().graph.gravity).all()
    assert np.isnan(bent.state_of_map().graph.gravity).all(), "in a world that is not level nobody knows what is down"


def test_gravity_that_comes_late_leaves_the_map_as_it_is() -> None:
    r = Reconstructor(updated(Config(), {"tracking.features": 800}))
    r.process(frame(0, down=False))
    r.process(frame(1))
    assert not r.state_of_map().is_level
    np.testing.assert_array_equal(r.trajectory().poses[0], np.eye(4))


def test_a_map_stays_level_without_any_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gtsam", reason="needs gtsam")
    make = Reconstructor._keyframe

    def rolling(self: Reconstructor, view: Any, frame: Any, T_world_camera: np.ndarray) -> Any:
        roll = se3.exp(np.array([0, 0, 0, 0, 0, np.radians(0.4)])) if len(self.keyframes) else np.eye(4)
        return make(self, view, frame, T_world_camera @ roll)

    monkeypatch.setattr(Reconstructor, "_keyframe", rolling)
    monkeypatch.setattr("recon_ros.mapping.atlas.PLUMB_EVERY", 4)
    options = {"memory.min_overlap": 0.95, "memory.min_rotation": 0.05, "tracking.surface_sigma": 0.0}
    r, bent = run(14, **options), run(14, **options, **{"map.level": False})
    down = [frame(step).gravity for step in range(14)]
    with_level, without = tilt(r.trajectory().poses, down), bent.trajectory().poses
    assert len(r.keyframes) >= 8
    assert with_level.max() < np.radians(1.2) < tilt(T_LEVEL_FIRST @ without, down).max()


def test_a_robots_map_stands_upright() -> None:
    """The base is level; the camera on it looks up a bit and to the left."""
    T_base_level = se3.make(Rotation.from_euler("z", 0.7).as_matrix() @ OPTICAL, [0.2, 0.1, 0.5])
    T_base_camera = T_base_level @ T_LEVEL_FIRST
    r, bent = run(), run(**{"map.level": False})
    for each in (r, bent):
        T_map_base = each.map_from_world(T_base_camera) @ each.trajectory().poses @ se3.inverse(T_base_camera)
        np.testing.assert_allclose(T_map_base[0], np.eye(4), atol=1e-9)
    # The base stands on a ramp instead, which only gravity can tell.
    ramp = se3.make(Rotation.from_euler("y", -0.1).as_matrix(), np.zeros(3))
    T_base_camera = se3.inverse(ramp) @ T_base_camera
    T_map_base = r.map_from_world(T_base_camera) @ r.trajectory().poses[0] @ se3.inverse(T_base_camera)
    moved, turned = se3.distance(se3.inverse(ramp) @ T_map_base)
    assert turned < 0.02 and moved < 0.1
    T_map_base = bent.map_from_world(T_base_camera) @ bent.trajectory().poses[0] @ se3.inverse(T_base_camera)
    np.testing.assert_allclose(T_map_base, np.eye(4), atol=1e-9)


def test_a_map_remembers_where_the_camera_was(tmp_path: Any) -> None:
    mount = se3.make(OPTICAL, [0.1, 0.0, 0.3])
    folder = save(run().state_of_map(mount), tmp_path / "map")
    r = Reconstructor(updated(Config(), {"tracking.features": 800, "map.load": str(folder)}))
    assert r.other_mount(mount) is None
    elsewhere = mount @ se3.exp(np.array([0, 0.05, 0, 0.1, 0, 0]))
    said = r.other_mount(elsewhere)
    assert said is not None and "5 cm and 5.7°" in said
    np.testing.assert_array_equal(r.map_from_world(elsewhere), r.map_from_world(mount))
    np.testing.assert_array_equal(r.state_of_map(elsewhere).T_base_camera, mount)
    assert other_mount(None, mount) is None and run().other_mount(mount) is None
