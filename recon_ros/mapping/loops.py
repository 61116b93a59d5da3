# SPDX-License-Identifier: Apache-2.0
"""Loops: a keyframe shows a place that was left long ago. Found by looks, verified, attested by neighbours.

What two images cannot tell, two equal aisles, is met with what is known beside them: a neighbour of either keyframe
must verify to the same pose, no other keyframe may verify to another, and the correction must be in proportion to the
way in between. Where drift since then is larger than the distance of two equal places, a wrong loop is still possible;
the pose graph's robust kernels come after this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import Config, LoopConfig
from recon_ros.frame import Keyframe
from recon_ros.geometry import se3
from recon_ros.geometry.two_view import Verified, VerifySettings, verify
from recon_ros.memory.places import PlaceIndex
from recon_ros.memory.sides import are_one, covisible, median_depth, neighbours, side_of
from recon_ros.memory.store import KeyframeStore

WITNESSES = 2
"""Neighbours of either keyframe that are asked about a loop."""
MAX_TURN = 1.0
"""Largest correction of a rotation that is believed, radians."""


@dataclass(frozen=True, eq=False)
class Loop:
    """One place, seen by two keyframes at two times.

    Attributes:
        a, b: ids; b is the newer.
        T_a_b: (4, 4) maps points of b to a; Sim(3) where one of them is not metric.
        information: (6, 6) of a right perturbation (v, ω) of it, in b's camera frame.
        inliers: keypoints that support it.
        evidence: ids of the keyframes that verified to the same, besides these two.
    """

    a: int
    b: int
    T_a_b: NDArray[np.float64]
    information: NDArray[np.float64]
    inliers: int
    evidence: tuple[int, ...]


def candidates(
    keyframe: Keyframe,
    store: KeyframeStore,
    index: PlaceIndex,
    config: LoopConfig,
    descriptor: NDArray[np.float32] | None = None,
) -> list[int]:
    """Ids of the earlier keyframes that look most like one, best first, at most `config.candidates`.

    Those that tracking has connected to it, the last few of its submap, are not among them.

    Args:
        keyframe: in the store.
        store: all keyframes.
        index: of their features.
        config: of the search.
        descriptor: the network's of this keyframe, where there is one.
    """
    submap = store.submap_of(keyframe.id)
    before = [k.id for k in store.keyframes if k.id < keyframe.id and store.submap_of(k.id) == submap]
    exclude = {k.id for k in store.keyframes if k.id >= keyframe.id} | set(before[-config.exclusion :])
    found = index.query(keyframe.features, descriptor, exclude, config.candidates)
    return [candidate.id for candidate in found]


class LoopDetector:
    """Looks for loops that end in a given keyframe. It remembers nothing: the same map gives the same loops."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def detect(self, keyframe: Keyframe, store: KeyframeStore, candidates: Sequence[int]) -> list[Loop]:
        """Loops from some earlier keyframes to this one, most inliers first.

        Each candidate is verified, and up to four more pairs for each loop found. A loop between two submaps may be of
        any size.

        Args:
            keyframe: in the store.
            store: all keyframes.
            candidates: ids of earlier keyframes, as `candidates` names them; those the store has not are passed over.
        """
        if not self.config.loops.enabled:
            return []
        seen = _Seen(store)
        loops = []
        for a in candidates:
            verified = self._verify(store[a], keyframe, store) if a in store else None
            if verified is not None:
                loop = Loop(a, keyframe.id, verified.T_a_b, verified.information, verified.inliers, ())
                if not seen.together(loop.a, loop.b) or self._is_plausible(loop, seen):
                    loops.append(loop)
        loops.sort(key=lambda loop: (-loop.inliers, loop.a))
        return [] if self._contradict(loops, seen) else list(self._attested(loops, seen))

    def _verify(self, a: Keyframe, b: Keyframe, store: KeyframeStore) -> Verified | None:
        tracking = self.config.tracking
        settings = VerifySettings(
            self.config.loops.min_inliers,
            tracking.reprojection_threshold,
            tracking.depth_sigma,
            tracking.surface_sigma,
        )
        return verify(side_of(a, store), side_of(b, store), settings)

    def _is_plausible(self, loop: Loop, seen: _Seen) -> bool:
        """Whether the correction is in proportion to the way from a to b."""
        b, said = seen.store[loop.b], seen.said(loop)
        moved = float(np.linalg.norm(said[:3, 3] - b.T_world_camera[:3, 3]))
        turned = se3.distance(se3.inverse(b.T_world_camera) @ said)[1]
        return moved < self._drift(loop.a, loop.b, loop, seen) and turned < MAX_TURN

    def _drift(self, first: int, last: int, loop: Loop, seen: _Seen) -> float:
        """How far two keyframes' poses may be wrong against each other, in the world's unit."""
        return self.config.loops.max_drift * (seen.way(first, last) + _world_depth(seen.store[loop.b]))

    def _contradict(self, loops: list[Loop], seen: _Seen) -> bool:
        """Whether two loops put b at places that drift between their beginnings cannot explain."""
        for one, other in combinations(loops, 2):
            apart = float(np.linalg.norm((seen.said(one) - seen.said(other))[:3, 3]))
            if seen.together(one.a, other.a) and apart > self._drift(one.a, other.a, one, seen):
                return True
        return False

    def _attested(self, loops: list[Loop], seen: _Seen) -> Iterator[Loop]:
        """The loops that have a witness: another of them, or a neighbour of a or of b that verifies to the same."""
        for loop in loops:
            evidence = tuple(o.a for o in loops if o.a != loop.a and seen.say_the_same(loop, o))
            evidence = evidence or tuple(islice(self._witnesses(loop, loops, seen), 1))
            if evidence:
                yield replace(loop, evidence=evidence)

    def _witnesses(self, loop: Loop, loops: list[Loop], seen: _Seen) -> Iterator[int]:
        """Neighbours of a, then of b, that verify to the same."""
        a, b = seen.store[loop.a], seen.store[loop.b]
        said, depth = seen.said(loop), _world_depth(b)
        asked = {a.id, b.id, *(o.a for o in loops)}
        for near in seen.near(a, asked):
            verified = self._verify(near, b, seen.store)
            if verified is not None and are_one(said, near.T_world_camera @ verified.T_a_b, depth):
                yield near.id
        for near in seen.near(b, asked):
            verified = self._verify(a, near, seen.store)
            T_near_b = se3.inverse(near.T_world_camera) @ b.T_world_camera
            if verified is not None and are_one(said, a.T_world_camera @ verified.T_a_b @ T_near_b, depth):
                yield near.id
        yield from self._beside(loop, seen)

    def _beside(self, loop: Loop, seen: _Seen) -> Iterator[int]:
        """Neighbours of b that verify to the same against what the loop puts next to them: where keyframes are so far
        apart that neither end of the loop sees beyond the other."""
        a, b = seen.store[loop.a], seen.store[loop.b]
        said, depth = seen.said(loop), _world_depth(b)
        recent = {k.id for k in seen.store.keyframes if k.id >= b.id - self.config.loops.exclusion}
        earlier = {k.id for k in seen.store.keyframes} - recent
        for near in seen.near(b, earlier | {b.id}):
            T_b_near = se3.inverse(b.T_world_camera) @ near.T_world_camera
            there = covisible(near, said @ T_b_near, seen.store.submap_of(a.id), seen.store)
            other = next((k for k in there if k.id in earlier and k.id != a.id), None)
            verified = None if other is None else self._verify(other, near, seen.store)
            if other is not None and verified is not None:
                T_near_b = se3.inverse(T_b_near)
                if are_one(said, other.T_world_camera @ verified.T_a_b @ T_near_b, depth):
                    yield near.id


@dataclass(frozen=True, eq=False)
class _Seen:
    """The keyframes, and which of their poses can be compared."""

    store: KeyframeStore

    def together(self, i: int, j: int) -> bool:
        """Whether the poses of two keyframes are in one frame."""
        return self.store.submap_of(i) == self.store.submap_of(j)

    def said(self, loop: Loop) -> NDArray[np.float64]:
        """T_world_b by the loop, in a's world."""
        return self.store[loop.a].T_world_camera @ loop.T_a_b

    def say_the_same(self, one: Loop, other: Loop) -> bool:
        """Whether two loops into one map put b at one place."""
        depth = _world_depth(self.store[one.b])
        return self.together(one.a, other.a) and are_one(self.said(one), self.said(other), depth)

    def near(self, keyframe: Keyframe, asked: Set[int]) -> list[Keyframe]:
        """A few neighbours that have not been asked yet."""
        found = neighbours(keyframe, self.store, len(asked) + 3 * WITNESSES)
        return [k for k in found if k.id not in asked and self.together(k.id, keyframe.id)][:WITNESSES]

    def way(self, first: int, last: int) -> float:
        """Length of the way over the keyframes from one to another."""
        low, high = sorted((first, last))
        keyframes = [k for k in self.store.keyframes if low <= k.id <= high and self.together(k.id, first)]
        centres = np.array([k.T_world_camera[:3, 3] for k in keyframes])
        return float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())


def _world_depth(keyframe: Keyframe) -> float:
    """Median depth in the world's unit."""
    return median_depth(keyframe) * se3.scale_of(keyframe.T_world_camera)
