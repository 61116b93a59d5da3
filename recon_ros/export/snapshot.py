# SPDX-License-Identifier: Apache-2.0
"""A saved map: one folder with the cloud, the trajectories and the configuration, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recon_ros.errors import ReconError
from recon_ros.export.ply import write_ply
from recon_ros.export.tum import write_tum
from recon_ros.frame import Cloud, Trajectory

FILES = ("map.ply", "trajectory.tum", "keyframes.tum", "config.yaml")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What is known at one moment; nothing in it changes afterwards, so another thread can write it.

    Attributes:
        cloud: the map's points in the world.
        trajectory: T_world_camera of every processed frame after all corrections.
        keyframes: T_world_camera of the keyframes, by id.
        config: the resolved configuration, nested plain values.
        is_metric: whether lengths are metres.
    """

    cloud: Cloud
    trajectory: Trajectory
    keyframes: Trajectory
    config: dict[str, Any]
    is_metric: bool


def write_snapshot(snapshot: Snapshot, folder: Path) -> Path:
    """Write the files of a snapshot to `folder`; returns its absolute path.

    They are written beside it and moved into place when they are complete, so a crash or a full disk leaves
    what was there before. A saved map of that name is replaced; any other folder is left alone.

    Raises:
        ReconError: when `folder` holds something else than a saved map, or cannot be written.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not _is_saved_map(folder):
        raise ReconError(f"{folder} exists and is not a saved map; it is not overwritten, choose another path")
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.mkdir(parents=True)
        _write_files(snapshot, unfinished)
        _move_into_place(unfinished, folder)
    except OSError as error:
        raise ReconError(f"cannot write the map to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write_files(snapshot: Snapshot, folder: Path) -> None:
    unit = "metres" if snapshot.is_metric else "of no known scale"
    write_ply(folder / "map.ply", snapshot.cloud, f"recon_ros map in the first camera's optical frame, {unit}")
    write_tum(folder / "trajectory.tum", snapshot.trajectory)
    write_tum(folder / "keyframes.tum", snapshot.keyframes)
    (folder / "config.yaml").write_text(yaml.safe_dump(snapshot.config, sort_keys=False))


def _move_into_place(unfinished: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(unfinished, folder)
        return
    replaced = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
    os.rename(folder, replaced)
    os.rename(unfinished, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _is_saved_map(folder: Path) -> bool:
    """A folder that is empty, or that has our files and no folders."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or (set(FILES) <= names and not any(path.is_dir() for path in folder.iterdir()))
