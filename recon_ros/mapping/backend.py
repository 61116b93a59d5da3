# SPDX-License-Identifier: Apache-2.0
"""Who does slow work on the map, so that tracking need not wait: nobody else, a thread, or a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from recon_ros.errors import ReconError


@dataclass(frozen=True, eq=False)
class Finished:
    """A job that has ended.

    Attributes:
        ticket: what `submit` returned for it.
        value: what the job returned; None when it failed.
        error: what it raised, or None.
    """

    ticket: int
    value: Any = None
    error: Exception | None = None


class Backend(Protocol):
    """Does one job at a time. Of jobs that wait only the newest is kept: it knows of all that older ones knew."""

    def submit(self, job: Callable[[], Any]) -> int:
        """Wish for a job to be done; returns its ticket. Never waits, never raises what the job raises."""
        ...

    def poll(self) -> list[Finished]:
        """What has ended since the last time, in order. Never waits."""
        ...

    @property
    def busy(self) -> bool:
        """A job is being done or waits."""
        ...

    def close(self) -> None:
        """End; jobs not yet done are dropped."""
        ...


class InlineBackend:
    """Does a job at once, in the caller: for offline runs, which are to give the same bytes every time."""

    def __init__(self) -> None:
        self._finished: list[Finished] = []
        self._tickets = 0

    @property
    def busy(self) -> bool:
        return False

    def submit(self, job: Callable[[], Any]) -> int:
        self._tickets += 1
        self._finished.append(attempt(self._tickets, job))
        return self._tickets

    def poll(self) -> list[Finished]:
        finished, self._finished = self._finished, []
        return finished

    def close(self) -> None:
        self._finished = []


class ThreadBackend:
    """Does jobs in one daemon thread: for work that waits or that lets the interpreter go."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wish: tuple[int, Callable[[], Any]] | None = None
        self._finished: list[Finished] = []
        self._tickets = 0
        self._working = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="recon_map", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        with self._changed:
            return self._working or self._wish is not None

    def submit(self, job: Callable[[], Any]) -> int:
        with self._changed:
            if self._closed:
                raise ReconError("the map's backend is closed, it takes no more jobs")
            self._tickets += 1
            self._wish = self._tickets, job
            self._changed.notify_all()
            return self._tickets

    def poll(self) -> list[Finished]:
        with self._changed:
            finished, self._finished = self._finished, []
        return finished

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to do; False when that took longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._working and self._wish is None, timeout)

    def close(self, timeout: float = 5.0) -> None:
        with self._changed:
            self._closed, self._wish = True, None
            self._changed.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._wish is not None)
                if self._closed or self._wish is None:
                    return
                (ticket, job), self._wish, self._working = self._wish, None, True
            finished = attempt(ticket, job)
            del job  # it may hold much, and the next may be long in coming
            with self._changed:
                self._finished.append(finished)
                self._working = False
                self._changed.notify_all()


def attempt(ticket: int, job: Callable[[], Any]) -> Finished:
    """Do a job; what it raises is its result."""
    try:
        return Finished(ticket, job())
    except Exception as error:
        return Finished(ticket, error=error)
