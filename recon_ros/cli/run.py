# SPDX-License-Identifier: Apache-2.0
"""`recon run`: a recording through the core, without a ROS graph; deterministic, no frame is dropped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recon_ros.cli.logs import say_logs
from recon_ros.cli.results import Middle, Results, true_frames, warn, write_results
from recon_ros.config import Config, load_yaml, nested, updated
from recon_ros.datasets.rosbag import BagReader
from recon_ros.datasets.topics import Topics
from recon_ros.errors import ConfigError, DatasetError, InputError, ReconError
from recon_ros.evaluation.report import RunRecord, build_report
from recon_ros.export.snapshot import Snapshot, write_snapshot
from recon_ros.export.tum import write_tum
from recon_ros.frame import Frame, State, Trajectory, Update
from recon_ros.mapping.mesh import fused, require_open3d, write_mesh
from recon_ros.reconstructor import Reconstructor
from recon_ros.runtimes import named
from recon_ros.runtimes.source import NetworkSource
from recon_ros.runtimes.status import BUILDING, RuntimeStatus, close_source


def resolve(path: Path | None, settings: list[str], source: str | None) -> Config:
    """The configuration from a YAML file, then ``key=value`` settings, then the source's name; ``auto`` is decided.

    Options of the node in the file are passed over, so that the node's own parameter file serves here, too.

    Raises:
        ConfigError: for anything unknown or out of range.
    """
    from recon_ros.config import NodeConfig, flatten

    config = Config()
    if path is not None:
        node_options = flatten(NodeConfig())
        config = updated(config, {k: v for k, v in load_yaml(path).items() if k not in node_options})
    flat = settings_of(settings)
    if source is not None:
        flat["source"] = source
    return named(updated(config, flat))


def settings_of(settings: list[str]) -> dict[str, str]:
    """Flat options from ``key=value`` texts.

    Raises:
        ConfigError: for one without a value.
    """
    flat = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting} has no value; write --set key=value")
        flat[key.strip()] = value.strip()
    return flat


class Offline:
    """One offline run."""

    def __init__(
        self,
        recording: Path,
        out: Path,
        config: Config,
        topics: Topics,
        save_depth: bool,
        evaluate_map: bool,
        save_map: Path | None = None,
        mesh: bool = False,
    ) -> None:
        self._recording = recording
        self._out = out
        self._config = config
        self._topics = topics
        self._save_depth = save_depth
        self._evaluate_map = evaluate_map
        self._save_map = save_map
        self._mesh = mesh
        self._console = Console(stderr=True)
        self._settled = False

    def run(self) -> None:
        """Read, reconstruct, evaluate, write, show.

        Raises:
            ReconError: when the recording or the configuration cannot be used, or no frame could.
        """
        if self._mesh:
            require_open3d()
        with say_logs(self._console):
            self._reconstructor = Reconstructor(self._config)
            try:
                self._run()
            finally:
                close_source(self._reconstructor.source)

    def _run(self) -> None:
        card = self._reconstructor.source.card
        needs = {"use_depth": card.needs_depth, "require_camera": card.needs_camera}
        with BagReader(self._recording, self._topics, self._config.input, **needs) as reader:
            self._prepare_folder()
            self._record = RunRecord()
            self._middle = Middle(len(reader))
            self._reconstruct(reader)
            self._account(reader)
            self._write(reader)

    def _prepare_folder(self) -> None:
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            (self._out / "config.yaml").write_text(yaml.safe_dump(nested(self._config), sort_keys=False))
            if self._save_depth:
                (self._out / "depth").mkdir(exist_ok=True)
        except OSError as error:
            raise ReconError(f"cannot write to {self._out}: {error.strerror}") from error

    def _reconstruct(self, reader: BagReader) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("reconstructing", total=len(reader))
            for frame in reader.frames():
                if not self._settled:
                    self._settle(frame, lambda words: progress.update(task, description=words))
                self._process(frame)
                seen = reader.counters["received_images"]
                progress.update(task, completed=seen, description=f"{self._reconstructor.state.value:12}")
            progress.update(task, completed=reader.counters["received_images"])

    def _settle(self, frame: Frame, say: Callable[[str], object]) -> None:
        """Find out who executes the source before the first step. Offline there is time: a build is waited for, so that
        nobody else steps in and every run is the same; and what is missing ends the run with a sentence.
        """
        self._settled = True
        source = self._reconstructor.source
        if not isinstance(source, NetworkSource):
            return

        def tell(status: RuntimeStatus) -> None:
            if status.state == BUILDING:
                say(f"building {status.progress:.0%}, {status.elapsed_s:.0f} s")

        height, width = frame.image.shape[:2]
        grid = self._reconstructor.grid(width, height)
        source.prepare(grid.grid_width, grid.grid_height, tell)

    def _process(self, frame: Frame) -> None:
        start = time.perf_counter()
        try:
            update = self._reconstructor.process(frame)
        except InputError as error:
            self._record.skip(error.reason)
            return
        latency_ms = (time.perf_counter() - start) * 1e3
        self._record.processed(update.T_world_camera is not None, latency_ms, update.timings_ms)
        self._middle.offer(update)
        if self._save_depth:
            np.save(self._out / "depth" / f"{frame.stamp_ns}.npy", self._input_depth(frame, update))

    def _input_depth(self, frame: Frame, update: Update) -> NDArray[np.float32]:
        """(H, W) float32 of the input image's size, NaN where there is none."""
        height, width = frame.image.shape[:2]
        return self._reconstructor.grid(width, height).depth_back(update.prediction.depth)

    def _account(self, reader: BagReader) -> None:
        """What did not become a frame; warn of what the user should know."""
        self._images = reader.counters["received_images"]
        for name, count in reader.counters.items():
            if name.startswith("skipped_"):
                self._record.skipped[name.removeprefix("skipped_")] += count
            elif name in ("unpaired_images", "unreadable") and count:
                self._record.skipped[name] += count
        for reason, message in reader.warnings().items():
            warn(self._console, f"{reason}: {message}")
        if reader.loss:
            warn(self._console, reader.loss)
        if not self._record.latencies_ms:
            reasons = ", ".join(f"{n} × {reason}" for reason, n in self._record.skipped.items())
            raise DatasetError(f"no frame of {self._recording} could be used: {reasons or 'it is empty'}")
        if self._reconstructor.state is State.INITIALIZING:
            warn(self._console, "no frame had enough texture and depth to begin a map")

    def _write(self, reader: BagReader) -> None:
        reconstructor = self._reconstructor
        if self._save_map is not None:
            reconstructor.keep_last_view()
        reconstructor.settle()
        if self._save_map is not None:
            snapshot = Snapshot(reconstructor.state_of_map(), reconstructor.map_cloud(), nested(self._config))
            write_snapshot(snapshot, self._save_map)
        keyframes = reconstructor.placed_keyframes
        write_tum(self._out / "trajectory_live.tum", reconstructor.live_trajectory())
        write_tum(
            self._out / "keyframes.tum",
            Trajectory(
                np.array([k.stamp_ns for k in keyframes], np.int64),
                np.array([k.T_world_camera for k in keyframes]),
            ),
        )
        if self._mesh:
            surface = fused(keyframes, self._config.map.voxel_size, self._config.map.min_confidence)
            write_mesh(self._out / "mesh.ply", surface)
        results = Results(
            name=self._recording.resolve().name,
            cloud=reconstructor.map_cloud(),
            trajectory=reconstructor.trajectory(),
            truth=reader.ground_truth(),
            middle=self._middle,
            latencies_ms=self._record.latencies_ms,
            live=reconstructor.live_trajectory(),
            loops=_ends_of(reconstructor),
        )
        report = build_report(
            self._record,
            source=self._config.source,
            runtime=reconstructor.source.runtime,
            config=self._config,
            keyframes=len(reconstructor.keyframes),
            loops=len(reconstructor.loops),
            metric_scale=reconstructor.source.card.is_metric,
            unplaced=reconstructor.unplaced,
        )
        report["frames"] = self._images  # of what was skipped some are depths and calibrations
        has_truth = self._evaluate_map and reader.topics.depth and reader.topics.camera_info
        frames = true_frames(self._recording, reader.topics, self._config.input) if has_truth else None
        write_results(self._out, results, report, frames)


def _ends_of(reconstructor: Reconstructor) -> NDArray[np.float64]:
    """(N, 2, 3) where the two keyframes of each loop are."""
    at = {keyframe.id: keyframe.T_world_camera[:3, 3] for keyframe in reconstructor.keyframes}
    ends = [(at[loop.a], at[loop.b]) for loop in reconstructor.loops if loop.a in at and loop.b in at]
    return np.array(ends).reshape(-1, 2, 3)
