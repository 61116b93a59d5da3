# SPDX-License-Identifier: Apache-2.0
"""Frames from a ROS recording: the same intake as the live node, without a ROS graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import InputConfig
from recon_ros.datasets.storage import RawMessage, Recording
from recon_ros.datasets.topics import TF_TYPE, Topics, describe, find_topics, tf_topic
from recon_ros.errors import DatasetError, InputError
from recon_ros.frame import Frame, Trajectory
from recon_ros.geometry import se3
from recon_ros.intake import Intake, Pair
from recon_ros.messages import stamp_ns

__all__ = ["BagReader", "Topics"]

TOLERANCE_NS = 20_000_000


class BagReader:
    """A recording as a stream of frames, the same ones each time.

    Reads rosbag2 folders, with or without (or with a damaged) ``metadata.yaml``, single ``.mcap`` and
    ``.db3`` files, and ROS 1 ``.bag`` files. An mcap file that is cut off gives what is before the cut, and
    `loss` says so.

    Args:
        path: file or folder.
        topics: those that are None are found; see `topics.find_topics` for how.
        config: how frames are prepared; with `mask`, each waits for its mask.
        use_depth: pair images with depth. False ignores depth topics.
        tolerance_ns: largest stamp difference of an image and its depth.
        require_camera: refuse a recording without camera_info.

    Attributes:
        topics: the topics in use.

    Raises:
        DatasetError: when there is no recording, or it lacks images or the depth, mask or calibration asked for.
    """

    def __init__(
        self,
        path: str | Path,
        topics: Topics | None = None,
        config: InputConfig | None = None,
        *,
        use_depth: bool = True,
        tolerance_ns: int = TOLERANCE_NS,
        require_camera: bool = True,
    ) -> None:
        self.path = Path(path)
        self.use_depth = use_depth
        self._config = config or InputConfig()
        self._tolerance_ns = tolerance_ns
        self._require_camera = require_camera
        self._recording = Recording(self.path)
        try:
            self.topics = find_topics(self._recording, topics or Topics())
            self._check_needs()
        except DatasetError:
            self._recording.close()
            raise
        self._intake = self._new_intake()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._recording.close()

    def __len__(self) -> int:
        """Number of images: as many frames as there can be."""
        assert self.topics.image is not None
        return self._recording.channels[self.topics.image].count

    @property
    def loss(self) -> str | None:
        """What of the recording could not be read; None while nothing is known to be lost.

        Damage in the middle of a file shows only when reading arrives there.
        """
        return self._recording.loss

    @property
    def counters(self) -> dict[str, int]:
        """The `Intake.counters` of the last (or current) run of `frames`, and ``unreadable`` messages."""
        return {**self._intake.counters, "unreadable": self._unreadable}

    def warnings(self) -> dict[str, str]:
        """See `Intake.warnings`."""
        return self._intake.warnings()

    def frames(self) -> Iterator[Frame]:
        """The frames in the order of recording; unusable messages are skipped and counted.

        Stamps are those of the message headers. A camera_info recorded after the first image counts for that
        image, too.
        """
        self._intake = self._new_intake()
        image, camera_info, depth = self.topics.image, self.topics.camera_info, self.topics.depth
        first_info = self._recording.first(camera_info) if camera_info else None
        if first_info is not None:
            self._intake.on_camera_info(first_info)
        mask = self.topics.mask if self._config.mask else None
        wanted = [image, camera_info, depth if self.use_depth else None, mask]
        take_in = {image: self._intake.on_image, depth: self._intake.on_depth, mask: self._intake.on_mask}
        for topic, msg in self._recording.objects([topic for topic in wanted if topic]):
            if msg is None:
                self._unreadable += 1
            elif topic == camera_info:
                self._intake.on_camera_info(msg)
            else:
                yield from self._decoded(take_in[topic](msg))
        yield from self._decoded(self._intake.flush())

    def ground_truth(self) -> Trajectory | None:
        """The recorded true trajectory, by header stamps; None when the recording has none.

        The poses are taken as T_world_camera: a ground truth topic is assumed to be about the optical frame
        of the camera. Where it is about the robot's base, the two differ by a fixed transform. Of /tf, the
        edge is taken whose child is the image's frame, unless the topic names another (``/tf:child``).
        """
        if not self.topics.ground_truth:
            return None
        poses = dict(self._true_poses(self.topics.ground_truth))
        stamps = sorted(poses)
        return Trajectory(np.array(stamps, dtype=np.int64), np.array([poses[stamp] for stamp in stamps]))

    def raw_messages(self, topics: Collection[str] | None = None) -> Iterator[RawMessage]:
        """Topic, type, time of recording (nanoseconds) and CDR data of each message, for a player.

        Args:
            topics: only these; None is all.

        Raises:
            DatasetError: for a ROS 1 recording, whose messages are not CDR.
        """
        if self._recording.is_ros1:
            raise DatasetError(f"'{self.path}' is of ROS 1 and cannot be played to ROS 2; use rosbags-convert first")
        return self._recording.messages(list(self._recording.channels) if topics is None else topics)

    def message_type(self, topic: str) -> str:
        """Type of a topic, ``package/msg/Name``."""
        return self._recording.channels[topic].msgtype

    def _new_intake(self) -> Intake:
        self._unreadable = 0
        return Intake(self._config, self.use_depth, self._tolerance_ns, self._require_camera)

    def _check_needs(self) -> None:
        has = f"'{self.path}' has {describe(self._recording)}"
        if self.use_depth and not self.topics.depth:
            raise DatasetError(f"no depth topic found: {has}; name it, or reconstruct without depth")
        if self._config.mask and not self.topics.mask:
            raise DatasetError(f"no mask topic found: {has}; name it, or set input.mask to false")
        if self._require_camera and not self.topics.camera_info:
            raise DatasetError(f"no camera_info topic found: {has}")

    def _decoded(self, pairs: list[Pair]) -> Iterator[Frame]:
        for pair in pairs:
            with suppress(InputError):  # the intake has counted it
                yield self._intake.frame(pair)

    def _true_poses(self, ground_truth: str) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Stamp and T_world_camera of each usable ground truth message."""
        topic, child = tf_topic(ground_truth)
        if self._recording.channels[topic].msgtype == TF_TYPE and not child:
            assert self.topics.image is not None
            image = self._recording.first(self.topics.image)
            child = image.header.frame_id if image is not None else ""
        for _, msg in self._recording.objects([topic]):
            for stamped in getattr(msg, "transforms", [msg]):
                if stamped is None or (child and stamped.child_frame_id.strip("/") != child.strip("/")):
                    continue
                T = _pose_of(stamped)
                if T is not None:
                    yield stamp_ns(stamped.header.stamp), T


def _pose_of(msg: Any) -> NDArray[np.float64] | None:
    """(4, 4) pose of a message of `POSE_TYPES`; None when it is not finite or not a rotation."""
    pose = getattr(msg, "transform", None) or msg.pose
    pose = getattr(pose, "pose", pose)
    position = getattr(pose, "translation", None) or pose.position
    rotation = getattr(pose, "rotation", None) or pose.orientation
    translation = np.array([position.x, position.y, position.z])
    quaternion = np.array([rotation.x, rotation.y, rotation.z, rotation.w])
    if not np.isfinite(translation).all() or not np.linalg.norm(quaternion) > 0.5:
        return None
    return se3.from_quaternion(translation, quaternion)
