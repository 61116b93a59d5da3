# SPDX-License-Identifier: Apache-2.0
"""Two laps of 80 m with a tracking that drifts: what closing loops repairs, and what it costs.

The drive is tracked without loops, with them (as an offline run does it), and with them live: frames come at the
camera's rate, loops are looked for in a thread and the graph is solved in a process. Exit code 1 when the error at the
end falls by less than ten times, walls stay double, a believed loop is false, or tracking waits for the graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import drive, readme, unscaled, walls
from benchmarks.loops_run import DRAWN, Run, run
from benchmarks.machine import Machine
from recon_ros.config import Config, updated
from recon_ros.datasets.rosbag import BagReader
from recon_ros.errors import ReconError
from recon_ros.evaluation.trajectory import evaluate_trajectory
from recon_ros.frame import Trajectory
from recon_ros.geometry import se3
from recon_ros.mapping.loops import Loop

MIN_REDUCTION = 10.0
MAX_THICKNESS = 0.05
MAX_BLOCK_MS = 20.0
TRUE_LOOP = (0.3, np.radians(5.0))
"""A loop is true when it is wrong by less, metres and radians."""
Matrix = NDArray[np.float64]


def errors_of(loops: Sequence[Loop], true_poses: dict[int, Matrix]) -> list[tuple[float, float]]:
    """(metres, radians) by which each loop is wrong."""
    found = []
    for loop in loops:
        true = se3.inverse(true_poses[loop.a]) @ true_poses[loop.b]
        found.append(se3.distance(se3.inverse(true) @ loop.T_a_b))
    return found


def drift_of(trajectory: Trajectory, truth: Trajectory, metres: float) -> dict[str, float]:
    """What tracking makes wrong over a lap of so many metres: share of the way it is too long, degrees over 10 m."""
    both, of_estimate, of_truth = np.intersect1d(trajectory.stamps_ns, truth.stamps_ns, return_indices=True)
    assert len(both) > 1
    estimated, true = trajectory.poses[of_estimate], truth.poses[of_truth]

    def length(poses: Matrix) -> float:
        return float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())

    wrong = se3.inverse(se3.inverse(true[0]) @ true[-1]) @ se3.inverse(estimated[0]) @ estimated[-1]
    turned = float(np.degrees(np.linalg.norm(se3.log(wrong)[3:])))
    return {"scale": length(estimated) / length(true) - 1, "degrees_per_10_m": turned / metres * 10}


def judge(found: Run, truth: Trajectory, lap_frames: int) -> dict[str, Any]:
    """The numbers of one run; the world is the first camera's on both sides."""
    origin = se3.inverse(truth.poses[0])
    at = dict(zip(truth.stamps_ns.tolist(), origin @ truth.poses, strict=True))
    wrong = [
        float(np.linalg.norm(pose[:3, 3] - at[stamp][:3, 3]))
        for stamp, pose in zip(found.trajectory.stamps_ns.tolist(), found.trajectory.poses, strict=True)
    ]
    stamp_of = {i: truth.stamps_ns.tolist()[frame] for i, frame in found.frame_of.items()}
    true_poses = {i: at[stamp] for i, stamp in stamp_of.items()}
    loop_errors = errors_of(found.loops, true_poses)
    true_loops = sum(bool(m < TRUE_LOOP[0] and r < TRUE_LOOP[1]) for m, r in loop_errors)
    first, second = (walls.lap_points(_views(found, at, lap_frames, lap)) for lap in range(2))
    thick = walls.thicknesses(first, second)
    blocks = np.array(found.blocks_ms)
    cloud = np.array([parts.get(DRAWN, 0.0) for parts in found.parts_ms])
    worst = int(np.argmax(blocks))
    return {
        "frames": len(found.frames_ms),
        "lost": found.lost,
        "keyframes": len(found.keyframes),
        "end_error": wrong[-1],
        "largest_error": max(wrong),
        "ate": evaluate_trajectory(found.trajectory, truth)["se3_rmse"],
        "walls": {
            "patches": len(thick),
            **{f"p{q}": float(np.percentile(thick, q)) for q in (50, 90, 95)},
            "max": float(thick.max()),
        },
        "loops": {
            "true": true_loops,
            "false": len(found.loops) - true_loops,
            "disbelieved": found.disbelieved,
            "worst": max(loop_errors, default=(0.0, 0.0)),
        },
        "block_ms": {
            **{f"p{q}": float(np.percentile(blocks, q)) for q in (50, 99)},
            "max": float(blocks.max()),
            "busy_p99": float(np.percentile(found.busy_ms, 99)),
            "busy_max": max(found.busy_ms),
            "worst_is": {k: round(v, 2) for k, v in found.parts_ms[worst].items()},
        },
        "cloud_ms": {"p99": float(np.percentile(cloud, 99)), "max": float(cloud.max())},
        "undrawn": {"p99": float(np.percentile(found.undrawn, 99)), "max": max(found.undrawn)},
        "frame_ms": {f"p{q}": float(np.percentile(found.frames_ms, q)) for q in (50, 95, 99)},
    }


def _views(found: Run, true_poses: dict[int, Matrix], lap_frames: int, lap: int) -> Iterator[walls.View]:
    """The frames kept of a lap, where the path has them at the end."""
    mapped: dict[int, Matrix] = dict(
        zip(found.trajectory.stamps_ns.tolist(), list(found.trajectory.poses), strict=True)
    )
    for i, (stamp, points) in found.seen.items():
        if i // lap_frames == lap and stamp in mapped:
            T_mapped = mapped[stamp]
            yield walls.View(points, T_mapped, true_poses.get(stamp, T_mapped))


def broken_bounds(results: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each bound that a run with loops breaks."""
    broken = []
    before = results["without"]["end_error"]
    for name, result in results.items():
        if name == "without":
            continue
        reduction = before / result["end_error"]
        if reduction < MIN_REDUCTION:
            broken.append(f"{name}: the error at the end fell {reduction:.1f} times, not {MIN_REDUCTION:.0f}")
        if result["walls"]["p95"] > MAX_THICKNESS:
            broken.append(f"{name}: walls are double by {result['walls']['p95'] * 100:.1f} cm")
        if result["loops"]["false"]:
            broken.append(f"{name}: {result['loops']['false']} false loops are believed")
        for what, key in (("graph", "block_ms"), ("cloud", "cloud_ms")):
            if name == "live" and result[key]["max"] > MAX_BLOCK_MS:
                broken.append(f"{name}: tracking waited {result[key]['max']:.0f} ms for the {what}")
    return broken


def plot(path: Path, runs: dict[str, Run], truth: Trajectory, lap_frames: int, results: dict[str, Any]) -> None:
    """Each run's map from above, lap by lap, with the path it took and the true one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6 * len(runs)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(runs), 2, squeeze=False, gridspec_kw={"width_ratios": (3, 1.05)})
    for (whole, part), (name, found) in zip(rows, runs.items(), strict=True):
        result = results[name]
        for axes in (whole, part):
            for lap, colour in ((0, "tab:blue"), (1, "tab:red")):
                points = _seen_from_above(found, truth.poses[0], lap_frames, lap)
                axes.scatter(*points.T, s=0.15 if axes is whole else 0.6, color=colour, linewidths=0, alpha=0.5)
            estimated = truth.poses[0] @ found.trajectory.poses
            axes.plot(*truth.positions[:, :2].T, color="0.25", linestyle="--", linewidth=1, label="true path")
            axes.plot(*estimated[:, :2, 3].T, color="black", linewidth=1, label="estimated path")
            axes.set_aspect("equal")
        whole.legend(loc="upper center", ncols=2, fontsize=8)
        whole.set_title(
            f"{name}: wrong by {result['end_error']:.2f} m at the end, ATE {result['ate']:.2f} m, walls double by "
            f"{result['walls']['p95'] * 100:.1f} cm (p95), {result['loops']['true']} loops",
            fontsize=10,
        )
        corner = truth.positions[:, :2].max(axis=0)
        part.set_xlim(corner[0] - 4.5, corner[0] + 2.5)
        part.set_ylim(corner[1] - 3.0, corner[1] + 4.0)
        part.set_title("lap 1 blue, lap 2 red", fontsize=10)
    figure.savefig(path)


def _seen_from_above(found: Run, T_hall_world: Matrix, lap_frames: int, lap: int) -> Matrix:
    """(N, 2) points of a lap between shin and head in the hall."""
    parts = []
    for view in _views(found, {}, lap_frames, lap):
        near = view.points[np.isfinite(view.points[..., 2]) & (view.points[..., 2] < 4.5)]
        points = se3.transform(T_hall_world @ view.T_mapped, near)
        parts.append(points[(points[:, 2] > 0.4) & (points[:, 2] < 2.2), :2])
    return np.concatenate(parts)


def rows(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """What is printed and goes into README.md, a row for each number, a column for each run."""
    before = results["without"]["end_error"]

    def row(title: str, text: Any) -> tuple[str, ...]:
        return (title, *(text(name, result) for name, result in results.items()))

    return [
        row("error at the end", lambda _, r: f"{r['end_error']:.3f} m"),
        row("reduced", lambda n, r: "" if n == "without" else f"{before / r['end_error']:.0f} times"),
        row("ATE rmse", lambda _, r: f"{r['ate']:.3f} m"),
        row(
            "walls double by, p50 / p95 / max",
            lambda _, r: " / ".join(f"{r['walls'][k] * 100:.1f}" for k in ("p50", "p95", "max")) + " cm",
        ),
        row(
            "loops true / false / disbelieved",
            lambda _, r: " / ".join(str(r["loops"][k]) for k in ("true", "false", "disbelieved")),
        ),
        row("keyframes", lambda _, r: str(r["keyframes"])),
        row("frames without a pose", lambda _, r: f"{r['lost']} of {r['frames']}"),
        row(
            "tracking waits for the graph, p50 / p99 / max",
            lambda _, r: " / ".join(f"{r['block_ms'][k]:.1f}" for k in ("p50", "p99", "max")) + " ms",
        ),
        row(
            "processor time of corrections, p99 / max",
            lambda _, r: " / ".join(f"{r['block_ms'][k]:.1f}" for k in ("busy_p99", "busy_max")) + " ms",
        ),
        row(
            "tracking waits for the cloud, p99 / max",
            lambda _, r: f"{r['cloud_ms']['p99']:.1f} / {r['cloud_ms']['max']:.1f} ms",
        ),
        row(
            "keyframes still to be drawn, p99 / max",
            lambda _, r: f"{r['undrawn']['p99']:.0f} / {r['undrawn']['max']}",
        ),
        row(
            "a frame, p50 / p95 / p99",
            lambda _, r: " / ".join(f"{r['frame_ms'][k]:.0f}" for k in ("p50", "p95", "p99")) + " ms",
        ),
    ]


def main(
    loops: Annotated[bool, typer.Option(help="Also with loops: offline and live")] = True,
    out: Annotated[Path, typer.Option(help="Folder for the drive, loops.json and loops.png")] = Path("out/loops"),
    write_readme: Annotated[bool, typer.Option("--write-readme", help="Put the result into README.md here")] = False,
    sim3: Annotated[bool, typer.Option("--sim3", help="Instead with a source that does not know the metre")] = False,
) -> None:
    """Close the loops of a drive that drifts."""
    if sim3:
        _end(Console(), unscaled.close_laps(out, Console()))
        return
    console, machine, data = Console(), Machine(), drive.drive()
    console.print("using the drive rendered before" if (out / "drive").exists() else "rendering the drive, once")
    bag, truth = drive.drive_bag(out / "drive"), data.ground_truth()
    lap_frames = round(data.lap_length / drive.SPEED * drive.RATE_HZ)
    setups = {"without": (False, False), **({"offline": (True, False), "live": (True, True)} if loops else {})}
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    runs: dict[str, Run] = {}
    try:
        with Progress(*columns, console=console) as progress:
            for name, (enabled, live) in setups.items():
                task = progress.add_task(name, total=len(data))
                config = updated(Config(), {"loops.enabled": enabled})
                with BagReader(bag) as reader:
                    runs[name] = run(
                        reader.frames(),
                        config,
                        live,
                        drive.RATE_HZ if live else None,
                        lambda task=task: progress.advance(task),
                    )
    except ReconError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    machine.finish()
    results = {name: judge(found, truth, lap_frames) for name, found in runs.items()}
    first_lap = Trajectory(truth.stamps_ns[:lap_frames], truth.poses[:lap_frames])
    drift = drift_of(runs["without"].trajectory, first_lap, data.lap_length)
    metres = len(data) * drive.SPEED / drive.RATE_HZ
    console.print(
        f"{metres:.0f} m in {drive.LAPS} laps; drift {drift['scale']:+.1%} of the way, "
        f"{drift['degrees_per_10_m']:.2f}° in 10 m"
    )
    table = rows(results)
    for title, *cells in table:
        console.print(f"  {title:46} " + "  ".join(f"{cell:24}" for cell in cells), highlight=False, soft_wrap=True)
    console.print(machine.line(), highlight=False, soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    broken = broken_bounds(results)
    written = {"machine": machine.as_dict(), "metres": metres, "drift": drift, **results, "broken": broken}
    (out / "loops.json").write_text(json.dumps(written, indent=2) + "\n")
    plot(out / "loops.png", runs, truth, lap_frames, results)
    console.print(f"results: {out}/loops.json, {out}/loops.png", highlight=False)
    if write_readme:
        head = f"Measured on: {machine.line()}.\n\n{metres:.0f} m, drift {drift['scale']:+.1%} of the way and "
        head += f"{drift['degrees_per_10_m']:.2f}° in 10 m.\n\n"
        readme.write_block("loops", head + readme.table(("", *results), table))
    _end(console, broken)


def _end(console: Console, broken: Sequence[str]) -> None:
    for sentence in broken:
        console.print(f"BROKEN: {sentence}", style="bold red", highlight=False, soft_wrap=True)
    if broken:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
