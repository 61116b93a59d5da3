# SPDX-License-Identifier: Apache-2.0
"""A pose graph thinned out: what it tied stays tied, the solution stays; and the calculus that does it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from driven_graph import LAP, LOOP_NOISE, NOISE, STEP, driven, solved
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_ros.geometry import se3
from recon_ros.mapping import pose_graph_algebra as algebra
from recon_ros.mapping.pose_graph import Drift, Edge, PoseGraph, optimise
from recon_ros.mapping.pose_graph_problem import compose, fuse, reverse
from recon_ros.mapping.pose_graph_reckoning import DeadReckoning

pytest.importorskip("gtsam")

both_groups = pytest.mark.parametrize("scale_drifts", [False, True], ids=["SE3", "Sim3"])


@both_groups
def test_culling_keeps_the_solution(scale_drifts: bool) -> None:
    world = driven(scale_drifts)
    count = len(world.graph.edges)
    for i in range(300):
        if i % 3:  # nodes with loops among them
            world.graph.remove_node(i)
    assert len(world.graph.components()) == 1
    assert len(world.graph.edges) < count / 2
    solution = optimise(world.graph.snapshot())
    assert solution.rejected == ()
    whole = solved(scale_drifts)
    moved = [np.linalg.norm(pose[:3, 3] - whole.poses[i][:3, 3]) for i, pose in solution.poses.items()]
    assert max(moved) < 0.1
    assert world.errors(solution.poses).max() < 1.2 * world.errors(whole.poses).max()


def test_culling_a_chain_is_exact() -> None:
    rng = np.random.default_rng(2)
    graph = PoseGraph(False, Drift(0, 0, 0))
    step = se3.exp(np.array([0, 0, STEP, 0, 2 * np.pi / 40, 0]))
    pose = np.eye(4)
    graph.add_node(0, pose)
    for i in range(40):
        measured = step @ se3.exp(rng.normal(0, NOISE))
        pose = pose @ measured
        graph.add_node(i + 1, pose)
        graph.add_edge(Edge(i, i + 1, measured, np.diag(NOISE**-2)))
    graph.add_edge(Edge(0, 40, np.eye(4), np.diag(LOOP_NOISE**-2), "loop"))
    whole = optimise(graph.snapshot())
    for i in range(40):
        if i % 5:
            graph.remove_node(i)
    culled = optimise(graph.snapshot())
    assert list(culled.poses) == list(range(0, 41, 5))
    assert se3.distance(se3.inverse(graph.nodes[40]) @ culled.poses[40])[0] > 0.02, "there was something to correct"
    for i, pose in culled.poses.items():
        np.testing.assert_allclose(pose, whole.poses[i], atol=2e-4)


def test_culling_for_long_gathers_no_hub() -> None:
    """Six laps with room for one: degrees stay low, so that removing a node stays cheap."""
    world = driven(False)
    graph = PoseGraph(False)
    information = np.diag(NOISE**-2)
    for k in range(6 * 50):
        pose = world.truth[3 * k % LAP]
        graph.add_node(k, pose)
        for other in [i for i in graph.nodes if i != k and np.linalg.norm(graph.nodes[i][:3, 3] - pose[:3, 3]) < 2.0]:
            kind = "loop" if k - other > 20 else "odometry"
            graph.add_edge(Edge(other, k, se3.inverse(graph.nodes[other]) @ pose, information, kind))
        if len(graph.nodes) > 60:
            graph.remove_node(k - 5)  # the map is there, what comes anew is always the most redundant
    assert max(len(at) for at in graph._at.values()) < 20
    assert len(graph.edges) < 4 * len(graph.nodes)
    assert len(graph.components()) == 1


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_culling_keeps_together_what_was_tied(data: st.DataObject) -> None:
    pairs = data.draw(st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(lambda p: p[0] < p[1])))
    kinds = st.sampled_from(["odometry", "covisible", "loop"])
    truth = [se3.exp(np.array([0.1 * i, 0, i, 0, 0.2 * i, 0])) for i in range(9)]
    graph = PoseGraph(False)
    for i, pose in enumerate(truth):
        graph.add_node(i, pose)
    for a, b in sorted(pairs):
        graph.add_edge(Edge(a, b, se3.inverse(truth[a]) @ truth[b], 1e4 * np.eye(6), data.draw(kinds)))
    for gone in data.draw(st.lists(st.integers(0, 8), unique=True, max_size=8)):
        before, edges = graph.components(), len(graph.edges)
        graph.remove_node(gone)
        assert graph.components() == sorted((c - {gone} for c in before if c != {gone}), key=min)
        assert len(graph.edges) <= edges
    for edge in graph.edges.values():
        np.testing.assert_allclose(edge.T_a_b, se3.inverse(truth[edge.a]) @ truth[edge.b], atol=1e-9)


def test_edges_reversed_composed_and_fused() -> None:
    rng = np.random.default_rng(0)
    A, B = (rng.normal(0, 5, (6, 6)) for _ in range(2))
    first = Edge(0, 1, algebra.retract(rng.normal(0, 0.5, 7)), A @ A.T + np.eye(6), log_scale_sigma=0.1)
    second = Edge(1, 2, algebra.retract(rng.normal(0, 0.5, 7)), B @ B.T + np.eye(6), "loop", log_scale_sigma=0.2)
    twice = reverse(reverse(first))
    np.testing.assert_allclose(twice.T_a_b, first.T_a_b, atol=1e-12)
    assert (reverse(first).a, reverse(first).b) == (1, 0)
    both = compose(first, second)
    assert (both.a, both.b, both.kind) == (0, 2, "loop")
    samples = 5000
    noise = [rng.multivariate_normal(np.zeros(7), 1e-4 * e.covariance, samples) for e in (first, second)]
    moved = (
        np.stack([algebra.retract(x) for x in noise[0]])
        @ second.T_a_b
        @ np.stack([algebra.retract(x) for x in noise[1]])
    )
    sampled = np.cov(algebra.local(se3.inverse(second.T_a_b) @ moved).T) / 1e-4
    np.testing.assert_allclose(both.covariance[:6, :6], sampled[:6, :6], atol=0.1 * np.abs(sampled).max())
    same = fuse(first, first)
    assert same is not None
    np.testing.assert_allclose(same.T_a_b, first.T_a_b, atol=1e-9)
    np.testing.assert_allclose(same.information, 2 * first.information, rtol=1e-3)
    assert fuse(first, replace(first, T_a_b=first.T_a_b @ se3.exp(np.array([50.0, 0, 0, 0, 0, 0])))) is None


def test_dead_reckoning_adds_up_along_the_shortest_way() -> None:
    """A tree with branches: poses, ways and covariances against sums done by hand."""
    rng = np.random.default_rng(1)
    ties = [(0, 1), (1, 2), (1, 3), (4, 3), (2, 5), (6, 5), (7, 8)]
    graph = PoseGraph(True, Drift(0, 0, 0))
    for i in range(9):
        graph.add_node(i, np.eye(4))
    for a, b in ties:
        graph.add_edge(Edge(a, b, algebra.retract(rng.normal(0, 0.3, 7)), 100 * np.eye(6), travelled=1.0))
    graph.add_edge(Edge(0, 6, np.eye(4), np.eye(6), travelled=100.0))  # too long a way
    track = DeadReckoning(graph.snapshot())
    edges = list(graph.edges.values())
    T_3_4 = se3.inverse(edges[3].T_a_b)
    np.testing.assert_allclose(track.T_root[4], edges[0].T_a_b @ edges[2].T_a_b @ T_3_4, atol=1e-12)
    one = np.array([0, 4, 2, 6, 4, 7, 0, 5])
    other = np.array([0, 6, 6, 2, 5, 8, 8, 5])
    np.testing.assert_allclose(track.way(one, other), [0, 5, 2, 2, 4, 1, np.inf, 0], atol=1e-12)
    up = compose(compose(compose(edges[3], reverse(edges[2])), edges[1]), edges[4])  # 4 → 3 → 1 → 2 → 5
    seen = algebra.moved(track.covariance(np.array([4]), np.array([5])), se3.inverse(track.T_root[[5]]))[0]
    np.testing.assert_allclose(seen, up.covariance, rtol=0.05, atol=1e-3)
