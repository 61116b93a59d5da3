# SPDX-License-Identifier: Apache-2.0
"""The figures that a network of ours is judged by, on scenes that were never trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recon_ros.networks.compact import Compact
from recon_ros.training import samples
from recon_ros.training.batches import Batch, Shards
from recon_ros.training.validate import FrameErrors, Tracked, frame_errors, held_out, summary, track


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: what is measured.
        value: the figure.
        bound: what it should be at most, or at least where `more` says so; None where nothing is asked.
        more: more is better.
    """

    name: str
    value: float
    bound: float | None = None
    more: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the bound is kept; None where there is none."""
        if self.bound is None:
            return None
        return bool(self.value >= self.bound if self.more else self.value <= self.bound)


def held_out_figures(scores: dict[str, float]) -> list[Figure]:
    """The table of a summary on held-out scenes."""
    return [
        Figure("AbsRel, each image at its median's scale", scores["abs_rel"], 0.10),
        Figure("share of pixels within a factor 1.25", scores["delta"], 0.90, more=True),
        Figure("AbsRel, one scale a sequence", scores["abs_rel_sequence"]),
        Figure("AbsRel, as predicted", scores["abs_rel_metric"]),
        Figure("rotation error of a keyframe's step, median, degrees", scores["keyframe_rotation_deg"], 2.0),
        Figure("rotation error of a frame's step, median, degrees", scores["rotation_deg"]),
        Figure("rotation error of a frame's step, mean, degrees", scores["rotation_deg_mean"]),
        Figure("translation error of a keyframe's step, median, share", scores["keyframe_translation"], 0.05),
        Figure("translation error of a frame's step, median, share", scores["translation"]),
        Figure("translation error of a frame's step, mean, share", scores["translation_mean"]),
        Figure("AbsRel of the more confident half, share of the rest's", scores["sure_to_unsure"], 0.6),
    ]


@dataclass(frozen=True, eq=False)
class Shown:
    """A frame to be put into a picture, with its error."""

    error: float
    label: str
    row: NDArray[np.uint8]


def evaluate_held_out(
    network: Compact,
    shards: Shards,
    count: int,
    device: torch.device,
    pictures: Path | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """The summary over `count` held-out sequences (0: all); worst and usual frames as pictures.

    Args:
        network: in evaluation mode, on `device`.
        shards: held-out sequences.
        count: how many.
        device: of the network.
        pictures: folder for ``held_out_worst.png`` and ``held_out_usual.png``.
        tell: hears how many sequences are done.
    """
    errors: list[FrameErrors] = []
    worst: list[Shown] = []
    usual: list[Shown] = []
    for done, (index, batch) in enumerate(held_out(shards, count)):
        tracked = track(network, batch.to(device))[0]
        found = frame_errors(tracked, batch.depth[0].numpy(), batch.T_anchor_camera[0].numpy())
        errors += found
        if pictures is not None and len(found) == batch.frames:
            t = int(np.argmax([error.abs_rel for error in found]))
            worst.append(_shown(batch, tracked, t, found[t], index))
            worst = sorted(worst, key=lambda shown: -shown.error)[:8]
            if len(usual) < 8:
                usual.append(_shown(batch, tracked, batch.frames - 1, found[-1], index))
        tell(done + 1)
    if pictures is not None:
        for name, chosen in (("worst", worst), ("usual", usual)):
            if chosen:
                rows, labels = [shown.row for shown in chosen], [shown.label for shown in chosen]
                samples.write_picture(pictures / f"held_out_{name}.png", rows, labels)
    return summary(errors)


def _shown(batch: Batch, tracked: Tracked, t: int, error: FrameErrors, index: int) -> Shown:
    image = (batch.images[0, t].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    row = samples.row(image, batch.depth[0, t].numpy(), tracked.depth[t], tracked.confidence[t])
    return Shown(error.abs_rel, f"{index}/{t}: {error.abs_rel:.3f}", row)
