# SPDX-License-Identifier: Apache-2.0
"""A node's process: it serves callbacks until a signal says stop."""

from __future__ import annotations

import signal
import threading
import traceback
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from recon_ros.ros.statistics import Throttle

STOP_LATENCY_S = 0.2
"""How long a signal may wait to be seen."""


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set; a second one ends the process at once."""
    stop = threading.Event()

    def handle(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop


def spin(node: Node, executor: SingleThreadedExecutor, stop: threading.Event) -> None:
    """Serve callbacks until `stop`; a callback that raises is said, and does not end the node."""
    throttle = Throttle()
    while not stop.is_set() and rclpy.ok():
        try:
            executor.spin_once(timeout_sec=STOP_LATENCY_S)
        except ExternalShutdownException:
            return
        except Exception as error:
            if throttle.passes(repr(error)):
                node.get_logger().error(f"a callback failed:\n{traceback.format_exc()}")
