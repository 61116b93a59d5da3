# SPDX-License-Identifier: Apache-2.0
"""What ROS costs per frame: messages in to a Frame, and an Update out to messages that another process receives."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage

from benchmarks.measure import Row, Spans, repeated, row
from recon_ros.config import InputConfig, NodeConfig
from recon_ros.errors import ReconError
from recon_ros.frame import Cloud, Frame, Update
from recon_ros.geometry import se3
from recon_ros.intake import Intake
from recon_ros.reconstructor import Reconstructor
from recon_ros.ros import interface, tf
from recon_ros.ros.conversions import buffer_of, camera_info_message, header, image_message
from recon_ros.ros.frames import Frames, Poses
from recon_ros.ros.mount import T_BASE_OPTICAL
from recon_ros.ros.outputs import Outputs
from recon_ros.ros.statistics import Statistics
from recon_ros.ros.status import status_message

JPEG_QUALITY = 95
DISCOVERY_TIMEOUT_S = 30.0
PAUSE_S = 0.02
"""Between two publications, so that the receiver is never the bottleneck, as at a camera's rate."""
MAP_POINTS = 200_000


# -- in ------------------------------------------------------------------------------------------------------


def measure_inputs(name: str, frame: Frame, advance: Callable[[], None]) -> list[Row]:
    """Conversion of the messages of one frame, raw and compressed."""
    assert frame.depth is not None
    stamp, frame_id = frame.stamp_ns, frame.frame_id
    counts = np.nan_to_num(frame.depth * 1000).astype(np.uint16)
    raw = image_message(frame.image, stamp, frame_id), image_message(counts, stamp, frame_id)
    small = _jpeg(frame), _compressed_depth(frame, counts)
    size = f"{name}, {frame.image.shape[1]}x{frame.image.shape[0]}"
    rows = []
    for kind, messages in (("rgb8 + 16UC1", raw), ("JPEG + PNG depth", small)):
        data = [(serialize_message(message), type(message)) for message in messages]
        decode = repeated(lambda data=data: [deserialize_message(*item) for item in data], 40)  # type: ignore[misc]
        rows.append(row("in", f"deserialise, {kind}", size, decode))
        convert = repeated(lambda messages=messages: _to_frame(frame, *messages), 40)  # type: ignore[misc]
        rows.append(row("in", f"to a Frame, {kind}", size, convert))
        advance()
    return rows


def _to_frame(frame: Frame, image: Any, depth: Any) -> Frame:
    """What the node does with three messages: take in, pair, check, decode."""
    assert frame.camera is not None
    intake = Intake(InputConfig(), use_depth=True, tolerance_ns=20_000_000)
    intake.on_camera_info(camera_info_message(frame.camera, frame.stamp_ns, frame.frame_id))
    intake.on_image(image)
    (pair,) = intake.on_depth(depth)
    return intake.frame(pair)


def _jpeg(frame: Frame) -> CompressedImage:
    bgr = cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return CompressedImage(header=header(frame.stamp_ns, frame.frame_id), format="jpeg", data=buffer_of(data))


def _compressed_depth(frame: Frame, counts: NDArray[np.uint16]) -> CompressedImage:
    """As compressed_depth_image_transport writes it: a header of twelve bytes, then a PNG."""
    _, png = cv2.imencode(".png", counts)
    data = np.concatenate([np.zeros(12, np.uint8), png.ravel()])
    form = "16UC1; compressedDepth png"
    return CompressedImage(header=header(frame.stamp_ns, frame.frame_id), format=form, data=buffer_of(data))


# -- out -----------------------------------------------------------------------------------------------------


def measure_outputs(
    reconstructor: Reconstructor, update: Update, advance: Callable[[], None], repetitions: int = 30
) -> list[Row]:
    """Conversion and publication of one tracked frame and keyframe, each output received by another process.

    Raises:
        ReconError: when the receiver does not come up.
    """
    rclpy.init()
    node = Node("recon")
    listener = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.listener", "/recon"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        bench = _OutputBench(node, reconstructor, update)
        bench.wait_for_listener()
        return bench.measure(listener, repetitions, advance)
    finally:
        listener.kill()
        listener.wait()
        node.destroy_node()
        rclpy.try_shutdown()


class _OutputBench:
    def __init__(self, node: Node, reconstructor: Reconstructor, update: Update) -> None:
        assert update.T_world_camera is not None, "the last frame of the input is tracked"
        self._node, self._update = node, update
        config = NodeConfig()
        self._outputs = Outputs(node, config, reconstructor.config.map.min_confidence)
        self._frames = Frames(node, config, tf.make(node, lambda parent, child: None))
        self._confidence = reconstructor.source.card.normalised(update.prediction.confidence)
        T_map_camera = T_BASE_OPTICAL @ update.T_world_camera
        T_map_base = T_map_camera @ se3.inverse(T_BASE_OPTICAL)
        self._poses = Poses(T_map_base, T_map_base, T_map_camera, T_BASE_OPTICAL)
        self._source = reconstructor.source

    def wait_for_listener(self) -> None:
        deadline = time.monotonic() + DISCOVERY_TIMEOUT_S
        while not all(map(self._outputs.wanted, interface.PUBLICATIONS)):
            if time.monotonic() > deadline:
                raise ReconError(f"the listener has not subscribed within {DISCOVERY_TIMEOUT_S:g} s")
            time.sleep(0.05)

    def measure(self, listener: Any, repetitions: int, advance: Callable[[], None]) -> list[Row]:
        """A convert and a publish row for each output, with how much of it arrived."""
        times: dict[str, dict[str, list[float]]] = {}
        for name, (_, call) in self._calls().items():
            times[name] = self._split(call, repetitions)
            advance()
        said, _ = listener.communicate("", timeout=DISCOVERY_TIMEOUT_S)
        received: dict[str, int] = defaultdict(int, json.loads(said))
        rows = []
        for name, (topic, _) in self._calls().items():
            size = name.partition(": ")[2] or "one frame"
            title = name.partition(": ")[0]
            if topic is None:
                rows.append(row("out", f"{title}: convert and publish", size, times[name]["all"]))
                continue
            note = f"{received[topic.name]} of {repetitions + 3} received"
            rows.append(row("out", f"{title}: convert", size, times[name]["convert"]))
            rows.append(row("out", f"{title}: publish", size, times[name]["publish"], note=note))
        return rows

    def _calls(self) -> dict[str, tuple[interface.Topic | None, Callable[[], None]]]:
        """Name and size of each output, the topic whose arrival is counted, and the call that makes it."""
        outputs, update, poses = self._outputs, self._update, self._poses
        height, width = update.image.shape[:2]
        rng = np.random.default_rng(0)
        cloud = Cloud(
            rng.normal(size=(MAP_POINTS, 3)).astype(np.float32),
            rng.integers(0, 256, (MAP_POINTS, 3), dtype=np.uint8),
            np.ones(MAP_POINTS, np.float32),
        )
        forty = np.repeat(np.eye(4)[None], 40, axis=0)
        statistics = Statistics()

        def status() -> None:
            message = status_message("/recon", statistics, update.state, {}, self._source)
            outputs.publish(interface.STATUS, message)

        stamp = update.stamp_ns
        return {
            "odometry and pose": (interface.ODOMETRY, lambda: outputs.poses(update, poses)),
            "TF": (None, lambda: self._frames.broadcast(stamp, poses)),
            "status": (interface.STATUS, status),
            f"depth, confidence, info: {width}x{height}": (
                interface.DEPTH_OUT,
                lambda: outputs.images(update, self._confidence, update.frame_id),
            ),
            f"points: {width}x{height}, stride 2": (
                interface.POINTS,
                lambda: outputs.points(update, poses, self._confidence, update.frame_id),
            ),
            "keyframes: 40 poses": (interface.KEYFRAMES, lambda: outputs.keyframes(forty, stamp)),
            f"map: {MAP_POINTS:,} points": (interface.MAP, lambda: outputs.map(cloud, np.eye(4), stamp)),
        }

    def _split(self, call: Callable[[], None], repetitions: int, warm_up: int = 3) -> dict[str, list[float]]:
        """Milliseconds of each call: all, in publish(), and besides."""
        spans, times = Spans(), defaultdict[str, list[float]](list)
        with spans.patched([("publish", Outputs, "publish")]):
            for i in range(warm_up + repetitions):
                time.sleep(PAUSE_S)
                spans.take()
                start = time.perf_counter()
                call()
                total = (time.perf_counter() - start) * 1e3
                publish = spans.take().get("publish", 0.0)
                if i >= warm_up:
                    times["all"].append(total)
                    times["publish"].append(publish)
                    times["convert"].append(total - publish)
        return times
