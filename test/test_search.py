# SPDX-License-Identifier: Apache-2.0
"""A correction brings places together: keyframes that now see the same are looked at, once, a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from driven_graph import LAP, LOOPS, driven
from revisits import room_keyframe, room_view, turning
from textured_room import TexturedRoom

from recon_ros.config import Config, updated
from recon_ros.geometry import se3
from recon_ros.mapping import search as search_module
from recon_ros.mapping import untied as untied_module
from recon_ros.mapping.atlas import Atlas
from recon_ros.mapping.backend import Finished
from recon_ros.mapping.loops import Loop
from recon_ros.mapping.pose_graph import PoseGraph
from recon_ros.mapping.search import LoopSearch
from recon_ros.mapping.untied import Request, solve
from recon_ros.memory.places import Candidate, PlaceIndex
from recon_ros.memory.store import KeyframeStore
from recon_ros.tracking.view import View

pytest.importorskip("gtsam", reason="needs gtsam")

# --- who has come together


def request(graph: PoseGraph, depth: float, count: int = 20) -> Request:
    problem = graph.snapshot()
    return Request(problem, np.full(len(problem.ids), depth), count, 10)


def test_pairs_brought_together_are_told_if_nothing_ties_them() -> None:
    graph = driven(False, LOOPS[:2]).graph  # closed in one corner only
    pairs = solve(request(graph, 1.0)).pairs
    assert pairs and all(abs(b - a - LAP) <= 4 for a, b in pairs), "to 2 m"
    tied = {i for b in LOOPS[:2] for end in (b - LAP, b) for i in graph.near(end, 2.9)}
    assert not any(a in tied and b in tied for a, b in pairs)
    ends = sorted(b for _, b in pairs)
    assert min(np.diff(ends)) * 0.5 > 2.0, "one of many neighbours"


def test_what_is_tied_or_known_is_not_told() -> None:
    graph = driven(False).graph
    assert solve(request(graph, 4.0)).pairs == (), "no place is further than 24 m from a loop"
    pairs = solve(request(graph, 0.5)).pairs
    assert solve(request(graph, 0.5)).pairs == pairs, "offline every run is the same"
    assert len(pairs) > 2 and solve(request(graph, 0.5, 2)).pairs == pairs[:2]
    assert not set(solve(request(graph, 0.5), frozenset(pairs)).pairs) & set(pairs)
    assert solve(request(graph, 0.5, 0)).pairs == ()


def test_a_rejected_loop_ties_nothing() -> None:
    world = driven(False, LOOPS[:1])
    tied = len(solve(request(world.graph, 2.0)).pairs)
    world.add_loop(75, 75 + LAP, np.array([0, 0, -20.0, 0, 1.0, 0]))
    answer = solve(request(world.graph, 2.0))
    assert len(answer.solution.rejected) == 1 and len(answer.pairs) == tied


# --- who looks at them


class Later:
    """A backend that does what it is told when it is told; of waiting jobs it keeps the newest."""

    def __init__(self) -> None:
        self.waiting: tuple[int, Callable[[], Any]] | None = None
        self.tickets, self.done = 0, []

    @property
    def busy(self) -> bool:
        return self.waiting is not None

    def submit(self, job: Callable[[], Any]) -> int:
        self.tickets += 1
        self.waiting = self.tickets, job
        return self.tickets

    def work(self) -> None:
        assert self.waiting is not None
        self.done.append(Finished(self.waiting[0], self.waiting[1]()))
        self.waiting = None

    def poll(self) -> list[Finished]:
        done, self.done = self.done, []
        return done

    def close(self) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[int, ...]]]:
    """What detectors are asked: keyframe and candidates; they find nothing."""
    asked: list[tuple[int, tuple[int, ...]]] = []

    def detect(config: Config, keyframe_id: int, store: KeyframeStore, candidates: tuple[int, ...]) -> list[Loop]:
        asked.append((keyframe_id, candidates))
        return []

    monkeypatch.setattr(search_module, "_detect", detect)
    return asked


def stored(count: int) -> KeyframeStore:
    store, view = KeyframeStore(100), room_view(TexturedRoom(), np.eye(4))
    for i in range(count):
        store.add(room_keyframe(i, view, np.eye(4)))
    return store


def test_new_keyframes_come_first_and_nothing_is_forgotten(asked: list[tuple[int, tuple[int, ...]]]) -> None:
    store, backend, config = stored(10), Later(), Config()
    search = LoopSearch(backend)
    search.look_again([(0, 8), (2, 7), (1, 8)])
    search.step(config, store)
    search.look(config, store[9], store, [3])  # before the thread has come to it
    backend.work()
    assert asked == [(9, (3,))] and search.found() == [] and search.seen == frozenset()
    search.step(config, store)
    search.step(config, store)  # still busy
    backend.work()
    search.found()
    assert asked[1:] == [(7, (2,))] and search.seen == {(2, 7)}
    assert search.is_idle
    assert search._asked == {}, "what a new keyframe was put in place of is not kept"
    search.look_again([(0, 8), (1, 8)])  # not seen yet, so that the solver tells them again
    search.step(config, store)
    backend.work()
    search.found()
    assert asked[2:] == [(8, (0, 1))] and search.seen == {(0, 8), (1, 8), (2, 7)}
    search.forget(8)
    assert search.seen == {(2, 7)}


# --- in the map

STEPS = 16


class OnlyAtLast:
    """An index that recognises the very last keyframe only."""

    def __init__(self, last: int) -> None:
        self._index, self._last = PlaceIndex(), last

    def query(self, *arguments: Any) -> list[Candidate]:
        return self._index.query(*arguments) if len(self._index) == self._last + 1 else []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)


@cache
def seen(step: int) -> View:
    return room_view(TexturedRoom(), turning(step, STEPS))


def two_laps(monkeypatch: pytest.MonkeyPatch, **options: object) -> Atlas:
    """A room mapped in two laps that drift apart; only the last keyframe is recognised."""
    monkeypatch.setattr(untied_module, "TIED_WAY", 0.5)  # a lap in a room is short
    last = 2 * STEPS - 1
    atlas = Atlas(updated(Config(), {"loops.exclusion": 4, **options}))
    atlas.places = OnlyAtLast(last)  # type: ignore[assignment]
    for i in range(last + 1):
        drifted = turning(i, STEPS).copy()
        drifted[:3, 3] += np.array([0.01, 0.0, 0.01]) * i + np.array([0.1, 0.0, 0.0]) * np.sin(np.pi * i / STEPS)
        atlas.follow()
        keyframe = room_keyframe(i, seen(i % STEPS), drifted)
        atlas.add(keyframe, i - 1 if i else None, np.eye(6) * 1e4)
    return atlas


def test_loops_are_found_where_a_loop_has_brought_keyframes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    only = two_laps(monkeypatch, **{"loops.again": 0})
    only.settle()
    assert {loop.b for loop in only.loops} == {2 * STEPS - 1}
    more = two_laps(monkeypatch)
    before = {k.id: k.T_world_camera for k in more.store.keyframes}
    correction = more.settle()
    assert len({loop.b for loop in more.loops}) >= 4
    for loop in more.loops:
        T = se3.inverse(turning(loop.a, STEPS)) @ turning(loop.b, STEPS)
        moved, turned = se3.distance(se3.inverse(loop.T_a_b) @ T)
        assert moved < 0.03 and turned < 0.01

    def apart(atlas: Atlas) -> float:
        """How far the laps are from each other, metres."""
        pairs = [(atlas.store[i], atlas.store[i + STEPS]) for i in range(STEPS)]
        return max(se3.distance(se3.inverse(a.T_world_camera) @ b.T_world_camera)[0] for a, b in pairs)

    assert apart(more) < 0.03 < apart(only)
    assert correction is not None and correction.before, "several corrections, told as one"
    for keyframe_id, T in correction.before.items():
        np.testing.assert_array_equal(T, before[keyframe_id])
