# SPDX-License-Identifier: Apache-2.0
"""How good a network is on sequences with a truth, used as it would be on a robot: with its own poses and memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_ros.networks.compact import NEW_VIEW, Compact
from recon_ros.training.batches import Batch, Shards
from recon_ros.training.losses import FARTHEST, NEAREST
from recon_ros.training.unroll import encoded_of

SHORTEST_STEP = 0.02
"""Metres; a share of less than this is no measure of a translation's error."""
DELTA = 1.25


@dataclass(frozen=True, eq=False)
class Tracked:
    """What a network said of one sequence of F frames.

    Attributes:
        depth, confidence: (F, H, W) float32, metres, and in [0, 1].
        T_anchor_camera: (F, 4, 4) float64.
    """

    depth: NDArray[np.float32]
    confidence: NDArray[np.float32]
    T_anchor_camera: NDArray[np.float64]


@torch.no_grad()
def track(network: Compact, batch: Batch) -> list[Tracked]:
    """Run sequences through a network; without memory every frame stands where the first one does."""
    memory = network.empty(len(batch.images))
    depths, confidences, poses = [], [], []
    for t in range(batch.frames):
        seen = network.see(batch.images[:, t], encoded_of(network, batch, t), batch.K)
        T = memory.T_last
        if network.config.memory and t > 0:
            T = network.locate(seen, memory, batch.K).T_anchor_camera
        measured = network.measure(seen, memory, T, batch.K)
        memory = network.remember(memory, seen, measured, T, batch.K)
        depth, confidence = network.full_depth(measured)
        depths.append(depth)
        confidences.append(confidence)
        poses.append(T)
    return [
        Tracked(_numpy(depth), _numpy(confidence), _numpy(T).astype(np.float64))
        for depth, confidence, T in zip(*(torch.stack(x, dim=1) for x in (depths, confidences, poses)), strict=True)
    ]


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()


@dataclass(frozen=True)
class FrameErrors:
    """Of one frame. Depth is multiplied by the scale named.

    Attributes:
        abs_rel, delta: mean of |predicted − true| / true and share within a factor 1.25, scaled by the image's median.
        abs_rel_sequence: the same with one scale for the sequence.
        abs_rel_metric: the same without any scale.
        scale: by which the image's median has to be multiplied.
        sure, unsure: abs_rel of the more and the less confident half.
        rotation_deg, translation: error of the step from the frame before, degrees, and share of its length, at the
            sequence's scale; NaN for a first frame, and for steps too short to tell.
        keyframe_rotation_deg, keyframe_translation: the same of the step from the keyframe before, where a frame is one
            (`keyframes`); else NaN.
    """

    abs_rel: float
    delta: float
    abs_rel_sequence: float
    abs_rel_metric: float
    scale: float
    sure: float
    unsure: float
    rotation_deg: float
    translation: float
    keyframe_rotation_deg: float
    keyframe_translation: float


def keyframes(depth: NDArray[np.float32], T_anchor_camera: NDArray) -> list[int]:
    """Which frames show enough that is new, by the truth and the measure of the network's own memory.

    Args:
        depth: (F, H, W) metres, 0 or NaN for none.
        T_anchor_camera: (F, 4, 4) true poses.
    """
    chosen = [0]
    for t in range(1, len(depth)):
        T = np.linalg.inv(T_anchor_camera[chosen[-1]].astype(np.float64)) @ T_anchor_camera[t]
        known = depth[t][np.nan_to_num(depth[t]) > NEAREST]
        typical = float(np.median(known)) if len(known) else 1.0
        if np.linalg.norm(T[:3, 3]) / typical > NEW_VIEW[0] or (np.trace(T[:3, :3]) - 1) / 2 < NEW_VIEW[1]:
            chosen.append(t)
    return chosen


def frame_errors(
    tracked: Tracked, depth: NDArray[np.float32], T_anchor_camera: NDArray, farthest: float = FARTHEST
) -> list[FrameErrors]:
    """Errors of every frame of a sequence that has any truth.

    Args:
        tracked: of the network.
        depth: (F, H, W) metres, 0 or NaN for none.
        T_anchor_camera: (F, 4, 4) true poses.
        farthest: metres; truth beyond does not count.
    """
    with np.errstate(invalid="ignore"):
        known = (depth > NEAREST) & (depth < farthest)
    ratios = [depth[t][known[t]] / tracked.depth[t][known[t]] for t in range(len(depth))]
    filled = [ratio for ratio in ratios if len(ratio)]
    scale = float(np.median(np.concatenate(filled))) if filled else 1.0
    chosen = keyframes(depth, T_anchor_camera)
    before = dict(zip(chosen[1:], chosen[:-1], strict=True))
    errors = []
    for t, ratio in enumerate(ratios):
        if not len(ratio):
            continue
        own = float(np.median(ratio))
        # |s p − d| / d = |s / (d / p) − 1|
        relative = np.abs(own / ratio - 1)
        sure, unsure = _halves(relative, tracked.confidence[t][known[t]])
        rotation, translation = _step_error(tracked.T_anchor_camera, T_anchor_camera, t - 1 if t else None, t, scale)
        by_keyframe = _step_error(tracked.T_anchor_camera, T_anchor_camera, before.get(t), t, scale)
        errors.append(
            FrameErrors(
                abs_rel=float(relative.mean()),
                delta=float((np.maximum(own / ratio, ratio / own) < DELTA).mean()),
                abs_rel_sequence=float(np.abs(scale / ratio - 1).mean()),
                abs_rel_metric=float(np.abs(1 / ratio - 1).mean()),
                scale=own,
                sure=sure,
                unsure=unsure,
                rotation_deg=rotation,
                translation=translation,
                keyframe_rotation_deg=by_keyframe[0],
                keyframe_translation=by_keyframe[1],
            )
        )
    return errors


def _halves(error: NDArray, confidence: NDArray) -> tuple[float, float]:
    """Mean errors of the more confident half and of the rest."""
    order = np.argsort(-confidence, kind="stable")
    half = max(1, len(order) // 2)
    rest = order[half:] if len(order) > half else order
    return float(error[order[:half]].mean()), float(error[rest].mean())


def _step_error(T: NDArray, truth: NDArray, start: int | None, t: int, scale: float) -> tuple[float, float]:
    if start is None:
        return float("nan"), float("nan")
    step = np.linalg.inv(T[start]) @ T[t]
    step[:3, 3] *= scale
    true_step = np.linalg.inv(truth[start].astype(np.float64)) @ truth[t]
    turned = true_step[:3, :3].T @ step[:3, :3]
    angle = np.degrees(np.arctan2(np.linalg.norm(_axial(turned)), (np.trace(turned) - 1) / 2))
    length = float(np.linalg.norm(true_step[:3, 3]))
    if length < SHORTEST_STEP:
        return float(angle), float("nan")
    return float(angle), float(np.linalg.norm(step[:3, 3] - true_step[:3, 3])) / length


def _axial(R: NDArray) -> NDArray:
    return np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) / 2


def summary(errors: Sequence[FrameErrors]) -> dict[str, float]:
    """Means over frames, medians of the steps' errors, and how well confidence ranks (`sure_to_unsure`)."""
    table = {name: np.array([getattr(error, name) for error in errors]) for name in FrameErrors.__annotations__}
    result = {name: _mean(table[name]) for name in ("abs_rel", "delta", "abs_rel_sequence", "abs_rel_metric")}
    result["sure_to_unsure"] = _mean(table["sure"]) / max(_mean(table["unsure"]), 1e-9)
    for name in ("rotation_deg", "translation", "keyframe_rotation_deg", "keyframe_translation"):
        values = table[name][np.isfinite(table[name])]
        result[name] = float(np.median(values)) if len(values) else float("nan")
        result[f"{name}_mean"] = _mean(values)
    result["frames"] = float(len(errors))
    return result


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def held_out(shards: Shards, count: int) -> Iterator[tuple[int, Batch]]:
    """`count` sequences, spread evenly over the shards, the same ones each time; all of them for 0."""
    total = len(shards)
    indices: Iterable[int] = range(total)
    if 0 < count < total:
        indices = np.linspace(0, total - 1, count).round().astype(int).tolist()
    for index in indices:
        yield index, shards.whole(index)


def validate(network: Compact, shards: Shards, count: int, device: torch.device) -> dict[str, float]:
    """The summary over held-out sequences."""
    errors: list[FrameErrors] = []
    for _, batch in held_out(shards, count):
        tracked = track(network, batch.to(device))[0]
        errors += frame_errors(tracked, batch.depth[0].numpy(), batch.T_anchor_camera[0].numpy())
    return summary(errors)
