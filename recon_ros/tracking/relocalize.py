# SPDX-License-Identifier: Apache-2.0
"""Where a camera that knows nothing is: keyframes that look alike, or are near a hint, verified and asked to agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Keyframe
from recon_ros.geometry import se3
from recon_ros.geometry.features import Features
from recon_ros.geometry.two_view import DEFAULTS, Side, VerifySettings, verify
from recon_ros.memory.places import Candidate
from recon_ros.memory.sides import are_one, neighbours, side_of
from recon_ros.memory.store import KeyframeStore
from recon_ros.tracking.view import View

WITNESSES = 2
"""Neighbours of the best keyframe that are asked when no other candidate confirmed it."""
MARGIN = 2.0
"""One keyframe is enough with this many times the inliers; and so many times those of any that contradicts it."""


class Proposals(Protocol):
    """Who names keyframes that may show a view, as `PlaceIndex` does."""

    def query(
        self, features: Features, descriptor: NDArray[np.float32] | None = None, *, count: int = 10
    ) -> list[Candidate]:
        """At most `count`, the most promising first."""
        ...


@dataclass(frozen=True)
class InTurn:
    """Names the keyframes one after the other, whatever the view; `first` is where the turn begins."""

    store: KeyframeStore
    first: int

    def query(
        self, features: Features, descriptor: NDArray[np.float32] | None = None, *, count: int = 10
    ) -> list[Candidate]:
        """The next `count` keyframes, from the newest backwards, around."""
        ids = [keyframe.id for keyframe in self.store.keyframes]
        turn = (-1 - (self.first + i) for i in range(min(count, len(ids))))
        return [Candidate(ids[i % len(ids)], 0.0) for i in turn]


@dataclass(frozen=True)
class Near:
    """Names keyframes from where a camera is said to be outwards, whatever the view, and then anew.

    Attributes:
        store: keyframes; those of submaps that have no place in the map yet are left out.
        T_world_camera: (4, 4) where it is said to be.
        depth: so many units of the map are as far away as one radian between the optical axes.
        first: how many have been named before.
    """

    store: KeyframeStore
    T_world_camera: NDArray[np.float64]
    depth: float
    first: int = 0

    def query(
        self, features: Features, descriptor: NDArray[np.float32] | None = None, *, count: int = 10
    ) -> list[Candidate]:
        """The next `count` keyframes."""
        placed = [k for k in self.store.keyframes if self.store.submap_of(k.id) == 0]
        if not placed:
            return []
        poses = np.stack([k.T_world_camera for k in placed])
        metres = np.linalg.norm(poses[:, :3, 3] - self.T_world_camera[:3, 3], axis=1)
        axes = poses[:, :3, 2] / np.linalg.norm(poses[:, :3, 2], axis=1, keepdims=True)
        angle = np.arccos(np.clip(axes @ self.T_world_camera[:3, 2], -1, 1))
        distance = metres / self.depth + angle
        order = np.argsort(distance, kind="stable")
        turn = (order[(self.first + i) % len(order)] for i in range(min(count, len(order))))
        return [Candidate(placed[i].id, -float(distance[i])) for i in turn]


@dataclass(eq=False)
class Hint:
    """Where somebody says that a camera is which is looked for.

    Attributes:
        T_world_camera: (4, 4), when it was said.
        T_odom_camera: (4, 4) the first odometry since then, or None.
        asked: keyframes that have been asked, the nearest first.
    """

    T_world_camera: NDArray[np.float64]
    T_odom_camera: NDArray[np.float64] | None = None
    asked: int = 0

    def now(self, T_odom_camera: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """(4, 4) T_world_camera, moved along with odometry where there is some."""
        if T_odom_camera is None:
            return self.T_world_camera
        if self.T_odom_camera is None:
            self.T_odom_camera = T_odom_camera
        return self.T_world_camera @ se3.inverse(self.T_odom_camera) @ T_odom_camera


@dataclass(frozen=True, eq=False)
class _Answer:
    """Where one keyframe says the camera is."""

    keyframe: Keyframe
    T_world_camera: NDArray[np.float64]
    inliers: int


def relocalize(
    view: View,
    store: KeyframeStore,
    index: Proposals,
    budget: int,
    settings: VerifySettings = DEFAULTS,
    last_seen: int | None = None,
) -> tuple[NDArray[np.float64], int, int] | None:
    """The pose of a view against stored keyframes, without any idea of where it is.

    The `budget` keyframes most alike are verified (`two_view.verify`). A pose is taken when two keyframes say the same,
    or one with plenty of inliers does, and none that says something else has nearly as many.

    Args:
        view: the frame.
        store: keyframes.
        index: of the same keyframes; ids the store has not are passed over.
        budget: keyframes verified at most, besides two neighbours of the best one; the time is proportional.
        settings: of the verification.
        last_seen: the keyframe where the camera was left, if it was; that it is there needs no second witness.

    Returns:
        T_world_camera (4, 4), Sim(3) where the map is not metric; the id of the keyframe it hangs on; its inliers.
    """
    side = side_of_view(view)
    found = index.query(view.features, view.prediction.descriptor, count=budget)
    keyframes = [store[candidate.id] for candidate in found if candidate.id in store]
    answers = [answer for keyframe in keyframes if (answer := _ask(keyframe, store, side, settings)) is not None]
    if not answers:
        return None
    best = max(answers, key=lambda answer: (answer.inliers, -answer.keyframe.id))
    depth = view.median_depth * se3.scale_of(best.T_world_camera)
    agreeing = [a for a in answers if a is not best and are_one(best.T_world_camera, a.T_world_camera, depth)]
    opposed = [a for a in answers if a is not best and a not in agreeing]
    if any(best.inliers < MARGIN * answer.inliers for answer in opposed):
        return None
    if best.inliers < MARGIN * settings.min_inliers and not agreeing and best.keyframe.id != last_seen:
        asked = {keyframe.id for keyframe in keyframes}
        witnesses = [k for k in neighbours(best.keyframe, store, budget + WITNESSES) if k.id not in asked][:WITNESSES]
        confirmed = (_ask(keyframe, store, side, settings) for keyframe in witnesses)
        if not any(a is not None and are_one(best.T_world_camera, a.T_world_camera, depth) for a in confirmed):
            return None
    return best.T_world_camera, best.keyframe.id, best.inliers


def side_of_view(view: View) -> Side:
    """A frame as one of two views."""
    return Side(view.features, view.camera, view.prediction.is_metric, view.depth, view.camera, lambda: view.surface)


def _ask(keyframe: Keyframe, store: KeyframeStore, side: Side, settings: VerifySettings) -> _Answer | None:
    verified = verify(side_of(keyframe, store), side, settings)
    if verified is None:
        return None
    return _Answer(keyframe, keyframe.T_world_camera @ verified.T_a_b, verified.inliers)
