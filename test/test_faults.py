# SPDX-License-Identifier: Apache-2.0
"""Bad input end to end, through `recon run` as a user types it: one sentence, or a finished run that counts it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import message_factory as mf
import numpy as np
import pytest
from recon_command import files_in, recon, report_of
from textured_room import CAMERA, TexturedRoom, walk
from typer.testing import CliRunner

from recon_ros.cli.main import app
from recon_ros.export.tum import read_tum
from recon_ros.messages import stamp_ns

pytestmark = pytest.mark.faults

IMAGE, INFO = "/camera/color/image_raw", "/camera/color/camera_info"
DEPTH = "/camera/aligned_depth_to_color/image_raw"
START, STEP = mf.START, mf.SECOND // 10

Spoil = Callable[[Any, Any, Any], None]
"""Changes the image, the depth and the camera_info of a frame in place."""


def messages(count: int, spoiled: dict[int, Spoil] | None = None) -> list[mf.Message]:
    """A walk through the textured room; the frames of the given indices are spoiled."""
    room = TexturedRoom()
    found: list[mf.Message] = []
    for i in range(count):
        stamp = START + i * STEP
        pixels, metres = room.render(walk(i))
        image = mf.image(pixels, "rgb8", stamp_ns=stamp)
        depth = mf.image(np.round(metres * 1000).astype(np.uint16), "16UC1", stamp_ns=stamp)
        info = mf.camera_info(CAMERA.width, CAMERA.height, CAMERA.fx, stamp_ns=stamp)
        if spoiled and i in spoiled:
            spoiled[i](image, depth, info)
        found += [(INFO, stamp, info), (IMAGE, stamp, image), (DEPTH, stamp, depth)]
    return found


def set_stamp(stamp: int, *spoiled: Any) -> None:
    for message in spoiled:
        message.header = mf.header(stamp)


def replace_depth(depth: Any, values: np.ndarray, encoding: str) -> None:
    new = mf.image(values, encoding)
    depth.encoding, depth.step, depth.data = encoding, new.step, new.data


def wrong_encoding(image: Any, depth: Any, info: Any) -> None:
    image.encoding = "bayer_rggb8"


def zero_K(image: Any, depth: Any, info: Any) -> None:
    info.k = np.zeros(9)


def other_size(image: Any, depth: Any, info: Any) -> None:
    """A camera_info of another stream; the next one is right again."""
    info.width, info.height = 640, 480


def cut_short(image: Any, depth: Any, info: Any) -> None:
    image.data = image.data[:1000]


def nan_depth(image: Any, depth: Any, info: Any) -> None:
    replace_depth(depth, np.full((depth.height, depth.width), np.nan, np.float32), "32FC1")


def zero_depth(image: Any, depth: Any, info: Any) -> None:
    replace_depth(depth, np.zeros((depth.height, depth.width), np.uint16), "16UC1")


def small_depth(image: Any, depth: Any, info: Any) -> None:
    half = mf.image(np.full((120, 160), 2000, np.uint16), "16UC1")
    depth.width, depth.height, depth.step, depth.data = half.width, half.height, half.step, half.data


def repeated_stamp(image: Any, depth: Any, info: Any) -> None:
    """That of the frame before."""
    set_stamp(stamp_ns(image.header.stamp) - STEP, image, depth)


def earlier_stamp(image: Any, depth: Any, info: Any) -> None:
    """As if it had been taken a quarter of a second before; it comes after frames that are newer."""
    set_stamp(stamp_ns(image.header.stamp) - int(2.5 * STEP), image, depth)


def zero_stamp(image: Any, depth: Any, info: Any) -> None:
    set_stamp(0, image)


COUNT = 30
FAULTS: dict[int, Spoil] = {
    3: wrong_encoding,
    5: cut_short,
    7: nan_depth,
    9: zero_depth,
    11: small_depth,
    13: other_size,
    15: zero_K,
    18: repeated_stamp,
    20: zero_stamp,
    23: earlier_stamp,
}


def says_one_sentence(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 1 (checked by `recon`), one line beginning with 'error:', no trace."""
    assert "Traceback" not in result.stdout + result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.stderr
    for part in parts:
        assert part in errors[0], errors[0]


# -- recordings that cannot be used --------------------------------------------------------------------------


def test_a_recording_without_images_names_the_topics_it_has(tmp_path):
    poses = [("/robot/pose", START + i, mf.pose_stamped(START + i, (i, 0, 0))) for i in range(3)]
    bag = mf.write_bag(tmp_path / "bag", [*poses, (INFO, START, mf.camera_info())])
    result = recon("run", bag, "--out", tmp_path / "out", code=1)
    says_one_sentence(result, "no image", "/robot/pose (geometry_msgs/msg/PoseStamped, 3)", INFO)
    assert not (tmp_path / "out").exists()


def test_a_recording_that_is_not_there(tmp_path):
    says_one_sentence(recon("run", tmp_path / "nowhere", "--out", tmp_path / "out", code=1), "nowhere")


def test_a_recording_of_which_no_frame_can_be_used_says_why(tmp_path):
    bag = mf.write_bag(tmp_path / "bag", messages(4, dict.fromkeys(range(4), zero_K)))
    result = recon("run", bag, "--out", tmp_path / "out", code=1)
    says_one_sentence(result, "no frame", "4 × camera")
    assert "warning: camera: " in result.stderr  # and what is wrong with it


# -- recordings that can be used in part ---------------------------------------------------------------------


def test_a_truncated_mcap_is_used_as_far_as_it_goes(tmp_path):
    whole = next(mf.write_bag(tmp_path / "bag", messages(16)).glob("*.mcap")).read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole[: int(0.7 * len(whole))])
    result = recon("run", cut, "--out", tmp_path / "out", "--no-evaluate-map")
    assert re.search(r"warning: .*cut\.mcap' is cut off at byte \d+", result.stderr)
    report = report_of(tmp_path / "out")
    assert 8 <= report["processed"] == report["tracked"] <= 12
    stamps = read_tum(tmp_path / "out" / "trajectory.tum").stamps_ns
    assert stamps.tolist() == [START + i * STEP for i in range(len(stamps))]


@pytest.fixture(scope="module")
def spoiled_run(tmp_path_factory) -> tuple[Path, str]:
    """A run over a recording with each fault in a frame of its own: the folder, and what was said."""
    folder = tmp_path_factory.mktemp("faults")
    bag = mf.write_bag(folder / "bag", messages(COUNT, FAULTS))
    return folder / "out", recon("run", bag, "--out", folder / "out", "--no-evaluate-map").stderr


@pytest.mark.parametrize(
    ("reason", "count", "named"),
    [
        ("encoding", 1, "bayer_rggb8"),
        ("image", 1, "1000"),
        ("depth_empty", 2, "no valid pixel"),  # NaN and zero
        ("depth_size", 1, "160x120"),
        ("camera_size", 1, "640x480"),
        ("camera", 1, "fx"),  # zero K: the calibration known before stays in use
        ("stamp_order", 2, "is not after the previous frame's"),  # one repeated, one from before
        ("stamp_zero", 1, "stamp 0"),
    ],
)
def test_unusable_frames_are_skipped_counted_and_named(spoiled_run, reason, count, named):
    out, said = spoiled_run
    assert report_of(out)["skipped"].get(reason) == count
    line = next((line for line in said.splitlines() if line.startswith(f"warning: {reason}: ")), None)
    assert line is not None and named in line, said


def test_a_stamp_out_of_order_is_not_blamed_on_depth(spoiled_run):
    """Its depth comes too late to be found; the message is about the stamp all the same."""
    assert "unpaired_images" not in report_of(spoiled_run[0])["skipped"]


def test_the_run_goes_on_between_the_faults(spoiled_run):
    out, _ = spoiled_run
    report = report_of(out)
    lost = FAULTS.keys() - {15}  # of which the camera_info is refused, the image is not
    expected = [START + i * STEP for i in range(COUNT) if i not in lost]
    assert report["frames"] == COUNT
    assert read_tum(out / "trajectory.tum").stamps_ns.tolist() == expected
    assert report["processed"] == report["tracked"] == len(expected)
    assert "report.png" in files_in(out)


# -- wrong options -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    return mf.write_bag(tmp_path_factory.mktemp("good") / "bag", messages(3))


def test_an_unknown_option_is_told_with_the_nearest_known_one(bag, tmp_path):
    result = recon("run", bag, "--out", tmp_path / "out", "--set", "memory.max_keyframe=9", code=1)
    says_one_sentence(result, "'memory.max_keyframe'", "did you mean 'memory.max_keyframes'?")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--set", "memory.max_keyframes=many"), ("'memory.max_keyframes' is 'many'", "int")),
        (("--set", "memory.max_keyframes=1"), ("'memory.max_keyframes' is 1", "between 4 and")),
        (("--set", "memory.max_keyframes"), ("has no value",)),
        (("--source", "crystal"), ("'source' is 'crystal'", "depth")),
        (("--config", "nowhere.yaml"), ("nowhere.yaml", "No such file")),
    ],
    ids=["type", "range", "no value", "source", "config"],
)
def test_a_wrong_value_is_told_in_a_sentence(bag, tmp_path, options, parts):
    """In this process, which is quicker; the line is the same."""
    result = CliRunner().invoke(app, ["run", str(bag), "--out", str(tmp_path / "out"), *options])
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert result.output.startswith("error:") and result.output.count("\n") == 1
    for part in parts:
        assert part in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_told_before_the_work(bag, tmp_path):
    (tmp_path / "file").touch()
    result = recon("run", bag, "--out", tmp_path / "file" / "out", code=1)
    says_one_sentence(result, "cannot write", "file/out", "Not a directory")
    assert "reconstructing" not in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_write_protected_is_told(bag, tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    says_one_sentence(recon("run", bag, "--out", tmp_path / "out", code=1), "cannot write", "Permission denied")


def test_a_file_that_cannot_be_written_at_the_end_is_told(bag, tmp_path):
    (tmp_path / "map.ply").mkdir()
    says_one_sentence(recon("run", bag, "--out", tmp_path, code=1), "map.ply", "Is a directory")
