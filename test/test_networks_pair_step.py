# SPDX-License-Identifier: Apache-2.0
"""Streaming with a network of image pairs: an oracle sees each pair in a scale of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from textured_room import CAMERA, TexturedRoom, walk  # noqa: E402

from recon_ros.errors import InputError  # noqa: E402
from recon_ros.geometry import pointmap, se3  # noqa: E402
from recon_ros.networks.card import ModelCard  # noqa: E402
from recon_ros.networks.heads import Pointmap  # noqa: E402
from recon_ros.networks.pair import Encoding  # noqa: E402
from recon_ros.networks.pair_step import PairStep  # noqa: E402

ROOM = TexturedRoom()
FAR = 5
"""Steps apart at which two views of the walk count as having little in common."""


class PairOracle:
    """Knows the room; the first pixel of an image says which step of the walk it shows."""

    config = SimpleNamespace(patch=16)
    mask_token = torch.zeros(1)

    def __init__(self, scale: Any = lambda step: 1.0) -> None:
        self.scale = scale

    def eval(self) -> PairOracle:
        return self

    def encode(self, images: Any) -> Encoding:
        step = torch.round((images[:, 0, 0, 0] + 1) * 127.5)
        rows, columns = (side // 16 for side in images.shape[-2:])
        return Encoding(step.reshape(1, 1, 1), torch.zeros(1, 1, 2, dtype=torch.int64), rows, columns)

    def pair(self, first: Encoding, second: Encoding) -> tuple[Pointmap, Pointmap]:
        i, j = int(first.features), int(second.features)
        maps = []
        for step in (i, j):
            points = pointmap.from_depth(ROOM.render(walk(step))[1], CAMERA)
            points = se3.transform(se3.inverse(walk(i)) @ walk(step), points) * np.float32(self.scale(j))
            sure = 1.2 if abs(i - j) >= FAR else 5.0
            maps.append(Pointmap(torch.from_numpy(points)[None], torch.full((1, 240, 320), sure)))
        return maps[0], maps[1]


def run(oracle: PairOracle, metric: bool = False, calibrated: bool = True, count: int = 12) -> tuple[list[Any], Any]:
    source = PairStep(oracle, ModelCard(name="oracle", family="dust3r", multiple=16, is_metric=metric))  # type: ignore[arg-type]
    memory, predictions = source.initial_memory(), []
    for step in range(count):
        image = np.full((240, 320, 3), step, np.uint8)
        memory, prediction = source.step(memory, image, CAMERA if calibrated else None)
        predictions.append(prediction)
    return predictions, memory


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("scale", [lambda step: 1.0, lambda step: 0.4 + 0.2 * (step % 4)])
def test_poses_and_points_keep_the_first_pairs_scale(scale: Any, calibrated: bool) -> None:
    predictions, memory = run(PairOracle(scale), calibrated=calibrated)
    unit = scale(0)
    for step, prediction in enumerate(predictions):
        truth = se3.inverse(walk(0)) @ walk(step)
        truth[:3, 3] *= unit
        moved, turned = se3.distance(se3.inverse(truth) @ prediction.T_memory_camera)
        # Exact points: what is left is PnP without refinement, and two changes of the reference on the way.
        assert moved < 0.01 and turned < 0.005, step
        expected = unit * pointmap.from_depth(ROOM.render(walk(step))[1], CAMERA)
        assert np.median(np.abs(prediction.points_self - expected)) < 0.01
    assert int(memory["features"]) == 10, "steps 5 and 10 have become references"


def test_a_metric_network_is_taken_at_its_word() -> None:
    predictions, _ = run(PairOracle(lambda step: 2.0), metric=True, count=3)
    assert predictions[2].is_metric
    assert np.linalg.norm(predictions[2].T_memory_camera[:3, 3]) == pytest.approx(
        2 * np.linalg.norm(walk(2)[:3, 3] - walk(0)[:3, 3]), abs=0.01
    )


def test_a_step_leaves_the_memory_it_is_given() -> None:
    source = PairStep(PairOracle(), ModelCard(name="oracle", family="dust3r", multiple=16))  # type: ignore[arg-type]
    memory, _ = source.step(source.initial_memory(), np.zeros((240, 320, 3), np.uint8), CAMERA)
    before = {name: tensor.clone() for name, tensor in memory.items()}
    after, _ = source.step(memory, np.full((240, 320, 3), 7, np.uint8), CAMERA)
    assert all(torch.equal(memory[name], before[name]) for name in before)
    assert int(after["features"]) == 7 and {n: t.shape for n, t in after.items()} == {
        n: t.shape for n, t in before.items()
    }


def test_what_cannot_be_is_refused() -> None:
    source = PairStep(PairOracle(), ModelCard(name="oracle", family="dust3r", multiple=16))  # type: ignore[arg-type]
    memory, _ = source.step(source.initial_memory(), np.zeros((240, 320, 3), np.uint8), CAMERA)
    with pytest.raises(InputError, match="not of the first one's size"):
        source.step(memory, np.zeros((224, 320, 3), np.uint8), CAMERA)
    with pytest.raises(InputError, match="multiples of 16"):
        source.step(memory, np.zeros((230, 320, 3), np.uint8), CAMERA)
    nowhere = PairStep(PairOracle(lambda step: np.nan if step else 1.0), source.card)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not finite"):
        nowhere.step(memory, np.full((240, 320, 3), 1, np.uint8), CAMERA)
