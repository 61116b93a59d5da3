# SPDX-License-Identifier: Apache-2.0
"""~/map_updates: the map in blocks, each sent again when it has changed, so that a large map costs what is new in it.

A subscriber keeps points by their ``block``. For each block in a message it forgets what it had and takes what is
there: all points of that block, or a single point of NaN when nothing is left of it. A number stands for one block as
long as the node runs. Whoever begins to listen is sent all blocks.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
from sensor_msgs.msg import PointCloud2

from recon_ros.geometry import se3
from recon_ros.mapping.drawing import BlockIndex, MapChanges
from recon_ros.ros.conversions import cloud_message


class MapUpdates:
    """What listeners have been sent by now, and so what they lack."""

    def __init__(self) -> None:
        self._numbers: dict[BlockIndex, int] = {}
        self._shown: set[BlockIndex] = set()
        self._version = 0
        self._listeners: Set[bytes] = frozenset()

    def since(self, listeners: Set[bytes]) -> int:
        """The version of the map that these listeners, by their ids, have all seen; 0 when one of them is new."""
        is_new = bool(listeners - self._listeners)
        self._listeners = listeners
        return 0 if is_new else self._version

    def message(
        self, changes: MapChanges, T_map_world: se3.Matrix, stamp_ns: int, map_frame: str
    ) -> PointCloud2 | None:
        """The changed blocks as sensor_msgs/PointCloud2 in the map frame, None when there is none."""
        self._version = changes.version
        gone = self._shown - changes.changed.keys() if changes.whole else self._shown & set(changes.removed)
        self._shown = (self._shown | changes.changed.keys()) - gone
        if not changes.changed and not gone:
            return None
        clouds = list(changes.changed.values())
        points = [se3.transform(T_map_world, cloud.points) for cloud in clouds]
        numbers = [self._number(index) for index in (*changes.changed, *sorted(gone))]
        message = cloud_message(
            np.concatenate([*points, np.full((len(gone), 3), np.nan, np.float32)]),
            np.concatenate([*(cloud.colours for cloud in clouds), np.zeros((len(gone), 3), np.uint8)]),
            stamp_ns,
            map_frame,
            blocks=np.repeat(numbers, [*map(len, clouds), *[1] * len(gone)]).astype(np.uint32),
        )
        message.is_dense = not gone
        return message

    def _number(self, index: BlockIndex) -> int:
        return self._numbers.setdefault(index, len(self._numbers))
