# SPDX-License-Identifier: Apache-2.0
"""The contract of those who run the graphs of a step: PyTorch, OpenVINO, TensorRT.

An executor knows tensors and nothing of points and poses; `recon_ros.runtimes.families` reads its outputs, the same
way whoever executes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import NetworkError
from recon_ros.networks.plan import IMAGE, StepPlan

GraphMemory = Any
"""The memory tensors of a plan, wherever the executor keeps them. Never changed by a step; but an executor with two
buffers on a device keeps only the latest memory and the one before it (`Executor.read` keeps one for longer)."""

Arrays = Mapping[str, NDArray[Any]]


class Executor(Protocol):
    """Runs the graphs of a plan."""

    @property
    def plan(self) -> StepPlan:
        """What is run."""
        ...

    @property
    def runtime(self) -> str:
        """Who runs it, and how, for reports: ``torch fp32``, ``openvino bf16``, ``tensorrt 10.3.0 fp16``."""
        ...

    def initial(self) -> GraphMemory:
        """The memory before the first image."""
        ...

    def step(self, memory: GraphMemory, image: NDArray[np.uint8]) -> tuple[GraphMemory, dict[str, NDArray[Any]]]:
        """Run all graphs on one image.

        Args:
            memory: of `initial`, `write`, or one of the last two steps' results.
            image: (H, W, 3) uint8 RGB of the plan's size.

        Returns:
            The memory after it, and the plan's fetched outputs as arrays of the host's own.

        Raises:
            NetworkError: the memory is older than the executor keeps, or the device failed.
        """
        ...

    def read(self, memory: GraphMemory) -> dict[str, NDArray[Any]]:
        """Copies of all memory tensors on the host, by name."""
        ...

    def write(self, arrays: Arrays) -> GraphMemory:
        """A memory of what `read` gave, of this or of another executor of the same plan.

        Raises:
            NetworkError: a tensor is missing, unknown, or of another shape or dtype.
        """
        ...

    def close(self) -> None:
        """Give back what is held; the executor is not used afterwards."""
        ...


def check_memory(plan: StepPlan, arrays: Arrays) -> None:
    """Refuse arrays that are not a memory of this plan.

    Raises:
        NetworkError: one is missing, unknown, or of another shape or dtype.
    """
    if set(arrays) != set(plan.memory):
        missing, unknown = sorted(set(plan.memory) - set(arrays)), sorted(set(arrays) - set(plan.memory))
        raise NetworkError(
            f"a memory of this {plan.family} has {', '.join(plan.memory)}: missing {', '.join(missing) or 'nothing'}, "
            f"unknown {', '.join(unknown) or 'nothing'}"
        )
    for name in plan.memory:
        spec, array = plan.tensors[name], arrays[name]
        if array.shape != spec.shape or array.dtype != spec.dtype:
            raise NetworkError(
                f"{name} of this {plan.family}'s memory is {spec.dtype} {spec.shape}, not {array.dtype} {array.shape}; "
                "that is of another network or size"
            )


def check_image(plan: StepPlan, image: NDArray[np.uint8]) -> None:
    """Refuse an image that is not one of this plan.

    Raises:
        NetworkError: it is of another shape or dtype.
    """
    spec = plan.tensors[IMAGE]
    if image.shape != spec.shape or image.dtype != spec.dtype:
        raise NetworkError(
            f"the image is {image.dtype} {image.shape}, this {plan.family} takes {spec.dtype} {spec.shape}"
        )
