# SPDX-License-Identifier: Apache-2.0
"""The one thread besides the executor's: a mailbox for frames, a queue for commands, one worker for both."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Frames that may wait with policy "all" before the caller of `offer` is made to wait: 0.5 GB of VGA RGB-D.
BACK_PRESSURE_AT = 300


class Worker(Generic[Item]):
    """Handles one thing at a time in its own thread: commands first, then the next frame.

    Policy ``newest`` keeps one frame; a newer one replaces it and `dropped` hears of the loss, so the latency
    is bounded by the time of one frame. Policy ``all`` keeps every frame and makes `offer` wait when too many
    do.

    `handle` and `failed` are called in the worker's thread; an exception of `handle` goes to `failed` and the
    worker goes on. `dropped` is told how many frames were lost, by whoever lost them. The thread is a daemon
    so that a frame that never returns cannot keep the process alive.
    """

    def __init__(
        self,
        handle: Callable[[Item], None],
        failed: Callable[[Exception], None],
        dropped: Callable[[int], None],
        policy: str = "newest",
        capacity: int = BACK_PRESSURE_AT,
    ) -> None:
        self._handle = handle
        self._failed = failed
        self._dropped = dropped
        self._keep_all = policy == "all"
        self._capacity = capacity if self._keep_all else 1
        self._frames: deque[Item] = deque()
        self._commands: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._running = False
        self._drain = False

    @property
    def running(self) -> bool:
        return self._running

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: when an earlier `stop` ran out of time and the thread is still at work.
        """
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("the worker is still busy with what it was doing when it was stopped")
        self._running, self._drain = True, False
        self._thread = threading.Thread(target=self._run, name="recon_worker", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0, drain: bool = False) -> bool:
        """End the thread after what it is doing now; False if that took longer than `timeout` seconds.

        Commands that wait are cancelled and frames dropped and counted, unless `drain`, which does them
        first.
        """
        with self._changed:
            self._running, self._drain = False, drain
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def offer(self, item: Item) -> None:
        """Put a frame into the mailbox; ignored when the worker does not run."""
        with self._changed:
            while self._keep_all and self._running and len(self._frames) >= self._capacity:
                self._changed.wait()
            if not self._running:
                return
            if len(self._frames) >= self._capacity:
                self._frames.popleft()
                self._dropped(1)
            self._frames.append(item)
            self._changed.notify_all()

    def submit(self, command: Callable[[], Result]) -> Future[Result]:
        """Have `command` run in the worker's thread before the next frame; its result comes in the future.

        The future is cancelled when the worker does not run, or is stopped before it came to the command.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._running:
                self._commands.append((future, command))
                self._changed.notify_all()
            else:
                future.cancel()
        return future

    def _run(self) -> None:
        while (task := self._next()) is not None:
            task()

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to do; None when it is time to end."""
        with self._changed:
            while self._running and not self._commands and not self._frames:
                self._changed.wait()
            if not self._running and not self._drain:
                self._give_up()
            if self._commands:
                future, command = self._commands.popleft()
                return lambda: _answer(future, command)
            if self._frames:
                frame = self._frames.popleft()
                self._changed.notify_all()
                return lambda: self._try(frame)
            return None

    def _try(self, frame: Item) -> None:
        try:
            self._handle(frame)
        except Exception as error:  # a bad frame must not end the node
            self._failed(error)

    def _give_up(self) -> None:
        self._dropped(len(self._frames))
        self._frames.clear()
        while self._commands:
            self._commands.popleft()[0].cancel()


def _answer(future: Future[Any], command: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(command())
    except Exception as error:  # raised again for whoever asks the future
        future.set_exception(error)
