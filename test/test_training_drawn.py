# SPDX-License-Identifier: Apache-2.0
"""Scenes drawn while training: the window moves on, and a batch is the same again, also after an interruption."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; RECON_TORCH=1 make setup")

from recon_ros.training import drawn as module  # noqa: E402
from recon_ros.training.drawn import NEW_A_STEP, Drawn  # noqa: E402
from recon_ros.training.shards import Sequence  # noqa: E402

WINDOW = 6


class AtOnce:
    """An executor that does what it is asked at once, and counts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seeds: list[int] = []

    def submit(self, function: Any, seed: int, frames: int, width: int, height: int, device: str) -> Future[Sequence]:
        self.seeds.append(seed)
        future: Future[Sequence] = Future()
        T = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
        T[:, 0, 3] = seed + 0.1 * np.arange(frames)
        images = np.full((frames, height, width, 3), seed % 256, np.uint8)
        K = np.array([50, 50, width / 2, height / 2], np.float32)
        future.set_result(Sequence(images, np.ones((frames, height, width), np.float16), K, T))
        return future


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    monkeypatch.setattr(module, "ProcessPoolExecutor", AtOnce)
    return Drawn(32, 32, frames=4, window=WINDOW, workers=1)


def seeds_of(source: Drawn, step: int) -> set[int]:
    return set((source.draw(3, step, 16, 2).images[:, 0, 0, 0, 0] * 255).round().int().tolist())


def test_the_window_moves_on_and_nothing_is_rendered_twice(source: Drawn) -> None:
    for step in (0, 5, 10, 40):
        first = int(step * NEW_A_STEP)
        assert seeds_of(source, step) <= set(range(first, first + WINDOW))
    asked = source._executor.seeds  # type: ignore[attr-defined]
    assert len(asked) == len(set(asked))
    assert len(source._rendered) == WINDOW


def test_a_batch_is_the_same_again_in_a_new_source(source: Drawn) -> None:
    for step in range(6):
        source.draw(3, step, 2, 3)
    one, other = source.draw(3, 6, 4, 3), Drawn(32, 32, frames=4, window=WINDOW, workers=1).draw(3, 6, 4, 3)
    assert torch.equal(one.images, other.images) and torch.equal(one.T_anchor_camera, other.T_anchor_camera)
    assert torch.allclose(one.T_anchor_camera[:, 0], torch.eye(4).expand(4, 4, 4))
    assert one.f8 is None
