# SPDX-License-Identifier: Apache-2.0
"""The camera's subscriptions. Callbacks only store: messages go to the intake, complete pairs to `deliver`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions

from recon_ros.config import NodeConfig
from recon_ros.intake import Intake, Pair
from recon_ros.ros import interface, qos
from recon_ros.ros.interface import Topic
from recon_ros.ros.statistics import Statistics, Throttle


@dataclass(eq=False)
class Stream:
    """One subscribed topic.

    Attributes:
        topic: its declaration.
        name: the full name it is heard on.
        profile: QoS it asks for.
        subscription: rclpy's.
        last: monotonic seconds of the last message, or of the beginning.
        received: how many messages came.
        is_expected: its silence is worth a word; else it speaks when it has something to say.
    """

    topic: Topic
    name: str
    profile: Any
    subscription: Any
    last: float
    received: int = 0
    is_expected: bool = True


class Inputs:
    """Subscribes to what the configuration names, and holds the first images back until they have a calibration.

    `besides` are topics that no image waits for, and who takes their messages.
    """

    def __init__(
        self,
        node: Node,
        config: NodeConfig,
        intake: Intake,
        statistics: Statistics,
        deliver: Callable[[Pair], None],
        besides: Mapping[Topic, Callable[[Any], None]] | None = None,
    ) -> None:
        self._besides = besides or {}
        self._node, self._config, self._intake = node, config, intake
        self._statistics, self._deliver = statistics, deliver
        self._held: list[Pair] = []
        self._held_since: float | None = None
        self._throttle = Throttle(30.0)
        self.streams: list[Stream] = []

    def open(self) -> None:
        """Subscribe."""
        raw = self._config.image_transport == "raw"
        raw_depth = self._config.depth_transport == "raw"
        self._subscribe(interface.CAMERA_INFO, self._on_camera_info)
        self._subscribe(interface.IMAGE if raw else interface.IMAGE_COMPRESSED, self._on_image)
        if self._config.use_depth:
            self._subscribe(interface.DEPTH if raw_depth else interface.DEPTH_COMPRESSED, self._on_depth)
        if self._intake.config.mask:
            self._subscribe(interface.MASK, self._on_mask)
        for topic, take in self._besides.items():
            self._subscribe(topic, take, is_expected=False)

    def close(self) -> None:
        """Unsubscribe."""
        for stream in self.streams:
            self._node.destroy_subscription(stream.subscription)
        self.streams.clear()
        self._held.clear()
        self._held_since = None

    def waits_for_camera_info(self) -> float:
        """Seconds that images have been held back for want of a calibration; 0 when they are not."""
        return 0.0 if self._held_since is None else time.monotonic() - self._held_since

    def _subscribe(self, topic: Topic, store: Callable[[Any], None], is_expected: bool = True) -> None:
        name = full_name(self._node, topic.name)
        profile = qos.make("replay" if self._config.queue == "all" and topic.qos == "sensor" else topic.qos)

        def take(message: Any) -> None:
            stream.last = time.monotonic()
            stream.received += 1
            store(message)

        options = {"qos_overriding_options": QoSOverridingOptions.with_default_policies()}
        try:
            subscription = self._node.create_subscription(
                topic.type, name, take, profile, event_callbacks=self._loss_events(), **options
            )
        except Exception:  # a middleware that cannot tell of lost messages raises its own kind of error
            subscription = self._node.create_subscription(topic.type, name, take, profile, **options)
        stream = Stream(topic, name, profile, subscription, time.monotonic(), is_expected=is_expected)
        self.streams.append(stream)

    def _loss_events(self) -> Any:
        """Have the middleware tell of messages it lost on the way, so that they are counted as well."""
        try:
            from rclpy.event_handler import SubscriptionEventCallbacks
        except ImportError:  # Humble
            from rclpy.qos_event import SubscriptionEventCallbacks
        return SubscriptionEventCallbacks(message_lost=self._on_lost)

    def _on_lost(self, event: Any) -> None:
        self._statistics.count("lost_in_transport", event.total_count_change)
        if self._throttle.passes("lost"):
            self._node.get_logger().warning(
                f"images or depths are lost on the way here ({event.total_count} so far on one topic); often they are "
                "too large for the default transports: set FASTRTPS_DEFAULT_PROFILES_FILE to this package's "
                "config/fastdds.xml, for the driver too"
            )

    def _on_camera_info(self, message: Any) -> None:
        self._intake.on_camera_info(message)
        if self._intake.camera is not None and self._held:
            held, self._held, self._held_since = self._held, [], None
            for pair in held:
                self._deliver(pair)

    def _on_image(self, message: Any) -> None:
        self._statistics.image_received(getattr(message, "encoding", None) or message.format)
        self._pass_on(self._intake.on_image(message))

    def _on_depth(self, message: Any) -> None:
        self._pass_on(self._intake.on_depth(message))

    def _on_mask(self, message: Any) -> None:
        self._pass_on(self._intake.on_mask(message))

    def _pass_on(self, pairs: list[Pair]) -> None:
        for pair in pairs:
            if self._intake.camera is None and self.waits_for_camera_info() < self._config.camera_info_timeout:
                self._hold(pair)
            else:
                self._deliver(pair)

    def _hold(self, pair: Pair) -> None:
        """The first image often comes a moment before the first camera_info."""
        if self._held_since is None:
            self._held_since = time.monotonic()
        if self._held and (self._config.queue == "newest" or len(self._held) >= qos.REPLAY_DEPTH):
            self._held.pop(0)
            self._statistics.count("dropped")
        self._held.append(pair)


def full_name(node: Node, name: str) -> str:
    """The absolute name; of ``image/compressed`` it is ``image`` that is remapped, as in image_transport."""
    base, slash, transport = name.partition("/")
    return node.resolve_topic_name(base) + slash + transport
