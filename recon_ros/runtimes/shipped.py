# SPDX-License-Identifier: Apache-2.0
"""Exported graphs that come with this package, beside the model cards: nothing is fetched or exported for them."""

from __future__ import annotations

from pathlib import Path

from recon_ros.networks.card import ModelCard
from recon_ros.resources import share_file
from recon_ros.runtimes.bundle import PLAN


def shipped_folder(card: ModelCard, width: int, height: int, precision: str, models: Path | None = None) -> Path:
    """Where the graphs of a network for images of this size would lie, whether they are there or not.

    Args:
        card: of the network.
        width, height: of the image, pixels.
        precision: of the graphs.
        models: folder of the cards; that of the installation when None.
    """
    return (models or share_file("models")) / card.name / f"{width}x{height}_{precision}"


def find_shipped(card: ModelCard, width: int, height: int, precision: str) -> Path | None:
    """`shipped_folder` if graphs are in it."""
    folder = shipped_folder(card, width, height, precision)
    return folder if (folder / PLAN).is_file() else None


def shipped_sizes(card: ModelCard, precision: str) -> tuple[tuple[int, int], ...]:
    """(width, height) for which graphs of a network come with this package."""
    found = []
    for folder in sorted((share_file("models") / card.name).glob(f"*x*_{precision}")):
        width, _, height = folder.name.partition("_")[0].partition("x")
        if width.isdigit() and height.isdigit() and (folder / PLAN).is_file():
            found.append((int(width), int(height)))
    return tuple(found)
