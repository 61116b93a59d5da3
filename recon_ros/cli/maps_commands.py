# SPDX-License-Identifier: Apache-2.0
"""What the commands of `recon map` do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recon_ros.config import Config, flatten, load_yaml, nested, updated
from recon_ros.errors import ConfigError, NetworkError, ReconError
from recon_ros.export.snapshot import FILES, Snapshot, write_snapshot, write_views
from recon_ros.frame import Cloud
from recon_ros.mapping import folder_swap
from recon_ros.mapping.folder import CONFIG, read_manifest, read_map
from recon_ros.mapping.fusion import VoxelMap
from recon_ros.mapping.map_data import MapData
from recon_ros.mapping.merge import merge
from recon_ros.networks.cards import find_card
from recon_ros.tracking.trust import as_good_as


def show_maps(folders: Sequence[Path]) -> bool:
    """A row for each map; whether all are whole."""
    columns = ("map", "keyframes", "loops", "frames", "way", "extent x y z", "source", "size", "made by", "state")
    table = Table(*columns, box=None, pad_edge=False)
    troubles = []
    for folder in folders:
        try:
            table.add_row(str(folder), *_facts(folder))
        except ReconError as error:
            troubles.append(str(error))
            table.add_row(str(folder), *[""] * (len(columns) - 2), "[bold red]damaged[/]")
    console = Console()
    console = console if console.is_terminal else Console(width=220)
    console.print(table)
    for trouble in troubles:
        console.print(f"[red]{escape(trouble)}[/]", highlight=False, soft_wrap=True)
    return not troubles


def _facts(folder: Path) -> tuple[str, ...]:
    data = read_map(folder)
    manifest = read_manifest(folder_swap.find(folder.expanduser().absolute()))
    unit = "m" if data.source.is_metric else "(no known scale)"
    positions = data.keyframe_trajectory().positions
    extent = np.ptp(positions, axis=0) if len(positions) else np.zeros(3)
    way = float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum())
    size = sum(facts["size"] for facts in manifest["files"].values()) / 1e6
    return (
        str(len(data.keyframes)),
        str(data.believed_loops),
        str(len(data.path)),
        f"{way:.1f} {unit}",
        " × ".join(f"{side:.1f}" for side in extent),
        data.source.name,
        f"{size:.1f} MB",
        f"{manifest['made_by']}, format {manifest['version']}",
        "[green]ok[/]",
    )


def export_map(folder: Path, out: Path, settings: list[str]) -> None:
    """Write what other tools read, derived anew."""
    data, config = read_map(folder), _config_of(folder, settings)
    out.mkdir(parents=True, exist_ok=True)
    cloud = _cloud(data, config)
    write_views(Snapshot(data, cloud, nested(config)), out)
    Console().print(f"{out}: {', '.join(FILES)}; {len(cloud)} points", highlight=False, soft_wrap=True)


def merge_maps(folders: Sequence[Path], out: Path, settings: list[str]) -> None:
    """Join maps one by one into the first."""
    if len(folders) < 2:
        raise ConfigError("two maps at least are needed to join them")
    config = _config_of(folders[0], settings)
    joined = read_map(folders[0])
    for folder in folders[1:]:
        other = read_map(folder)
        with _progress(str(folder), len(other.keyframes)) as report:
            joined = merge(joined, other, _for_source(config, joined.source.name), report)
    written = write_snapshot(Snapshot(joined, _cloud(joined, config), nested(config)), out)
    Console().print(
        f"{written}: {len(joined.keyframes)} keyframes, {joined.believed_loops} loops", highlight=False, soft_wrap=True
    )


def _config_of(folder: Path, settings: list[str]) -> Config:
    """The options that a map was made with, and what `--set` says; options of other versions are passed over."""
    from recon_ros.cli.run import settings_of

    known = flatten(Config())
    saved = load_yaml(folder_swap.find(folder.expanduser().absolute()) / CONFIG)
    config = updated(Config(), {name: value for name, value in saved.items() if name in known})
    return updated(config, settings_of(settings))


def _for_source(config: Config, name: str) -> Config:
    """The options with depth taken for as good as a source's card says, where there is one here."""
    try:
        card = find_card(name)
    except NetworkError:
        return config
    return replace(config, tracking=as_good_as(config.tracking, card.depth_error))


def _cloud(data: MapData, config: Config) -> Cloud:
    cloud = VoxelMap(config.map)
    for keyframe in data.placed.values():
        cloud.add(keyframe)
    return cloud.cloud()


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)
