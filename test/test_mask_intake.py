# SPDX-License-Identifier: Apache-2.0
"""Masks beside images: paired by stamp, decoded without loss, refused by name; live and from recordings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from message_factory import START, compressed, encoded, image, rgbd_messages, write_bag
from recon_command import recon, report_of
from test_intake import DEPTH, PICTURE, STEP, colour, depth, intake, refused
from test_reconstructor import FRAMES

from recon_ros.config import InputConfig
from recon_ros.datasets import bag_writer
from recon_ros.datasets.rosbag import BagReader
from recon_ros.datasets.topics import Topics
from recon_ros.errors import DatasetError, InputError
from recon_ros.intake import Intake
from recon_ros.messages import labels_from_message

LABELS = np.random.default_rng(2).integers(0, 3, (48, 64), dtype=np.uint8)
MASKED = InputConfig(mask=True)


def masking(*, use_depth: bool = True) -> Intake:
    made = Intake(MASKED, use_depth, 20_000_000)
    made.on_camera_info(intake().camera and rgbd_messages(1)[1][2])
    return made


def mask(stamp_ns: int = START, pixels: np.ndarray = LABELS, encoding: str = "mono8"):
    return image(pixels, encoding, stamp_ns=stamp_ns)


@pytest.mark.parametrize("order", ["idm", "imd", "mid", "mdi", "dim", "dmi"])
def test_a_frame_waits_for_its_mask_whatever_comes_first(order: str) -> None:
    made = masking()
    take = {
        "i": lambda: made.on_image(colour()),
        "d": lambda: made.on_depth(depth()),
        "m": lambda: made.on_mask(mask()),
    }
    *before, (pair,) = [take[letter]() for letter in order]
    assert before == [[], []]
    frame = made.frame(pair)
    np.testing.assert_array_equal(frame.mask, LABELS > 0)
    np.testing.assert_array_equal(frame.image, PICTURE)
    assert frame.depth is not None
    assert made.counters["received_masks"] == 1 and made.counters["unpaired_images"] == 0


@settings(max_examples=30, deadline=None)
@given(
    missing=st.sets(st.integers(0, 9)),
    late=st.integers(0, 4),
    offset=st.integers(-4_000_000, 4_000_000),
    use_depth=st.booleans(),
)
def test_no_image_goes_on_without_its_mask(missing: set[int], late: int, offset: int, use_depth: bool) -> None:
    """Masks come some frames late, and some never: exactly the images that have one become pairs, in order, each with
    its own.
    """
    made, pairs = masking(use_depth=use_depth), []
    for i in range(10 + late):
        stamp = START + i * STEP
        if i < 10:
            pairs += made.on_image(colour(stamp))
            pairs += made.on_depth(depth(stamp)) if use_depth else []
        if 0 <= i - late < 10 and i - late not in missing:
            pairs += made.on_mask(mask(stamp - late * STEP + offset))
    pairs += made.flush()
    assert [p.stamp_ns for p in pairs] == [START + i * STEP for i in range(10) if i not in missing]
    for pair in pairs:
        assert made._last_stamp is None or made._last_stamp < pair.stamp_ns
        assert abs(made.frame(pair).stamp_ns - pair.mask.header.stamp.sec * 10**9 - pair.mask.header.stamp.nanosec) < (
            5_000_000
        )
    assert made.counters["unpaired_images"] == len(missing)
    if missing:
        assert "found no mask within 20 ms" in made.warnings()["unpaired_image"]


def test_without_the_option_no_image_waits_and_nothing_is_counted() -> None:
    made = intake()
    (pair,) = made.on_image(colour())
    assert made.frame(pair).mask is None and "received_masks" not in made.counters


def test_a_mask_without_a_stamp_is_counted() -> None:
    made = masking()
    assert made.on_mask(mask(0)) == []
    assert made.counters["skipped_mask_stamp_zero"] == 1


def refused_mask(msg: object) -> InputError:
    made = masking(use_depth=False)
    made.on_image(colour())
    (pair,) = made.on_mask(msg)
    error = refused(made, pair)
    made.on_image(colour(START + STEP))
    (pair,) = made.on_mask(mask(START + STEP))
    assert made.frame(pair).mask is not None, "the next is none the worse"
    return error


def test_a_mask_that_excludes_everything_is_taken_for_a_mistake() -> None:
    error = refused_mask(mask(pixels=np.full((48, 64), 255, np.uint8)))
    assert error.reason == "mask_full" and "wrong way round" in str(error)


def test_a_mask_of_another_shape_than_the_image_is_refused() -> None:
    assert refused_mask(mask(pixels=np.eye(64, dtype=np.uint8))).reason == "mask_size"


def test_a_mask_that_is_a_picture_is_refused() -> None:
    error = refused_mask(image(PICTURE, "rgb8"))
    assert error.reason == "encoding" and "mono8" in str(error)


def test_a_mask_that_is_cut_off_is_refused() -> None:
    cut = mask()
    cut.data = cut.data[:-10]
    assert refused_mask(cut).reason == "mask"


def test_a_jpeg_mask_is_refused_for_it_loses_outlines() -> None:
    error = refused_mask(compressed(encoded(LABELS, ".jpg"), "jpeg"))
    assert error.reason == "mask" and "PNG of one channel" in str(error)


@pytest.mark.parametrize(
    ("msg", "dtype"),
    [
        (image(LABELS, "8UC1", padding=5), np.uint8),
        (image(LABELS * np.uint16(300), "mono16", big_endian=True), np.uint16),
        (image(LABELS * np.uint16(300), "16UC1"), np.uint16),
        (compressed(encoded(LABELS, ".png"), "mono8; png compressed mono8"), np.uint8),
    ],
)
def test_labels_are_what_was_sent(msg: object, dtype: type) -> None:
    labels = labels_from_message(msg, 64, 48)
    assert labels.dtype == dtype and labels.flags.c_contiguous
    np.testing.assert_array_equal(labels, LABELS * dtype(300 if dtype is np.uint16 else 1))


@pytest.mark.parametrize("size", [(32, 24), (128, 96), (96, 72), (63, 47)])
def test_a_smaller_or_larger_mask_is_resized_without_making_up_labels(size: tuple[int, int]) -> None:
    few = np.zeros((size[1], size[0]), np.uint8)
    few[: size[1] // 2] = 7
    few[:, : size[0] // 4] = 200
    labels = labels_from_message(mask(pixels=few), 64, 48)
    assert labels.shape == (48, 64) and set(np.unique(labels)) == {0, 7, 200}
    rows, columns = np.mgrid[:48, :64]
    at = few[(2 * rows + 1) * size[1] // 96, (2 * columns + 1) * size[0] // 128]
    assert (labels == at).mean() > 0.97  # nearest; half way between two pixels either will do


# -- recordings


def masks_of(count: int) -> list[tuple[str, int, object]]:
    return [("/segmenter/mask", START + i * STEP + 9_000_000, mask(START + i * STEP)) for i in range(count)]


def test_a_recording_gives_masked_frames(tmp_path: Path) -> None:
    messages = sorted(rgbd_messages(4) + masks_of(3), key=lambda m: m[1])
    path = write_bag(tmp_path / "bag", messages)
    with BagReader(path, config=MASKED) as reader:
        assert reader.topics.mask == "/segmenter/mask"
        frames = list(reader.frames())
        assert [f.stamp_ns for f in frames] == [START + i * STEP for i in range(3)]
        assert all((f.mask == (LABELS > 0)).all() for f in frames)
        assert reader.counters["unpaired_images"] == 1
    with BagReader(path) as reader:
        assert [f.mask for f in reader.frames()] == [None] * 4


def test_of_masks_the_one_that_is_not_of_an_object_is_taken(tmp_path: Path) -> None:
    messages = [
        *rgbd_messages(1),
        ("/a/object_mask", START, mask()),
        ("/b/mask", START, image(PICTURE, "rgb8")),
        ("/camera/color/unmasked", START, mask()),
        ("/z/person_masks", START, compressed(encoded(LABELS, ".png"), "png")),
    ]
    path = write_bag(tmp_path / "bag", messages)
    with BagReader(path, config=MASKED) as reader:
        assert (reader.topics.mask, reader.topics.image) == ("/z/person_masks", "/camera/color/image_raw")
    with BagReader(path, Topics(mask="/a/object_mask"), MASKED) as reader:
        assert reader.topics.mask == "/a/object_mask" and len(list(reader.frames())) == 1


def test_a_recording_without_masks_is_refused_if_they_are_wanted(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", rgbd_messages(1))
    with pytest.raises(DatasetError, match=r"no mask topic found.*image_raw"):
        BagReader(path, config=MASKED)
    with pytest.raises(DatasetError, match="the mask topic '/none' is not in"):
        BagReader(path, Topics(mask="/none"), MASKED)


def test_masks_are_written_and_read_again(tmp_path: Path) -> None:
    frames = [replace(f, mask=np.arange(240)[None].repeat(180, 0) % (7 + i) == 0) for i, f in enumerate(FRAMES[:3])]
    bag_writer.write_bag(tmp_path / "bag", frames)
    with BagReader(tmp_path / "bag", config=MASKED) as reader:
        assert reader.topics.mask == bag_writer.MASK_TOPIC
        for read, written in zip(reader.frames(), frames, strict=True):
            np.testing.assert_array_equal(read.mask, written.mask)


def test_recon_run_leaves_out_what_masks_exclude(tmp_path: Path) -> None:
    left = np.zeros((180, 240), bool)
    left[:, :120] = True
    bag_writer.write_bag(tmp_path / "bag", [replace(f, mask=left) for f in FRAMES[:2]])
    for name, options in (("plain", ()), ("masked", ("--mask-topic", bag_writer.MASK_TOPIC))):
        recon("run", tmp_path / "bag", "--out", tmp_path / name, "--set", "tracking.features=500", *options)
    plain, masked = (report_of(tmp_path / name) for name in ("plain", "masked"))
    assert masked["tracked"] == plain["tracked"] == 2
    sizes = [len((tmp_path / name / "map.ply").read_bytes()) for name in ("plain", "masked")]
    assert 0.3 * sizes[0] < sizes[1] < 0.7 * sizes[0]


def test_the_depth_of_the_factory_is_of_the_image() -> None:
    assert DEPTH.shape == LABELS.shape == PICTURE.shape[:2]
