# SPDX-License-Identifier: Apache-2.0
"""The torch renderer shows what the Open3D renderer shows; on the CPU, in a small scene."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("open3d")
pytest.importorskip("torch")

from recon_ros.training.lighting import Lights
from recon_ros.training.render_cpu import Atlas, LitScene
from recon_ros.training.render_gpu import Textures, TorchScene
from recon_ros.training.surfaces import Builder, Material, Quads

WIDTH, HEIGHT = 40, 30
K = np.array([30.0, 31.0, 19.0, 15.0], np.float32)
LAMP = Lights(
    np.array([[0.5, 0.0, 1.6]], np.float32),
    np.array([[3.0, 2.5, 2.0]], np.float32),
    np.zeros((1, 3), np.float32),
    np.full(3, 0.3, np.float32),
)


def small_scene() -> Quads:
    rng = np.random.default_rng(0)
    b = Builder(rng)
    b.quad([(-2, 4, 0), (2, 4, 0), (2, -1, 0), (-2, -1, 0)], Material(1, 1.5, gloss=0.2))
    b.panel((-2, 4), (2, 4), 0, 2, Material(0, 0.8), [(0.5, 1.2, 0.8, 1.6)])
    with b.at(0.3, 2.0, 0, 0.4):
        b.box((-0.3, -0.3, 0), (0.3, 0.3, 0.5), Material(2, 0.0, tint=(1.0, 0.5, 0.4)))
    b.cylinder((-0.8, 2.2, 0), 0.25, 0.9, Material(0, 0.5), top_radius=0.1, sides=9)
    b.box((-0.4, 3.9, 1.4), (0.4, 3.95, 1.8), Material(2, 0.0, emission=2.0))
    return b.quads()


@pytest.fixture(scope="module")
def scenes() -> tuple[LitScene, TorchScene]:
    rng = np.random.default_rng(1)
    textures = np.repeat(np.repeat(rng.integers(0, 255, (3, 16, 16, 3)), 16, 1), 16, 2).astype(np.uint8)
    quads = small_scene()
    return (
        LitScene(quads, Atlas(textures), LAMP, np.random.default_rng(2)),
        TorchScene(quads, Textures(textures, "cpu"), LAMP, np.random.default_rng(2), "cpu", pairs=1 << 20),
    )


def pose(x: float, yaw: float) -> np.ndarray:
    T = np.eye(4)
    c, s = np.cos(yaw), np.sin(yaw)
    T[:3, :3] = np.stack([[c, -s, 0], [0.17 * s, 0.17 * c, -0.985], [0.985 * s, 0.985 * c, 0.17]], 1)
    T[:3, :3] = np.linalg.qr(T[:3, :3])[0] * np.sign(np.diag(np.linalg.qr(T[:3, :3])[1]))
    T[:3, 3] = x, -0.5, 0.9
    return T


def test_depth_is_the_same(scenes: tuple[LitScene, TorchScene]) -> None:
    cpu, gpu = scenes
    for T in (pose(0.0, 0.0), pose(0.5, 0.4)):
        expected, measured = (s.render(T, K, WIDTH, HEIGHT)[1] for s in scenes)
        assert np.isfinite(expected).any()
        assert np.isinf(expected).any()
        same = np.isclose(expected, measured, rtol=1e-4) | (np.isinf(expected) & np.isinf(measured))
        assert same.mean() > 0.99  # a ray along an edge may hit either side
    assert cpu is not gpu


def test_light_is_the_same(scenes: tuple[LitScene, TorchScene]) -> None:
    cpu, gpu = scenes
    assert np.median(np.abs(cpu._light - gpu._light.numpy())) < 1e-5
    T = pose(0.2, -0.2)
    expected, depth = cpu.render(T, K, WIDTH, HEIGHT)
    measured = gpu.render(T, K, WIDTH, HEIGHT)[0]
    seen = np.isfinite(depth)
    error = np.abs(expected - measured)[seen]
    assert expected[seen].mean() > 0.05
    # The one smooths along edges only and shades coarse levels in bytes.
    assert np.median(error) < 0.05 * expected[seen].mean()
    assert error.mean() < 0.15 * expected[seen].mean()


def test_views_of_a_batch_do_not_touch_each_other(scenes: tuple[LitScene, TorchScene]) -> None:
    gpu = scenes[1]
    poses, Ks = np.stack([pose(0.0, 0.0), pose(0.5, 0.4)]), np.stack([K, K * np.array([1.4, 1.4, 1, 1], np.float32)])
    colours, depths = gpu.render_batch(poses, Ks, WIDTH, HEIGHT)
    for i in range(2):
        colour, depth = gpu.render(poses[i], Ks[i], WIDTH, HEIGHT)
        assert np.allclose(colours[i].numpy(), colour, atol=1e-5)
        assert np.allclose(depths[i].numpy(), depth)


def test_what_moves_moves(scenes: tuple[LitScene, TorchScene]) -> None:
    gpu = scenes[1]
    T = pose(0.0, 0.0)
    before = gpu.render(T, K, WIDTH, HEIGHT)[1]
    gpu.move(gpu.quads.corners + np.array([0, 0.5, 0], np.float32))
    after = gpu.render(T, K, WIDTH, HEIGHT)[1]
    gpu.move(gpu.quads.corners)
    assert np.median(after[np.isfinite(after)]) > np.median(before[np.isfinite(before)])
    assert np.array_equal(gpu.render(T, K, WIDTH, HEIGHT)[1], before)
