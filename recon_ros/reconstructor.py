# SPDX-License-Identifier: Apache-2.0
"""The algorithm: one frame in, one update out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import Config, TrackingConfig, flatten, leaves
from recon_ros.errors import ConfigError, InputError, ReconError
from recon_ros.frame import Camera, Frame, Keyframe, Prediction, State, Update
from recon_ros.geometry import se3, surface
from recon_ros.geometry.features import Detector
from recon_ros.geometry.grid import Grid
from recon_ros.geometry.preparation import Prepared, prepare
from recon_ros.geometry.ray_pose import RunningFocal, on_calibrated_rays
from recon_ros.mapping import pose_graph
from recon_ros.mapping.atlas import Atlas, Correction
from recon_ros.mapping.folder import read_map
from recon_ros.mapping.map_data import MapData, SourceFacts
from recon_ros.mapping.reading import ReadableMap
from recon_ros.memory.selection import is_keyframe
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes import AUTO, make_source, named
from recon_ros.runtimes.step import StepRuntime
from recon_ros.tracking.keyframes import Placed, keyframe_of
from recon_ros.tracking.tracker import Track, Tracker
from recon_ros.tracking.trust import as_good_as
from recon_ros.tracking.view import View

COVARIANCE_INFLATION = 25.0
"""Residuals of one frame share causes (calibration, blur, rolling shutter) that least squares takes for independent;
measured on recordings, real errors are about five times the formal ones."""

MIN_SIZE = 32
"""Shorter side of an image in which keypoints can be found, pixels."""


def grid_for(config: Config, card: ModelCard, width: int, height: int) -> Grid:
    """The pixel grid that a source processes images of this size on."""
    largest = config.input.max_size
    return Grid.fit(width, height, min(largest, card.max_size or largest), card.multiple)


class Reconstructor(ReadableMap):
    """Turns frames into a map; synchronous and deterministic, the same frames give the same bits.

    The world frame is the first tracked camera's optical frame, made level (`geometry.gravity`) where its frame knows
    which way is down.

    Args:
        config: every choice there is.
        source: where pointmaps come from; made from `config.source` when None.
        live: loops are looked for and the map is corrected beside the tracking, which never waits for it; results then
            depend on timing.

    Raises:
        ConfigError, NetworkError: when the source cannot be made or a library it takes is missing.
        ReconError: when the map named by `map.load` cannot be loaded.
    """

    _tracker: Tracker
    _memory: Any
    """The source's."""
    _focal: RunningFocal
    _frames_without_pose: int
    _reference_id: int | None
    """The keyframe that the last frame with a pose hangs on."""
    _timings: dict[str, float]
    _broken_off: bool
    """Frames without a pose lie between here and the newest keyframe."""
    _newest: Placed | None
    """The last frame, while the camera is tracked."""

    def __init__(self, config: Config | None = None, source: StepRuntime | None = None, live: bool = False) -> None:
        self.config = named(config or Config())
        self._live = live
        self.source = source or make_source(self.config)
        if self.config.tracking.surface_sigma > 0:
            surface.require()
        if self.config.loops.enabled:
            pose_graph.require()
        self._detector = Detector(self.config.tracking.features)
        try:
            self.reset()
            if self.config.map.load:
                self.load_map(read_map(self.config.map.load))
        except BaseException:
            self.close()  # who gets no reconstructor cannot end its threads and its process
            raise

    def process(self, frame: Frame) -> Update:
        """Advance by one frame.

        Raises:
            InputError: when the frame cannot be used; nothing has changed, go on with the next.
        """
        self._timings = {}
        with self._timed("correct"):
            if self._is_mapping:
                self._follow(self._atlas.follow())
        with self._timed("prepare"):
            given = self._prepare(frame)
        with self._timed("step"):
            memory, prediction = self.source.step(self._memory, given.image, given.camera, given.depth)
            camera, prediction = self._calibrated(given.camera, prediction)
            prediction = _without(given.mask, prediction)
            self._memory = memory
        with self._timed("track"):
            view = View(frame.stamp_ns, given.image, camera, prediction, self._detector, given.mask, given.fine)
            track = self._track(view, frame)
        with self._timed("remember"):
            keyframe = self._remember(view, frame, track)
        return self._update(view, frame, track, keyframe)

    def _follow(self, correction: Correction | None) -> None:
        """Tracking goes on from where the keyframe of the last frame has moved to."""
        reference_id = self._reference_id
        if correction is None or reference_id is None or reference_id not in correction.before:
            return
        after = self._atlas.store[reference_id].T_world_camera
        self._tracker.follow(after @ se3.inverse(correction.before[reference_id]))

    def _prepare(self, frame: Frame) -> Prepared:
        """The frame undistorted and on the source's grid."""
        height, width = frame.image.shape[:2]
        if min(width, height) < MIN_SIZE:
            raise InputError("image", f"the image is {width}x{height}, at least {MIN_SIZE} is needed")
        return prepare(frame, self.grid(width, height), self.config.input.max_size)

    def _calibrated(self, camera: Camera | None, prediction: Prediction) -> tuple[Camera, Prediction]:
        """The points on the camera's rays; where K is unknown, on those of the focal length they imply."""
        points = prediction.points_self
        if camera is None:
            height, width = points.shape[:2]
            camera = Camera.from_focal(width, height, self._focal.update(points, prediction.confidence))
        if self.source.card.needs_depth:  # they come from rays
            return camera, prediction
        return camera, replace(prediction, points_self=on_calibrated_rays(points, camera))

    def _track(self, view: View, frame: Frame) -> Track | None:
        """The pose against the keyframes; the first frame that can carry a map defines the world."""
        T_odom_camera, trusted = frame.T_odom_camera, False
        if T_odom_camera is None and view.prediction.T_memory_camera is not None:
            T_odom_camera, trusted = view.prediction.T_memory_camera, True  # a network knows how it moved
        if len(self._atlas.store) > 0:
            track = self._tracker.track(
                view, self._atlas.store, T_odom_camera, trusted, self._atlas.places, self._atlas.connected
            )
            if track is None and self._is_astray and self._can_begin(view):
                track = self._begin_map(view, T_odom_camera, frame.gravity)
        elif self._can_begin(view):
            track = self._begin_map(view, T_odom_camera, frame.gravity)
        else:
            return None
        self._frames_without_pose = 0 if track is not None else self._frames_without_pose + 1
        return track

    @property
    def _is_astray(self) -> bool:
        """Lost for so long that a submap is better than nothing."""
        after = self.config.tracking.submap_after
        return 0 < after <= self._frames_without_pose

    def _can_begin(self, view: View) -> bool:
        """Whether a view can carry a map."""
        located = int(np.count_nonzero(view.features.located))
        return self._is_mapping and located >= 2 * self.config.tracking.min_inliers

    def _begin_map(
        self, view: View, T_odom_camera: NDArray[np.float64] | None, down: NDArray[np.float64] | None
    ) -> Track:
        """Start a map, or a submap where the camera may be; a loop will tell where it really is."""
        store, information = self._atlas.store, np.eye(6) * 1e12
        submap = store.new_submap() if len(store) else 0
        T_world_camera = self._atlas.first_pose(self._tracker.expected(view, T_odom_camera), down)
        self._tracker.begin(view, T_world_camera, T_odom_camera, submap)
        return Track(T_world_camera, store.next_id, 0.0, 0, 0.0 if submap else 1.0, information)

    def _remember(self, view: View, frame: Frame, track: Track | None) -> Keyframe | None:
        """Log the pose, make a keyframe when the view is new enough, keep within the bound."""
        self._newest = None
        if track is None:
            return None
        keyframe = None
        self._broken_off |= self._tracker.was_interrupted
        is_known = track.reference_id in self._atlas.store
        if self._is_mapping and (not is_known or self._is_new(view, track)):
            keyframe = self._keyframe(view, frame, track.T_world_view)
            reference_id = track.reference_id if is_known else None
            descriptor, uninterrupted = view.prediction.descriptor, not self._broken_off
            self._atlas.add(keyframe, reference_id, track.information, descriptor, uninterrupted, frame.gravity)
            self._broken_off = False
        reference = keyframe or self._atlas.store[track.reference_id]
        self._reference_id = reference.id
        T_reference_world = se3.inverse(reference.T_world_camera)
        self._newest = Placed(view, frame, track, reference.id, T_reference_world @ track.T_world_view)
        T_reference_camera = T_reference_world @ track.T_world_camera
        self._atlas.path.append(frame.stamp_ns, reference.id, T_reference_camera, track.T_world_camera)
        self._atlas.store.stay_by(reference.id)
        return keyframe

    @property
    def _is_mapping(self) -> bool:
        return self.config.mode == "mapping"

    def _is_new(self, view: View, track: Track) -> bool:
        T_reference_camera = se3.inverse(self._atlas.store[track.reference_id].T_world_camera) @ track.T_world_view
        return is_keyframe(self.config.memory, track.best_overlap, T_reference_camera, view.median_depth)

    def _keyframe(self, view: View, frame: Frame, T_world_camera: NDArray[np.float64]) -> Keyframe:
        stride, card = self.config.memory.points_stride, self.source.card
        return keyframe_of(self._atlas.store.next_id, view, frame, T_world_camera, stride, card)

    def _update(self, view: View, frame: Frame, track: Track | None, keyframe: Keyframe | None) -> Update:
        update = Update(
            stamp_ns=frame.stamp_ns,
            frame_id=frame.frame_id,
            state=self.state,
            T_world_camera=None,
            image=view.image,
            camera=view.camera,
            prediction=view.prediction,
            is_metric=view.prediction.is_metric,
            timings_ms=self._timings,
        )
        if track is None:
            return update
        reference = keyframe or self._atlas.store[track.reference_id]
        return replace(
            update,
            T_world_camera=track.T_world_camera,
            keyframe_id=None if keyframe is None else keyframe.id,
            reference_id=reference.id,
            T_reference_camera=se3.inverse(reference.T_world_camera) @ track.T_world_camera,
            inliers=track.inliers,
            confidence=track.confidence,
            covariance=np.asarray(COVARIANCE_INFLATION * np.linalg.inv(track.information)),
        )

    @property
    def state(self) -> State:
        """Where tracking stands after the last frame."""
        if len(self._atlas.store) == 0:
            return State.INITIALIZING
        if self._frames_without_pose == 0:
            return State.TRACKING
        lost = self._frames_without_pose >= self.config.tracking.lost_after
        return State.LOST if lost else State.RELOCALIZING

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._timings[stage] = (time.perf_counter() - start) * 1e3

    # -- maps ------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything that was seen; the source stays loaded."""
        self._begin(self._new_atlas())

    def load_map(self, data: MapData) -> None:
        """Go on with a saved map in place of what was seen: LOST until the camera is recognised in it, and then in its
        frame. With `mode` localization the map stays as it is.

        Raises:
            ReconError: when another source made the map, or its graph is none; nothing has changed then.
        """
        self.go_on_with(self.restored(data))

    def restored(self, data: MapData) -> Atlas:
        """A saved map made ready beside the present one: 25 ms a keyframe, which another thread may take.

        Raises:
            ReconError: see `load_map`.
        """
        name = self.source.card.name
        if data.source.name != name:
            raise ReconError(
                f"the map was made with the source '{data.source.name}', this is '{name}': they would not recognise "
                f"each other; set source to {data.source.name}"
            )
        atlas = self._new_atlas()
        try:
            atlas.restore(data)
        except BaseException:
            atlas.close()
            raise
        return atlas

    def go_on_with(self, atlas: Atlas) -> None:
        """`load_map` with a map that is ready."""
        self._begin(atlas)
        self._apply_to_map()
        self._lose(atlas.last_seen)  # who starts again has seldom been moved

    def lose(self) -> None:
        """Forget where the camera is, not the map: time has jumped, or somebody has carried it away."""
        self._lose(None)

    def hint(self, T_world_camera: NDArray[np.float64]) -> bool:
        """Where somebody says that the camera is: when it is looked for, keyframes near there are asked before others.

        Nothing is believed for it: a pose still has to be verified, and where nothing near confirms the hint, the rest
        of the map is asked as ever. It holds until the camera is found, and goes along with odometry where there is
        some. In a frozen map (`mode` localization) even a camera that is tracked is looked for anew.

        Args:
            T_world_camera: (4, 4).

        Returns:
            Whether it is used: not while there is no map, nor while a map grows that the camera is tracked in.

        Raises:
            InputError: ``hint`` when it is no rigid pose.
        """
        if not se3.is_valid(T_world_camera):
            raise InputError("hint", f"the hint is not a rigid (4, 4) pose: {np.asarray(T_world_camera)!r}")
        state = self.state
        if state is State.INITIALIZING or (state is State.TRACKING and self._is_mapping):
            return False
        if state is State.TRACKING:
            self.lose()
        self._tracker.hint(T_world_camera)
        return True

    def _lose(self, last_seen: int | None) -> None:
        self._begin_tracking()
        if len(self._atlas.store) > 0:
            self._tracker.lose(last_seen)
            self._frames_without_pose = self.config.tracking.lost_after

    def state_of_map(self, T_base_camera: NDArray[np.float64] | None = None) -> MapData:
        """The map as it is now, to be written by whoever has the time; see `mapping.folder` and `export.snapshot`.

        `T_base_camera` (4, 4) is where the camera sits on the robot; what a loaded map says of it stands.
        """
        card = self.source.card
        data = self._atlas.data(SourceFacts(card.name, card.family, card.weight_licence, card.is_metric))
        return replace(data, T_base_camera=T_base_camera) if data.T_base_camera is None else data

    def _new_atlas(self) -> Atlas:
        return Atlas(self._config_of_map(), self._live, scale_drifts=not self.source.card.is_metric)

    def _begin(self, atlas: Atlas) -> None:
        self.close()
        if hasattr(self, "_atlas"):
            atlas.drawing.take_the_place_of(self._atlas.drawing)
        self._atlas = atlas
        self._focal = RunningFocal()
        self._timings = {}
        self._begin_tracking()

    def _begin_tracking(self) -> None:
        self._memory = self.source.initial_memory()
        self._tracker = Tracker(self._tracking())
        self._frames_without_pose = 0
        self._reference_id = None
        self._broken_off = True
        self._newest = None

    def keep_last_view(self) -> Keyframe | None:
        """Make the last frame a keyframe though it shows little that is new, as before a map is written: who goes on
        with the map stands where this camera stood, and at the end of a turn the newest keyframe shows little of that.

        Returns:
            The keyframe; None where there is one already, the camera is not tracked, or `mode` is localization.
        """
        newest = self._newest
        if newest is None or not self._is_mapping or newest.reference_id not in self._atlas.store:
            return None
        reference = self._atlas.store[newest.reference_id]
        if reference.stamp_ns == newest.frame.stamp_ns:
            return None
        keyframe = self._keyframe(newest.view, newest.frame, reference.T_world_camera @ newest.T_reference_view)
        descriptor, information = newest.view.prediction.descriptor, newest.track.information
        uninterrupted, self._broken_off = not self._broken_off, False
        self._atlas.add(keyframe, reference.id, information, descriptor, uninterrupted, newest.frame.gravity)
        self._atlas.store.stay_by(keyframe.id)
        self._atlas.path.hang_newest_on(keyframe)
        self._reference_id = keyframe.id
        self._newest = replace(newest, reference_id=keyframe.id, T_reference_view=np.eye(4))
        return keyframe

    def catch_up(self) -> None:
        """Let the map follow what is known of loops by now, as before it is written; waits for nobody."""
        if self._is_mapping:
            self._follow(self._atlas.settle())

    def settle(self) -> None:
        """`catch_up`, and wait until the cloud is drawn, as a run ends."""
        self.catch_up()
        self._atlas.drawing.settle()

    def close(self) -> None:
        """End what works beside the tracking; the map can still be read."""
        if hasattr(self, "_atlas"):
            self._atlas.close()

    # -- configuration ---------------------------------------------------------------------------------------

    def set_config(self, config: Config) -> None:
        """Take over new values of the options that are dynamic.

        Raises:
            ConfigError: when another one would change; nothing has changed then.
        """
        if config.source == AUTO:
            config = replace(config, source=self.config.source)  # what it was decided to be
        for (name, old, field), new in zip(leaves(self.config), flatten(config).values(), strict=True):
            if old != new and not field.metadata["dynamic"]:
                raise ConfigError(f"option '{name}' cannot change from {old!r} to {new!r} while running: start anew")
        self.config = config
        self._tracker.config = self._tracking()
        self._apply_to_map()

    def _tracking(self) -> TrackingConfig:
        """The options of tracking, for depth as good as the source's card says."""
        return as_good_as(self.config.tracking, self.source.card.depth_error)

    def _config_of_map(self) -> Config:
        """The configuration, with what `_tracking` makes of it: loops are verified as a lost camera is."""
        return replace(self.config, tracking=self._tracking())

    def _apply_to_map(self) -> None:
        self._atlas.config = self._config_of_map()
        self._atlas.drawing.set_config(self.config.map)

    def grid(self, width: int, height: int) -> Grid:
        """The pixel grid that images of this size are processed on, with the way there and back."""
        return grid_for(self.config, self.source.card, width, height)


def _without(mask: NDArray[np.bool_] | None, prediction: Prediction) -> Prediction:
    """Confidence 0 where an (h, w) mask excludes; the points stay, for who wants them all the same."""
    if mask is None:
        return prediction
    return replace(prediction, confidence=np.where(mask, np.float32(0), prediction.confidence))
