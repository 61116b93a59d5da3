# SPDX-License-Identifier: Apache-2.0
"""The training of the compact network: steps, checkpoints, and the end of it when somebody asks for one.

Every step seeds its own random generators from the seed and the step's number, so that nothing of a generator needs to
be kept, and a training that goes on from a checkpoint does what it would have done.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from recon_ros.errors import NetworkError
from recon_ros.networks.compact import Compact
from recon_ros.training import checkpoints, samples
from recon_ros.training.batches import Batch, Prefetch, Shards, exposed, mirrored
from recon_ros.training.checkpoints import Average, Checkpoint, Progress
from recon_ros.training.curriculum import Stage
from recon_ros.training.log import Board, CsvLog
from recon_ros.training.losses import LossWeights
from recon_ros.training.settings import Settings, plain
from recon_ros.training.unroll import unroll
from recon_ros.training.validate import held_out, track, validate
from recon_ros.training.weights import write_network

MOST_SKIPPED = 50
"""Steps in a row that may be skipped before the training is given up."""
VALIDATION = (
    "abs_rel",
    "delta",
    "abs_rel_sequence",
    "abs_rel_metric",
    "sure_to_unsure",
    "rotation_deg",
    "rotation_deg_mean",
    "translation",
    "translation_mean",
    "frames",
)
SHOWN = ("loss", *LossWeights.names(), "norm", "rate", "sequence_frames", "frames_per_s")
NETWORK = "network.safetensors"
FACTORS, FACTORS_GAIN = ("direct", "log_temperature"), 10.0
"""Parameters that multiply, and how much faster they are learned."""

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Where batches come from: shards on the disk, or a GPU that draws them."""

    def draw(self, seed: int, step: int, batch: int, frames: int) -> Batch:
        """The batch of a step, the same one each time."""

    def __len__(self) -> int:
        """Number of sequences; changes when there are more."""


@dataclass(frozen=True)
class Status:
    """What is told of a running training, every few steps.

    Attributes:
        progress: how far it is.
        share: of the training that is done.
        left: seconds to go, as it looks.
        terms: the latest losses and figures, averaged since the last time.
    """

    progress: Progress
    share: float
    left: float
    terms: Mapping[str, float]


class Trainer:
    """One training.

    Args:
        network: to be trained, on its device; what does not ask for a gradient stays as it is.
        settings: see there.
        folder: of checkpoints, logs and pictures.
        open_data: opens the training data; called again at each checkpoint, so that shards that were made meanwhile
            are used, too.
        open_held_out: opens the held-out data, or gives None when there is none yet.
        resume: go on from the newest checkpoint in the folder.

    Raises:
        NetworkError: no checkpoint to go on from, or one of another network; or a training that is there already.
    """

    def __init__(
        self,
        network: Compact,
        settings: Settings,
        folder: Path,
        open_data: Callable[[], Source],
        open_held_out: Callable[[], Shards | None],
        resume: bool = False,
    ) -> None:
        self.network, self.settings, self.folder = network, settings, Path(folder)
        self.device = next(network.parameters()).device
        self._open_data, self._open_held_out = open_data, open_held_out
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.optimizer = _optimizer(self.parameters, settings)
        self.progress = Progress()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._checkpoints = self.folder / "checkpoints"
        self.average = Average.of(self.parameters, settings.average)
        if resume:
            self._resume(checkpoints.latest(self._checkpoints))
        elif checkpoints.find_all(self._checkpoints):
            raise NetworkError(f"{self.folder} holds a training already; go on with --resume, or choose another folder")
        step = self.progress.step
        self._log = CsvLog(self.folder / "train.csv", SHOWN, step)
        self._scores = CsvLog(self.folder / "validation.csv", VALIDATION, step)
        self._board = Board(self.folder / "tensorboard", step)
        self.stop = False
        self._skipped_in_a_row = 0

    def run(self, say: Callable[[Status], None] = lambda status: None) -> bool:
        """Train to the end, or until `stop` is set; whether it is the end. A checkpoint is there in both cases.

        Raises:
            NetworkError: too many steps in a row gave nothing finite.
            DatasetError: the data cannot be used.
        """
        settings, progress = self.settings, self.progress
        source = self._open_data()
        feed = self._feed(source)
        saved = validated = began = time.monotonic()
        sums, frames = _Sums(), progress.frames
        try:
            while not self.stop and self._share() < 1:
                start = time.monotonic()
                sums.add(self._step(feed.next().to(self.device)))
                now = time.monotonic()
                progress.seconds += now - start
                if progress.step % settings.log_every == 0:
                    self._report({**sums.means(), "frames_per_s": (progress.frames - frames) / (now - began)}, say)
                    sums, frames = _Sums(), progress.frames
                    began = time.monotonic()
                if progress.step % settings.sample_every == 0:
                    self._draw_samples(source)
                if now - validated > 60 * settings.validate_every:
                    self._validate()
                    validated = time.monotonic()
                if now - saved > 60 * settings.checkpoint_every:
                    self._save(len(source))
                    source, feed = self._refreshed(source, feed)
                    saved = time.monotonic()
        finally:
            feed.close()
        over = self._share() >= 1
        if over:
            self._validate()
            self._draw_samples(source)
        self._save(len(source))
        return over

    # -- one step --------------------------------------------------------------------------------------------

    def _stage(self, step: int) -> Stage:
        return self.settings.curriculum.at(step, self._share(step))

    def _share(self, step: int | None = None) -> float:
        return self.settings.share(self.progress.step if step is None else step, self.progress.seconds)

    def _step(self, batch: Batch) -> dict[str, float]:
        """One step; its losses and figures."""
        settings, progress = self.settings, self.progress
        stage = self._stage(progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * stage.rate * group["gain"]
        self.optimizer.zero_grad(set_to_none=True)
        self.network.train()
        if not any(p.requires_grad for p in self.network.encoder.parameters()):
            self.network.encoder.eval()  # frozen is frozen, its running means too
        torch.manual_seed(_mixed(settings.seed, progress.step))
        generator = torch.Generator().manual_seed(_mixed(settings.seed + 1, progress.step))
        terms: dict[str, float] = {}
        finite = True
        for segment in unroll(
            self.network, batch, stage, settings.weights, generator, settings.truncate, settings.half
        ):
            finite = bool(torch.isfinite(segment.loss))
            if not finite:
                break
            segment.loss.backward()
            for name, value in (*segment.terms.items(), ("loss", float(segment.loss.detach()))):
                terms[name] = terms.get(name, 0.0) + value
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip)) if finite else float("nan")
        progress.step += 1
        progress.frames += batch.images.shape[0] * batch.frames
        if not np.isfinite(norm):
            self._skip()
            return {}
        self._skipped_in_a_row = 0
        self.optimizer.step()
        self.average.update(self.parameters, progress.step)
        return {**terms, "norm": norm, "rate": settings.rate * stage.rate, "sequence_frames": float(batch.frames)}

    def _skip(self) -> None:
        self.progress.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row > MOST_SKIPPED:
            raise NetworkError(
                f"{MOST_SKIPPED} steps in a row gave no finite gradient (step {self.progress.step}); go on from a "
                "checkpoint with a lower --rate"
            )

    # -- data ------------------------------------------------------------------------------------------------

    def _feed(self, source: Source) -> Prefetch:
        settings = self.settings

        def make(step: int) -> Batch:
            batch = source.draw(settings.seed, step, settings.batch, self._stage(step).frames)
            generator = np.random.default_rng([settings.seed, step, 1])
            if generator.random() < 0.5 and batch.f8 is None:
                batch = mirrored(batch)
            return exposed(batch, generator)

        return Prefetch(make, self.progress.step)

    def _refreshed(self, source: Source, feed: Prefetch) -> tuple[Source, Prefetch]:
        """Data and feed again when there are more data."""
        newer = self._open_data()
        if len(newer) == len(source):
            return source, feed
        feed.close()
        logger.info("training data: %d sequences now, %d before", len(newer), len(source))
        return newer, self._feed(newer)

    # -- what is seen of it ----------------------------------------------------------------------------------

    def _report(self, terms: dict[str, float], say: Callable[[Status], None]) -> None:
        progress = self.progress
        self._log.add(progress.step, terms)
        self._board.add(progress.step, "train", terms)
        share = self._share()
        left = progress.seconds * (1 - share) / share if share > 0 else float("inf")
        say(Status(progress, share, left, terms))

    def _validate(self) -> None:
        shards = self._open_held_out()
        if shards is None:
            return
        with self.averaged():
            scores = validate(self.network, shards, self.settings.validate_on, self.device)
        self._scores.add(self.progress.step, scores)
        self._board.add(self.progress.step, "validation", scores)
        shown = ", ".join(f"{name} {scores[name]:.3f}" for name in VALIDATION[:-1])
        logger.info("step %d, held out: %s", self.progress.step, shown)
        if scores["abs_rel"] < self.progress.best:
            self.progress.best = scores["abs_rel"]
            self._write_network(self.folder / "best.safetensors")

    def _draw_samples(self, source: Source) -> None:
        shards = self._open_held_out()
        batches = [batch for _, batch in held_out(shards, 3)] if shards else [source.draw(0, 0, 1, 4)]
        rows = []
        with self.averaged():
            for batch in batches:
                tracked = track(self.network, batch.to(self.device))[0]
                for t in sorted({0, batch.frames // 2, batch.frames - 1}):
                    image = (batch.images[0, t].permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
                    rows.append(
                        samples.row(image, batch.depth[0, t].cpu().numpy(), tracked.depth[t], tracked.confidence[t])
                    )
        samples.write_picture(self.folder / "samples" / f"step_{self.progress.step:08d}.png", rows)

    # -- what stays of it ------------------------------------------------------------------------------------

    def averaged(self) -> _Averaged:
        """A context in which the network has the averaged weights."""
        return _Averaged(self.network, self.parameters, self.average.values)

    def _save(self, sequences: int) -> None:
        self.progress.sequences = sequences
        first, second = checkpoints.pack_moments(self.optimizer, self.parameters)
        tensors = {
            "weights": dict(self.parameters),
            "average": self.average.values,
            "first": first,
            "second": second,
        }
        checkpoints.write(self._checkpoints, Checkpoint(self.progress, self._facts(), tensors), self.settings.keep)
        self._write_network(self.folder / NETWORK)
        self._board.flush()

    def _facts(self) -> dict:
        return {"training": plain(self.settings), "network": plain(self.network.config)}

    def _write_network(self, path: Path) -> None:
        """The network with averaged weights."""
        with self.averaged():
            write_network(self.network, path, {"progress": vars(self.progress), "training": plain(self.settings)})

    def _resume(self, folder: Path) -> None:
        checkpoint = checkpoints.read(folder)
        mine = json.loads(json.dumps(plain(self.network.config)))
        theirs = checkpoint.settings["network"]
        if mine != theirs:
            differing = [
                f"{key}: {theirs.get(key)} there, {value} here"
                for key, value in mine.items()
                if theirs.get(key) != value
            ]
            raise NetworkError(f"{folder} is of another network ({'; '.join(differing)}); choose the same options")
        _load(self.parameters, checkpoint.tensors["weights"], folder)
        _load(self.average.values, checkpoint.tensors["average"], folder)
        first, second = checkpoint.tensors["first"], checkpoint.tensors["second"]
        checkpoints.unpack_moments(self.optimizer, self.parameters, first, second)
        self.progress = checkpoint.progress


class _Averaged:
    """Swaps parameters for their averages, and back."""

    def __init__(
        self, network: nn.Module, parameters: Mapping[str, nn.Parameter], average: Mapping[str, Tensor]
    ) -> None:
        self._network, self._parameters, self._average = network, parameters, average

    def __enter__(self) -> None:
        self._network.eval()
        self._own = {name: parameter.data for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.data = self._average[name]

    def __exit__(self, *problem: object) -> None:
        for name, parameter in self._parameters.items():
            parameter.data = self._own[name]


class _Sums:
    """Means of figures over steps."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}


def _optimizer(parameters: Mapping[str, nn.Parameter], settings: Settings) -> torch.optim.AdamW:
    """AdamW; biases, norms and single numbers do not decay, and factors, which have far to go, go faster."""
    factors = [p for name, p in parameters.items() if name.rpartition(".")[2] in FACTORS]
    others = [p for name, p in parameters.items() if name.rpartition(".")[2] not in FACTORS]
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": settings.decay, "gain": 1.0},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0, "gain": 1.0},
        {"params": factors, "weight_decay": 0.0, "gain": FACTORS_GAIN},
    ]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98))


@torch.no_grad()
def _load(target: Mapping[str, Tensor], source: Mapping[str, Tensor], folder: Path) -> None:
    if set(target) != set(source):
        differing = sorted(set(target) ^ set(source))
        raise NetworkError(f"{folder} has other weights than the network: {', '.join(differing[:5])}")
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _mixed(seed: int, step: int) -> int:
    """A seed of a step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
