# SPDX-License-Identifier: Apache-2.0
"""The compact network's geometry is right before anything is learned: poses, the sweep, memory, and its corrections."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; RECON_TORCH=1 make setup")

from recon_ros.networks.compact import (  # noqa: E402
    Compact,
    CompactConfig,
    CompactMemory,
    Measured,
    Seen,
    reanchor,
    unit,
)
from recon_ros.networks.compact_geometry import cell_centres, exp_se3, invert, rays_of, solve_positive, transform  # noqa: E402
from recon_ros.networks.compact_pose import PLACE_ERROR, _across  # noqa: E402
from recon_ros.networks.compact_sweep import sweep  # noqa: E402

K = torch.tensor([[210.0, 205.0, 126.0, 97.0]])
CODE = torch.randn(3, 24, generator=torch.Generator().manual_seed(5)) * 6.0
"""Frequencies of features that a point carries wherever it is seen from."""


@pytest.fixture(scope="module")
def network() -> Compact:
    torch.manual_seed(0)
    return Compact(CompactConfig(encoder="scratch", match_dim=24)).eval()


def features_of(points: torch.Tensor) -> torch.Tensor:
    """(1, 24, 24, 32) unit features of (1, 768, 3) points in the anchor's frame."""
    return unit(torch.cos(points @ CODE).transpose(1, 2).reshape(1, 24, 24, 32))


def wall(T_anchor_camera: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 768) depth and (1, 768, 3) anchor points of a bent wall z = 3 + 0.3 x seen by a camera."""
    rays = rays_of(cell_centres(24, 32, 8, K), K)
    directions = rays @ T_anchor_camera[:, :3, :3].transpose(1, 2)
    origin = T_anchor_camera[:, :3, 3]
    depth = (3.0 + 0.3 * origin[:, 0] - origin[:, 2]) / (directions[..., 2] - 0.3 * directions[..., 0])
    return depth, transform(T_anchor_camera, rays * depth[..., None])


def remembered(network: Compact, T_anchor_slot: torch.Tensor) -> CompactMemory:
    """A memory whose slots 0 and 1 hold the wall seen from a pose."""
    depth, points = wall(T_anchor_slot)
    memory = network.empty()
    valid = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    return memory._replace(
        match=features_of(points)[:, None].expand_as(memory.match).clone(),
        depth=depth.reshape(1, 1, 24, 32).expand_as(memory.depth).clone(),
        confidence=torch.ones_like(memory.confidence),
        T_anchor_slot=T_anchor_slot[:, None].expand(1, 4, 4, 4).clone(),
        K=K[:, None].expand(1, 4, 4).clone(),
        valid=valid,
    )


def taught(network: Compact) -> None:
    """What training teaches, by hand: matches are as wide as a cell, and believed where features are alike."""
    network.locator.log_temperature.fill_(math.log(12.0))
    first, last = network.locator.trust[0], network.locator.trust[2]
    for parameter in (first.weight, first.bias, last.weight, last.bias):
        parameter.zero_()
    first.weight[0, 3], first.bias[0], last.weight[0, 0], last.bias[0] = 100.0, -94.0, 2.0, -6.0


def seen_of(match: torch.Tensor) -> Seen:
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(1, 96, 24, 32, generator=generator)
    return Seen(match, context, torch.randn(1, 48, 48, 64, generator=generator), unit(torch.ones(1, 192)))


def test_positive_systems_are_solved_as_by_linalg() -> None:
    root = torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    A, b = root @ root.transpose(1, 2) + 0.1 * torch.eye(6), torch.arange(30.0, dtype=torch.float64).reshape(5, 6)
    assert torch.allclose(solve_positive(A, b), torch.linalg.solve(A, b), rtol=1e-9)


def test_steps_are_rigid() -> None:
    T = exp_se3(torch.tensor([[0.1, -0.2, 0.3, 0.5, -0.4, 0.9]], dtype=torch.float64))
    assert torch.allclose(T[:, :3, :3] @ T[:, :3, :3].transpose(1, 2), torch.eye(3, dtype=torch.float64), atol=1e-7)
    assert torch.allclose(invert(T) @ T, torch.eye(4, dtype=torch.float64), atol=1e-7)


@pytest.mark.parametrize("step", [(0.15, -0.05, 0.1, 0.02, 0.1, -0.05), (-0.3, 0.1, -0.2, -0.1, -0.2, 0.1)])
def test_a_pose_is_found_from_matches(network: Compact, step: tuple[float, ...]) -> None:
    T_slot, T_camera = exp_se3(torch.tensor([[0.2, 0.1, 0.0, 0.0, 0.1, 0.0]])), exp_se3(torch.tensor([step]))
    memory = remembered(network, T_slot)
    with torch.no_grad():
        taught(network)
        located = network.locate(seen_of(features_of(wall(T_camera)[1])), memory, K)
    wrong = invert(T_camera) @ located.T_anchor_camera
    turned = math.degrees(math.acos(min(1.0, (float(wrong[0, :3, :3].trace()) - 1) / 2)))
    # A cell is 2.2 degrees, and seen from 3 m a small turn and a small step to the side look the same.
    assert turned < 1.0
    assert float(wrong[0, :3, 3].norm()) < 0.06
    there, found = (transform(invert(T), located.points[:, 0]) for T in (T_camera, located.T_anchor_camera))
    apart = (there[..., :2] / there[..., 2:] - found[..., :2] / found[..., 2:]) * K[:, :2]
    assert float(apart.norm(dim=-1).median()) < 1.5


def test_no_error_is_less_than_nothing() -> None:
    """Points a hand's breadth before the camera: errors of thousands of cells, in the direction of their doubt."""
    generator = torch.Generator().manual_seed(0)
    moved = 5e3 * torch.randn(1, 4000, 2, generator=generator)
    error = moved * (0.5 + torch.rand(1, 4000, 1, generator=generator))
    shares = 1 / (PLACE_ERROR**2 + (moved * moved).sum(-1))
    along = (moved * error).sum(-1)
    rounded = (error * error).sum(-1) - shares * along * along
    assert (rounded < -1).any(), "rounding is that bad"
    assert (_across(error, along, shares) >= 0).all()
    far = _across(error[:, :1], 0 * along[:, :1], shares[:, :1])
    torch.testing.assert_close(far, (error[:, :1] ** 2).sum(-1))


def test_without_matches_the_camera_stays(network: Compact) -> None:
    memory = network.empty()._replace(T_last=exp_se3(torch.tensor([[0.3, 0.0, 0.0, 0.0, 0.2, 0.0]])))
    with torch.no_grad():
        located = network.locate(seen_of(unit(torch.randn(1, 24, 24, 32))), memory, K)
    assert torch.allclose(located.T_anchor_camera, memory.T_last, atol=1e-5)


def test_the_sweep_peaks_at_the_true_depth(network: Compact) -> None:
    T_camera = exp_se3(torch.tensor([[0.4, 0.05, 0.1, 0.0, 0.1, 0.0]]))
    memory = remembered(network, torch.eye(4)[None])
    depth, points = wall(T_camera)
    planes = torch.exp(torch.linspace(math.log(1.5), math.log(8.0), 60))[None]
    volume = sweep(
        features_of(points), *memory[:3], memory.valid, memory.T_anchor_slot, memory.K, T_camera, K, planes, 8
    ).reshape(3, 60, 768)
    inner = volume[2].amin(dim=0) > 0.4  # seen at every depth, by both slots of four
    assert inner.sum() > 200
    for kind, bound in ((0, 0.1), (1, 0.03)):
        best = planes[0, volume[kind].argmax(dim=0)]
        error = torch.abs(torch.log(best) - torch.log(depth[0]))[inner]
        # The planes are 0.028 apart. A tenth in depth is a third of a cell in the image.
        assert float(error.median()) < bound


def test_memory_keeps_the_last_image_and_keyframes(network: Compact) -> None:
    memory = network.empty()
    log_depth = torch.full((1, 1, 48, 64), math.log(2.0))
    measured = Measured(log_depth, log_depth * 0 - 2, torch.zeros(1, 40, 24, 32), torch.zeros(1, 40))
    steps = [0.0, 0.1, 0.2, 0.3, 0.4, 0.7]
    held = []
    for x in steps:
        T = exp_se3(torch.tensor([[x, 0.0, 0.0, 0.0, 0.0, 0.0]]))
        memory = network.remember(memory, seen_of(torch.ones(1, 24, 24, 32)), measured, T, K)
        held.append([round(float(v), 3) for v in memory.T_anchor_slot[0, :, 0, 3] * memory.valid[0]])
    # New is what has moved by 0.12 of the depth of 2 m.
    assert held[3] == [0.3, 0.3, 0.0, 0.0]
    assert held[4] == [0.4, 0.3, 0.0, 0.0]
    assert held[5] == [0.7, 0.7, 0.3, 0.0]


@pytest.mark.parametrize("scale", [1.0, 1.03])
def test_a_correction_applies_to_memory(network: Compact, scale: float) -> None:
    S = exp_se3(torch.tensor([[1.0, -2.0, 0.5, 0.3, -0.8, 0.4]]))[0]
    S[:3, :3] *= scale
    memory = remembered(network, exp_se3(torch.tensor([[0.2, 0.1, 0.0, 0.0, 0.1, 0.0]])))
    T_camera = exp_se3(torch.tensor([[0.3, 0.0, 0.1, 0.0, 0.15, 0.0]]))
    seen = seen_of(features_of(wall(T_camera)[1]))
    with torch.no_grad():
        taught(network)
        pose = network.locate(seen, memory, K).T_anchor_camera
        moved = reanchor(memory, S)
        corrected = network.locate(seen, moved, K).T_anchor_camera
        expected = S @ pose[0]
        expected[:3, :3] /= scale
        assert torch.allclose(corrected[0], expected, atol=2e-3)
        if scale == 1.0:
            depth = network.measure(seen, memory, pose, K).log_depth
            assert torch.allclose(network.measure(seen, moved, corrected, K).log_depth, depth, atol=5e-3)


def test_a_whole_step_is_finite_and_has_gradients() -> None:
    torch.manual_seed(3)
    network = Compact(CompactConfig(encoder="scratch", match_dim=24))
    memory, total = network.empty(2), torch.zeros(())
    cameras = K.expand(2, 4)
    for _ in range(3):
        located, measured, _, memory = network.step(torch.rand(2, 3, 192, 256), cameras, memory)
        depth, sure = network.full_depth(measured)
        assert depth.shape == sure.shape == (2, 192, 256)
        total = total + depth.log().abs().mean() + located.T_anchor_camera.square().mean() + sure.mean()
    total.backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values()), gradients.keys()


def test_ablations_change_what_they_name() -> None:
    torch.manual_seed(4)
    image, wide = torch.rand(1, 3, 192, 256), K * torch.tensor([0.5, 0.5, 1.0, 1.0])
    for rays in (True, False):
        network = Compact(CompactConfig(encoder="scratch", rays=rays)).eval()
        with torch.no_grad():
            depths = [network.step(image, camera, network.empty())[1].log_depth for camera in (K, wide)]
        assert torch.equal(depths[0], depths[1]) is not rays
    network = Compact(CompactConfig(encoder="scratch", match_dim=24, memory=False)).eval()
    with torch.no_grad():
        seen = network.see(image, network.encode(image), K)
        empty = network.measure(seen, network.empty(), torch.eye(4)[None], K)
        full = network.measure(seen, remembered(network, torch.eye(4)[None]), torch.eye(4)[None], K)
    assert torch.equal(empty.log_depth, full.log_depth)
