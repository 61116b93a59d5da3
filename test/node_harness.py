# SPDX-License-Identifier: Apache-2.0
"""The node as a process of its own, and a ROS graph around it that plays the camera and listens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
DOMAIN = int(os.environ.get("ROS_DOMAIN_ID", 50 + os.getpid() % 50))
TIMEOUT = 20.0
"""Seconds; discovery alone takes up to 3.3, and the machine may be busy."""

# Before rclpy and the messages are imported: generated code reads the first of them then.
os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds.xml")

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from geometry_msgs.msg import TransformStamped  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from textured_room import CAMERA, TexturedRoom, walk  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

from recon_ros.geometry import se3  # noqa: E402
from recon_ros.geometry.camera import Camera  # noqa: E402
from recon_ros.messages import stamp_ns  # noqa: E402
from recon_ros.ros import conversions, interface, qos  # noqa: E402

START_NS = 1_700_000_000_123_456_789
PERIOD_NS = 33_333_333
OWN_MOUNT = {"publish_camera_tf": True, "base_to_camera": "optical"}
CAMERA_FRAME = "camera_color_optical_frame"
Found = TypeVar("Found")


class NodeProcess:
    """`recon_node` with parameters, its log in a file. Of several at once each has a name of its own."""

    def __init__(
        self,
        folder: Path,
        parameters: dict[str, Any] | None = None,
        arguments: tuple[str, ...] = (),
        name: str = "recon",
    ) -> None:
        self.name = name
        renamed = ("-r", f"__node:={name}") if name != "recon" else ()
        command = [sys.executable, "-m", "recon_ros.ros.node", "--ros-args", *renamed, *arguments]
        for name, value in (parameters or {}).items():
            text = str(value).lower() if isinstance(value, bool) else f"'{value}'" if value == "" else value
            command += ["-p", f"{name}:={text}"]
        environment = os.environ | {
            "ROS_DOMAIN_ID": str(DOMAIN),
            "ROS_LOG_DIR": str(folder / "ros_log"),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.log_file = folder / "node.log"
        with self.log_file.open("w") as log:
            # A session of its own: SIGINT is then ours to send, and its default is not inherited as ignored.
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def says(self, text: str) -> None:
        """Wait until the log holds `text`."""
        self.wait(lambda: text in self.log, f"'{text}' in the log")

    def wait(self, condition: Callable[[], Found], what: str, timeout: float = TIMEOUT) -> Found:
        """Poll until `condition` is true; on timeout fail with the node's log."""
        end = time.monotonic() + timeout
        while not (found := condition()):
            assert self.process.poll() is None, f"the node ended while waiting for {what}:\n{self.log}"
            assert time.monotonic() < end, f"no {what} within {timeout} s; the node says:\n{self.log}"
            time.sleep(0.01)
        return found

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(TIMEOUT)

    def end(self) -> None:
        """For clean-up: whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Graph:
    """Publishers of a camera, subscribers of every output, and clients, spinning in a thread."""

    def __init__(self, node: NodeProcess, besides: tuple[interface.Topic, ...] = (), name: str = "recon") -> None:
        self.process, self.name = node, name
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN)
        self.node = rclpy.create_node("test_graph", context=self.context)
        self.received: dict[str, list[Any]] = defaultdict(list)
        self._clients: dict[str, Any] = {}
        self.images = self.node.create_publisher(Image, "image", self._reliable(50))
        self.infos = self.node.create_publisher(CameraInfo, "camera_info", self._reliable(50))
        self.depths = self.node.create_publisher(Image, "depth", self._reliable(50))
        for topic in interface.PUBLICATIONS:
            if topic not in besides:
                self.listen(topic.name, topic.type, topic.qos)
        self.listen("/tf", TFMessage, "tf")
        self.listen("/tf_static", TFMessage, "tf_static")
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take everything down in order; left to the garbage collector, the context may go before what lives in it."""
        self._executor.shutdown()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "the graph's executor does not end"
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException, ShutdownException):
            self._executor.spin()

    @staticmethod
    def _reliable(depth: int) -> QoSProfile:
        return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)

    def full(self, name: str) -> str:
        return name.replace("~", "/recon")

    def listen(self, name: str, kind: Any, profile: str) -> Any:
        """Subscribe with the profile the topic is published with, but with room for every message."""
        wanted = qos.make(profile)
        if wanted.durability != DurabilityPolicy.TRANSIENT_LOCAL:
            wanted.depth = 200
        received = self.received[name]
        return self.node.create_subscription(kind, self.full(name), received.append, wanted)

    def wait_for_match(self) -> None:
        """Wait until the node's inputs and outputs are connected with ours.

        A publisher that knows of a best-effort subscription may still be unknown to it, and what it sends
        then is lost. So depths with stamp 0 are sent until the node counts them; `depths` was made last, and
        endpoints are announced in order, so the others are known too.
        """
        topics = [self.full(t.name) for t in interface.PUBLICATIONS]
        self.process.wait(lambda: all(map(self.node.count_publishers, topics)), "outputs")
        probe = conversions.image_message(np.zeros((1, 1), np.float32), 0, CAMERA_FRAME)
        for publisher in (self.images, self.infos, self.depths):
            self.process.wait(publisher.get_subscription_count, f"subscription to {publisher.topic_name}")
        before = self.count("skipped.depth_stamp_zero")

        def is_heard() -> bool:
            self.depths.publish(probe)
            time.sleep(0.05)
            return self.count("skipped.depth_stamp_zero") > before

        self.process.wait(is_heard, "word that the depth is heard")

    # -- the camera ------------------------------------------------------------------------------------------

    def send(
        self,
        stamp_ns: int,
        image: NDArray[np.uint8],
        depth: NDArray[Any] | None,
        camera: Camera,
        change: Callable[[Any, Any, Any], None] | None = None,
    ) -> None:
        """Publish a frame; `change` may spoil its three messages (image, depth, camera_info) first."""
        picture = conversions.image_message(image, stamp_ns, CAMERA_FRAME)
        distance = None if depth is None else conversions.image_message(depth, stamp_ns, CAMERA_FRAME)
        info = conversions.camera_info_message(camera, stamp_ns, CAMERA_FRAME)
        if change is not None:
            change(picture, distance, info)
        self.infos.publish(info)
        if distance is not None:
            self.depths.publish(distance)
        self.images.publish(picture)

    # -- the outputs -----------------------------------------------------------------------------------------

    def stamps(self, name: str) -> list[int]:
        """Stamps of all messages received on a topic with a header."""
        return [stamp_ns(m.header.stamp) for m in self.received[name]]

    def at(self, name: str, stamp: int) -> Any:
        """Wait for the message of that stamp."""
        return self.process.wait(
            lambda: next((m for m in reversed(self.received[name]) if stamp_ns(m.header.stamp) == stamp), None),
            f"{name} with stamp {stamp}",
        )

    def status(self) -> dict[str, str]:
        """Key-values of the newest ~/status, once there is one."""
        self.process.wait(lambda: self.received["~/status"], "~/status")
        return {kv.key: kv.value for kv in self.received["~/status"][-1].values}

    def count(self, key: str) -> int:
        """A counter of ~/status; one that has not occurred yet is zero."""
        return int(self.status().get(key, "0"))

    def transforms(self, name: str = "/tf") -> list[TransformStamped]:
        """All transforms heard on /tf or /tf_static."""
        return [t for message in list(self.received[name]) for t in message.transforms]

    # -- services --------------------------------------------------------------------------------------------

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        """Call a service of the node and wait for its answer."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, self.full(name))
        client = self._clients[name]
        self.process.wait(client.service_is_ready, f"service {name}")
        future = client.call_async(kind.Request(**fields))
        self.process.wait(future.done, f"answer of {name}")
        return future.result()

    def set_parameter(self, name: str, value: Any) -> Any:
        """Set a parameter of the node; the result with `successful` and `reason`."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        parameter = Parameter(name, value=value).to_parameter_msg()
        return self.call(SetParameters, "~/set_parameters", parameters=[parameter]).results[0]


def pose(message: Any) -> se3.Matrix:
    """(4, 4) of a message with a pose with covariance."""
    return conversions.matrix_from_pose(message.pose.pose)


@contextlib.contextmanager
def running(folder: Path, parameters: dict[str, Any], besides: tuple[interface.Topic, ...] = ()) -> Iterator[Graph]:
    """A node in a process and the graph around it, matched; both are taken down in the end."""
    process = NodeProcess(folder, parameters)
    graph = Graph(process, besides)
    try:
        graph.wait_for_match()
        yield graph
    finally:
        process.end()
        graph.close()


class Walker:
    """Walks through the room and sends what its camera sees, one frame at a time."""

    def __init__(self, graph: Graph, room: TexturedRoom, start_ns: int = START_NS) -> None:
        self.graph, self.room = graph, room
        self.stamp, self.step = start_ns, 0
        self.sent: list[int] = []

    def send(self, change: Callable[[Any, Any, Any], None] | None = None, advance: int = PERIOD_NS) -> int:
        """Send the next frame, do not wait; its stamp."""
        self.stamp += advance
        image, depth = self.room.render(walk(self.step))
        self.step = (self.step + 1) % 20
        self.graph.send(self.stamp, image, depth, CAMERA, change)
        self.sent.append(self.stamp)
        return self.stamp

    def track(self, advance: int = PERIOD_NS) -> Any:
        """Send a frame and wait for its ~/odometry."""
        return self.graph.at("~/odometry", self.send(advance=advance))
