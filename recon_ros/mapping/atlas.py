# SPDX-License-Identifier: Apache-2.0
"""The map that moves: keyframes, what ties them together, and the cloud and the path that are derived from them.

A correction changes poses of keyframes and nothing else. What hangs on keyframes follows: the path at once, because it
is computed from them; the cloud keyframe by keyframe, drawn by somebody else (`drawing`), so that nothing waits for it.

Looking for loops and solving the graph are jobs for a `Backend`. Their results are taken over at the beginning of a
frame only, so that within one frame the map stands still.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import Config
from recon_ros.frame import Keyframe
from recon_ros.geometry import gravity, se3
from recon_ros.mapping.backend import Backend, InlineBackend, ThreadBackend
from recon_ros.mapping.backend_process import ProcessBackend
from recon_ros.mapping.drawing import Drawing
from recon_ros.mapping.loops import Loop, candidates
from recon_ros.mapping.map_data import MapData, SourceFacts
from recon_ros.mapping.pose_graph import Edge, PoseGraph
from recon_ros.mapping.search import LoopSearch
from recon_ros.mapping.trajectory import TrajectoryLog
from recon_ros.mapping.untied import Answer, Request, solve
from recon_ros.memory.places import PlaceIndex
from recon_ros.memory.spill import Spill
from recon_ros.memory.store import KeyframeStore

LOGGER = logging.getLogger("recon_ros.mapping")

INFLATION = 25.0
"""Informations of registrations take errors for independent that share causes; by this much they are too sure."""
STILL = (1e-4, 1e-5)
"""A keyframe that moves and turns by less (metres, radians) is left where it is."""

PLUMB_EVERY = 10
"""Keyframes that know gravity until the graph is solved for that alone."""
SETTLING = 1000
"""Looks at pairs that corrections have brought together, at most, before a map is taken for settled."""

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
        spill = Spill(config.memory, ThreadBackend() if live else InlineBackend())
        self.store = KeyframeStore(config.memory.max_keyframes, spill)
        self.places = PlaceIndex()
        self.graph = PoseGraph(scale_drifts)
        self.drawing = Drawing(config.map, live)
        self.path = TrajectoryLog(config.memory.max_poses)
        self._earlier_path = TrajectoryLog(config.memory.max_poses)
        self._newest: int | None = None
        self._search = LoopSearch(ThreadBackend() if live and config.loops.enabled else InlineBackend())
        self._solving: Backend = ProcessBackend() if live and config.loops.enabled else InlineBackend()
        self.is_level = False
        """The world's y axis is that of gravity, as its first keyframe knew."""
        self.T_base_camera: Matrix | None = None
        """Where the camera was on the robot when the map was saved; None where nobody has said."""
        self._plumbed = 0
        self._loops: dict[int, Loop] = {}
        self._rejected: frozenset[int] = frozenset()

    def close(self) -> None:
        """End the jobs; the map stays as it is."""
        self._search.close()
        self._solving.close()
        self.store.close()
        self.drawing.close()

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The loops that are believed, in the order in which they were found."""
        return tuple(loop for edge, loop in self._loops.items() if edge not in self._rejected)

    @property
    def placed(self) -> dict[int, Keyframe]:
        """Keyframes by id whose place in the world is known: all but those of submaps that were not joined yet."""
        return {k.id: k for k in self.store.keyframes if self.store.submap_of(k.id) == MAIN}

    @property
    def unplaced(self) -> int:
        """Tracked frames whose place in the world is not known."""
        return len(self.path) - len(self.path.corrected(self.placed))

    @property
    def last_seen(self) -> int | None:
        """The keyframe by which the camera was last."""
        return self.path.last_reference if len(self.path) else self._earlier_path.last_reference

    # -- saved and restored ----------------------------------------------------------------------------------

    def data(self, source: SourceFacts) -> MapData:
        """The map as it is now, for another thread to write; what keyframes saw is shared."""
        # A loop to a submap that has not been moved yet is none for who reads this.
        unsolved = {
            e for e, loop in self._loops.items() if len({self.store.submap_of(i) for i in (loop.a, loop.b)}) > 1
        }
        return MapData(
            keyframes=self.store.frozen().keyframes,
            next_id=self.store.next_id,
            descriptors=self.places.descriptors(),
            graph=self.graph.snapshot(),
            loops=dict(self._loops),
            rejected=self._rejected | unsolved,
            path=np.concatenate([self._earlier_path.rows(), self.path.rows()]),
            source=source,
            is_level=self.is_level,
            T_base_camera=self.T_base_camera,
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
        self.store.split(self.graph.components(data.rejected))
        for keyframe in self.store.keyframes:
            self._draw(keyframe)
            self.places.add(keyframe.id, keyframe.features, data.descriptors.get(keyframe.id))
        self._loops, self._rejected = dict(data.loops), data.rejected
        self.is_level, self.T_base_camera = data.is_level, data.T_base_camera
        self._earlier_path.extend(data.path)
        self._prune()

    # -- growing ---------------------------------------------------------------------------------------------

    def first_pose(self, T_expected: Matrix, down: Matrix | None) -> Matrix:
        """(4, 4) T_world_camera to begin a map with, or a submap, where a camera is expected that may know (3,) `down`.

        A map is level where its first frame knows it, and then its submaps are, too.
        """
        if down is None:
            return T_expected
        if not len(self.store) and self.config.map.level:
            self.is_level = True
            return se3.make(gravity.level(down), np.zeros(3))
        if not self.is_level:
            return T_expected
        upright = gravity.towards_down(T_expected[None], down)[0]
        return se3.make(upright @ T_expected[:3, :3], T_expected[:3, 3])

    def add(
        self,
        keyframe: Keyframe,
        reference_id: int | None,
        information: Matrix,
        descriptor: NDArray[np.float32] | None = None,
        uninterrupted: bool = True,
        down: Matrix | None = None,
    ) -> None:
        """Take a keyframe in, tied to the one it was tracked against, and look whether it closes a loop.

        Args:
            keyframe: with the store's next id.
            reference_id: the keyframe that its pose was measured against; None for the first of a map, and of a submap
                whose place in the map nobody knows yet.
            information: (6, 6) of that measurement, in the keyframe's camera frame.
            descriptor: a network's, of the place.
            uninterrupted: tracking came here from the newest keyframe, which ties the two as well.
            down: (3,) unit vector down in its camera's frame, or None; used where the world is level.
        """
        previous, self._newest = self._newest, keyframe.id
        submap = self.store.new_submap() if reference_id is None and len(self.store) else 0
        if reference_id is not None:
            submap = self.store.submap_of(reference_id)
        self.store.add(keyframe, submap)
        self.places.add(keyframe.id, keyframe.features, descriptor)
        self.graph.add_node(keyframe.id, keyframe.T_world_camera, down if self.is_level else None)
        if reference_id is not None:
            self._tie(reference_id, keyframe, information, "odometry")
            if uninterrupted and previous is not None and self._is_beside(previous, reference_id, submap):
                self._tie(previous, keyframe, information, "covisible")
        if self.config.loops.enabled:
            alike = candidates(keyframe, self.store, self.places, self.config.loops, descriptor)
            self._search.look(self.config, keyframe, self.store, alike)
            self._plumb(down)
        self._draw(keyframe)  # last, because who draws it competes with this thread
        self._prune()

    def _is_beside(self, previous: int, reference_id: int, submap: int) -> bool:
        """Whether the newest keyframe is another than the reference, and of the same submap: who was found again
        elsewhere has not come here from there.
        """
        return previous != reference_id and previous in self.store and self.store.submap_of(previous) == submap

    def _draw(self, keyframe: Keyframe) -> None:
        """Have a keyframe's points in the cloud where it is. Those of a submap wait until its place is known."""
        if self.store.submap_of(keyframe.id) == MAIN:
            self.drawing.draw(keyframe)

    def _tie(self, other_id: int, keyframe: Keyframe, information: Matrix, kind: str) -> None:
        T_other_keyframe = se3.inverse(self.store[other_id].T_world_camera) @ keyframe.T_world_camera
        unit = np.diag([se3.scale_of(keyframe.T_world_camera)] * 3 + [1.0] * 3)  # the world's to the keyframe's
        information = _symmetric(unit @ information @ unit / INFLATION)
        edge = Edge(other_id, keyframe.id, T_other_keyframe, information, kind)  # type: ignore[arg-type]
        self.graph.add_edge(edge)

    def _plumb(self, down: Matrix | None) -> None:
        """Solve the graph now and then without a loop, too: gravity has something to say all the time."""
        self._plumbed += self.is_level and down is not None
        if self._plumbed == PLUMB_EVERY:
            self._plumbed = 0
            self._solve()

    def _prune(self) -> None:
        """Evict the most redundant keyframe while there are too many; what hung on it moves to a neighbour."""
        while (gone := self.store.surplus()) is not None:
            self.drawing.erase(gone.id)
            submap = self.store.submap_of(gone.id)
            self.store.remove(gone.id)
            self.places.remove(gone.id)
            self.graph.remove_node(gone.id)
            self._search.forget(gone.id)
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

    def _take_loops(self) -> None:
        """Tie what has been found; what was tied already, or is gone, is passed over."""
        found = 0
        for loop in self._search.found():
            if loop.a in self.store and loop.b in self.store:
                edge = Edge(loop.a, loop.b, loop.T_a_b, _symmetric(loop.information / INFLATION), "loop")
                self._loops[self.graph.add_edge(edge)] = loop
                found += 1
        if found:
            self._solve()

    def _solve(self) -> None:
        problem, loops = self.graph.snapshot(), self.config.loops
        depths = np.array([self.store.median_depth(i) for i in problem.ids.tolist()])
        request = Request(problem, depths, loops.again, loops.exclusion)
        self._solving.submit(functools.partial(solve, request, self._search.seen))

    # -- following -------------------------------------------------------------------------------------------

    def follow(self) -> Correction | None:
        """Take over what is known by now: loops found, a graph solved. Tells which keyframes moved, None for none."""
        self._search.step(self.config, self.store)
        self._take_loops()
        correction = None
        for finished in self._solving.poll():
            if finished.error is not None:
                LOGGER.error("the pose graph could not be solved: %r", finished.error)
            elif isinstance(finished.value, Answer):
                correction = _both(correction, self._apply(finished.value))
        return correction

    def settle(self) -> Correction | None:
        """`follow` to the end, for whoever wants the whole map as it is; waits only for what is done at once, and not
        for the cloud."""
        correction = self.follow()
        for _ in range(SETTLING):
            if self._search.is_idle:
                break
            correction = _both(correction, self.follow())
        return correction

    def _apply(self, answer: Answer) -> Correction | None:
        solution = answer.solution
        self._search.look_again(answer.pairs)
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
                self._draw(self.store[keyframe_id])
        for keyframe in self.placed.values():
            if keyframe.id not in self.drawing:  # of a submap that has been joined
                self.drawing.draw(keyframe)
        return Correction(before) if before else None


def _both(first: Correction | None, second: Correction | None) -> Correction | None:
    """Two corrections, one after the other, as one."""
    if first is None or second is None:
        return first or second
    return Correction({**second.before, **first.before})


def _symmetric(information: Matrix) -> Matrix:
    return np.asarray((information + information.T) / 2)
