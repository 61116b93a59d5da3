# SPDX-License-Identifier: Apache-2.0
"""The two laps of `loops` by a source that does not know the metre, while the scale of tracking drifts: Sim(3) loops.

Each keyframe's points are in the source's unit, so that all keyframes should have one scale. Tracking makes them grow
by 1 % in 10 m and turns by 1° in 10 m. Exit code 1 when the error at the end falls by less than ten times or the worst
scale by less than five (what is uneven within a lap, no loop at its end can tell), or a believed loop is false.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import drive
from benchmarks.machine import Machine
from recon_ros.config import Config, InputConfig, updated
from recon_ros.datasets.rosbag import BagReader
from recon_ros.evaluation.trajectory import evaluate_trajectory
from recon_ros.frame import Camera, Frame, Prediction, Trajectory
from recon_ros.geometry import se3
from recon_ros.mapping.loops import Loop
from recon_ros.networks.card import ModelCard
from recon_ros.reconstructor import Reconstructor
from recon_ros.runtimes.depth import DepthSource

UNIT = 0.5
"""A metre in the source's unit."""
SCALE_PER_METRE = float(np.log(1.01)) / 10.0
MIN_REDUCTION, MIN_SCALE_REDUCTION = 10.0, 5.0
TRUE_LOOP = (0.3, np.radians(5.0), 0.05)
"""A loop is true when it is wrong by less: metres, radians, logarithm of the scale."""

Matrix = NDArray[np.float64]


class Unscaled(DepthSource):
    """The depth source without the metre, as a network would be that is right but for the scale."""

    card = ModelCard(name="unscaled", family="unscaled", needs_depth=True, needs_camera=True)

    def __init__(self, config: InputConfig, unit: float = UNIT) -> None:
        super().__init__(config)
        self._unit = np.float32(unit)

    def step(
        self, memory: Any, image: NDArray[np.uint8], camera: Camera | None, depth: NDArray[np.float32] | None = None
    ) -> tuple[Any, Prediction]:
        memory, prediction = super().step(memory, image, camera, depth)
        return memory, replace(prediction, points_self=self._unit * prediction.points_self, is_metric=False)


@contextmanager
def drifting(scale: float = SCALE_PER_METRE, yaw: float = drive.YAW_ERROR, unit: float = UNIT) -> Iterator[None]:
    """Inside, what becomes a keyframe is larger than the one it was tracked against, and turned, by so much a metre."""

    def drifted(T_world_reference: Matrix, T_world_camera: Matrix) -> Matrix:
        step = se3.inverse(T_world_reference) @ T_world_camera
        metres = float(np.linalg.norm(step[:3, 3])) / unit
        turn = se3.exp(np.array([0.0, 0.0, 0.0, 0.0, yaw * step[2, 3] / unit, 0.0]))
        grown = se3.scale_of(T_world_camera) * float(np.exp(scale * metres))
        return se3.scaled(se3.orthonormalised(T_world_reference @ step @ turn), grown)

    with drive.misplaced(drifted):
        yield


@dataclass
class Run:
    """What one pass left: the path in metres, the keyframes' scales by the index of their frames, the loops."""

    trajectory: Trajectory
    frame_of: dict[int, int]
    scale_of: dict[int, float]
    loops: tuple[Loop, ...]
    lost: int


def run(frames: Iterator[Frame], config: Config, progress: Callable[[], None] = lambda: None) -> Run:
    """Track frames with a source and a tracking that drift."""
    reconstructor = Reconstructor(config, Unscaled(config.input))
    frame_of: dict[int, int] = {}
    lost = 0
    with drifting():
        for i, frame in enumerate(frames):
            update = reconstructor.process(frame)
            lost += update.T_world_camera is None
            if update.keyframe_id is not None:
                frame_of[update.keyframe_id] = i
            progress()
    reconstructor.settle()
    path = reconstructor.trajectory()
    poses = se3.rigid(path.poses)
    poses[:, :3, 3] /= UNIT
    scales = {k.id: se3.scale_of(k.T_world_camera) for k in reconstructor.keyframes}
    return Run(Trajectory(path.stamps_ns, poses), frame_of, scales, reconstructor.loops, lost)


def judge(found: Run, truth: Trajectory) -> dict[str, Any]:
    """The numbers of one run, in metres; the world is the first camera's on both sides."""
    at = dict(zip(truth.stamps_ns.tolist(), se3.inverse(truth.poses[0]) @ truth.poses, strict=True))
    wrong = [
        float(np.linalg.norm(pose[:3, 3] - at[stamp][:3, 3]))
        for stamp, pose in zip(found.trajectory.stamps_ns.tolist(), found.trajectory.poses, strict=True)
    ]
    stamps = truth.stamps_ns.tolist()
    false = 0
    for loop in found.loops:
        a, b = (at[stamps[found.frame_of[i]]] for i in (loop.a, loop.b))
        said = loop.T_a_b.copy()
        said[:3, 3] /= UNIT
        moved, turned = se3.distance(se3.inverse(se3.inverse(a) @ b) @ said)
        false += not (moved < TRUE_LOOP[0] and turned < TRUE_LOOP[1] and abs(np.log(se3.scale_of(said))) < TRUE_LOOP[2])
    scales = np.abs(np.log(list(found.scale_of.values())))
    return {
        "lost": found.lost,
        "keyframes": len(found.scale_of),
        "end_error": wrong[-1],
        "ate": evaluate_trajectory(found.trajectory, truth)["se3_rmse"],
        "scale": {"worst": float(np.expm1(scales.max())), "mean": float(np.expm1(scales.mean()))},
        "loops": {"true": len(found.loops) - false, "false": false},
    }


def broken_bounds(results: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each bound that loops do not keep."""
    before, after = results["without"], results["with"]
    reductions = (
        ("the error at the end", before["end_error"] / after["end_error"], MIN_REDUCTION),
        ("the worst scale", before["scale"]["worst"] / after["scale"]["worst"], MIN_SCALE_REDUCTION),
    )
    broken = [f"{name} fell {times:.1f} times, not {least:.0f}" for name, times, least in reductions if times < least]
    if after["loops"]["false"]:
        broken.append(f"{after['loops']['false']} false loops are believed")
    return broken


def plot(path: Path, runs: dict[str, Run], truth: Trajectory, results: dict[str, Any]) -> None:
    """The paths from above, and the keyframes' scales."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    above, scales = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.6, 1)})
    above.plot(*truth.positions[:, :2].T, color="0.6", linestyle="--", linewidth=3, label="true")
    for (name, found), colour in zip(runs.items(), ("tab:red", "tab:blue"), strict=True):
        result = results[name]
        label = f"{name} loops: {result['end_error']:.2f} m off at the end, ATE {result['ate']:.2f} m"
        above.plot(*(truth.poses[0] @ found.trajectory.poses)[:, :2, 3].T, color=colour, linewidth=1.2, label=label)
        way = [found.frame_of[i] * drive.SPEED / drive.RATE_HZ for i in found.scale_of]
        label = f"{name}: {result['scale']['worst']:.1%} off at worst"
        scales.plot(way, list(found.scale_of.values()), ".-", color=colour, markersize=3, linewidth=0.8, label=label)
    above.set(aspect="equal", xlabel="m", ylabel="m")
    scales.axhline(1.0, color="0.6", linestyle="--")
    scales.set(xlabel="way, m", ylabel="scale of keyframes")
    above.legend(fontsize=8)
    scales.legend(fontsize=8)
    figure.savefig(path)


def close_laps(out: Path, console: Console) -> list[str]:
    """Drive without loops and with them, write sim3.json and sim3.png, and return what is broken."""
    machine, truth = Machine(), drive.drive().ground_truth()
    bag = drive.drive_bag(out / "drive")
    runs: dict[str, Run] = {}
    for name, enabled in (("without", False), ("with", True)):
        console.print(f"{name} loops", highlight=False)
        with BagReader(bag) as reader:
            runs[name] = run(reader.frames(), updated(Config(), {"loops.enabled": enabled}))
    machine.finish()
    results = {name: judge(found, truth) for name, found in runs.items()}
    for name, r in results.items():
        console.print(
            f"  {name:8} {r['end_error']:7.3f} m off at the end, ATE {r['ate']:.3f} m, scale off by "
            f"{r['scale']['worst']:.2%} at worst, loops true / false {r['loops']['true']} / {r['loops']['false']}, "
            f"{r['keyframes']} keyframes, {r['lost']} frames without a pose",
            highlight=False,
            soft_wrap=True,
        )
    broken = broken_bounds(results)
    (out / "sim3.json").write_text(json.dumps({"machine": machine.as_dict(), **results, "broken": broken}, indent=2))
    plot(out / "sim3.png", runs, truth, results)
    console.print(f"results: {out}/sim3.json, {out}/sim3.png", highlight=False)
    return broken
