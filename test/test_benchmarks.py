# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what they say, and keep up with the code they measure. No duration is asserted here."""

from __future__ import annotations

import dataclasses
import time
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from textured_room import CAMERA, TexturedRoom, walk

from benchmarks import assembly, inputs, laps, machine, measure, readme, soak, stages
from recon_ros.config import Config, updated
from recon_ros.datasets.bag_writer import write_bag
from recon_ros.datasets.rosbag import BagReader
from recon_ros.frame import Frame, Trajectory
from recon_ros.messages import stamp_ns

STAMP = 1_700_000_000_900_000_000
STEP = 100_000_000


def frames(count: int) -> list[Frame]:
    room = TexturedRoom()
    views = [room.render(walk(i)) for i in range(count)]
    return [Frame(STAMP + i * STEP, image, CAMERA, depth) for i, (image, depth) in enumerate(views)]


def ignore() -> None:
    """Progress that nobody looks at."""


# -- clocks --------------------------------------------------------------------------------------------------


class Sleeper:
    def outer(self) -> float:
        time.sleep(0.02)
        return self.inner + self.inner  # computed once

    @cached_property
    def inner(self) -> float:
        time.sleep(0.03)
        return 1.0


def test_spans_are_exclusive_and_leave_the_code_as_it_was():
    before = vars(Sleeper)["outer"], vars(Sleeper)["inner"].func
    spans = measure.Spans()
    with spans.patched([("outer", Sleeper, "outer"), ("inner", Sleeper, "inner")]):
        assert Sleeper().outer() == 2.0
    taken = spans.take()
    # A sleep is never shorter; that inner's 30 ms are not in outer shows in the sum, however busy the machine is.
    assert taken["outer"] >= 20 and taken["inner"] >= 30
    assert (vars(Sleeper)["outer"], vars(Sleeper)["inner"].func) == before
    assert spans.take() == {}


def test_what_an_inner_span_takes_is_not_the_outer_ones(monkeypatch):
    now = iter(np.arange(100.0))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    spans = measure.Spans()
    with spans.patched([("outer", Sleeper, "outer"), ("inner", Sleeper, "inner")]):
        monkeypatch.setattr(time, "sleep", lambda _: next(now))
        Sleeper().outer()
    # 0 outer begins, 1 its sleep, 2 inner begins, 3 its sleep, 4 inner ends, 5 outer ends.
    assert spans.take() == {"inner": 2000.0, "outer": 3000.0}


def test_a_clock_on_something_that_is_gone_is_an_error():
    with pytest.raises(AttributeError), measure.Spans().patched([("x", Sleeper, "gone")]):
        pass


def test_the_minimum_over_frames_is_of_each_frames_fastest_pass():
    found = measure.over_frames("g", "n", "i", [[1.0, 9.0, 5.0], [3.0, 7.0, 50.0]])
    assert (found.min_ms, found.median_ms, found.repetitions) == (5.0, 6.0, 6)
    assert (
        dataclasses.replace(found, target_ms=5.0).met is True and dataclasses.replace(found, target_ms=4.0).met is False
    )


# -- stages and map ------------------------------------------------------------------------------------------


def test_every_stage_has_a_row_and_tracking_is_the_sum_of_its_parts():
    rows, reconstructor, update = stages.measure(inputs.Input("room", frames(4)), ignore, passes=2)
    by_name = {r.name: r for r in rows}
    assert {"prepare", "step (depth source)", "tracking"} <= by_name.keys()
    assert update.stamp_ns == STAMP + 3 * STEP and len(reconstructor.live_trajectory()) == 4
    parts = [r for r in rows if r.group == "tracking" and r.name.startswith("·")]
    assert len(parts) == 6
    for name in (stages.FEATURES, stages.MATCHING, stages.PNP, stages.SURFACES, stages.COVISIBILITY):
        assert by_name[f"· {name}"].min_ms > 0, name


def test_both_ways_to_assemble_a_map_give_the_same_cloud():
    keyframes = [inputs._keyframe(i, f, walk(3 * i), 2) for i, f in enumerate(frames(3))]
    found = assembly.measure(keyframes, ignore)
    assert found.points["ours"] > 5000
    assert abs(found.points["ours"] / found.points["Open3D"] - 1) < 0.03
    assert found.ratios.keys() == {"cold", "per_keyframe"} and len(found.rows) == 6


def test_all_ways_to_pack_a_cloud_give_the_same_bytes():
    pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    from benchmarks import packing

    # measure() checks the bytes itself; the slow ways only once.
    rng = np.random.default_rng(0)
    points, colours = rng.normal(size=(packing.POINTS, 3)).astype(np.float32), rng.integers(0, 256, (packing.POINTS, 3))
    messages = [bytes(way(points, colours.astype(np.uint8)).data) for way, _ in packing.ways().values()]
    assert len(messages) >= 4 and len(set(messages)) == 1


# -- soak ----------------------------------------------------------------------------------------------------


@pytest.fixture
def lap(tmp_path, monkeypatch) -> Path:
    """A "lap" of eight frames."""
    monkeypatch.setattr(laps, "FRAMES", 8)
    monkeypatch.setattr(laps, "LAP_NS", 8 * STEP)
    recorded = frames(8)
    truth = Trajectory(np.array([f.stamp_ns for f in recorded]), np.array([walk(i) for i in range(8)]))
    write_bag(tmp_path / "lap", recorded, truth)
    return tmp_path / "lap"


def test_laps_go_on_without_a_jump_of_the_stamps(lap):
    expected = [STAMP + i * STEP for i in range(19)]
    with BagReader(lap) as reader:
        assert [f.stamp_ns for f in laps.frames(reader, 19)] == expected
        assert laps.truth(reader, 19).stamps_ns.tolist() == expected
        topics = [reader.topics.image, reader.topics.camera_info, reader.topics.depth]
        sent = list(laps.messages(reader, topics, 19))
    assert len(sent) == 3 * 19 and {topic for topic, *_ in sent} == set(topics)
    from message_factory import STORE

    stamps = [stamp_ns(STORE.deserialize_cdr(data, kind).header.stamp) for _, kind, _, data in sent]
    assert sorted(stamps) == sorted(expected * 3)


def test_a_soak_of_the_core_keeps_its_record(lap):
    config = updated(Config(), {"memory.max_keyframes": 4, "memory.min_overlap": 0.95, "memory.min_translation": 0.0})
    record, trajectory = soak.soak_core(lap, 12, config, ignore)
    assert (record.processed, record.tracked, len(record.rss_mb), len(trajectory)) == (12, 12, 12, 12)
    assert max(record.keyframes) <= 4 and record.made >= 1


def records(rss: list[float], keyframes: int = 40, tracked: int = 1000) -> soak.Record:
    return soak.Record(rss, [keyframes] * len(rss), 99, len(rss), tracked)


def test_bounds_that_hold_and_bounds_that_break():
    steady = [100.0] * 400 + [200.0, 230.0] * 300
    assert soak.judge(records(steady), 40, 400)[1] == []
    numbers, broken = soak.judge(records(steady[:700] + [245.0] * 300), 40, 400)
    assert "grew by 6.5%" in broken[0] and numbers["rss_growth"] == pytest.approx(0.0652)
    assert "41 keyframes" in soak.judge(records(steady, keyframes=41), 40, 400)[1][0]
    assert "98.0%" in soak.judge(records(steady, tracked=980), 40, 400)[1][0]


# -- tables --------------------------------------------------------------------------------------------------


def test_a_block_of_the_readme_is_replaced_and_the_rest_stays(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n<!-- y:begin -->\n<!-- y:end -->\n")
    readme.write_block("x", "new\n", path)
    readme.write_block("x", "newer", path)
    assert path.read_text() == "a\n<!-- x:begin -->\nnewer\n<!-- x:end -->\nb\n<!-- y:begin -->\n<!-- y:end -->\n"
    with pytest.raises(ValueError, match="no place"):
        readme.write_block("z", "", path)


def test_the_readme_has_a_place_for_every_tool():
    text = readme.README.read_text()
    for name in ("bench", "live", "soak", "soak_node", "loops", "kidnap"):
        assert f"<!-- {name}:begin -->" in text and f"<!-- {name}:end -->" in text


def test_a_busy_machine_is_told():
    quiet = machine.Machine(cores=4, load_before=0.5, load_after=1.2)
    assert quiet.warning is None and "load 0.50 → 1.20" in quiet.line()
    assert "busy" in (machine.Machine(cores=4, load_before=0.5, load_after=3.0).warning or "")
    assert "busy" in (machine.Machine(cores=2, load_before=0.6).warning or "")


def test_columns_of_numbers_are_set_to_the_right():
    text = readme.table(("", "on", "ms", "share"), [("a|b", "200,000 points", "1.5", "99%"), ("c", "x", "12", "–")])
    assert text.splitlines()[1:3] == ["|---|---|---:|---:|", "| a\\|b | 200,000 points | 1.5 | 99% |"]
