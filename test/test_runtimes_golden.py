# SPDX-License-Identifier: Apache-2.0
"""The self-check, on a made executor: what it records, what it finds, and that it never raises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recon_ros.errors import NetworkError
from recon_ros.networks.plan import GraphSpec, StepPlan, TensorSpec
from recon_ros.runtimes import golden

Memory = dict[str, NDArray[Any]]
HEIGHT, WIDTH, WIDE = 48, 64, 5000

PLAN = StepPlan(
    family="made",
    width=WIDTH,
    height=HEIGHT,
    graphs=(GraphSpec("step", ("image", "sum", "count"), ("points", "sum.next", "count.next", "health")),),
    tensors={
        "image": TensorSpec((HEIGHT, WIDTH, 3), "uint8"),
        "points": TensorSpec((HEIGHT, WIDTH, 3), "float32"),
        "sum": TensorSpec((WIDE,), "float32"),
        "sum.next": TensorSpec((WIDE,), "float32"),
        "count": TensorSpec((), "int32"),
        "count.next": TensorSpec((), "int32"),
        "health": TensorSpec((), "float32"),
    },
    memory=("sum", "count"),
    fetched=("points", "health"),
)


class Running:
    """Points are the image plus all images before it; `spoil` changes what a step gives."""

    plan = PLAN
    runtime = "made"

    def __init__(self, spoil: Callable[[int, NDArray[np.float32]], NDArray[np.float32]] = lambda step, x: x) -> None:
        self.spoil = spoil

    def initial(self) -> Memory:
        return {"sum": np.zeros(WIDE, np.float32), "count": np.zeros((), np.int32)}

    def step(self, memory: Memory, image: NDArray[np.uint8]) -> tuple[Memory, Memory]:
        seen = self.spoil(int(memory["count"]), image.astype(np.float32) / 255)
        after = {"sum": memory["sum"] + seen.reshape(-1)[:WIDE], "count": np.int32(memory["count"] + 1)[()]}
        points = seen + memory["sum"].mean()
        return {name: np.asarray(array) for name, array in after.items()}, {
            "points": points.astype(np.float32),
            "health": np.asarray(np.abs(points).mean(), np.float32),
        }

    def read(self, memory: Memory) -> Memory:
        return memory

    def write(self, arrays: Any) -> Memory:
        return dict(arrays)

    def close(self) -> None: ...


def test_record_keeps_samples_of_every_step_and_of_the_memory() -> None:
    recorded = golden.record(Running())
    assert {name: array.size for name, array in recorded.items()} == golden.sample_sizes(PLAN)
    assert set(recorded) == {
        *(f"{step}/{name}" for step in range(golden.STEPS) for name in ("points", "health")),
        "memory/sum",
        "memory/count",
    }
    assert recorded["memory/count"] == golden.STEPS
    assert all(array.dtype == np.float32 and array.size <= golden.SAMPLES for array in recorded.values())


@pytest.mark.parametrize("shape", [(37,), (96, 64, 3), (384, 512, 3), (384, 512), (1, 768, 1024)])
def test_samples_meet_every_row_and_channel(shape: tuple[int, ...]) -> None:
    indices = np.unravel_index(np.arange(math.prod(shape))[:: golden._stride(math.prod(shape))], shape)
    if len(shape) > 1:
        assert len(np.unique(indices[0])) == shape[0]
    if len(shape) == 3:
        assert len(np.unique(indices[2])) > 0.9 * shape[2]


def test_images_are_the_same_everywhere_and_differ_from_each_other() -> None:
    first, second, third = golden.golden_images(96, 64)
    assert first.shape == (64, 96, 3) and first.dtype == np.uint8
    # Literals: recorded answers are worth nothing once the images change.
    assert [int(image.sum()) for image in (first, second, third)] == SUMS
    assert np.abs(first.astype(int) - second).mean() > 5
    np.testing.assert_array_equal(first[3:, 7:], second[:-3, :-7])
    assert min(image.std() for image in (first, second, third)) > 25


SUMS = [2262260, 2212608, 2170780]


def test_the_same_executor_passes_without_error() -> None:
    report = golden.check(Running(), golden.record(Running()), "fp32")
    assert report.passed and report.error == 0 and report.tolerance == golden.TOLERANCES["fp32"]
    assert len(report.rows) == len(golden.sample_sizes(PLAN))
    assert "passed" in str(report)


def test_a_step_later_than_the_first_is_checked() -> None:
    """The memory is right after the first step and wrong after the second."""
    report = golden.check(Running(lambda step, x: x * (1 + 0.05 * (step == 1))), golden.record(Running()), "fp32")
    wrong = {row.name for row in report.rows if row.error > report.tolerance}
    assert not report.passed and report.worst in ("1/points", "1/health")
    assert wrong == {"1/points", "1/health", "2/points", "2/health", "memory/sum"}
    assert report.worst in str(report) and "failed" in str(report)


def test_tolerances_grow_with_coarseness() -> None:
    assert list(golden.TOLERANCES) == ["fp32", "fp16", "bf16", "int8"]
    assert sorted(golden.TOLERANCES.values()) == list(golden.TOLERANCES.values())
    slightly_wrong = Running(lambda step, x: x * 1.01)
    recorded = golden.record(Running())
    assert not golden.check(slightly_wrong, recorded, "fp32").passed
    assert golden.check(slightly_wrong, recorded, "bf16").passed


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_fail(bad: float) -> None:
    def spoil(step: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(x == x.max(), np.float32(bad), x) if step == 2 else x

    report = golden.check(Running(spoil), golden.record(Running()), "int8")
    assert not report.passed and report.error == math.inf


@pytest.mark.parametrize("error", [NetworkError("the device is gone"), RuntimeError("CUDA error 700"), KeyError()])
def test_an_executor_that_fails_is_reported(error: Exception) -> None:
    def spoil(step: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        raise error

    report = golden.check(Running(spoil), golden.record(Running()), "fp16")
    assert not report.passed and report.error == math.inf
    assert report.failure and "made" in str(report)


def test_answers_of_another_plan_are_refused() -> None:
    recorded = golden.record(Running())
    assert not golden.check(Running(), {}, "fp32").passed
    assert "0/health" in golden.check(Running(), {k: v for k, v in recorded.items() if k != "0/health"}, "fp32").failure


def test_relative_error() -> None:
    reference = np.array([1.0, -3.0])
    assert golden.relative_error(np.array([1.0, -3.2]), reference) == pytest.approx(0.05)
    assert golden.relative_error(np.array([0.25, 0.0]), np.zeros(2)) == pytest.approx(0.125)
    assert golden.relative_error(np.zeros(3), reference) == math.inf
