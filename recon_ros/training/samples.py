# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a network sees: a row a frame, with image, true depth, predicted depth, confidence and error."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from recon_ros.training.losses import NEAREST

WORST_ERROR = 0.5
"""Relative error that is shown brightest."""
GAP = 4
TITLES = ("image", "true depth", "depth (image's median)", "confidence", "relative error, 0 to 0.5")
HEAD = 18


def row(
    image: NDArray[np.uint8], truth: NDArray[np.float32], depth: NDArray[np.float32], confidence: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """(H, 5 W + gaps, 3) uint8 RGB of one frame.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) metres, 0 or NaN for none; black in the picture.
        depth: (H, W) metres; shown scaled to the truth's median.
        confidence: (H, W) in [0, 1].
    """
    truth = np.nan_to_num(truth)
    known = truth > NEAREST
    scale = float(np.median(truth[known] / depth[known])) if known.any() else 1.0
    logs = np.log(truth[known]) if known.any() else np.log(depth)
    low, high = np.percentile(logs, (2, 98))
    span = max(high - low, 0.1)

    def shown(metres: NDArray[np.float32]) -> NDArray[np.uint8]:
        return colours(1 - (np.log(np.maximum(metres, 1e-3)) - low) / span, cv2.COLORMAP_TURBO)

    error = np.zeros_like(truth)
    error[known] = np.abs(depth[known] * scale / truth[known] - 1) / WORST_ERROR
    hidden = ~known[..., None]
    panels = [
        image,
        np.where(hidden, 0, shown(truth)),
        shown(depth * scale),
        colours(confidence, cv2.COLORMAP_VIRIDIS),
        np.where(hidden, 0, colours(error, cv2.COLORMAP_INFERNO)),
    ]
    gap = np.full((len(image), GAP, 3), 255, dtype=np.uint8)
    parts = [part for panel in panels for part in (panel.astype(np.uint8), gap)]
    return np.concatenate(parts[:-1], axis=1)


def colours(values: NDArray, colour_map: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of values in [0, 1]."""
    grey = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, colour_map), cv2.COLOR_BGR2RGB)


def write_picture(path: Path, rows: list[NDArray[np.uint8]], labels: list[str] | None = None) -> None:
    """Write rows below each other as a PNG, under the columns' titles, with a label on each."""
    width = rows[0].shape[1]
    head = np.full((HEAD, width, 3), 255, dtype=np.uint8)
    each = (width + GAP) // len(TITLES)
    for i, title in enumerate(TITLES):
        cv2.putText(head, title, (i * each + 3, HEAD - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (40, 40, 40), 1, cv2.LINE_AA)
    parts = [head]
    for i, picture in enumerate(rows):
        picture = np.ascontiguousarray(picture)
        if labels:
            for colour, thick in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                cv2.putText(picture, labels[i], (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, thick, cv2.LINE_AA)
        parts += [picture, np.full((GAP, width, 3), 255, dtype=np.uint8)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(parts[:-1]), cv2.COLOR_RGB2BGR))
