# SPDX-License-Identifier: Apache-2.0
"""The map's backends: inline, thread and process; newest wish wins, failures come back, a dead process is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from recon_ros.errors import InputError, ReconError
from recon_ros.mapping.backend import Backend, Finished, InlineBackend, ThreadBackend
from recon_ros.mapping.backend_process import ProcessBackend

TIMEOUT = 60.0
BACKENDS = {"inline": InlineBackend, "thread": ThreadBackend, "process": ProcessBackend}


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessBackend]:
    backend = ProcessBackend()
    yield backend
    backend.close()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, process: ProcessBackend) -> Iterator[Backend]:
    if request.param == "process":
        yield process
    else:
        made = BACKENDS[request.param]()
        yield made
        made.close()


def finished(backend: Backend) -> list[Finished]:
    if not isinstance(backend, InlineBackend):
        assert backend.wait(TIMEOUT)
    return backend.poll()


def test_a_job_is_done_and_its_value_comes_once(backend: Backend) -> None:
    ticket = backend.submit(partial(np.arange, 5))
    (done,) = finished(backend)
    assert done.ticket == ticket and done.error is None
    np.testing.assert_array_equal(done.value, np.arange(5))
    assert backend.poll() == [] and not backend.busy


def test_what_a_job_raises_is_its_result(backend: Backend) -> None:
    ticket = backend.submit(partial(int, "no number"))
    (done,) = finished(backend)
    assert done.ticket == ticket and done.value is None
    assert isinstance(done.error, ValueError) and "no number" in str(done.error)
    backend.submit(partial(int, "7"))
    assert [f.value for f in finished(backend)] == [7]


def test_inline_is_done_when_submit_returns() -> None:
    backend, order = InlineBackend(), []
    backend.submit(lambda: order.append(1))
    assert order == [1]
    backend.submit(lambda: order.append(2))
    assert [f.ticket for f in backend.poll()] == [1, 2]


def test_newest_wish_wins() -> None:
    backend, started, release = ThreadBackend(), threading.Event(), threading.Event()

    def held() -> str:
        started.set()
        assert release.wait(TIMEOUT)
        return "held"

    first = backend.submit(held)
    assert started.wait(TIMEOUT)
    second, third = backend.submit(lambda: "older"), backend.submit(lambda: "newest")
    assert backend.busy and backend.poll() == []
    assert not backend.wait(0.01)
    release.set()
    assert [(f.ticket, f.value) for f in finished(backend)] == [(first, "held"), (third, "newest")]
    assert second not in (first, third)
    backend.close()
    with pytest.raises(ReconError, match="closed"):
        backend.submit(lambda: "late")


def test_close_drops_what_waits() -> None:
    backend, started, release, done = ThreadBackend(), threading.Event(), threading.Event(), threading.Event()

    def held() -> None:
        started.set()
        assert release.wait(TIMEOUT)

    backend.submit(held)
    assert started.wait(TIMEOUT)
    backend.submit(done.set)
    closing = threading.Thread(target=backend.close)
    closing.start()
    while not backend._closed:
        time.sleep(0.001)
    release.set()
    closing.join(TIMEOUT)
    assert not closing.is_alive() and not done.is_set()


def test_work_is_done_elsewhere(process: ProcessBackend) -> None:
    process.submit(os.getpid)
    (done,) = finished(process)
    assert done.value not in (None, os.getpid())
    process.submit(os.getpid)
    assert finished(process)[0].value == done.value, "it is kept warm"


def test_large_arrays_travel_both_ways(process: ProcessBackend) -> None:
    array = np.random.default_rng(0).normal(size=(1000, 500))
    process.submit(partial(np.negative, array))
    np.testing.assert_array_equal(finished(process)[0].value, -array)


def test_errors_of_ours_keep_their_kind(process: ProcessBackend) -> None:
    """InputError takes two arguments, which pickle does not know of; a lambda does not travel at all."""
    process.submit(partial(_raise_input_error, 3))
    (done,) = finished(process)
    assert isinstance(done.error, ReconError) and "3 is bad" in str(done.error)
    process.submit(lambda: 1)
    (done,) = finished(process)
    assert done.error is not None
    process.submit(partial(abs, -2))
    assert finished(process)[0].value == 2


def test_what_a_job_prints_does_not_break_the_pipe(process: ProcessBackend) -> None:
    process.submit(partial(os.write, 1, b" "))
    assert finished(process)[0].value == 1


def test_a_dead_process_is_replaced(process: ProcessBackend) -> None:
    process.submit(partial(os._exit, 3))
    (done,) = finished(process)
    assert isinstance(done.error, ReconError) and "died (exit code 3)" in str(done.error)
    before = process.restarts
    process.submit(partial(abs, -5))
    assert [f.value for f in finished(process)] == [5]
    assert process.restarts == before + 1


def test_close_ends_a_job_under_way() -> None:
    backend = ProcessBackend()
    backend.submit(os.getpid)
    pid = finished(backend)[0].value
    backend.submit(partial(time.sleep, 1000))
    while backend._thread._wish is not None:
        time.sleep(0.001)
    backend.close()
    assert not backend.busy
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_dies_with_the_program_and_does_not_run_it_again() -> None:
    """A script without a main guard, killed without a chance to tidy up."""
    script = (
        "import os, time, functools\n"
        "from recon_ros.mapping.backend_process import ProcessBackend\n"
        "print('begun', flush=True)\n"
        "backend = ProcessBackend()\n"
        "backend.submit(os.getpid)\n"
        "backend.wait(60)\n"
        "print(backend.poll()[0].value, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT
    ).stdout.split()
    assert len(said) == 2 and said[0] == "begun"
    deadline = time.monotonic() + TIMEOUT
    while _runs(int(said[1])) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(int(said[1]))


def _raise_input_error(value: int) -> None:
    raise InputError("bad", f"{value} is bad")


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_optimising_travels(process: ProcessBackend) -> None:
    """The problem and the solution, and the same bytes as at home."""
    pytest.importorskip("gtsam")
    from recon_ros.mapping.pose_graph import Edge, PoseGraph, optimise

    graph = PoseGraph(True)
    for i in range(3):
        graph.add_node(i, np.eye(4))
    for a, b in ((0, 1), (1, 2)):
        graph.add_edge(Edge(a, b, np.eye(4), np.eye(6)))
    problem = graph.snapshot()
    process.submit(partial(optimise, problem))
    (done,) = finished(process)
    assert done.error is None and done.value is not None
    here = optimise(problem)
    assert done.value.chi2 == here.chi2
    for i, pose in here.poses.items():
        np.testing.assert_array_equal(done.value.poses[i], pose)
