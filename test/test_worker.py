# SPDX-License-Identifier: Apache-2.0
"""The worker: newest-wins and back-pressure, commands between frames, errors survived, ending in time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from recon_ros.ros.worker import Worker

TIMEOUT = 10.0


class Recorder:
    """A frame handler that can be held at its first frame, and remembers what went through it."""

    def __init__(self, hold: bool = False) -> None:
        self.handled: list[int] = []
        self.failures: list[Exception] = []
        self.dropped = 0
        self.busy, self.release = threading.Event(), threading.Event()
        if not hold:
            self.release.set()

    def handle(self, item: int) -> None:
        self.busy.set()
        assert self.release.wait(TIMEOUT)
        if item < 0:
            raise ValueError(item)
        self.handled.append(item)

    def drop(self, count: int) -> None:
        self.dropped += count


@contextmanager
def running(recorder: Recorder, **options: object) -> Iterator[Worker[int]]:
    worker: Worker[int] = Worker(recorder.handle, recorder.failures.append, recorder.drop, **options)  # type: ignore[arg-type]
    worker.start()
    try:
        yield worker
    finally:
        recorder.release.set()
        assert worker.stop(TIMEOUT)


def held(recorder: Recorder, worker: Worker[int]) -> None:
    """Give the worker a frame and wait until it is at it."""
    worker.offer(0)
    assert recorder.busy.wait(TIMEOUT)


def test_newest_frame_wins_and_the_rest_is_counted() -> None:
    recorder = Recorder(hold=True)
    with running(recorder) as worker:
        held(recorder, worker)
        for item in (1, 2, 3):
            worker.offer(item)
        recorder.release.set()
        worker.submit(lambda: None).result(TIMEOUT)
        assert worker.stop(TIMEOUT, drain=True)
    assert recorder.handled == [0, 3]
    assert recorder.dropped == 2


def test_all_keeps_every_frame_and_holds_the_caller_up() -> None:
    recorder = Recorder(hold=True)
    with running(recorder, policy="all", capacity=2) as worker:
        held(recorder, worker)
        worker.offer(1)
        worker.offer(2)
        third = threading.Thread(target=worker.offer, args=(3,))
        third.start()
        third.join(0.1)
        assert third.is_alive(), "the third frame must wait for room"
        recorder.release.set()
        third.join(TIMEOUT)
        assert worker.stop(TIMEOUT, drain=True)
    assert recorder.handled == [0, 1, 2, 3]
    assert recorder.dropped == 0


def test_a_waiting_caller_is_let_go_when_the_worker_stops() -> None:
    recorder = Recorder(hold=True)
    with running(recorder, policy="all", capacity=1) as worker:
        held(recorder, worker)
        worker.offer(1)
        caller = threading.Thread(target=worker.offer, args=(2,))
        caller.start()
        stopper = threading.Thread(target=worker.stop)
        stopper.start()
        caller.join(TIMEOUT)
        assert not caller.is_alive()
        recorder.release.set()
        stopper.join(TIMEOUT)
    assert recorder.handled == [0]
    assert recorder.dropped == 1


def test_commands_go_before_frames_and_answer() -> None:
    recorder = Recorder(hold=True)
    with running(recorder, policy="all") as worker:
        held(recorder, worker)
        worker.offer(1)
        job = worker.submit(lambda: list(recorder.handled))
        recorder.release.set()
        assert job.result(TIMEOUT) == [0]
        assert worker.stop(TIMEOUT, drain=True)
    assert recorder.handled == [0, 1]


def test_errors_of_frames_and_commands_end_nothing() -> None:
    recorder = Recorder()
    with running(recorder, policy="all") as worker:
        worker.offer(-1)
        with pytest.raises(ZeroDivisionError):
            worker.submit(lambda: 1 // 0).result(TIMEOUT)
        worker.offer(1)
        assert worker.stop(TIMEOUT, drain=True)
    assert [str(error) for error in recorder.failures] == ["-1"]
    assert recorder.handled == [1]


def test_commands_that_wait_are_cancelled_by_stop() -> None:
    recorder = Recorder(hold=True)
    with running(recorder) as worker:
        held(recorder, worker)
        job = worker.submit(lambda: None)
        threading.Timer(0.05, recorder.release.set).start()
        assert worker.stop(TIMEOUT)
    assert job.cancelled()


@pytest.mark.parametrize("after", [lambda worker: worker.offer(1), lambda worker: worker.submit(print)])
def test_a_stopped_worker_takes_nothing(after: Callable[[Worker[int]], object]) -> None:
    recorder = Recorder()
    with running(recorder) as worker:
        worker.stop(TIMEOUT)
        after(worker)
    assert recorder.handled == []
    assert worker.submit(print).cancelled()


def test_it_can_be_started_again() -> None:
    recorder = Recorder()
    with running(recorder) as worker:
        assert worker.stop(TIMEOUT)
        worker.start()
        assert worker.submit(lambda: 7).result(TIMEOUT) == 7


def test_stop_says_when_a_frame_takes_too_long() -> None:
    recorder = Recorder(hold=True)
    with running(recorder) as worker:
        held(recorder, worker)
        assert not worker.stop(0.01)
        with pytest.raises(RuntimeError, match="still busy"):
            worker.start()
