# SPDX-License-Identifier: Apache-2.0
"""Losses: zero or lowest at the truth, blind to what has no truth, and finite whatever comes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed; RECON_TORCH=1 make setup")

from recon_ros.networks.compact_geometry import exp_se3  # noqa: E402
from recon_ros.training import losses  # noqa: E402
from recon_ros.training.losses import TrueMatches  # noqa: E402


def test_log_truth_is_at_the_centre_of_a_cell() -> None:
    v, u = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    depth = (2.0 + 0.01 * u + 0.003 * v)[None]
    for stride in (4, 8):
        truth, mask = losses.log_truth(depth, stride)
        assert mask.all() and truth.shape == (1, 1, 32 // stride, 48 // stride)
        centre = (torch.arange(48 // stride) + 0.5) * stride - 0.5
        wanted = 2.0 + 0.01 * centre + 0.003 * (stride / 2 - 0.5)
        assert torch.allclose(truth[0, 0, 0].exp(), wanted, rtol=1e-4)


def test_log_truth_takes_the_nearest_across_an_edge_and_nothing_from_holes() -> None:
    depth = torch.full((1, 8, 8), 4.0)
    depth[0, :, :4] = 1.0  # the edge is between the middle columns 3 and 4
    truth, mask = losses.log_truth(depth, 8)
    assert float(truth.exp()) == pytest.approx(1.0)
    depth[0, 3:5, 3:5] = 0
    _, mask = losses.log_truth(depth, 8)
    assert not mask.any()
    depth[0, 4, 4] = float("nan")
    truth, mask = losses.log_truth(depth, 8)
    assert not mask.any() and torch.isfinite(truth).all()


def test_what_has_no_truth_costs_nothing_and_pulls_at_nothing() -> None:
    prediction = torch.randn(2, 1, 6, 8, requires_grad=True)
    truth = torch.full((2, 1, 6, 8), float("nan"))
    mask = torch.zeros(2, 1, 6, 8, dtype=torch.bool)
    truth[0, :, :3], mask[0, :, :3] = 0.0, True
    cost = losses.absolute(prediction, truth, mask) + losses.edges(prediction, truth, mask)
    assert torch.isfinite(cost).all() and float(cost[1].detach()) == 0
    cost.sum().backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()
    assert not prediction.grad[1].any() and not prediction.grad[0, :, 4:].any() and prediction.grad[0, :, :3].any()


@given(st.floats(0.01, 1.0))
@settings(max_examples=30, deadline=None)
def test_doubt_is_drawn_to_the_error(error: float) -> None:
    truth, mask = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)

    def slope(log_scale: float) -> float:
        doubt = torch.full_like(truth, log_scale, requires_grad=True)
        losses.depth_nll(torch.full_like(truth, error), doubt, truth, mask).sum().backward()
        assert doubt.grad is not None
        return float(doubt.grad.sum())

    best = math.log(error)
    assert slope(best - 0.3) < 0 < slope(best + 0.3)
    assert slope(best) == pytest.approx(0, abs=1e-4)


def test_edges_ignore_a_common_factor_and_see_a_step() -> None:
    truth, mask = torch.rand(1, 1, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    assert float(losses.edges(truth + 0.7, truth, mask)) == pytest.approx(0, abs=1e-5)
    stepped = truth.clone()
    stepped[..., 4:] += 0.5
    assert float(losses.edges(stepped, truth, mask)) > 0.05


def test_plane_entropy_is_lowest_at_the_right_planes() -> None:
    planes = torch.linspace(math.log(0.25), math.log(16), 24)[None]
    truth = torch.full((1, 1, 1, 1), float(planes[0, 7]) * 0.75 + float(planes[0, 8]) * 0.25)
    mask = torch.ones_like(truth, dtype=torch.bool)
    right = torch.full((1, 24, 1, 1), -30.0)
    right[0, 7], right[0, 8] = math.log(0.75), math.log(0.25)
    lowest = float(losses.plane_entropy(right, planes, truth, mask))
    assert lowest == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=1e-4)
    assert float(losses.plane_entropy(right.roll(1, dims=1), planes, truth, mask)) > lowest
    beyond = torch.full_like(truth, math.log(40.0))
    assert float(losses.plane_entropy(right, planes, beyond, mask)) == 0


def _wall(shift: float) -> TrueMatches:
    """A wall at 2 m, the camera moved to the right by `shift` metres."""
    slot_depth = torch.full((1, 1, 8, 8), 2.0)
    T = torch.eye(4)[None, None].clone()
    T[..., 0, 3] = -shift
    K = torch.tensor([[50.0, 50.0, 31.5, 31.5]])
    return losses.true_matches(slot_depth, T, torch.ones(1, 1), K, torch.full((1, 64, 64), 2.0), 8)


def test_true_matches_of_a_wall() -> None:
    still = _wall(0.0)
    assert still.visible.all()
    assert torch.allclose(still.pixels[0, 0, 9], torch.tensor([11.5, 11.5]))
    moved = _wall(0.32)  # 8 pixels, one cell
    assert torch.allclose(moved.pixels[0, 0, 9], torch.tensor([3.5, 11.5]), atol=1e-5)
    assert not moved.visible[0, 0].reshape(8, 8)[:, 0].any() and moved.visible[0, 0].reshape(8, 8)[:, 1:].all()
    assert moved.known.all()


def test_what_is_hidden_or_has_moved_is_not_visible() -> None:
    slot_depth, K = torch.full((1, 1, 8, 8), 2.0), torch.tensor([[50.0, 50.0, 31.5, 31.5]])
    depth = torch.full((1, 64, 64), 2.0)
    depth[:, :32] = 1.0  # something is in front now
    matches = losses.true_matches(slot_depth, torch.eye(4)[None, None], torch.ones(1, 1), K, depth, 8)
    seen = matches.visible[0, 0].reshape(8, 8)
    assert not seen[:4].any() and seen[4:].all()
    empty = losses.true_matches(slot_depth, torch.eye(4)[None, None], torch.zeros(1, 1), K, depth, 8)
    assert not empty.known.any()


def test_match_losses_prefer_the_right_cell() -> None:
    truth = _wall(0.32)
    right = torch.full((1, 1, 64, 64), -20.0)
    for cell in range(64):
        right[0, 0, cell, max(cell - 1, 0)] = 0.0
    log_sum = torch.logsumexp(right, dim=-1)
    good = float(losses.match_entropy(right, log_sum, truth, 8, 8))
    wrong = right.roll(3, dims=-1)
    assert good < 0.01 < float(losses.match_entropy(wrong, torch.logsumexp(wrong, dim=-1), truth, 8, 8))
    error = losses.pixel_error(truth.pixels + torch.tensor([16.0, 0.0]), truth, 8)
    assert torch.allclose(error, torch.full_like(error, 2.0), atol=1e-3)
    trusted, doubted = torch.full_like(error, 0.9), torch.full_like(error, 0.1)
    assert float(losses.trust_entropy(doubted, error, truth)) < float(losses.trust_entropy(trusted, error, truth))


def test_pose_errors_have_slopes_everywhere() -> None:
    for angle in (0.0, 0.01, 1.0, math.pi):
        step = torch.tensor([[0.1, 0.0, 0.0, 0.0, angle, 0.0]], requires_grad=True)
        rotation, translation = losses.pose_errors(exp_se3(step), torch.eye(4)[None])
        assert float(translation.detach()) == pytest.approx(0.1, abs=1e-3)
        if angle < 0.5:
            assert float(rotation.detach()) == pytest.approx(angle, abs=2e-3)
        (rotation + translation).sum().backward()
        assert step.grad is not None and torch.isfinite(step.grad).all()


def test_masked_median() -> None:
    values = torch.tensor([[1.0, 2.0, 99.0], [5.0, 5.0, 5.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    found = losses.masked_median(values, mask).numpy()
    assert found[0] in (1.0, 2.0) and np.isfinite(found).all() and found[1] == 0
