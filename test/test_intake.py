# SPDX-License-Identifier: Apache-2.0
"""What the camera sends becomes frames; what is unusable is refused by name, counted, and harms no other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from message_factory import SECOND, START, camera_info, compressed, image

from recon_ros.config import InputConfig
from recon_ros.errors import InputError
from recon_ros.intake import LEAP_NS, Intake, Pair

STEP = SECOND // 30
PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
DEPTH = np.random.default_rng(1).integers(1, 5000, (48, 64), dtype=np.uint16)


def intake(*, use_depth: bool = False, require_camera: bool = True, info: bool = True) -> Intake:
    made = Intake(InputConfig(), use_depth, 20_000_000, require_camera)
    if info:
        made.on_camera_info(camera_info())
    return made


def colour(stamp_ns: int = START, pixels: np.ndarray = PICTURE, encoding: str = "rgb8"):
    return image(pixels, encoding, stamp_ns=stamp_ns)


def depth(stamp_ns: int = START, pixels: np.ndarray = DEPTH, encoding: str = "16UC1"):
    return image(pixels, encoding, stamp_ns=stamp_ns)


def refused(made: Intake, pair: Pair) -> InputError:
    """The error of a pair that must be refused, after checking that it was counted and warned of once."""
    made.warnings()
    with pytest.raises(InputError) as caught:
        made.frame(pair)
    error = caught.value
    assert made.counters[f"skipped_{error.reason}"] >= 1
    assert made.warnings() == {error.reason: str(error)}
    assert made.warnings() == {}
    return error


def usable(made: Intake, stamp_ns: int, *, use_depth: bool = False) -> bool:
    """Whether a good message with this stamp becomes a frame."""
    pairs = made.on_image(colour(stamp_ns))
    if use_depth:
        pairs = made.on_depth(depth(stamp_ns))
    assert [pair.stamp_ns for pair in pairs] == [stamp_ns]
    return made.frame(pairs[0]).stamp_ns == stamp_ns


def test_a_frame_has_everything():
    made = intake(use_depth=True)
    assert made.on_image(colour()) == []
    (pair,) = made.on_depth(depth())
    frame = made.frame(pair)
    assert frame.stamp_ns == START and frame.frame_id == "optical"
    np.testing.assert_array_equal(frame.image, PICTURE)
    np.testing.assert_allclose(frame.depth, DEPTH * 0.001, rtol=1e-6)
    assert frame.camera.same_as(made.camera) and frame.camera.fx == 50
    assert made.counters == {
        "received_images": 1,
        "received_depths": 1,
        "unpaired_images": 0,
        "unpaired_depths": 0,
        "camera_info_changed": 0,
        "frames": 1,
    }


@settings(max_examples=30, deadline=None)
@given(stamps=st.lists(st.integers(1, LEAP_NS // 4), min_size=1, max_size=8))
def test_stamps_are_exact_and_strictly_increase(stamps):
    made = intake()
    accepted = []
    for stamp in stamps:
        (pair,) = made.on_image(colour(START + stamp))
        try:
            accepted.append(made.frame(pair).stamp_ns - START)
        except InputError as error:
            assert error.reason == ("stamp_jump" if stamp < accepted[-1] - SECOND else "stamp_order")
            assert stamp <= accepted[-1]
    # The records of the list: exactly those that are larger than all before.
    assert accepted == [s for i, s in enumerate(stamps) if all(s > earlier for earlier in stamps[:i])]
    assert made.counters["frames"] == len(accepted)


def test_equal_and_earlier_stamps_are_out_of_order():
    made = intake()
    assert usable(made, START)
    for stamp in (START, START - SECOND):
        (pair,) = made.on_image(colour(stamp))
        error = refused(made, pair)
        assert error.reason == "stamp_order" and str(stamp) in str(error) and str(START) in str(error)
    assert usable(made, START + 1)


def test_a_jump_back_is_told_apart_and_reset_takes_it():
    made = intake()
    assert usable(made, START)
    early = START - SECOND - 1
    (pair,) = made.on_image(colour(early))
    assert refused(made, pair).reason == "stamp_jump"
    made.reset()
    assert made.frame(pair).stamp_ns == early
    assert usable(made, early + 1)


def test_a_lone_stamp_far_ahead_is_not_believed():
    made = intake()
    assert usable(made, START)
    (pair,) = made.on_image(colour(START + 2 * LEAP_NS))
    assert refused(made, pair).reason == "stamp_leap"
    assert usable(made, START + STEP)
    (pair,) = made.on_image(colour(START + 3 * LEAP_NS))
    assert refused(made, pair).reason == "stamp_leap"
    assert usable(made, START + 3 * LEAP_NS + STEP)  # the recording was paused: the second one agrees


@pytest.mark.parametrize("use_depth", [False, True])
def test_a_zero_stamp_is_refused_and_harms_nothing(use_depth):
    made = intake(use_depth=use_depth)
    assert usable(made, START, use_depth=use_depth)
    (pair,) = made.on_image(colour(0))
    assert refused(made, pair).reason == "stamp_zero"
    assert usable(made, START + STEP, use_depth=use_depth)
    assert made.counters["unpaired_images"] == 0


def test_a_zero_stamp_of_a_depth_is_named():
    made = intake(use_depth=True)
    assert made.on_depth(depth(0)) == []
    assert "stamp 0" in made.warnings()["depth_stamp_zero"]
    assert usable(made, START, use_depth=True)


BROKEN_PIXELS = image(PICTURE, "rgb8")
BROKEN_PIXELS.data = BROKEN_PIXELS.data[:100]

BAD_PAIRS = {
    "encoding": Pair(START, colour(encoding="bayer_rggb8", pixels=PICTURE[..., 0]), depth()),
    "image": Pair(START, BROKEN_PIXELS, depth()),
    "camera_size": Pair(START, colour(pixels=PICTURE[:24]), depth()),
    "depth_size": Pair(START, colour(), depth(pixels=DEPTH[::2, ::2])),
    "depth_empty": Pair(START, colour(), depth(pixels=np.zeros_like(DEPTH))),
    "depth": Pair(START, colour(), compressed(b"junk", "16UC1; compressedDepth png")),
}


@pytest.mark.parametrize("reason", BAD_PAIRS)
def test_each_kind_of_bad_input_has_its_reason_and_the_next_frame_is_fine(reason):
    made = intake(use_depth=True)
    assert refused(made, BAD_PAIRS[reason]).reason == reason
    # The stamp of a refused frame does not count as the last one.
    assert usable(made, START, use_depth=True)
    assert made.counters["frames"] == made.counters[f"skipped_{reason}"] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_float_depth_without_a_valid_pixel_is_empty(value):
    made = intake(use_depth=True)
    pair = Pair(START, colour(), depth(pixels=np.full((48, 64), value, np.float32), encoding="32FC1"))
    assert refused(made, pair).reason == "depth_empty"


def test_sizes_are_named():
    made = intake(use_depth=True)
    assert "64x48" in (text := str(refused(made, BAD_PAIRS["camera_size"]))) and "64x24" in text
    assert "32x24" in (text := str(refused(made, BAD_PAIRS["depth_size"]))) and "64x48" in text


def test_images_before_camera_info():
    strict, lenient = intake(info=False), intake(info=False, require_camera=False)
    (pair,) = strict.on_image(colour())
    assert refused(strict, pair).reason == "no_camera_info"
    strict.on_camera_info(camera_info())
    assert strict.frame(pair).camera is not None
    (pair,) = lenient.on_image(colour())
    assert lenient.frame(pair).camera is None


def test_a_zero_K_is_refused_where_calibration_is_required():
    strict, lenient = intake(info=False), intake(info=False, require_camera=False)
    for made in (strict, lenient):
        made.on_camera_info(camera_info(focal=0.0))
    (pair,) = strict.on_image(colour())
    error = refused(strict, pair)
    assert error.reason == "camera" and "fx=0" in str(error)
    assert "fx=0" in lenient.warnings()["camera"]
    assert lenient.frame(pair).camera is None


def test_a_bad_camera_info_does_not_replace_a_good_one():
    made = intake()
    made.on_camera_info(camera_info(focal=0.0))
    assert usable(made, START)
    assert made.camera.fx == 50 and made.counters["skipped_camera"] == 1


def test_a_changed_camera_info_is_used_and_counted():
    made = intake()
    made.on_camera_info(camera_info())
    assert made.counters["camera_info_changed"] == 0
    made.on_camera_info(camera_info(focal=60.0))
    (pair,) = made.on_image(colour())
    assert made.frame(pair).camera.fx == 60
    assert made.counters["camera_info_changed"] == 1
    assert "fx=50" in (text := made.warnings()["camera_info_changed"]) and "fx=60" in text


def test_unpaired_images_are_counted_and_the_miss_is_named():
    made = intake(use_depth=True)
    made.on_image(colour(START))
    assert made.on_depth(depth(START + 25_000_000)) == []
    assert made.counters["unpaired_images"] == 1
    assert "+25.000 ms" in made.warnings()["unpaired_image"]
    made.on_image(colour(START + STEP))
    made.reset()
    counters = made.counters
    assert (counters["received_images"], counters["received_depths"]) == (2, 1)
    assert (counters["unpaired_images"], counters["unpaired_depths"]) == (2, 1)


def test_flush_lets_go_of_the_last_pair():
    made = intake(use_depth=True)
    made.on_image(colour(START))
    assert made.on_depth(depth(START + 5_000_000)) == []  # the next image could be nearer
    (pair,) = made.flush()
    assert made.frame(pair).stamp_ns == START


def test_errors_found_further_on_are_counted_with_the_others():
    made = intake()
    made.skip(InputError("tracking", "too dark"))
    assert made.counters["skipped_tracking"] == 1 and made.warnings() == {"tracking": "too dark"}
