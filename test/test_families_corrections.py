# SPDX-License-Identifier: Apache-2.0
"""What a correction of the map means for the memory of each family: nothing. It is kept; the map has its own frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_executor import FakeExecutor
from textured_room import CAMERA, TexturedRoom, walk

from recon_ros import Config, Frame, Reconstructor
from recon_ros.geometry import pointmap, se3
from recon_ros.mapping.atlas import Correction
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes.depth import DepthSource
from recon_ros.runtimes.families import make_step
from recon_ros.runtimes.step import StepRuntime

pytest.importorskip("gtsam", reason="needs gtsam")

ROOM = TexturedRoom()
COUNT = 8
UNIT = np.float32(0.25)
"""A metre, as the networks see it."""
FAMILIES = ("depth", "dust3r", "mast3r", "spann3r", "cut3r")


def points_of(step: int) -> np.ndarray:
    return UNIT * pointmap.from_depth(ROOM.render(walk(step))[1], CAMERA)


def relative(a: int, b: int) -> np.ndarray:
    T = se3.inverse(walk(a)) @ walk(b)
    T[:3, 3] *= UNIT
    return T


def pair(memory: dict[str, Any], step: int) -> dict[str, Any]:
    reference = int(memory["reference"]) if step else 0
    sure = np.full((240, 320), 5.0 if step - reference < 3 else 1.2, np.float32)
    return {
        "reference.next": np.float32(step if step - reference >= 3 else reference),
        "points1": points_of(reference),
        "confidence1": sure,
        "points2": se3.transform(relative(reference, step), points_of(step)),
        "confidence2": sure,
    }


def spann3r(memory: dict[str, Any], step: int) -> dict[str, Any]:
    sure = np.full((240, 320), 5.0, np.float32)
    return {"points": se3.transform(relative(0, step), points_of(step)), "confidence": sure}


def cut3r(memory: dict[str, Any], step: int) -> dict[str, Any]:
    T = relative(0, step)
    x, y, z, w = se3.quaternion(T)
    pose = np.array([*T[:3, 3], w, x, y, z], np.float32)
    return {"points": points_of(step), "confidence": np.full((240, 320), 5.0, np.float32), "pose": pose}


def source(family: str) -> StepRuntime:
    """A network of a family that is right, and remembers how many images it has seen."""
    if family == "depth":
        return DepthSource(Config().input)
    say = {"spann3r": spann3r, "cut3r": cut3r}.get(family, pair)

    def answer(memory: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
        step = int(memory["frames"])
        return {"frames.next": memory["frames"] + 1, "reference.next": memory["reference"], **say(memory, step)}

    executor = FakeExecutor(family, 320, 240, {"frames": 0, "reference": 0}, answer)
    return make_step(executor, ModelCard(name=family, family=family, multiple=16, unbounded_confidence=True))


def frame(step: int) -> Frame:
    image, depth = ROOM.render(walk(step))
    return Frame(10**9 + step * 10**8, image, CAMERA, depth)


def remembered(r: Reconstructor) -> dict[str, np.ndarray]:
    return dict(r.source.save_memory(r._memory))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_correction_leaves_the_memory_and_moves_the_poses(family: str) -> None:
    plain, moved = Reconstructor(Config(), source(family)), Reconstructor(Config(), source(family))
    turn = se3.exp(np.array([0, 0, 0, 0.1, -0.3, 0.2]))[:3, :3]
    G = se3.make(turn, [2.0, -1.0, 0.5], 1.0 if family == "depth" else 1.3)
    for step in range(COUNT):
        expected = plain.process(frame(step))
        if step == COUNT // 2:
            before = {k.id: k.T_world_camera for k in moved.keyframes}
            memory = remembered(moved)
            for keyframe_id, pose in before.items():
                moved._atlas.store.move(keyframe_id, G @ pose)
            moved._follow(Correction(before))
            assert_same(remembered(moved), memory)
        update = moved.process(frame(step))
        assert update.T_world_camera is not None and expected.T_world_camera is not None
        T = se3.rigid(G @ expected.T_world_camera) if step >= COUNT // 2 else expected.T_world_camera
        np.testing.assert_allclose(update.T_world_camera, T, atol=3e-3)
        for name in ("points_self", "confidence", "T_memory_camera", "points_memory"):  # to the bit
            np.testing.assert_array_equal(getattr(update.prediction, name), getattr(expected.prediction, name), name)
    assert_same(remembered(moved), remembered(plain))
    assert bool(remembered(moved)) == (family != "depth")


@pytest.mark.parametrize("family", FAMILIES)
def test_who_is_lost_and_found_goes_on_with_the_memory_it_has_or_a_new_one(family: str) -> None:
    """A network that begins anew tells poses in another frame; no increment goes from one frame to the other."""
    r = Reconstructor(Config(), source(family))
    for step in range(4):
        r.process(frame(step))
    r.lose()
    assert remembered(r) == {}
    for again in range(3):
        update = r.process(frame(again))
        assert update.T_world_camera is not None
        unit = 1.0 if family == "depth" else float(UNIT)
        truth = (se3.inverse(walk(0)) @ walk(again))[:3, 3] * unit
        np.testing.assert_allclose(update.T_world_camera[:3, 3], truth, atol=0.02)


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], name)
