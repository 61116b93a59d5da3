# SPDX-License-Identifier: Apache-2.0
"""The camera's subscriptions: names, what is held back, what is counted, and what the watchdog says of silence."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from recon_ros.config import InputConfig, NodeConfig
from recon_ros.geometry.camera import Camera
from recon_ros.intake import Intake, Pair
from recon_ros.ros import conversions, interface, qos
from recon_ros.ros.inputs import Inputs, full_name
from recon_ros.ros.statistics import Statistics
from recon_ros.ros.watchdog import Watchdog

CAMERA = Camera.from_focal(4, 2, 3.0)


class FakeNode:
    """Keeps the callbacks, and a ROS graph to ask for."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Any] = {}
        self.publishers: dict[str, list[Any]] = {}
        self.log: list[str] = []

    def resolve_topic_name(self, name: str) -> str:
        return {"image": "/front/image_raw", "depth": "/front/depth"}.get(name, f"/{name}")

    def create_subscription(self, kind: Any, name: str, callback: Any, profile: Any, **options: Any) -> Any:
        self.callbacks[name] = callback
        return name

    def destroy_subscription(self, name: str) -> None:
        del self.callbacks[name]

    def get_logger(self) -> Any:
        return types.SimpleNamespace(warning=self.log.append, info=self.log.append)

    def get_name(self) -> str:
        return "recon"

    def get_publishers_info_by_topic(self, name: str) -> list[Any]:
        return self.publishers.get(name, [])

    def count_publishers(self, name: str) -> int:
        return len(self.publishers.get(name, []))

    def get_topic_names_and_types(self) -> list[tuple[str, list[str]]]:
        return [(name, [p.topic_type for p in infos]) for name, infos in self.publishers.items()]


def publisher(kind: str, profile: str = "sensor") -> Any:
    return types.SimpleNamespace(node_name="driver", topic_type=kind, qos_profile=qos.make(profile))


class Setup:
    """Inputs on a fake node; what was delivered is kept."""

    def __init__(self, **config: Any) -> None:
        self.node, self.statistics = FakeNode(), Statistics()
        self.config = NodeConfig(**config)
        self.intake = Intake(InputConfig(), self.config.use_depth, 0)
        self.delivered: list[Pair] = []
        self.inputs = Inputs(self.node, self.config, self.intake, self.statistics, self.delivered.append)  # type: ignore[arg-type]
        self.watchdog = Watchdog(self.node, self.inputs, self.config)  # type: ignore[arg-type]
        self.inputs.open()

    def image(self, stamp: int) -> None:
        message = conversions.image_message(np.zeros((2, 4, 3), np.uint8), stamp, "camera")
        self.node.callbacks["/front/image_raw"](message)

    def camera_info(self) -> None:
        self.node.callbacks["/camera_info"](conversions.camera_info_message(CAMERA, 1, "camera"))

    def stamps(self) -> list[int]:
        return [pair.stamp_ns for pair in self.delivered]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_the_base_name_is_remapped_and_the_transport_follows() -> None:
    node: Any = FakeNode()
    assert full_name(node, interface.IMAGE.name) == "/front/image_raw"
    assert full_name(node, interface.IMAGE_COMPRESSED.name) == "/front/image_raw/compressed"
    assert full_name(node, interface.DEPTH_COMPRESSED.name) == "/front/depth/compressedDepth"


def test_only_what_is_configured_is_subscribed() -> None:
    assert set(Setup().node.callbacks) == {"/camera_info", "/front/image_raw", "/front/depth"}
    compressed = Setup(image_transport="compressed", depth_transport="compressed")
    assert set(compressed.node.callbacks) == {
        *("/camera_info", "/front/image_raw/compressed", "/front/depth/compressedDepth"),
    }
    alone = Setup(use_depth=False)
    assert set(alone.node.callbacks) == {"/camera_info", "/front/image_raw"}
    alone.inputs.close()
    assert alone.node.callbacks == {}


@pytest.mark.parametrize("queue, kept, dropped", [("newest", [2], 1), ("all", [1, 2], 0)])
def test_first_images_wait_for_their_calibration(queue: str, kept: list[int], dropped: int) -> None:
    setup = Setup(use_depth=False, queue=queue)
    setup.image(1)
    setup.image(2)
    assert setup.delivered == [] and setup.inputs.waits_for_camera_info() > 0
    setup.camera_info()
    assert setup.stamps() == kept
    assert setup.statistics.counts["dropped"] == dropped
    assert setup.inputs.waits_for_camera_info() == 0
    setup.image(3)
    assert setup.stamps() == [*kept, 3]


def test_images_are_not_held_for_ever(clock: list[float]) -> None:
    setup = Setup(use_depth=False, camera_info_timeout=2.0)
    setup.image(1)
    clock[0] += 3
    setup.image(2)
    assert setup.stamps() == [2], "it goes on, to be refused by name"
    setup.watchdog.look()
    (sentence,) = setup.node.log
    assert sentence.startswith("/camera_info: nothing yet for 3 s"), "before the watchdog's own period of 5 s"


def test_lost_messages_are_counted_and_told_once() -> None:
    setup = Setup()
    for total in (3, 5):
        setup.inputs._on_lost(types.SimpleNamespace(total_count=total, total_count_change=total))
    assert setup.statistics.counts["lost_in_transport"] == 8
    assert len(setup.node.log) == 1 and "fastdds.xml" in setup.node.log[0]


# -- the watchdog -----------------------------------------------------------------------------------------------

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def silence(setup: Setup, clock: list[float], seconds: float = 6.0) -> str:
    """What is said of the image topic after a while."""
    clock[0] += seconds
    setup.watchdog.look()
    return next((line for line in setup.node.log if line.startswith("/front/image_raw")), "")


def test_silence_without_a_publisher_names_topics_that_would_do(clock: list[float]) -> None:
    setup = Setup()
    assert "driver running" in silence(setup, clock)
    setup = Setup()
    setup.node.publishers = {"/other/image": [publisher(IMAGE)], "/recon/depth/image": [publisher(IMAGE)]}
    sentence = silence(setup, clock)
    assert "/other/image" in sentence and "remap image" in sentence and "/recon/" not in sentence


@pytest.mark.parametrize(
    "offered, said",
    [
        (publisher(COMPRESSED), "driver publishes sensor_msgs/msg/CompressedImage there"),
        (publisher(IMAGE), "1 publisher(s) (driver) match, but send nothing"),
    ],
)
def test_silence_with_a_publisher_tells_what_is_wrong(clock: list[float], offered: Any, said: str) -> None:
    setup = Setup()
    setup.node.publishers = {"/front/image_raw": [offered]}
    assert said in silence(setup, clock)


def test_silence_by_qos_is_told(clock: list[float]) -> None:
    setup = Setup()
    setup.node.publishers = {"/front/image_raw": [publisher(IMAGE)]}
    for stream in setup.inputs.streams:
        stream.profile = qos.make("standard")  # as by a qos_overrides parameter: reliable
    assert "another QoS than asked for" in silence(setup, clock)


def test_silence_is_said_once_in_a_while_and_its_end_too(clock: list[float]) -> None:
    setup = Setup()
    silence(setup, clock)
    said = len(setup.node.log)
    assert said == 3 and set(setup.watchdog.silent) == {"/camera_info", "/front/image_raw", "/front/depth"}
    silence(setup, clock, 10)
    assert len(setup.node.log) == said
    silence(setup, clock, 25)
    assert len(setup.node.log) == 2 * said
    setup.image(1)
    setup.watchdog.look()
    assert setup.node.log[-1] == "/front/image_raw: messages arrive again"
    assert "/front/image_raw" not in setup.watchdog.silent
    silence(setup, clock)
    assert setup.node.log[-1].startswith("/front/image_raw: nothing any more for 6 s")
