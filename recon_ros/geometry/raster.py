# SPDX-License-Identifier: Apache-2.0
"""Helpers of the renderers: which pixels lie on an edge, and lists of rays as images, which OpenCV wants."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 512


def on_an_edge(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W) pixels that touch one of another label, of (H, W) labels."""
    edges = np.zeros(labels.shape, bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def in_rows(rays: NDArray[Any], width: int = WIDTH) -> NDArray[Any]:
    """(N, C) rays as (rows, width, C), the last row filled up from the first rays: OpenCV's images have at most 32767
    rows.
    """
    rows = -(-len(rays) // width)
    return np.resize(rays, (rows, width, rays.shape[1]))
