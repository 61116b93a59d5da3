# SPDX-License-Identifier: Apache-2.0
"""Streaming with a network of image pairs: an oracle sees each pair in a scale of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_executor import FakeExecutor
from textured_room import CAMERA, TexturedRoom, walk

from recon_ros.errors import InputError
from recon_ros.geometry import pointmap, se3
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes.families import PairStep, make_step

ROOM = TexturedRoom()
FAR = 5
"""Steps apart at which two views of the walk count as having little in common."""

Scale = Callable[[int], float]


def oracle(scale: Scale = lambda step: 1.0, metric: bool = False) -> PairStep:
    """Knows the room; the first pixel of an image says which step of the walk it shows."""

    def answer(memory: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
        j = int(image[0, 0, 0])
        i = j if memory["is_first"] else int(memory["reference"].item())
        outputs = {"reference.next": np.full((1, 1, 1), j, np.float32), "is_first.next": np.zeros(1, np.float32)}
        for view, step in (("1", i), ("2", j)):
            points = pointmap.from_depth(ROOM.render(walk(step))[1], CAMERA)
            points = se3.transform(se3.inverse(walk(i)) @ walk(step), points) * np.float32(scale(j))
            sure = 1.2 if abs(i - j) >= FAR else 5.0
            outputs |= {f"points{view}": points, f"confidence{view}": np.full((240, 320), sure, np.float32)}
        outputs["health.decode"] = np.abs(outputs["points2"]).mean()
        return outputs

    executor = FakeExecutor("dust3r", 320, 240, {"reference": np.zeros((1, 1, 1)), "is_first": np.ones(1)}, answer)
    step = make_step(executor, ModelCard(name="oracle", family="dust3r", multiple=16, is_metric=metric))
    assert isinstance(step, PairStep)
    return step


def image_of(step: int) -> np.ndarray:
    return np.full((240, 320, 3), step, np.uint8)


def run(source: PairStep, calibrated: bool = True, count: int = 12) -> tuple[list[Any], Any]:
    memory, predictions = source.initial_memory(), []
    for step in range(count):
        memory, prediction = source.step(memory, image_of(step), CAMERA if calibrated else None)
        predictions.append(prediction)
    return predictions, memory


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("scale", [lambda step: 1.0, lambda step: 0.4 + 0.2 * (step % 4)])
def test_poses_and_points_keep_the_first_pairs_scale(scale: Any, calibrated: bool) -> None:
    source = oracle(scale)
    predictions, memory = run(source, calibrated=calibrated)
    unit = scale(0)
    for step, prediction in enumerate(predictions):
        truth = se3.inverse(walk(0)) @ walk(step)
        truth[:3, 3] *= unit
        moved, turned = se3.distance(se3.inverse(truth) @ prediction.T_memory_camera)
        # Exact points: what is left is PnP without refinement, and two changes of the reference on the way.
        assert moved < 0.01 and turned < 0.005, step
        expected = unit * pointmap.from_depth(ROOM.render(walk(step))[1], CAMERA)
        assert np.median(np.abs(prediction.points_self - expected)) < 0.01
    assert int(source.save_memory(memory)["reference"].item()) == 10, "steps 5 and 10 have become references"


def test_a_metric_network_is_taken_at_its_word() -> None:
    predictions, _ = run(oracle(lambda step: 2.0, metric=True), count=3)
    assert predictions[2].is_metric
    assert np.linalg.norm(predictions[2].T_memory_camera[:3, 3]) == pytest.approx(
        2 * np.linalg.norm(walk(2)[:3, 3] - walk(0)[:3, 3]), abs=0.01
    )


def test_a_step_leaves_the_memory_it_is_given() -> None:
    source = oracle()
    memory, _ = source.step(source.initial_memory(), image_of(0), CAMERA)
    before = source.save_memory(memory)
    after, _ = source.step(memory, image_of(7), CAMERA)
    assert all(np.array_equal(array, before[name]) for name, array in source.save_memory(memory).items())
    saved = source.save_memory(after)
    assert int(saved["reference"].item()) == 7
    assert {name: array.shape for name, array in saved.items()} == {n: array.shape for n, array in before.items()}


def test_the_memory_is_the_same_as_long_as_the_reference_is() -> None:
    """An executor with two buffers keeps one memory for as long as it is stepped from."""
    source = oracle()
    first, _ = source.step(source.initial_memory(), image_of(0), CAMERA)
    second, _ = source.step(first, image_of(1), CAMERA)
    third, _ = source.step(second, image_of(FAR), CAMERA)
    assert second is first and third is not first


def test_a_saved_memory_goes_on_elsewhere() -> None:
    def scale(step: int) -> float:
        return 0.4 + 0.2 * (step % 4)

    source, other = oracle(scale), oracle(scale)
    _, memory = run(source, count=8)
    _, expected = source.step(memory, image_of(9), None)
    _, found = other.step(other.load_memory(source.save_memory(memory)), image_of(9), None)
    np.testing.assert_array_equal(found.T_memory_camera, expected.T_memory_camera)
    np.testing.assert_array_equal(found.points_memory, expected.points_memory)


def test_what_cannot_be_is_refused() -> None:
    source = oracle()
    memory, _ = source.step(source.initial_memory(), image_of(0), CAMERA)
    with pytest.raises(InputError, match="not of the first one's size"):
        source.step(memory, np.zeros((224, 320, 3), np.uint8), CAMERA)
    nowhere = oracle(lambda step: np.nan if step else 1.0)
    memory, _ = nowhere.step(nowhere.initial_memory(), image_of(0), CAMERA)
    with pytest.raises(InputError, match="not finite") as raised:
        nowhere.step(memory, image_of(1), CAMERA)
    assert raised.value.reason == "network_output"
