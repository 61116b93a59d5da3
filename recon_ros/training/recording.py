# SPDX-License-Identifier: Apache-2.0
"""A network of ours on a recording with depth: how wrong its depth is, frame by frame. Loads torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from recon_ros.errors import DatasetError
from recon_ros.frame import Frame
from recon_ros.geometry.grid import Grid
from recon_ros.geometry.preparation import Prepared, prepare
from recon_ros.networks.compact import Compact, CompactMemory
from recon_ros.training import samples
from recon_ros.training.commands import device_of, show_figures
from recon_ros.training.evaluate import Figure
from recon_ros.training.validate import Tracked, frame_errors
from recon_ros.training.weights import read_network

SHOWN = 8
"""Frames in a picture."""
KEPT = ("abs_rel", "delta", "abs_rel_metric", "scale", "sure", "unsure")


@dataclass(frozen=True, eq=False)
class _Row:
    """What is known of one frame."""

    stamp_ns: int
    values: dict[str, float]
    picture: NDArray[np.uint8]


def show_recording(
    path: Path,
    frames: Iterable[Frame],
    name: str,
    out: Path,
    farthest: float,
    stride: int,
    device_name: str,
    threads: int,
) -> None:
    """Measure a network on the frames of a recording of this name.

    Writes ``frames.csv``, ``worst.png``, ``usual.png`` and ``recording.json``.

    Raises:
        ReconError: network or recording cannot be used, or no frame has depth.
    """
    device = device_of(device_name)
    torch.set_num_threads(threads)
    network, facts = read_network(path, device)
    rows: list[_Row] = []
    out.mkdir(parents=True, exist_ok=True)
    with Console(stderr=True).status("recording") as status:
        for row in _rows(network, frames, farthest, stride, device):
            rows.append(row)
            status.update(f"recording: {len(rows)} frames")
    if not rows:
        raise DatasetError(f"{name}: no frame has depth below {farthest} m to compare with")
    _write(out, rows)
    means = {name: float(np.mean([row.values[name] for row in rows])) for name in KEPT}
    median = float(np.median([row.values["abs_rel"] for row in rows]))
    figures = [
        Figure("AbsRel, each image at its median's scale, mean", means["abs_rel"], 0.22),
        Figure("AbsRel, each image at its median's scale, median", median),
        Figure("share of pixels within a factor 1.25", means["delta"]),
        Figure("AbsRel, as predicted", means["abs_rel_metric"]),
        Figure("scale to the truth, median", float(np.median([row.values["scale"] for row in rows]))),
        Figure("AbsRel of the more confident half, share of the rest's", means["sure"] / means["unsure"]),
    ]
    progress = facts.get("progress", {})
    show_figures(figures, f"{path.name}, step {progress.get('step', '?')}: {name}, {len(rows)} frames")
    result = {figure.name: figure.value for figure in figures}
    (out / "recording.json").write_text(json.dumps({**result, "frames": len(rows)}, indent=1), encoding="utf-8")


def _rows(
    network: Compact, frames: Iterable[Frame], farthest: float, stride: int, device: torch.device
) -> Iterator[_Row]:
    config = network.config
    memory = network.empty(1)
    for number, frame in enumerate(frames):
        if number % stride or frame.camera is None or frame.depth is None:
            continue
        grid = covering(frame.image.shape[1], frame.image.shape[0], config.width, config.height)
        prepared = prepare(frame, grid)
        depth, confidence, memory = _step(network, memory, prepared, device)
        if prepared.depth is None:
            continue
        truth = np.nan_to_num(prepared.depth)
        errors = frame_errors(
            Tracked(depth[None], confidence[None], np.eye(4)[None]), truth[None], np.eye(4)[None], farthest
        )
        if errors:
            values = {name: getattr(errors[0], name) for name in KEPT}
            yield _Row(frame.stamp_ns, values, samples.row(prepared.image, truth, depth, confidence))


def covering(width: int, height: int, grid_width: int, grid_height: int) -> Grid:
    """The grid of a fixed size: the image is resized to cover it, and its middle is taken."""
    scale = max(grid_width / width, grid_height / height)
    resized = max(grid_width, round(width * scale)), max(grid_height, round(height * scale))
    offset = (resized[0] - grid_width) // 2, (resized[1] - grid_height) // 2
    return Grid(width, height, *resized, *offset, grid_width, grid_height)


@torch.no_grad()
def _step(
    network: Compact, memory: CompactMemory, prepared: Prepared, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32], CompactMemory]:
    """Depth, confidence and the memory after one image."""
    assert prepared.camera is not None
    K = prepared.camera.K
    camera = torch.tensor([[K[0, 0], K[1, 1], K[0, 2], K[1, 2]]], dtype=torch.float32, device=device)
    image = torch.from_numpy(prepared.image).to(device).permute(2, 0, 1)[None].float() / 255
    _, measured, _, memory = network.step(image, camera, memory)
    depth, confidence = network.full_depth(measured)
    return depth[0].cpu().numpy(), confidence[0].cpu().numpy(), memory


def _write(out: Path, rows: list[_Row]) -> None:
    with (out / "frames.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["stamp_ns", *KEPT])
        for row in rows:
            writer.writerow([row.stamp_ns, *(f"{row.values[name]:.4f}" for name in KEPT)])
    order = sorted(range(len(rows)), key=lambda i: -rows[i].values["abs_rel"])
    even = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int).tolist()
    for name, chosen in (("worst", order[:SHOWN]), ("usual", even)):
        labels = [f"{i}: {rows[i].values['abs_rel']:.3f}" for i in chosen]
        samples.write_picture(out / f"{name}.png", [rows[i].picture for i in chosen], labels)
