# SPDX-License-Identifier: Apache-2.0
"""A backend in a process of its own: for work that holds the interpreter, as GTSAM's optimisation does.

GTSAM 4.3 keeps Python's global lock during `optimize` (0.1 s for 500 keyframes, 0.3 s for 2,000), and a thread would
stop tracking for as long. The process is kept warm, started anew when it has died, and dies with the one it serves,
because it ends when its stdin is closed.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from recon_ros.errors import ReconError
from recon_ros.mapping.backend import Finished, ThreadBackend

NICENESS = 10
LENGTH_BYTES = 8
CHUNK = 1 << 16
PATIENCE_S = 2.0
"""How long the process may take to end by itself."""


class ProcessBackend:
    """Does jobs in one warm process. A thread speaks with it, so that nobody else waits for a pipe.

    Jobs and what they return are pickled: a job is a module's function or a `functools.partial` of one, with plain
    arrays. The pipe leads to our own process only, nothing is ever read from elsewhere.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()
        self._closed = False
        self.restarts = 0
        """Times the process died and was started anew."""
        self._thread = ThreadBackend()
        self._thread.submit(self._warm)

    @property
    def busy(self) -> bool:
        return self._thread.busy

    def submit(self, job: Callable[[], Any]) -> int:
        return self._thread.submit(lambda: self._remote(job))

    def poll(self) -> list[Finished]:
        return [f for f in self._thread.poll() if f.value is not _STARTED]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to do; False when that took longer than `timeout` seconds."""
        return self._thread.wait(timeout)

    def close(self) -> None:
        with self._guard:
            self._closed = True
            process = self._process
        if process is not None:
            process.kill()  # it holds nothing that could be lost, and the thread that waits for it is let go
        self._thread.close(PATIENCE_S)
        if process is not None:
            _end(process)

    def _warm(self) -> Any:
        """Start the process; whether the libraries are there shows with the first job."""
        with suppress(OSError, ReconError):
            self._alive()
        return _STARTED

    def _remote(self, job: Callable[[], Any]) -> Any:
        """Have the process do a job, and return or raise what it did."""
        request = pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
        process = self._alive()
        assert process.stdin is not None and process.stdout is not None
        try:
            _write(process.stdin, request)
            value, error = pickle.loads(_read(process.stdout))
        except (OSError, EOFError) as broken:
            _end(process)
            raise ReconError(
                f"the process that works on the map died (exit code {process.returncode}), a new one is started with "
                "the next job"
            ) from broken
        if error is not None:
            raise error
        return value

    def _alive(self) -> subprocess.Popen[bytes]:
        """The process, started when there is none."""
        with self._guard:
            if self._closed:
                raise ReconError("the map's backend is closed")
            if self._process is None or self._process.poll() is not None:
                if self._process is not None:
                    _end(self._process)
                    self.restarts += 1
                self._process = _start()
            return self._process


_STARTED = object()


def _start() -> subprocess.Popen[bytes]:
    # Not multiprocessing, whose children run the program's main module again, guarded or not.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the program; this process ends with it
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        with suppress(OSError):
            assert stream is not None
            stream.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_S)
        return
    process.kill()
    process.wait()


def _write(stream: Any, message: bytes) -> None:
    """A message behind its length."""
    stream.write(len(message).to_bytes(LENGTH_BYTES, "little"))
    stream.write(message)
    stream.flush()


def _read(stream: Any) -> bytes:
    """The next message; EOFError when the other side is gone."""
    length = int.from_bytes(_exactly(stream, LENGTH_BYTES), "little")
    return _exactly(stream, length)


def _exactly(stream: Any, count: int) -> bytes:
    buffer = io.BytesIO()
    while (missing := count - buffer.tell()) > 0:
        if not (part := stream.read(min(missing, CHUNK))):
            raise EOFError("the pipe was closed")
        buffer.write(part)
    return buffer.getvalue()


# In the process that works


def serve() -> None:
    """Do jobs from stdin until it is closed. What libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(OSError):
        os.nice(NICENESS)
    _import_ahead()
    while True:
        try:
            request = _read(sys.stdin.buffer)
        except EOFError:
            return
        with suppress(BrokenPipeError):
            _write(replies, _reply(request))


def _import_ahead() -> None:
    """What the first job would otherwise wait for."""
    with suppress(ImportError):
        import gtsam  # noqa: F401

        import recon_ros.mapping.pose_graph  # noqa: F401


def _reply(request: bytes) -> bytes:
    """(value, error) of a job, pickled."""
    try:
        return pickle.dumps((pickle.loads(request)(), None), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        try:
            pickle.loads(reply := pickle.dumps((None, error)))
            return reply
        except Exception:  # an error that cannot travel is told in words
            return pickle.dumps((None, ReconError(f"{type(error).__name__}: {error}")))
