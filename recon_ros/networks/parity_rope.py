# SPDX-License-Identifier: Apache-2.0
"""Parity cases of the position encodings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recon_ros.networks.parity import Arrays, Fixture
from recon_ros.networks.rope import rope_2d


def build(fixture: Fixture) -> nn.Module:
    """Nothing has weights here."""
    return nn.Identity()


def run(fixture: Fixture, network: nn.Module, case: str) -> Arrays:
    if case == "sincos":
        return {name: sine_cosine_table(name) for name in fixture.expected(case)}
    settings, given = fixture.config["cases"][case], fixture.given(case)
    # F0 scales the lowest frequency, which is the same as scaling the positions.
    at = given["pos"] * settings["F0"]
    with_minus_one = given["pos_with_minus1"] * settings["F0"]
    rotated = rope_2d(given["tokens"], at, settings["base"])
    return {
        "pytorch": rotated,
        "curope": rotated,
        "curope_minus1": rope_2d(given["tokens"], with_minus_one, settings["base"]),
    }


def compared(fixture: Fixture, case: str, name: str, expected: NDArray[Any]) -> NDArray[np.bool_] | None:
    return None


def sine_cosine_table(name: str) -> Tensor:
    """The table of a grid, ``<rows>x<columns>_d<width>`` → (rows · columns, width).

    None of our networks has one; CroCo, their ancestor, can. The first half of the width tells the column, the
    second the row, each as sines and then cosines of the position times 10000^(−i / (width / 4)).
    """
    grid, width = name.split("_d")
    rows, columns = map(int, grid.split("x"))
    quarter = int(width) // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (column, row)]
    return torch.cat([table(angle) for angle in angles for table in (torch.sin, torch.cos)], dim=1).float()
