# SPDX-License-Identifier: Apache-2.0
"""A camera is carried off: mapped frames, then blank ones, then an earlier place again, seen otherwise than before.

By seed, the revisit begins somewhere else in the mapped part, at frames that did not become keyframes, with another
exposure, grain and depth noise; in the warehouse, which can be rendered from anywhere, also beside the way driven and
turned. It must be found within a second in nine of ten seeds, by a clock that adds the processor time of a frame to its
stamp: what a machine with nothing else to do would take. Then come views of places that do not exist, mirrored ones of
those that do. No pose may be wrong over all. Exit code 1 when one of this fails.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import laps, readme
from benchmarks.machine import Machine
from recon_ros.config import Config
from recon_ros.datasets.rosbag import BagReader
from recon_ros.errors import InputError, ReconError
from recon_ros.evaluation.trajectory import alignment, associate
from recon_ros.frame import Frame, Trajectory
from recon_ros.geometry import se3
from recon_ros.reconstructor import Reconstructor

MAPPED = 201
BLANK = 10
REVISITED = 15
ABSENT = 15
STEP_NS = 100_000_000
WITHIN_NS = 1_000_000_000
WRONG = (0.5, np.radians(10.0))
"""A pose that is off by more, metres or radians, is wrong."""
MIN_SHARE = 0.9
BESIDE, TURNED = 0.3, np.radians(8.0)
"""Standard deviations of how far beside the way a rendered revisit is, metres and radians."""
HOLO_WALK = Path(__file__).parents[2] / "shared" / "data" / "holo_walk"

Matrix = NDArray[np.float64]
Views = Callable[[np.random.Generator], list[tuple[Frame, Matrix]]]
"""Makes one seed's revisit: frames, and where they really are."""


@dataclass
class Trial:
    """One seed.

    Attributes:
        found_ns: from the first revisiting frame to the first pose being known; None when there was none.
        frame_ms: processor time of each revisiting frame without a pose, and of the first with one.
        wrong: poses that are wrong, also of views of places that do not exist.
        worst: largest error of a pose, metres and radians.
        poses: frames with a pose.
    """

    seed: int
    found_ns: int | None
    frame_ms: list[float]
    wrong: int
    worst: tuple[float, float]
    poses: int

    @property
    def in_time(self) -> bool:
        return self.found_ns is not None and self.found_ns <= WITHIN_NS


def otherwise(frame: Frame, rng: np.random.Generator, gain: float, grain: float) -> Frame:
    """The same view with another exposure, grain, and depth noise."""
    image = cv2.convertScaleAbs(frame.image, alpha=gain, beta=0)
    noise = rng.normal(0.0, grain, image.shape).astype(np.float32)
    assert frame.depth is not None
    depth = frame.depth * (1 + rng.normal(0.0, 0.003, frame.depth.shape)).astype(np.float32)
    return dataclasses.replace(frame, image=cv2.add(image, noise, dtype=cv2.CV_8U), depth=depth)


def blank(frame: Frame) -> Frame:
    """A hand before the lens: nothing to see, a plane at half a metre."""
    assert frame.depth is not None
    return dataclasses.replace(
        frame, image=np.full_like(frame.image, 128), depth=np.full(frame.depth.shape, 0.5, np.float32)
    )


def mirrored(frame: Frame) -> Frame:
    """A view of a place that does not exist but has everything that places here have."""
    assert frame.depth is not None
    image, depth = np.ascontiguousarray(frame.image[:, ::-1]), np.ascontiguousarray(frame.depth[:, ::-1])
    return dataclasses.replace(frame, image=image, depth=depth)


def kidnapped(
    reconstructor: Reconstructor, revisit: Sequence[tuple[Frame, Matrix]], T_truth_world: Matrix, seed: int
) -> Trial:
    """Blank frames, the revisit, blank frames, and views of no place at all, with stamps that go on at 10 Hz.

    Until the camera is found, frames that come while one is processed are dropped, as the node drops them.
    """
    stamp = int(reconstructor.live_trajectory().stamps_ns[-1])
    trial = Trial(seed, None, [], 0, (0.0, 0.0), 0)
    nowhere = [(mirrored(frame), None) for frame, _ in revisit[:ABSENT]]
    covered = [(blank(revisit[0][0]), None)] * BLANK
    begin = stamp + (BLANK + 1) * STEP_NS
    free = begin
    for phase, shown in (("blank", covered), ("revisit", revisit), ("blank", covered), ("nowhere", nowhere)):
        for frame, T_truth_camera in shown:
            stamp += STEP_NS
            looking = phase == "revisit" and trial.found_ns is None
            if looking and stamp < free:
                continue
            start = time.process_time_ns()
            try:
                update = reconstructor.process(dataclasses.replace(frame, stamp_ns=stamp))
            except InputError:
                continue
            taken, T = time.process_time_ns() - start, update.T_world_camera
            if looking:
                free = stamp + taken
                trial.frame_ms.append(taken / 1e6)
                trial.found_ns = None if T is None else free - begin
            if T is None:
                continue
            trial.poses += 1
            if T_truth_camera is None:
                trial.wrong += 1
                continue
            moved, turned = se3.distance(se3.inverse(T_truth_camera) @ T_truth_world @ T)
            trial.worst = max(trial.worst[0], float(moved)), max(trial.worst[1], float(turned))
            trial.wrong += int(moved > WRONG[0] or turned > WRONG[1])
    return trial


def seeds_of(reconstructor: Reconstructor, views: Views, T_truth_world: Matrix, seeds: int) -> list[Trial]:
    """Each seed begins with the same map: a process forked from this one, which goes no further."""
    context, trials = multiprocessing.get_context("fork"), []
    for seed in range(seeds):
        revisit = views(np.random.default_rng(seed))
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_one_seed, args=(theirs, reconstructor, revisit, T_truth_world, seed))
        child.start()
        theirs.close()
        try:
            trials.append(ours.recv())
        except EOFError as error:
            raise ReconError(f"seed {seed} ended with exit code {child.exitcode} and no result") from error
        child.join()
    return trials


def _one_seed(
    pipe: Connection, reconstructor: Reconstructor, revisit: list[tuple[Frame, Matrix]], T: Matrix, seed: int
) -> None:
    pipe.send(kidnapped(reconstructor, revisit, T, seed))


def mapped(frames: Sequence[Frame], config: Config) -> tuple[Reconstructor, set[int]]:
    """A map of the frames, and the stamps of those that became keyframes."""
    reconstructor, stamps = Reconstructor(config), set()
    for frame in frames:
        update = reconstructor.process(frame)
        if update.keyframe_id is not None:
            stamps.add(update.stamp_ns)
    reconstructor.settle()
    return reconstructor, stamps


def replayed(frames: Sequence[Frame], poses: Sequence[Matrix], keyframe_stamps: set[int]) -> Views:
    """Revisits made of recorded frames that are no keyframes."""

    def views(rng: np.random.Generator) -> list[tuple[Frame, Matrix]]:
        first = int(rng.integers(0, len(frames) - 2 * REVISITED))
        gain, grain = float(rng.uniform(0.7, 1.3)), float(rng.uniform(1.0, 5.0))
        chosen = (i for i in range(first, len(frames)) if frames[i].stamp_ns not in keyframe_stamps)
        return [(otherwise(frames[i], rng, gain, grain), poses[i]) for i in islice(chosen, REVISITED)]

    return views


def rendered(frames: Sequence[Frame], poses: Sequence[Matrix]) -> Views:
    """Revisits rendered from beside the way that was driven."""
    from recon_ros.datasets.synthetic import sensor_depth
    from recon_ros.datasets.warehouse import warehouse

    def views(rng: np.random.Generator) -> list[tuple[Frame, Matrix]]:
        first = int(rng.integers(0, len(frames) - REVISITED))
        gain, grain = float(rng.uniform(0.7, 1.3)), float(rng.uniform(1.0, 5.0))
        beside = rng.normal(0.0, BESIDE / 2, 3) * (1, 0.3, 1)
        aside = se3.exp(np.concatenate([beside, rng.normal(0.0, TURNED, 3) * (0.3, 1.0, 0.3)]))
        made = []
        for i in range(first, first + REVISITED):
            frame, T = frames[i], poses[i] @ aside
            assert frame.camera is not None
            image, depth = warehouse(0).render(T, frame.camera)
            depth[depth > 8.0] = np.nan
            seen = dataclasses.replace(frame, image=image, depth=sensor_depth(depth, rng))
            made.append((otherwise(seen, rng, gain, grain), T))
        return made

    return views


def poses_at(truth: Trajectory, frames: Sequence[Frame]) -> list[Matrix]:
    """The true pose of each frame, by the nearest stamp."""
    return [truth.poses[int(np.argmin(np.abs(truth.stamps_ns - frame.stamp_ns)))] for frame in frames]


def measure(name: str, bag: Path, seeds: int) -> list[Trial]:
    """All seeds on a recording."""
    with BagReader(bag) as reader:
        frames, truth = list(islice(reader.frames(), MAPPED)), reader.ground_truth()
    assert truth is not None
    poses = poses_at(truth, frames)
    if name == "warehouse":
        views = rendered(frames, poses)
        reconstructor, _ = mapped(frames, Config())
    else:
        reconstructor, keyframe_stamps = mapped(frames, Config())
        views = replayed(frames, poses, keyframe_stamps)
    T_truth_world = alignment(*associate(reconstructor.trajectory(), truth))
    return seeds_of(reconstructor, views, T_truth_world, seeds)


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """The numbers of one recording."""
    return {
        "seeds": len(trials),
        "in_time": sum(t.in_time for t in trials),
        "found_s": [None if t.found_ns is None else t.found_ns / 1e9 for t in trials],
        "slowest_frame_ms": max(max(t.frame_ms, default=0.0) for t in trials),
        "tries": [len(t.frame_ms) for t in trials],
        "poses": sum(t.poses for t in trials),
        "wrong": sum(t.wrong for t in trials),
        "worst_m": max(t.worst[0] for t in trials),
        "worst_deg": float(np.degrees(max(t.worst[1] for t in trials))),
    }


def row(name: str, numbers: dict[str, Any]) -> tuple[str, ...]:
    """The row of one recording."""
    found = [s for s in numbers["found_s"] if s is not None]
    return (
        name,
        f"{numbers['in_time']} of {numbers['seeds']}",
        "–" if not found else f"{np.median(found):.2f} / {max(found):.2f} s",
        f"{np.median(numbers['tries']):.0f} / {max(numbers['tries'])}",
        f"{numbers['slowest_frame_ms']:.0f} ms",
        f"{numbers['wrong']} of {numbers['poses']}",
        f"{numbers['worst_m'] * 100:.0f} cm, {numbers['worst_deg']:.1f}°",
    )


HEADER = (
    "recording",
    "found within 1 s",
    "found after, median / longest",
    "frames tried, median / most",
    "slowest of them",
    "wrong poses",
    "largest error",
)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Revisits on each recording")] = 10,
    holo_walk: Annotated[Path, typer.Option(help="The real recording; left out when it is not there")] = HOLO_WALK,
    out: Annotated[Path, typer.Option(help="Folder for kidnap.json and the rendered lap")] = Path("out"),
    write_readme: Annotated[bool, typer.Option("--write-readme", help="Put the result into README.md here")] = False,
) -> None:
    """Carry the camera off and see whether it finds itself again."""
    console, machine = Console(), Machine()
    cv2.setNumThreads(1)  # and no thread is there to be lost by a fork
    bags = {"holo_walk": holo_walk, "warehouse": laps.lap_bag(out / "lap")}
    results: dict[str, dict[str, Any]] = {}
    try:
        for name, bag in bags.items():
            if bag.exists():
                results[name] = summary(measure(name, bag, seeds))
            else:
                console.print(f"{name} is left out: {bag} is not there", markup=False, soft_wrap=True)
    except ReconError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    machine.finish()
    table = [row(name, numbers) for name, numbers in results.items()]
    for cells in table:
        console.print("  " + ", ".join(f"{h} {c}" for h, c in zip(HEADER, cells, strict=True)), soft_wrap=True)
    console.print(machine.line(), highlight=False, soft_wrap=True)
    (out / "kidnap.json").write_text(json.dumps({"machine": machine.as_dict(), **results}, indent=2) + "\n")
    if write_readme:
        readme.write_block("kidnap", f"Measured on: {machine.line()}.\n\n{readme.table(HEADER, table)}")
    bad = [n for n, r in results.items() if r["wrong"] or r["in_time"] < MIN_SHARE * r["seeds"]]
    if bad:
        console.print(f"BROKEN: {', '.join(bad)}", style="bold red")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
