# SPDX-License-Identifier: Apache-2.0
"""The `recon` command as a user meets it: what it prints, what it leaves behind, and that it does so twice alike."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from recon_command import files_in, recon, report_of
from textured_room import CAMERA, TexturedRoom, walk

from recon_ros.datasets.bag_writer import write_bag
from recon_ros.export.ply import read_ply
from recon_ros.export.tum import read_tum
from recon_ros.frame import Frame, Trajectory

COUNT = 25
START = 1_700_000_000_123_456_789
STAMPS = [START + i * 100_000_000 for i in range(COUNT)]
TRUTH = Trajectory(np.array(STAMPS), np.array([walk(i) for i in range(COUNT)]))

# design.md: what `recon run` leaves, and what report.json has at least.
FILES = {
    "trajectory_live.tum",
    "trajectory.tum",
    "keyframes.tum",
    "map.ply",
    "config.yaml",
    "report.json",
    "report.png",
}
SAME_EACH_TIME = ("trajectory_live.tum", "trajectory.tum", "keyframes.tum", "map.ply", "config.yaml")
COUNTS = {"frames", "processed", "tracked", "dropped", "keyframes", "loops"}
KEYS = COUNTS | {
    "fps",
    "latency_ms",
    "stages_ms",
    "rss_mb",
    "metric_scale",
    "ate",
    "source",
    "runtime",
    "config_hash",
}


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    """A walk of 0.76 m through a textured room, with the truth."""
    room, path = TexturedRoom(), tmp_path_factory.mktemp("cli") / "bag"
    frames = (Frame(s, image, CAMERA, depth) for s, (image, depth) in zip(STAMPS, views(room), strict=True))
    write_bag(path, frames, TRUTH)
    return path


def views(room: TexturedRoom) -> list[tuple[np.ndarray, np.ndarray]]:
    return [room.render(walk(i)) for i in range(COUNT)]


@pytest.fixture(scope="module")
def out(bag, tmp_path_factory) -> Path:
    """What `recon run` leaves with the defaults."""
    folder = tmp_path_factory.mktemp("cli") / "new" / "out"
    recon("run", bag, "--out", folder)
    return folder


# -- help ----------------------------------------------------------------------------------------------------


def test_help_names_the_commands_and_the_options():
    text = recon("--help").stdout
    assert "run" in text and "demo" in text
    text = recon("run", "--help").stdout
    for option in ("--out", "--source", "--no-loops", "--mesh", "--save-depth", "--config", "--set", "BAG_OR_DATASET"):
        assert option in text


# -- run -----------------------------------------------------------------------------------------------------


def test_run_leaves_exactly_the_agreed_files(out):
    assert files_in(out) == FILES
    picture = cv2.imread(str(out / "report.png"))
    assert picture is not None and picture.shape[0] > 300 and picture.std() > 10


def test_the_report_has_the_agreed_keys(out):
    report = report_of(out)
    assert report.keys() >= KEYS
    assert report["latency_ms"].keys() >= {"p50", "p95", "p99"}
    assert report["rss_mb"].keys() >= {"start", "end", "max"}
    assert report["ate"].keys() >= {"se3_rmse", "sim3_rmse"}
    assert report["stages_ms"].keys() >= {"prepare", "step", "track", "remember"}
    assert {k: report[k] for k in ("frames", "processed", "tracked", "dropped")} == {
        "frames": COUNT,
        "processed": COUNT,
        "tracked": COUNT,
        "dropped": 0,
    }
    assert report["source"] == "depth" and report["metric_scale"] is True


def test_the_walk_is_followed_and_mapped(out):
    report = report_of(out)
    assert report["ate"]["se3_rmse"] < 0.01
    assert report["cloud"]["accuracy_median"] < 0.02
    for name in ("trajectory.tum", "trajectory_live.tum"):
        assert read_tum(out / name).stamps_ns.tolist() == STAMPS
    assert len(read_tum(out / "keyframes.tum")) == report["keyframes"] >= 1
    # The world is the first camera's frame, and the room's walls are 3, 1.5 and 4 m away from it.
    extent = np.abs(read_ply(out / "map.ply").points).max(axis=0)
    assert np.all(extent < [3.1, 1.6, 4.1]) and extent[2] > 3.9


def test_a_run_from_the_written_config_gives_the_same_bytes(bag, out, tmp_path):
    recon("run", bag, "--out", tmp_path, "--config", out / "config.yaml", "--no-evaluate-map")
    for name in SAME_EACH_TIME:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name
    assert report_of(tmp_path)["config_hash"] == report_of(out)["config_hash"]
    assert report_of(tmp_path)["cloud"] is None


def test_config_file_settings_saved_depth_and_mesh(bag, tmp_path):
    """Four options in one run: a ROS parameter file, --set over it, depths of the input image's size, and a mesh."""
    parameters = {"map_frame": "somewhere", "tracking": {"features": 800}, "input.max_size": 200}
    (tmp_path / "ros.yaml").write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
    folder = tmp_path / "out"
    settings = ("--set", "input.max_size=160", "--set", "map.voxel_size = 0.05")
    recon("run", bag, "--out", folder, "--config", tmp_path / "ros.yaml", *settings, "--save-depth", "--mesh")

    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["tracking"]["features"] == 800
    assert config["input"]["max_size"] == 160 and config["map"]["voxel_size"] == 0.05

    assert files_in(folder) == FILES | {"mesh.ply"} | {f"depth/{stamp}.npy" for stamp in STAMPS}
    assert (folder / "mesh.ply").stat().st_size > 100_000
    for i in (0, COUNT - 1):
        depth = np.load(folder / "depth" / f"{STAMPS[i]}.npy")
        assert depth.shape == (240, 320) and depth.dtype == np.float32
        _, truth = TexturedRoom().render(walk(i))
        assert np.nanmedian(np.abs(depth - truth)) < 0.01


# -- demo ----------------------------------------------------------------------------------------------------


@pytest.mark.ros
@pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="needs ROS 2 (rclpy)")
def test_demo_plays_a_bag_to_the_live_node(bag, tmp_path):
    folder = tmp_path / "demo"
    result = recon("demo", "--bag", bag, "--out", folder, "--rate", 2, "--depth")
    said = f"{result.stdout}\n{result.stderr}\n{(folder / 'node.log').read_text()}"
    assert files_in(folder) >= {"report.json", "report.png", "map.ply", "trajectory.tum"}, said

    report = report_of(folder)
    assert report.keys() >= KEYS | {"lost_in_transport", "ate_live"}, said
    assert report["frames"] == COUNT
    # How many are dropped depends on how busy the machine is; but all are accounted for, besides a last image
    # that may still wait for its depth.
    gone = report["dropped"] + report["lost_in_transport"] + sum(report["skipped"].values())
    assert COUNT - 1 <= report["processed"] + gone <= COUNT, said
    assert report["processed"] >= 3, said

    trajectory = read_tum(folder / "trajectory.tum")
    assert len(trajectory) == report["tracked"] and set(trajectory.stamps_ns.tolist()) <= set(STAMPS)
    # Both trajectories are of the camera's optical frame: of a straight walk their orientation decides.
    assert report["ate"]["se3_rmse"] < 0.02 and report["ate_live"]["se3_rmse"] < 0.02, said
    assert len(read_ply(folder / "map.ply")) > 1000
    assert cv2.imread(str(folder / "report.png")) is not None
