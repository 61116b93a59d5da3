# SPDX-License-Identifier: Apache-2.0
"""Images find their depth: nearest, one to one, whatever the interleaving, and without waiting for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from recon_ros.pairing import JUMP_NS, QUEUE_SIZE, Pairer

MS = 1_000_000
some = settings(max_examples=300, deadline=None)


def play(pairer: Pairer, arrivals: list[tuple[str, int]]) -> list[tuple[int, int | None]]:
    """(image stamp, depth stamp) of the pairs that come out; items are the stamps themselves."""
    pairs = []
    for kind, stamp in arrivals:
        add = pairer.add_image if kind == "image" else pairer.add_depth
        pairs += [(image, depth) for _, image, depth in add(stamp, stamp)]
    return pairs + [(image, depth) for _, image, depth in pairer.flush()]


def merged(images: list[int], depths: list[int], order: list[bool]) -> list[tuple[str, int]]:
    """The two streams, each in order, interleaved as `order` says."""
    images, depths, arrivals = list(images), list(depths), []
    for is_image in order:
        source = images if is_image else depths
        if source:
            arrivals.append(("image" if is_image else "depth", source.pop(0)))
    return arrivals + [("image", s) for s in images] + [("depth", s) for s in depths]


# Streams of up to 12 stamps within less than a jump, so that neither queues overflow nor streams start anew.
streams = st.lists(st.integers(1, 80), max_size=12, unique=True).map(lambda ms: sorted(m * MS for m in ms))
orders = st.lists(st.booleans(), max_size=24)


@some
@given(images=streams, depths=streams, order=orders, other=orders, tolerance=st.integers(0, 60))
def test_pairs_do_not_depend_on_the_interleaving(images, depths, order, other, tolerance):
    first = play(Pairer(tolerance * MS, True), merged(images, depths, order))
    second = play(Pairer(tolerance * MS, True), merged(images, depths, other))
    assert first == second


@some
@given(images=streams, depths=streams, order=orders, tolerance=st.integers(0, 60))
def test_pairs_are_one_to_one_in_order_within_tolerance_and_nothing_is_lost(images, depths, order, tolerance):
    pairer = Pairer(tolerance * MS, True)
    pairs = play(pairer, merged(images, depths, order))
    assert [image for image, _ in pairs] == sorted({image for image, _ in pairs})
    assert len({depth for _, depth in pairs}) == len(pairs)
    assert all(abs(image - depth) <= tolerance * MS for image, depth in pairs)
    assert pairer.unpaired_images == len(images) - len(pairs)
    assert pairer.unpaired_depths == len(depths) - len(pairs)


@some
@given(images=streams, depths=streams, order=orders, tolerance=st.integers(0, 60))
def test_equal_stamps_always_find_each_other(images, depths, order, tolerance):
    pairs = play(Pairer(tolerance * MS, True), merged(images, depths, order))
    assert {(stamp, stamp) for stamp in set(images) & set(depths)} <= set(pairs)


@some
@given(images=streams, depths=streams, order=orders)
def test_an_image_without_any_depth_near_is_given_up_and_only_then(images, depths, order):
    tolerance = 10 * MS
    paired = {image for image, _ in play(Pairer(tolerance, True), merged(images, depths, order))}
    alone = {image for image in images if all(abs(image - depth) > tolerance for depth in depths)}
    assert not paired & alone
    lonely_pairs = [
        (image, depth)
        for image in images
        for depth in depths
        if abs(image - depth) <= tolerance
        and sum(abs(image - d) <= 3 * tolerance for d in depths) == 1
        and sum(abs(i - depth) <= 3 * tolerance for i in images) == 1
    ]
    assert {image for image, _ in lonely_pairs} <= paired


def test_equal_stamps_come_out_at_once_in_both_orders():
    pairer = Pairer(20 * MS, True)
    assert pairer.add_image(100 * MS, "a") == []
    assert pairer.add_depth(100 * MS, "A") == [(100 * MS, "a", "A")]
    assert pairer.add_depth(133 * MS, "B") == []
    assert pairer.add_image(133 * MS, "b") == [(133 * MS, "b", "B")]


def test_a_nearer_depth_is_waited_for():
    pairer = Pairer(20 * MS, True)
    pairer.add_image(100 * MS, "a")
    assert pairer.add_depth(85 * MS, "A") == []
    assert pairer.add_depth(103 * MS, "B") == []  # an image at 104 could still be nearer to it
    assert pairer.add_image(133 * MS, "b") == [(100 * MS, "a", "B")]


def test_a_depth_is_kept_for_the_image_of_its_own_stamp():
    """60 Hz images with 30 Hz depth: the image in between must not take the depth of the next."""
    pairer = Pairer(20 * MS, True)
    pairs = play(
        pairer,
        [(kind, ms * MS) for kind, ms in [("image", 0), ("depth", 0), ("image", 16), ("depth", 33), ("image", 33)]],
    )
    assert pairs == [(0, 0), (33 * MS, 33 * MS)] and pairer.unpaired_images == 1


def test_an_image_is_given_up_when_a_depth_beyond_tolerance_arrives():
    pairer = Pairer(20 * MS, True)
    pairer.add_image(100 * MS, "a")
    assert pairer.add_depth(121 * MS, "B") == []
    assert pairer.unpaired_images == 1 and pairer.last_miss_ns == 21 * MS
    assert pairer.add_image(121 * MS, "b") == [(121 * MS, "b", "B")]


def test_queues_are_bounded():
    without_depth, without_images = Pairer(0, True), Pairer(0, True)
    for i in range(1000):
        assert without_depth.add_image(i * MS, i) == [] == without_images.add_depth(i * MS, i)
    assert without_depth.unpaired_images == without_images.unpaired_depths == 1000 - QUEUE_SIZE
    assert without_depth.last_miss_ns is None
    assert without_depth.add_depth(999 * MS, "D") == [(999 * MS, 999, "D")]


def test_a_stream_that_starts_anew_is_followed_at_once():
    pairer = Pairer(20 * MS, True)
    late = 10 * JUMP_NS
    pairer.add_image(late, "old")
    pairer.add_depth(late + 50 * MS, "OLD")
    assert pairer.add_image(100 * MS, "a") == []
    assert pairer.add_depth(100 * MS, "A") == [(100 * MS, "a", "A")]
    assert pairer.unpaired_images == 1 and pairer.unpaired_depths == 1


def test_a_stamp_far_ahead_harms_only_itself():
    pairer = Pairer(20 * MS, True)
    pairer.add_depth(10**18, "wrong")
    pairs = play(pairer, [(kind, i * 33 * MS) for i in range(1, 5) for kind in ("depth", "image")])
    assert pairs == [(i * 33 * MS, i * 33 * MS) for i in range(1, 5)]


def test_without_depth_every_image_passes():
    pairer = Pairer(20 * MS, False)
    assert pairer.add_image(5, "a") == [(5, "a", None)]
    assert pairer.add_depth(5, "A") == [] == pairer.flush()
    assert pairer.unpaired_images == pairer.unpaired_depths == 0
