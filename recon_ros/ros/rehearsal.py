# SPDX-License-Identifier: Apache-2.0
"""Plays a recording to the live node and keeps what it answers, for the demo and the benchmarks.

One thread does both, so that the time from publishing an image to receiving its pose is measured on one clock.
"""

from __future__ import annotations

import functools
import importlib
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import rclpy
from geometry_msgs.msg import PoseWithCovarianceStamped
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import Trigger

from recon_ros.errors import ReconError
from recon_ros.frame import Trajectory
from recon_ros.geometry import se3
from recon_ros.messages import stamp_ns
from recon_ros.ros import interface, qos
from recon_ros.ros.interface import Topic

DISCOVERY_TIMEOUT_S = 30.0
GRACE_S = 1.0
SERVICE_TIMEOUT_S = 120.0


RawMessage = tuple[str, str, int, bytes]
"""Topic, type, time of recording in nanoseconds and CDR data of a recorded message."""


class Rehearsal:
    """A ROS node that publishes a recording and subscribes to `recon`'s outputs; use it as a context manager.

    Attributes:
        latencies_ms: image stamp → milliseconds from publishing the image to receiving its pose.
        statuses: the key-values of each ~/status received, in order.
        depth, confidence: (H, W) float32 of one frame near the middle, and `depth_stamp_ns`.
        published: images published.
        duration_s: from the first image published to the last answer.
    """

    def __init__(self, node_name: str = "/recon") -> None:
        self._target = node_name
        self.latencies_ms: dict[int, float] = {}
        self.statuses: list[dict[str, str]] = []
        self.depth: NDArray[np.float32] | None = None
        self.confidence: NDArray[np.float32] | None = None
        self.depth_stamp_ns: int | None = None
        self.published = 0
        self.duration_s = 0.0
        self._begin = 0.0
        self._sent: dict[int, float] = {}
        self._poses: dict[int, NDArray[np.float64]] = {}
        self._images: dict[str, dict[int, NDArray[np.float32]]] = {"depth": {}, "confidence": {}}
        self._peeking: list[Any] = []

    def __enter__(self) -> Rehearsal:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = Node("recon_rehearsal", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._subscribe(interface.POSE, self._on_pose)
        self._subscribe(interface.STATUS, self._on_status)
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def advertise(self, topics: dict[str, str], check: Callable[[], None]) -> None:
        """Make publishers for topic → type and wait until the node listens to all of them.

        Args:
            topics: name → ``package/msg/Type``.
            check: called while waiting; raises when waiting is in vain.

        Raises:
            ReconError: when the node does not subscribe in time.
        """
        self._publishers = {
            topic: self._node.create_publisher(_message_class(kind), topic, qos.make("standard"))
            for topic, kind in topics.items()
        }
        deadline = time.monotonic() + DISCOVERY_TIMEOUT_S
        while silent := [t for t, p in self._publishers.items() if p.get_subscription_count() == 0]:
            check()
            if time.monotonic() > deadline:
                raise ReconError(f"the node has not subscribed to {', '.join(silent)} within {DISCOVERY_TIMEOUT_S:g} s")
            self._executor.spin_once(timeout_sec=0.05)
        # We know of the node's subscriptions, it may not yet know of us, and what is sent before is lost.
        self._spin_until(time.monotonic() + GRACE_S)

    def play(
        self,
        messages: Iterable[RawMessage],
        image_topic: str,
        expected: int,
        rate: float,
        progress: Callable[[int], None],
        patience_s: float = 0.0,
    ) -> None:
        """Publish the messages as they are, at `rate` times the speed they were recorded at.

        A network is loaded for the size of the first image. So after the first one time may stand still until the node
        has processed it.

        Args:
            messages: of advertised topics, in order of time.
            image_topic: the one whose messages are counted and timed.
            expected: how many there are.
            rate: speed.
            progress: called with the number of images published so far.
            patience_s: how long it stands still at most.
        """
        begin = self._begin = time.monotonic()
        first = None
        for topic, _, time_ns, data in messages:
            first = time_ns if first is None else first
            self._spin_until(begin + (time_ns - first) / 1e9 / rate)
            if topic == image_topic:
                if self.published == 1:
                    begin += self._wait_for_the_first(patience_s, progress)
                self._sent[_header_stamp(data)] = time.monotonic()
                self.published += 1
                progress(self.published)
                self._peek(self.published / max(expected, 1))
            self._publishers[topic].publish(data)

    def _wait_for_the_first(self, patience_s: float, progress: Callable[[int], None]) -> float:
        """Seconds until the node has processed a frame, `patience_s` at most."""
        start = time.monotonic()
        while self.count("frames_processed") == 0 and time.monotonic() - start < patience_s:
            self._executor.spin_once(timeout_sec=0.1)
            progress(self.published)
        return time.monotonic() - start

    def settle(self, quiet_s: float = 2.0, limit_s: float = 60.0) -> None:
        """Wait until the node has answered for all it received, or falls silent."""
        deadline, last, seen = time.monotonic() + limit_s, time.monotonic(), -1
        while time.monotonic() < min(deadline, last + quiet_s):
            self._executor.spin_once(timeout_sec=0.1)
            if (done := self.count("frames_processed")) != seen:
                last, seen = time.monotonic(), done
                self.duration_s = last - self._begin

    def save_map(self) -> str:
        """Call ~/save_map; the folder it wrote.

        Raises:
            ReconError: when it fails or does not answer.
        """
        client = self._node.create_client(Trigger, f"{self._target}/save_map")
        if not client.wait_for_service(DISCOVERY_TIMEOUT_S):
            raise ReconError(f"{self._target}/save_map is not offered")
        future = client.call_async(Trigger.Request())
        self._executor.spin_until_future_complete(future, timeout_sec=SERVICE_TIMEOUT_S)
        answer = future.result() if future.done() else None
        if answer is None or not answer.success:
            raise ReconError(f"~/save_map failed: {answer.message if answer else 'no answer'}")
        return str(answer.message)

    def count(self, name: str) -> int:
        """A counter of the latest ~/status; 0 before there is one."""
        return int(self.statuses[-1].get(name, "0")) if self.statuses else 0

    def mean(self, name: str) -> float:
        """Mean of a value over all ~/status since the first processed frame; 0 before there is one."""
        values = [float(s[name]) for s in self.statuses if int(s["frames_processed"]) > 0]
        return round(float(np.mean(values)), 3) if values else 0.0

    def live_trajectory(self) -> Trajectory:
        """The poses as published: T_map_base, by image stamp."""
        stamps = sorted(self._poses)
        return Trajectory(np.array(stamps, np.int64), np.array([self._poses[s] for s in stamps]).reshape(-1, 4, 4))

    def _subscribe(self, topic: Topic, callback: Callable[[Any], None]) -> Any:
        name = topic.name.replace("~", self._target)
        return self._node.create_subscription(topic.type, name, callback, qos.make(topic.qos))

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        stamp = stamp_ns(message.header.stamp)
        if stamp in self._sent:
            self.latencies_ms[stamp] = (time.monotonic() - self._sent[stamp]) * 1e3
        p, q = message.pose.pose.position, message.pose.pose.orientation
        self._poses[stamp] = se3.from_quaternion(np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w]))

    def _on_status(self, message: Any) -> None:
        self.statuses.append({item.key: item.value for item in message.values})

    def _peek(self, share: float) -> None:
        """Around the middle, listen to the image outputs until one depth and confidence of the same frame are here."""
        if self._peeking and self.depth is not None:
            for subscription in self._peeking:
                self._node.destroy_subscription(subscription)
            self._peeking = []
        elif not self._peeking and self.depth is None and share > 0.45:
            for topic, name in ((interface.DEPTH_OUT, "depth"), (interface.CONFIDENCE, "confidence")):
                self._peeking.append(self._subscribe(topic, functools.partial(self._on_image, name)))

    def _on_image(self, name: str, message: Any) -> None:
        stamp = stamp_ns(message.header.stamp)
        values = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
        self._images[name][stamp] = values.copy()
        both = self._images["depth"].keys() & self._images["confidence"].keys()
        if both and self.depth is None:
            self.depth_stamp_ns = min(both)
            self.depth = self._images["depth"][self.depth_stamp_ns]
            self.confidence = self._images["confidence"][self.depth_stamp_ns]

    def _spin_until(self, deadline: float) -> None:
        while (remaining := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=remaining)


def _message_class(kind: str) -> Any:
    package, _, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def _header_stamp(data: bytes) -> int:
    """Header stamp of a serialised message that begins with a header: 4 bytes of CDR preamble, then the time."""
    return stamp_ns(_Time(*struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)))


class _Time(NamedTuple):
    sec: int
    nanosec: int
