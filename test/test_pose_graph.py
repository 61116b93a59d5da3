# SPDX-License-Identifier: Apache-2.0
"""The pose graph: closing laps, false loops, gauges, and what a solution is made of."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from driven_graph import LAP, LOOP_NOISE, LOOPS, driven, solved
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recon_ros.errors import ConfigError, InputError
from recon_ros.geometry import se3
from recon_ros.mapping import pose_graph_algebra as algebra
from recon_ros.mapping.pose_graph import Drift, Edge, PoseGraph, optimise, would_be_consistent

pytest.importorskip("gtsam")


both_groups = pytest.mark.parametrize("scale_drifts", [False, True], ids=["SE3", "Sim3"])


@both_groups
def test_two_laps_of_150_m_close(scale_drifts: bool) -> None:
    world, solution = driven(scale_drifts), solved(scale_drifts)
    before, after = world.errors(dict(world.graph.nodes)), world.errors(solution.poses)
    assert before[-1] > 1.0
    assert after[-1] < before[-1] / 10
    assert after.max() < before.max() / 5
    assert solution.rejected == ()
    assert solution.error_after < solution.error_before / 10
    assert solution.iterations > 0
    np.testing.assert_array_equal(solution.poses[0], world.truth[0])


@both_groups
def test_a_place_seen_twice_is_in_one_place(scale_drifts: bool) -> None:
    world, solution = driven(scale_drifts), solved(scale_drifts)
    apart = [
        np.linalg.norm(
            (se3.inverse(solution.poses[b - LAP]) @ solution.poses[b])[:3, 3]
            - (se3.inverse(world.truth[b - LAP]) @ world.truth[b])[:3, 3]
        )
        for b in range(LAP, LOOPS[-1])
    ]
    assert max(apart) < 0.07, "up to seven metres from the next loop"


def test_scales_are_found_back() -> None:
    world, solution = driven(True), solved(True)
    assert se3.scale_of(world.graph.nodes[LOOPS[-1]]) > 1.1
    scales = [se3.scale_of(solution.poses[i]) for i in (LOOPS[-1] - LAP, LOOPS[-1])]
    assert abs(scales[1] / scales[0] - 1) < 0.01


FALSE = {
    "next aisle": (40, 190, [0, 0, 2.5, 0, 0, 0]),
    "wrong place": (20, 200, [0, 0, -10.0, 0, 1.0, 0]),
    "half a metre": (43, 193, [0.5, 0, 0, 0, 0, 0]),
    "seen from behind": (60, 215, [0, 0, 0, 0, np.pi, 0]),
}


@both_groups
@pytest.mark.parametrize("case", FALSE)
def test_one_false_loop_among_ten_does_not_bend_the_map(scale_drifts: bool, case: str) -> None:
    a, b, shift = FALSE[case]
    world = driven(scale_drifts)
    assert len(world.loops) == 10
    false = world.add_loop(a, b, np.array(shift))
    solution = optimise(world.graph.snapshot())
    assert solution.rejected == (false,)
    assert solution.weights[false] == 0
    assert solution.chi2[false] > 100
    assert world.errors(solution.poses).max() <= 2 * world.errors(solved(scale_drifts).poses).max()


def test_an_early_false_loop_is_outvoted_later() -> None:
    world = driven(False, ())
    false = world.add_loop(10, 160, np.array([0, 0, 1.5, 0, 0, 0]))
    assert optimise(world.graph.snapshot()).rejected == (), "nothing contradicts it yet"
    world.add_loop(5, 155, np.zeros(6))
    world.add_loop(15, 165, np.zeros(6))
    assert optimise(world.graph.snapshot()).rejected == (false,)


def test_false_loops_in_a_row_have_one_vote() -> None:
    world = driven(False)
    false = [world.add_loop(40 + i, 190 + i, np.array([0, 0, 2.5, 0, 0, 0])) for i in range(5)]
    assert optimise(world.graph.snapshot()).rejected == tuple(false)


def test_loops_that_agree_are_believed_against_tracking() -> None:
    """Where tracking itself took a wrong turn, drift does not explain what all loops say."""
    world = driven(False, ())
    wrong = next(i for i, edge in world.graph.edges.items() if (edge.a, edge.b) == (150, 151))
    jump = se3.exp(np.array([5.0, 0, 0, 0, 1, 0]))
    broken = replace(world.graph.edges[wrong], T_a_b=world.graph.edges[wrong].T_a_b @ jump)
    world.graph.remove_edge(wrong)
    world.graph.add_edge(broken)
    for edge_id, edge in list(world.graph.edges.items()):
        if edge.kind == "covisible":
            world.graph.remove_edge(edge_id)
    single = world.add_loop(20, 170, np.zeros(6))
    assert optimise(world.graph.snapshot()).rejected == (single,)
    for at in (24, 28, 32):
        world.add_loop(at, at + LAP, np.zeros(6))
    assert optimise(world.graph.snapshot()).rejected == ()


@both_groups
def test_whether_a_loop_would_be_consistent(scale_drifts: bool) -> None:
    world = driven(scale_drifts)
    problem = world.graph.snapshot()
    T = se3.inverse(world.truth[40]) @ world.truth[190]
    true = would_be_consistent(problem, Edge(40, 190, T, np.diag(LOOP_NOISE**-2), "loop"))
    assert true.consistent and true.supporters >= 2 and true.opponents == 0 and true.chi2 < true.limit
    shifted = T @ se3.exp(np.array([0, 0, 2.5, 0, 0, 0]))
    false = would_be_consistent(problem, Edge(40, 190, shifted, np.diag(LOOP_NOISE**-2), "loop"))
    assert not false.consistent and false.opponents >= 2
    assert false.chi2 < false.limit, "drift alone could explain it, only other loops show that it is false"
    far = would_be_consistent(driven(scale_drifts, ()).graph.snapshot(), Edge(0, 120, np.eye(4), np.eye(6), "loop"))
    assert not far.consistent and far.chi2 > far.limit
    assert len(problem.edges) == len(world.graph.edges), "asking changes nothing"


def test_an_inaccurate_loop_loses_weight() -> None:
    world = driven(False, LOOPS + (210, 225))
    loose = world.add_loop(60, 210, np.array([0.1, 0, 0, 0, 0, 0]))
    solution = optimise(world.graph.snapshot())
    assert solution.weights[loose] < 0.3
    assert np.median([solution.weights[i] for i in world.loops]) > 0.5
    assert {solution.weights[i] for i, e in world.graph.edges.items() if e.kind != "loop"} == {1.0}


twist = st.lists(st.floats(-1, 1), min_size=7, max_size=7).map(np.array)


@settings(max_examples=20, deadline=None)
@given(st.booleans(), st.lists(twist, min_size=4, max_size=8), st.integers(0, 2**32 - 1))
def test_exact_edges_give_the_exact_poses(scale_drifts: bool, steps: list[NDArray[np.float64]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = [np.eye(4)]
    for step in steps:
        truth.append(truth[-1] @ algebra.retract(step * np.array([1, 1, 1, 0.5, 0.5, 0.5, 0.2 * scale_drifts])))
    graph = PoseGraph(scale_drifts)
    for i, pose in enumerate(truth):
        off = rng.normal(0, 0.1, 7) * (i > 0) * np.array([1, 1, 1, 1, 1, 1, scale_drifts])
        graph.add_node(10 * i, pose @ algebra.retract(off))
    pairs = [(i, i + 1) for i in range(len(steps))] + [(0, len(steps)), (1, 3), (3, 0)]
    for k, (a, b) in enumerate(pairs):
        A = rng.normal(0, 10, (6, 6))
        kind = "loop" if k >= len(steps) else "odometry"
        graph.add_edge(Edge(10 * a, 10 * b, se3.inverse(truth[a]) @ truth[b], A @ A.T + np.eye(6), kind))
    solution = optimise(graph.snapshot())
    assert solution.rejected == ()
    for i, pose in enumerate(truth):
        np.testing.assert_allclose(solution.poses[10 * i], pose, atol=1e-5)


def test_information_is_of_right_perturbations_translation_first() -> None:
    """A loop that is sure of x (in b's frame) and of nothing else moves b along its x only."""
    graph = PoseGraph(False, Drift(0, 0, 0))
    T = se3.exp(np.array([1.0, 2, 3, 0.4, -0.8, 1.1]))
    graph.add_node(0, np.eye(4))
    graph.add_node(1, T)
    graph.add_edge(Edge(0, 1, T, np.eye(6)))
    shift = np.array([0.02, 0.05, -0.03, 0.01, 0.02, 0.03])
    graph.add_edge(Edge(0, 1, T @ se3.exp(shift), np.diag([1e6, 0, 0, 0, 0, 0]), "loop"))
    moved = se3.log(se3.inverse(T) @ optimise(graph.snapshot()).poses[1])
    np.testing.assert_allclose(moved, [0.02, 0, 0, 0, 0, 0], atol=1e-3)


@both_groups
def test_same_bytes_twice(scale_drifts: bool) -> None:
    first, second = solved(scale_drifts), optimise(driven(scale_drifts).graph.snapshot())
    for name in ("ids", "matrices", "edge_ids", "distances", "robust_weights"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name
    assert (first.error_before, first.error_after) == (second.error_before, second.error_after)


def test_empty_and_single_node_graphs() -> None:
    graph = PoseGraph(True)
    assert optimise(graph.snapshot()).poses == {}
    assert graph.components() == []
    pose = se3.make(np.eye(3), np.array([1.0, 2, 3]), 1.5)
    graph.add_node(7, pose)
    np.testing.assert_array_equal(optimise(graph.snapshot()).poses[7], pose)
    assert graph.components() == [{7}]
    graph.remove_node(7)
    assert graph.components() == [] and not graph.edges


def two_islands(scale_drifts: bool) -> tuple[PoseGraph, list[NDArray[np.float64]]]:
    """Nodes 0–3 and 4–7, driven along the same way; what is known of the second stands elsewhere."""
    truth = [se3.exp(np.array([0, 0, 0.5 * i, 0, 0.1 * i, 0])) for i in range(8)]
    elsewhere = se3.exp(np.array([30.0, 0, -20, 0, 2.5, 0]))
    graph = PoseGraph(scale_drifts)
    for i, pose in enumerate(truth):
        off = se3.exp(np.array([0.01, 0, 0, 0, 0.02, 0]) * (i % 4 > 0))
        graph.add_node(i, (elsewhere @ pose if i >= 4 else pose) @ off)
    for i in (0, 1, 2, 4, 5, 6):
        graph.add_edge(Edge(i, i + 1, se3.inverse(truth[i]) @ truth[i + 1], 1e4 * np.eye(6)))
    return graph, truth


@both_groups
def test_each_component_keeps_its_oldest_node(scale_drifts: bool) -> None:
    graph, truth = two_islands(scale_drifts)
    assert graph.components() == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    solution = optimise(graph.snapshot())
    for oldest, members in ((0, range(4)), (4, range(4, 8))):
        np.testing.assert_array_equal(solution.poses[oldest], graph.nodes[oldest])
        for i in members:
            relative = se3.inverse(solution.poses[oldest]) @ solution.poses[i]
            np.testing.assert_allclose(relative, se3.inverse(truth[oldest]) @ truth[i], atol=1e-6)


@both_groups
def test_a_loop_joins_components(scale_drifts: bool) -> None:
    graph, truth = two_islands(scale_drifts)
    graph.add_edge(Edge(6, 2, se3.inverse(truth[6]) @ truth[2], 1e4 * np.eye(6), "loop"))
    assert graph.components() == [set(range(8))]
    solution = optimise(graph.snapshot())
    for i, pose in enumerate(truth):
        np.testing.assert_allclose(solution.poses[i], pose, atol=1e-6)


def test_snapshot_is_frozen_and_the_graph_goes_on() -> None:
    world = driven(False)
    problem = world.graph.snapshot()
    with pytest.raises(ValueError):
        problem.poses[0, 0, 3] = 1.0
    with pytest.raises(ValueError):
        problem.edges["T_a_b"][0] = 0.0
    before = dict(world.graph.nodes)
    world.graph.add_node(301, before[300])
    world.graph.add_node(302, before[300] @ se3.exp(np.array([0, 0, 1.0, 0, 0, 0])))
    world.graph.add_edge(Edge(300, 302, se3.exp(np.array([0, 0, 1.0, 0, 0, 0])), np.eye(6)))
    world.graph.remove_node(17)
    solution = optimise(problem)
    poses = world.graph.apply(solution)
    assert poses.keys() == world.graph.nodes.keys()
    assert 17 not in poses
    np.testing.assert_array_equal(poses[300], solution.poses[300])
    np.testing.assert_allclose(
        se3.inverse(poses[300]) @ poses[302],
        se3.exp(np.array([0, 0, 1.0, 0, 0, 0])),
        atol=1e-9,
    )
    np.testing.assert_array_equal(poses[301], before[300], "tied to nothing, it stays")


def test_restored_graph_is_the_same() -> None:
    world = driven(True)
    world.graph.remove_node(20)
    problem = world.graph.snapshot()
    again = PoseGraph.restored(problem).snapshot()
    np.testing.assert_array_equal(again.edges, problem.edges)
    np.testing.assert_array_equal(again.poses, problem.poses)


T = se3.exp(np.array([0, 0, 1.0, 0, 0, 0]))
BAD_EDGES = {
    "unknown node": Edge(0, 5, T, np.eye(6)),
    "one node": Edge(1, 1, T, np.eye(6)),
    "scale in SE(3)": Edge(0, 1, se3.make(np.eye(3), np.zeros(3), 1.1), np.eye(6)),
    "NaN pose": Edge(0, 1, T * np.nan, np.eye(6)),
    "reflection": Edge(0, 1, np.diag([1.0, 1, -1, 1]), np.eye(6)),
    "NaN information": Edge(0, 1, T, np.full((6, 6), np.nan)),
    "asymmetric information": Edge(0, 1, T, np.eye(6) + np.triu(np.ones((6, 6)), 1)),
    "negative information": Edge(0, 1, T, -np.eye(6)),
    "wrong shape": Edge(0, 1, T, np.eye(3)),
    "no scale sigma": Edge(0, 1, T, np.eye(6), log_scale_sigma=0.0),
    "unknown kind": Edge(0, 1, T, np.eye(6), "guess"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD_EDGES)
def test_bad_edges_are_told_and_change_nothing(case: str) -> None:
    graph = PoseGraph(False)
    graph.add_node(0, np.eye(4))
    graph.add_node(1, T)
    with pytest.raises(InputError, match="edge"):
        graph.add_edge(BAD_EDGES[case])
    assert not graph.edges


def test_bad_nodes_are_told() -> None:
    graph = PoseGraph(False)
    graph.add_node(0, np.eye(4))
    with pytest.raises(InputError, match="in the graph already"):
        graph.add_node(0, np.eye(4))
    with pytest.raises(InputError, match="no SE"):
        graph.add_node(1, 2 * np.eye(4))


def test_edges_without_information_are_survived() -> None:
    graph, truth = two_islands(False)
    graph.add_edge(Edge(3, 4, se3.inverse(truth[3]) @ truth[4], np.zeros((6, 6))))
    poses = optimise(graph.snapshot()).poses
    assert all(np.isfinite(pose).all() for pose in poses.values())


def test_missing_gtsam_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install gtsam"):
        optimise(PoseGraph(False).snapshot())
