# SPDX-License-Identifier: Apache-2.0
"""What there is to know of the map: keyframes, cloud, paths, loops, and where a robot has it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Cloud, Keyframe, Trajectory
from recon_ros.geometry import gravity
from recon_ros.mapping.atlas import MAIN, Atlas
from recon_ros.mapping.drawing import MapChanges
from recon_ros.mapping.loops import Loop
from recon_ros.mapping.map_data import other_mount
from recon_ros.memory.spill import Usage


class ReadableMap:
    """Answers from the map as it is now; nothing is changed by asking."""

    _atlas: Atlas

    @property
    def keyframes(self) -> tuple[Keyframe, ...]:
        """All keyframes, ordered by id; their local points, and poses as they are now."""
        return self._atlas.store.keyframes

    @property
    def placed_keyframes(self) -> tuple[Keyframe, ...]:
        """`keyframes` without those of submaps whose place in the world is not known yet."""
        return tuple(self._atlas.placed.values())

    @property
    def keyframe_usage(self) -> Usage:
        """How much of RAM and of a disk the keyframes take; the bound is `memory.max_ram_mb`."""
        return self._atlas.store.usage

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The loops that are believed by now."""
        return self._atlas.loops

    @property
    def submaps(self) -> int:
        """Maps in frames of their own that have not been joined to the first yet."""
        store = self._atlas.store
        return len({store.submap_of(k.id) for k in store.keyframes} - {MAIN})

    # -- cloud -----------------------------------------------------------------------------------------------

    @property
    def map_version(self) -> int:
        """Changes whenever `map_cloud` does; never again what it was, also over `reset` and `load_map`."""
        return self._atlas.drawing.version

    def map_cloud(self, max_points: int | None = None) -> Cloud:
        """The world cloud derived from the keyframes, at most `max_points` (the configuration's when None).

        Live, as far as it is drawn; `settle` waits for the rest. This, `map_version` and `map_changes` may be called
        from any thread, and had better not be from the one that tracks: they take as long as what has changed is large.
        """
        return self._atlas.drawing.cloud(max_points)

    @property
    def whole_cloud(self) -> Callable[[], Cloud]:
        """Gives the cloud of this map with all drawn that is known by then, even when another map has taken its place;
        to be called like `map_cloud`, and takes longer."""
        return self._atlas.drawing.whole

    def map_changes(self, since_version: int) -> MapChanges:
        """The blocks of the world cloud that are different since a `map_version`, 0 for all; whole blocks, with no
        limit of points. Who takes over one after the other has the cloud."""
        return self._atlas.drawing.changes(since_version)

    # -- paths -----------------------------------------------------------------------------------------------

    def trajectory(self) -> Trajectory:
        """T_world_camera of every tracked frame, after all corrections; without those of a map that was loaded, and of
        submaps whose place is not known yet."""
        return self._atlas.path.corrected(self._atlas.placed)

    def live_trajectory(self) -> Trajectory:
        """T_world_camera of every tracked frame, as it was known when the frame was processed."""
        return self._atlas.path.live()

    @property
    def unplaced(self) -> int:
        """Tracked frames that `trajectory` leaves out, because they are of a submap whose place is not known yet."""
        return self._atlas.unplaced

    # -- on a robot ------------------------------------------------------------------------------------------

    def map_from_world(self, T_base_camera: NDArray[np.float64]) -> NDArray[np.float64]:
        """(4, 4) T_map_world of a robot's map, z up and x ahead, whose camera sits at (4, 4) `T_base_camera`.

        In the map the robot's base was first at the origin, and level: it really was where gravity is known, else it is
        taken to have been. A loaded map keeps the frame it was made in, wherever the camera sits now; `other_mount`.
        """
        mount = T_base_camera if self._atlas.T_base_camera is None else self._atlas.T_base_camera
        return gravity.level_mount(mount) if self._atlas.is_level else mount

    def other_mount(self, T_base_camera: NDArray[np.float64]) -> str | None:
        """A sentence to warn with when a loaded map was made by a camera that sat elsewhere on the robot than at
        (4, 4) `T_base_camera`; else None."""
        return other_mount(self._atlas.T_base_camera, T_base_camera)
