# SPDX-License-Identifier: Apache-2.0
"""The node as a process of its own, started and stopped as `ros2 launch` would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from recon_ros.errors import ReconError

STOP_TIMEOUT_S = 15.0


class NodeProcess:
    """`recon_node` with parameters and remappings, its log in a file; stopped with SIGINT.

    Args:
        parameters: flat name → value.
        remappings: topic → topic.
        log: file that takes what the node prints.
    """

    def __init__(self, parameters: Mapping[str, Any], remappings: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._parameters = log.with_suffix(".params.yaml")
        self._parameters.write_text(yaml.safe_dump({"/**": {"ros__parameters": dict(parameters)}}))
        remap = [argument for old, new in remappings.items() for argument in ("-r", f"{old}:={new}")]
        command = [sys.executable, "-m", "recon_ros.ros.node", "--ros-args"]
        # A leaked mark of the ROS wheels' start-up would leave the child without their libraries.
        environment = {k: v for k, v in os.environ.items() if k != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
        with log.open("w") as output:
            # A session of its own, so that Ctrl-C in a terminal reaches the node through us, and only once.
            self._process = subprocess.Popen(
                [*command, "--params-file", str(self._parameters), *remap],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise ReconError with the end of the log when the node has died."""
        code = self._process.poll()
        if code is not None:
            raise ReconError(f"the node ended with code {code}; the last it said:\n{self.tail()}")

    def tail(self, lines: int = 15) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> int:
        """SIGINT, SIGKILL when it does not listen; the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
