# SPDX-License-Identifier: Apache-2.0
"""The depth sensor as a source of pointmaps: the first step behind the contract the networks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import InputConfig
from recon_ros.errors import ConfigError, InputError, NetworkError
from recon_ros.frame import Camera, Prediction
from recon_ros.geometry import pointmap
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes.step import Memory

REFERENCE_DEPTH = 4.0
"""Depth at which a pixel of the sensor is trusted half as much as one close by, metres."""


class DepthSource:
    """Pointmaps from a registered depth image and K; no memory, metric."""

    card = ModelCard(name="depth", family="depth", is_metric=True, needs_depth=True, needs_camera=True)
    runtime = "numpy"

    def __init__(self, config: InputConfig) -> None:
        """Raises ConfigError when `min_depth` is not below `max_depth`."""
        if config.min_depth >= config.max_depth:
            raise ConfigError(
                f"input.min_depth {config.min_depth} is not below input.max_depth {config.max_depth}: no depth is left"
            )
        self._config = config

    def initial_memory(self) -> Memory:
        return ()

    def save_memory(self, memory: Memory) -> dict[str, NDArray[Any]]:
        return {}

    def load_memory(self, arrays: Mapping[str, NDArray[Any]]) -> Memory:
        """Raises NetworkError for arrays that are not this source's, which has none."""
        if arrays:
            raise NetworkError(
                f"the depth source remembers nothing; a saved memory with {sorted(arrays)} is not its own"
            )
        return ()

    def step(
        self,
        memory: Memory,
        image: NDArray[np.uint8],
        camera: Camera | None,
        depth: NDArray[np.float32] | None = None,
    ) -> tuple[Memory, Prediction]:
        """Back-project the depth image; see `StepRuntime.step`.

        Confidence is 1/(1 + (z/z₀)²), as the variance of stereo and of time of flight grows with depth, and 0 at
        depth edges, where a pixel mixes two surfaces.

        Raises:
            InputError: ``no_camera_info`` or ``no_depth`` when one is missing, ``depth_empty`` when no pixel
                lies between `min_depth` and `max_depth`.
        """
        if camera is None:
            raise InputError("no_camera_info", "the depth source needs the camera's K: publish camera_info")
        if depth is None:
            raise InputError("no_depth", "the depth source needs a depth image with every image")
        config = self._config
        with np.errstate(invalid="ignore"):
            usable = (depth >= config.min_depth) & (depth <= config.max_depth)
        if not usable.any():
            raise InputError(
                "depth_empty",
                f"no depth between input.min_depth {config.min_depth} m and input.max_depth {config.max_depth} m",
            )
        depth = np.where(usable, depth, np.float32(np.nan))
        confidence = np.where(usable, 1.0 / (1.0 + (depth / REFERENCE_DEPTH) ** 2), 0).astype(np.float32)
        confidence[_at_edges(depth)] = 0
        return memory, Prediction(pointmap.from_depth(depth, camera), confidence, is_metric=True)


def _at_edges(depth: NDArray[np.float32], jump: float = 0.05) -> NDArray[np.bool_]:
    """(H, W) mask of pixels whose depth differs from a direct neighbour's by more than the share `jump`."""
    edges = np.zeros(depth.shape, bool)
    with np.errstate(invalid="ignore"):
        for axis in (0, 1):
            far = np.abs(np.diff(depth, axis=axis)) > jump * np.minimum(
                np.delete(depth, 0, axis), np.delete(depth, -1, axis)
            )
            first = [slice(None)] * 2
            second = [slice(None)] * 2
            first[axis], second[axis] = slice(None, -1), slice(1, None)
            edges[tuple(first)] |= far
            edges[tuple(second)] |= far
    return edges
