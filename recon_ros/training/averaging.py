# SPDX-License-Identifier: Apache-2.0
"""Trainings that went apart from one checkpoint become one again: what two processes do in place of a larger batch.

Averaging weights every few hundred steps instead of gradients every step costs next to no communication, and processes
need not be equally fast (local SGD, Stich 2019; Lin et al., "Don't use large mini-batches, use local SGD", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from recon_ros.errors import NetworkError
from recon_ros.training import checkpoints
from recon_ros.training.checkpoints import PARTS, Checkpoint

AVERAGED = "averaged_at.txt"
"""Of a run's folder: the step of the last average."""


def average(runs: Sequence[Path], keep: int = 4) -> int:
    """Write the average of the runs' newest checkpoints into each, weighed by their steps since the last time.

    Weights, their moving averages and the optimizer's moments are averaged; where a parameter had no gradient yet in
    one run, that of the others stands. Progress is that of the run that is farthest, one step more: the average is a
    checkpoint of its own.

    Args:
        runs: folders of trainings of one network, two or more.
        keep: checkpoints that stay in each.

    Returns:
        The step of the new checkpoint.

    Raises:
        NetworkError: fewer than two runs, a run without a checkpoint, networks that differ, or nothing new in any.
    """
    if len(runs) < 2:
        raise NetworkError(f"an average is of two runs or more, not of {len(runs)}")
    roots = [run / "checkpoints" for run in runs]
    newest = [checkpoints.read(checkpoints.latest(root)) for root in roots]
    if any(checkpoint.settings["network"] != newest[0].settings["network"] for checkpoint in newest):
        raise NetworkError(f"{', '.join(map(str, runs))} are trainings of different networks")
    began = _last_average(runs)
    steps = [max(checkpoint.progress.step - began, 0) for checkpoint in newest]
    if not any(steps):
        raise NetworkError(f"none of {', '.join(map(str, runs))} has learned anything since the last average")
    shares = [count / sum(steps) for count in steps]
    farthest = max((checkpoint.progress for checkpoint in newest), key=lambda progress: progress.step)
    progress = replace(farthest, step=farthest.step + 1, seconds=max(c.progress.seconds for c in newest))
    tensors = {part: _mean([checkpoint.tensors[part] for checkpoint in newest], shares) for part in PARTS}
    for run, root, checkpoint in zip(runs, roots, newest, strict=True):
        checkpoints.write(root, Checkpoint(progress, checkpoint.settings, tensors), keep)
        (run / AVERAGED).write_text(f"{progress.step}\n", encoding="utf-8")
    return progress.step


def _last_average(runs: Sequence[Path]) -> int:
    """The step of the checkpoint that all began from; before the first average, the newest that all have."""
    try:
        return max(int((run / AVERAGED).read_text(encoding="utf-8")) for run in runs)
    except (OSError, ValueError):
        steps = [{int(path.name[5:]) for path in checkpoints.find_all(run / "checkpoints")[:-1]} for run in runs]
        return max(set.intersection(*steps), default=0)


def _mean(parts: Sequence[dict], shares: Sequence[float]) -> dict:
    names = sorted(set().union(*(part for part, share in zip(parts, shares, strict=True) if share > 0)))
    mean = {}
    for name in names:
        having = [(part[name], share) for part, share in zip(parts, shares, strict=True) if name in part and share > 0]
        total = sum(share for _, share in having)
        mean[name] = sum(tensor.float() * (share / total) for tensor, share in having).to(having[0][0].dtype)
    return mean
