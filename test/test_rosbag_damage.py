# SPDX-License-Identifier: Apache-2.0
"""Damaged recordings are used as far as they go, and the loss is told; or they are refused in a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from message_factory import SECOND, START, rgbd_messages, write_bag
from rosbags.rosbag2 import StoragePlugin

from recon_ros.datasets.rosbag import BagReader
from recon_ros.errors import DatasetError

COUNT = 12
STEP = SECOND // 30
STAMPS = [START + i * STEP for i in range(COUNT)]


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    """A small RGB-D recording as a rosbag2 folder with one mcap."""
    return write_bag(tmp_path_factory.mktemp("bags") / "rgbd", rgbd_messages(COUNT))


def mcap_of(folder: Path) -> Path:
    return next(folder.glob("*.mcap"))


@pytest.fixture(scope="module", params=["plain", "zstd"])
def long_bag(request, tmp_path_factory) -> Path:
    """A recording of several chunks (rosbags closes one at 1 MiB)."""
    folder = tmp_path_factory.mktemp(request.param) / "long"
    return write_bag(folder, rgbd_messages(60, 128, 96), zstd=request.param == "zstd")


LONG_STAMPS = [START + i * STEP for i in range(60)]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_cut_mcap_gives_what_is_before_the_cut(long_bag, tmp_path, share):
    data = mcap_of(long_bag).read_bytes()
    path = tmp_path / "cut.mcap"
    path.write_bytes(data[: int(len(data) * share)])
    with BagReader(path) as reader:
        stamps = [frame.stamp_ns for frame in reader.frames()]
        assert len(reader) - len(stamps) in (0, 1)  # the last image's depth may be behind the cut
        assert "cut.mcap' is cut off at byte" in reader.loss and "messages can be read" in reader.loss
        truth = reader.ground_truth()
    assert stamps == LONG_STAMPS[: len(stamps)]
    # Also of the chunk that the cut is in: at most two frames, or a compressed block, are lost.
    assert len(stamps) >= int(60 * share) - 6
    assert len(truth) >= len(stamps) - 1


def test_a_cut_mcap_in_a_folder_is_used_and_the_loss_tells_of_how_many(long_bag, tmp_path):
    folder = tmp_path / "long"
    shutil.copytree(long_bag, folder)
    with mcap_of(folder).open("r+b") as file:
        file.truncate(1_500_000)
    with BagReader(folder) as reader:
        assert 20 < len(list(reader.frames())) < 60
        assert "cut off at byte 1500000" in reader.loss and "whole recording had 240 messages" in reader.loss


def test_a_damaged_chunk_is_left_out(tmp_path):
    data = bytearray(mcap_of(write_bag(tmp_path / "whole", rgbd_messages(90, 128, 96), zstd=True)).read_bytes())
    zstd_magic = b"\x28\xb5\x2f\xfd"
    second = data.index(zstd_magic, data.index(zstd_magic) + 1)
    data[second : second + 4] = bytes(4)
    path = tmp_path / "hole.mcap"
    path.write_bytes(data)
    with BagReader(path) as reader:
        stamps = [frame.stamp_ns for frame in reader.frames()]
        assert "chunk of 'hole.mcap' is damaged and left out" in reader.loss
    whole = [START + i * STEP for i in range(90)]
    assert stamps[0] == whole[0] and stamps[-1] == whole[-1] and stamps == sorted(stamps)
    assert set(stamps) < set(whole) and len(stamps) > 40


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), junk=st.binary(max_size=30))
def test_any_cut_gives_the_beginning_or_a_dataset_error(bag, tmp_path, cut, junk):
    data = mcap_of(bag).read_bytes()
    path = tmp_path / "cut.mcap"
    path.write_bytes(data[: int(len(data) * cut)] + junk)
    with BagReader(bag) as reader:
        whole = list(reader.raw_messages())
    try:
        with BagReader(path, use_depth=False) as reader:
            raw = list(reader.raw_messages())
            assert raw == whole[: len(raw)]
            stamps = [frame.stamp_ns for frame in reader.frames()]
    except DatasetError as error:
        assert "\n" not in str(error)
        stamps = []
    assert stamps == STAMPS[: len(stamps)]
    assert len(stamps) >= int(COUNT * cut * 0.95) - 2


def test_one_unusable_part_of_a_split_recording_is_reported(bag, tmp_path):
    shutil.copy(mcap_of(bag), tmp_path / "bag_0.mcap")
    (tmp_path / "bag_1.mcap").write_bytes(b"")
    with BagReader(tmp_path) as reader:
        assert len(list(reader.frames())) == COUNT
        assert "bag_1.mcap' is empty" in reader.loss


def test_a_missing_part_of_a_split_recording_is_reported(bag, tmp_path):
    folder = tmp_path / "bag"
    shutil.copytree(bag, folder)
    metadata = folder / "metadata.yaml"
    name = mcap_of(folder).name
    metadata.write_text(metadata.read_text().replace(f"- {name}\n", f"- {name}\n  - gone_1.mcap\n", 1))
    with BagReader(folder) as reader:
        assert len(list(reader.frames())) == COUNT
        assert "'gone_1.mcap' is missing" in reader.loss


@pytest.mark.parametrize("name", ["empty.mcap", "empty.db3", "empty.bag"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=f"{name}' is empty"):
        BagReader(tmp_path / name)


@pytest.mark.parametrize("suffix", [".mcap", ".db3", ".bag"])
def test_junk_is_refused_in_one_sentence(tmp_path, suffix):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(10_000))
    with pytest.raises(DatasetError, match=r"junk\.") as caught:
        BagReader(path)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_recording_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="there is no recording at"):
        BagReader(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="neither an mcap nor a db3"):
        BagReader(tmp_path)
    (tmp_path / "video.mp4").write_bytes(b"x")
    with pytest.raises(DatasetError, match="is no recording"):
        BagReader(tmp_path / "video.mp4")


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_broken_database_is_refused_or_its_loss_reported(tmp_path, share):
    folder = write_bag(tmp_path / "bag", rgbd_messages(COUNT), plugin=StoragePlugin.SQLITE3)
    database = next(folder.glob("*.db3"))
    with database.open("r+b") as file:
        file.truncate(int(database.stat().st_size * share))
    try:
        with BagReader(folder) as reader:
            stamps = [frame.stamp_ns for frame in reader.frames()]
            assert stamps == STAMPS[: len(stamps)] and reader.loss
    except DatasetError as error:
        assert "db3" in str(error)
