# SPDX-License-Identifier: Apache-2.0
"""`recon models`: the published networks, and the weights they need. Loads torch only where a command needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recon_ros.cli.spoken import spoken_errors

models = typer.Typer(help="Networks and their weights: list, fetch, verify, convert, parity.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a model, as `recon models list` shows it")]
Card = Annotated[
    str | None, typer.Option("--card", metavar="NAME", help="The network it is for, when its name does not say")
]


@models.command("list")
def list_models() -> None:
    """The networks there are cards of, and whether their weights are here."""
    with spoken_errors():
        from recon_ros.cli.models_commands import show_list

        show_list()


@models.command()
def fetch(
    name: Name,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="I accept the licence of the weights; remembered")
    ] = False,
    address: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="Fetch from this address, for a mirror")
    ] = None,
) -> None:
    """Fetch a network's weights into the cache; goes on where an earlier attempt stopped."""
    with spoken_errors():
        from recon_ros.cli.models_commands import fetch_weights

        fetch_weights(name, accept_license, address)


@models.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="Name of a model, or a weight file")],
    card: Card = None,
) -> None:
    """Check weights: SHA-256, and that every key and shape is the network's."""
    with spoken_errors():
        from recon_ros.cli.models_commands import verify_weights

        verify_weights(name, card)


@models.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A published .pth, or a .safetensors")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors to write")],
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16")] = "fp32",
) -> None:
    """Write weights as safetensors, which hold numbers and nothing else."""
    with spoken_errors():
        from recon_ros.cli.models_commands import convert_weights

        convert_weights(source, target, dtype)


@models.command()
def parity(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Searched for fixtures with all its folders")],
    full: Annotated[bool, typer.Option("--full", help="The full-size networks instead: minutes, 5 GB")] = False,
) -> None:
    """Hold our networks against stored outputs of the published ones; exit code 1 on any miss."""
    with spoken_errors():
        from recon_ros.cli.models_commands import show_parity

        if not show_parity(folder, full):
            raise typer.Exit(1)
