# SPDX-License-Identifier: Apache-2.0
"""Device memory of a plan: one buffer per tensor, two per memory tensor, allocated once.

A step of parity p reads the memory in buffers p and writes the one that follows it into buffers 1 − p, so that neither
is ever copied, and the memory that a step was given is still there afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from recon_ros.errors import NetworkError
from recon_ros.networks.plan import IMAGE, NEXT, StepPlan
from recon_ros.runtimes.trt.cuda import Cuda

PARITIES = (0, 1)


class Buffers:
    """Where each tensor of a plan lies on the device, and its page-locked counterpart where the host needs one."""

    def __init__(self, plan: StepPlan, cuda: Cuda) -> None:
        check_plan(plan)
        self._plan, self._cuda = plan, cuda
        self._memory = {
            name: (cuda.allocate(plan.tensors[name].nbytes), cuda.allocate(plan.tensors[name].nbytes))
            for name in plan.memory
        }
        following = {name + NEXT for name in plan.memory}
        used = {name for graph in plan.graphs for name in (*graph.inputs, *graph.outputs)} | {IMAGE}
        self._single = {
            name: cuda.allocate(plan.tensors[name].nbytes) for name in sorted(used - following - self._memory.keys())
        }
        crossing = {name: plan.tensors[name] for name in (IMAGE, *plan.memory, *plan.fetched)}
        self._host = {name: cuda.pinned(spec.shape, spec.dtype) for name, spec in crossing.items()}

    def address(self, name: str, parity: int) -> int:
        """Where a tensor lies in a step of this parity."""
        if name in self._memory:
            return self._memory[name][parity]
        if name.endswith(NEXT) and (memory := name.removesuffix(NEXT)) in self._memory:
            return self._memory[memory][1 - parity]
        return self._single[name]

    def begin_upload(self, name: str, parity: int, array: NDArray[Any]) -> None:
        """Send an array of the host's. The one sent before under this name must have arrived."""
        self._host[name][...] = array
        self._cuda.upload(self.address(name, parity), self._host[name])

    def download(self, names: tuple[str, ...], parity: int) -> dict[str, NDArray[Any]]:
        """Copies of these tensors once all that was begun is done; the one wait of a step."""
        for name in names:
            self._cuda.download(self._host[name], self.address(name, parity))
        self._cuda.synchronise()
        return {name: self._host[name].copy() for name in names}

    def write_memory(self, parity: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put a memory into the buffers that a step of this parity reads."""
        for name in self._plan.memory:
            self.begin_upload(name, parity, arrays[name])
        self._cuda.synchronise()


def check_plan(plan: StepPlan) -> None:
    """Nothing where every tensor has one origin before it is needed.

    Raises:
        NetworkError: the plan is not one: an input from nowhere, two origins, a memory that does not go on.
    """
    known = {IMAGE, *plan.memory}
    for graph in plan.graphs:
        if unknown := [name for name in graph.inputs if name not in known]:
            raise NetworkError(f"graph {graph.name} needs {', '.join(unknown)}, which nothing before it gives")
        if twice := [name for name in graph.outputs if name in known]:
            raise NetworkError(f"graph {graph.name} gives {', '.join(twice)}, which is there already")
        known.update(graph.outputs)
    for name in plan.memory:
        if name + NEXT not in known:
            raise NetworkError(f"memory {name} does not go on: no graph gives {name + NEXT}")
        if plan.tensors[name + NEXT] != plan.tensors[name]:
            raise NetworkError(f"memory {name} is {plan.tensors[name]} and becomes {plan.tensors[name + NEXT]}")
    if lost := [name for name in plan.fetched if name not in known]:
        raise NetworkError(f"{', '.join(lost)} cannot be fetched: no graph gives it")
