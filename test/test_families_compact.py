# SPDX-License-Identifier: Apache-2.0
"""The compact network as a stream: the camera is part of what it sees, and what cannot be used changes nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; RECON_TORCH=1 make setup")

from recon_ros.errors import InputError  # noqa: E402
from recon_ros.geometry import se3  # noqa: E402
from recon_ros.geometry.camera import Camera  # noqa: E402
from recon_ros.networks.graphs import build_graphs  # noqa: E402
from recon_ros.networks.small import SMALL  # noqa: E402
from recon_ros.runtimes.families import CompactStep, make_step  # noqa: E402
from recon_ros.runtimes.torch_executor import TorchExecutor  # noqa: E402
from recon_ros.runtimes.torch_network import open_network  # noqa: E402

CAMERA = Camera.from_focal(96, 64, 80.0)


@pytest.fixture(scope="module")
def step() -> CompactStep:
    small = SMALL["compact-small"]
    graphs = build_graphs(open_network("compact-small").network, small.card, 96, 64)
    made = make_step(TorchExecutor(graphs), small.card)
    assert isinstance(made, CompactStep)
    return made


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    wide = rng.integers(0, 255, (64, 96 + 8 * count, 3), dtype=np.uint8)
    return [np.ascontiguousarray(wide[:, 8 * i : 8 * i + 96]) for i in range(count)]


def test_points_lie_on_the_cameras_rays(step: CompactStep) -> None:
    memory = step.initial_memory()
    for image in images(3):
        memory, prediction = step.step(memory, image, CAMERA)
        points = prediction.points_self
        assert np.allclose(points / points[..., 2:], CAMERA.rays(), atol=1e-5)
        assert (points[..., 2] > 0).all()
        assert prediction.confidence.min() >= 0 and prediction.confidence.max() <= 1
        assert se3.is_valid(prediction.T_memory_camera)
        assert prediction.descriptor is not None and np.isclose(np.linalg.norm(prediction.descriptor), 1, atol=1e-4)
    assert not np.allclose(prediction.T_memory_camera, np.eye(4))


def test_the_first_camera_is_the_anchor(step: CompactStep) -> None:
    _, prediction = step.step(step.initial_memory(), images(1)[0], CAMERA)
    assert np.allclose(prediction.T_memory_camera, np.eye(4), atol=1e-6)


def test_a_longer_lens_sees_farther_in_the_same_image(step: CompactStep) -> None:
    image = images(1)[0]
    near, far = (
        step.step(step.initial_memory(), image, Camera.from_focal(96, 64, focal))[1] for focal in (60.0, 120.0)
    )
    assert 1.3 < np.median(far.points_self[..., 2]) / np.median(near.points_self[..., 2]) < 3.0


def test_without_a_camera_the_last_one_goes_on_and_before_it_a_guess(step: CompactStep) -> None:
    first, second = images(2)
    memory, _ = step.step(step.initial_memory(), first, CAMERA)
    same, with_camera = step.step(memory, second, CAMERA), step.step(memory, second, None)
    assert np.array_equal(same[1].points_self, with_camera[1].points_self)
    _, guessed = step.step(step.initial_memory(), first, None)
    rays = Camera.from_focal(96, 64, 0.8 * 96).rays()
    assert np.allclose(guessed.points_self / guessed.points_self[..., 2:], rays, atol=1e-5)


def test_a_camera_that_is_none_is_refused_and_memory_stays(step: CompactStep) -> None:
    first, second = images(2)
    memory, _ = step.step(step.initial_memory(), first, CAMERA)
    before = step.save_memory(memory)
    K = CAMERA.K.copy()
    K[0, 0] = np.nan
    with pytest.raises(InputError) as refused:
        step.step(memory, second, dataclasses.replace(CAMERA, K=K))
    assert refused.value.reason == "camera"
    after = step.save_memory(memory)
    assert all(np.array_equal(after[name], array) for name, array in before.items())


def test_memory_is_saved_and_goes_on(step: CompactStep) -> None:
    first, second = images(2)
    memory, _ = step.step(step.initial_memory(), first, CAMERA)
    again = step.load_memory(step.save_memory(memory))
    assert np.array_equal(step.step(memory, second, None)[1].points_self, step.step(again, second, None)[1].points_self)
