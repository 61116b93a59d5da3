# SPDX-License-Identifier: Apache-2.0
"""Who draws the cloud: nobody waits, nothing is drawn in vain, and in the end it is that of the keyframes."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from furnished_room import Box, keyframe_of, look
from helpers import quick
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_ros.config import Config, MapConfig, updated
from recon_ros.frame import Cloud, Keyframe
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera
from recon_ros.mapping.drawing import Drawing, MapChanges
from recon_ros.mapping.fusion import VoxelMap

SMALL = Camera.from_focal(32, 24, 26.0)
CRATE = Box((-0.3, 0.6, 1.2), (0.3, 1.5, 1.8))
STEP = se3.exp(np.array([0.3, 0.0, -0.2, 0.0, 0.1, 0.0]))
PATIENCE_S = 20.0


def map_config(**options: float) -> MapConfig:
    defaults = {"map.voxel_size": 0.05, "map.carving": 2}
    return updated(Config(), defaults | {f"map.{name}": value for name, value in options.items()}).map


def keyframes_of(count: int) -> list[Keyframe]:
    angles = 0.9 * np.sin(0.7 * np.arange(count))
    return [
        keyframe_of(i, look(-1.8 * np.sin(a), 1.2 - 2.4 * np.cos(a), a), [CRATE] if i % 5 < 2 else [], camera=SMALL)
        for i, a in enumerate(angles)
    ]


def move(keyframe: Keyframe) -> None:
    keyframe.T_world_camera = keyframe.T_world_camera @ STEP


def afresh(keyframes: list[Keyframe]) -> Cloud:
    """The cloud of keyframes where they are."""
    voxels = VoxelMap(map_config())
    for keyframe in keyframes:
        voxels.add(keyframe)
    return voxels.cloud()


def assert_same(a: Cloud, b: Cloud) -> None:
    for name in ("points", "colours", "confidence", "normals"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name


def at_once(call: Callable[[], object]) -> None:
    """Do something that must not wait for what this thread holds."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it waits"


@pytest.fixture
def live() -> Iterator[Drawing]:
    drawing = Drawing(map_config(), live=True)
    yield drawing
    drawing.close()


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is done to the voxel map, in order."""
    done: list[tuple[str, int]] = []
    methods = {"add": VoxelMap.add, "remove": VoxelMap.remove}
    for name in methods:

        def noted(self: VoxelMap, keyframe: Keyframe, name: str = name, method: Callable = methods[name]) -> None:
            done.append((name, keyframe.id))
            method(self, keyframe)

        monkeypatch.setattr(VoxelMap, name, noted)
    return done


# --- the cloud in the end


told = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["draw", "move", "erase", "read", "close"])), max_size=25)


@settings(quick, max_examples=25)
@given(told, st.booleans())
def test_the_cloud_is_that_of_the_keyframes(steps: list[tuple[int, str]], is_live: bool) -> None:
    drawing, keyframes, inside = Drawing(map_config(), is_live), keyframes_of(6), set[int]()
    for i, what in steps:
        if what == "erase":
            drawing.erase(i)
            inside.discard(i)
        elif what == "read":
            drawing.cloud()
        elif what == "close":
            drawing.close()
        else:
            if what == "move":
                move(keyframes[i])
            drawing.draw(keyframes[i])
            inside.add(i)
        assert drawing.waiting <= len(keyframes)
        assert all((k.id in drawing) == (k.id in inside) for k in keyframes)
    drawing.settle()
    assert drawing.waiting == 0
    assert_same(drawing.cloud(), afresh([keyframes[i] for i in sorted(inside)]))
    drawing.close()


@pytest.mark.parametrize("is_live", [False, True])
def test_the_version_tells_of_every_change(is_live: bool) -> None:
    drawing, keyframes = Drawing(map_config(), is_live), keyframes_of(4)
    versions, clouds = [drawing.version], [drawing.cloud().points.tobytes()]
    for change in (
        lambda: drawing.draw(keyframes[0]),
        lambda: drawing.draw(keyframes[1]),
        lambda: (move(keyframes[0]), drawing.draw(keyframes[0])),
        lambda: drawing.erase(0),
        lambda: drawing.set_config(map_config(min_observations=2)),
    ):
        change()
        drawing.settle()
        versions.append(drawing.version)
        clouds.append(drawing.cloud().points.tobytes())
        assert drawing.version == versions[-1], "reading is no change"
    assert len(set(versions)) == len(versions)
    assert all(a != b for a, b in itertools.pairwise(clouds))
    drawing.close()


# --- what is drawn, and when


def test_telling_waits_for_nobody(live: Drawing) -> None:
    keyframes = keyframes_of(3)
    with live._at_work:  # as if a keyframe was being drawn, or somebody was reading
        at_once(lambda: [live.draw(keyframe) for keyframe in keyframes])
        at_once(lambda: live.erase(1))
        at_once(lambda: live.set_config(map_config()))
        assert 0 in live and 1 not in live
        at_once(lambda: live.version)
    live.settle()
    assert_same(live.cloud(), afresh([keyframes[0], keyframes[2]]))


def test_only_the_last_word_is_drawn(live: Drawing, done: list[tuple[str, int]]) -> None:
    keyframes = keyframes_of(4)
    live.draw(keyframes[0])
    live.settle()
    with live._at_work:
        for _ in range(5):
            for keyframe in keyframes[:3]:
                move(keyframe)
                live.draw(keyframe)
        live.erase(1)
        live.erase(3)
        assert live.waiting == 2
    live.settle()
    assert sorted(done) == [("add", 0), ("add", 0), ("add", 2)], "once each, and not at all what has gone meanwhile"
    assert_same(live.cloud(), afresh([keyframes[0], keyframes[2]]))


def test_what_is_new_or_gone_comes_before_what_has_moved(live: Drawing, done: list[tuple[str, int]]) -> None:
    keyframes = keyframes_of(6)
    for keyframe in keyframes[:4]:
        live.draw(keyframe)
    live.settle()
    done.clear()
    with live._at_work:
        for keyframe in keyframes[:3]:
            move(keyframe)
            live.draw(keyframe)
        live.draw(keyframes[5])
        live.draw(keyframes[4])
        live.erase(3)
    live.settle()
    assert done == [("add", 5), ("add", 4), ("remove", 3), ("add", 0), ("add", 1), ("add", 2)]


def test_it_is_taken_out_from_where_it_was_drawn(live: Drawing) -> None:
    """Though it moves while it waits to be taken out, and again before it is drawn anew."""
    keyframes = keyframes_of(2)
    for keyframe in keyframes:
        live.draw(keyframe)
    live.settle()
    with live._at_work:
        for keyframe in keyframes:
            move(keyframe)
        live.erase(0)
        live.draw(keyframes[1])
        move(keyframes[0])
    live.settle()
    assert_same(live.cloud(), afresh(keyframes[1:]))
    live.erase(1)
    live.settle()
    assert len(live._map) == 0


def test_offline_the_moved_wait_until_somebody_looks(done: list[tuple[str, int]]) -> None:
    keyframes = keyframes_of(3)
    for look_at in (Drawing.cloud, Drawing.settle, lambda d: d.version, lambda d: d.changes(0)):
        drawing = Drawing(map_config())
        done.clear()
        for keyframe in keyframes:
            drawing.draw(keyframe)
        drawing.erase(2)
        assert done == [("add", 0), ("add", 1), ("add", 2), ("remove", 2)], "at once"
        for _ in range(3):
            move(keyframes[0])
            drawing.draw(keyframes[0])
        assert len(done) == 4
        look_at(drawing)
        assert done[4:] == [("add", 0)]
        assert_same(drawing.cloud(), afresh(keyframes[:2]))


def test_a_reader_does_not_wait_for_all_that_waits(live: Drawing, monkeypatch: pytest.MonkeyPatch) -> None:
    keyframes = keyframes_of(2)
    for keyframe in keyframes:
        live.draw(keyframe)
    live.settle()
    reading, slow = threading.Event(), VoxelMap.add

    def patient(self: VoxelMap, keyframe: Keyframe) -> None:
        slow(self, keyframe)
        live.draw(keyframes[1 - keyframe.id])  # there is always more to do
        reading.set()

    monkeypatch.setattr(VoxelMap, "add", patient)
    live.draw(keyframes[0])
    assert reading.wait(PATIENCE_S)
    for _ in range(20):
        at_once(live.cloud)
    monkeypatch.setattr(VoxelMap, "add", slow)


def test_who_wants_the_whole_cloud_draws_what_waits(live: Drawing, caplog: pytest.LogCaptureFixture) -> None:
    keyframes = keyframes_of(4)
    whole: list[Cloud] = []
    with live._at_work:
        for keyframe in keyframes:
            live.draw(keyframe)
        keyframes[1].confidence = keyframes[1].confidence[:-1]
        asking = threading.Thread(target=lambda: whole.append(live.whole()))
        asking.start()
    asking.join(PATIENCE_S)
    assert_same(whole[0], afresh([keyframes[0], *keyframes[2:]]))
    assert "keyframe 1" in caplog.text, "what cannot be drawn is no reason to have nothing"


def test_offline_what_was_told_before_other_options_is_drawn_by_those_before() -> None:
    strict = map_config(min_confidence=0.9)
    clouds = []
    for looks in (False, True):
        drawing, keyframes = Drawing(map_config()), keyframes_of(3)
        for keyframe in keyframes:
            keyframe.confidence[::2] = 0.5
        drawing.draw(keyframes[0])
        move(keyframes[0])
        drawing.draw(keyframes[0])
        drawing.set_config(strict)
        if looks:
            drawing.cloud()
        drawing.draw(keyframes[1])
        clouds.append(drawing.cloud())
    assert_same(*clouds)
    expected = VoxelMap(map_config())
    expected.add(keyframes[0])
    expected.set_config(strict)
    expected.add(keyframes[1])
    assert_same(clouds[0], expected.cloud())


def test_after_the_end_the_rest_is_drawn_by_who_reads(done: list[tuple[str, int]]) -> None:
    drawing, keyframes = Drawing(map_config(), live=True), keyframes_of(5)
    with drawing._at_work:
        for keyframe in keyframes:
            drawing.draw(keyframe)
        closing = threading.Thread(target=drawing.close)
        closing.start()
        while drawing._live:
            time.sleep(0.001)
    closing.join(PATIENCE_S)
    assert drawing._thread is not None and not drawing._thread.is_alive()
    assert_same(drawing.cloud(), afresh(keyframes))
    drawing.close()  # again


def test_what_keyframes_hold_may_go_to_the_disk(live: Drawing) -> None:
    keyframe = keyframes_of(1)[0]
    live.draw(keyframe)
    live.settle()
    points = weakref.ref(keyframe.points)
    keyframe.points = keyframe.points.copy()  # elsewhere
    gc.collect()
    assert points() is None
    live.erase(0)
    live.settle()
    assert len(live._map) == 0


# --- faults


def test_a_fault_is_told_and_the_others_are_drawn(live: Drawing, caplog: pytest.LogCaptureFixture) -> None:
    keyframes = keyframes_of(3)
    keyframes[1].confidence = keyframes[1].confidence[:-1]
    with caplog.at_level(logging.ERROR, "recon_ros.mapping"):
        for keyframe in keyframes:
            live.draw(keyframe)
        live.settle()
    assert "keyframe 1" in caplog.text and "Traceback" in caplog.text
    assert 1 not in live and 2 in live
    assert_same(live.cloud(), afresh([keyframes[0], keyframes[2]]))


def test_one_that_cannot_be_drawn_anew_stays_where_it_was(live: Drawing, caplog: pytest.LogCaptureFixture) -> None:
    keyframes = keyframes_of(2)
    expected = afresh(keyframes)
    for keyframe in keyframes:
        live.draw(keyframe)
    live.settle()
    whole, keyframes[1].confidence = keyframes[1].confidence, keyframes[1].confidence[:-1]
    move(keyframes[1])
    live.draw(keyframes[1])
    live.settle()
    assert "keyframe 1" in caplog.text
    assert 1 in live
    assert_same(live.cloud(), expected)
    keyframes[1].confidence = whole
    live.draw(keyframes[1])
    live.settle()
    assert_same(live.cloud(), afresh(keyframes))


def test_offline_a_fault_is_an_error() -> None:
    keyframe = keyframes_of(1)[0]
    keyframe.confidence = keyframe.confidence[:-1]
    drawing = Drawing(map_config())
    with pytest.raises((ValueError, IndexError)):
        drawing.draw(keyframe)
    assert 0 not in drawing and len(drawing.cloud()) == 0


# --- changes


class Mirror:
    """Somebody who takes over changes."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[int, int, int], Cloud] = {}
        self.version = 0

    def take(self, changes: MapChanges) -> None:
        if changes.whole:
            self.blocks = {}
        assert all(len(cloud) for cloud in changes.changed.values())
        assert not set(changes.removed) & set(changes.changed)
        for block in changes.removed:
            self.blocks.pop(block, None)
        self.blocks |= changes.changed
        self.version = changes.version

    @property
    def points(self) -> np.ndarray:
        return np.concatenate([c.points for c in self.blocks.values()] or [np.zeros((0, 3), np.float32)])


def assert_mirrors(mirror: Mirror, drawing: Drawing) -> None:
    expected = drawing.cloud(1 << 30).points
    np.testing.assert_array_equal(np.sort(mirror.points, axis=0), np.sort(expected, axis=0))


@settings(quick, max_examples=15)
@given(told, st.booleans(), st.integers(1, 4))
def test_who_takes_over_the_changes_has_the_cloud(steps: list[tuple[int, str]], is_live: bool, every: int) -> None:
    drawing, keyframes, mirror = Drawing(map_config(), is_live), keyframes_of(6), Mirror()
    for count, (i, what) in enumerate(steps):
        if what == "erase":
            drawing.erase(i)
        elif what == "close":  # another map is the map from now on
            drawing.close()
            other = Drawing(map_config(), is_live)
            other.take_the_place_of(drawing)
            drawing = other
        else:
            if what == "move":
                move(keyframes[i])
            drawing.draw(keyframes[i])
        if count % every == 0:
            mirror.take(drawing.changes(mirror.version))
    drawing.settle()
    mirror.take(drawing.changes(mirror.version))
    assert_mirrors(mirror, drawing)
    again = drawing.changes(mirror.version)
    assert not again.removed and again.version == mirror.version
    assert not again.changed or again.whole, "nothing since, or of a map in which nothing has happened"
    drawing.close()


def test_changes_are_of_few_blocks_and_say_what_has_gone() -> None:
    keyframes = keyframes_of(2)
    keyframes[1].T_world_camera[0, 3] += 30.0
    drawing = Drawing(map_config())
    for keyframe in keyframes:
        drawing.draw(keyframe)
    everything = drawing.changes(0)
    assert everything.whole and everything.removed == ()
    far = {block for block, cloud in everything.changed.items() if cloud.points[:, 0].mean() > 15}
    assert 0 < len(far) < len(everything.changed)
    drawing.erase(1)
    changes = drawing.changes(everything.version)
    assert not changes.whole and set(changes.removed) == far and not changes.changed
    assert drawing.changes(changes.version + 100).whole, "a version that never was"


def test_no_version_stands_for_two_maps() -> None:
    first, keyframes = Drawing(map_config(), live=True), keyframes_of(4)
    with first._at_work:
        for keyframe in keyframes:
            first.draw(keyframe)
        second = Drawing(map_config())
        second.take_the_place_of(first)
    first.settle()
    assert first.version < second.version, "though the first goes on while it is replaced"
    first.close()
