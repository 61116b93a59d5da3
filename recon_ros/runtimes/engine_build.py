# SPDX-License-Identifier: Apache-2.0
"""Building in a process of its own: minutes of work and gigabytes of memory that a running node is spared.

``python -m recon_ros.runtimes.engine_build REQUEST`` builds what a `BuildRequest` (as JSON) asks for. It writes JSON
lines to its stdout: ``{"phase", "fraction"}`` while it works, at the end ``{"done": {…}}`` or ``{"failed": "why"}``.
It ends when its stdin is closed, which happens by itself when the process that wants the engine dies.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import IO, Any

from recon_ros.errors import NetworkError, ReconError
from recon_ros.runtimes.engine_request import BuildProgress, BuildRequest
from recon_ros.runtimes.trt.progress import ProgressSink

NICENESS = 10
PATIENCE_S = 5.0
"""How long a build that was asked to stop may tidy up."""
INTERVAL_S = 0.2
"""Progress is not told more often."""
CANCELLED = "cancelled"
TAIL_BYTES = 4000

_log = logging.getLogger(__name__)


class BuildProcess:
    """Builds what is asked for in another process, which dies with this one. Nothing here blocks but `wait`."""

    def __init__(self, request: BuildRequest, command: Sequence[str] | None = None) -> None:
        """Nothing happens before `start`.

        Args:
            request: what is to be built.
            command: the program that gets the request as its last argument; without it, this module.
        """
        self.request = request
        self.result: dict[str, Any] = {}
        self.failed: str | None = None
        self._command = [*(command or (sys.executable, "-m", __name__)), request.to_json()]
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._latest = BuildProgress()
        self._started = self._ended = 0.0

    def start(self) -> None:
        """Start the process.

        Raises:
            NetworkError: the system does not allow for it: no room for its log, or for another process.
        """
        self._started = time.monotonic()
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True
            )
        except OSError as error:
            if self._log is not None:
                self._log.close()
            raise NetworkError(f"a process that builds cannot be started: {error.strerror or error}") from error
        self._reader = threading.Thread(target=self._read, name="engine build", daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        """It was started and has not ended."""
        return self._reader is not None and self._reader.is_alive()

    @property
    def done(self) -> bool:
        """What was asked for is there, and `result` says where. Otherwise `failed` says why, once it has ended."""
        return bool(self.result)

    @property
    def progress(self) -> BuildProgress:
        """How far it is."""
        elapsed = (self._ended or time.monotonic()) - self._started if self._started else 0.0
        return BuildProgress(self._latest.phase, self._latest.fraction, elapsed)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; whether that came within the time."""
        if self._reader is not None:
            self._reader.join(timeout_s)
        return not self.running

    def cancel(self) -> None:
        """Ask it to end, and make it end when it does not."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        threading.Thread(target=self._insist, name="engine build cancel", daemon=True).start()

    def _insist(self) -> None:
        if not self.wait(2 * PATIENCE_S) and self._process is not None:
            self._process.kill()

    def _read(self) -> None:
        """Take in what the process says until it ends."""
        assert self._process is not None and self._process.stdout is not None and self._process.stdin is not None
        result: dict[str, Any] = {}
        failed = ""
        for line in self._process.stdout:
            with suppress(ValueError, TypeError, AttributeError):
                said = json.loads(line)
                result, failed = said.get("done", result), said.get("failed", failed)
                if "phase" in said:
                    self._latest = BuildProgress(str(said["phase"]), float(said["fraction"]))
        status = self._process.wait()
        self._process.stdout.close()
        with suppress(OSError):
            self._process.stdin.close()
        self._ended = time.monotonic()
        if not result or status != 0:
            failed = failed or self._last_words(status)
        assert self._log is not None
        self._log.close()
        # Set last: who sees it done or failed finds everything else as it stays.
        if failed:
            self.failed = failed
        else:
            self.result = result

    def _last_words(self, status: int) -> str:
        """Of a process that died without saying why."""
        assert self._log is not None
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        if status == -signal.SIGKILL:
            return f"the build was killed, perhaps for want of memory ({last})"
        if status < 0:
            return f"the build was ended by {signal.Signals(-status).name} ({last})"
        return f"the build ended with exit code {status}: {last}"


# In the process that builds


class Stop:
    """Ends a build on SIGTERM or SIGINT, and when stdin is closed.

    A signal's Python code has to wait for C++ code that runs for minutes. So the interpreter writes the signal's
    number into a pipe, a thread reads it there at once, and the build is told at its next step; should it not heed
    that, the process ends the hard way, which the cache is made for.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._interrupted = False
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        signal.set_wakeup_fd(self._writing)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._interrupt)
        threading.Thread(target=self._watch, args=(reading,), name="stop", daemon=True).start()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # A second signal does not disturb the tidying up after the first.
        if not self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt

    def _watch(self, signals: int) -> None:
        while True:
            ready, _, _ = select.select([signals, 0], [], [])
            if signals in ready:
                break
            if not os.read(0, 1024):
                os.kill(os.getpid(), signal.SIGTERM)
                break
        self.asked.set()
        time.sleep(PATIENCE_S)
        os._exit(128 + signal.SIGTERM)


class Reporter:
    """Writes progress as lines of JSON, and passes on that the end was asked for."""

    def __init__(self, stream: IO[str], stop: Stop) -> None:
        self._stream = stream
        self._stop = stop
        self._lock = threading.Lock()
        self._last = ("", -1.0)

    def update(self, phase: str, fraction: float) -> bool:
        """Tell, unless it was told a moment ago. Any thread may call it."""
        with self._lock:
            last_phase, last_time = self._last
            now = time.monotonic()
            if phase != last_phase or now - last_time >= INTERVAL_S:
                self._last = phase, now
                self.say({"phase": phase, "fraction": round(fraction, 4)})
        return not self._stop.asked.is_set()

    def say(self, what: dict[str, Any]) -> None:
        """One line; nobody may be there to read it."""
        with suppress(OSError):
            self._stream.write(json.dumps(what) + "\n")
            self._stream.flush()


Work = Callable[[BuildRequest, ProgressSink], dict[str, Any]]


def main(arguments: Sequence[str], work: Work | None = None) -> int:
    """Build what the first argument asks for; exit code 0 when it is there. `work` is `prepare_paths` but in tests."""
    stream = _take_stdout()
    stop = Stop()
    reporter = Reporter(stream, stop)
    with suppress(OSError):
        os.nice(NICENESS)
    try:
        request = BuildRequest.from_json(arguments[0] if arguments else "")
        result = (work or _prepare_paths)(request, reporter)
    except KeyboardInterrupt:
        reporter.say({"failed": CANCELLED})
        return 1
    except ReconError as error:
        reporter.say({"failed": CANCELLED if stop.asked.is_set() else str(error)})
        return 1
    except MemoryError:
        reporter.say({"failed": "not enough memory"})
        return 1
    except Exception as error:
        _log.exception("the build failed")
        reporter.say({"failed": f"{type(error).__name__}: {error}"})
        return 1
    reporter.say({"done": result})
    return 0


def _prepare_paths(request: BuildRequest, progress: ProgressSink) -> dict[str, Any]:
    from recon_ros.runtimes.engine_prepare import prepare_paths

    return prepare_paths(request, progress)


def _take_stdout() -> IO[str]:
    """stdout for ourselves; what libraries print goes to stderr."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
