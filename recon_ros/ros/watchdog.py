# SPDX-License-Identifier: Apache-2.0
"""Says which input is silent and why, as far as the graph tells: no waiting without a word."""

from __future__ import annotations

import time
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible

from recon_ros.config import NodeConfig
from recon_ros.ros.inputs import Inputs, Stream
from recon_ros.ros.interface import type_name

REPEAT_S = 30.0


class Watchdog:
    """Looks at the inputs now and then; `silent` keeps the reason of each topic that is silent."""

    def __init__(self, node: Node, inputs: Inputs, config: NodeConfig) -> None:
        self._node, self._inputs, self._log = node, inputs, node.get_logger()
        self._period, self._camera_info_timeout = config.watchdog_period, config.camera_info_timeout
        self._said: dict[str, float] = {}
        self.silent: dict[str, str] = {}

    def look(self) -> None:
        """Warn of every silent topic, again every half minute, and say when it is back."""
        for stream in self._inputs.streams:
            quiet = time.monotonic() - stream.last
            if not stream.is_expected or quiet < self._limit(stream):
                self._forget(stream.name)
            else:
                what = "nothing yet" if stream.received == 0 else "nothing any more"
                self._say(stream.name, f"{stream.name}: {what} for {quiet:.0f} s; {why_silent(self._node, stream)}")

    def _limit(self, stream: Stream) -> float:
        """Images wait for their calibration, so its absence is told sooner."""
        if self._inputs.waits_for_camera_info() > self._camera_info_timeout and stream.received == 0:
            return min(self._period, self._camera_info_timeout)
        return self._period

    def _say(self, name: str, sentence: str) -> None:
        now = time.monotonic()
        self.silent[name] = sentence
        if now >= self._said.get(name, -REPEAT_S) + REPEAT_S:
            self._said[name] = now
            self._log.warning(sentence)

    def _forget(self, name: str) -> None:
        if self.silent.pop(name, None) is not None:
            self._log.info(f"{name}: messages arrive again")
        self._said.pop(name, None)


def why_silent(node: Node, stream: Stream) -> str:
    """What the ROS graph knows of a silent topic, and what to do."""
    publishers = node.get_publishers_info_by_topic(stream.name)
    wanted = type_name(stream.topic.type).replace("/", "/msg/")
    if not publishers:
        others = _topics_of_type(node, wanted, stream.name)
        hint = (
            f"topics of its type: {', '.join(others)}; remap {stream.topic.name.split('/')[0]} to one"
            if others
            else ("is the driver running, and in the same ROS_DOMAIN_ID?")
        )
        return f"it has no publisher ({hint})"
    names = ", ".join(sorted({p.node_name for p in publishers}))
    kinds = sorted({p.topic_type for p in publishers})
    if wanted not in kinds:
        return f"{names} publishes {', '.join(kinds)} there, not {wanted}: check image_transport and depth_transport"
    mismatches = [m for m in (_mismatch(p.qos_profile, stream.profile) for p in publishers) if m]
    if len(mismatches) == len(publishers):
        return f"{names} offers another QoS than asked for: {mismatches[0]}"
    return f"{len(publishers)} publisher(s) ({names}) match, but send nothing"


def _topics_of_type(node: Node, wanted: str, besides: str) -> list[str]:
    return [
        name
        for name, types in node.get_topic_names_and_types()
        if wanted in types and name != besides and node.count_publishers(name) and f"/{node.get_name()}/" not in name
    ][:5]


def _mismatch(offered: Any, asked: Any) -> str:
    """Why the two do not match, empty when they do."""
    compatibility, reason = qos_check_compatible(offered, asked)
    return str(reason).strip() if compatibility == QoSCompatibility.ERROR else ""
