# SPDX-License-Identifier: Apache-2.0
"""One picture of one run: map from above with the paths, a frame with its depth, errors, latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MultipleLocator
from numpy.typing import NDArray

from recon_ros.errors import DatasetError
from recon_ros.evaluation.topview import TopView, top_view
from recon_ros.evaluation.trajectory import alignment, associate, position_errors, transformed
from recon_ros.frame import Cloud, Trajectory
from recon_ros.geometry import se3

# The panels, in shares of the figure: map and curves at the left, the frame's column at the right.
LEFT, WIDTH, COLUMN, FOOT, HEAD, GAP = 0.04, 0.655, 0.72, 0.065, 0.865, 0.038
INK, FAINT, PAPER = "#22262b", "#6b7280", "#ffffff"
ESTIMATE, TRUTH, ERROR, LATENCY = "#e11d48", "#0ea5e9", "#e11d48", "#4f46e5"
UNCORRECTED, LOOP = "#f59e0b", "#16a34a"
STYLE = {
    "font.size": 11,
    "axes.edgecolor": "#c4c9d0",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "text.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
}


def report_picture(
    path: Path | str,
    *,
    report: Mapping[str, Any],
    cloud: Cloud,
    trajectory: Trajectory,
    truth: Trajectory | None = None,
    image: NDArray[np.uint8] | None = None,
    depth: NDArray[np.float32] | None = None,
    confidence: NDArray[np.float32] | None = None,
    latencies_ms: Sequence[float] = (),
    title: str = "",
    live: Trajectory | None = None,
    loops: NDArray[np.float64] | None = None,
) -> None:
    """Draw a run as a PNG of 1600 × 1000 pixels.

    Args:
        path: of the PNG.
        report: as from `evaluation.report.build_report`; the numbers under the title.
        cloud: the map in the estimate's world; may be empty.
        trajectory: T_world_camera; may be empty.
        truth: T_truth_camera; where it overlaps, map and path are aligned to it and the error is drawn.
        image, depth, confidence: (H, W, 3) uint8 RGB, (h, w) float32 and (h, w) float32 of one frame.
        latencies_ms: per processed frame.
        title: first line, for instance the name of the recording.
        live: the path as it was published, before corrections; drawn where there were any.
        loops: (N, 2, 3) positions of the two cameras of each loop in the estimate's world.
    """
    matched = _matched(trajectory, truth)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(16, 10), dpi=100, facecolor=PAPER)
        FigureCanvasAgg(figure)
        _write_title(figure, title, report)
        bottom = bool(matched) or len(latencies_ms) > 0
        floor = 0.275 if bottom else FOOT
        axes = figure.add_axes((LEFT, floor, WIDTH, HEAD - floor))
        _draw_map(axes, cloud, trajectory, truth, matched, report, live, loops)
        _draw_frame(figure, image, depth, confidence, bool(report.get("metric_scale", True)))
        if bottom:
            _draw_series(figure, matched, latencies_ms)
        figure.savefig(path)


Matched = tuple[Trajectory, Trajectory, NDArray[np.float64]]


def _matched(trajectory: Trajectory, truth: Trajectory | None) -> Matched | None:
    """Associated estimate and truth with the rigid T_truth_world, or None where they cannot be compared."""
    if truth is None:
        return None
    try:
        estimate, reference = associate(trajectory, truth)
    except DatasetError:
        return None
    return estimate, reference, alignment(estimate, reference)


def _write_title(figure: Figure, title: str, report: Mapping[str, Any]) -> None:
    figure.text(LEFT, 0.957, title or "Reconstruction", fontsize=20, weight="bold", va="center")
    figure.text(LEFT, 0.917, "   ·   ".join(_facts(report)), fontsize=12.5, color=FAINT, va="center")


def _facts(report: Mapping[str, Any]) -> list[str]:
    """The numbers that matter, in words; those not in the report are left out."""
    facts = []
    ate = report.get("ate")
    if ate:
        facts.append(f"ATE {_length(ate['se3_rmse'])} rmse over {ate['path_length']:.1f} m")
    if "tracked" in report:
        facts.append(f"{report['tracked']} of {report['frames']} frames tracked")
    for key in ("dropped", "keyframes", "loops"):
        if report.get(key) is not None:
            facts.append(f"{report[key]} {key}")
    if report.get("fps"):
        facts.append(f"{report['fps']:.1f} frames/s")
    found = report.get("cloud")
    if found:
        facts.append(f"cloud {_length(found['accuracy_median'])} / {_length(found['completeness_median'])}")
    if report.get("source"):
        facts.append(f"source {report['source']}")
    return facts


def _length(metres: float) -> str:
    if metres < 0.01:
        return f"{metres * 1000:.1f} mm"
    return f"{metres * 100:.1f} cm" if metres < 1 else f"{metres:.2f} m"


def _draw_map(
    axes: Any,
    cloud: Cloud,
    trajectory: Trajectory,
    truth: Trajectory | None,
    matched: Matched | None,
    report: Mapping[str, Any],
    live: Trajectory | None,
    loops: NDArray[np.float64] | None,
) -> None:
    """The map from above, in the frame of the truth where there is one."""
    if matched is not None and truth is not None:
        T = matched[2]
        trajectory = transformed(trajectory, T)
        live = None if live is None else transformed(live, T)
        loops = None if loops is None else se3.transform(T, loops)
        cloud = Cloud(se3.transform(T, cloud.points), cloud.colours, cloud.confidence)
    unit = "m" if report.get("metric_scale", True) else "map units"
    axes.set_title(f"Map from above: {len(cloud):,} points, {unit}")
    if len(trajectory) == 0:
        axes.text(0.5, 0.5, "no frame was tracked", ha="center", va="center", transform=axes.transAxes, color=FAINT)
        axes.set(xticks=[], yticks=[])
        return
    view = top_view(cloud, trajectory)
    axes.set_facecolor("#f6f7f9")
    axes.imshow(view.image, extent=view.extent, aspect="auto", interpolation="antialiased", zorder=1)
    halo = [withStroke(linewidth=5.5, foreground="white", alpha=0.85)]
    if matched is not None and truth is not None:
        _draw_path(axes, view, truth, TRUTH, "truth", linewidth=3.2, zorder=4, path_effects=halo)
    if loops is not None and len(loops):
        if live is not None:
            _draw_path(axes, view, live, UNCORRECTED, "as published", linewidth=1.3, zorder=4.5, linestyle=(0, (3, 2)))
        for number, ends in enumerate(se3.transform(view.T_view_world, loops)[..., :2]):
            label = None if number else "loops"
            axes.plot(*ends.T, "-o", color=LOOP, ms=3.5, linewidth=1.4, zorder=5.5, label=label)
    _draw_path(axes, view, trajectory, ESTIMATE, "estimate", linewidth=1.6, zorder=5)
    start, end = (_on_map(view, trajectory)[i] for i in (0, -1))
    axes.plot(*start, "o", ms=9, mfc="white", mec=ESTIMATE, mew=2.2, zorder=6, label="start")
    axes.plot(*end, "s", ms=8, mfc=ESTIMATE, mec="white", mew=1.5, zorder=6, label="end")
    _set_grid(axes, view)
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 0.995),
        ncol=6,
        fontsize=10.5,
        frameon=False,
        borderaxespad=0,
        columnspacing=1.6,
    )


def _on_map(view: TopView, trajectory: Trajectory) -> NDArray[np.float64]:
    on_map: NDArray[np.float64] = se3.transform(view.T_view_world, trajectory.positions)[:, :2]
    return on_map


def _draw_path(axes: Any, view: TopView, trajectory: Trajectory, colour: str, label: str, **style: Any) -> None:
    x, y = _on_map(view, trajectory).T
    axes.plot(x, y, color=colour, label=label, solid_capstyle="round", solid_joinstyle="round", **style)


def _set_grid(axes: Any, view: TopView) -> None:
    """Equal axes that fill the panel, a line every metre (or every two, five … on larger maps)."""
    x0, x1, y0, y1 = view.extent
    panel = axes.get_window_extent()
    per_pixel = max((x1 - x0) / panel.width, (y1 - y0) / panel.height)
    half_x, half_y = per_pixel * panel.width / 2, per_pixel * panel.height / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    axes.set(xlim=(x - half_x, x + half_x), ylim=(y - half_y, y + half_y))
    span = 2 * half_x
    exponent = 10.0 ** np.floor(np.log10(max(span, 1e-6) / 12))
    step = next(exponent * factor for factor in (1, 2, 5, 10) if span / (exponent * factor) <= 24)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.yaxis.set_major_locator(MultipleLocator(step))
    axes.grid(True, color="#1f2937", alpha=0.13, linewidth=0.7, zorder=2)
    axes.set_axisbelow(False)
    axes.tick_params(length=0)


def _draw_frame(
    figure: Figure,
    image: NDArray[np.uint8] | None,
    depth: NDArray[np.float32] | None,
    confidence: NDArray[np.float32] | None,
    is_metric: bool,
) -> None:
    """One frame in a column: image, depth, confidence, without gaps for what is missing."""
    panels: list[tuple[str, NDArray[Any], str | None]] = []
    if image is not None:
        panels.append(("Image", image, None))
    if depth is not None:
        panels.append((f"Depth, {'m' if is_metric else 'map units'}", depth, "turbo"))
    if confidence is not None:
        panels.append(("Confidence", confidence, "viridis"))
    height = (HEAD - FOOT - 2 * GAP) / 3
    for i, (name, values, colours) in enumerate(panels):
        axes = figure.add_axes((COLUMN, HEAD - height - i * (height + GAP), 0.232, height), anchor="NW")
        axes.set_title(name, pad=4)
        axes.set(xticks=[], yticks=[], facecolor="#e5e7eb")
        if colours is None:
            axes.imshow(values)
            continue
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, [1, 99]) if len(finite) else (0.0, 1.0)
        drawn = axes.imshow(values, cmap=colours, vmin=low, vmax=max(high, low + 1e-6))
        figure.canvas.draw()  # settles the aspect, so that the bar stands at the image's edge
        box = axes.get_position()
        bar = figure.colorbar(drawn, cax=figure.add_axes((box.x1 + 0.008, box.y0, 0.009, box.height)))
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2)


def _draw_series(figure: Figure, matched: Matched | None, latencies_ms: Sequence[float]) -> None:
    """Error over time and latency per frame, side by side, or the one there is alone."""
    both = matched is not None and len(latencies_ms) > 0
    left, width = LEFT, (WIDTH - 0.045) / 2 if both else WIDTH
    if matched is not None:
        estimate, reference, T = matched
        errors = position_errors(estimate, reference, T) * 100.0
        seconds = (estimate.stamps_ns - estimate.stamps_ns[0]) * 1e-9
        axes = figure.add_axes((left, FOOT, width, 0.14))
        axes.set_title("Position error after alignment, cm")
        rmse = float(np.sqrt(np.mean(errors**2)))
        _draw_line(axes, seconds, errors, ERROR, "time, s", [(rmse, f"rmse {rmse:.1f}")])
        left += width + 0.045
    if len(latencies_ms):
        values = np.asarray(latencies_ms, dtype=float)
        axes = figure.add_axes((left, FOOT, width, 0.14))
        axes.set_title("Latency, ms")
        p50, p95 = np.percentile(values, [50, 95])
        marks = [(p50, f"p50 {p50:.0f}"), (p95, f"p95 {p95:.0f}")]
        _draw_line(axes, np.arange(len(values)), values, LATENCY, "processed frame", marks)
        axes.set_ylim(0, 1.25 * max(float(np.percentile(values, 99)), p95) + 1e-9)


def _draw_line(
    axes: Any,
    x: NDArray[Any],
    y: NDArray[Any],
    colour: str,
    xlabel: str,
    marks: list[tuple[float, str]],
) -> None:
    axes.fill_between(x, y, color=colour, alpha=0.14, linewidth=0)
    axes.plot(x, y, color=colour, linewidth=1.3)
    axes.set(xlim=(x[0], max(x[-1], x[0] + 1e-9)), ylim=(0, 1.15 * float(np.max(y)) + 1e-9))
    axes.set_xlabel(xlabel, color=FAINT, fontsize=10)
    for value, label in marks:
        axes.axhline(value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        box = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.2}
        place = {"ha": "right", "va": "center", "fontsize": 9.5, "transform": axes.get_yaxis_transform()}
        axes.text(0.992, value, label, bbox=box, **place)
    axes.grid(True, axis="y", color="#1f2937", alpha=0.1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
