# SPDX-License-Identifier: Apache-2.0
"""Known errors in, known numbers out."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from rich.console import Console

from recon_ros.config import Config
from recon_ros.errors import DatasetError
from recon_ros.evaluation.cloud import BEHIND, evaluate_cloud, truth_cloud
from recon_ros.evaluation.picture import report_picture
from recon_ros.evaluation.report import RunRecord, build_report, percentiles, print_report, write_report
from recon_ros.evaluation.topview import top_view
from recon_ros.evaluation.trajectory import alignment, associate, evaluate_trajectory, transformed
from recon_ros.frame import Cloud, Frame, Trajectory
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera

START = 1_700_000_000_000_000_000
twists = nps.arrays(np.float64, 6, elements=st.floats(-3.0, 3.0))


def drive(n: int = 60, step_ns: int = 100_000_000) -> Trajectory:
    """A curved path with some climbing, looking along it."""
    s = np.arange(n) * 0.1
    poses = []
    for x in s:
        yaw = 0.4 * np.sin(x)
        R = np.array([[np.sin(yaw), 0, np.cos(yaw)], [-np.cos(yaw), 0, np.sin(yaw)], [0, -1.0, 0]])
        poses.append(se3.make(R, [x, 2 * np.sin(0.8 * x), 0.3 * np.cos(x)]))
    return Trajectory(START + np.arange(n) * step_ns, np.stack(poses))


def noisy(trajectory: Trajectory, sigma: float, seed: int = 0) -> Trajectory:
    poses = trajectory.poses.copy()
    poses[:, :3, 3] += np.random.default_rng(seed).normal(0, sigma, (len(trajectory), 3))
    return Trajectory(trajectory.stamps_ns, poses)


def test_the_truth_itself_has_no_error() -> None:
    truth = drive()
    errors = evaluate_trajectory(truth, truth)
    assert errors["se3_max"] < 1e-9 and errors["sim3_max"] < 1e-9
    assert errors["rpe_frame_m"] < 1e-9 and errors["rpe_metre_rad"] < 1e-6
    assert errors["scale"] == pytest.approx(1.0)
    assert (errors["coverage"], errors["pairs"]) == (1.0, 60)
    assert errors["path_length"] == pytest.approx(np.linalg.norm(np.diff(truth.positions, axis=0), axis=1).sum())


def test_known_statistics_of_known_errors() -> None:
    """Errors along z that no alignment can remove: ± 0.1 m in quadruples, so mean and slope are zero."""
    truth = drive(80)
    poses = truth.poses.copy()
    poses[:, 2, 3] += 0.1 * np.tile([1, -1, -1, 1], 20)
    errors = evaluate_trajectory(Trajectory(truth.stamps_ns, poses), truth)
    for statistic in ("rmse", "mean", "median", "max"):
        assert errors[f"se3_{statistic}"] == pytest.approx(0.1, rel=0.02)
    assert errors["sim3_rmse"] == pytest.approx(0.1, rel=0.02)


def test_scale_error_counts_for_se3_only() -> None:
    truth = drive()
    errors = evaluate_trajectory(transformed(truth, se3.make(np.eye(3), np.zeros(3), 0.5)), truth)
    assert errors["se3_rmse"] > 0.5
    assert errors["sim3_rmse"] < 1e-9
    assert errors["scale"] == pytest.approx(2.0)


def test_relative_errors_of_a_constant_drift() -> None:
    """A straight drive that is measured 2 % too long and turns 0.01 rad a frame too much."""
    n = 101
    truth = Trajectory(START + np.arange(n) * 10**8, np.stack([se3.make(np.eye(3), [0, 0, 0.1 * i]) for i in range(n)]))
    pose, poses = np.eye(4), []
    for _ in range(n):
        poses.append(pose)
        pose = pose @ se3.make(np.eye(3), [0, 0, 0.102]) @ se3.exp(np.array([0, 0, 0, 0, 0, 0.01]))
    errors = evaluate_trajectory(Trajectory(truth.stamps_ns, np.stack(poses)), truth)
    assert errors["rpe_frame_m"] == pytest.approx(0.002)
    assert errors["rpe_frame_rad"] == pytest.approx(0.01)
    assert errors["rpe_metre_m"] == pytest.approx(0.02, rel=0.01)
    assert errors["rpe_metre_rad"] == pytest.approx(0.1, rel=0.01)


def test_relative_error_per_metre_is_null_on_a_short_path() -> None:
    errors = evaluate_trajectory(drive(5), drive(5))
    assert errors["rpe_metre_m"] is None and errors["rpe_metre_rad"] is None


@settings(max_examples=25, deadline=None)
@given(twists, st.integers(0, 10**6))
def test_ate_does_not_depend_on_the_world_frame(twist: np.ndarray, seed: int) -> None:
    truth = drive(40)
    estimate = noisy(truth, 0.05, seed)
    here, there = (evaluate_trajectory(e, truth) for e in (estimate, transformed(estimate, se3.exp(twist))))
    for key in ("se3_rmse", "se3_max", "sim3_rmse", "rpe_frame_m", "rpe_metre_rad"):
        assert there[key] == pytest.approx(here[key], abs=1e-7)


@settings(max_examples=25, deadline=None)
@given(twists, st.floats(0.05, 20.0))
def test_sim3_ate_does_not_depend_on_the_scale(twist: np.ndarray, scale: float) -> None:
    truth = drive(40)
    estimate = noisy(truth, 0.05)
    T = se3.exp(twist)
    T[:3, :3] *= scale
    here, there = evaluate_trajectory(estimate, truth), evaluate_trajectory(transformed(estimate, T), truth)
    assert there["sim3_rmse"] == pytest.approx(here["sim3_rmse"], abs=1e-7)
    assert there["scale"] * scale == pytest.approx(here["scale"], rel=1e-6)


def test_stamps_are_matched_as_integers() -> None:
    """At 1.7e18 ns a float64 cannot tell 4.9999 ms from 5.0001 ms; the tolerance must."""
    truth = drive(10)
    near = Trajectory(truth.stamps_ns + 5_000_000, truth.poses)
    assert evaluate_trajectory(near, truth)["pairs"] == 10
    far = Trajectory(truth.stamps_ns + 5_000_001, truth.poses)
    with pytest.raises(DatasetError, match="within 5 ms"):
        evaluate_trajectory(far, truth)


def test_association_takes_the_nearest_and_counts_coverage() -> None:
    truth = drive(100, step_ns=10_000_000)
    indices = np.arange(3, 100, 10)
    estimate = Trajectory(truth.stamps_ns[indices] + 2_000_000, truth.poses[indices])
    matched, reference = associate(estimate, truth)
    np.testing.assert_array_equal(matched.stamps_ns, estimate.stamps_ns)
    np.testing.assert_array_equal(reference.stamps_ns, truth.stamps_ns[indices])
    assert evaluate_trajectory(estimate, truth)["coverage"] == pytest.approx(0.1)
    # The other way around the truth is the shorter one.
    reference, matched = associate(truth, estimate)
    np.testing.assert_array_equal(reference.stamps_ns, truth.stamps_ns[indices])


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_short_trajectories_are_named(n: int) -> None:
    short = Trajectory(drive().stamps_ns[:n], drive().poses[:n])
    with pytest.raises(DatasetError, match=f"of {n} poses"):
        evaluate_trajectory(short, drive())
    with pytest.raises(DatasetError, match=f"truth of {n}"):
        evaluate_trajectory(drive(), short)


@settings(max_examples=20, deadline=None)
@given(twists, st.sampled_from([0.0, 0.1]))
def test_a_straight_or_a_standing_camera_can_be_compared(twist: np.ndarray, step: float) -> None:
    """Positions on a line leave a rotation open, which the orientations must settle."""
    n = 20
    poses = np.stack([se3.make(np.eye(3), [step * i, 0, 0]) for i in range(n)])
    truth = Trajectory(START + np.arange(n) * 10**8, poses)
    estimate = transformed(truth, se3.exp(twist))
    errors = evaluate_trajectory(estimate, truth)
    assert errors["se3_rmse"] < 1e-6 and errors["sim3_rmse"] < 1e-6
    back = transformed(estimate, alignment(*associate(estimate, truth)))
    np.testing.assert_allclose(back.poses, truth.poses, atol=1e-6)


# --- clouds


def room_frames(n: int = 5) -> tuple[list[Frame], Trajectory, Camera]:
    """A camera slides along x before a wall at z = 3 m, with a block of 1 m height at 2 m before it."""
    camera = Camera.from_focal(120, 90, 100.0)
    frames, poses = [], []
    rays = camera.rays()
    for i in range(n):
        x = 0.1 * i
        depth = np.full((90, 120), 3.0, np.float32)
        hit = np.abs(rays[..., 0] * 2.0 + x) < 0.3
        depth[hit & (rays[..., 1] > 0)] = 2.0
        poses.append(se3.make(np.eye(3), [x, 0, 0]))
        frames.append(Frame(START + i * 10**8, np.full((90, 120, 3), 128, np.uint8), camera, depth))
    return frames, Trajectory([f.stamp_ns for f in frames], np.stack(poses)), camera


def cloud_of(points: np.ndarray) -> Cloud:
    return Cloud(points, np.full((len(points), 3), 90, np.uint8), np.ones(len(points)))


def test_the_true_cloud_lies_on_the_surfaces() -> None:
    frames, truth, _ = room_frames()
    found = truth_cloud(frames, truth)
    on_wall, on_block = np.abs(found.points[:, 2] - 3) < 1e-6, np.abs(found.points[:, 2] - 2) < 1e-6
    assert np.all(on_wall | on_block) and on_wall.any() and on_block.any()
    assert np.abs(found.points[on_block, 0]).max() < 0.32
    near_only = truth_cloud(frames, truth, max_range=2.5)
    assert np.all(np.abs(near_only.points[:, 2] - 2) < 1e-6)


def test_distances_of_a_shifted_map_are_the_shift() -> None:
    frames, truth, _ = room_frames()
    found = truth_cloud(frames, truth)
    wall = found.points[np.abs(found.points[:, 2] - 3) < 1e-6]
    shifted = cloud_of(np.concatenate([wall, found.points[found.points[:, 2] < 2.5]]) + np.float32([0, 0, 0.04]))
    errors = evaluate_cloud(shifted, found, np.eye(4))
    assert errors is not None
    assert errors["accuracy_median"] == pytest.approx(0.04, abs=1e-5)
    assert errors["completeness_median"] == pytest.approx(0.04, abs=1e-5)
    assert errors["accuracy_ratio_5cm"] == errors["completeness_ratio_5cm"] == 1.0
    # The map's own world does not matter once it is aligned.
    T = se3.exp(np.array([1.0, -2, 3, 0.3, 0.2, -0.5]))
    elsewhere = cloud_of(se3.transform(T, shifted.points))
    again = evaluate_cloud(elsewhere, found, se3.inverse(T))
    assert again is not None
    assert again["accuracy_mean"] == pytest.approx(errors["accuracy_mean"], abs=1e-5)


def test_half_a_map_is_accurate_but_not_complete() -> None:
    frames, truth, _ = room_frames()
    found = truth_cloud(frames, truth)
    errors = evaluate_cloud(
        cloud_of(found.points[found.points[:, 0] < np.median(found.points[:, 0])]), found, np.eye(4)
    )
    assert errors is not None
    assert errors["accuracy_mean"] < 1e-6
    assert 0.5 <= errors["completeness_ratio_5cm"] < 0.6


def test_only_what_the_truth_looked_at_is_judged() -> None:
    frames, truth, _ = room_frames()
    found = truth_cloud(frames, truth)
    floating, doubled = [0.0, -0.5, 1.5], [0.5, -0.5, 3.0 + BEHIND / 2]
    hidden, aside, back = [0.0, 0.8, 3.0 + 2 * BEHIND], [5.0, 0, 3.0], [0.0, 0, -1.0]
    points = np.float32([floating, doubled, hidden, aside, back])
    assert found.observed(points).tolist() == [True, True, False, False, False]
    errors = evaluate_cloud(cloud_of(points), found, np.eye(4))
    assert errors is not None and (errors["judged"], errors["points"]) == (2, 5)
    assert evaluate_cloud(cloud_of(points[2:]), found, np.eye(4)) is None


def test_free_space_reaches_to_the_range_and_holes_say_nothing() -> None:
    frames, truth, camera = room_frames(1)
    depth = frames[0].depth.copy()
    depth[:, :60] = np.nan
    depth[:, 60:] = 7.0
    depth[80:, 60:] = 2.0
    found = truth_cloud([Frame(START, frames[0].image, camera, depth)], truth, max_range=5.0)
    left, right = camera.unproject(np.array([[20, 40], [100, 40]]), np.array([4.0, 4.0]))
    beyond = camera.unproject(np.array([100, 40]), np.array(6.0))
    assert found.observed(np.float32([left, right, beyond])).tolist() == [False, True, False]


def test_frames_without_truth_or_depth_make_no_true_cloud() -> None:
    frames, truth, camera = room_frames(2)
    late = Trajectory(truth.stamps_ns + 10**9, truth.poses)
    for useless, poses in ((frames, late), ([Frame(START, frames[0].image, camera)], truth), ([], truth)):
        with pytest.raises(DatasetError, match="true cloud"):
            truth_cloud(useless, poses)


# --- report and picture


def a_record() -> RunRecord:
    record = RunRecord()
    for i in range(100):
        record.processed(tracked=i >= 10, latency_ms=i + 1.0, stages_ms={"track": 2.0 + i % 2})
    record.skip("encoding")
    record.skip("encoding")
    record.drop(3)
    return record


def a_report(ate: dict | None = None) -> dict:
    return build_report(
        a_record(),
        source="depth",
        runtime="numpy",
        config=Config(),
        keyframes=7,
        loops=1,
        metric_scale=True,
        unplaced=4,
        ate=ate,
    )


def test_report_has_the_promised_keys_and_values(tmp_path: Path) -> None:
    report = a_report(evaluate_trajectory(drive(), drive()))
    write_report(tmp_path / "report.json", report)
    back = json.loads((tmp_path / "report.json").read_text())
    assert back == report
    assert (back["frames"], back["processed"], back["tracked"], back["dropped"]) == (105, 100, 90, 3)
    assert back["unplaced"] == 4
    assert back["skipped"] == {"encoding": 2}
    assert back["latency_ms"] == {"p50": 50.5, "p95": 95.05, "p99": 99.01}
    assert back["stages_ms"] == {"track": 2.5}
    assert set(back["rss_mb"]) == {"start", "end", "max"} and back["rss_mb"]["max"] >= back["rss_mb"]["start"] > 10
    assert back["fps"] > 0 and len(back["config_hash"]) == 12
    assert back["ate"]["se3_rmse"] < 1e-9 and back["cloud"] is None
    for key in ("keyframes", "loops", "metric_scale", "source", "runtime"):
        assert key in back


def test_report_of_nothing_is_still_a_report(tmp_path: Path) -> None:
    report = build_report(
        RunRecord(),
        source="depth",
        runtime="numpy",
        config=Config(),
        keyframes=0,
        loops=0,
        metric_scale=False,
    )
    assert report["latency_ms"] is None and report["fps"] == 0.0 and percentiles([]) is None
    write_report(tmp_path / "report.json", report)
    console = Console(file=StringIO(), width=100)
    print_report(report, console)


def test_printed_report_says_what_matters() -> None:
    text = StringIO()
    print_report(a_report(evaluate_trajectory(noisy(drive(), 0.05), drive())), Console(file=text, width=110))
    for words in ("100 processed", "2 × encoding", "ATE rmse", "50.5 / 9", "coverage", "4 tracked in submaps"):
        assert words in text.getvalue()


def test_report_refuses_numbers_json_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_report(tmp_path / "report.json", {"fps": float("nan")})


def a_map() -> Cloud:
    """The floor of a 6 × 3 m room, red along its x = 0 wall, and a ceiling, around `drive`'s heights."""
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, 6, 200), np.linspace(-2, 2, 140)))
    floor = np.stack([x, y, np.full_like(x, -1.2)], 1)
    colours = np.where(x[:, None] < 0.5, [[255, 0, 0]], [[90, 120, 90]])
    points = np.concatenate([floor, floor + np.array([0, 0, 3.5])])
    colours = np.concatenate([colours, np.full_like(colours, 250)])
    return Cloud(points, colours.astype(np.uint8), np.ones(len(points)))


@settings(max_examples=10, deadline=None)
@given(twists)
def test_top_view_finds_up_and_straightens_any_world(twist: np.ndarray) -> None:
    T = se3.exp(twist)
    cloud, trajectory = a_map(), transformed(drive(), T)
    view = top_view(Cloud(se3.transform(T, cloud.points), cloud.colours, cloud.confidence), trajectory, pixels=200)
    z = (view.T_view_world @ T)[2, :3]
    np.testing.assert_allclose(z, [0, 0, 1], atol=1e-6)
    x0, x1, y0, y1 = view.extent
    assert (x1 - x0, y1 - y0) == (pytest.approx(6.2, abs=0.25), pytest.approx(4.2, abs=0.3))
    solid = view.image[view.image[..., 3] > 0][:, :3]
    assert len(solid) > 0.85 * view.image.shape[0] * view.image.shape[1]
    assert np.all(solid.max(axis=1) < 250) or np.any(solid[:, 0] == 255)  # the white ceiling is cut off
    red = np.argwhere((view.image[..., 0] == 255) & (view.image[..., 1] < 60))
    assert len(red) and (np.all(red[:, 1] < 40) or np.all(red[:, 1] > view.image.shape[1] - 40))


def test_picture_is_drawn_with_and_without_truth(tmp_path: Path) -> None:
    truth, cloud = drive(), a_map()
    image = np.full((60, 80, 3), 100, np.uint8)
    depth = np.linspace(1, 4, 4800, dtype=np.float32).reshape(60, 80)
    depth[:10] = np.nan
    full, bare, empty = (tmp_path / f"{name}.png" for name in ("full", "bare", "empty"))
    T = se3.exp(np.array([1.0, 2, 3, 0.4, 0.5, 0.6]))
    report = a_report(evaluate_trajectory(truth, truth))
    report_picture(
        full,
        report=report,
        cloud=Cloud(se3.transform(T, cloud.points), cloud.colours, cloud.confidence),
        trajectory=transformed(noisy(truth, 0.02), T),
        truth=truth,
        image=image,
        depth=depth,
        confidence=1 / depth,
        latencies_ms=[10.0, 20.0, 15.0],
        title="Test",
    )
    report_picture(bare, report=a_report(), cloud=cloud, trajectory=truth)
    none = Trajectory(np.zeros(0, np.int64), np.zeros((0, 4, 4)))
    report_picture(empty, report={}, cloud=cloud_of(np.zeros((0, 3))), trajectory=none, truth=truth, image=image)
    pictures = [cv2.imread(str(path)) for path in (full, bare, empty)]
    assert all(picture.shape == (1000, 1600, 3) for picture in pictures)
    assert _has(pictures[0], "#0ea5e9") and _has(pictures[0], "#e11d48")
    assert not _has(pictures[1], "#0ea5e9") and _has(pictures[1], "#e11d48")


def _has(picture: np.ndarray, colour: str) -> bool:
    bgr = [int(colour[i : i + 2], 16) for i in (5, 3, 1)]
    return int(np.all(picture == bgr, axis=2).sum()) > 20
