# SPDX-License-Identifier: Apache-2.0
"""Which topics of a recording are the image, its calibration, its depth, its mask and the ground truth."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from recon_ros.datasets.storage import Recording
from recon_ros.errors import DatasetError, InputError
from recon_ros.messages import LABEL_LAYOUTS, depth_from_message, image_from_message

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
TF_TYPE = "tf2_msgs/msg/TFMessage"
POSE_TYPES = (
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
    "geometry_msgs/msg/TransformStamped",
    "nav_msgs/msg/Odometry",
)

TRANSPORTS = ("compressed", "compressedDepth")
# Pictures that are no photographs, and those a dot projector draws on: taken only when there is nothing else.
LESSER = re.compile(r"infra|(^|[/_])ir\d?([/_]|$)|thermal|confidence|mask|label|segment|disparity|debug|rviz", re.I)
COLOUR = re.compile(r"colou?r|rgb", re.I)
MASK = re.compile(r"(^|[/_])masks?([/_]|$)", re.I)
OBJECT = re.compile(r"object", re.I)
GROUND_TRUTH = re.compile(r"ground_?truth|(^|[/_])gt([/_]|$)", re.I)


@dataclass(frozen=True)
class Topics:
    """Topics of a recording; None is found by type and name.

    Attributes:
        image: sensor_msgs Image or CompressedImage.
        camera_info: sensor_msgs/CameraInfo of the image.
        depth: Image (16UC1, 32FC1) or CompressedImage (PNG, ``compressedDepth``), registered to the image.
        ground_truth: a topic of `POSE_TYPES`, or ``/tf`` with the child frame of the wanted edge behind a
            colon (``/tf:camera_optical_frame``).
        mask: Image or PNG CompressedImage of labels, made from the image: what is not 0 is to be left out.
    """

    image: str | None = None
    camera_info: str | None = None
    depth: str | None = None
    ground_truth: str | None = None
    mask: str | None = None


def find_topics(recording: Recording, given: Topics) -> Topics:
    """The given topics, checked, and the others found.

    Depth is told by the encoding of its first message. Of several image topics the one is taken that is a
    photograph rather than infrared or a mask, has a camera_info beside it, says that it is colour, is raw
    rather than compressed (nothing lost, and no decoder between), has the most messages, and comes first in
    the alphabet, in this order. Of several depth topics, one of the image's size, then "aligned" by name,
    then near to the image by namespace. The camera_info is that beside the image, else the nearest by
    namespace. A mask is called so and holds labels; it is rather one that is not of an object (to be grasped), and
    near to the image by namespace.

    Raises:
        DatasetError: when there is no image, or a given topic is not there or of a wrong type.
    """
    _check(recording, given)
    channels = [c for c in recording.channels.values() if c.count > 0]
    pictures = [c.topic for c in channels if c.msgtype in IMAGE_TYPES]
    depths = [t for t in pictures if t != given.image and _is_depth(recording, t)]
    if given.depth and given.depth not in depths:
        depths.append(given.depth)
    infos = [c.topic for c in channels if c.msgtype == CAMERA_INFO_TYPE]

    def image_rank(topic: str) -> tuple[Any, ...]:
        return (
            bool(LESSER.search(topic)),
            f"{_namespace(topic)}/camera_info" not in infos,
            not COLOUR.search(topic),
            recording.channels[topic].msgtype != IMAGE_TYPES[0],
            -recording.channels[topic].count,
            topic,
        )

    image = given.image or min((t for t in pictures if t not in depths), key=image_rank, default=None)
    if image is None:
        raise DatasetError(f"no image in '{recording.path}'; it has {describe(recording)}")
    size = _size(recording, image, is_depth=False)

    def depth_rank(topic: str) -> tuple[Any, ...]:
        return (
            bool(LESSER.search(topic)),
            _size(recording, topic, is_depth=True) != size,
            "aligned" not in topic,
            -_shared_prefix(topic, image),
            recording.channels[topic].msgtype != IMAGE_TYPES[0],
            topic,
        )

    return Topics(
        image=image,
        camera_info=given.camera_info or _camera_info_of(image, infos),
        depth=given.depth or (min(depths, key=depth_rank) if depths else None),
        ground_truth=given.ground_truth or _ground_truth(recording),
        mask=given.mask or _mask(recording, image, pictures),
    )


def describe(recording: Recording) -> str:
    """The topics with type and count, for messages to people."""
    names = [f"{c.topic} ({c.msgtype}, {c.count})" for c in recording.channels.values()]
    return ", ".join(sorted(names)) or "no topics"


def tf_topic(ground_truth: str) -> tuple[str, str]:
    """Topic and child frame of a ``/tf:child`` name; the child is empty when it is not named."""
    topic, _, child = ground_truth.partition(":")
    return topic, child


def _check(recording: Recording, given: Topics) -> None:
    wanted = (
        ("image", given.image, IMAGE_TYPES),
        ("camera_info", given.camera_info, (CAMERA_INFO_TYPE,)),
        ("depth", given.depth, IMAGE_TYPES),
        ("mask", given.mask, IMAGE_TYPES),
        ("ground truth", given.ground_truth and tf_topic(given.ground_truth)[0], (*POSE_TYPES, TF_TYPE)),
    )
    for role, topic, types in wanted:
        if not topic:
            continue
        if topic not in recording.channels:
            raise DatasetError(f"the {role} topic '{topic}' is not in '{recording.path}'; it has {describe(recording)}")
        msgtype = recording.channels[topic].msgtype
        if msgtype not in types:
            raise DatasetError(f"the {role} topic '{topic}' is of type {msgtype}; it must be {' or '.join(types)}")


def _is_depth(recording: Recording, topic: str) -> bool:
    """True for a depth encoding; where it says nothing (mono16 may be infrared), the name decides."""
    first = recording.first(topic)
    form = str(getattr(first, "encoding", "") or getattr(first, "format", ""))
    if form.startswith(("16UC1", "32FC1")) or "compressedDepth" in form:
        return True
    return (form.startswith("mono16") or form == "png") and "depth" in topic.lower()


def _size(recording: Recording, topic: str, is_depth: bool) -> tuple[int, int] | None:
    """Height and width of the first message of a topic, or None when it cannot be decoded."""
    first = recording.first(topic)
    if first is None:
        return None
    if hasattr(first, "height"):
        return int(first.height), int(first.width)
    try:
        picture: Any = depth_from_message(first, 1.0) if is_depth else image_from_message(first)
    except InputError:
        return None
    return picture.shape[0], picture.shape[1]


def _namespace(image_topic: str) -> str:
    """Where image_transport keeps the camera_info of an image: ``/a/image_raw/compressed`` → ``/a``."""
    parts = image_topic.split("/")
    if parts[-1] in TRANSPORTS:
        parts = parts[:-1]
    return "/".join(parts[:-1])


def _camera_info_of(image: str, infos: list[str]) -> str | None:
    """The camera_info beside the image; else the one nearest to it by namespace."""
    beside = f"{_namespace(image)}/camera_info"
    if beside in infos:
        return beside
    return min(infos, key=lambda t: (-_shared_prefix(t, image), "depth" in t, t), default=None)


def _shared_prefix(a: str, b: str) -> int:
    """Number of leading name parts that two topics share."""
    parts = zip(a.split("/"), b.split("/"), strict=False)
    return next((i for i, (x, y) in enumerate(parts) if x != y), min(a.count("/"), b.count("/")) + 1)


def _mask(recording: Recording, image: str, pictures: list[str]) -> str | None:
    """Of the topics that are called a mask and hold labels, see `find_topics`."""
    masks = [t for t in pictures if t != image and MASK.search(t) and _holds_labels(recording, t)]
    return min(masks, key=lambda t: (bool(OBJECT.search(t)), -_shared_prefix(t, image), t), default=None)


def _holds_labels(recording: Recording, topic: str) -> bool:
    first = recording.first(topic)
    return getattr(first, "encoding", "") in LABEL_LAYOUTS or "png" in str(getattr(first, "format", "")).lower()


def _ground_truth(recording: Recording) -> str | None:
    named = [c for c in recording.channels.values() if c.count > 0 and GROUND_TRUTH.search(c.topic)]
    return min((c.topic for c in named if c.msgtype in POSE_TYPES), default=None)
