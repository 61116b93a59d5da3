# SPDX-License-Identifier: Apache-2.0
"""A session ends in the middle of a recording, its process is killed, and another one goes on with the saved map.

The first session maps the frames before the cut, saves, and ends by SIGKILL: nothing but the folder is left of it. The
second one loads the folder and gets the frames from the cut on, the first of which follows the last one saved by a
tenth of a second. Its poses are held against the truth in the first session's frame: with the alignment that was found
for the first session alone. Exit code 1 when the camera is never found, or the error is above 0.08 m.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from benchmarks import readme
from benchmarks.inputs import HOLO_WALK
from benchmarks.machine import Machine
from recon_ros.config import Config, nested
from recon_ros.datasets.rosbag import BagReader
from recon_ros.errors import ReconError
from recon_ros.evaluation.trajectory import alignment, associate, evaluate_trajectory, position_errors
from recon_ros.export.snapshot import Snapshot, write_snapshot
from recon_ros.export.tum import read_tum
from recon_ros.frame import State, Trajectory
from recon_ros.mapping.folder import read_map
from recon_ros.reconstructor import Reconstructor

MOST = 0.08
"""Error of the second session, metres."""
ENOUGH = 0.9
"""Share of its frames that have a place in the map of the first."""
CONFIG = replace(Config(), source="depth")
HEADER = ("cut after", "frames until found", "tracked", "first session", "second, in its frame", "both together")


@dataclass(frozen=True)
class Result:
    """One cut; errors are root mean squares in metres.

    Attributes:
        cut: frames of the first session.
        until_found: frames of the second before the camera was found; None when it never was.
        tracked, frames: of the second session, with a place in the map of the first, and all.
        first, second, both: with the alignment of the first, of the first, and of all.
    """

    cut: int
    until_found: int | None
    tracked: int
    frames: int
    first: float
    second: float
    both: float

    @property
    def is_good(self) -> bool:
        return self.until_found is not None and self.second <= MOST and self.tracked >= ENOUGH * self.frames

    def row(self) -> tuple[str, ...]:
        found = "never" if self.until_found is None else str(self.until_found)
        errors = (f"{error:.3f} m" for error in (self.first, self.second, self.both))
        return (str(self.cut), found, f"{self.tracked} of {self.frames}", *errors)


def first_session(bag: Path, cut: int, folder: Path) -> None:
    """Map, save, and be killed."""
    reconstructor = Reconstructor(CONFIG)
    with BagReader(bag) as reader:
        for frame in islice(reader.frames(), cut):
            reconstructor.process(frame)
    reconstructor.keep_last_view()
    reconstructor.settle()
    write_snapshot(Snapshot(reconstructor.state_of_map(), reconstructor.map_cloud(), nested(CONFIG)), folder)
    os.kill(os.getpid(), signal.SIGKILL)


def second_session(bag: Path, cut: int, folder: Path) -> tuple[list[State], Trajectory]:
    """Load, and go on."""
    reconstructor = Reconstructor(CONFIG)
    reconstructor.load_map(read_map(folder))
    with BagReader(bag) as reader:
        states = [reconstructor.process(frame).state for frame in islice(reader.frames(), cut, None)]
    reconstructor.settle()
    trajectory = reconstructor.trajectory()
    reconstructor.close()
    return states, trajectory


def measure(bag: Path, cut: int) -> Result:
    """Both sessions of a recording.

    Raises:
        ReconError: the recording cannot be used, or the first session left no map.
    """
    with BagReader(bag) as reader:
        truth = reader.ground_truth()
    if truth is None:
        raise ReconError(f"{bag} has no true poses to compare with")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "map"
        process = multiprocessing.get_context("spawn").Process(target=first_session, args=(bag, cut, folder))
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise ReconError(f"the first session ended by itself, with exit code {process.exitcode}")
        before = read_tum(folder / "trajectory.tum")
        states, after = second_session(bag, cut, folder)
    first = evaluate_trajectory(before, truth)["se3_rmse"]
    found = next((i for i, state in enumerate(states) if state is State.TRACKING), None)
    if found is None or len(after) == 0:  # a submap that was not joined has no place in the map
        return Result(cut, None, 0, len(states), first, 99.0, 99.0)
    off = position_errors(*associate(after, truth), alignment(*associate(before, truth)))
    both = evaluate_trajectory(_joined(before, after), truth)["se3_rmse"]
    return Result(cut, found, len(after), len(states), first, float(np.sqrt(np.mean(off**2))), both)


def _joined(a: Trajectory, b: Trajectory) -> Trajectory:
    return Trajectory(np.concatenate([a.stamps_ns, b.stamps_ns]), np.concatenate([a.poses, b.poses]))


def main(
    bag: Annotated[Path, typer.Argument(help="A recording with depth and true poses")] = HOLO_WALK,
    cut: Annotated[list[int] | None, typer.Option(min=30, help="Frames of the first session; more than once")] = None,
    out: Annotated[Path, typer.Option(help="Folder for continued.json")] = Path("out"),
    write_readme: Annotated[bool, typer.Option("--write-readme", help="Put the result into README.md here")] = False,
) -> None:
    """Save, kill, load, go on."""
    console, machine, results = Console(), Machine(), []
    try:
        for frames in cut or [187]:
            results.append(measure(bag, frames))
            cells = zip(HEADER, results[-1].row(), strict=True)
            console.print("  " + ", ".join(f"{name} {cell}" for name, cell in cells), soft_wrap=True)
    except ReconError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    machine.finish()
    console.print(machine.line(), highlight=False, soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    rows = [vars(result) for result in results]
    (out / "continued.json").write_text(json.dumps({"machine": machine.as_dict(), "cuts": rows}, indent=2) + "\n")
    if write_readme:
        text = readme.table(HEADER, [result.row() for result in results])
        readme.write_block("continued", f"Measured on: {machine.line()}.\n\n{text}")
    if not all(result.is_good for result in results):
        console.print("BROKEN", style="bold red")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
