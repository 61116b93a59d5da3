# SPDX-License-Identifier: Apache-2.0
"""A process of its own that subscribes to a node's outputs and counts them until its standard input is closed.

`python -m benchmarks.listener /recon` prints the counts by topic as JSON in the end. Messages stay serialised, so
that the listener takes as little of the machine as it can.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from recon_ros.ros import interface, qos


def main() -> None:
    """Listen to every publication of the node named as the only argument."""
    target, counts = sys.argv[1], Counter[str]()
    rclpy.init()
    node = Node("bench_listener")
    for topic in interface.PUBLICATIONS:
        name = topic.name.replace("~", target)
        node.create_subscription(
            topic.type, name, lambda _, name=topic.name: counts.update([name]), qos.make(topic.qos), raw=True
        )
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not ended.is_set():
        executor.spin_once(timeout_sec=0.1)
    print(json.dumps(counts))
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
