# SPDX-License-Identifier: Apache-2.0
"""Writes a saved map: what `mapping.folder` loads again, and beside it the files that other tools read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recon_ros.errors import ReconError
from recon_ros.export.ply import write_ply
from recon_ros.export.tum import write_tum
from recon_ros.frame import Cloud
from recon_ros.mapping import folder_swap
from recon_ros.mapping.folder import CONFIG, seal
from recon_ros.mapping.folder_arrays import write_arrays
from recon_ros.mapping.map_data import MapData

FILES = ("map.ply", "trajectory.tum", "keyframes.tum", CONFIG)
"""What a saved map has for others."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What is known at one moment; nothing in it changes afterwards, so another thread can write it.

    Attributes:
        data: the map.
        cloud: its points in the world.
        config: the resolved configuration, nested plain values.
    """

    data: MapData
    cloud: Cloud
    config: dict[str, Any]


def write_snapshot(snapshot: Snapshot, folder: Path) -> Path:
    """Write a saved map to `folder`; returns its absolute path.

    It is written beside it, brought to the disk, and moved into place when it is complete, so that a crash, a full disk
    or a kill at any moment leaves the old map or the new one. A saved map of that name is replaced; any other folder is
    left alone.

    Raises:
        ReconError: when `folder` holds something else than a saved map, or cannot be written.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not _is_saved_map(folder):
        raise ReconError(f"{folder} exists and is not a saved map; it is not overwritten, choose another path")
    try:
        with folder_swap.replacing(folder) as unfinished:
            write_arrays(snapshot.data, unfinished)
            write_views(snapshot, unfinished)
            seal(snapshot.data, unfinished)
    except OSError as error:
        raise ReconError(f"cannot write the map to {folder}: {error.strerror}") from error
    return folder


def write_views(snapshot: Snapshot, folder: Path) -> None:
    """Write what other tools read: cloud, trajectories and configuration.

    Raises:
        OSError: when a file cannot be written.
    """
    data = snapshot.data
    world = "the first camera's optical frame, made level" if data.is_level else "the first camera's optical frame"
    write_ply(folder / "map.ply", snapshot.cloud, f"recon_ros map in {world}, {data.unit}")
    write_tum(folder / "trajectory.tum", data.trajectory())
    write_tum(folder / "keyframes.tum", data.keyframe_trajectory())
    (folder / CONFIG).write_text(yaml.safe_dump(snapshot.config, sort_keys=False))


def _is_saved_map(folder: Path) -> bool:
    """A folder that is empty, or that has the files of a map and no folders."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or (set(FILES) <= names and not any(path.is_dir() for path in folder.iterdir()))
