# SPDX-License-Identifier: Apache-2.0
"""Gravity by an IMU: through turns and pushes, and never from what is no measurement."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from recon_ros.geometry.plumb import STANDARD_GRAVITY, Plumb

STEP_NS = 5_000_000  # 200 Hz
START_NS = 1_700_000_000_000_000_000
DOWN = np.array([0.0, 0.6, 0.8])


def angle(a: np.ndarray | None, b: np.ndarray) -> float:
    assert a is not None
    return float(np.arccos(np.clip(a @ b, -1, 1)))


def fed(count: int, seed: int = 0, pushed: slice = slice(0, 0), rate: float = 0.0, gyro: bool = True) -> Plumb:
    """Samples of an IMU that turns about its x axis, with noise, and with some that are pushed aside by 3 m/s²."""
    rng, plumb = np.random.default_rng(seed), Plumb()
    for i in range(count):
        down = Rotation.from_rotvec([-rate * i * STEP_NS / 1e9, 0, 0]).apply(DOWN)
        felt = -STANDARD_GRAVITY * down + rng.normal(0, 0.05, 3)
        if i in range(*pushed.indices(count)):
            felt += np.array([3.0, 0, 0])
        turn = np.array([rate, 0, 0]) + rng.normal(0, 0.01, 3)
        plumb.add(START_NS + i * STEP_NS, felt, turn if gyro else None)
    return plumb


def now(count: int) -> int:
    return START_NS + (count - 1) * STEP_NS


@pytest.mark.parametrize("gyro", [True, False])
def test_at_rest_it_is_what_the_accelerometer_feels(gyro: bool) -> None:
    assert angle(fed(400, gyro=gyro).at(now(400)), DOWN) < 0.005


def test_a_push_is_not_taken_for_gravity() -> None:
    assert angle(fed(600, pushed=slice(300, 500)).at(now(600)), DOWN) < 0.01


def test_it_turns_with_the_gyroscope_and_knows_the_past() -> None:
    plumb = fed(1000, rate=1.0)
    for sample in (999, 900):
        down = Rotation.from_rotvec([-sample * STEP_NS / 1e9, 0, 0]).apply(DOWN)
        assert angle(plumb.at(START_NS + sample * STEP_NS), down) < 0.01


def test_nothing_is_said_too_early_too_late_or_of_nonsense() -> None:
    plumb = Plumb()
    assert plumb.at(START_NS) is None
    assert fed(50).at(now(50)) is None, "a quarter of a second is not enough"
    settled = fed(400)
    assert settled.at(now(400) + 200_000_000) is None and settled.at(START_NS - 10**9) is None
    before = settled.at(now(400))
    settled.add(now(400) + STEP_NS, np.array([np.nan, 0, 0]), np.zeros(3))
    settled.add(now(400), np.array([9.8, 0, 0]), np.zeros(3))  # no newer
    np.testing.assert_array_equal(settled.at(now(400)), before)
    settled.add(now(400) + 10**9, -STANDARD_GRAVITY * DOWN, np.zeros(3))
    assert settled.at(now(400) + 10**9) is None, "who knows how it has turned in that second"
    settled.clear()
    assert settled.at(now(400)) is None
    falling = Plumb()
    for i in range(400):
        falling.add(START_NS + i * STEP_NS, np.zeros(3), np.zeros(3))
    assert falling.at(now(400)) is None


def test_a_clock_that_is_set_back_is_a_new_beginning_and_a_late_sample_is_not() -> None:
    plumb = fed(300)
    late = now(300) - 10 * STEP_NS
    plumb.add(late, -STANDARD_GRAVITY * np.array([1.0, 0, 0]))
    assert angle(plumb.at(now(300)), DOWN) < 0.02
    turned = np.array([1.0, 0.0, 0.0])
    for i in range(300):
        plumb.add(START_NS // 2 + i * STEP_NS, -STANDARD_GRAVITY * turned)
    assert angle(plumb.at(START_NS // 2 + 299 * STEP_NS), turned) < 1e-6
    assert plumb.at(now(300)) is None, "of the clock before"
