# SPDX-License-Identifier: Apache-2.0
"""Who executes a source and how that came about, in words for a log line and for diagnostics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WAITING, LOADING, READY, BUILDING, MISSING, FAILED = "waiting", "loading", "ready", "building", "missing", "failed"


@dataclass(frozen=True)
class RuntimeStatus:
    """How it stands with the runtime of a source.

    Attributes:
        state: ``waiting`` for the first image, whose size decides; ``loading``; ``ready``; ``building`` what the wanted
            runtime lacks, while another one serves or frames are skipped; ``missing``, and nobody builds it;
            ``failed``, nothing that is here can be used.
        runtime: who serves now, as `Executor.runtime` says; empty while nobody does.
        precision: of who serves.
        file: folder of the graphs or engines that are used; empty where there are none.
        progress: of the build, [0, 1].
        elapsed_s: of the build, seconds.
        message: one sentence for people: what is going on, and what to do.
        self_check: largest error of the golden self-check over its tolerance, 1 being the limit; None where nothing
            was checked because the reference itself serves.
        degraded: something better was given up because it gave wrong numbers or could not be used.
    """

    state: str = READY
    runtime: str = ""
    precision: str = ""
    file: str = ""
    progress: float = 0.0
    elapsed_s: float = 0.0
    message: str = ""
    self_check: float | None = None
    degraded: bool = False

    @property
    def serves(self) -> bool:
        """Frames are processed."""
        return bool(self.runtime)


def status_of(source: Any) -> RuntimeStatus:
    """The status of any source; one without a say in it is simply ready."""
    status = getattr(source, "runtime_status", None)
    if isinstance(status, RuntimeStatus):
        return status
    return RuntimeStatus(READY, source.runtime, message=f"{source.runtime} serves")


def close_source(source: Any) -> None:
    """Give back what a source holds, if it holds anything."""
    close = getattr(source, "close", None)
    if close is not None:
        close()
