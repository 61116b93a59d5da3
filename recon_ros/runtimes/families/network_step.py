# SPDX-License-Identifier: Apache-2.0
"""What the steps of all networks share: they ask an executor, check what comes, and own the memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError, NetworkError
from recon_ros.frame import Camera, Prediction
from recon_ros.networks.card import ModelCard
from recon_ros.networks.plan import HEALTH
from recon_ros.runtimes.executor import Executor, GraphMemory

StepMemory = dict[str, Any]
"""Empty before the first image; then `GRAPH`, the executor's memory, and the host's own float64 arrays by name."""

GRAPH = "graph"
HOST_PREFIX = "host."
SIZE = HOST_PREFIX + "size"
"""(2,) int64 width and height of the image, in a saved memory."""

Outputs = dict[str, NDArray[Any]]


class NetworkStep(ABC):
    """A `StepRuntime` (see ``recon_ros/runtimes/step.py``) around an executor. Families say what the outputs mean.

    Args:
        executor: runs the graphs of the network's step.
        card: what the network is.
    """

    host: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """Name → shape of what the family keeps on the host."""

    def __init__(self, executor: Executor, card: ModelCard) -> None:
        self.executor = executor
        self.card = card

    @property
    def runtime(self) -> str:
        """Who executes, and how."""
        return self.executor.runtime

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the images it takes, pixels."""
        return self.executor.plan.width, self.executor.plan.height

    def initial_memory(self) -> StepMemory:
        """Nothing seen yet; the first image's camera becomes the frame of the memory."""
        return {}

    def step(
        self,
        memory: StepMemory,
        image: NDArray[np.uint8],
        camera: Camera | None,
        depth: NDArray[np.float32] | None = None,
    ) -> tuple[StepMemory, Prediction]:
        """Take in one image.

        Args:
            memory: of the last step, or `initial_memory()`; not changed.
            image: (H, W, 3) uint8 RGB of `size`.
            camera: for the pose, where the network gives none; None takes the first image's focal length, in the end
                from its pointmap.
            depth: not used.

        Raises:
            InputError: ``image_size`` for another size; ``network_output`` when the answer is not finite, which would
                spoil the memory for ever; ``focal`` or ``pose`` when the points make up no image. The memory stays as
                it was.
            NetworkError: the executor failed.
        """
        height, width = image.shape[:2]
        if (width, height) != self.size:
            raise InputError(
                "image_size",
                f"image is {width}x{height}, not of the first one's size {self.size[0]}x{self.size[1]}, for which "
                f"{self.card.name} was made ready",
            )
        after, outputs = self.executor.step(self._before(memory, camera), image)
        if not all(np.isfinite(value).all() for name, value in outputs.items() if name.startswith(HEALTH)):
            raise InputError("network_output", f"{self.card.name} gave numbers that are not finite for this image")
        return self._tell(memory, after, outputs, camera)

    def _before(self, memory: StepMemory, camera: Camera | None) -> GraphMemory:
        """The executor's memory to step from."""
        return memory[GRAPH] if memory else self.executor.initial()

    @abstractmethod
    def _tell(
        self, memory: StepMemory, after: GraphMemory, outputs: Outputs, camera: Camera | None
    ) -> tuple[StepMemory, Prediction]:
        """The memory that follows, and what the outputs say.

        Args:
            memory: before this image; empty before the first one.
            after: the executor's memory after it.
            outputs: that the executor fetched, all finite.
            camera: of this image, or None.
        """

    def save_memory(self, memory: StepMemory) -> dict[str, NDArray[Any]]:
        """Copies of a memory's arrays on the host, by name; any executor of the same plan takes them."""
        if not memory:
            return {}
        host = {HOST_PREFIX + name: np.array(memory[name]) for name in self.host}
        return {**self.executor.read(memory[GRAPH]), **host, SIZE: np.array(self.size)}

    def load_memory(self, arrays: Mapping[str, NDArray[Any]]) -> StepMemory:
        """The memory that `save_memory` gave, here or with another executor.

        Raises:
            NetworkError: an array is missing, unknown, or of another shape or dtype.
        """
        if not arrays:
            return {}
        saved_host = {name.removeprefix(HOST_PREFIX) for name in arrays if name.startswith(HOST_PREFIX)}
        if saved_host != {"size", *self.host}:
            raise NetworkError(
                f"a saved memory of {self.card.name} has {sorted(self.host)} beside the network's own, not "
                f"{sorted(saved_host - {'size'})}"
            )
        if (size := tuple(np.asarray(arrays[SIZE]).tolist())) != self.size:
            found, wanted = ("x".join(map(str, sides)) for sides in (size, self.size))
            raise NetworkError(f"the saved memory is of {found} images, not of {wanted}")
        host = {name: np.array(arrays[HOST_PREFIX + name], dtype=np.float64) for name in self.host}
        if wrong := [name for name, shape in self.host.items() if host[name].shape != shape]:
            raise NetworkError(
                f"{wrong[0]} of the saved memory of {self.card.name} has the shape {host[wrong[0]].shape}"
            )
        graph = {name: array for name, array in arrays.items() if not name.startswith(HOST_PREFIX)}
        return {GRAPH: self.executor.write(graph), **host}

    def close(self) -> None:
        """Give back what the executor holds; the step is not used afterwards."""
        self.executor.close()
