# SPDX-License-Identifier: Apache-2.0
"""`recon train`: training the compact network. Loads torch only when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recon_ros.cli.spoken import spoken_errors

train = typer.Typer(help="Train the compact network, and measure it.", invoke_without_command=True)

Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads")]
Network = Annotated[Path, typer.Argument(metavar="FILE", help="network.safetensors or best.safetensors of a training")]


@train.callback()
def run(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Option("--run", help="Folder of checkpoints, logs and pictures", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of shards; without it a GPU draws its own scenes", show_default=False),
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option("--heldout", help="Shards that are only validated on", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="How long: steps", show_default=False)] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="… or minutes", show_default=False)] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of a step")] = 4,
    frames: Annotated[str, typer.Option(help="Frames of a sequence, at the beginning..at the end")] = "2..8",
    rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate")] = 8e-4,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, batches and noise")] = 0,
    truncate: Annotated[int, typer.Option(min=1, help="Frames that gradients flow back through")] = 2,
    device: Device = "auto",
    threads: Threads = 1,
    half: Annotated[
        bool | None,
        typer.Option("--half/--no-half", help="bfloat16 where it does no harm", show_default="on a GPU"),
    ] = None,
    encoder: Annotated[str, typer.Option(help="lite_xfeat, efficientnet_lite0, hiera or scratch")] = "lite_xfeat",
    encoder_weights: Annotated[
        Path | None,
        typer.Option(help="Pretrained encoder as .safetensors; fetched when not given", show_default=False),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Begin with the weights of this network", show_default=False)
    ] = None,
    no_rays: Annotated[bool, typer.Option("--no-rays", help="Ablation: the network does not know the camera")] = False,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Ablation: the network does not remember")] = False,
    checkpoint_minutes: Annotated[float, typer.Option(min=0.0, help="Between checkpoints")] = 3.0,
    validate_minutes: Annotated[float, typer.Option(min=0.0, help="Between validations")] = 10.0,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints that stay")] = 4,
) -> None:
    """Train the compact network, or go on with a training; Ctrl-C writes a checkpoint and ends."""
    if context.invoked_subcommand is not None:
        return
    with spoken_errors():
        from rich.console import Console

        from recon_ros.cli.logs import say_logs
        from recon_ros.training.commands import Wishes, run_training

        wishes = Wishes(
            folder=folder,
            data=data,
            held_out=held_out,
            resume=resume,
            steps=steps,
            minutes=minutes,
            batch=batch,
            frames=frames,
            rate=rate,
            seed=seed,
            truncate=truncate,
            device=device,
            threads=threads,
            half=half,
            encoder=encoder,
            encoder_weights=encoder_weights,
            start=start,
            rays=not no_rays,
            memory=not no_memory,
            checkpoint_minutes=checkpoint_minutes,
            validate_minutes=validate_minutes,
            keep=keep,
        )
        console = Console(stderr=True)
        with say_logs(console):
            run_training(wishes, console)


@train.command()
def average(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Trainings that began from one checkpoint")],
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints that stay in each")] = 4,
) -> None:
    """Average trainings that went on side by side from one checkpoint; each goes on from the average."""
    with spoken_errors():
        from recon_ros.training.averaging import average as write

        typer.echo(f"averaged: step {write(runs, keep)}")


@train.command()
def evaluate(
    network: Network,
    held_out: Annotated[Path, typer.Option("--heldout", help="Shards that were not trained on")],
    out: Annotated[Path | None, typer.Option(help="Folder for figures and pictures", show_default=False)] = None,
    sequences: Annotated[int, typer.Option(min=0, help="How many; 0 for all")] = 0,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Measure a network on held-out scenes: depth, pose, and whether its confidence ranks its errors."""
    with spoken_errors():
        from recon_ros.training.commands import show_held_out

        show_held_out(network, held_out, out, sequences, device, threads)


@train.command()
def recording(
    network: Network,
    bag: Annotated[Path, typer.Argument(metavar="BAG", help="rosbag2 folder, .mcap, .db3 or .bag, with depth")],
    out: Annotated[Path, typer.Option(help="Folder for frames.csv and pictures")],
    farthest: Annotated[float, typer.Option(min=0.1, help="Depth of the sensor that counts, metres")] = 6.0,
    stride: Annotated[int, typer.Option(min=1, help="Use every n-th frame")] = 1,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Measure a network on a recording with depth, frame by frame: its images and K in, depth out."""
    with spoken_errors():
        from recon_ros.config import InputConfig
        from recon_ros.datasets.rosbag import BagReader
        from recon_ros.training.recording import show_recording

        # Depth from far away still shows in the picture; what counts is said by `farthest`.
        with BagReader(bag, config=InputConfig(max_depth=max(farthest, 8.0))) as reader:
            show_recording(network, reader.frames(), bag.name, out, farthest, stride, device, threads)


@train.command()
def ship(
    network: Network,
    card: Annotated[Path, typer.Argument(metavar="CARD", help="models/NAME.yaml: what is written lies beside it")],
) -> None:
    """Write what is shipped of a network: weights in half precision, graphs, and their SHA-256 in its card."""
    with spoken_errors():
        from rich.console import Console

        from recon_ros.training.ship import ship as write

        write(network, card, say=Console(stderr=True).print)
