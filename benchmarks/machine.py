# SPDX-License-Identifier: Apache-2.0
"""What a number was measured on, and whether the machine had time for it."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

BUSY_SHARE = 0.25
"""Load of others per core above which timings are not to be trusted."""


@dataclass
class Machine:
    """Hardware and software of a measurement; create it before, call `finish` after.

    Attributes:
        load_before, load_after: load average over one minute.
    """

    cpu: str = field(default_factory=lambda: _cpu_model())
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    memory_gb: float = field(default_factory=lambda: round(psutil.virtual_memory().total / 2**30, 1))
    system: str = field(default_factory=lambda: f"{platform.system()} {platform.machine()}")
    python: str = field(default_factory=platform.python_version)
    numpy: str = np.__version__
    opencv: str = cv2.__version__
    load_before: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    load_after: float | None = None

    def finish(self) -> Machine:
        """Note the load at the end."""
        self.load_after = round(os.getloadavg()[0], 2)
        return self

    @property
    def others(self) -> float:
        """Load that was not ours: what was there before; afterwards our own process counts as one."""
        after = 0.0 if self.load_after is None else self.load_after - 1.0
        return max(self.load_before, after, 0.0)

    @property
    def warning(self) -> str | None:
        """A sentence when the machine was too busy for timings, else None."""
        if self.others <= BUSY_SHARE * self.cores:
            return None
        return (
            f"the machine is busy (load of others about {self.others:.1f} on {self.cores} cores): look at the "
            "minima, and measure again when it is quiet"
        )

    def line(self) -> str:
        """All of it in one line."""
        after = "" if self.load_after is None else f" → {self.load_after:.2f}"
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gb:.0f} GB, {self.system}; Python {self.python}, "
            f"numpy {self.numpy}, OpenCV {self.opencv}; load {self.load_before:.2f}{after}"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"warning": self.warning}


def use_one_thread() -> None:
    """Libraries keep to the thread that calls them, so that rows can be compared; OpenMP is told by the Makefile."""
    cv2.setNumThreads(1)


def _cpu_model() -> str:
    """The processor's name; aarch64 kernels tell only the board's."""
    for path, key in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", "")):
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            continue
        if not key:
            return text.strip("\0\n ")
        for line in text.splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
