# SPDX-License-Identifier: Apache-2.0
"""`recon demo`: the live node over DDS on a recording, from publishing the first image to the last picture."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recon_ros.cli.results import Middle, Results, true_frames, write_results
from recon_ros.config import Config, NodeConfig, flatten
from recon_ros.datasets.bag_writer import write_bag
from recon_ros.datasets.rosbag import BagReader
from recon_ros.datasets.synthetic import SyntheticWarehouse
from recon_ros.datasets.topics import Topics
from recon_ros.errors import DatasetError, ReconError
from recon_ros.evaluation.report import RunRecord, build_report
from recon_ros.evaluation.trajectory import evaluate_trajectory
from recon_ros.export.ply import read_ply
from recon_ros.export.tum import read_tum, write_tum
from recon_ros.frame import Trajectory
from recon_ros.geometry import se3

if TYPE_CHECKING:
    from recon_ros.ros.node_process import NodeProcess
    from recon_ros.ros.rehearsal import Rehearsal

COMPRESSED = ("/compressed", "/compressedDepth")
LOADING_S = 30.0
"""What a network is given to be loaded in, before the recording goes on without it."""


class Demo:
    """One rehearsal of the live node."""

    def __init__(self, out: Path, bag: Path | None, config: Config, topics: Topics, rate: float) -> None:
        self._out = out
        self._bag = bag
        self._config = config
        self._topics = topics
        self._rate = rate
        self._console = Console(stderr=True)

    def run(self) -> None:
        """Get a recording, play it to the node, save what it made, judge and show it.

        Raises:
            ReconError: when ROS is missing, the recording is unusable, or the node fails.
        """
        _require_ros()
        self._prepare()
        bag = self._bag or self._synthetic_bag()
        # Networks see the colour image only.
        with BagReader(bag, self._topics, self._config.input, use_depth=self._config.source == "depth") as reader:
            from recon_ros.ros.node_process import NodeProcess
            from recon_ros.ros.rehearsal import Rehearsal

            self._say(f"starting the node; its log is {self._out / 'node.log'}")
            parameters = node_parameters(self._config, reader.topics) | {
                "map.path": str((self._out / "map").absolute())
            }
            with NodeProcess(parameters, remappings(reader.topics), self._out / "node.log") as node:
                with Rehearsal() as rehearsal:
                    record = self._play(reader, rehearsal, node)
                    saved = Path(rehearsal.save_map())
                if node.stop() != 0:
                    raise ReconError(f"the node did not end cleanly; the last it said:\n{node.tail()}")
            self._finish(bag, reader, rehearsal, record, saved)

    def _prepare(self) -> None:
        try:
            self._out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReconError(f"cannot write to {self._out}: {error.strerror}") from error
        set_ros_environment()

    def _synthetic_bag(self) -> Path:
        """A drive through a synthetic warehouse; made once, kept beside the results."""
        path = self._out.parent / "warehouse"
        if (path / "metadata.yaml").exists():
            return path
        shutil.rmtree(path, ignore_errors=True)
        drive = SyntheticWarehouse(noise=True)
        with self._progress() as progress:
            task = progress.add_task("rendering a warehouse", total=len(drive))
            write_bag(path, drive, drive.ground_truth(), progress=lambda n: progress.update(task, completed=n))
        return path

    def _play(self, reader: BagReader, rehearsal: Rehearsal, node: NodeProcess) -> RunRecord:
        """Play the recording to the node and wait until it has answered; its memory over that time is recorded."""
        depth = reader.topics.depth if reader.use_depth else None
        mask = reader.topics.mask if self._config.input.mask else None
        wanted = [t for t in (reader.topics.image, reader.topics.camera_info, depth, mask) if t]
        rehearsal.advertise({topic: reader.message_type(topic) for topic in wanted}, node.check)
        record = RunRecord(node.pid)
        with self._progress() as progress:
            task = progress.add_task("playing to the node", total=len(reader))

            def advance(published: int) -> None:
                state = rehearsal.statuses[-1]["state"] if rehearsal.statuses else "INITIALIZING"
                progress.update(task, completed=published, description=f"playing: {state:12}")
                record.sample_memory()
                node.check()

            assert reader.topics.image is not None
            patience_s = 0.0 if self._config.source == "depth" else LOADING_S
            messages = reader.raw_messages(wanted)
            rehearsal.play(messages, reader.topics.image, len(reader), self._rate, advance, patience_s)
            rehearsal.settle()
            record.sample_memory()
        return record

    def _finish(self, bag: Path, reader: BagReader, rehearsal: Rehearsal, record: RunRecord, saved: Path) -> None:
        live, truth = _of_camera(rehearsal.live_trajectory()), reader.ground_truth()
        write_tum(self._out / "trajectory_live.tum", live)
        shutil.copy(saved / "keyframes.tum", self._out / "keyframes.tum")
        report = self._report(rehearsal, record, live, truth)
        results = Results(
            name=f"{bag.resolve().name}, live" + (f" at {self._rate:g}×" if self._rate != 1 else ""),
            cloud=read_ply(saved / "map.ply"),
            trajectory=read_tum(saved / "trajectory.tum"),
            truth=truth,
            middle=self._middle(reader, rehearsal),
            latencies_ms=record.latencies_ms,
        )
        frames = true_frames(bag, reader.topics, self._config.input) if reader.topics.depth else None
        write_results(self._out, results, report, frames)

    def _report(
        self, rehearsal: Rehearsal, record: RunRecord, live: Trajectory, truth: Trajectory | None
    ) -> dict[str, Any]:
        """Counts as the node has them, latencies as seen from outside."""
        if not rehearsal.statuses:
            raise ReconError(f"the node published no status; see {self._out / 'node.log'}")
        status = rehearsal.statuses[-1]
        record.latencies_ms = [rehearsal.latencies_ms[s] for s in sorted(rehearsal.latencies_ms)]
        record.tracked = len(live)
        report = build_report(
            record,
            source=self._config.source,
            runtime=status["runtime"],
            config=self._config,
            keyframes=rehearsal.count("keyframes"),
            loops=rehearsal.count("loops"),
            metric_scale=status["metric_scale"] == "true",
        )
        processed = rehearsal.count("frames_processed")
        skipped = {k.removeprefix("skipped."): int(v) for k, v in status.items() if k.startswith("skipped.")}
        # The middleware does not tell of what was sent before the two had found each other.
        never_received = rehearsal.published - rehearsal.count("frames_received")
        latency = report["latency_ms"] and report["latency_ms"] | {"max": round(max(record.latencies_ms), 3)}
        return report | {
            "frames": rehearsal.published,
            "processed": processed,
            "dropped": rehearsal.count("frames_dropped"),
            "lost_in_transport": max(rehearsal.count("lost_in_transport"), never_received),
            "skipped": {reason: count for reason, count in skipped.items() if count},
            "fps": round(processed / rehearsal.duration_s, 3),
            "latency_ms": latency,
            "stages_ms": {"inference": rehearsal.mean("inference_ms")},
            "rate": self._rate,
            "ate_live": _judged(live, truth),
        }

    def _middle(self, reader: BagReader, rehearsal: Rehearsal) -> Middle:
        """The frame whose depth and confidence were received, with its image from the recording."""
        middle = Middle(0)
        middle.depth, middle.confidence = rehearsal.depth, rehearsal.confidence
        for frame in reader.frames():
            if frame.stamp_ns == rehearsal.depth_stamp_ns:
                middle.image = frame.image
                break
        return middle

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, console=self._console)

    def _say(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)


def set_ros_environment() -> None:
    """A graph of our own on this machine, with a transport that holds whole images; what is set already stays."""
    # Nodes of another demo or test stay out of this one's graph.
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if "FASTRTPS_DEFAULT_PROFILES_FILE" not in os.environ:
        from recon_ros.resources import share_file

        os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(share_file("config/fastdds.xml"))


def _require_ros() -> None:
    if importlib.util.find_spec("rclpy") is None:
        raise ReconError("the demo needs ROS 2: run `make setup`, or source a ROS 2 installation")


def node_parameters(config: Config, topics: Topics) -> dict[str, Any]:
    """Every parameter of a node that is to be played these topics, its camera at the base and looking along +x."""
    own = {
        "image_transport": "compressed" if (topics.image or "").endswith(COMPRESSED) else "raw",
        "depth_transport": "compressed" if (topics.depth or "").endswith(COMPRESSED) else "raw",
        "use_depth": topics.depth is not None,
        "base_to_camera": "optical",
        "publish_camera_tf": True,
    }
    return flatten(config) | flatten(NodeConfig()) | own


def remappings(topics: Topics) -> dict[str, str]:
    """The node's inputs to the recording's topics; a transport's suffix is the node's to add."""
    given = {"image": topics.image, "camera_info": topics.camera_info, "depth": topics.depth, "mask": topics.mask}
    return {
        name: topic.removesuffix(COMPRESSED[1]).removesuffix(COMPRESSED[0]) for name, topic in given.items() if topic
    }


def _of_camera(trajectory: Trajectory) -> Trajectory:
    """T_world_camera of the node's T_map_base: the parameters above mount the camera at the base ('optical')."""
    from recon_ros.ros.mount import T_BASE_OPTICAL

    return Trajectory(trajectory.stamps_ns, se3.inverse(T_BASE_OPTICAL) @ trajectory.poses @ T_BASE_OPTICAL)


def _judged(trajectory: Trajectory, truth: Trajectory | None) -> dict[str, Any] | None:
    if truth is None:
        return None
    try:
        return evaluate_trajectory(trajectory, truth)
    except DatasetError:
        return None
