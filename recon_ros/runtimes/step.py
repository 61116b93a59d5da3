# SPDX-License-Identifier: Apache-2.0
"""The contract every source of pointmaps fulfils, sensor and network alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recon_ros.frame import Camera, Prediction
from recon_ros.networks.card import ModelCard

Memory = Any
"""An opaque pytree of fixed-shape arrays; empty for a source that remembers nothing."""


class StepRuntime(Protocol):
    """One step of a streaming pointmap source.

    The memory belongs to the caller: a step never changes the one it is given, so that the caller can keep,
    copy, save and restore it, and forgets everything by asking for a new `initial_memory`.
    """

    @property
    def card(self) -> ModelCard:
        """What this source is."""
        ...

    @property
    def runtime(self) -> str:
        """Who executes the step, for reports (``numpy``, ``torch``, …)."""
        ...

    def initial_memory(self) -> Memory:
        """The memory before the first frame."""
        ...

    def step(
        self,
        memory: Memory,
        image: NDArray[np.uint8],
        camera: Camera | None,
        depth: NDArray[np.float32] | None = None,
    ) -> tuple[Memory, Prediction]:
        """Advance by one frame.

        Args:
            memory: what the last step returned, or `initial_memory()`.
            image: (H, W, 3) uint8 RGB on the card's grid.
            camera: undistorted calibration of that grid, or None when unknown.
            depth: (H, W) float32 metres, NaN invalid, for sources that read it.

        Raises:
            InputError: when this frame cannot be used; the memory is unchanged.
        """
        ...

    def save_memory(self, memory: Memory) -> Mapping[str, NDArray[Any]]:
        """Copies of a memory's arrays on the host, by flat names; empty for one that holds nothing."""
        ...

    def load_memory(self, arrays: Mapping[str, NDArray[Any]]) -> Memory:
        """A memory of what `save_memory` gave, of this source or of another executor of the same network and size.

        Raises:
            NetworkError: the arrays are not of such a memory.
        """
        ...
