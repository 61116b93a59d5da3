# SPDX-License-Identifier: Apache-2.0
"""`make soak`: thousands of frames with a small keyframe bound; memory and keyframes must stay where they are.

Exit code 1 when a bound is broken. With `--node` the frames go through the live node's process instead, whose
memory is watched from outside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import laps, readme
from benchmarks.machine import Machine
from recon_ros.config import Config, updated
from recon_ros.datasets.rosbag import BagReader
from recon_ros.errors import ReconError
from recon_ros.evaluation.trajectory import evaluate_trajectory
from recon_ros.frame import Trajectory
from recon_ros.reconstructor import Reconstructor

MAX_GROWTH = 0.05
MAX_SLOWDOWN = 0.10
MAP_PERIOD = 25
"""Frames from one measurement of the map to the next."""
POINT_BYTES = 16
MIN_TRACKED = 0.99
NODE_RATE = 1.5


@dataclass
class Record:
    """What was seen, frame by frame.

    Attributes:
        rss_mb, keyframes: after each frame.
        made: keyframes made so far, those that went included; 0 where it is not known.
        processed, tracked: frames.
        frame_ms: processor time of each frame, which does not depend on what else the machine does; empty where
            another process has the frames.
        map_mb: size of the map's message, every `MAP_PERIOD` frames; empty where it is not known.
        loops: believed at the end; None where it is not known.
    """

    rss_mb: list[float] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    made: int = 0
    processed: int = 0
    tracked: int = 0
    frame_ms: list[float] = field(default_factory=list)
    map_mb: list[float] = field(default_factory=list)
    loops: int | None = None


def soak_core(bag: Path, count: int, config: Config, progress: Callable[[], None]) -> tuple[Record, Trajectory]:
    """Frames through the Reconstructor of this process."""
    record, process = Record(), psutil.Process()
    reconstructor = Reconstructor(config)
    with BagReader(bag) as reader:
        for frame in laps.frames(reader, count):
            start = time.process_time()
            update = reconstructor.process(frame)
            record.frame_ms.append((time.process_time() - start) * 1e3)
            if record.processed % MAP_PERIOD == 0:
                record.map_mb.append(len(reconstructor.map_cloud()) * POINT_BYTES / 1e6)
            record.processed += 1
            record.tracked += update.T_world_camera is not None
            record.made += update.keyframe_id is not None
            record.keyframes.append(len(reconstructor.keyframes))
            record.rss_mb.append(process.memory_info().rss / 1e6)
            progress()
    record.loops = len(reconstructor.loops)
    return record, reconstructor.trajectory()


def soak_node(
    bag: Path, count: int, config: Config, out: Path, progress: Callable[[], None]
) -> tuple[Record, Trajectory]:
    """The same through the live node over DDS, all its outputs but the images subscribed as the demo does."""
    from recon_ros.cli.demo import node_parameters, remappings, set_ros_environment

    set_ros_environment()
    from recon_ros.ros.node_process import NodeProcess
    from recon_ros.ros.rehearsal import Rehearsal

    record = Record()
    with BagReader(bag) as reader:
        topics = [t for t in (reader.topics.image, reader.topics.camera_info, reader.topics.depth) if t]
        parameters = node_parameters(config, reader.topics)
        with (
            NodeProcess(parameters, remappings(reader.topics), out / "soak_node.log") as node,
            Rehearsal() as rehearsal,
        ):
            rehearsal.advertise({topic: reader.message_type(topic) for topic in topics}, node.check)
            process = psutil.Process(node.pid)

            def advance(_: int) -> None:
                node.check()
                record.rss_mb.append(process.memory_info().rss / 1e6)
                record.keyframes.append(rehearsal.count("keyframes"))
                progress()

            rehearsal.play(laps.messages(reader, topics, count), topics[0], count, NODE_RATE, advance)
            rehearsal.settle()
            record.processed = rehearsal.count("frames_processed")
            trajectory = rehearsal.live_trajectory()
            record.tracked = len(trajectory)
    return record, trajectory


def judge(record: Record, max_keyframes: int, warm_up: int) -> tuple[dict[str, Any], list[str]]:
    """The numbers, and a sentence for each bound that is broken.

    Memory is compared by its peaks over a lap's frames, right after the warm-up and at the end. Single frames say
    little: the allocator keeps or returns the space of one large array from one moment to the next. What leaks
    raises the peaks as well.
    """
    rss, window = np.array(record.rss_mb), min(laps.FRAMES, max((len(record.rss_mb) - warm_up) // 2, 1))
    first, last = rss[warm_up : warm_up + window], rss[-window:]
    growth = float(last.max() / first.max() - 1)
    most = max(record.keyframes)
    tracked = record.tracked / max(record.processed, 1)
    numbers = {
        "frames": len(rss),
        "processed": record.processed,
        "tracked": record.tracked,
        "keyframes_most": most,
        "keyframes_bound": max_keyframes,
        "keyframes_made": record.made,
        "rss_mb_first_lap": {"peak": round(float(first.max()), 1), "median": round(float(np.median(first)), 1)},
        "rss_mb_last_lap": {"peak": round(float(last.max()), 1), "median": round(float(np.median(last)), 1)},
        "rss_growth": round(growth, 4),
        "loops": record.loops,
    }
    broken = []
    if record.frame_ms:
        numbers["frame_ms"] = times = _first_and_last(record.frame_ms, warm_up)
        slowdown = times["last"] / times["first"] - 1
        if slowdown > MAX_SLOWDOWN:
            broken.append(f"a frame took {slowdown:.1%} longer in the end: {times['first']} and {times['last']} ms")
    if record.map_mb:
        numbers["map_mb"] = sizes = _first_and_last(record.map_mb, -(-warm_up // MAP_PERIOD))
        if sizes["last"] > sizes["first"] * (1 + MAX_GROWTH):
            broken.append(f"the map's message grew from {sizes['first']} to {sizes['last']} MB")
    if most > max_keyframes:
        broken.append(f"{most} keyframes are more than the bound of {max_keyframes}")
    if growth > MAX_GROWTH:
        broken.append(f"memory grew by {growth:.1%} after the warm-up, from {first.max():.0f} to {last.max():.0f} MB")
    if tracked < MIN_TRACKED:
        broken.append(f"only {tracked:.1%} of the frames were tracked")
    return numbers, broken


def _first_and_last(values: Sequence[float], warm_up: int) -> dict[str, float]:
    """Means over the values after the warm-up and over the last: 1,000 each, or half of what there is."""
    window = min(1000, max((len(values) - warm_up) // 2, 1))
    first, last = values[warm_up : warm_up + window], values[-window:]
    return {"first": round(float(np.mean(first)), 2), "last": round(float(np.mean(last)), 2)}


def plot(path: Path, record: Record, max_keyframes: int, warm_up: int, title: str) -> None:
    """Resident memory, keyframes, and where known the time and the map's message, over the frames."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = 4 if record.frame_ms else 2
    figure = Figure(figsize=(9, 2.5 * count), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    memory, keyframes, *more = figure.subplots(count, 1, sharex=True)
    memory.plot(record.rss_mb, color="tab:blue", linewidth=1)
    base = max(record.rss_mb[warm_up : warm_up + laps.FRAMES])
    memory.axhline(base * (1 + MAX_GROWTH), color="tab:red", linestyle="--", linewidth=1, label="+5 %")
    memory.axvspan(0, warm_up, color="0.93", label="warm-up")
    memory.set_ylabel("resident memory, MB")
    memory.set_ylim(bottom=0)
    memory.legend(loc="lower right")
    keyframes.plot(record.keyframes, color="tab:green", linewidth=1)
    keyframes.axhline(max_keyframes, color="tab:red", linestyle="--", linewidth=1, label="bound")
    keyframes.axvspan(0, warm_up, color="0.93")
    keyframes.set_ylabel("keyframes")
    keyframes.set_ylim(bottom=0)
    keyframes.legend(loc="lower right")
    if more:
        window = min(laps.FRAMES, len(record.frame_ms))
        smooth = np.convolve(record.frame_ms, np.full(window, 1 / window), mode="valid")
        more[0].plot(np.arange(len(smooth)) + window - 1, smooth, color="tab:orange", linewidth=1)
        more[0].set_ylabel("processor ms a frame,\nmean of a lap")
        more[1].plot(np.arange(len(record.map_mb)) * MAP_PERIOD, record.map_mb, color="tab:purple", linewidth=1)
        more[1].set_ylabel("map message, MB")
        for axes in more:
            axes.set_ylim(bottom=0)
    figure.axes[-1].set_xlabel("frame")
    figure.suptitle(title)
    figure.savefig(path)


def rows(numbers: dict[str, Any], ate: float, seconds_per_frame: float) -> Sequence[tuple[str, str]]:
    """What is printed and goes into README.md."""
    first, last = numbers["rss_mb_first_lap"], numbers["rss_mb_last_lap"]
    made = f", {numbers['keyframes_made']} made" if numbers["keyframes_made"] else ""
    return (
        ("frames", f"{numbers['frames']} sent, {numbers['processed']} processed, {numbers['tracked']} tracked"),
        ("keyframes", f"at most {numbers['keyframes_most']} of {numbers['keyframes_bound']}{made}"),
        (
            "resident memory",
            f"peak of the lap after the warm-up {first['peak']:.0f} MB (median {first['median']:.0f}), of the last "
            f"lap {last['peak']:.0f} MB (median {last['median']:.0f}): {numbers['rss_growth']:+.1%}, at most "
            f"+{MAX_GROWTH:.0%}",
        ),
        *_flat("map message", numbers.get("map_mb"), "MB"),
        *_flat("processor time", numbers.get("frame_ms"), "ms a frame"),
        *([] if numbers["loops"] is None else [("loops", f"{numbers['loops']} believed at the end")]),
        ("ATE rmse", f"{ate:.3f} m over {numbers['frames'] / laps.FRAMES:.1f} laps"),
        ("time", f"{seconds_per_frame * 1e3:.0f} ms a frame"),
    )


def _flat(title: str, values: dict[str, float] | None, unit: str) -> Iterator[tuple[str, str]]:
    """The row of what must not grow, where it was measured."""
    if values is not None:
        change = values["last"] / values["first"] - 1
        yield title, f"{values['first']:.1f} {unit} after the warm-up, {values['last']:.1f} in the end: {change:+.1%}"


def main(
    frames: Annotated[int, typer.Option(min=20, help="Frames, lap after lap")] = 2000,
    warm_up: Annotated[int, typer.Option(min=1, help="Frames before memory is watched")] = 500,
    max_keyframes: Annotated[int, typer.Option(min=4, help="memory.max_keyframes")] = 40,
    node: Annotated[bool, typer.Option("--node", help="Through the live node's process, over DDS")] = False,
    out: Annotated[Path, typer.Option(help="Folder for soak.json and soak.png")] = Path("out"),
    write_readme: Annotated[bool, typer.Option("--write-readme", help="Put the result into README.md here")] = False,
) -> None:
    """Check that memory and keyframes stay bounded over a long run."""
    if warm_up >= frames:
        raise typer.BadParameter(f"--warm-up {warm_up} must be less than --frames {frames}")
    console, machine, name = Console(), Machine(), "soak_node" if node else "soak"
    # Many more keyframes than usual, so that the bound is reached in the first lap and eviction goes on in all.
    config = updated(
        Config(),
        {
            "memory.max_keyframes": max_keyframes,
            "memory.min_overlap": 0.95,
            "memory.min_translation": 0.02,
            "memory.min_rotation": 0.04,
        },
    )
    console.print("rendering a lap, once" if not (out / "lap").exists() else "using the lap rendered before")
    bag = laps.lap_bag(out / "lap")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("the live node" if node else "the core", total=frames)

            def advance() -> None:
                progress.update(task, advance=1)

            record, trajectory = (
                soak_node(bag, frames, config, out, advance) if node else soak_core(bag, frames, config, advance)
            )
            elapsed = progress.tasks[task].elapsed or 0.0
    except ReconError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    with BagReader(bag) as reader:
        ate = evaluate_trajectory(trajectory, laps.truth(reader, frames))
    numbers, broken = judge(record, max_keyframes, warm_up)
    machine.finish()
    found = rows(numbers, ate["se3_rmse"], elapsed / frames)
    for title, text in found:
        console.print(f"  {title:16} {text}", highlight=False, soft_wrap=True)
    console.print(machine.line(), highlight=False, soft_wrap=True)
    result = {"machine": machine.as_dict(), **numbers, "ate": ate, "broken": broken, "seconds": round(elapsed, 1)}
    (out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(
        out / f"{name}.png", record, max_keyframes, warm_up, f"{frames} frames through the {'node' if node else 'core'}"
    )
    console.print(f"results: {out / name}.json, {out / name}.png", highlight=False)
    if write_readme:
        table = readme.table(("", "live node" if node else "core"), found)
        readme.write_block(name, f"Measured on: {machine.line()}.\n\n{table}")
    for sentence in broken:
        console.print(f"BROKEN: {sentence}", style="bold red", highlight=False, soft_wrap=True)
    if broken:
        raise typer.Exit(1)
    console.print("all bounds hold", style="green")


if __name__ == "__main__":
    typer.run(main)
