# SPDX-License-Identifier: Apache-2.0
"""Who draws the world cloud, and when: every change of the voxel map goes through here, so that tracking never waits.

What is told here is what the cloud is to show: each keyframe where it is now, or not at all. Per keyframe only the last
word counts, so that what waits is never more than there are keyframes, one that moves twice is drawn once, and one that
goes before its turn never is. What is new or gone comes before what has only moved, each in the order it was told.

**Live**, one thread draws. Telling it takes microseconds and waits for nobody; reading the cloud waits for the keyframe
that is being drawn, and belongs into a thread that nobody waits for. **Offline**, what is new or gone is drawn at once,
and what moved when somebody looks: what is read is a function of what was told before, and the same in each run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from recon_ros.config import MapConfig
from recon_ros.frame import Cloud, Keyframe
from recon_ros.mapping.fusion import VoxelMap

LOGGER = logging.getLogger("recon_ros.mapping")

END_S = 5.0
"""How long the thread may take to finish the keyframe it is at."""

BlockIndex = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class MapChanges:
    """What is different in the cloud since a version of it.

    Attributes:
        version: of the cloud now; to be asked with the next time.
        whole: `changed` is all there is, and every other block that is known is of a map that is no more.
        changed: blocks with all of their points, by index along the world's x, y and z; none is empty. Blocks are cubes
            of `voxels.BLOCK_EDGE` voxels.
        removed: blocks in which nothing is shown any more.
    """

    version: int
    whole: bool
    changed: dict[BlockIndex, Cloud]
    removed: tuple[BlockIndex, ...]


class Drawing:
    """The cloud of the keyframes it was told of. `draw` and `erase` are for one thread, the tracking's; all else may
    be called from any.

    Args:
        config: of the map.
        live: a thread draws; else whoever tells or reads.
    """

    def __init__(self, config: MapConfig, live: bool = False) -> None:
        self._map = VoxelMap(config)
        self._at_work = threading.Lock()  # held by who touches the map, while carrying out one change or reading
        self._told = threading.Condition()  # guards what follows; held for moments only
        self._wanted: dict[int, Keyframe | None] = {}
        self._drawn: dict[int, Keyframe] = {}  # with the one that is being drawn, without the one being taken out
        self._is_drawing = False
        self._config: MapConfig | None = None
        self._readers = 0
        self._first_version = 0
        self._live = live
        self._thread: threading.Thread | None = None
        if live:
            self._thread = threading.Thread(target=self._run, name="recon_drawing", daemon=True)
            self._thread.start()

    # -- told ------------------------------------------------------------------------------------------------

    def __contains__(self, keyframe_id: int) -> bool:
        """Whether a keyframe is drawn, or will be."""
        with self._told:
            told = self._wanted if keyframe_id in self._wanted else self._drawn
            return told.get(keyframe_id) is not None

    def draw(self, keyframe: Keyframe) -> None:
        """Show a keyframe's points where its pose says; tell it again when it has moved.

        The keyframe is held as it is, not copied, because its arrays may go to the disk; its pose is read when it is
        drawn, and taken out again from there.
        """
        self._tell(keyframe.id, keyframe)

    def erase(self, keyframe_id: int) -> None:
        """Show a keyframe's points no more; nothing happens when they are not shown."""
        self._tell(keyframe_id, None)

    def _tell(self, keyframe_id: int, keyframe: Keyframe | None) -> None:
        with self._told:
            is_known = keyframe_id in self._drawn
            if keyframe is None and not is_known:
                self._wanted.pop(keyframe_id, None)
                return
            self._wanted[keyframe_id] = keyframe
            self._told.notify_all()
        if not self._live and (keyframe is None or not is_known):
            with self._at_work:
                self._configure()
                self._advance(keyframe_id)

    def set_config(self, config: MapConfig) -> None:
        """Take over new values of what a running node may change."""
        if not self._live:
            self._catch_up()  # what was told before is drawn as it was then, whether or not somebody has looked since
        with self._told:
            self._config = config
            self._told.notify_all()

    # -- read ------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Changes whenever `cloud` does."""
        if not self._live:
            self._catch_up()
        return self._first_version + self._map.version

    def cloud(self, max_points: int | None = None) -> Cloud:
        """The cloud as far as it is drawn, at most `max_points` (the configuration's when None)."""
        with self._held():
            return self._map.cloud(max_points)

    def whole(self) -> Cloud:
        """`cloud` with all drawn that was told by now, if need be by who calls this."""
        with self._held():
            for _ in range(self.waiting):
                self._advance()
            return self._map.cloud()

    def changes(self, since_version: int) -> MapChanges:
        """What is different since a `version` of this cloud, or of another that it has taken the place of."""
        with self._held():
            version = self._first_version + self._map.version
            whole = not self._first_version < since_version <= version
            blocks = self._map.changed_since(0 if whole else since_version - self._first_version)
            return MapChanges(
                version=version,
                whole=whole,
                changed={index: cloud for index, cloud in blocks.items() if len(cloud)},
                removed=() if whole else tuple(index for index, cloud in blocks.items() if not len(cloud)),
            )

    def take_the_place_of(self, other: Drawing) -> None:
        """Count versions on from those of a cloud that was shown before, so that none stands for two clouds."""
        with other._told:
            still = len(other._wanted) + other._is_drawing + (other._config is not None)
            self._first_version = other._first_version + other._map.version + still + 1

    @property
    def waiting(self) -> int:
        """Keyframes that are to be drawn anew or taken out."""
        return len(self._wanted)

    def settle(self) -> None:
        """Wait until all that was told is drawn."""
        with self._told:
            self._told.wait_for(lambda: not self._live or self._is_idle)
        if not self._live:
            self._catch_up()

    def close(self) -> None:
        """End the thread; what it has not drawn yet is drawn when somebody reads."""
        with self._told:
            self._live = False
            self._told.notify_all()
        if self._thread is not None:
            self._thread.join(END_S)

    # -- done ------------------------------------------------------------------------------------------------

    @property
    def _is_idle(self) -> bool:
        return not self._wanted and not self._is_drawing and self._config is None

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The map to oneself, before the thread's next keyframe; without a thread, with all that was told drawn."""
        with self._told:
            self._readers += 1
        try:
            with self._at_work:
                self._configure()
                while not self._live and self._advance():
                    pass
                yield
        finally:
            with self._told:
                self._readers -= 1
                self._told.notify_all()

    def _catch_up(self) -> None:
        with self._held():
            pass

    def _run(self) -> None:
        while True:
            with self._told:
                self._told.wait_for(lambda: not self._live or not (self._is_idle or self._readers))
                if not self._live:
                    return
            with self._at_work:
                self._configure()
                self._advance()

    def _configure(self) -> None:
        with self._told:
            if self._config is not None:
                self._map.set_config(self._config)
                self._config = None
                self._told.notify_all()

    def _advance(self, keyframe_id: int | None = None) -> bool:
        """Carry out one change of the map, which must be held; False when there is none left."""
        with self._told:
            if not self._wanted:
                return False
            at = self._next() if keyframe_id is None else keyframe_id
            wanted, before = self._wanted.pop(at), self._drawn.pop(at, None)
            if wanted is not None:
                self._drawn[at] = wanted
            self._is_drawing = True
        try:
            if wanted is not None:
                self._map.add(wanted)
            elif before is not None:
                self._map.remove(before)
        except Exception:
            if self._thread is None:  # live, whoever draws can do nothing about it
                raise
            LOGGER.exception("keyframe %d cannot be drawn: the map's cloud lacks it, or has it where it was", at)
        finally:
            with self._told:
                self._drawn.pop(at, None)
                if at in self._map and (shown := wanted or before) is not None:
                    self._drawn[at] = shown
                self._is_drawing = False
                self._told.notify_all()
        return True

    def _next(self) -> int:
        urgent = (i for i, keyframe in self._wanted.items() if keyframe is None or i not in self._drawn)
        return next(urgent, next(iter(self._wanted)))
