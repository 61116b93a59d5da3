# SPDX-License-Identifier: Apache-2.0
"""The core's stages, in place: frames go through `Reconstructor.process` while clocks sit around its parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.inputs import Input
from benchmarks.measure import Row, Spans, over_frames
from recon_ros.config import Config
from recon_ros.frame import Update
from recon_ros.geometry import pnp
from recon_ros.mapping.fusion import VoxelMap
from recon_ros.memory.store import KeyframeStore
from recon_ros.reconstructor import Reconstructor
from recon_ros.tracking import registration, tracker
from recon_ros.tracking.view import View

PASSES = 3

FEATURES, MATCHING = "features and their points", "matching"
PNP, SURFACES = "PnP and refinement", "registration of surfaces"
COVISIBILITY, FUSE = "covisibility", "fuse (VoxelMap.add)"

CLOCKS: tuple[tuple[str, Any, str], ...] = (
    (FEATURES, View, "depth"),
    (FEATURES, View, "features"),
    (MATCHING, View, "tree"),
    (MATCHING, tracker, "match"),
    (MATCHING, registration, "match_guided"),
    (PNP, pnp, "ransac"),
    (PNP, pnp, "refine"),
    (SURFACES, View, "surface"),
    (SURFACES, registration, "register"),
    (SURFACES, KeyframeStore, "surface"),
    (COVISIBILITY, KeyframeStore, "overlaps"),
    (FUSE, VoxelMap, "add"),
)


def measure(data: Input, advance: Callable[[], None], passes: int = PASSES) -> tuple[list[Row], Reconstructor, Update]:
    """Rows of every stage; also the reconstructor after the last pass and its last update, to publish from.

    The core is deterministic, so that each pass does the same work, and the fastest pass of a frame is its price.
    """
    spent: list[list[dict[str, float]]] = []
    spans = Spans()
    with spans.patched(CLOCKS):
        for _ in range(passes):
            reconstructor, of_pass = Reconstructor(Config()), []
            for frame in data.frames:
                spans.take()
                update = reconstructor.process(frame)
                of_pass.append(_parts(update, spans.take()))
                advance()
            spent.append(of_pass)
    return _rows(data, spent), reconstructor, update


def _parts(update: Update, spans: dict[str, float]) -> dict[str, float]:
    """Milliseconds of one frame by row; `remember` is told apart by whether it made a keyframe."""
    stages = update.timings_ms
    parts = {"prepare": stages["prepare"], "step (depth source)": stages["step"], "tracking": stages["track"]}
    inside = {name: spans.get(name, 0.0) for name in (FEATURES, MATCHING, PNP, SURFACES, COVISIBILITY)}
    parts |= {f"· {name}": ms for name, ms in inside.items()}
    parts["· everything else"] = stages["track"] - sum(inside.values())
    if update.keyframe_id is not None:
        parts |= {"keyframe: make, store, fuse": stages["remember"], f"· {FUSE}": spans.get(FUSE, 0.0)}
    return parts


def _rows(data: Input, spent: Sequence[Sequence[dict[str, float]]]) -> list[Row]:
    times: dict[str, list[list[float]]] = defaultdict(list)
    for of_pass in spent:
        # The first frame defines the world instead of being tracked.
        by_name: dict[str, list[float]] = defaultdict(list)
        for parts in of_pass[1:]:
            for name, ms in parts.items():
                by_name[name].append(ms)
        for name, values in by_name.items():
            times[name].append(values)
    return [over_frames(_group(name), name, data.name, passes) for name, passes in times.items()]


def _group(name: str) -> str:
    if name in ("prepare", "step (depth source)"):
        return "frame"
    return "keyframe" if name.startswith("keyframe") or FUSE in name else "tracking"
