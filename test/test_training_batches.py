# SPDX-License-Identifier: Apache-2.0
"""Batches are what the shards hold, the same each time, and mirrored or reversed consistently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; RECON_TORCH=1 make setup")

from tiny_shards import FRAMES, write_shard  # noqa: E402

from recon_ros.errors import DatasetError  # noqa: E402
from recon_ros.networks.compact_geometry import cell_centres, invert, rays_of, transform  # noqa: E402
from recon_ros.training.batches import Batch, Prefetch, Shards, exposed, mirrored  # noqa: E402


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    write_shard(tmp_path / "shard_0", 3, 0)
    write_shard(tmp_path / "shard_1", 2, 1)
    return Shards(tmp_path, None)


def test_rows_come_from_the_right_shard(shards: Shards) -> None:
    assert len(shards) == 5
    for index, (shard, row) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        batch = shards.whole(index)
        stored = shards.shards[shard]
        assert np.array_equal((batch.images[0].permute(0, 2, 3, 1) * 255).round().byte().numpy(), stored.images[row])
        assert np.array_equal(batch.depth[0].numpy(), stored.depth[row].astype(np.float32))


def test_a_step_draws_the_same_again_and_another_step_something_else(shards: Shards) -> None:
    first, again, other = shards.draw(7, 3, 4, 3), shards.draw(7, 3, 4, 3), shards.draw(7, 4, 4, 3)
    assert torch.equal(first.images, again.images) and torch.equal(first.T_anchor_camera, again.T_anchor_camera)
    assert not torch.equal(first.images, other.images)


def test_the_anchor_is_the_first_frame_of_a_cut_in_either_direction(shards: Shards) -> None:
    backwards = shards.pick([0], [np.arange(FRAMES)[::-1]])
    assert torch.allclose(backwards.T_anchor_camera[0, 0], torch.eye(4))
    assert torch.allclose(backwards.T_anchor_camera[0, 1, :3, 3], torch.tensor([-0.08, 0.0, 0.0]), atol=1e-6)


def test_more_frames_than_there_are_gives_those_there_are(shards: Shards) -> None:
    assert shards.draw(0, 0, 2, 99).frames == FRAMES


def _reprojection(batch: Batch) -> float:
    """Largest difference of the depth of frame 0's points, seen from frame 2, to the depth there."""
    H, W = batch.depth.shape[-2:]
    rays = rays_of(cell_centres(H, W, 1, batch.depth), batch.K)
    points = transform(invert(batch.T_anchor_camera[:, 2]), rays * batch.depth[:, 0].reshape(1, -1, 1))
    u = (points[..., 0] / points[..., 2] * batch.K[:, :1] + batch.K[:, 2:3]).round()
    v = (points[..., 1] / points[..., 2] * batch.K[:, 1:2] + batch.K[:, 3:]).round()
    inside = (u >= 0) & (u < W) & (v >= 0) & (v < H) & (batch.depth[:, 0].reshape(1, -1) > 0)
    there = batch.depth[0, 2][v[inside].long(), u[inside].long()]
    wrong = (points[..., 2][inside] - there).abs()[there > 0]
    assert len(wrong) > 1000
    return float(wrong.max())


def test_a_mirrored_batch_is_as_consistent_as_the_batch(shards: Shards) -> None:
    batch = shards.whole(1)
    turned = mirrored(batch)
    assert not torch.equal(turned.depth, batch.depth)
    assert _reprojection(batch) < 0.03
    assert _reprojection(turned) < 0.03
    back = mirrored(turned)
    assert torch.allclose(back.K, batch.K) and torch.allclose(back.T_anchor_camera, batch.T_anchor_camera)
    # A mirror that forgets the poses is found out.
    forgotten = Batch(turned.images, turned.depth, turned.K, batch.T_anchor_camera)
    assert _reprojection(forgotten) > 0.03


def test_exposure_changes_colours_and_nothing_else(shards: Shards) -> None:
    batch = shards.whole(0)
    other = exposed(batch, np.random.default_rng(1))
    again = exposed(batch, np.random.default_rng(1))
    assert torch.equal(other.images, again.images)
    assert float((other.images - batch.images).abs().mean()) > 0.01
    assert float(other.images.min()) >= 0 and float(other.images.max()) <= 1
    assert other.depth is batch.depth and other.K is batch.K and other.T_anchor_camera is batch.T_anchor_camera


def test_cached_features_are_used_where_they_are_and_never_mirrored(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard_0", 2, 0)
    assert Shards(tmp_path, "scratch").draw(0, 0, 1, 2).f8 is None
    write_shard(tmp_path / "shard_1", 2, 1, features="scratch")
    shards = Shards(tmp_path, "scratch")
    assert len(shards) == 2  # the shard without features waits
    batch = shards.draw(0, 0, 1, 2)
    assert batch.f8 is not None and batch.f8.shape == (1, 2, 96, 8, 8)
    with pytest.raises(ValueError, match="mirrored"):
        mirrored(batch)


def test_unfinished_and_damaged_shards(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no finished shard"):
        Shards(tmp_path, None)
    write_shard(tmp_path / ".shard_0.123")
    with pytest.raises(DatasetError, match="no finished shard"):
        Shards(tmp_path, None)
    folder = write_shard(tmp_path / "shard_0")
    np.save(folder / "K.npy", np.zeros((1, 4), np.float32))
    with pytest.raises(DatasetError, match=r"K\.npy has shape \(1, 4\)"):
        Shards(tmp_path, None)
    (folder / "K.npy").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="cannot be read"):
        Shards(tmp_path, None)


def test_prefetch_keeps_the_order_and_hands_on_what_goes_wrong(shards: Shards) -> None:
    def make(step: int) -> Batch:
        if step == 12:
            raise DatasetError("gone")
        return shards.draw(0, step, 1, 2)

    feed = Prefetch(make, 10)
    assert torch.equal(feed.next().images, make(10).images)
    assert torch.equal(feed.next().images, make(11).images)
    with pytest.raises(DatasetError, match="gone"):
        feed.next()
    feed.close()
