# SPDX-License-Identifier: Apache-2.0
"""A saved map: a folder of arrays, of files for other tools, and a manifest that knows the digest of each.

======================  ========================================================================================
file                    holds
======================  ========================================================================================
map.json                format, version, counts, the source with its weights' licence, whether the world is level,
                        where the camera was on the robot, digests; and its own digest
keyframes.npy           what a keyframe is, a row each; which rows of the next four are its own follows from sizes
points.npy, …           of all keyframes: local points (float16), confidence.npy, colours.npy, features.npy
descriptors.npy         a network's descriptors of places; those of keypoints are made again from the features
nodes.npy, edges.npy    the pose graph, and what was known of gravity
loops.npy               the loops that were found, believed or not
path.npy                each tracked frame against its keyframe, and as it was published
map.ply, *.tum          cloud, trajectory and keyframes for other tools; nothing is read from them
config.yaml             the configuration
======================  ========================================================================================

Nothing is pickled. A folder that is loaded is checked first: that every file is the one that was written, then every
array for dtype, shape, finiteness, and what it refers to.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import ReconError
from recon_ros.geometry import se3
from recon_ros.mapping import folder_swap
from recon_ros.mapping.folder_arrays import ARRAYS, DESCRIPTORS, Arrays, frame_names
from recon_ros.mapping.map_data import MapData, SourceFacts
from recon_ros.mapping.pose_graph import Drift

FORMAT, VERSION = "recon_ros map", 2
MANIFEST = "map.json"
CONFIG = "config.yaml"
CHUNK = 1 << 20

DATA_FILES = (MANIFEST, *ARRAYS, DESCRIPTORS)


def seal(data: MapData, folder: Path) -> None:
    """Write the manifest of a folder that holds everything else.

    Raises:
        OSError: when a file cannot be read or written.
    """
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "made_by": f"recon_ros {_version()}",
        "source": asdict(data.source),
        "is_metric": data.source.is_metric,
        "counts": {
            "keyframes": len(data.keyframes),
            "loops": data.believed_loops,
            "edges": len(data.graph.edges),
            "poses": len(data.path),
            "unplaced": data.unplaced,
        },
        "next_id": data.next_id,
        "frames": frame_names(data),
        "is_level": data.is_level,
        "T_base_camera": None if data.T_base_camera is None else data.T_base_camera.tolist(),
        "scale_drifts": data.graph.scale_drifts,
        "drift": asdict(data.graph.drift),
    }
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the digests of all other files of the folder, and its own."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    manifest = manifest | {
        "files": {path.name: {"size": path.stat().st_size, "sha256": _digest(path)} for path in files}
    }
    manifest["sha256"] = _own_digest(manifest)
    (folder / MANIFEST).write_text(_text(manifest), encoding="utf-8")


def read_map(folder: Path | str) -> MapData:
    """Load and check a saved map; what keyframes saw stays on the disk until it is looked at.

    Raises:
        ReconError: when there is none, when another version wrote it, or when a file is damaged; it names the file.
    """
    folder = folder_swap.find(Path(folder).expanduser().absolute())
    manifest = read_manifest(folder)
    try:
        _check_files(folder, manifest["files"])
        source, drift = SourceFacts(**manifest["source"]), Drift(**manifest["drift"])
        frames, next_id = [str(name) for name in manifest["frames"]], int(manifest["next_id"])
        scale_drifts, is_level = bool(manifest["scale_drifts"]), bool(manifest["is_level"])
        mount = _mount(manifest["T_base_camera"])
    except (KeyError, TypeError, ValueError) as error:
        raise ReconError(f"the map cannot be loaded: {folder / MANIFEST} lacks or misstates {error}") from error
    arrays = Arrays(folder)
    keyframes = arrays.keyframes(frames, next_id)
    ids = {k.id for k in keyframes}
    loops, rejected = arrays.loops()
    return MapData(
        keyframes=keyframes,
        next_id=next_id,
        descriptors=arrays.descriptors(),
        graph=arrays.graph(ids, scale_drifts, drift),
        loops=loops,
        rejected=rejected,
        path=arrays.path(ids),
        source=source,
        is_level=is_level,
        T_base_camera=mount,
    )


def _mount(written: Any) -> NDArray[np.float64] | None:
    """(4, 4) pose or None; ValueError for what is neither."""
    T = None if written is None else np.array(written, dtype=np.float64)
    if T is not None and not se3.is_valid(T):
        raise ValueError(f"T_base_camera, which is no pose: {written}")
    return T


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved map.

    Raises:
        ReconError: see `read_map`.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ReconError(f"there is no map folder {folder}")
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
    except FileNotFoundError as error:
        raise ReconError(f"{folder} has no {MANIFEST}: it is no map that was saved as a whole") from error
    except (OSError, ValueError) as error:
        raise ReconError(f"the map cannot be loaded: {path} is damaged ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ReconError(f"the map cannot be loaded: {path} is no manifest of a {FORMAT}")
    if manifest.get("version") != VERSION:
        raise ReconError(
            f"the map cannot be loaded: {path} has version {manifest.get('version')} of the format, written by "
            f"{manifest.get('made_by')}; this is {VERSION}"
        )
    if manifest.get("sha256") != _own_digest(manifest) or text != _text(manifest):
        raise ReconError(f"the map cannot be loaded: {path} is damaged: it is not what was written")
    return manifest


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name in (*ARRAYS, DESCRIPTORS, CONFIG):
        if name not in files:
            raise ReconError(f"the map cannot be loaded: {folder / MANIFEST} does not know of {name}")
    for name, facts in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != facts["size"]:
                raise ReconError(
                    f"the map cannot be loaded: {path} is damaged: it has {size} bytes, {facts['size']} were written"
                )
            if _digest(path) != facts["sha256"]:
                raise ReconError(f"the map cannot be loaded: {path} is damaged: its contents are not what was written")
        except OSError as error:
            raise ReconError(f"the map cannot be loaded: {path} cannot be read: {error.strerror}") from error


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1) + "\n"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _own_digest(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _version() -> str:
    try:
        return importlib.metadata.version("recon_ros")
    except importlib.metadata.PackageNotFoundError:  # run from the sources
        return "from sources"
