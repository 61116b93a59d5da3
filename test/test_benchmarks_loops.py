# SPDX-License-Identifier: Apache-2.0
"""The trials of the map that moves measure what they say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from textured_room import CAMERA, TexturedRoom, walk

from benchmarks import drive, kidnap, loops, loops_run, soak, unscaled, walls
from recon_ros.config import Config, updated
from recon_ros.datasets.synthetic import AisleLoop, SyntheticWarehouse
from recon_ros.datasets.warehouse import LOOP, WarehouseBuilder, driven_rectangle
from recon_ros.frame import Frame, Trajectory
from recon_ros.geometry import pointmap, se3
from recon_ros.reconstructor import Reconstructor

STAMP = 1_700_000_000_000_000_000
STEP = 100_000_000


def room_frames(count: int, step: tuple[float, float, float] = (0.02, 0.0, 0.06)) -> list[tuple[Frame, np.ndarray]]:
    room = TexturedRoom()
    poses = [se3.make(np.eye(3), i * np.array(step)) for i in range(count)]
    return [
        (Frame(STAMP + i * STEP, image, CAMERA, depth), pose)
        for i, pose in enumerate(poses)
        for image, depth in [room.render(pose)]
    ]


# -- the drive -----------------------------------------------------------------------------------------------


def test_two_laps_are_a_hundred_and_fifty_metres():
    data = drive.drive()
    assert AisleLoop(drive.STRETCH).length >= 75
    moved = np.linalg.norm(np.diff(data.ground_truth().positions, axis=0), axis=1).sum()
    assert moved >= 150
    end, start = data.pose(len(data) - 1), data.pose(0)
    assert np.linalg.norm(end[:3, 3] - start[:3, 3]) < 2 * drive.OVERRUN


def test_a_longer_hall_is_the_same_hall_with_longer_rows():
    assert driven_rectangle() == LOOP and driven_rectangle(2) == (2.2, 3.1, 14.0 + 5.4, 9.1)
    longer = WarehouseBuilder(0, 2)
    assert longer.length == pytest.approx(16.2 + 5.4) and [row[3] for row in longer.rows] == [6, 5, 5, 6]
    assert SyntheticWarehouse(1, stretch=2).lap_length == pytest.approx(
        SyntheticWarehouse(1).lap_length + 10.8, abs=1e-2
    )


def test_tracking_drifts_while_it_is_told_to():
    frames = [frame for frame, _ in room_frames(7, (0.15, 0.0, 0.1))]
    config = updated(Config(), {"memory.min_overlap": 0.95, "memory.min_translation": 0.02})
    for scale, yaw in ((0.0, 0.0), (0.2, 0.1)):
        reconstructor = Reconstructor(config)
        with drive.drifting(scale, yaw):
            for frame in frames:
                reconstructor.process(frame)
        first = reconstructor.keyframes[1]  # later ones are tracked against the undisturbed one, too
        true = (first.stamp_ns - STAMP) // STEP * np.array([0.15, 0.0, 0.1])
        moved, turned = se3.distance(first.T_world_camera)
        assert moved == pytest.approx((1 + scale) * np.linalg.norm(true), rel=0.02)
        assert turned == pytest.approx(yaw * true[2], abs=0.003)


def test_drift_is_of_the_way_and_of_the_turn():
    true = np.stack([walk(10 * i) for i in range(11)])
    wrong = np.stack([T @ se3.exp(np.array([0, 0, 0, 0, np.radians(i), 0])) for i, T in enumerate(true)])
    wrong[:, :3, 3] *= 1.02
    stamps = STAMP + STEP * np.arange(11)
    found = loops.drift_of(Trajectory(stamps, wrong), Trajectory(stamps, true), 20.0)
    assert found["scale"] == pytest.approx(0.02) and found["degrees_per_10_m"] == pytest.approx(5.0)


# -- walls ---------------------------------------------------------------------------------------------------


def room_points(T: np.ndarray) -> np.ndarray:
    return pointmap.from_depth(TexturedRoom().render(T)[1], CAMERA)[::6, ::6]


@pytest.mark.parametrize(("shift", "thick"), [((0, 0, 0), 0.0), ((0, 0, 0.04), 0.04), ((0.05, 0, 0), 0.0)])
def test_walls_are_double_by_what_lies_across_them(shift, thick):
    # The room's far wall fills the view: what is misplaced along z shows it twice, what is along x does not.
    first = walls.lap_points([walls.View(room_points(T), T, T) for T in (walk(40), walk(42))])
    moved = se3.make(np.eye(3), np.array(shift, float)) @ walk(44)
    second = walls.lap_points([walls.View(room_points(walk(44)), moved, walk(44))])
    found = walls.thicknesses(first, second)
    assert len(found) > 5
    assert np.median(found) == pytest.approx(thick, abs=0.003)


def test_walls_are_compared_where_they_really_are():
    turn = se3.exp(np.array([0.3, 0, -0.5, 0, 0.4, 0]))  # both laps are wrong, and by the same
    lap = walls.lap_points([walls.View(room_points(walk(40)), turn @ walk(40), walk(40))])
    assert 0 <= walls.thicknesses(lap, lap).max() < 0.005


# -- verdicts ------------------------------------------------------------------------------------------------


def result(end_error: float, **changes: object) -> dict:
    return {
        "end_error": end_error,
        "walls": {"p95": 0.02},
        "loops": {"false": 0},
        "block_ms": {"max": 5.0},
        "cloud_ms": {"max": 0.1},
        **changes,
    }


def test_each_bound_of_the_loops_can_break():
    before = result(1.0)
    assert loops.broken_bounds({"without": before, "offline": result(0.05), "live": result(0.1)}) == []
    for broken, word in (
        (result(0.2), "5.0 times"),
        (result(0.05, walls={"p95": 0.06}), "6.0 cm"),
        (result(0.05, loops={"false": 1}), "1 false"),
        (result(0.05, block_ms={"max": 21.0}), "21 ms for the graph"),
        (result(0.05, cloud_ms={"max": 21.0}), "21 ms for the cloud"),
    ):
        (sentence,) = loops.broken_bounds({"without": before, "live": broken})
        assert word in sentence


def test_a_loop_is_held_against_the_truth():
    poses = {0: walk(0), 5: walk(50)}
    T = se3.inverse(poses[0]) @ poses[5]
    wrong = T @ se3.make(np.eye(3), np.array([0.0, 0.4, 0.0]))
    errors = loops.errors_of([SimpleNamespace(a=0, b=5, T_a_b=T), SimpleNamespace(a=0, b=5, T_a_b=wrong)], poses)
    assert errors[0] == pytest.approx((0, 0), abs=1e-9) and errors[1][0] == pytest.approx(0.4)


def test_a_run_keeps_its_record():
    frames = [frame for frame, _ in room_frames(5)]
    found = loops_run.run(iter(frames), Config(), live=False, rate_hz=None)
    assert len(found.blocks_ms) == len(found.frames_ms) == len(found.trajectory) == 5 and found.lost == 0
    assert {k.id for k in found.keyframes} == set(found.frame_of)
    assert {name for parts in found.parts_ms for name in parts} <= {name for name, _, _ in loops_run.GRAPH}


def test_a_soak_that_grows_or_slows_down_is_broken():
    def record(**changes: object) -> soak.Record:
        return soak.Record([100.0] * 3000, [9] * 3000, 50, 3000, 3000, **changes)

    assert soak.judge(record(frame_ms=[40.0] * 3000, map_mb=[2.0] * 120), 40, 1000)[1] == []
    (slow,) = soak.judge(record(frame_ms=[40.0] * 2000 + [45.0] * 1000), 40, 1000)[1]
    assert "12.5% longer" in slow
    (large,) = soak.judge(record(map_mb=[2.0] * 80 + [2.2] * 40), 40, 1000)[1]
    assert "from 2.0 to 2.2 MB" in large


# -- kidnap --------------------------------------------------------------------------------------------------


def test_a_camera_carried_off_is_found_and_a_wrong_pose_is_counted():
    shown = room_frames(12)
    reconstructor, keyframe_stamps = kidnap.mapped([frame for frame, _ in shown], Config())
    assert shown[0][0].stamp_ns in keyframe_stamps
    rng = np.random.default_rng(0)
    revisit = [(kidnap.otherwise(frame, rng, 0.9, 2.0), pose) for frame, pose in shown[4:7]]
    trial = kidnap.kidnapped(reconstructor, revisit, np.eye(4), 0)
    assert trial.found_ns == round(trial.frame_ms[0] * 1e6) and trial.wrong == 0 and trial.worst[0] < 0.05
    elsewhere = se3.make(np.eye(3), np.array([1.0, 0.0, 0.0]))
    trial = kidnap.kidnapped(reconstructor, revisit, elsewhere, 0)
    assert trial.wrong == trial.poses > 0 and trial.worst[0] == pytest.approx(1.0, abs=0.05)


def test_what_is_never_found_is_not_in_time():
    numbers = kidnap.summary([kidnap.Trial(0, None, [5.0], 0, (0.0, 0.0), 0), kidnap.Trial(1, 10**9, [], 0, (0, 0), 1)])
    assert numbers["in_time"] == 1 and numbers["found_s"] == [None, 1.0]
    assert len(kidnap.row("room", numbers)) == len(kidnap.HEADER)


# -- a source without the metre ------------------------------------------------------------------------------


def test_the_scale_of_tracking_drifts_while_it_is_told_to() -> None:
    frames = [frame for frame, _ in room_frames(7, (0.15, 0.0, 0.1))]
    config = updated(Config(), {"memory.min_overlap": 0.95, "memory.min_translation": 0.02, "loops.enabled": False})
    for rate in (0.0, 0.3):
        reconstructor = Reconstructor(config, unscaled.Unscaled(config.input))
        with unscaled.drifting(rate, 0.0):
            for frame in frames:
                reconstructor.process(frame)
        first, second = reconstructor.keyframes[:2]
        metres = (second.stamp_ns - STAMP) // STEP * np.hypot(0.15, 0.1)
        assert not first.is_metric and se3.scale_of(first.T_world_camera) == 1
        assert np.log(se3.scale_of(second.T_world_camera)) == pytest.approx(rate * metres, abs=0.01)
        moved = np.linalg.norm(second.T_world_camera[:3, 3])
        assert moved == pytest.approx(unscaled.UNIT * metres, rel=0.03), "in the source's unit"


def test_each_bound_of_the_scales_can_break() -> None:
    def result(end_error: float, scale: float, false: int = 0) -> dict:
        return {"end_error": end_error, "scale": {"worst": scale}, "loops": {"false": false}}

    before = result(1.0, 0.2)
    assert unscaled.broken_bounds({"without": before, "with": result(0.05, 0.01)}) == []
    for after, word in (
        (result(0.2, 0.01), "end fell 5.0"),
        (result(0.05, 0.1), "scale fell 2.0"),
        (result(0.05, 0.01, 1), "1 false"),
    ):
        (sentence,) = unscaled.broken_bounds({"without": before, "with": after})
        assert word in sentence


def test_a_path_is_judged_in_metres_and_a_loop_in_its_unit() -> None:
    poses = np.stack([walk(10 * i) for i in range(3)])
    stamps = STAMP + STEP * np.arange(3)
    T = se3.inverse(poses[0]) @ poses[2]
    T[:3, 3] *= unscaled.UNIT
    loops = tuple(SimpleNamespace(a=0, b=1, T_a_b=T @ se3.make(np.eye(3), np.zeros(3), s)) for s in (1.01, 1.1))
    found = unscaled.Run(Trajectory(stamps, se3.inverse(poses[0]) @ poses), {0: 0, 1: 2}, {0: 1.0, 1: 0.9}, loops, 0)
    numbers = unscaled.judge(found, Trajectory(stamps, poses))
    assert numbers["end_error"] < 1e-9 and numbers["loops"] == {"true": 1, "false": 1}
    assert numbers["scale"]["worst"] == pytest.approx(1 / 0.9 - 1)
