# SPDX-License-Identifier: Apache-2.0
"""Poses over time: one moving edge (`Track`), and the tree of all edges heard on TF (`Tree`). No ROS in here."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from recon_ros.geometry import se3

KEEP_NS = 10_000_000_000
"""History kept of a moving edge; tf2's default."""


@dataclass(eq=False)
class Track:
    """Stamped poses of one frame in another, interpolated; the last ten seconds of them."""

    stamps: list[int] = field(default_factory=list)
    poses: dict[int, se3.Matrix] = field(default_factory=dict)

    def add(self, stamp_ns: int, T: se3.Matrix) -> None:
        """Take a pose in; a stamp far back begins the track anew, for time itself has jumped."""
        if self.stamps and stamp_ns < self.stamps[-1] - KEEP_NS:
            self.stamps.clear()
            self.poses.clear()
        if stamp_ns not in self.poses:
            insort(self.stamps, stamp_ns)
        self.poses[stamp_ns] = T
        while self.stamps[0] < self.stamps[-1] - KEEP_NS:
            del self.poses[self.stamps.pop(0)]

    def at(self, stamp_ns: int | None) -> se3.Matrix | None:
        """(4, 4) at a stamp, between the two neighbours on the geodesic; None outside; the newest for None."""
        if not self.stamps:
            return None
        if stamp_ns is None:
            return self.poses[self.stamps[-1]]
        after = bisect_left(self.stamps, stamp_ns)
        if after == len(self.stamps):
            return None
        t1 = self.stamps[after]
        if t1 == stamp_ns:
            return self.poses[t1]
        if after == 0:
            return None
        t0 = self.stamps[after - 1]
        return se3.interpolate(self.poses[t0], self.poses[t1], (stamp_ns - t0) / (t1 - t0))


class Tree:
    """Who is whose parent, and how they stand to each other, static or moving. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parent: dict[str, str] = {}
        self._static: dict[str, se3.Matrix] = {}
        self._moving: dict[str, Track] = {}

    def add(self, parent: str, child: str, stamp_ns: int, T_parent_child: se3.Matrix, static: bool) -> None:
        """Take an edge in. A new parent takes the child over, as in tf2."""
        with self._lock:
            if self._parent.get(child) != parent:
                self._static.pop(child, None)
                self._moving.pop(child, None)
            self._parent[child] = parent
            if static:
                self._static[child] = T_parent_child
            else:
                self._moving.setdefault(child, Track()).add(stamp_ns, T_parent_child)

    def root(self, frame: str) -> str:
        """The frame that `frame` hangs from in the end; itself when it has no parent."""
        with self._lock:
            return list(self._ancestors(frame))[-1]

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> se3.Matrix | None:
        """(4, 4) T_target_source at a stamp (None: the newest of each edge), or None when it is not known."""
        with self._lock:
            up = list(self._ancestors(target))
            down = list(self._ancestors(source))
            common = next((frame for frame in up if frame in down), None)
            if common is None:
                return None
            T_common_target = self._chain(up[: up.index(common)], stamp_ns)
            T_common_source = self._chain(down[: down.index(common)], stamp_ns)
        if T_common_target is None or T_common_source is None:
            return None
        return se3.inverse(T_common_target) @ T_common_source

    def clear(self) -> None:
        """Forget the moving edges; static ones hold at any time."""
        with self._lock:
            for child in self._moving:
                if child not in self._static:
                    del self._parent[child]
            self._moving.clear()

    def _ancestors(self, frame: str) -> Iterator[str]:
        seen = set()
        while frame not in seen:  # a loop in the tree is somebody's mistake, not our end
            seen.add(frame)
            yield frame
            if frame not in self._parent:
                return
            frame = self._parent[frame]

    def _chain(self, frames: list[str], stamp_ns: int | None) -> se3.Matrix | None:
        """T_top_bottom along `frames`, which go upwards."""
        T = np.eye(4)
        for frame in frames:
            edge = self._static.get(frame)
            if edge is None:
                edge = self._moving[frame].at(stamp_ns)
            if edge is None:
                return None
            T = edge @ T
        return T
