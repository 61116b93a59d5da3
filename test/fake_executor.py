# SPDX-License-Identifier: Apache-2.0
"""An executor in numpy that answers what a test tells it to: for the steps around executors, without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.networks.plan import NEXT, StepPlan, TensorSpec
from recon_ros.runtimes.executor import check_memory

Arrays = dict[str, NDArray[Any]]
Answer = Callable[[Arrays, NDArray[np.uint8]], Arrays]
"""Memory and image → outputs, ``<memory>.next`` among them."""


class FakeExecutor:
    """Keeps its memory in dictionaries of arrays, and counts what it gave out."""

    runtime = "fake"

    def __init__(self, family: str, width: int, height: int, initial: Mapping[str, Any], answer: Answer) -> None:
        self._initial = {name: np.asarray(value, np.float32) for name, value in initial.items()}
        specs = {name: TensorSpec(array.shape, "float32") for name, array in self._initial.items()}
        self.plan = StepPlan(family, width, height, (), specs, tuple(specs), ())
        self.answer = answer
        self.is_closed = False

    def initial(self) -> Arrays:
        return dict(self._initial)

    def step(self, memory: Arrays, image: NDArray[np.uint8]) -> tuple[Arrays, Arrays]:
        outputs = {"health": np.float32(1), "descriptor": np.ones(4, np.float32), **self.answer(dict(memory), image)}
        after = {name: outputs.pop(name + NEXT) for name in self.plan.memory}
        return after, {name: np.asarray(value) for name, value in outputs.items()}

    def read(self, memory: Arrays) -> Arrays:
        return {name: array.copy() for name, array in memory.items()}

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        check_memory(self.plan, arrays)
        return {name: array.copy() for name, array in arrays.items()}

    def close(self) -> None:
        self.is_closed = True
