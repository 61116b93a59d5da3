# SPDX-License-Identifier: Apache-2.0
"""What is derived from the whole map: keyframes, path, cloud and its changed blocks, each when there is a reason to."""

from __future__ import annotations

import numpy as np

from recon_ros.config import NodeConfig
from recon_ros.geometry import se3
from recon_ros.reconstructor import Reconstructor
from recon_ros.ros import interface
from recon_ros.ros.map_updates import MapUpdates
from recon_ros.ros.mount import Mount
from recon_ros.ros.outputs import Outputs
from recon_ros.ros.path import PathBuilder
from recon_ros.ros.statistics import Statistics


class MapOutputs:
    """Publishes what has changed, when somebody listens. `keyframes` and `path` are for the worker's thread, `cloud`
    and `updates` for one that nobody waits for.

    Attributes:
        last_stamp_ns: of the last frame that was published, which what is published here carries; 0 before the first.
    """

    def __init__(
        self,
        reconstructor: Reconstructor,
        outputs: Outputs,
        mount: Mount,
        statistics: Statistics,
        config: NodeConfig,
    ) -> None:
        self._reconstructor, self._outputs, self._mount, self._statistics = reconstructor, outputs, mount, statistics
        self._map_frame = config.map_frame
        self._path = PathBuilder(config.map_frame, config.path_max_size)
        self._updates = MapUpdates()
        self._epoch = 0
        self._published: dict[str, tuple[int, int, int, int]] = {}
        self.last_stamp_ns = 0

    def turn(self) -> None:
        """Another map is the map now: all is new."""
        self._epoch += 1

    def keyframes(self) -> None:
        """~/keyframes, if they have changed and somebody listens."""
        if self._is_due(interface.KEYFRAMES):
            poses = np.array([k.T_world_camera for k in self._reconstructor.keyframes]).reshape(-1, 4, 4)
            T_map_base = self.T_map_world @ se3.rigid(poses) @ self._T_camera_base
            self._outputs.keyframes(T_map_base, self.last_stamp_ns)

    def path(self) -> None:
        """~/path, if frames have come since and somebody listens."""
        if self._is_due(interface.PATH):
            trajectory = self._reconstructor.trajectory()
            message = self._path.build(trajectory, self.T_map_world, self._T_camera_base, self.last_stamp_ns)
            self._outputs.publish(interface.PATH, message)

    def cloud(self) -> None:
        """~/map, if it has changed and somebody listens."""
        if self._is_due(interface.MAP):
            cloud = self._reconstructor.map_cloud()
            self._statistics.points = len(cloud)
            self._outputs.map(cloud, self.T_map_world, self.last_stamp_ns)

    def updates(self) -> None:
        """~/map_updates, if somebody listens who does not have what is there."""
        if not (self._has_begun and self._outputs.wanted(interface.MAP_UPDATES)):
            return
        since = self._updates.since(self._outputs.listeners(interface.MAP_UPDATES))
        if since == self._reconstructor.map_version:
            return
        changes = self._reconstructor.map_changes(since)
        message = self._updates.message(changes, self.T_map_world, self.last_stamp_ns, self._map_frame)
        if message is not None:
            self._outputs.publish(interface.MAP_UPDATES, message)

    def _is_due(self, topic: interface.Topic) -> bool:
        """Whether a latched topic has something new and a listener; if so it is taken for published."""
        if not (self._has_begun and self._outputs.wanted(topic)):
            return False
        frames = self._statistics.counts["processed"] if topic is interface.PATH else 0
        # The cloud's version follows when somebody has drawn it; keyframes are there before that.
        keyframes = len(self._reconstructor.keyframes) if topic is interface.KEYFRAMES else 0
        version = (self._epoch, self._reconstructor.map_version, frames, keyframes)
        if self._published.get(topic.name) == version:
            return False
        self._published[topic.name] = version
        return True

    @property
    def _has_begun(self) -> bool:
        """A frame has been published: where the camera sits is known, and a stamp for what is derived from the map."""
        return self._mount.T_base_camera is not None and self.last_stamp_ns > 0

    @property
    def T_map_world(self) -> se3.Matrix:
        """The world is the first camera's frame, the map the first base's, and level where gravity is known."""
        assert self._mount.T_base_camera is not None, "nothing in the map is published before it is known"
        return self._reconstructor.map_from_world(self._mount.T_base_camera)

    @property
    def _T_camera_base(self) -> se3.Matrix:
        assert self._mount.T_base_camera is not None, "nothing in the map is published before it is known"
        return se3.inverse(self._mount.T_base_camera)
