# SPDX-License-Identifier: Apache-2.0
"""Speaking and hearing TF: tf2_ros where it is installed, our own few lines where it is not, nothing without tf2_msgs.

tf2_ros is not among the wheels of ROS; `OwnTf` does on the same topics, with the same messages and QoS, what
this node needs of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import yaml
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.time import Time

from recon_ros.geometry import se3
from recon_ros.messages import stamp_ns
from recon_ros.ros import qos
from recon_ros.ros.conversions import matrix_from_transform
from recon_ros.ros.pose_tracks import Tree


class Tf(Protocol):
    """What the node asks of TF."""

    def send(self, transforms: list[TransformStamped]) -> None:
        """Broadcast moving edges."""

    def send_static(self, transforms: list[TransformStamped]) -> None:
        """Broadcast edges that never move, also to whoever comes later."""

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> se3.Matrix | None:
        """(4, 4) T_target_source at a stamp, or the newest for None; None when it is not known (yet)."""

    def root(self, frame: str) -> str:
        """The frame that `frame` hangs from in the end."""

    def clear(self) -> None:
        """Time has jumped back: forget what moved."""

    def close(self) -> None:
        """Take the topics down."""


def make(node: Node, foreign: Callable[[str, str], None]) -> Tf:
    """The TF of this machine. `foreign(parent, child)` is called when somebody else broadcasts an edge of ours."""
    try:
        import tf2_msgs.msg  # noqa: F401
    except ImportError:
        node.get_logger().warning(
            "tf2_msgs is not installed: running without TF; poses go out as messages only and base_to_camera takes "
            "the place of looking the camera up"
        )
        return NoTf()
    try:
        import tf2_ros
    except ImportError:
        return OwnTf(node, foreign)
    return Tf2Ros(node, foreign, tf2_ros)


class NoTf:
    """Knows nothing and says nothing."""

    def send(self, transforms: list[TransformStamped]) -> None:
        pass

    def send_static(self, transforms: list[TransformStamped]) -> None:
        pass

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> se3.Matrix | None:
        return None

    def root(self, frame: str) -> str:
        return frame

    def clear(self) -> None:
        pass

    def close(self) -> None:
        pass


class Ownership:
    """Tells the edges we broadcast from those of others: TF messages have no sender, but we know what we sent.

    Two publishers of one edge make the robot flicker between them, and nobody says why.
    """

    def __init__(self, foreign: Callable[[str, str], None]) -> None:
        self._foreign = foreign
        self._sent: deque[tuple[str, str, int, float]] = deque(maxlen=1000)
        self._children: set[str] = set()

    def sent(self, transforms: Iterable[TransformStamped]) -> None:
        for transform in transforms:
            self._sent.append(_signature(transform))
            self._children.add(transform.child_frame_id)

    def heard(self, transforms: Iterable[TransformStamped]) -> None:
        for transform in transforms:
            if transform.child_frame_id in self._children and _signature(transform) not in self._sent:
                self._foreign(transform.header.frame_id, transform.child_frame_id)


def _signature(transform: TransformStamped) -> tuple[str, str, int, float]:
    stamp, x = stamp_ns(transform.header.stamp), transform.transform.translation.x
    return transform.header.frame_id, transform.child_frame_id, stamp, x


class OwnTf:
    """Broadcaster and listener on /tf and /tf_static without tf2_ros."""

    def __init__(self, node: Node, foreign: Callable[[str, str], None]) -> None:
        from tf2_msgs.msg import TFMessage

        self._node, self._message = node, TFMessage
        self._tree, self._ownership = Tree(), Ownership(foreign)
        self._static: dict[str, TransformStamped] = {}
        self._publisher = node.create_publisher(TFMessage, "/tf", qos.make("tf"))
        self._static_publisher = node.create_publisher(TFMessage, "/tf_static", qos.make("tf_static"))
        latched = qos.make("tf_static")
        latched.depth = 100  # there are many publishers, and each keeps its last message for us
        self._subscriptions = [
            node.create_subscription(TFMessage, "/tf", lambda m: self._hear(m, False), qos.make("tf")),
            node.create_subscription(TFMessage, "/tf_static", lambda m: self._hear(m, True), latched),
        ]

    def send(self, transforms: list[TransformStamped]) -> None:
        self._ownership.sent(transforms)
        self._publisher.publish(self._message(transforms=transforms))

    def send_static(self, transforms: list[TransformStamped]) -> None:
        self._ownership.sent(transforms)
        self._static.update({t.child_frame_id: t for t in transforms})
        self._static_publisher.publish(self._message(transforms=list(self._static.values())))

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> se3.Matrix | None:
        return self._tree.lookup(target, source, stamp_ns)

    def root(self, frame: str) -> str:
        return self._tree.root(frame)

    def clear(self) -> None:
        self._tree.clear()

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._node.destroy_publisher(self._publisher)
        self._node.destroy_publisher(self._static_publisher)

    def _hear(self, message: Any, static: bool) -> None:
        self._ownership.heard(message.transforms)
        for t in message.transforms:
            T = matrix_from_transform(t.transform)
            if se3.is_valid(T):
                self._tree.add(t.header.frame_id, t.child_frame_id, stamp_ns(t.header.stamp), T, static)


class Tf2Ros:
    """The same through tf2_ros."""

    def __init__(self, node: Node, foreign: Callable[[str, str], None], tf2_ros: Any) -> None:
        ownership = Ownership(foreign)

        class Listener(tf2_ros.TransformListener):
            """tf2_ros's own, with an ear for edges that are ours."""

            def callback(self, data: Any) -> None:
                ownership.heard(data.transforms)
                super().callback(data)

            def static_callback(self, data: Any) -> None:
                ownership.heard(data.transforms)
                super().static_callback(data)

        self._ownership, self._exception = ownership, tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        # spin_thread would add the node to a second executor.
        self._listener = Listener(self._buffer, node, spin_thread=False)
        self._broadcaster = tf2_ros.TransformBroadcaster(node)
        self._static_broadcaster = tf2_ros.StaticTransformBroadcaster(node)

    def send(self, transforms: list[TransformStamped]) -> None:
        self._ownership.sent(transforms)
        self._broadcaster.sendTransform(transforms)

    def send_static(self, transforms: list[TransformStamped]) -> None:
        self._ownership.sent(transforms)
        self._static_broadcaster.sendTransform(transforms)

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> se3.Matrix | None:
        try:
            found = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns or 0))
        except self._exception:
            return None
        return matrix_from_transform(found.transform)

    def root(self, frame: str) -> str:
        frames = yaml.safe_load(self._buffer.all_frames_as_yaml()) or {}
        for _ in range(len(frames)):
            if frame not in frames:
                break
            frame = frames[frame]["parent"]
        return frame

    def clear(self) -> None:
        self._buffer.clear()  # tf2 keeps the static edges

    def close(self) -> None:
        self._listener.unregister()


def wait_for(
    find: Callable[[], se3.Matrix | None], timeout: float, cancelled: Callable[[], bool] = lambda: False
) -> se3.Matrix | None:
    """Ask `find` until it knows, at most `timeout` seconds; for the worker's thread, while the executor listens."""
    end = time.monotonic() + timeout
    while (found := find()) is None and time.monotonic() < end and not cancelled():
        time.sleep(0.002)
    return found
