# SPDX-License-Identifier: Apache-2.0
"""Training sequences on disk: folders of plain arrays that are memory-mapped.

A shard holds `images.npy` (N, F, H, W, 3) uint8 RGB, `depth.npy` (N, F, H, W) float16 metres along z (0: none),
`K.npy` (N, 4) float32 fx, fy, cx, cy in pixels with pixel centres at integers, `T_world_camera.npy`
(N, F, 4, 4) float32 and `shard.json`. Seeds below `HELD_OUT` are for training, those from there on never.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import DatasetError
from recon_ros.training.lens import Lens, random_K
from recon_ros.training.paths import Walker
from recon_ros.training.photographs import find_photographs
from recon_ros.training.pool import pool
from recon_ros.training.render_cpu import Atlas, LitScene
from recon_ros.training.scenes import Scene, scene

GENERATOR = "recon_ros scenes 2"
HELD_OUT = 1_000_000
SEQUENCES_A_POOL = 50
SEQUENCES_A_SHARD = 50
FARTHEST = 40.0
_LAST_ATLAS: dict[tuple[int, str], Any] = {}


@dataclass(frozen=True)
class Sequence:
    """F frames of one camera in one scene.

    Attributes:
        images: (F, H, W, 3) uint8 RGB.
        depth: (F, H, W) float16 metres along z, 0 where there is none.
        K: (4,) float32 fx, fy, cx, cy in pixels.
        T_world_camera: (F, 4, 4) float32.
    """

    images: NDArray[np.uint8]
    depth: NDArray[np.float16]
    K: NDArray[np.float32]
    T_world_camera: NDArray[np.float32]


def sequence(seed: int, frames: int = 12, width: int = 256, height: int = 192, device: str = "") -> Sequence:
    """The sequence of a seed, rendered; equal arguments give equal sequences.

    Args:
        seed: of everything in it.
        frames: how many.
        width, height: pixels.
        device: that PyTorch renders on, ``cuda``; empty for Open3D on the CPU, which is faster there.

    Raises:
        DatasetError: no camera path was found in any of the seed's scenes.
    """
    textures = pool(seed // SEQUENCES_A_POOL)
    for attempt in range(100):
        rng = np.random.default_rng((seed, attempt))
        layout = scene(rng, textures)
        lit = _lit(seed // SEQUENCES_A_POOL, textures.textures, layout, rng, device)
        K = random_K(rng, width, height)
        poses = Walker(layout, lit, K, width, height, rng).path(frames)
        if poses is not None:
            break
    else:
        raise DatasetError(f"no camera path in 100 scenes of seed {seed}")
    lens = Lens.random(rng)
    images = np.empty((frames, height, width, 3), np.uint8)
    depths = np.empty((frames, height, width), np.float16)
    for i, T in enumerate(poses):
        if layout.movers:
            lit.move(layout.corners_at(i))
        light, depth = lit.render(T, K, width, height)
        images[i] = lens.picture(light, rng)
        depths[i] = np.where(depth < FARTHEST, depth, 0.0)
    return Sequence(images, depths, K, poses.astype(np.float32))


def _lit(number: int, textures: NDArray[np.uint8], layout: Scene, rng: np.random.Generator, device: str) -> Any:
    """The scene with its light; the textures of one pool are prepared once."""
    if device:
        from recon_ros.training.render_gpu import Textures, TorchScene

        prepared = _prepared((number, device), lambda: Textures(textures, device))
        return TorchScene(layout.quads, prepared, layout.lights, rng, device)
    return LitScene(layout.quads, _prepared((number, device), lambda: Atlas(textures)), layout.lights, rng)


def _prepared(key: tuple[int, str], make: Callable[[], Any]) -> Any:
    """What a renderer makes of a pool's textures; the last pool's is kept."""
    if key not in _LAST_ATLAS:
        _LAST_ATLAS.clear()
        _LAST_ATLAS[key] = make()
    return _LAST_ATLAS[key]


def generate(
    folder: str | os.PathLike[str],
    first_seed: int,
    sequences: int,
    frames: int = 12,
    width: int = 256,
    height: int = 192,
    workers: int = 1,
) -> list[Path]:
    """Render sequences of the seeds first_seed, first_seed + 1, … into shards below a folder.

    A shard appears under its name when it is complete; those that are there already are kept, so that an
    interrupted run goes on.

    Returns:
        The shards' folders.

    Raises:
        DatasetError: for sizes or counts that are not positive, or seeds on both sides of `HELD_OUT`.
    """
    for name, value in (
        ("sequences", sequences),
        ("frames", frames),
        ("width", width),
        ("height", height),
        ("workers", workers),
    ):
        if value < 1:
            raise DatasetError(f"{name} is {value}; it must be positive")
    if first_seed < 0 or first_seed < HELD_OUT < first_seed + sequences:
        raise DatasetError(
            f"seeds {first_seed} to {first_seed + sequences - 1} are not all below or all from {HELD_OUT} on"
        )
    jobs = []
    for start in range(first_seed, first_seed + sequences, SEQUENCES_A_SHARD):
        count = min(SEQUENCES_A_SHARD, first_seed + sequences - start)
        jobs.append((Path(folder) / f"shard_{start:08d}_{count:03d}", start, count, frames, width, height))
    if workers == 1:
        return [_write(*job) for job in jobs]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        return list(executor.map(_write, *zip(*jobs, strict=True)))


def _write(place: Path, first: int, count: int, frames: int, width: int, height: int) -> Path:
    """One shard, written beside its place and renamed."""
    if (place / "shard.json").is_file():
        return place
    work = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "images": ((count, frames, height, width, 3), np.uint8),
        "depth": ((count, frames, height, width), np.float16),
        "K": ((count, 4), np.float32),
        "T_world_camera": ((count, frames, 4, 4), np.float32),
    }
    arrays = {
        name: np.lib.format.open_memmap(work / f"{name}.npy", "w+", dtype, shape)
        for name, (shape, dtype) in shapes.items()
    }
    for i in range(count):
        rendered = sequence(first + i, frames, width, height)
        for name, array in arrays.items():
            array[i] = getattr(rendered, name)
    for array in arrays.values():
        array.flush()
    record = {
        "generator": GENERATOR,
        "first_seed": first,
        "sequences": count,
        "frames": frames,
        "width": width,
        "height": height,
        "photographs": [photograph.record() for photograph in find_photographs()],
    }
    (work / "shard.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    work.rename(place)
    return place


@dataclass(frozen=True)
class Shard:
    """One folder, memory-mapped; fields as in `Sequence` with a leading N."""

    folder: Path
    images: NDArray[np.uint8]
    depth: NDArray[np.float16]
    K: NDArray[np.float32]
    T_world_camera: NDArray[np.float32]
    record: dict[str, Any]


class Sequences:
    """All sequences of some shards, in the order of the shards' names; `sequences[i]` maps, it does not read."""

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self._ends = np.cumsum([len(shard.K) for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def __getitem__(self, index: int) -> Sequence:
        """Sequence `index`; raises IndexError outside."""
        shard, i = self.locate(index)
        return Sequence(shard.images[i], shard.depth[i], shard.K[i], shard.T_world_camera[i])

    def __iter__(self) -> Iterator[Sequence]:
        return (self[i] for i in range(len(self)))

    def locate(self, index: int) -> tuple[Shard, int]:
        """The shard of a sequence and its index there; for what is cached beside the shard's arrays."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.shards[number], index - int(self._ends[number]) + len(self.shards[number].K)


def open_shards(folder: str | os.PathLike[str]) -> Sequences:
    """All complete shards below a folder.

    Raises:
        DatasetError: if there is none, or one does not have the arrays its description says.
    """
    places = sorted(path.parent for path in Path(folder).glob("shard_*/shard.json"))
    if not places:
        raise DatasetError(f"no shards in {folder}: make some with recon_ros.training.shards.generate")
    return Sequences([_open(place) for place in places])


def _open(place: Path) -> Shard:
    try:
        record = json.loads((place / "shard.json").read_text(encoding="utf-8"))
        arrays = {
            name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("images", "depth", "K", "T_world_camera")
        }
    except (OSError, ValueError) as error:
        raise DatasetError(f"shard {place} cannot be read: {error}; delete it and generate it again") from error
    n, f, h, w = (int(record[key]) for key in ("sequences", "frames", "height", "width"))
    wanted = {"images": (n, f, h, w, 3), "depth": (n, f, h, w), "K": (n, 4), "T_world_camera": (n, f, 4, 4)}
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise DatasetError(f"{name}.npy of {place} is {arrays[name].shape}, its shard.json says {shape}")
    return Shard(place, record=record, **arrays)
