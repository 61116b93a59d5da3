# SPDX-License-Identifier: Apache-2.0
"""Figures of a training: a CSV file, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class CsvLog:
    """A CSV file with a row per entry; `step` is the first column.

    Going on from a checkpoint drops the rows after it, so that every step is there once.

    Args:
        path: of the file; made when missing.
        columns: the others than ``step``.
        step: steps done by the checkpoint that is gone on from.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        self.path = path
        self.columns = ("step", *columns)
        kept = [row for row in self._rows() if int(row["step"]) <= step]
        part = path.with_suffix(".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(part, path)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row; what is not given stays empty."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            row = [step, *(f"{values[name]:.6g}" if name in values else "" for name in self.columns[1:])]
            csv.writer(file).writerow(row)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            # A row that the power took in the middle is none.
            return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]


class Board:
    """TensorBoard's file, or nothing where TensorBoard is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Add scalars."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def flush(self) -> None:
        """Have everything written."""
        if self._writer is not None:
            self._writer.flush()
