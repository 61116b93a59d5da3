# SPDX-License-Identifier: Apache-2.0
"""The plan of a step: which graphs run one after the other, and what goes in and out of them. Knows nothing of torch.

Tensors are named across all graphs of a plan: an output of one graph that a later graph has among its inputs is the
same tensor, and stays where it is computed. All shapes are static. What crosses the border of a plan is uint8,
float32 or int32, whatever the precision inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

IMAGE = "image"
"""(H, W, 3) uint8 RGB: the one input that comes anew with every frame. Normalisation is inside the graph."""

NEXT = ".next"
"""Suffix of the output that replaces a memory tensor: ``state`` in, ``state.next`` out."""

HEALTH = "health"
"""Outputs whose name begins so are () float32 sums of mean magnitudes of all that their graph gave: finite if, and
only if, everything is."""

BYTES = {"uint8": 1, "float32": 4, "int32": 4}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor at the border of a graph."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * BYTES[self.dtype]


@dataclass(frozen=True)
class GraphSpec:
    """One graph: `inputs` and `outputs` are names of the plan's tensors, in the order of the graph's signature.

    An `exact` graph is geometry, and is computed in float32 by an executor that would choose the precision itself.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    exact: bool = False


@dataclass(frozen=True)
class StepPlan:
    """One step of a network, as any executor runs it.

    Attributes:
        family: of the network; tells who reads the outputs.
        width, height: of the image, pixels.
        graphs: in the order in which they run; always all of them.
        tensors: every tensor's shape and dtype by name.
        memory: names of the tensors that a step hands to the next; ``<name>.next`` replaces ``<name>``.
        fetched: outputs that the host wants after each step, `HEALTH` ones included.
    """

    family: str
    width: int
    height: int
    graphs: tuple[GraphSpec, ...]
    tensors: Mapping[str, TensorSpec]
    memory: tuple[str, ...]
    fetched: tuple[str, ...]
