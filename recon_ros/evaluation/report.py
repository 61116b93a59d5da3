# SPDX-License-Identifier: Apache-2.0
"""The numbers of one run: collected frame by frame, written as report.json, printed as a table."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from recon_ros.config import config_hash

MEGABYTE = 1e6


class RunRecord:
    """What happens to the frames of a run; create it right before the first one.

    Args:
        pid: the process whose memory is watched, this one when None.

    Attributes:
        latencies_ms: of each processed frame, in their order.
        stages_ms: stage → milliseconds in each frame that had it.
        tracked, dropped: frames with a pose; frames that were not processed for lack of time.
        skipped: reason → frames that were unusable.
        rss_mb: resident memory at the start, and after each frame.
    """

    def __init__(self, pid: int | None = None) -> None:
        self.latencies_ms: list[float] = []
        self.stages_ms: dict[str, list[float]] = {}
        self.tracked = 0
        self.dropped = 0
        self.skipped: Counter[str] = Counter()
        self._process = psutil.Process(pid)
        self.rss_mb = [self._resident()]
        self._start = self._end = time.monotonic()

    def processed(self, tracked: bool, latency_ms: float, stages_ms: Mapping[str, float]) -> None:
        """Count one processed frame."""
        self._end = time.monotonic()
        self.tracked += tracked
        self.latencies_ms.append(float(latency_ms))
        for stage, milliseconds in stages_ms.items():
            self.stages_ms.setdefault(stage, []).append(float(milliseconds))
        self.sample_memory()

    def sample_memory(self) -> None:
        """Note the resident memory now; for a watched process whose frames are counted elsewhere."""
        self.rss_mb.append(self._resident())

    def skip(self, reason: str) -> None:
        """Count one unusable frame; `reason` as in `InputError`."""
        self.skipped[reason] += 1

    def drop(self, count: int = 1) -> None:
        """Count frames that gave way to newer ones."""
        self.dropped += count

    @property
    def frames(self) -> int:
        """All frames that came in."""
        return len(self.latencies_ms) + self.dropped + self.skipped.total()

    @property
    def fps(self) -> float:
        """Processed frames per second of wall time, from the start to the last one; 0 before there is one."""
        elapsed = self._end - self._start
        return len(self.latencies_ms) / elapsed if elapsed > 0 else 0.0

    def _resident(self) -> float:
        try:
            return float(self._process.memory_info().rss) / MEGABYTE
        except psutil.NoSuchProcess:  # the watched process ended; what it had last stands
            return self.rss_mb[-1] if hasattr(self, "rss_mb") else 0.0


def build_report(
    record: RunRecord,
    *,
    source: str,
    runtime: str,
    config: Any,
    keyframes: int,
    loops: int,
    metric_scale: bool,
    unplaced: int = 0,
    ate: Mapping[str, Any] | None = None,
    cloud: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        record: of the finished run.
        source: where pointmaps came from, as in `Config.source`.
        runtime: what executed the steps.
        config: the `Config` the run used; only its hash is kept.
        keyframes, loops: at the end.
        metric_scale: True when lengths are metres.
        unplaced: tracked frames of submaps that were never joined to the map: their places are not known, so that no
            trajectory has them.
        ate: from `evaluate_trajectory`, None without truth.
        cloud: from `evaluate_cloud`, None without true depth.

    Returns:
        ``frames, processed, tracked, unplaced, dropped, skipped{reason: n}, keyframes, loops, fps,
        latency_ms{p50, p95, p99}, stages_ms{stage: mean}, rss_mb{start, end, max}, metric_scale, ate, cloud,
        source, runtime, config_hash``. ``latency_ms`` is None where nothing was processed.
    """
    return {
        "frames": record.frames,
        "processed": len(record.latencies_ms),
        "tracked": record.tracked,
        "unplaced": unplaced,
        "dropped": record.dropped,
        "skipped": dict(sorted(record.skipped.items())),
        "keyframes": keyframes,
        "loops": loops,
        "fps": round(record.fps, 3),
        "latency_ms": percentiles(record.latencies_ms),
        "stages_ms": {stage: round(float(np.mean(values)), 3) for stage, values in record.stages_ms.items()},
        "rss_mb": {
            "start": round(record.rss_mb[0], 1),
            "end": round(record.rss_mb[-1], 1),
            "max": round(max(record.rss_mb), 1),
        },
        "metric_scale": metric_scale,
        "ate": dict(ate) if ate is not None else None,
        "cloud": dict(cloud) if cloud is not None else None,
        "source": source,
        "runtime": runtime,
        "config_hash": config_hash(config),
    }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99; None of nothing."""
    if len(values) == 0:
        return None
    p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
    return {"p50": round(p50, 3), "p95": round(p95, 3), "p99": round(p99, 3)}


def write_report(path: Path | str, report: Mapping[str, Any]) -> None:
    """Write report.json. Raises ValueError for NaN and infinity, which JSON has not."""
    Path(path).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a report as a table."""
    table = Table(show_header=False, box=None, padding=(0, 2), title="Run", title_justify="left", title_style="bold")
    table.add_column(style="dim")
    table.add_column()
    for name, value in _rows(report):
        table.add_row(name, value)
    (console or Console()).print(table)


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    unit = "m" if report["metric_scale"] else "map units"
    rows = [("source", f"{report['source']} on {report['runtime']}")]
    counts = f"{report['frames']} in, {report['processed']} processed, {report['tracked']} tracked"
    rows.append(("frames", f"{counts}, {report['dropped']} dropped"))
    if report["unplaced"]:
        rows.append(("without a place", f"{report['unplaced']} tracked in submaps that were never joined to the map"))
    if report["skipped"]:
        rows.append(("skipped", ", ".join(f"{n} × {reason}" for reason, n in report["skipped"].items())))
    rows.append(("keyframes, loops", f"{report['keyframes']}, {report['loops']}"))
    latency = report["latency_ms"]
    if latency:
        times = " / ".join(f"{latency[p]:.1f}" for p in ("p50", "p95", "p99"))
        rows.append(("latency p50 / p95 / p99", f"{times} ms, {report['fps']:.1f} frames/s"))
    if report["stages_ms"]:
        rows.append(("stages", ", ".join(f"{stage} {ms:.1f}" for stage, ms in report["stages_ms"].items()) + " ms"))
    memory = report["rss_mb"]
    rows.append(("memory start / end / max", f"{memory['start']:.0f} / {memory['end']:.0f} / {memory['max']:.0f} MB"))
    ate = report["ate"]
    if ate:
        rows.append(("ATE rmse, SE(3)", f"{ate['se3_rmse']:.4f} m over {ate['path_length']:.1f} m"))
        rows.append(("ATE rmse, Sim(3)", f"{ate['sim3_rmse']:.4f} m, scale {ate['scale']:.4f}"))
        if ate["rpe_metre_m"] is not None:
            drift = f"{ate['rpe_metre_m'] * 100:.2f} cm, {np.degrees(ate['rpe_metre_rad']):.2f}°"
            rows.append(("RPE per metre", drift))
        rows.append(("coverage", f"{ate['coverage']:.1%} of the true poses"))
    else:
        rows.append(("ATE", f"no truth to compare with; lengths in {unit}"))
    cloud = report["cloud"]
    if cloud:
        for name in ("accuracy", "completeness"):
            text = f"median {cloud[f'{name}_median'] * 100:.1f} cm, mean {cloud[f'{name}_mean'] * 100:.1f} cm"
            rows.append((f"map {name}", f"{text}, {cloud[f'{name}_ratio_5cm']:.1%} within 5 cm"))
    return rows
