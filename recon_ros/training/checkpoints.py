# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training: numbers in safetensors, facts in JSON, nothing that is unpickled.

A checkpoint is a folder ``step_00001234`` with ``weights``, ``average`` (EMA), ``first`` and ``second`` (AdamW's
moments) as safetensors, and ``state.json``. It is written beside its place, synced and renamed: it is whole or not
there. Weights of the frozen encoder are not in it; they come from where they came from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recon_ros.disk import sync, sync_folder
from recon_ros.errors import NetworkError

STATE = "state.json"
_NAME = re.compile(r"step_(\d{8})")
PARTS = ("weights", "average", "first", "second")


@dataclass
class Average:
    """An exponential moving average of parameters: smoother than the last step's, and better.

    Attributes:
        decay: kept of the average at each step; less at the beginning, so that it forgets the initial numbers.
        values: name → the average.
    """

    decay: float
    values: dict[str, Tensor]

    @staticmethod
    def of(parameters: Mapping[str, nn.Parameter], decay: float) -> Average:
        """An average that begins with the parameters as they are."""
        return Average(decay, {name: parameter.detach().clone() for name, parameter in parameters.items()})

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Take in the parameters after a step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in parameters.values()], 1 - decay)


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: steps done.
        frames: frames seen.
        seconds: time trained, pauses not counted.
        skipped: steps not taken because loss or gradient was not finite.
        best: lowest validation error so far.
        sequences: of the training data when the checkpoint was written.
    """

    step: int = 0
    frames: int = 0
    seconds: float = 0.0
    skipped: int = 0
    best: float = float("inf")
    sequences: int = 0


@dataclass
class Checkpoint:
    """Everything that training goes on from.

    Attributes:
        progress: how far it is.
        settings: of the training and of the network, for comparison.
        tensors: part → name → tensor; the parts are `PARTS`.
    """

    progress: Progress
    settings: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def write(root: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint below `root`; of older ones the newest stay, `keep` with this one.

    Raises:
        OSError: the disk does not take it.
    """
    target = root / f"step_{checkpoint.progress.step:08d}"
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in PARTS:
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in checkpoint.tensors[name].items()}
        save_file(tensors, part / f"{name}.safetensors")
    facts = {"progress": vars(checkpoint.progress), "settings": checkpoint.settings}
    (part / STATE).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    sync_folder(part)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    sync(root)
    for old in find_all(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        NetworkError: it is not there, or damaged.
    """
    try:
        facts = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tensors = {name: load_file(folder / f"{name}.safetensors") for name in PARTS}
        return Checkpoint(Progress(**facts["progress"]), facts["settings"], tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise NetworkError(
            f"{folder} is no whole checkpoint: {error}; remove it to go on from the one before"
        ) from error


def find_all(root: Path) -> list[Path]:
    """Whole checkpoints below a folder, the oldest first."""
    return sorted(path for path in root.glob("step_*") if _NAME.fullmatch(path.name) and (path / STATE).is_file())


def latest(root: Path) -> Path:
    """The newest checkpoint below a folder.

    Raises:
        NetworkError: there is none.
    """
    found = find_all(root)
    if not found:
        raise NetworkError(f"{root} holds no checkpoint to go on from; leave --resume out to begin")
    return found[-1]


def pack_moments(
    optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """AdamW's moments by the parameters' names; empty before the first step."""
    states = {name: optimizer.state.get(parameter) for name, parameter in parameters.items()}
    first = {name: state["exp_avg"] for name, state in states.items() if state}
    second = {name: state["exp_avg_sq"] for name, state in states.items() if state}
    # The count of steps is one a parameter: those that had no gradient in a step have fewer.
    counts = {f"{name}/step": torch.as_tensor(state["step"]).float() for name, state in states.items() if state}
    return first, {**second, **counts}


def unpack_moments(
    optimizer: torch.optim.AdamW,
    parameters: Mapping[str, nn.Parameter],
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
) -> None:
    """Give an optimizer its moments back.

    Raises:
        NetworkError: the moments are of other parameters.
    """
    for name, moment in first.items():
        if name not in parameters or parameters[name].shape != moment.shape:
            raise NetworkError(f"the checkpoint's optimizer knows {name} {tuple(moment.shape)}, the network does not")
        parameter = parameters[name]
        optimizer.state[parameter] = {
            "step": second[f"{name}/step"].clone(),
            "exp_avg": moment.to(parameter.device),
            "exp_avg_sq": second[name].to(parameter.device),
        }
