# SPDX-License-Identifier: Apache-2.0
"""The pose of a frame: start from the previous frame, register against keyframes, settle on their surfaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import TrackingConfig
from recon_ros.frame import Keyframe
from recon_ros.geometry import pnp, se3
from recon_ros.geometry.features import Features, match
from recon_ros.geometry.pnp import Observations
from recon_ros.geometry.two_view import VerifySettings
from recon_ros.memory.places import PlaceIndex
from recon_ros.memory.store import KeyframeStore
from recon_ros.tracking import registration, unit
from recon_ros.tracking.relocalize import MARGIN, Hint, InTurn, Near, Proposals, relocalize
from recon_ros.tracking.view import View

SEARCH_RADIUS = 12.0
"""Where a keyframe's point is looked for once the pose is known to a few pixels."""
PRIOR_RADIUS = 40.0
"""Where it is looked for when only motion says where it may be."""
MIN_REFERENCE_OVERLAP = 0.1
LOCAL_WAY = 6.0
"""A frame is registered against keyframes that are this many depths of its view away at most, over the ways on which
they were tracked: tracking that is off by 1° in 10 m then puts their points within `SEARCH_RADIUS`."""
IN_TURN = 3
"""A lost camera asks one keyframe whose turn it is for so many that look like its view."""
UNCONFIRMED_INFORMATION = 100.0
"""Of a pose nobody has confirmed: a decimetre and a tenth of a radian."""

Matrix = NDArray[np.float64]
Connected = Callable[[int, float], "set[int] | None"]
"""Keyframes whose pose relative to a given one can be relied on, over a way of given length at most; None for all."""


@dataclass(frozen=True, eq=False)
class Track:
    """A frame's pose and what supports it.

    Attributes:
        T_world_camera: (4, 4).
        reference_id: the keyframe that sees most of the frame.
        best_overlap: the share it sees.
        inliers: keypoints that support the pose.
        confidence: their share of all keypoints that were matched, [0, 1].
        information: (6, 6) of a right perturbation (v, ω) of the pose, in the camera frame.
        scale: units of the world in one of the frame's points; 1 for sources that know the metre.
    """

    T_world_camera: Matrix
    reference_id: int
    best_overlap: float
    inliers: int
    confidence: float
    information: Matrix
    scale: float = 1.0

    @property
    def T_world_view(self) -> Matrix:
        """(4, 4) Sim(3) that maps points of the frame, in its unit, to the world."""
        return se3.scaled(self.T_world_camera, self.scale)


@dataclass(frozen=True, eq=False)
class _Start:
    """A first pose, the observations that gave it, and the keyframe it hangs on."""

    T_world_camera: Matrix
    observations: Observations
    keyframe_id: int | None


@dataclass(frozen=True, eq=False)
class _Previous:
    """What is remembered of the last tracked frame."""

    stamp_ns: int
    features: Features
    T_world_camera: Matrix
    T_odom_camera: Matrix | None
    scale: float = 1.0


class Tracker:
    """Tracks one camera against a store of keyframes.

    The start comes from the previous frame (features, then predicted motion), and from stored keyframes when that
    fails, which is also how a lost camera is found again. The pose is then that of a least-squares problem over
    all observations in the most covisible keyframes, pixels and depths together, and of the registration of its
    depth surface with theirs. Both are weighed by their information matrices, so that a bare wall fixes what it
    can and features fix the rest.
    """

    def __init__(self, config: TrackingConfig) -> None:
        self.config = config
        self._previous: _Previous | None = None
        self._velocity = np.zeros(6)
        self._interrupted = False
        self._last_seen: int | None = None
        self._next_candidate = 0
        self._hint: Hint | None = None
        self._reference_id: int | None = None
        self._connected: Connected | None = None
        self.was_interrupted = False
        """The last frame with a pose came after frames without."""
        self.submap = 0
        """Of the store's: in whose frame the poses are."""

    def begin(self, view: View, T_world_camera: Matrix, T_odom_camera: Matrix | None, submap: int = 0) -> None:
        """Start tracking from a frame whose pose is given, in the frame of a submap."""
        self.submap = submap
        self._reference_id = None
        self._velocity = np.zeros(6)
        self._remember(view, T_world_camera, T_odom_camera)

    def lose(self, last_seen: int | None = None) -> None:
        """Nothing is known of where the camera is, but maybe the keyframe it was last seen at: it is looked for in the
        whole map.
        """
        self._previous, self._interrupted, self._last_seen = None, True, last_seen

    def hint(self, T_world_camera: Matrix) -> None:
        """Somebody says where the camera is: near there it is looked for first, until it is found."""
        self._hint = Hint(T_world_camera)

    def expected(self, view: View, T_odom_camera: Matrix | None) -> Matrix:
        """Where a camera that is lost may be: where it was last, or where odometry has taken it since."""
        return np.eye(4) if self._previous is None else self._predicted(view, self._previous, T_odom_camera)

    def follow(self, T_after_before: Matrix) -> None:
        """The map around the last tracked frame has moved: it goes along; motion relative to it stays."""
        previous = self._previous
        if previous is not None:
            growth = se3.scale_of(T_after_before)
            T_world_camera = se3.rigid(T_after_before @ previous.T_world_camera)
            self._previous = replace(previous, T_world_camera=T_world_camera, scale=growth * previous.scale)
            self._velocity[:3] *= growth

    def track(
        self,
        view: View,
        store: KeyframeStore,
        T_odom_camera: Matrix | None,
        trust_prior: bool = False,
        places: PlaceIndex | None = None,
        connected: Connected | None = None,
    ) -> Track | None:
        """The frame's pose, or None when nothing fits; the tracker then looks again with the next frame.

        Args:
            view: the frame.
            store: with one keyframe at least.
            T_odom_camera: (4, 4) pose prior in a frame of its own, or None; only its increments are used.
            trust_prior: take the prior's word where nothing confirms it. For networks that estimate poses themselves.
            places: index of the store's keyframes, with which a camera that has lost itself is found again.
            connected: tells which keyframes belong to the surroundings of one; all where it is None.
        """
        self._connected = connected
        track = self._confirmed(view, store, T_odom_camera, places)
        if track is None and trust_prior:
            track = self._believed(view, store, T_odom_camera)
        if track is None:
            self._interrupted = True
            return None
        self._reference_id = track.reference_id
        self.was_interrupted = self._interrupted
        self._velocity = self._measured_velocity(view, track.T_world_camera)
        self._remember(view, track.T_world_camera, T_odom_camera, track.scale)
        return track

    def _confirmed(
        self, view: View, store: KeyframeStore, T_odom_camera: Matrix | None, places: PlaceIndex | None
    ) -> Track | None:
        """A pose that enough keypoints support."""
        if len(view.features) < self.config.min_inliers:
            return None
        for start in self._starts(view, store, T_odom_camera, places):
            track = self._register(view, store, start)
            if track is not None:
                return track
        return None

    def _believed(self, view: View, store: KeyframeStore, T_odom_camera: Matrix | None) -> Track | None:
        """The prior's pose as it is, next to the keyframe that sees most of it, else the newest."""
        if self._previous is None or T_odom_camera is None or self._previous.T_odom_camera is None:
            return None
        T_world_camera = self._predicted(view, self._previous, T_odom_camera)
        scale = self._previous.scale
        T_world_view = se3.scaled(T_world_camera, scale)
        references, best_overlap = self._references(view, store, T_world_view, self._reference_id)
        reference = references[0] if references else store.keyframes[-1]
        return Track(T_world_camera, reference.id, best_overlap, 0, 0.0, UNCONFIRMED_INFORMATION * np.eye(6), scale)

    def _remember(self, view: View, T_world_camera: Matrix, T_odom_camera: Matrix | None, scale: float = 1.0) -> None:
        self._previous = _Previous(view.stamp_ns, view.features.only_located(), T_world_camera, T_odom_camera, scale)
        self._interrupted, self._last_seen, self._hint = False, None, None

    def _starts(
        self, view: View, store: KeyframeStore, T_odom_camera: Matrix | None, places: PlaceIndex | None
    ) -> Iterator[_Start | None]:
        """First poses in the order of their price; the next is only tried when one did not lead anywhere."""
        previous = self._previous
        if previous is not None:
            T_world_previous = se3.scaled(previous.T_world_camera, previous.scale)
            start = self._from_features(view, previous.features, T_world_previous, self._reference_id)
            yield start if self._is_credible(start) else None
            if not self._interrupted or T_odom_camera is not None:  # else nothing says where it has gone meanwhile
                yield self._from_motion(view, store, self._predicted(view, previous, T_odom_camera))
        newest = store.keyframes[-1]
        if not self._interrupted and store.submap_of(newest.id) == store.joined(self.submap):
            yield self._from_features(view, newest.features, newest.T_world_camera, newest.id)
        elif places is not None:
            yield from self._from_places(view, store, places, T_odom_camera)

    def _is_credible(self, start: _Start | None) -> bool:
        """Whether a start may be right: after frames without a pose the last view is only one of many."""
        if start is None or not self._interrupted:
            return start is not None
        return len(start.observations) >= MARGIN * self.config.min_inliers

    def _from_places(
        self, view: View, store: KeyframeStore, places: PlaceIndex, T_odom_camera: Matrix | None
    ) -> Iterator[_Start | None]:
        """Where the keyframes that look alike say the camera is, then some of the others in turn: a view that stands
        still looks like the same ones again and again. Each answer is verified, and asks for a second one that agrees.
        """
        settings = VerifySettings(
            reprojection_threshold=self.config.reprojection_threshold,
            depth_sigma=self.config.depth_sigma,
            surface_sigma=self.config.surface_sigma,
        )
        for candidates, count in self._proposals(view, store, places, T_odom_camera):
            found = relocalize(view, store, candidates, count, settings, self._last_seen)
            if found is not None:
                before, self.submap = self.submap, store.submap_of(found[1])
                yield _Start(found[0], Observations.concatenated([]), found[1])
                self.submap = before

    def _proposals(
        self, view: View, store: KeyframeStore, places: PlaceIndex, T_odom_camera: Matrix | None
    ) -> Iterator[tuple[Proposals, int]]:
        """Who names keyframes to ask, and how many; near a hint first, and further from it with every frame."""
        most, hint = self.config.relocalization_candidates, self._hint
        if hint is not None:
            asked, hint.asked = hint.asked, hint.asked + most
            yield Near(store, hint.now(T_odom_camera), view.median_depth, asked), most
        yield places, most
        if hint is None:
            turn, in_turn = self._next_candidate, max(1, most // IN_TURN)
            self._next_candidate += in_turn
            yield InTurn(store, turn), in_turn

    def _predicted(self, view: View, previous: _Previous, T_odom_camera: Matrix | None) -> Matrix:
        """Where odometry, or else constant velocity, puts the camera."""
        if T_odom_camera is not None and previous.T_odom_camera is not None:
            step = se3.inverse(previous.T_odom_camera) @ T_odom_camera
            return previous.T_world_camera @ se3.make(step[:3, :3], previous.scale * step[:3, 3])
        if self._interrupted:
            return previous.T_world_camera
        return previous.T_world_camera @ se3.exp(self._velocity * (view.stamp_ns - previous.stamp_ns) / 1e9)

    def _measured_velocity(self, view: View, T_world_camera: Matrix) -> NDArray[np.float64]:
        """(6,) twist per second since the previous frame; zero where frames without a pose lie between."""
        previous = self._previous
        if previous is None or self._interrupted or view.stamp_ns <= previous.stamp_ns:
            return np.zeros(6)
        seconds = (view.stamp_ns - previous.stamp_ns) / 1e9
        return se3.log(se3.inverse(previous.T_world_camera) @ T_world_camera) / seconds

    def _from_features(
        self, view: View, features: Features, T_world_features: Matrix, keyframe_id: int | None
    ) -> _Start | None:
        """Match located features of a known pose against the view's, then PnP."""
        pairs = match(features, view.features)
        if len(pairs) < self.config.min_inliers:
            return None
        points = se3.transform(T_world_features, features.points[pairs[:, 0]].astype(np.float64))
        return self._ransac(view, registration.observations_of(view, points, pairs[:, 1]), keyframe_id)

    def _from_motion(self, view: View, store: KeyframeStore, T_world_camera: Matrix) -> _Start | None:
        """Look for the keyframes' points where the predicted pose puts them, then PnP."""
        scale = 1.0 if self._previous is None else self._previous.scale
        references, _ = self._references(view, store, se3.scaled(T_world_camera, scale), self._reference_id)
        observations = registration.observe(view, references, T_world_camera, PRIOR_RADIUS)
        return self._ransac(view, observations, self._reference_id)

    def _ransac(self, view: View, observations: Observations, keyframe_id: int | None) -> _Start | None:
        if len(observations) < self.config.min_inliers:
            return None
        found = pnp.ransac(observations, view.camera, self.config.reprojection_threshold)
        if found is None or len(found[1]) < self.config.min_inliers:
            return None
        T_camera_world, inliers = found
        kept = observations[inliers]
        if self._previous is not None:
            kept = unit.in_unit(view, kept, self._previous.scale)
        refined = pnp.refine(T_camera_world, kept, view.camera, self.config.depth_sigma, iterations=5)
        return None if refined is None else _Start(se3.inverse(refined.T_camera_w), kept, keyframe_id)

    def _references(
        self, view: View, store: KeyframeStore, T_world_camera: Matrix, around: int | None
    ) -> tuple[list[Keyframe], float]:
        """The most covisible keyframes in the surroundings of one, best first, and the share that the best one sees."""
        ids, shares = store.overlaps(view.probe, T_world_camera, self.submap)
        if around is not None and self._connected is not None:
            local = self._connected(around, LOCAL_WAY * view.median_depth)
            shares = shares if local is None else shares * np.isin(ids, list(local))
        order = np.argsort(-shares, kind="stable")[: self.config.references]
        chosen = [store[int(ids[i])] for i in order if shares[i] > MIN_REFERENCE_OVERLAP]
        return chosen, float(shares.max(initial=0.0))

    def _register(self, view: View, store: KeyframeStore, start: _Start | None) -> Track | None:
        """Refine a start against the covisible keyframes; None when they do not support it."""
        if start is None:
            return None
        T_start, near = se3.rigid(start.T_world_camera), start.keyframe_id
        scale = self._expected_scale(store, near)
        references, best_overlap = self._references(view, store, se3.scaled(T_start, scale), near)
        if not references:
            return None
        seen = registration.observe(view, references, T_start, SEARCH_RADIUS)
        observations = Observations.concatenated([seen, start.observations])
        found = unit.refine(view, observations, T_start, scale, self.config.depth_sigma)
        if found is None:
            return None
        refined, scale = found
        inliers = len(np.unique(observations.features[refined.inliers]))
        if inliers < self.config.min_inliers:
            return None
        T_world_camera, information = registration.settle(
            view,
            store,
            references,
            se3.inverse(refined.T_camera_w),
            refined.information,
            self.config.surface_sigma,
        )
        return Track(
            T_world_camera,
            references[0].id,
            best_overlap,
            inliers,
            inliers / len(np.unique(observations.features)),
            information,
            scale,
        )

    def _expected_scale(self, store: KeyframeStore, keyframe_id: int | None) -> float:
        """Of a frame, before it is measured: that of the frame before, else of a keyframe."""
        if self._previous is not None and not self._interrupted:
            return self._previous.scale
        known = keyframe_id is not None and keyframe_id in store
        return se3.scale_of(store[keyframe_id].T_world_camera) if known else 1.0  # type: ignore[index]
