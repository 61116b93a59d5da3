# SPDX-License-Identifier: Apache-2.0
"""What every run ends with: map, trajectory, numbers and one picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from recon_ros.config import InputConfig
from recon_ros.datasets.rosbag import BagReader
from recon_ros.datasets.topics import Topics
from recon_ros.errors import DatasetError
from recon_ros.evaluation.cloud import evaluate_cloud, truth_cloud
from recon_ros.evaluation.picture import report_picture
from recon_ros.evaluation.report import print_report, write_report
from recon_ros.evaluation.trajectory import alignment, associate, evaluate_trajectory
from recon_ros.export.ply import write_ply
from recon_ros.export.tum import write_tum
from recon_ros.frame import Cloud, Frame, Trajectory, Update


class Middle:
    """Keeps image, depth and confidence of the frame in the middle of a run, for the picture."""

    def __init__(self, expected: int) -> None:
        self._due = expected // 2
        self._seen = 0
        self.image: NDArray[np.uint8] | None = None
        self.depth: NDArray[np.float32] | None = None
        self.confidence: NDArray[np.float32] | None = None

    def offer(self, update: Update) -> None:
        """Take the frame if the middle has not been passed yet."""
        if self._seen <= self._due:
            self.image, self.depth = update.image, update.prediction.depth
            self.confidence = update.prediction.confidence
        self._seen += 1


@dataclass(frozen=True, eq=False)
class Results:
    """What a run has brought; see `write_results`."""

    name: str
    cloud: Cloud
    trajectory: Trajectory
    truth: Trajectory | None
    middle: Middle
    latencies_ms: Sequence[float]
    live: Trajectory | None = None
    loops: NDArray[np.float64] | None = None


def write_results(out: Path, results: Results, report: dict[str, Any], frames: Iterable[Frame] | None = None) -> None:
    """Write map.ply, trajectory.tum, report.json and report.png to `out`, and print the report.

    Args:
        out: folder that exists.
        results: of the run.
        report: from `build_report`; errors against the truth are added to it.
        frames: the recording's frames with depth, to fuse a true cloud from; None leaves the map unjudged.
    """
    write_ply(out / "map.ply", results.cloud)
    write_tum(out / "trajectory.tum", results.trajectory)
    _judge(results, report, frames)
    write_report(out / "report.json", report)
    report_picture(
        out / "report.png",
        report=report,
        cloud=results.cloud,
        trajectory=results.trajectory,
        truth=results.truth,
        live=results.live,
        loops=results.loops,
        image=results.middle.image,
        depth=results.middle.depth,
        confidence=results.middle.confidence,
        latencies_ms=results.latencies_ms,
        title=results.name,
    )
    print_report(report)
    Console().print(f"results: {escape(str(out))}", highlight=False, soft_wrap=True)


def warn(console: Console, text: str) -> None:
    """A warning as one line; square brackets in it are text, not markup."""
    console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)


def true_frames(recording: Path, topics: Topics, config: InputConfig) -> Iterator[Frame]:
    """The recording's frames with their depth, whatever a run takes of them; without what masks leave out of it."""
    with BagReader(recording, topics, config) as reader:
        for frame in reader.frames():
            if frame.mask is not None and frame.depth is not None:
                frame = replace(frame, depth=np.where(frame.mask, np.float32(np.nan), frame.depth))
            yield frame


def _judge(results: Results, report: dict[str, Any], frames: Iterable[Frame] | None) -> None:
    """Fill in the errors against the truth where there is one that can be compared."""
    if results.truth is None:
        return
    try:
        report["ate"] = evaluate_trajectory(results.trajectory, results.truth)
        if frames is not None and report["metric_scale"]:
            T_truth_world = alignment(*associate(results.trajectory, results.truth))
            report["cloud"] = evaluate_cloud(results.cloud, truth_cloud(frames, results.truth), T_truth_world)
    except DatasetError as error:
        warn(Console(stderr=True), f"not compared with the truth: {error}")
