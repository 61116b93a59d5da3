# SPDX-License-Identifier: Apache-2.0
"""Shards for tests of the training: a camera that moves sideways before a slanted, textured wall."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WIDTH, HEIGHT, FRAMES = 64, 64, 6
FOCAL = 50.0


def write_shard(folder: Path, sequences: int = 3, first_seed: int = 0, features: str | None = None) -> Path:
    """A shard of small sequences, in the layout of `recon_ros.training.shards`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(first_seed)
    images = np.empty((sequences, FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    depth = np.empty((sequences, FRAMES, HEIGHT, WIDTH), np.float16)
    K = np.tile(np.array([FOCAL, FOCAL, 31.5, 31.5], np.float32), (sequences, 1))
    T = np.tile(np.eye(4, dtype=np.float32), (sequences, FRAMES, 1, 1))
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    for n in range(sequences):
        base, slope, phase = rng.uniform(1.5, 3.0), rng.uniform(-0.3, 0.3), rng.uniform(0, 6)
        for t in range(FRAMES):
            T[n, t, 0, 3] = 0.08 * t
            # The wall z = base + slope x, seen along the rays of a camera at x = 0.08 t.
            ray_x = (u - 31.5) / FOCAL
            z = (base + slope * T[n, t, 0, 3]) / (1 - slope * ray_x)
            x, y = ray_x * z + T[n, t, 0, 3], (v - 31.5) / FOCAL * z
            pattern = np.stack([np.sin(k * x + phase) * np.cos(k * y) for k in (9, 17, 31)], axis=-1)
            images[n, t] = np.clip(127 + 120 * pattern, 0, 255)
            depth[n, t] = z
    depth[:, :, :4, :4] = 0  # no truth here
    np.save(folder / "images.npy", images)
    np.save(folder / "depth.npy", depth)
    np.save(folder / "K.npy", K)
    np.save(folder / "T_world_camera.npy", T)
    if features:
        np.save(folder / f"{features}_f8.npy", rng.normal(size=(sequences, FRAMES, 96, 8, 8)).astype(np.float16))
        np.save(folder / f"{features}_f16.npy", rng.normal(size=(sequences, FRAMES, 192, 4, 4)).astype(np.float16))
    (folder / "shard.json").write_text("{}", encoding="utf-8")
    return folder
