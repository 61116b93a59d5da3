# SPDX-License-Identifier: Apache-2.0
"""What the commands of `recon train` do. Loads torch."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from recon_ros.errors import ConfigError
from recon_ros.networks.compact import DESCRIPTORS, Compact, CompactConfig
from recon_ros.training.batches import Shards, finished
from recon_ros.training.curriculum import Curriculum
from recon_ros.training.drawn import Drawn
from recon_ros.training.evaluate import Figure, evaluate_held_out, held_out_figures
from recon_ros.training.initial import write_initial
from recon_ros.training.loop import Source, Status, Trainer
from recon_ros.training.settings import Settings
from recon_ros.training.weights import load_encoder, read_network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wishes:
    """The options of `recon train`, see there."""

    folder: Path | None
    data: Path | None
    held_out: Path | None
    resume: bool
    steps: int | None
    minutes: float | None
    batch: int
    frames: str
    rate: float
    seed: int
    truncate: int
    device: str
    threads: int
    half: bool | None
    encoder: str
    encoder_weights: Path | None
    start: Path | None
    rays: bool
    memory: bool
    checkpoint_minutes: float
    validate_minutes: float
    keep: int


def run_training(wishes: Wishes, console: Console) -> None:
    """Train, with progress on a console.

    Raises:
        ReconError: see `Trainer`.
    """
    if wishes.folder is None:
        raise ConfigError("a training needs a folder for its checkpoints: --run DIR")
    device = device_of(wishes.device)
    torch.set_num_threads(wishes.threads)
    settings = _settings(wishes, device)
    with ExitStack() as stack:
        network = _network(wishes, device)
        trainer = Trainer(
            network,
            settings,
            wishes.folder,
            _data_opener(wishes, network, device, stack),
            lambda: _open_held_out(wishes),
            wishes.resume,
        )
        total = sum(p.numel() for p in network.parameters()) / 1e6
        learned = sum(p.numel() for p in trainer.parameters.values()) / 1e6
        logger.info("%s, %.2f M parameters, %.2f M of them learned, on %s", wishes.encoder, total, learned, device)
        with _stopping(trainer), _telling(console, trainer.progress.step) as tell:
            over = trainer.run(tell)
    state = "done" if over else "stopped; go on with --resume"
    console.print(f"{state}: step {trainer.progress.step}, {wishes.folder}", highlight=False, soft_wrap=True)


def device_of(name: str) -> torch.device:
    """The device an option names; ``auto`` is a GPU where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    return torch.device(name)


def _settings(wishes: Wishes, device: torch.device) -> Settings:
    shortest, longest = _frames(wishes.frames)
    half = device.type == "cuda" if wishes.half is None else wishes.half
    return Settings(
        steps=wishes.steps,
        minutes=wishes.minutes,
        batch=wishes.batch,
        seed=wishes.seed,
        rate=wishes.rate,
        truncate=wishes.truncate,
        half=half,
        curriculum=Curriculum(shortest=shortest, longest=longest),
        checkpoint_every=wishes.checkpoint_minutes,
        validate_every=wishes.validate_minutes,
        keep=wishes.keep,
    )


def _frames(text: str) -> tuple[int, int]:
    """Shortest and longest sequence from ``2..8`` or ``4``."""
    first, separator, last = text.partition("..")
    try:
        shortest, longest = int(first), int(last if separator else first)
    except ValueError as error:
        raise ConfigError(f"--frames {text} is neither a number nor two, as in 2..8") from error
    if not 1 <= shortest <= longest:
        raise ConfigError(f"--frames {text}: it takes at least one frame, and not fewer at the end")
    return shortest, longest


def _network(wishes: Wishes, device: torch.device) -> Compact:
    torch.manual_seed(wishes.seed)
    config = CompactConfig(encoder=wishes.encoder, rays=wishes.rays, memory=wishes.memory)
    if config.encoder not in DESCRIPTORS:
        raise ConfigError(f"--encoder {config.encoder} is not one of {', '.join(DESCRIPTORS)}")
    if wishes.data is not None:
        height, width = Shards(wishes.data, None).size
        config = replace(config, height=height, width=width)
    network = Compact(config)
    if wishes.start is not None:
        other, _ = read_network(wishes.start, torch.device("cpu"))
        if other.config != network.config:
            raise ConfigError(f"--from {wishes.start} is of another network: {other.config}")
        network = other
    elif wishes.encoder != "scratch":
        load_encoder(network, _encoder_weights(wishes))
    network.encoder.requires_grad_(wishes.encoder == "scratch")
    return network.to(device, memory_format=torch.channels_last)  # convolutions are faster in this order


def _encoder_weights(wishes: Wishes) -> Path:
    if wishes.encoder_weights is not None:
        return wishes.encoder_weights
    assert wishes.folder is not None
    path = wishes.folder / f"{wishes.encoder}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_initial(wishes.encoder, path, say=logger.info)
    return path


def _data_opener(wishes: Wishes, network: Compact, device: torch.device, stack: ExitStack) -> Callable[[], Source]:
    data = wishes.data
    if data is not None:
        return lambda: Shards(data, wishes.encoder)
    if device.type != "cuda":
        raise ConfigError("without a GPU a training needs rendered scenes: --data DIR")
    drawn = Drawn(network.config.width, network.config.height, device=device.type)
    stack.callback(drawn.close)
    return lambda: drawn


def _open_held_out(wishes: Wishes) -> Shards | None:
    if wishes.held_out is None or not finished(wishes.held_out):
        return None
    return Shards(wishes.held_out, wishes.encoder)


@contextmanager
def _stopping(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and SIGINT ask the training to write a checkpoint and end; a second one ends it at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _telling:
    """Progress: a bar in a terminal, lines in a file."""

    def __init__(self, console: Console, first: int) -> None:
        self._console = console
        columns = (
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %  loss {task.fields[loss]}  {task.fields[speed]} frames/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=1.0, step=first, loss="–", speed="–")

    def __enter__(self) -> _telling:
        self._bar.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._bar.stop()

    def __call__(self, status: Status) -> None:
        terms = status.terms
        loss, speed = f"{terms.get('loss', float('nan')):.3f}", f"{terms.get('frames_per_s', 0):.1f}"
        self._bar.update(self._task, completed=status.share, step=status.progress.step, loss=loss, speed=speed)
        if not self._console.is_terminal:
            others = "  ".join(
                f"{name} {value:.3g}" for name, value in terms.items() if name not in ("loss", "frames_per_s")
            )
            self._console.print(
                f"step {status.progress.step}  {100 * status.share:.1f} %  loss {loss}  {speed} frames/s  "
                f"{status.left / 60:.0f} min left  skipped {status.progress.skipped}  {others}",
                highlight=False,
                soft_wrap=True,
            )


def show_held_out(path: Path, held_out: Path, out: Path | None, sequences: int, device_name: str, threads: int) -> None:
    """Measure a network on held-out scenes.

    Raises:
        ReconError: network or scenes cannot be used.
    """
    device = device_of(device_name)
    torch.set_num_threads(threads)
    network, facts = read_network(path, device)
    shards = Shards(held_out, network.config.encoder)
    total = min(sequences, len(shards)) if sequences else len(shards)
    console = Console(stderr=True)
    with console.status("held-out scenes") as status:
        scores = evaluate_held_out(
            network, shards, sequences, device, out, lambda done: status.update(f"held-out scenes: {done} of {total}")
        )
    progress = facts.get("progress", {})
    title = f"{path.name}, step {progress.get('step', '?')}: {total} sequences, {scores['frames']:.0f} frames"
    show_figures(held_out_figures(scores), title)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "held_out.json").write_text(json.dumps({**scores, "network": facts}, indent=1), encoding="utf-8")


def show_figures(figures: list[Figure], title: str) -> None:
    """Print a table of figures with their bounds."""
    table = Table("figure", "value", "asked", "", title=escape(title), title_justify="left", box=None, pad_edge=False)
    for figure in figures:
        asked = "" if figure.bound is None else f"{'≥' if figure.more else '≤'} {figure.bound:g}"
        mark = {None: "", True: "[green]ok[/]", False: "[red]no[/]"}[figure.holds]
        table.add_row(figure.name, f"{figure.value:.4f}", asked, mark)
    Console().print(table)
