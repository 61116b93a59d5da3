# SPDX-License-Identifier: Apache-2.0
"""Batches of scenes that are drawn while the training goes on, for machines that train faster than disks are filled.

A window of sequences moves on over the seeds: each step lets some new ones in and as many old ones out, and draws
from what is in the window. So a batch is a function of seed and step here, too.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch

from recon_ros.training.batches import Batch, cut
from recon_ros.training.shards import HELD_OUT, Sequence, sequence

WINDOW = 256
NEW_A_STEP = 0.5
"""Sequences that a step lets in; the rest of a batch has been seen before, in other cuts."""


class Drawn:
    """A source of batches that renders its sequences itself, in processes of its own.

    Args:
        width, height: of the images, pixels.
        frames: of a sequence.
        window: sequences that are drawn from.
        workers: processes; None is one less than there are processors.
        device: that they render on, see `shards.sequence`.
    """

    def __init__(
        self,
        width: int,
        height: int,
        frames: int = 12,
        window: int = WINDOW,
        workers: int | None = None,
        device: str = "",
    ) -> None:
        self._size, self._device = (frames, width, height), device
        self._window = window
        workers = workers or max(1, (os.cpu_count() or 2) - 1)
        self._executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        self._rendered: OrderedDict[int, Future[Sequence]] = OrderedDict()

    def __len__(self) -> int:
        """Number of sequences there can be."""
        return HELD_OUT

    def draw(self, seed: int, step: int, batch: int, frames: int) -> Batch:
        """The batch of a step; waits for what is not rendered yet."""
        first = int(step * NEW_A_STEP)
        for number in range(first, first + self._window):
            self._ask(number)
        while self._rendered and next(iter(self._rendered)) < first:
            self._rendered.popitem(last=False)[1].cancel()
        generator = np.random.default_rng([seed, step])
        chosen = [self._rendered[first + int(i)].result() for i in generator.integers(self._window, size=batch)]
        return _batch([(one, cut(generator, self._size[0], frames)) for one in chosen])

    def close(self) -> None:
        """End the processes."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ask(self, number: int) -> None:
        if number not in self._rendered:
            self._rendered[number] = self._executor.submit(sequence, number % HELD_OUT, *self._size, self._device)


def _batch(cuts: list[tuple[Sequence, np.ndarray]]) -> Batch:
    images = np.stack([one.images[chosen] for one, chosen in cuts])
    depth = np.stack([one.depth[chosen] for one, chosen in cuts])
    poses = [one.T_world_camera[chosen].astype(np.float64) for one, chosen in cuts]
    return Batch(
        torch.from_numpy(images).permute(0, 1, 4, 2, 3).float().div_(255),
        torch.from_numpy(depth).float(),
        torch.from_numpy(np.stack([one.K for one, _ in cuts])).float(),
        torch.from_numpy(np.stack([np.linalg.inv(T[0]) @ T for T in poses])).float(),
    )
