# SPDX-License-Identifier: Apache-2.0
"""Who is looked at for loops, and when: each new keyframe at once, and what a correction brings together bit by bit."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence

from recon_ros.config import Config
from recon_ros.frame import Keyframe
from recon_ros.mapping.backend import Backend
from recon_ros.mapping.loops import Loop, LoopDetector
from recon_ros.memory.store import KeyframeStore

LOGGER = logging.getLogger("recon_ros.mapping")

Pair = tuple[int, int]


class LoopSearch:
    """Has a backend look for loops. New keyframes come first; pairs wait until it has nothing else to do.

    Args:
        backend: does one look at a time, on a frozen store.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._waiting: dict[int, list[int]] = {}
        self._asked: dict[int, list[Pair]] = {}
        self._seen: set[Pair] = set()

    @property
    def seen(self) -> frozenset[Pair]:
        """Pairs (older id, newer id) that were looked at after they had come together: once is enough."""
        return frozenset(self._seen)

    @property
    def is_idle(self) -> bool:
        """Nothing waits, or what waits has to wait for the backend."""
        return not self._waiting or self._backend.busy

    def look(self, config: Config, keyframe: Keyframe, store: KeyframeStore, candidates: Sequence[int]) -> None:
        """Look whether a new keyframe shows what some earlier ones do; asked in the map as it is now."""
        if candidates:
            self._submit(config, keyframe.id, store, candidates)

    def look_again(self, pairs: Iterable[Pair]) -> None:
        """Look at these pairs when there is time, in place of those that still wait."""
        self._waiting = {}
        for a, b in pairs:
            self._waiting.setdefault(b, []).append(a)

    def step(self, config: Config, store: KeyframeStore) -> None:
        """Have the pairs of one keyframe looked at, if some wait and the backend has nothing to do."""
        if self.is_idle:
            return
        b, candidates = next(iter(self._waiting.items()))
        del self._waiting[b]
        if b in store:
            ticket = self._submit(config, b, store, candidates)
            self._asked[ticket] = [(a, b) for a in candidates]

    def found(self) -> list[Loop]:
        """The loops found since the last time."""
        loops: list[Loop] = []
        for finished in self._backend.poll():
            self._seen.update(self._asked.pop(finished.ticket, ()))
            for dropped in [ticket for ticket in self._asked if ticket < finished.ticket]:
                del self._asked[dropped]  # a new keyframe has taken its turn; the next correction asks again
            if finished.error is not None:
                LOGGER.error("looking for loops failed: %r", finished.error)
            else:
                loops += finished.value
        return loops

    def _submit(self, config: Config, keyframe_id: int, store: KeyframeStore, candidates: Sequence[int]) -> int:
        job = functools.partial(_detect, config, keyframe_id, store.frozen(), tuple(candidates))
        return self._backend.submit(job)

    def forget(self, keyframe_id: int) -> None:
        """A keyframe has gone."""
        self._seen = {pair for pair in self._seen if keyframe_id not in pair}
        self._waiting.pop(keyframe_id, None)

    def close(self) -> None:
        self._backend.close()


def _detect(config: Config, keyframe_id: int, store: KeyframeStore, candidates: Sequence[int]) -> list[Loop]:
    """The job of looking for loops, on a frozen store."""
    return LoopDetector(config).detect(store[keyframe_id], store, candidates)
