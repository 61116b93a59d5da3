# SPDX-License-Identifier: Apache-2.0
"""RGB-only streams through the core: an oracle in a network's place, and a real network with random weights."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import message_factory as mf
import numpy as np
import pytest
from numpy.typing import NDArray
from recon_command import recon, report_of
from textured_room import CAMERA, TexturedRoom, walk

from recon_ros import Camera, Config, Frame, Reconstructor, load_network
from recon_ros.config import updated
from recon_ros.errors import ConfigError, NetworkError
from recon_ros.frame import Prediction, State
from recon_ros.geometry import align, pointmap, se3
from recon_ros.mapping.atlas import Correction
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes.depth import DepthSource

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")

START_NS, STEP_NS = 1_700_000_000_000_000_001, 100_000_000
COUNT = 12
ROOM = TexturedRoom()
SCALE = 0.25
"""The oracle's unit: four metres. Most networks do not know the metre."""


class Oracle:
    """A perfect network: the room's true points, and the true motion, in a unit of its own."""

    card = ModelCard(name="oracle", family="oracle", multiple=16, unbounded_confidence=True)
    runtime = "numpy"

    def __init__(self, tells_pose: bool = True, blur: float = 0.0) -> None:
        self.tells_pose, self.blur = tells_pose, blur
        self.seen_cameras: list[Camera | None] = []

    def initial_memory(self) -> int:
        return 0

    def step(
        self, memory: int, image: NDArray[np.uint8], camera: Camera | None, depth: NDArray[np.float32] | None = None
    ) -> tuple[int, Prediction]:
        assert depth is None, "RGB only"
        self.seen_cameras.append(camera)
        _, true_depth = ROOM.render(walk(memory))
        points = SCALE * pointmap.from_depth(true_depth, CAMERA)
        points = points + np.random.default_rng(memory).normal(0, self.blur, points.shape).astype(np.float32)
        T_memory_camera = se3.inverse(walk(0)) @ walk(memory)
        T_memory_camera[:3, 3] *= SCALE
        pose = T_memory_camera if self.tells_pose else None
        return memory + 1, Prediction(points, np.full(true_depth.shape, 5.0, np.float32), pose)


def frame(step: int, camera: Camera | None = CAMERA, blank: bool = False) -> Frame:
    image, _ = ROOM.render(walk(step))
    return Frame(START_NS + step * STEP_NS, np.full_like(image, 90) if blank else image, camera)


def position_errors(r: Reconstructor) -> NDArray[np.float64]:
    """Metres off after a Sim(3) alignment."""
    truth = np.array([walk(i)[:3, 3] for i in range(len(r.trajectory()))])
    estimate = r.trajectory().positions
    # A straight path leaves a rotation open; the first camera's frame is the world, so only the scale is sought.
    scale = np.linalg.norm(truth[-1] - truth[0]) / np.linalg.norm(estimate[-1] - estimate[0])
    return np.linalg.norm(scale * estimate - (truth - truth[0]), axis=1)


@pytest.mark.parametrize("tells_pose", [True, False])
def test_a_network_in_place_of_depth_tracks_and_maps(tells_pose: bool) -> None:
    r = Reconstructor(Config(), Oracle(tells_pose))
    updates = [r.process(frame(i)) for i in range(COUNT)]
    assert all(u.state is State.TRACKING and u.inliers >= 20 for u in updates[1:])
    # 1.5 px at 4 m and 260 px are 23 mm; hundreds of points leave a few millimetres.
    assert position_errors(r).max() < 0.02
    assert len(r.map_cloud()) > 1000
    assert not any(u.is_metric for u in updates) and not r.keyframes[0].is_metric
    assert 0 < float(r.keyframes[0].confidence.max()) <= 1, "confidence in [1, ∞) is brought to [0, 1]"


def test_without_calibration_the_focal_length_is_found() -> None:
    oracle = Oracle()
    r = Reconstructor(Config(), oracle)
    updates = [r.process(frame(i, camera=None)) for i in range(COUNT)]
    assert oracle.seen_cameras == [None] * COUNT
    assert updates[-1].camera.fx == pytest.approx(CAMERA.fx, rel=0.01)
    assert position_errors(r).max() < 0.02


def test_points_are_put_on_calibrated_rays() -> None:
    r = Reconstructor(Config(), Oracle(blur=0.01))
    update = r.process(frame(0))
    points = update.prediction.points_self
    np.testing.assert_allclose(points, update.camera.rays() * points[..., 2:], atol=1e-6)


def test_a_network_is_believed_where_nothing_can_confirm_it() -> None:
    """A covered lens: no keypoints, but the network says how it moved."""
    r = Reconstructor(Config(), Oracle())
    for i in range(3):
        r.process(frame(i))
    believed = [r.process(frame(3 + i, blank=True)) for i in range(2)]
    for i, update in enumerate(believed):
        assert update.state is State.TRACKING and update.inliers == 0 and update.confidence == 0
        assert update.T_world_camera is not None
        truth = se3.inverse(walk(0)) @ walk(3 + i)
        np.testing.assert_allclose(update.T_world_camera[:3, 3], SCALE * truth[:3, 3], atol=0.01)
    silent = Reconstructor(Config(), Oracle(tells_pose=False))
    for i in range(3):
        silent.process(frame(i))
    assert silent.process(frame(3, blank=True)).T_world_camera is None


def test_the_map_has_the_networks_unit() -> None:
    r = Reconstructor(Config(), Oracle())
    for i in range(COUNT):
        r.process(frame(i))
    cloud = r.map_cloud()
    extent = np.ptp(cloud.points[:, 2])
    _, depth = ROOM.render(walk(0))
    assert extent == pytest.approx(SCALE * np.ptp(depth), rel=0.3)
    assert np.isfinite(align.procrustes(cloud.points[:50], cloud.points[:50])).all()


# --- a real network


@needs_torch
def test_random_weights_run_through_every_stage() -> None:
    config = updated(Config(), {"source": "random-small", "runtime": "torch"})
    r = Reconstructor(config)
    assert "random weights" in r.source.card.name
    camera = Camera.from_focal(128, 128, 110.0)
    small = [replace(f, image=f.image[:128, :128].copy(), camera=camera) for f in map(frame, range(4))]
    updates = [r.process(f) for f in small]
    assert updates[0].image.shape[:2] == (128, 128) and r.source.runtime == "torch fp32"
    assert all(np.isfinite(u.T_world_camera).all() for u in updates if u.T_world_camera is not None)
    again = Reconstructor(config)
    for a, b in zip(updates, [again.process(f) for f in small], strict=True):
        np.testing.assert_array_equal(a.prediction.points_self, b.prediction.points_self)


@needs_torch
def test_the_step_leaves_the_memory_it_is_given() -> None:
    source = load_network("random-small")
    image = frame(0).image[:96, :128].copy()
    memory = source.initial_memory()
    after, first = source.step(memory, image, None)
    source.step(after, 255 - image, None)
    _, again = source.step(source.initial_memory(), image, None)
    np.testing.assert_array_equal(first.points_self, again.points_self)


@needs_torch
def test_the_update_rule_is_the_one_asked_for() -> None:
    image = frame(0).image[:96, :128].copy()
    states = []
    for rule in ("overwrite", "ttt3r", "filt3r"):
        source = load_network("random-small", update_rule=rule)
        memory = source.initial_memory()
        for shift in range(3):
            memory, _ = source.step(memory, np.roll(image, 16 * shift, axis=1), None)
        states.append(source.save_memory(memory)["state"])
    assert not np.allclose(states[0], states[1]) and not np.allclose(states[0], states[2])
    assert not np.allclose(states[1], states[2])


def test_weights_that_are_not_here_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NetworkError, match="recon models fetch dust3r_512_dpt"):
        load_network("dust3r_512_dpt")
    with pytest.raises(NetworkError, match="which is not a file"):
        load_network("dust3r_512_dpt", weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize("name", ["dust3r_512_dbt", "depths"])
def test_an_unknown_network_names_the_known(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"'source' is '{name}'; it must be depth, auto, or .*dust3r_512_dpt"):
        Reconstructor(updated(Config(), {"source": name}))


@needs_torch
def test_recon_run_takes_images_only(tmp_path: Path) -> None:
    """The recording has no depth at all."""
    entries: list[Any] = []
    for i in range(4):
        stamp = START_NS + i * STEP_NS
        image = frame(i).image
        entries.append(("/camera/image_raw", stamp, mf.image(image, "rgb8", stamp_ns=stamp)))
        entries.append(("/camera/camera_info", stamp, mf.camera_info(320, 240, 260.0, stamp_ns=stamp)))
    bag = mf.write_bag(tmp_path / "bag", entries)
    recon("run", bag, "--out", tmp_path / "out", "--source", "random-small", "--set", "runtime=torch")
    report = report_of(tmp_path / "out")
    assert report["processed"] == 4 and report["metric_scale"] is False
    assert report["source"] == "random-small" and report["runtime"] == "torch fp32"


def test_recon_run_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = recon("run", tmp_path / "bag", "--out", tmp_path / "out", "--source", "cut3r_512_dpt", code=1)
    assert "cut3r_512_dpt.pth" in result.stderr or "cut3r_512_dpt_4_64.pth" in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1


def taken(oracle: Oracle) -> Reconstructor:
    return Reconstructor(Config(), oracle)


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("tells_pose", [True, False])
def test_a_correction_leaves_a_networks_memory_as_it_is(tells_pose: bool, scale: float) -> None:
    """Only the increments of a network's poses are used, in the map's unit: the whole map may move and shrink, the
    network goes on undisturbed."""
    pytest.importorskip("gtsam", reason="needs gtsam")
    plain, moved = taken(Oracle(tells_pose)), taken(Oracle(tells_pose))
    G = se3.make(se3.exp(np.array([0, 0, 0, 0.1, -0.3, 0.2]))[:3, :3], [2.0, -1.0, 0.5], scale)
    for i in range(COUNT):
        expected = plain.process(frame(i))
        if i == COUNT // 2:
            before = {k.id: k.T_world_camera for k in moved.keyframes}
            for keyframe_id, pose in before.items():
                moved._atlas.store.move(keyframe_id, G @ pose)
            moved._follow(Correction(before))
        update = moved.process(frame(i))
        assert update.T_world_camera is not None and expected.T_world_camera is not None
        T_expected = se3.rigid(G @ expected.T_world_camera) if i >= COUNT // 2 else expected.T_world_camera
        np.testing.assert_allclose(update.T_world_camera, T_expected, atol=2e-3)
        # The same images and memories in, the same out: to the bit.
        np.testing.assert_array_equal(update.prediction.points_self, expected.prediction.points_self)
    assert moved._memory == plain._memory == COUNT
    for keyframe in moved.keyframes:  # the new ones as well
        assert se3.scale_of(keyframe.T_world_camera) == pytest.approx(scale, rel=0.01)


def test_a_network_whose_unit_drifts_is_held_to_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame's points are 1 % larger than those of the one before."""
    monkeypatch.setattr("recon_ros.reconstructor.is_keyframe", lambda *_: True)

    class Swelling(Oracle):
        def step(self, memory: int, *arguments: Any) -> tuple[int, Prediction]:
            after, prediction = super().step(memory, *arguments)
            return after, replace(prediction, points_self=np.float32(1.01**memory) * prediction.points_self)

    r = taken(Swelling(tells_pose=False))
    for i in range(COUNT):
        assert r.process(frame(i)).T_world_camera is not None
    assert position_errors(r).max() < 0.03
    expected = [1.01**-i for i in range(COUNT)]
    np.testing.assert_allclose([se3.scale_of(k.T_world_camera) for k in r.keyframes], expected, rtol=0.01)
    blank = r.process(frame(COUNT, blank=True))
    assert blank.T_world_camera is None


def test_depth_is_taken_for_as_good_as_the_card_says() -> None:
    config = Config()
    for error, sigma, surface in ((0.0, 0.01, 0.02), (0.03, 0.03, 0.02), (0.15, 0.15, 0.0)):
        source = DepthSource(config.input)
        source.card = replace(source.card, depth_error=error)
        reconstructor = Reconstructor(config, source=source)
        used = reconstructor._tracker.config
        assert (used.depth_sigma, used.surface_sigma) == (sigma, surface)
        reconstructor.set_config(config)
        assert reconstructor._tracker.config == used == reconstructor._atlas.config.tracking, "loops, too"
        reconstructor.close()
