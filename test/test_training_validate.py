# SPDX-License-Identifier: Apache-2.0
"""Errors of sequences, against numbers that can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed; RECON_TORCH=1 make setup")

from recon_ros.geometry import se3
from recon_ros.training.validate import Tracked, frame_errors, keyframes, summary

DEPTH = np.full((7, 12, 16), 2.0, np.float32)


def forward(steps: list[float]) -> np.ndarray:
    return np.stack([se3.make(np.eye(3), np.array([0.0, 0.0, z])) for z in steps])


def test_keyframes_are_where_the_networks_memory_would_have_them() -> None:
    truth = forward([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])  # 12 % of 2 m are 0.24 m
    assert keyframes(DEPTH, truth) == [0, 3, 6]
    turned = np.stack([se3.exp(np.array([0, 0, 0, 0, np.radians(6.0 * t), 0])) for t in range(7)])
    assert keyframes(DEPTH, turned) == [0, 3, 6]
    assert keyframes(np.zeros_like(DEPTH), np.tile(np.eye(4), (7, 1, 1))) == [0]


def test_steps_are_compared_from_frame_to_frame_and_from_keyframe_to_keyframe() -> None:
    """Every second step is 10 % too long and the others as much too short: a keyframe's three are 3.3 % off."""
    truth = forward([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    walked = forward([0.0, *np.cumsum([0.11, 0.09, 0.11, 0.09, 0.11, 0.09])])
    errors = frame_errors(Tracked(DEPTH, np.ones_like(DEPTH), walked), DEPTH, truth)
    assert [round(e.translation, 6) for e in errors[1:]] == [0.1] * 6
    assert [t for t, e in enumerate(errors) if np.isfinite(e.keyframe_translation)] == [3, 6]
    assert errors[3].keyframe_translation == pytest.approx(0.01 / 0.3, abs=1e-6)
    scores = summary(errors)
    assert scores["translation"] == pytest.approx(0.1) and scores["rotation_deg"] == pytest.approx(0, abs=1e-3)
    assert scores["keyframe_translation"] == pytest.approx(0.01 / 0.3, abs=1e-6)


def test_scale_is_taken_out_once_an_image_once_a_sequence_or_not() -> None:
    truth, seen = forward([0.0] * 7), DEPTH.copy()
    seen[:3] /= 1.5
    seen[3:] /= 1.2
    (first, *_, last) = frame_errors(Tracked(seen, np.ones_like(seen), truth), DEPTH, truth)
    assert first.abs_rel == pytest.approx(0, abs=1e-6) and first.scale == pytest.approx(1.5)
    assert last.abs_rel_sequence == pytest.approx(0, abs=1e-6), "most frames have its scale"
    assert first.abs_rel_sequence == pytest.approx(1 - 1.2 / 1.5)
    assert last.abs_rel_metric == pytest.approx(1 - 1 / 1.2)
