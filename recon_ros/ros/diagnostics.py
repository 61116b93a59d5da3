# SPDX-License-Identifier: Apache-2.0
"""/diagnostics: Input, Tracking, Performance, Memory, Engine.

Small tasks of our own with the monotonic clock: diagnostic_updater's FrequencyStatus measures on a clock that
is not attached to the node, so the stamps of a recording always look wrong to it, and a timer on ROS time
falls silent with `/clock`, which is when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node

from recon_ros.frame import State
from recon_ros.ros.inputs import Inputs
from recon_ros.ros.statistics import Statistics
from recon_ros.ros.status import WORDS, engine_level, key_values, tracking_level
from recon_ros.ros.watchdog import Watchdog
from recon_ros.runtimes.status import RuntimeStatus

NO_IMAGE_WARN_S = 1.0
NO_IMAGE_ERROR_S = 5.0
DROPPED_WARN = 0.5

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class Diagnostics:
    """Builds the array from what the node's parts know; `state` tells the state with the pause in it, `engine` how it
    stands with who executes the source."""

    def __init__(
        self,
        node: Node,
        statistics: Statistics,
        inputs: Inputs,
        watchdog: Watchdog,
        state: Callable[[], State],
        engine: Callable[[], RuntimeStatus],
    ) -> None:
        self._node, self._statistics = node, statistics
        self._inputs, self._watchdog, self._state, self._engine_status = inputs, watchdog, state, engine
        self._process = psutil.Process()
        self._before = (0, 0)

    def array(self) -> DiagnosticArray:
        """diagnostic_msgs/DiagnosticArray of now."""
        tasks = (self._input, self._tracking, self._performance, self._memory, self._engine)
        message = DiagnosticArray(status=[task() for task in tasks])
        message.header.stamp = self._node.get_clock().now().to_msg()
        return message

    def _status(self, task: str, level: bytes, message: str, values: dict[str, object]) -> DiagnosticStatus:
        name = self._node.get_fully_qualified_name()
        return DiagnosticStatus(
            level=level,
            name=f"{name.lstrip('/')}: {task}",
            message=message,
            hardware_id=name,
            values=key_values(values),
        )

    def _input(self) -> DiagnosticStatus:
        s, age = self._statistics, self._statistics.image_age()
        level, message = OK, "images arrive"
        if age is None or age > NO_IMAGE_ERROR_S:
            level, message = ERROR, "no image" if age is None else f"no image for {age:.0f} s"
        elif self._watchdog.silent:
            level, message = WARN, "; ".join(self._watchdog.silent.values())
        elif age > NO_IMAGE_WARN_S:
            level, message = WARN, f"no image for {age:.1f} s"
        elif self._inputs.waits_for_camera_info() > 0:
            level, message = WARN, "not calibrated: no camera_info yet"
        values: dict[str, object] = {
            "rate_hz": s.received_rate(),
            "age_s": float("nan") if age is None else age,
            "encoding": s.encoding,
            "size": f"{s.size[0]}x{s.size[1]}",
            "lost_in_transport": s.counts["lost_in_transport"],
            **{f"silent.{name}": reason for name, reason in self._watchdog.silent.items()},
        }
        return self._status("Input", level, message, values)

    def _tracking(self) -> DiagnosticStatus:
        s, state = self._statistics, self._state()
        values: dict[str, object] = {
            "state": state.value,
            "confidence": s.confidence,
            "lost_s": s.lost_for(),
            "keyframes": s.keyframes,
            "metric_scale": s.is_metric,
        }
        return self._status("Tracking", tracking_level(s), WORDS[state], values)

    def _performance(self) -> DiagnosticStatus:
        s = self._statistics
        p50, p95 = s.latency_percentiles()
        received, dropped = s.counts["received"], s.counts["dropped"]
        came, lost = received - self._before[0], dropped - self._before[1]
        self._before = (received, dropped)
        share = lost / came if came > 0 else 0.0
        level, message = (WARN, f"{share:.0%} of the frames dropped") if share > DROPPED_WARN else (OK, "keeps up")
        values: dict[str, object] = {
            "fps": s.processed_rate(),
            "latency_p50_ms": p50,
            "latency_p95_ms": p95,
            "inference_ms": s.inference_ms,
            "dropped_percent": 100.0 * share,
            "errors": s.counts["errors"],
        }
        return self._status("Performance", level, message, values)

    def _memory(self) -> DiagnosticStatus:
        s = self._statistics
        values: dict[str, object] = {
            "keyframes": s.keyframes,
            "keyframes_ram_mb": s.keyframe_ram_mb,
            "keyframes_disk_mb": s.keyframe_disk_mb,
            "map_points": s.points,
            "rss_mb": self._process.memory_info().rss / 2**20,
        }
        return self._status("Memory", OK, f"{s.keyframes} keyframes", values)

    def _engine(self) -> DiagnosticStatus:
        engine = self._engine_status()
        values: dict[str, object] = {
            "runtime": engine.runtime or "none",
            "precision": engine.precision,
            "file": engine.file,
            "state": engine.state,
            "progress_percent": 100.0 * engine.progress,
            "elapsed_s": engine.elapsed_s,
            # 1 is the limit; NaN where there was nothing to check against.
            "self_check": float("nan") if engine.self_check is None else engine.self_check,
        }
        return self._status("Engine", engine_level(engine), engine.message, values)
