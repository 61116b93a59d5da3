# SPDX-License-Identifier: Apache-2.0
"""How far depth can be relied on: what a source's card says of it, taken into the options of tracking."""

from __future__ import annotations

from dataclasses import replace

from recon_ros.config import TrackingConfig

BENT = 0.05
"""Relative error of depth above which surfaces are too bent to be registered with each other."""


def as_good_as(tracking: TrackingConfig, depth_error: float) -> TrackingConfig:
    """The options of tracking, search and loops with depth taken for as good as a card says; bent surfaces are not
    registered.

    Args:
        tracking: as configured, for depth of a sensor.
        depth_error: relative error of the depth, as `ModelCard.depth_error`.
    """
    if depth_error <= tracking.depth_sigma:
        return tracking
    surface_sigma = 0.0 if depth_error > BENT else tracking.surface_sigma
    return replace(tracking, depth_sigma=depth_error, surface_sigma=surface_sigma)
