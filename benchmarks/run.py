# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what each stage costs, in milliseconds. See README.md for what the rows mean."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import assembly, inputs, readme, stages
from benchmarks.inputs import Input
from benchmarks.machine import Machine, use_one_thread
from benchmarks.measure import Row
from recon_ros.frame import Update
from recon_ros.reconstructor import Reconstructor

GROUPS = {
    "in": "Messages in",
    "frame": "Frame",
    "tracking": "Tracking",
    "keyframe": "Keyframe",
    "out": "Messages out",
    "packing": "Packing a PointCloud2",
    "map": "Map from keyframes",
    "sum": "Overhead without the step",
}


WIDTH = 140
"""Of the table where no terminal says how wide it is."""


class Bench:
    """Runs the measurements and keeps the rows."""

    def __init__(self, console: Console, quick: bool = False) -> None:
        self._console = console
        self._synthetic_frames, self._real_frames = (8, 8) if quick else (inputs.SYNTHETIC_FRAMES, inputs.HOLO_FRAMES)
        self._repetitions = 5 if quick else 30
        self._keyframes = 6 if quick else inputs.MAP_KEYFRAMES
        self.rows: list[Row] = []
        self.ratios: dict[str, float] = {}
        self.notes: list[str] = []

    def run(self) -> None:
        """Everything; what needs ROS is left out with a note where there is none."""
        columns = (
            TextColumn("{task.description:32}"),
            BarColumn(),
            TextColumn("{task.completed}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            self._progress = progress
            self._run()

    def _run(self) -> None:
        has_ros = importlib.util.find_spec("rclpy") is not None
        if not has_ros:
            self.notes.append("rclpy is missing: the rows of messages and of packing are left out")
        for number, data in enumerate(self._inputs()):
            if has_ros:
                self._measure_inputs(data)
            reconstructor, update = self._measure_stages(data)
            if has_ros and number == 0:
                self._measure_outputs(reconstructor, update)
        if has_ros:
            from benchmarks import packing

            self.rows += packing.measure(self._task("packing", len(packing.ways())))
        keyframes = inputs.map_keyframes(self._keyframes, self._task("rendering keyframes", self._keyframes))
        found = assembly.measure(keyframes, self._task("map", assembly.REPETITIONS + 1))
        self.rows += found.rows
        self.ratios = {name: round(ratio, 3) for name, ratio in found.ratios.items()}
        self.notes.append(
            f"map: {found.points['ours']:,} points of ours and {found.points['Open3D']:,} of Open3D; it takes "
            f"{found.ratios['cold']:.2f} times as long for all keyframes at once and "
            f"{found.ratios['per_keyframe']:.1f} times for each one more"
        )
        if has_ros:
            self.rows += overhead(self.rows, "warehouse")

    def _inputs(self) -> list[Input]:
        count, real_count = self._synthetic_frames, self._real_frames
        found = [inputs.synthetic(count, self._task("rendering frames", count))]
        if not inputs.HOLO_WALK.exists():
            self.notes.append("../shared/data/holo_walk is missing: measured on the synthetic warehouse only")
            return found
        return [*found, inputs.holo_walk(real_count, self._task("reading holo_walk", real_count))]

    def _measure_inputs(self, data: Input) -> None:
        from benchmarks import node_side

        self.rows += node_side.measure_inputs(data.name, data.frames[0], self._task(f"{data.name}: messages in", 2))

    def _measure_stages(self, data: Input) -> tuple[Reconstructor, Update]:
        advance = self._task(f"{data.name}: stages", stages.PASSES * len(data.frames))
        rows, reconstructor, update = stages.measure(data, advance)
        self.rows += rows
        return reconstructor, update

    def _measure_outputs(self, reconstructor: Reconstructor, update: Update) -> None:
        from benchmarks import node_side
        from recon_ros.cli.demo import set_ros_environment

        set_ros_environment()
        advance = self._task("messages out", 7)
        self.rows += node_side.measure_outputs(reconstructor, update, advance, self._repetitions)

    def _task(self, description: str, total: int) -> Callable[[], None]:
        task = self._progress.add_task(description, total=total)
        return lambda: self._progress.update(task, advance=1)


def overhead(rows: Sequence[Row], name: str) -> list[Row]:
    """Sums over the rows of one input: what a frame costs with every output subscribed, and a keyframe on top."""
    frame = [
        r
        for r in rows
        if (r.group == "in" and "rgb8" in r.name and r.input.startswith(name))
        or (r.group in ("frame", "tracking") and r.input == name and r.name in ("prepare", "tracking"))
        or (r.group == "out" and r.name.startswith(("odometry", "TF", "status", "depth")))
    ]
    keyframe = [
        r
        for r in rows
        if (r.group == "keyframe" and r.input == name and r.name.startswith("keyframe"))
        or (r.group == "out" and r.name.startswith(("points", "keyframes")))
    ]
    return [
        Row("sum", title, name, sum(r.min_ms for r in parts), sum(r.median_ms for r in parts), len(parts), note=note)
        for title, parts, note in (
            ("each frame", frame, "raw in, prepare, track, all outputs of a frame"),
            ("each keyframe on top", keyframe, "make and fuse, ~/points, ~/keyframes"),
        )
    ]


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """The table for people."""
    table = Table(box=None, padding=(0, 1))
    for column in ("", "on", "min ms", "median ms", "n", ""):
        table.add_column(column, justify="right" if "m" in column or column == "n" else "left")
    for group, title in GROUPS.items():
        members = [r for r in rows if r.group == group]
        if members:
            table.add_row(f"[bold]{title}[/]")
        for r in members:
            table.add_row(
                f"  {r.name}", r.input, f"{r.min_ms:.2f}", f"{r.median_ms:.2f}", str(r.repetitions), _remark(r)
            )
    console.print(table)


def markdown(rows: Sequence[Row], machine: Machine, notes: Sequence[str]) -> str:
    """The same for README.md."""
    lines = [f"Measured on: {machine.line()}; one thread.", ""]
    if machine.warning:
        lines += [f"**Take with care:** {machine.warning}.", ""]
    for group, title in GROUPS.items():
        members = [r for r in rows if r.group == group]
        if members:
            cells = [(r.name, r.input, f"{r.min_ms:.2f}", f"{r.median_ms:.2f}", _remark(r)) for r in members]
            lines += [f"**{title}**", "", readme.table(("", "on", "min ms", "median ms", ""), cells), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes)])


def _remark(r: Row) -> str:
    if r.target_ms is None:
        return r.note
    return f"target ≤ {r.target_ms:g} ms: {'met' if r.met else 'MISSED'}"


def main(
    out: Annotated[Path, typer.Option(help="Folder for bench.json")] = Path("out"),
    write_readme: Annotated[
        bool, typer.Option("--write-readme", help="Put the tables into benchmarks/README.md")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few frames: to see that it runs, not for numbers")] = False,
) -> None:
    """Time each stage of the node; prints a table and writes out/bench.json."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    use_one_thread()
    machine = Machine()
    console.print(f"{machine.line()}; one thread", highlight=False, soft_wrap=True)
    if machine.warning:
        console.print(f"[yellow]warning:[/] {machine.warning}", soft_wrap=True)
    bench = Bench(console, quick)
    bench.run()
    machine.finish()
    print_rows(bench.rows, console)
    for note in bench.notes:
        console.print(note, highlight=False, soft_wrap=True)
    console.print(f"load average before {machine.load_before:.2f}, after {machine.load_after:.2f}", highlight=False)
    if machine.warning:
        console.print(f"[yellow]warning:[/] {machine.warning}", soft_wrap=True)
    report: dict[str, Any] = {
        "machine": machine.as_dict(),
        "threads": 1,
        "rows": [r.as_dict() for r in bench.rows],
        "map_ratio_open3d_to_ours": bench.ratios,
        "notes": bench.notes,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"results: {out / 'bench.json'}", highlight=False)
    if write_readme:
        readme.write_block("bench", markdown(bench.rows, machine, bench.notes))


if __name__ == "__main__":
    typer.run(main)
