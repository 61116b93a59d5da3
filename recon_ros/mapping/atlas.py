# SPDX-License-Identifier: Apache-2.0
"""The map that moves: keyframes, what ties them together, and the cloud and the path that are derived from them.

A correction changes poses of keyframes and nothing else. What hangs on keyframes follows: the path at once, because it
is computed from them; the cloud keyframe by keyframe, a few per frame, so that a big loop does not hold up tracking.

Looking for loops and solving the graph are jobs for a `Backend`. Their results are taken over at the beginning of a
frame only, so that within one frame the map stands still.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import Config
from recon_ros.frame import Keyframe
from recon_ros.geometry import se3
from recon_ros.geometry.features import Features
from recon_ros.mapping.backend import Backend, InlineBackend, ThreadBackend
from recon_ros.mapping.backend_process import ProcessBackend
from recon_ros.mapping.fusion import VoxelMap
from recon_ros.mapping.loops import Loop, LoopDetector
from recon_ros.mapping.map_data import MapData, SourceFacts
from recon_ros.mapping.pose_graph import Edge, PoseGraph, Solution, optimise
from recon_ros.mapping.trajectory import TrajectoryLog
from recon_ros.memory.places import Candidate, PlaceIndex
from recon_ros.memory.store import KeyframeStore

LOGGER = logging.getLogger("recon_ros.mapping")

INFLATION = 25.0
"""Informations of registrations take errors for independent that share causes; by this much they are too sure."""
REFRESH_MS = 8.0
"""Time per frame for moving keyframes' points in the cloud; one at least is moved."""
STILL = (1e-4, 1e-5)
"""A keyframe that moves and turns by less (metres, radians) is left where it is."""

MAIN = 0
"""The submap that the world is of: the first."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Correction:
    """What `Atlas.follow` has changed: the keyframes' poses before, by id, of those that moved."""

    before: Mapping[int, Matrix]


class Atlas:
    """Keyframes and everything that is derived from them.

    Args:
        config: of the whole reconstruction.
        live: jobs are done by others, so that nothing waits for them; else at once, and every run is the same.
        scale_drifts: the source does not know the metre, so that corrections change scales, too.
    """

    def __init__(self, config: Config, live: bool = False, scale_drifts: bool = False) -> None:
        self.config = config
        self.store = KeyframeStore(config.memory.max_keyframes)
        self.places = PlaceIndex()
        self.graph = PoseGraph(scale_drifts)
        self.cloud = VoxelMap(config.map)
        self.path = TrajectoryLog(config.memory.max_poses)
        self._earlier_path = TrajectoryLog(config.memory.max_poses)
        self._newest: int | None = None
        self._looking: Backend = ThreadBackend() if live and config.loops.enabled else InlineBackend()
        self._solving: Backend = ProcessBackend() if live and config.loops.enabled else InlineBackend()
        self._loops: dict[int, Loop] = {}
        self._rejected: frozenset[int] = frozenset()
        self._stale: dict[int, None] = {}
        self._drawn: set[int] = set()

    def close(self) -> None:
        """End the jobs; the map stays as it is."""
        self._looking.close()
        self._solving.close()

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The loops that are believed, in the order in which they were found."""
        return tuple(loop for edge, loop in self._loops.items() if edge not in self._rejected)

    @property
    def placed(self) -> dict[int, Keyframe]:
        """Keyframes by id whose place in the world is known: all but those of submaps that were not joined yet."""
        return {k.id: k for k in self.store.keyframes if self.store.submap_of(k.id) == MAIN}

    @property
    def last_seen(self) -> int | None:
        """The keyframe by which the camera was last."""
        return self.path.last_reference if len(self.path) else self._earlier_path.last_reference

    # -- saved and restored ----------------------------------------------------------------------------------

    def data(self, source: SourceFacts) -> MapData:
        """The map as it is now, for another thread to write; what keyframes saw is shared."""
        return MapData(
            keyframes=self.store.frozen().keyframes,
            next_id=self.store.next_id,
            descriptors=self.places.descriptors(),
            graph=self.graph.snapshot(),
            loops=dict(self._loops),
            rejected=self._rejected,
            path=np.concatenate([self._earlier_path.rows(), self.path.rows()]),
            source=source,
        )

    def restore(self, data: MapData) -> None:
        """Begin with a saved map, in place of the nothing there is; its path is kept apart from what comes.

        The first keyframe after it is tied to what it was tracked against, and not to the newest of the map, which may
        be anywhere.

        Raises:
            InputError: when the graph is none.
        """
        self.graph = PoseGraph.restored(data.graph)
        self.store.restore((replace(k, T_world_camera=k.T_world_camera.copy()) for k in data.keyframes), data.next_id)
        self.store.split(self.graph.components())
        for keyframe in self.store.keyframes:
            self._draw(keyframe)
            self.places.add(keyframe.id, keyframe.features, data.descriptors.get(keyframe.id))
        self._loops, self._rejected = dict(data.loops), data.rejected
        self._earlier_path.extend(data.path)
        self._prune()

    # -- growing ---------------------------------------------------------------------------------------------

    def add(
        self,
        keyframe: Keyframe,
        reference_id: int | None,
        information: Matrix,
        descriptor: NDArray[np.float32] | None = None,
        uninterrupted: bool = True,
    ) -> None:
        """Take a keyframe in, tied to the one it was tracked against, and look whether it closes a loop.

        Args:
            keyframe: with the store's next id.
            reference_id: the keyframe that its pose was measured against; None for the first of a map, and of a submap
                whose place in the map nobody knows yet.
            information: (6, 6) of that measurement, in the keyframe's camera frame.
            descriptor: a network's, of the place.
            uninterrupted: tracking came here from the newest keyframe, which ties the two as well.
        """
        previous, self._newest = self._newest, keyframe.id
        submap = self.store.new_submap() if reference_id is None and len(self.store) else 0
        if reference_id is not None:
            submap = self.store.submap_of(reference_id)
        self.store.add(keyframe, submap)
        self._draw(keyframe)
        self.places.add(keyframe.id, keyframe.features, descriptor)
        self.graph.add_node(keyframe.id, keyframe.T_world_camera)
        if reference_id is not None:
            self._tie(reference_id, keyframe, information, "odometry")
            if uninterrupted and previous is not None and previous != reference_id and previous in self.store:
                self._tie(previous, keyframe, information, "covisible")
        if self.config.loops.enabled:
            self._look(keyframe, descriptor)
        self._prune()

    def _draw(self, keyframe: Keyframe) -> None:
        """Put a keyframe's points into the cloud. Those of a submap wait until its place is known."""
        if self.store.submap_of(keyframe.id) == MAIN:
            self.cloud.add(keyframe)
            self._drawn.add(keyframe.id)

    def _erase(self, keyframe: Keyframe) -> None:
        if keyframe.id in self._drawn:
            self.cloud.remove(keyframe)
            self._drawn.discard(keyframe.id)

    def _tie(self, other_id: int, keyframe: Keyframe, information: Matrix, kind: str) -> None:
        T_other_keyframe = se3.inverse(self.store[other_id].T_world_camera) @ keyframe.T_world_camera
        edge = Edge(other_id, keyframe.id, T_other_keyframe, _symmetric(information / INFLATION), kind)  # type: ignore[arg-type]
        self.graph.add_edge(edge)

    def _prune(self) -> None:
        """Evict the most redundant keyframe while there are too many; what hung on it moves to a neighbour."""
        while (gone := self.store.surplus()) is not None:
            self._erase(gone)
            submap = self.store.submap_of(gone.id)
            self.store.remove(gone.id)
            self.places.remove(gone.id)
            self.graph.remove_node(gone.id)
            self._stale.pop(gone.id, None)
            together = [k for k in self.store.keyframes if self.store.submap_of(k.id) == submap]
            successor = min(
                together or self.store.keyframes,
                key=lambda k: float(np.linalg.norm(k.T_world_camera[:3, 3] - gone.T_world_camera[:3, 3])),
            )
            self.path.re_anchor(gone, successor)
            self._earlier_path.re_anchor(gone, successor)
            # What its loops said is in the graph, composed; they themselves are gone with it.
            self._loops = {edge: loop for edge, loop in self._loops.items() if edge in self.graph.edges}

    def connected(self, keyframe_id: int, way: float) -> set[int] | None:
        """Keyframes that are where they should be as seen from one: less than `way` from it over what ties them.

        Others may seem to see the same while drift has put them elsewhere; to find that out is the loops' business, and
        a loop that is believed connects them. None, for all, where nobody looks for loops.
        """
        if not self.config.loops.enabled or self.config.mode != "mapping":
            return None
        start = keyframe_id if keyframe_id in self.graph.nodes else self.store.keyframes[-1].id
        return self.graph.near(start, way, self._rejected)

    # -- loops -----------------------------------------------------------------------------------------------

    def _look(self, keyframe: Keyframe, descriptor: NDArray[np.float32] | None) -> None:
        """Have somebody look for loops that end in a keyframe; asked in the map as it is now."""
        submap = self.store.submap_of(keyframe.id)
        earlier = [k.id for k in self.store.keyframes if k.id < keyframe.id and self.store.submap_of(k.id) == submap]
        recent = set(earlier[-self.config.loops.exclusion :])
        candidates = self.places.query(
            keyframe.features, descriptor, recent | {keyframe.id}, self.config.loops.candidates
        )
        if candidates:
            parts = self.graph.components()
            parts = parts if len(parts) > 1 else []
            job = functools.partial(_detect, self.config, keyframe.id, self.store.frozen(), candidates, parts)
            self._looking.submit(job)

    def _take_loops(self) -> None:
        """Tie what has been found; what was tied already, or is gone, is passed over."""
        found = 0
        for finished in self._looking.poll():
            if finished.error is not None:
                LOGGER.error("looking for loops failed: %r", finished.error)
                continue
            for loop in finished.value:
                if loop.a in self.store and loop.b in self.store:
                    edge = Edge(loop.a, loop.b, loop.T_a_b, _symmetric(loop.information / INFLATION), "loop")
                    self._loops[self.graph.add_edge(edge)] = loop
                    found += 1
        if found:
            self._solving.submit(functools.partial(optimise, self.graph.snapshot()))

    # -- following -------------------------------------------------------------------------------------------

    def follow(self) -> Correction | None:
        """Take over what is known by now: loops found, a graph solved. Tells which keyframes moved, None for none."""
        self._take_loops()
        correction = None
        for finished in self._solving.poll():
            if finished.error is not None:
                LOGGER.error("the pose graph could not be solved: %r", finished.error)
            elif isinstance(finished.value, Solution):
                correction = self._apply(finished.value) or correction
        self._refresh(REFRESH_MS)
        return correction

    def settle(self) -> Correction | None:
        """`follow` to the end, for whoever wants the whole map as it is; waits only for what is done at once."""
        correction = self.follow()
        self._refresh(float("inf"))
        return correction

    def _refresh(self, budget_ms: float) -> None:
        """Move points in the cloud to where their keyframes are now, keyframe by keyframe, while there is time."""
        end = time.perf_counter() + budget_ms / 1e3
        for number, keyframe_id in enumerate(list(self._stale)):
            if number and time.perf_counter() > end:
                return
            del self._stale[keyframe_id]
            keyframe = self.store[keyframe_id]
            self._erase(keyframe)
            self._draw(keyframe)

    def _apply(self, solution: Solution) -> Correction | None:
        self._rejected = frozenset(solution.rejected)
        for loop in self.loops:
            self.store.join((loop.a, loop.b))
        before: dict[int, Matrix] = {}
        for keyframe_id, pose in self.graph.apply(solution).items():
            T_before = self.store[keyframe_id].T_world_camera
            moved, turned = se3.distance(se3.inverse(T_before) @ pose)
            if moved > STILL[0] or turned > STILL[1]:
                before[keyframe_id] = T_before
                self.store.move(keyframe_id, pose)
                self._stale[keyframe_id] = None
        self._stale.update(dict.fromkeys(self.placed.keys() - self._drawn))
        return Correction(before) if before else None


class _Asked:
    """An index that has been asked already: the answer travels, not the index."""

    def __init__(self, candidates: list[Candidate]) -> None:
        self._candidates = candidates

    def query(
        self, features: Features, descriptor: NDArray[np.float32] | None, exclude: Set[int], count: int
    ) -> list[Candidate]:
        return [c for c in self._candidates if c.id not in exclude][:count]


def _detect(
    config: Config, keyframe_id: int, store: KeyframeStore, candidates: list[Candidate], parts: list[set[int]]
) -> list[Loop]:
    """The job of looking for loops, on a frozen store."""
    index: Any = _Asked(candidates)
    return LoopDetector(config).detect(store[keyframe_id], store, index, components=parts)


def _symmetric(information: Matrix) -> Matrix:
    return np.asarray((information + information.T) / 2)
