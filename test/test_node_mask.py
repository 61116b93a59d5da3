# SPDX-License-Identifier: Apache-2.0
"""Masks over DDS: what they exclude, what waits for them, and the points of an object. One process, in order."""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("tf2_msgs", reason="needs tf2_msgs (scripts/build_tf2_msgs.py)")

from node_harness import CAMERA_FRAME, OWN_MOUNT, PERIOD_NS, Graph, Walker, running
from sensor_msgs.msg import Image, PointField
from textured_room import CAMERA, TexturedRoom, walk

from recon_ros.geometry import pointmap
from recon_ros.messages import depth_from_message, stamp_ns
from recon_ros.ros import conversions

pytestmark = pytest.mark.ros

BOX = np.s_[60:180, 80:200]
"""Where something stands in the image that is no part of the room."""


def box(value: int = 255, dtype: type = np.uint8) -> np.ndarray:
    mask = np.zeros((CAMERA.height, CAMERA.width), dtype)
    mask[BOX] = value
    return mask


@pytest.fixture(scope="module")
def room() -> TexturedRoom:
    return TexturedRoom()


class Masks:
    """Publishers of masks and object masks beside the camera."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.masks = graph.node.create_publisher(Image, "mask", 50)
        self.objects = graph.node.create_publisher(Image, "object_mask", 50)

    def wait_for_match(self) -> None:
        """As `Graph.wait_for_match`; the mask without a stamp is what the node counts, and it is announced first."""
        empty = conversions.image_message(box(), 0, CAMERA_FRAME)

        def is_heard() -> bool:
            self.masks.publish(empty)
            time.sleep(0.05)
            return self.graph.count("skipped.mask_stamp_zero") > 0

        self.graph.process.wait(is_heard, "word that the mask is heard")
        self.graph.process.wait(self.objects.get_subscription_count, "subscription to the object mask")

    def mask(self, stamp: int, mask: np.ndarray) -> None:
        self.masks.publish(conversions.image_message(mask, stamp, CAMERA_FRAME))

    def object(self, stamp: int, mask: np.ndarray) -> None:
        self.objects.publish(conversions.image_message(mask, stamp, CAMERA_FRAME))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    folder = tmp_path_factory.mktemp("node")
    parameters = {**OWN_MOUNT, "input.mask": True, "map_publish_period": 0.3, "watchdog_period": 1.0}
    with running(folder, parameters) as graph:
        yield graph


@pytest.fixture(scope="module")
def masks(graph: Graph) -> Masks:
    graph.process.says("/mask: nothing yet for")
    masks = Masks(graph)
    masks.wait_for_match()
    return masks


@pytest.fixture(scope="module")
def walker(graph: Graph, room: TexturedRoom) -> Walker:
    return Walker(graph, room)


def test_a_frame_waits_for_its_mask_and_what_it_excludes_is_in_depth_only(
    graph: Graph, masks: Masks, walker: Walker, room: TexturedRoom
) -> None:
    for _ in range(3):
        step, stamp = walker.step, walker.send()
        assert graph.received["~/odometry"] == [] or graph.stamps("~/odometry")[-1] < stamp
        masks.mask(stamp, box())
        graph.at("~/odometry", stamp)
    _, truth = room.render(walk(step))
    depth = depth_from_message(graph.at("~/depth/image", stamp), 1.0)
    np.testing.assert_array_equal(depth, np.where(truth <= 8.0, truth, np.nan))
    confidence = depth_from_message(graph.at("~/confidence/image", stamp), 1.0)
    assert not np.nan_to_num(confidence[BOX]).any()
    assert np.nanmedian(confidence[:50]) > 0.1


def points_in_box(points: np.ndarray) -> np.ndarray:
    """(N,) whether points of the camera's frame are seen in the box, a pixel from its border left out."""
    u, v = CAMERA.project(points).T
    return (u > 81) & (u < 198) & (v > 61) & (v < 178)


def test_what_is_excluded_is_neither_in_points_nor_in_the_map(graph: Graph, masks: Masks, walker: Walker) -> None:
    message = graph.received["~/points"][0]
    points = np.frombuffer(message.data, "<f4").reshape(-1, 5)[:, :3].astype(np.float64)
    assert len(points) > 5000 and not points_in_box(points).any()
    cloud = graph.process.wait(lambda: graph.received["~/map"], "~/map")[0]
    forward, left, up = np.frombuffer(cloud.data, "<f4").reshape(-1, 4)[:, :3].T.astype(np.float64)
    assert not points_in_box(np.stack([-left, -up, forward], axis=1)).any()  # the first camera's frame


def test_an_image_without_a_mask_is_given_up_and_counted(graph: Graph, masks: Masks, walker: Walker) -> None:
    before = graph.count("skipped.unpaired_image")
    alone, stamp = walker.send(), walker.send()
    masks.mask(stamp, box())
    graph.at("~/odometry", stamp)
    assert alone not in graph.stamps("~/odometry")
    graph.process.wait(lambda: graph.count("skipped.unpaired_image") == before + 1, "a counted image")
    graph.process.says("an image found no mask within 20 ms")


@pytest.mark.parametrize(
    ("mask", "reason", "words"),
    [
        (np.full((CAMERA.height, CAMERA.width), 255, np.uint8), "mask_full", "is it the wrong way round?"),
        (np.zeros((240, 240), np.uint8), "mask_size", "the mask is 240x240, the image 320x240"),
        (np.zeros((240, 320, 3), np.uint8), "encoding", "mask encoding 'rgb8' is not accepted"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_refused_aloud(
    mask: np.ndarray, reason: str, words: str, graph: Graph, masks: Masks, walker: Walker
) -> None:
    before = graph.count(f"skipped.{reason}")
    masks.mask(walker.send(), mask)
    graph.process.wait(lambda: graph.count(f"skipped.{reason}") == before + 1, f"a count of {reason}")
    graph.process.says(words)
    stamp = walker.send()
    masks.mask(stamp, box())
    graph.at("~/odometry", stamp)


def test_a_mask_of_half_the_size_serves(graph: Graph, masks: Masks, walker: Walker) -> None:
    stamp = walker.send()
    masks.mask(stamp, box()[::2, ::2].copy())
    confidence = depth_from_message(graph.at("~/confidence/image", stamp), 1.0)
    assert not np.nan_to_num(confidence[BOX]).any() and confidence[58, 140] > 0


# -- an object


def cloud_of(message: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 3), confidence (N,) and labels (N,)."""
    fields = [(f.name, f.offset, f.datatype) for f in message.fields]
    assert fields[4:] == [("confidence", 16, PointField.FLOAT32), ("label", 20, PointField.UINT32)]
    rows = np.frombuffer(message.data, "<f4").reshape(-1, 6)
    return rows[:, :3], rows[:, 4], np.frombuffer(message.data, "<u4").reshape(-1, 6)[:, 5]


def labels() -> np.ndarray:
    """Two objects; one of them reaches into what is masked."""
    mask = np.zeros((CAMERA.height, CAMERA.width), np.uint16)
    mask[100:140, 180:230], mask[200:220, 10:40] = 7, 40000
    return mask


@pytest.mark.parametrize("first", ["frame", "object"])
def test_object_points_are_exactly_the_pixels_of_the_object(
    first: str, graph: Graph, masks: Masks, walker: Walker, room: TexturedRoom
) -> None:
    step, stamp = walker.step, walker.stamp + PERIOD_NS

    def see() -> None:
        masks.mask(walker.send(), box())
        graph.at("~/odometry", stamp)

    def point_out() -> None:
        masks.object(stamp, labels())

    for act in (see, point_out) if first == "frame" else (point_out, see):
        act()
    message = graph.at("~/object_points", stamp)
    assert message.header.frame_id == CAMERA_FRAME and stamp_ns(message.header.stamp) == stamp
    points, confidence, label = cloud_of(message)
    _, depth = room.render(walk(step))
    chosen = labels() > 0
    np.testing.assert_allclose(points, pointmap.from_depth(depth, CAMERA)[chosen], rtol=1e-6)
    np.testing.assert_array_equal(label, labels()[chosen])
    assert (confidence[box()[chosen] > 0] == 0).all() and (confidence[label == 40000] > 0).all()


def test_an_object_mask_excludes_nothing(graph: Graph, masks: Masks, walker: Walker) -> None:
    stamp = walker.send()
    masks.object(stamp, labels())
    masks.mask(stamp, np.zeros((CAMERA.height, CAMERA.width), np.uint8))
    confidence = depth_from_message(graph.at("~/confidence/image", stamp), 1.0)
    assert (confidence[200:220, 10:40] > 0).all() and (confidence[BOX] > 0).mean() > 0.9
    graph.at("~/object_points", stamp)


def test_an_object_nobody_can_see_is_an_empty_cloud(graph: Graph, masks: Masks, walker: Walker) -> None:
    stamp = walker.send()
    masks.mask(stamp, box())
    masks.object(stamp, np.zeros((CAMERA.height, CAMERA.width), np.uint8))
    assert graph.at("~/object_points", stamp).width == 0


def test_object_masks_of_another_clock_are_counted_and_told(graph: Graph, masks: Masks, walker: Walker) -> None:
    before = graph.count("object_masks_unpaired")
    for i in range(6):
        masks.object(walker.sent[0] - 10**9 * (1 + i), labels())
    masks.mask(walker.send(), box())
    graph.process.wait(lambda: graph.count("object_masks_unpaired") == before + 6, "six counted masks")
    graph.process.says("object masks in a row found no processed frame of their stamp")
    masks.object(walker.stamp, np.zeros((10, 10), np.uint8))
    graph.process.wait(lambda: masks.mask(walker.send(), box()) or graph.count("skipped.object_mask_size"), "a count")


def test_silence_of_what_nobody_waits_for_is_not_worth_a_word(graph: Graph) -> None:
    assert "/object_mask: nothing" not in graph.process.log and "/initialpose: nothing" not in graph.process.log
    assert graph.count("errors") == 0


def test_nothing_is_kept_for_nobody() -> None:
    """Frames for masks to come take memory: only while somebody listens."""
    from recon_ros.ros.objects import Objects

    class Silence:
        def wanted(self, _: Any) -> bool:
            return False

    unused: Callable[..., Any] = pytest.fail
    objects = Objects(Silence(), None, None, unused, 0)  # type: ignore[arg-type]
    objects.add_frame(None, None, None, None, "")  # type: ignore[arg-type]
    objects.add_mask(None)
    assert not objects._shots and not objects._waiting


def test_a_mask_that_waits_in_vain_is_counted() -> None:
    """No frame of theirs comes at all, as of a camera that has died."""
    from recon_ros.ros.objects import WAITING, Objects
    from recon_ros.ros.statistics import Statistics

    said: list[str] = []
    statistics = Statistics()
    listener = types.SimpleNamespace(wanted=lambda _: True)
    objects = Objects(listener, None, statistics, said.append, 0)  # type: ignore[arg-type]
    for i in range(WAITING + 6):
        stamp = types.SimpleNamespace(sec=i + 1, nanosec=0)
        objects.add_mask(types.SimpleNamespace(header=types.SimpleNamespace(stamp=stamp)))
    assert statistics.counts["object_masks_unpaired"] == 6 and len(objects._waiting) == WAITING
    assert len(said) == 1 and "none at all" in said[0]
