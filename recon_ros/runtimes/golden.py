# SPDX-License-Identifier: Apache-2.0
"""The self-check: does whoever executes a network still compute that network?

Compilers for half precision have returned wrong answers silently (TensorRT 10.3 does for vision transformers).
So the float32 network in PyTorch answers a few steps on made images when it is exported, and who is to execute it
later must answer alike, through the recursion of the memory, before it may see a real image. Knows nothing of torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.networks.plan import StepPlan
from recon_ros.runtimes.executor import Executor

STEPS = 3
"""Steps that are checked: the first image, one that reads what it left, and one that reads what both left."""
SAMPLES = 4096
"""Numbers kept of a tensor at most."""
SQUARES = (1, 2, 4, 6)
"""Binary logarithms of the sizes of the squares in `golden_images`, pixels."""
END = "memory"
"""Stands where the number of the step stands, for the memory after the last one."""

TOLERANCES: Mapping[str, float] = {"fp32": 3e-4, "fp16": 2e-2, "bf16": 0.1, "int8": 0.2}
"""mean |Δ| / mean |reference| that a tensor may be off, by the precision of who executes.

Measured on the seven networks of `recon_ros.networks.small`, six recurrent steps and the memory after them, the worst
tensor of all (their graphs by ONNX Runtime and OpenVINO, and by PyTorch in half precision): fp32 2e-6, fp16 3e-3,
bf16 2e-2; on CUT3R-512-dpt at 512x384 by OpenVINO, four steps: fp32 3e-6, bf16 3e-2, int8 6e-2. The bounds leave room
for real weights, whose outliers the seeded ones lack, and for the order of sums on other devices. An attention scale
that is off by 5 % in all blocks moves the worst tensor by 1e-2 to 5e-2, in a single block by 1e-4 to 3e-2 (median
7e-4): fp32 finds most of it, fp16 what is grave, bf16 only what ruins the answer. In int8, whose cost is measured
where a network is rounded (`recon_ros.runtimes.int8`), only a broken graph is found.
"""


@dataclass(frozen=True)
class Row:
    """One tensor of one step: its relative error, infinite where a number is missing or not finite."""

    name: str
    error: float


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        passed: every tensor is within the tolerance.
        worst: the tensor that is furthest off, ``<step>/<output>``; empty when nothing could be compared.
        error: its relative error.
        tolerance: what was allowed.
        rows: all tensors, in order.
        failure: why the steps could not be run, in words; empty when they could.
    """

    passed: bool
    worst: str
    error: float
    tolerance: float
    rows: tuple[Row, ...] = ()
    failure: str = ""

    def __str__(self) -> str:
        """One sentence for logs."""
        if self.failure:
            return f"self-check failed: {self.failure}"
        verdict = "passed" if self.passed else "failed"
        return (
            f"self-check {verdict}: {self.worst} is off by {self.error:.1e} of its size, allowed {self.tolerance:.0e}"
        )


def golden_images(width: int, height: int, count: int = STEPS) -> list[NDArray[np.uint8]]:
    """`count` images (height, width, 3) uint8, the same on every machine: a textured plane that passes by.

    Squares of four sizes, the larger the stronger, in whole numbers only, shifted a little from image to image.
    """
    images = []
    for index in range(count):
        y, x = np.mgrid[:height, :width].astype(np.int64)
        x, y = x + 7 * index, y + 3 * index
        squares = np.stack([shift * _noise(x >> shift, y >> shift, shift) for shift in SQUARES])
        images.append((squares.sum(axis=0) // sum(SQUARES)).astype(np.uint8))
    return images


def _noise(x: NDArray[np.int64], y: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(H, W, 3) numbers in [0, 255] that depend on integer places alone."""
    mixed = (x[..., None] * 73856093) ^ (y[..., None] * 19349663) ^ ((np.arange(3) + 3 * seed) * 83492791)
    mixed = ((mixed & 0xFFFFFFFF) * 0x45D9F3B) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 16)) >> 4) & 255


def record(executor: Executor, steps: int = STEPS) -> dict[str, NDArray[np.float32]]:
    """What the executor answers: ``<step>/<output>`` and ``memory/<name>`` → (n,) float32 samples, n ≤ `SAMPLES`.

    Raises:
        NetworkError: the executor failed.
    """
    return dict(_answers(executor, steps))


def check(executor: Executor, golden: Mapping[str, NDArray[np.float32]], precision: str) -> Report:
    """Compare what the executor answers with what the float32 network did; raises nothing.

    Args:
        executor: who is to be trusted.
        golden: of `record`.
        precision: in which the executor computes, a key of `TOLERANCES`.

    The error of a tensor is mean |Δ| / mean |reference|, or mean |Δ| where the reference is zero throughout.
    """
    tolerance = TOLERANCES[precision]
    steps = 1 + max((int(name.partition("/")[0]) for name in golden if not name.startswith(f"{END}/")), default=-1)
    try:
        answers = record(executor, steps)
    except Exception as error:  # whatever a driver or a compiler may throw: the answer is that it cannot be used
        return Report(False, "", math.inf, tolerance, failure=f"{executor.runtime}: {error or type(error).__name__}")
    if not golden or set(answers) != set(golden):
        differing = ", ".join(sorted(set(answers) ^ set(golden))[:4]) or "nothing recorded"
        return Report(False, "", math.inf, tolerance, failure=f"recorded and computed tensors differ: {differing}")
    rows = tuple(Row(name, relative_error(answers[name], reference)) for name, reference in golden.items())
    worst = max(rows, key=lambda row: row.error)
    return Report(worst.error <= tolerance, worst.name, worst.error, tolerance, rows)


def relative_error(answer: NDArray[Any], reference: NDArray[Any]) -> float:
    """mean |Δ| / mean |reference|, mean |Δ| of a zero reference; infinite for another shape or non-finite numbers."""
    answer, reference = np.asarray(answer, np.float64), np.asarray(reference, np.float64)
    if answer.shape != reference.shape or not (np.isfinite(answer).all() and np.isfinite(reference).all()):
        return math.inf
    size = float(np.abs(reference).mean())
    return float(np.abs(answer - reference).mean()) / (size or 1.0)


def sample_sizes(plan: StepPlan, steps: int = STEPS) -> dict[str, int]:
    """How many samples `record` keeps of each of its tensors."""
    names = {f"{step}/{name}": name for step in range(steps) for name in plan.fetched}
    names |= {f"{END}/{name}": name for name in plan.memory}
    return {key: len(range(0, count, _stride(count))) for key, name in names.items() if (count := _count(plan, name))}


def _answers(executor: Executor, steps: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    plan = executor.plan
    memory = executor.initial()
    for step, image in enumerate(golden_images(plan.width, plan.height, steps)):
        memory, outputs = executor.step(memory, image)
        for name in plan.fetched:
            yield f"{step}/{name}", _sample(outputs[name])
    arrays = executor.read(memory)
    for name in plan.memory:
        yield f"{END}/{name}", _sample(arrays[name])


def _sample(array: NDArray[Any]) -> NDArray[np.float32]:
    flat = np.asarray(array).reshape(-1)
    return flat[:: _stride(flat.size)].astype(np.float32)


def _stride(count: int) -> int:
    """At least count / SAMPLES, and neither even nor a multiple of 3, so that it meets all rows and channels."""
    stride = -(-count // SAMPLES)
    while stride > 1 and (stride % 2 == 0 or stride % 3 == 0):
        stride += 1
    return max(stride, 1)


def _count(plan: StepPlan, name: str) -> int:
    return math.prod(plan.tensors[name].shape)
