# SPDX-License-Identifier: Apache-2.0
"""`recon map`: saved maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recon_ros.cli.spoken import spoken_errors

maps = typer.Typer(help="Saved maps: info, export, merge.", no_args_is_help=True)

Folders = Annotated[list[Path], typer.Argument(metavar="DIR…", help="Map folders")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one option, e.g. map.voxel_size=0.01; repeatable"),
]


@maps.command()
def info(folders: Folders) -> None:
    """What is in saved maps, and whether they are whole; exit code 1 when one is not."""
    with spoken_errors():
        from recon_ros.cli.maps_commands import show_maps

        if not show_maps(folders):
            raise typer.Exit(1)


@maps.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Map folder")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files; made when missing")],
    settings: Settings = None,
) -> None:
    """Derive cloud (PLY), trajectory and keyframes (TUM) from a saved map, as its options or others say."""
    with spoken_errors():
        from recon_ros.cli.maps_commands import export_map

        export_map(folder, out, settings or [])


@maps.command()
def merge(
    folders: Folders,
    out: Annotated[Path, typer.Option("--out", help="Folder of the joined map")],
    settings: Settings = None,
) -> None:
    """Join saved maps that show a common place into one, in the frame of the first."""
    with spoken_errors():
        from recon_ros.cli.maps_commands import merge_maps

        merge_maps(folders, out, settings or [])
