# SPDX-License-Identifier: Apache-2.0
"""CUT3R's, TTT3R's and FILT3R's state updates: against the equations in float64, and over long runs."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks need torch; install it to run their tests")

from recon_ros.networks.update_rules import RULES, Filt3r, Overwrite, Ttt3r, select, where  # noqa: E402

BATCH, TOKENS, DIM = 2, 5, 8


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def candidates(seed: int, frames: int, jump_at: int | None = None, drift: float = 0.1) -> np.ndarray:
    """(frames, B, S, D) float64 that drift slowly.

    Two tokens jump once, so that the noise switches over, and one is lively, its change near the threshold.
    """
    rng = np.random.default_rng(seed)
    track = np.cumsum(rng.normal(scale=drift, size=(frames, BATCH, TOKENS, DIM)), axis=0)
    track[:, :, -1] *= 7.0
    if jump_at is not None:
        track[jump_at:, :, :2] += 5.0
    return track.astype(np.float32).astype(np.float64)


def filt3r_reference(state: np.ndarray, frames: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """FILT3R's equations of one sample, token by token, in float64: states and variances after each frame."""
    states, variances = [], []
    variance = np.full(len(state), 1.5)
    previous = level = None
    for candidate in frames:
        if previous is None:
            state, variance = candidate.copy(), np.full(len(state), 1.5)
        else:
            change = np.array([np.sqrt(np.sum((a - b) ** 2)) for a, b in zip(candidate, previous, strict=True)])
            level = change.mean() if level is None else 0.95 * level + 0.05 * change.mean()
            level = max(level, 1e-2)
            state, variance = state.copy(), variance.copy()
            for token in range(len(state)):
                g = change[token] / level
                q = 0.02 + (0.5 - 0.02) / (1 + np.exp(-20 * (g - 3)))
                predicted = variance[token] + q
                gain = np.clip(predicted / (predicted + 1), 0.01, 0.99)
                state[token] += gain * (candidate[token] - state[token])
                variance[token] = (1 - gain) ** 2 * predicted + gain**2
        previous = candidate
        states.append(state)
        variances.append(variance)
    return states, variances


def run_filt3r(state: np.ndarray, frames: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same of a batch, by the rule."""
    rule, now = Filt3r(), tensor(state)
    memory, states, variances = rule.start(now), [], []
    for candidate in frames:
        now, memory = rule.update(now, tensor(candidate), memory, None)
        states.append(now.numpy())
        variances.append(memory["variance"].numpy())
    return states, variances


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("drift", [0.1, 1.5e-3])  # the second's changes are under the floor of the level
def test_filt3r_follows_its_equations(seed: int, drift: float) -> None:
    frames = candidates(seed, 40, jump_at=20, drift=drift)
    start = np.random.default_rng(seed + 100).normal(size=frames.shape[1:])
    states, variances = run_filt3r(start, frames)
    for sample in range(BATCH):
        wanted_states, wanted_variances = filt3r_reference(start[sample], frames[:, sample])
        for index in range(len(frames)):
            np.testing.assert_allclose(states[index][sample], wanted_states[index], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(variances[index][sample], wanted_variances[index], rtol=1e-4, atol=1e-6)


def test_filt3r_reference_is_sensitive() -> None:
    """The jump really switches the process noise over, so that the comparison covers both ends of it."""
    frames = candidates(0, 40, jump_at=20)
    _, variances = run_filt3r(np.zeros(frames.shape[1:]), frames)
    before, after = variances[19][0], variances[20][0]
    assert np.all(after[:2] > before[:2] + 0.1)
    assert np.all(np.abs(after[2:-1] - before[2:-1]) < 0.01)


def test_filt3r_first_frame_is_the_candidate() -> None:
    frames = candidates(1, 1)
    states, variances = run_filt3r(np.full(frames.shape[1:], 7.0), frames)
    np.testing.assert_array_equal(states[0], frames[0].astype(np.float32))
    np.testing.assert_array_equal(variances[0], np.float32(1.5))


def test_filt3r_smooths() -> None:
    """Of a constant seen through noise, the state is nearer than its measurements."""
    rng = np.random.default_rng(3)
    frames = 2.0 + rng.normal(size=(200, BATCH, TOKENS, DIM))
    states, _ = run_filt3r(np.zeros(frames.shape[1:]), frames)
    assert np.abs(np.array(states[50:]) - 2.0).mean() < 0.5 * np.abs(frames[50:] - 2.0).mean()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_filt3r_stays_finite(scale: float) -> None:
    """10,000 frames: still, moving, and absurd, each with a pause in the middle."""
    rng = np.random.default_rng(4)
    rule, state = Filt3r(), torch.zeros(1, TOKENS, DIM)
    memory = rule.start(state)
    shapes = {name: value.shape for name, value in memory.items()}
    for index in range(10_000):
        pause = 4_000 < index < 6_000
        if not pause or index == 4_001:
            candidate = tensor(scale * rng.normal(size=state.shape))
        state, memory = rule.update(state, candidate, memory, None)
        if index % 500 == 0 or pause:
            assert torch.isfinite(state).all()
            assert torch.isfinite(memory["variance"]).all()
    assert {name: value.shape for name, value in memory.items()} == shapes
    assert torch.isfinite(memory["level"]).all()
    assert (memory["variance"] > 0).all() and (memory["variance"] < 2).all()
    assert state.abs().max() <= 10 * scale


def test_ttt3r_moves_by_its_gate() -> None:
    rng = np.random.default_rng(5)
    state, candidate = (rng.normal(size=(BATCH, TOKENS, DIM)) for _ in range(2))
    logits = rng.normal(scale=2, size=(BATCH, TOKENS))
    rule = Ttt3r()
    first, memory = rule.update(tensor(state), tensor(candidate), rule.start(tensor(state)), tensor(logits))
    np.testing.assert_array_equal(first.numpy(), candidate.astype(np.float32))
    second, _ = rule.update(tensor(state), tensor(candidate), memory, tensor(logits))
    gate = 1 / (1 + np.exp(-logits))[..., None]
    np.testing.assert_allclose(second.numpy(), gate * candidate + (1 - gate) * state, rtol=1e-5, atol=1e-6)


def test_ttt3r_without_logits_is_a_mistake() -> None:
    state = torch.zeros(1, TOKENS, DIM)
    with pytest.raises(AssertionError, match="logits"):
        Ttt3r().update(state, state, Ttt3r().start(state), None)


def test_overwrite_takes_the_candidate() -> None:
    state, candidate = torch.zeros(1, TOKENS, DIM), torch.ones(1, TOKENS, DIM)
    assert Overwrite().update(state, candidate, {}, None) == (candidate, {})


@pytest.mark.parametrize("name", sorted(RULES))
def test_updates_leave_their_arguments(name: str) -> None:
    """The caller owns the memory: a step that is thrown away has changed nothing."""
    rule = RULES[name]()
    assert rule.name == name
    state, candidate = torch.rand(1, TOKENS, DIM), torch.rand(1, TOKENS, DIM)
    logits = torch.rand(1, TOKENS)
    memory = rule.update(state, candidate, rule.start(state), logits)[1]
    kept = {key: value.clone() for key, value in memory.items()}
    old = state.clone()
    rule.update(state, 2 * candidate, memory, logits)
    assert torch.equal(state, old)
    assert all(torch.equal(memory[key], kept[key]) for key in kept)


def test_select_works_per_sample() -> None:
    mask = torch.tensor([True, False])
    new, old = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    assert where(mask, new, old).sum(dim=(1, 2)).tolist() == [12, 0]
    chosen = select(mask, {"a": new[:, 0, 0]}, {"a": old[:, 0, 0]})
    assert chosen["a"].tolist() == [1, 0]
