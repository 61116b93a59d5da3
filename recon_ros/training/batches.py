# SPDX-License-Identifier: Apache-2.0
"""Batches of short sequences: cut from shards on the disk, in a thread ahead of the training.

A batch is a pure function of seed, step and the list of shards, so that a training that goes on after an
interruption sees what it would have seen, and no state of a random generator needs to be kept.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_ros.errors import DatasetError

ARRAYS = ("images", "depth", "K", "T_world_camera")
FEATURES = ("f8", "f16")
STRIDES = (1, 1, 2, 3)
"""Steps of a cut through a sequence, as likely as they are often named."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences of F frames.

    Attributes:
        images: (B, F, 3, H, W) float32 RGB in [0, 1].
        depth: (B, F, H, W) float32 metres along z; 0 where there is none.
        K: (B, 4) float32 fx, fy, cx, cy in pixels; pixel centres are at integers.
        T_anchor_camera: (B, F, 4, 4) float32, relative to each sequence's first frame.
        f8, f16: (B, F, C, H/8, W/8) and (B, F, C, H/16, W/16) float32 features of the frozen encoder, or None.
    """

    images: Tensor
    depth: Tensor
    K: Tensor
    T_anchor_camera: Tensor
    f8: Tensor | None = None
    f16: Tensor | None = None

    @property
    def frames(self) -> int:
        """How many frames each sequence has."""
        return self.images.shape[1]

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in given.items()})


def mirrored(batch: Batch) -> Batch:
    """The batch seen in a mirror: x → W − 1 − x, with camera and poses to match.

    Only without cached features: the encoder's position map is not symmetric, so mirrored features would be those of
    no image.

    Raises:
        ValueError: the batch carries features.
    """
    if batch.f8 is not None:
        raise ValueError("a batch with cached features cannot be mirrored")
    K = batch.K.clone()
    K[:, 2] = batch.images.shape[-1] - 1 - K[:, 2]
    M = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], device=K.device))
    return Batch(batch.images.flip(-1), batch.depth.flip(-1), K, M @ batch.T_anchor_camera @ M)


def exposed(batch: Batch, generator: np.random.Generator) -> Batch:
    """The batch as other cameras would show it: brightness and white balance of a sequence, exposure of a frame.

    Cached features stay as they are: the encoder has seen enough of the world. What is trained on drawn images alone
    must not rely on their colours.
    """
    count, frames = batch.images.shape[:2]
    gain = generator.uniform(0.65, 1.4, (count, 1, 1)) * generator.uniform(0.88, 1.12, (count, 1, 3))
    gain = gain * generator.uniform(0.93, 1.07, (count, frames, 1))
    haze = generator.uniform(-0.06, 0.1, (count, 1, 1))
    scale, offset = (torch.from_numpy(np.broadcast_to(x, gain.shape).astype(np.float32)) for x in (gain, haze))
    device = batch.images.device
    images = batch.images * scale[..., None, None].to(device) + offset[..., None, None].to(device)
    return replace(batch, images=images.clamp_(0, 1))


@dataclass(frozen=True, eq=False)
class Shard:
    """One folder of N sequences of F frames, memory-mapped.

    ``images.npy`` (N, F, H, W, 3) uint8, ``depth.npy`` (N, F, H, W) float16 metres, ``K.npy`` (N, 4),
    ``T_world_camera.npy`` (N, F, 4, 4), and, where an encoder's features are kept,
    ``<encoder>_f8.npy`` and ``<encoder>_f16.npy`` (N, F, C, h, w) float16.
    """

    folder: Path
    images: NDArray[np.uint8]
    depth: NDArray[np.float16]
    K: NDArray[np.float32]
    T_world_camera: NDArray[np.float32]
    f8: NDArray[np.float16] | None
    f16: NDArray[np.float16] | None

    @staticmethod
    def open(folder: Path, encoder: str | None) -> Shard:
        """Open a shard; `encoder` names the features wanted, None for none.

        Raises:
            DatasetError: a file is missing or does not fit the others.
        """
        images, depth, K, poses = (_map(folder / f"{name}.npy") for name in ARRAYS)
        count, frames, height, width = images.shape[:4]
        wanted = (
            ("images", images, (count, frames, height, width, 3)),
            ("depth", depth, (count, frames, height, width)),
            ("K", K, (count, 4)),
            ("T_world_camera", poses, (count, frames, 4, 4)),
        )
        for name, array, shape in wanted:
            if array.shape != shape:
                raise DatasetError(f"{folder}/{name}.npy has shape {array.shape}, not {shape}: render it again")
        if encoder is None:
            return Shard(folder, images, depth, K, poses, None, None)
        f8, f16 = (_map(folder / f"{encoder}_{key}.npy") for key in FEATURES)
        for key, array in zip(FEATURES, (f8, f16), strict=True):
            if array.shape[:2] != (count, frames):
                found = array.shape[:2]
                raise DatasetError(
                    f"{folder}/{encoder}_{key}.npy is of {found} frames, not {(count, frames)}: remove it"
                )
        return Shard(folder, images, depth, K, poses, f8, f16)


def _map(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


class Shards:
    """All sequences of the shards in a folder.

    Args:
        root: folder of shards, or one shard.
        encoder: name of the encoder whose cached features are wanted. Shards without them are left for later when
            others have them; when none has, batches come without features.

    Raises:
        DatasetError: no shard is there, or they differ in size.
    """

    def __init__(self, root: Path, encoder: str | None) -> None:
        self.root = Path(root)
        folders = finished(self.root)
        if not folders:
            raise DatasetError(f"{self.root} holds no finished shard (shard.json); make some with `recon train render`")
        cached = [folder for folder in folders if encoder and _has_features(folder, encoder)]
        self.encoder = encoder if cached else None
        self.shards = [Shard.open(folder, self.encoder) for folder in cached or folders]
        sizes = {shard.images.shape[2:4] for shard in self.shards}
        if len(sizes) != 1:
            raise DatasetError(
                f"{self.root}: shards of different image sizes {sorted(sizes)}; train on one size at a time"
            )
        self.size = sizes.pop()
        self._ends = np.cumsum([len(shard.images) for shard in self.shards])

    def __len__(self) -> int:
        """Number of sequences."""
        return int(self._ends[-1])

    @property
    def frames(self) -> int:
        """Frames of the shortest sequence."""
        return min(shard.images.shape[1] for shard in self.shards)

    def draw(self, seed: int, step: int, batch: int, frames: int) -> Batch:
        """The batch of a step: sequences drawn with replacement, each cut with a stride, forwards or backwards."""
        generator = np.random.default_rng([seed, step])
        indices = generator.integers(len(self), size=batch)
        return self.pick(indices, [cut(generator, self.frames, frames) for _ in indices])

    def pick(self, indices: Sequence[int] | NDArray[np.int64], cuts: Sequence[NDArray[np.int64]]) -> Batch:
        """The sequences `indices`, of each the frames that its cut names, in the cut's order."""
        rows = [self._row(int(index), cut) for index, cut in zip(indices, cuts, strict=True)]
        columns = [None if column[0] is None else np.stack(column) for column in zip(*rows, strict=True)]
        images, depth, K, poses, f8, f16 = columns
        assert images is not None and depth is not None and K is not None and poses is not None
        return Batch(
            torch.from_numpy(images).permute(0, 1, 4, 2, 3).float().div_(255),
            torch.from_numpy(depth).float(),
            torch.from_numpy(K).float(),
            torch.from_numpy(poses).float(),
            None if f8 is None else torch.from_numpy(f8).float(),
            None if f16 is None else torch.from_numpy(f16).float(),
        )

    def whole(self, index: int) -> Batch:
        """One sequence with all its frames."""
        return self.pick([index], [np.arange(self.frames)])

    def _row(self, index: int, cut: NDArray[np.int64]) -> tuple[NDArray[Any] | None, ...]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.shards[which]
        row = index - (int(self._ends[which - 1]) if which else 0)
        poses = shard.T_world_camera[row][cut].astype(np.float64)
        depth = np.nan_to_num(shard.depth[row][cut], nan=0.0, posinf=0.0, neginf=0.0)
        features = [None if array is None else array[row][cut] for array in (shard.f8, shard.f16)]
        return shard.images[row][cut], depth, shard.K[row], np.linalg.inv(poses[0]) @ poses, *features


def finished(root: Path) -> list[Path]:
    """Folders below `root` (or itself) whose shard is complete: ``shard.json`` is written last."""
    found = (path.parent for path in (*root.glob("shard.json"), *root.glob("*/shard.json")))
    return sorted(folder for folder in found if not folder.name.startswith("."))  # those are being written


def _has_features(folder: Path, encoder: str) -> bool:
    return all((folder / f"{encoder}_{key}.npy").is_file() for key in FEATURES)


def cut(generator: np.random.Generator, available: int, frames: int) -> NDArray[np.int64]:
    """Indices of `frames` frames in constant steps, reversed half of the time."""
    frames = min(frames, available)
    fitting = [stride for stride in STRIDES if stride * (frames - 1) < available]
    stride = fitting[generator.integers(len(fitting))]
    start = generator.integers(available - stride * (frames - 1))
    cut = start + stride * np.arange(frames)
    return cut[::-1].copy() if generator.random() < 0.5 else cut


class Prefetch:
    """Makes the batches of coming steps in a thread.

    Args:
        make: step → batch.
        first: step to begin with.
        depth: how many batches may wait.
    """

    def __init__(self, make: Callable[[int], Batch], first: int, depth: int = 3) -> None:
        self._make = make
        self._step = first
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def next(self) -> Batch:
        """The batch of the next step; waits for it.

        Raises:
            Exception: whatever making it raised.
        """
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                item: Batch | BaseException = self._make(self._step)
            except Exception as error:
                item = error
            self._step += 1
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
