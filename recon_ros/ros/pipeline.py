# SPDX-License-Identifier: Apache-2.0
"""What happens to a frame in the worker's thread, from the pair of messages to the last publication."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from recon_ros.config import Config, NodeConfig, nested
from recon_ros.errors import ConfigError, InputError
from recon_ros.export.snapshot import Snapshot
from recon_ros.frame import Frame, State, Update
from recon_ros.geometry import se3
from recon_ros.intake import Intake, Pair
from recon_ros.mapping.atlas import Atlas
from recon_ros.reconstructor import Reconstructor
from recon_ros.ros import gravity, interface, odometry, tf
from recon_ros.ros.frames import SAME_TIME_NS, Frames, Poses
from recon_ros.ros.initial_pose import pose_of_base
from recon_ros.ros.map_outputs import MapOutputs
from recon_ros.ros.mount import Mount, mount_from_text
from recon_ros.ros.objects import Objects
from recon_ros.ros.outputs import Outputs
from recon_ros.ros.statistics import Statistics, Throttle
from recon_ros.ros.status import status_message
from recon_ros.runtimes.status import BUILDING, RuntimeStatus, close_source, status_of

NEW_BEGINNING = "stamp_jump"
"""The intake's word for a stamp far back: the frame is not skipped but the first of a new beginning."""

TOLD_OTHERWISE = (NEW_BEGINNING, "engine_building", "initialpose")
"""Reasons that have a line of their own in the log."""


class Pipeline:
    """The core and everything that feeds on it. After `__init__`, for the worker's thread only, but for what says
    otherwise (`MapOutputs`).

    Raises:
        ConfigError, NetworkError: when the configuration cannot be run.
    """

    def __init__(self, node: Node, config: Config, node_config: NodeConfig, statistics: Statistics) -> None:
        self._node, self._log = node, node.get_logger()
        self.config, self.node_config = config, node_config
        self.statistics = statistics
        mount = mount_from_text(node_config.base_to_camera)
        self.reconstructor = Reconstructor(config, live=True)
        card = self.reconstructor.source.card
        if card.needs_depth and not node_config.use_depth:
            self.reconstructor.close()
            raise ConfigError(f"source '{config.source}' needs a depth stream, but use_depth is false")
        if not card.needs_depth:
            self.node_config = node_config = dataclasses.replace(node_config, use_depth=False)
        tolerance_ns = round(node_config.sync_tolerance * 1e9)
        self.intake = Intake(config.input, node_config.use_depth, tolerance_ns, card.needs_camera)
        self.tf = tf.make(node, self._warn_of_foreign_edge)
        self.mount = Mount(node, node_config, self.tf, mount)
        self.frames = Frames(node, node_config, self.tf)
        self.odometry = odometry.make(node, node_config, self.tf)
        self.gravity = gravity.make(node, node_config, self.tf)
        self._mount_is_checked = False
        self.outputs = Outputs(node, node_config, config.map.min_confidence)
        self.objects = Objects(self.outputs, self.intake, statistics, self._log.warning, tolerance_ns)
        self.map_outputs = MapOutputs(self.reconstructor, self.outputs, self.mount, statistics, node_config)
        self.cancelled: Callable[[], bool] = lambda: False
        self.paused = False
        self._said_pose: se3.Matrix | None = None
        self._throttle = Throttle()
        self._faults: set[str] = set()
        self._foreign: set[tuple[str, str]] = set()
        self._last_status = 0.0
        self._note_map()

    def close(self) -> None:
        """Take the topics down, drop the map, give the source back."""
        self.reconstructor.close()
        close_source(self.reconstructor.source)
        self.odometry.close()
        self.gravity.close()
        self.outputs.close()
        self.tf.close()

    # -- a frame ---------------------------------------------------------------------------------------------

    def handle(self, pair: Pair) -> None:
        """Decode, process, publish; an unusable frame is counted and said, and changes nothing."""
        started = time.monotonic()
        frame = self._decode(pair)
        if frame is not None:
            try:
                self._process(frame, started)
            except InputError as error:
                self.intake.skip(error)
        self.publish_status()
        self.say_warnings()

    def failed(self, error: Exception) -> None:
        """An exception that is nobody's fault but ours: said once with its trace, counted, survived."""
        if not self._node.context.ok():
            return  # the process is ending and has pulled the publishers away
        self.statistics.count("errors")
        kind = f"{type(error).__name__} in {traceback.extract_tb(error.__traceback__)[-1].name}"
        if kind not in self._faults:
            self._faults.add(kind)
            trace = "".join(traceback.format_exception(error))
            self._log.error(f"something was lost to an internal error, only counted from now on: {kind}\n{trace}")

    def _decode(self, pair: Pair) -> Frame | None:
        """The frame, or None when it is unusable, which the intake has counted."""
        try:
            return self.intake.frame(pair)
        except InputError as error:
            if error.reason != NEW_BEGINNING:
                return None
            self._log.warning(f"{error}; starting anew")
            self.begin_anew()
            return self._decode(pair)

    def _process(self, frame: Frame, started: float) -> None:
        T_base_camera = self.mount.find(frame.frame_id)
        T_odom_base = self.odometry.at(frame.stamp_ns, self.cancelled)
        if T_odom_base is not None and T_base_camera is not None:
            frame = dataclasses.replace(frame, T_odom_camera=T_odom_base @ T_base_camera)
        frame = self._with_gravity(frame, T_base_camera)
        self._check_mount(T_base_camera)
        if self._said_pose is not None and T_base_camera is not None:
            self._look_near(self._said_pose @ T_base_camera)
        before = time.monotonic()
        update = self.reconstructor.process(frame)
        inference_ms = (time.monotonic() - before) * 1e3
        poses = None
        if T_base_camera is not None:  # otherwise TF is still given time to tell; the map grows meanwhile
            T_map_world = self.map_outputs.T_map_world
            poses = self.frames.place(update, T_base_camera, T_odom_base, self._keyframe_pose, T_map_world)
        self._publish(frame, update, poses)
        self._note(update, frame.image.shape[:2], inference_ms, self._latency_ms(update.stamp_ns, started))

    def _with_gravity(self, frame: Frame, T_base_camera: se3.Matrix | None) -> Frame:
        """The frame with what is known of gravity; InputError ``gravity`` while a map waits for it to begin level."""
        down = self.gravity.at(frame.stamp_ns, self.mount.camera_frame, T_base_camera)
        begins = self.config.map.level and self.reconstructor.state is State.INITIALIZING
        if down is None and begins and self.gravity.is_awaited():
            raise InputError("gravity", f"which way is down is not known yet (gravity: {self.node_config.gravity})")
        return dataclasses.replace(frame, gravity=down)

    def _check_mount(self, T_base_camera: se3.Matrix | None) -> None:
        """Warn once of a loaded map that was made with the camera elsewhere on the robot."""
        if self._mount_is_checked or T_base_camera is None:
            return
        self._mount_is_checked = True
        if (trouble := self.reconstructor.other_mount(T_base_camera)) is not None:
            self._log.warning(trouble)

    def _look_near(self, T_map_camera: se3.Matrix) -> None:
        """Pass on what initialpose says, and say whether it is any use."""
        self._said_pose = None
        state = self.reconstructor.state
        used = self.reconstructor.hint(se3.inverse(self.map_outputs.T_map_world) @ T_map_camera)
        if used:
            self._log.info("initialpose: the camera is looked for near there first")
        elif state is State.INITIALIZING:
            self._log.warning("initialpose is not used: there is no map yet; load one with ~/load_map or map.load")
        else:
            self._log.warning(
                "initialpose is not used: the camera is tracked in a map that grows; set mode to localization (or call "
                "~/localize_only) to have it looked for elsewhere"
            )

    def _publish(self, frame: Frame, update: Update, poses: Poses | None) -> None:
        confidence = self.reconstructor.source.card.normalised(update.prediction.confidence)
        self.frames.broadcast(update.stamp_ns, poses)
        if poses is None:
            self.outputs.forget()
        else:
            self.outputs.poses(update, poses)
            if update.keyframe_id is not None:
                self.outputs.points(update, poses, confidence, self.mount.camera_frame)
        self.outputs.images(update, confidence, self.mount.camera_frame)
        height, width = frame.image.shape[:2]
        grid = self.reconstructor.grid(width, height)
        self.objects.add_frame(frame, update, confidence, grid, self.mount.camera_frame)
        self.map_outputs.last_stamp_ns = update.stamp_ns
        self.map_outputs.keyframes()

    def _note(self, update: Update, image_size: tuple[int, ...], inference_ms: float, latency_ms: float) -> None:
        s = self.statistics
        s.size = (image_size[1], image_size[0])
        s.confidence, s.is_metric = update.confidence, update.is_metric
        s.loops, s.submaps = len(self.reconstructor.loops), self.reconstructor.submaps
        if update.keyframe_id is not None:
            self._note_map()
        s.frame_processed(update.state, inference_ms, latency_ms)

    def _note_map(self) -> None:
        s, usage = self.statistics, self.reconstructor.keyframe_usage
        s.keyframes = len(self.reconstructor.keyframes)
        s.keyframe_ram_mb, s.keyframe_disk_mb = usage.ram_bytes / 2**20, usage.disk_bytes / 2**20
        s.state = self.reconstructor.state

    def _latency_ms(self, stamp_ns: int, started: float) -> float:
        """From the image's stamp to now; where clock and stamps are not of one time, of the processing alone."""
        age_ns = self._node.get_clock().now().nanoseconds - stamp_ns
        if abs(age_ns) < SAME_TIME_NS:
            return float(age_ns / 1e6)
        return (time.monotonic() - started) * 1e3

    def _keyframe_pose(self, keyframe_id: int) -> se3.Matrix | None:
        return next((k.T_world_camera for k in self.reconstructor.keyframes if k.id == keyframe_id), None)

    # -- commands --------------------------------------------------------------------------------------------

    def take_initial_pose(self, message: Any) -> None:
        """A geometry_msgs/PoseWithCovarianceStamped; it waits for a frame, which may be the first."""
        try:
            self._said_pose = pose_of_base(message, self.node_config.map_frame)
        except InputError as error:
            self.intake.skip(error)
            if self._throttle.passes(str(error)):  # a person waits for the answer to each click
                self._log.warning(str(error))

    def reset(self) -> None:
        """Forget map, poses and memory; the source stays loaded. Latched topics will show the empty map."""
        self.reconstructor.reset()
        self._forget_inputs()
        self._turn_to_map()

    def begin_anew(self) -> None:
        """Time has jumped back: a frozen map stays, and the camera is looked for in it; any other is forgotten."""
        if self.config.mode == "mapping":
            self.reset()
        else:
            self.reconstructor.lose()
            self._forget_inputs()
            self._note_map()

    def go_on_with(self, atlas: Atlas) -> None:
        """Another map in place of this one; see `Reconstructor.load_map`."""
        self.reconstructor.go_on_with(atlas)
        self._mount_is_checked = False
        self.frames.reset()
        self.outputs.forget()
        self._turn_to_map()

    def _forget_inputs(self) -> None:
        self.intake.reset()
        self.frames.reset()
        self.odometry.clear()
        self.gravity.clear()
        self.tf.clear()
        self.outputs.forget()
        self.objects.clear()

    def _turn_to_map(self) -> None:
        """Another map is the map now."""
        self._said_pose = None
        self.statistics.forget_map()
        self._note_map()
        self.map_outputs.turn()

    def apply(self, config: Config, node_config: NodeConfig) -> None:
        """Take over the dynamic parameters."""
        self.config, self.node_config = config, node_config
        self.reconstructor.set_config(config)
        self.frames.transform_tolerance = node_config.transform_tolerance
        self.outputs.points_stride = node_config.points_stride
        self.outputs.min_confidence = config.map.min_confidence

    def snapshot(self) -> Callable[[], Snapshot]:
        """All that ~/save_map writes, as it is now; for who writes it, because its cloud may still have to be drawn."""
        if self.reconstructor.keep_last_view() is not None:
            self._note_map()
            self.map_outputs.keyframes()
        self.reconstructor.catch_up()
        data, cloud = self.reconstructor.state_of_map(self.mount.T_base_camera), self.reconstructor.whole_cloud
        config = nested(self.config) | {"node": nested(self.node_config)}
        return lambda: Snapshot(data, cloud(), config)

    # -- words -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The core's, or PAUSED."""
        return State.PAUSED if self.paused else self.statistics.state

    @property
    def engine(self) -> RuntimeStatus:
        """How it stands with who executes the source."""
        return status_of(self.reconstructor.source)

    def publish_status(self) -> None:
        """~/status."""
        self._last_status = time.monotonic()
        if self.outputs.wanted(interface.STATUS):
            name = self._node.get_fully_qualified_name()
            message = status_message(name, self.statistics, self.state, self._skipped(), self.reconstructor.source)
            self.outputs.publish(interface.STATUS, message)

    def seconds_since_status(self) -> float:
        """How long nobody has published it."""
        return time.monotonic() - self._last_status

    def say_warnings(self) -> None:
        """What the intake has refused since the last time, and how far a build is: one line per reason and five
        seconds.
        """
        for reason, text in self.intake.warnings().items():
            if reason not in TOLD_OTHERWISE and self._throttle.passes(reason):
                self._log.warning(f"{reason}: {text}")
        engine = self.engine
        if engine.state == BUILDING and self._throttle.passes(BUILDING):
            self._log.info(engine.message)

    def _skipped(self) -> dict[str, int]:
        """Messages refused, by reason."""
        counters = self.intake.counters
        skipped = {name[len("skipped_") :]: n for name, n in counters.items() if name.startswith("skipped_")}
        skipped.pop(NEW_BEGINNING, None)
        return skipped | {"unpaired_image": counters["unpaired_images"]}

    def _warn_of_foreign_edge(self, parent: str, child: str) -> None:
        if (parent, child) in self._foreign:
            return
        self._foreign.add((parent, child))
        topics = ("/tf", "/tf_static")
        publishers = [p for topic in topics for p in self._node.get_publishers_info_by_topic(topic)]
        others = ", ".join(sorted({p.node_name for p in publishers} - {self._node.get_name()}))
        self._log.warning(
            f"another node broadcasts the TF edge {parent} → {child}, and so do we: the robot will flicker. One of "
            f"{others or 'the publishers of /tf'} does; stop it, or set publish_tf to false or odom_source to tf"
        )
