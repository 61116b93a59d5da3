# SPDX-License-Identifier: Apache-2.0
"""Spann3R's step: the pose is where the points are seen from, and what cannot be used changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_executor import FakeExecutor

from recon_ros.errors import InputError, NetworkError
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes.families import Spann3rStep, make_step
from recon_ros.runtimes.families.pose import find_pose

CARD = ModelCard(name="spann3r-test", family="spann3r", multiple=16, unbounded_confidence=True)
IMAGE = np.zeros((48, 64, 3), np.uint8)
CAMERA = Camera.from_focal(64, 48, 60.0)
POSES = [np.eye(4), se3.exp(np.array([0.1, 0, 0, 0, 0.05, 0])), se3.exp(np.array([0.2, 0.1, 0, 0, 0.1, 0]))]


def seen_scene(camera: Camera, T_world_camera: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 world points that a camera sees of a wavy surface in front of it."""
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    depth = 2 + 0.3 * np.sin(u / 7) + 0.3 * np.cos(v / 5)
    return se3.transform(T_world_camera, (camera.rays() * depth[..., None])).astype(np.float32)


def source(spoil: Any = lambda frame: {}) -> Spann3rStep:
    """A network that sees the scene from the next of `POSES`, whatever the image; `spoil` replaces what it says."""

    def answer(memory: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
        frame = int(memory["frames"])
        points = seen_scene(CAMERA, POSES[min(frame, len(POSES) - 1)])
        said = {"points": points, "confidence": np.full((48, 64), 3, np.float32), "frames.next": memory["frames"] + 1}
        return {**said, **spoil(frame)}

    step = make_step(FakeExecutor("spann3r", 64, 48, {"frames": 0}, answer), CARD)
    assert isinstance(step, Spann3rStep)
    return step


def test_the_pose_is_where_the_points_are_seen_from() -> None:
    T = se3.exp(np.array([0.3, -0.2, 0.1, 0.05, -0.1, 0.2]))
    points, confidence = seen_scene(CAMERA, T), np.full((48, 64), 5, np.float32)
    # Half of the image tells of another pose, and the network is not sure of it.
    points[:24] = seen_scene(CAMERA, np.eye(4))[:24]
    confidence[:24] = 1.5
    np.testing.assert_allclose(find_pose(points, confidence, CAMERA), T, atol=1e-3)
    with pytest.raises(InputError, match="focal length") as raised:
        find_pose(np.zeros((48, 64, 3), np.float32), confidence, CAMERA)
    assert raised.value.reason == "pose"


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_stream_gives_each_image_points_and_pose(calibrated: bool) -> None:
    step = source()
    memory = step.initial_memory()
    for T in POSES:
        memory, prediction = step.step(memory, IMAGE, CAMERA if calibrated else None)
        assert prediction.T_memory_camera is not None
        np.testing.assert_allclose(prediction.T_memory_camera, T, atol=2e-3)
        np.testing.assert_allclose(prediction.points_self, seen_scene(CAMERA, np.eye(4)), atol=1e-2)
        np.testing.assert_allclose(prediction.points_memory, seen_scene(CAMERA, T), atol=1e-5)
        assert prediction.confidence.shape == (48, 64) and not prediction.is_metric
        np.testing.assert_array_equal(prediction.descriptor, np.ones(4, np.float32))
    assert float(memory["focal"]) == pytest.approx(60.0, rel=0.01)
    assert step.runtime == "fake" and step.size == (64, 48)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"health": np.float32(np.nan)}, "network_output"),
        ({"health.write": np.float32(np.inf)}, "network_output"),
        ({"points": np.zeros((48, 64, 3), np.float32)}, "pose"),
    ],
)
def test_an_unusable_answer_is_told_and_changes_nothing(said: dict[str, Any], reason: str) -> None:
    step = source(lambda frame: said if frame == 1 else {})
    memory, _ = step.step(step.initial_memory(), IMAGE, CAMERA)
    before = step.save_memory(memory)
    with pytest.raises(InputError) as raised:
        step.step(memory, IMAGE, CAMERA)
    assert raised.value.reason == reason
    assert {name: array.tolist() for name, array in step.save_memory(memory).items()} == {
        name: array.tolist() for name, array in before.items()
    }


def test_an_image_of_another_size_is_refused() -> None:
    step = source()
    memory, _ = step.step(step.initial_memory(), IMAGE, CAMERA)
    for given in (step.initial_memory(), memory):
        with pytest.raises(InputError, match="not of the first one's size 64x48") as raised:
            step.step(given, np.zeros((64, 48, 3), np.uint8), None)
        assert raised.value.reason == "image_size"


def test_a_saved_memory_goes_on_elsewhere() -> None:
    first, second = source(), source()
    memory, _ = first.step(first.initial_memory(), IMAGE, None)
    moved = second.load_memory(first.save_memory(memory))
    for _ in range(2):
        memory, expected = first.step(memory, IMAGE, None)
        moved, found = second.step(moved, IMAGE, None)
        np.testing.assert_array_equal(found.T_memory_camera, expected.T_memory_camera)
    assert second.load_memory(second.save_memory(second.initial_memory())) == second.initial_memory()
    first.close()
    assert first.executor.is_closed and not second.executor.is_closed


def test_a_damaged_saved_memory_is_refused() -> None:
    step = source()
    saved = step.save_memory(step.step(step.initial_memory(), IMAGE, CAMERA)[0])
    damages: list[tuple[dict[str, Any], str]] = [
        ({k: v for k, v in saved.items() if k != "host.focal"}, "beside the network's own"),
        ({k: v for k, v in saved.items() if k != "host.size"}, "beside the network's own"),
        ({k: v for k, v in saved.items() if k != "frames"}, "a memory of this spann3r has"),
        ({**saved, "host.size": np.array([48, 64])}, "is of 48x64 images, not of 64x48"),
        ({**saved, "host.focal": np.zeros(3)}, r"focal .* has the shape \(3,\)"),
        ({**saved, "frames": saved["frames"].astype(np.float64)}, "frames .* is float32"),
    ]
    for damaged, message in damages:
        with pytest.raises(NetworkError, match=message):
            step.load_memory(damaged)


def test_an_unknown_family_is_told() -> None:
    with pytest.raises(NetworkError, match="no step for a network of family 'vggt'"):
        make_step(FakeExecutor("vggt", 64, 48, {}, lambda memory, image: {}), CARD)
