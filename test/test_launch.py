# SPDX-License-Identifier: Apache-2.0
"""Launch files, parameter file, rviz and Foxglove layouts: what can be checked of them without ROS's launch."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from recon_ros.config import Config, NodeConfig, flatten, load_yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))
PRESETS = [path for path in LAUNCH_FILES if path.name != "recon.launch.py"]

# The project's canon of names, after nav2, rtabmap and kiss-icp.
ARGUMENTS = {
    *("image_topic", "camera_info_topic", "depth_topic", "odom_topic", "image_transport", "depth_transport"),
    *("params_file", "namespace", "namespace_tf", "use_sim_time", "autostart", "build_only", "log_level"),
    *("map_frame", "odom_frame", "base_frame", "publish_tf", "odom_source", "gravity"),
    *("imu_topic", "mask_topic", "object_mask_topic"),
    *("bag", "rate", "loop", "rviz", "rviz_config", "foxglove"),
}


class Recorder:
    """Stands for any class of launch: remembers how it was called; as a substitution it performs on `values`."""

    values: ClassVar[dict[str, str]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    def perform(self, context: Any) -> str:
        return self.values[self.args[0]]


MODULES = {
    "ament_index_python.packages": (),
    "launch": ("LaunchDescription",),
    "launch.actions": (
        *("DeclareLaunchArgument", "ExecuteProcess", "IncludeLaunchDescription", "OpaqueFunction"),
        "SetEnvironmentVariable",
    ),
    "launch.conditions": ("IfCondition",),
    "launch.launch_description_sources": ("PythonLaunchDescriptionSource",),
    "launch.substitutions": ("LaunchConfiguration", "PythonExpression"),
    "launch_ros.actions": ("LifecycleNode", "Node"),
    "launch_ros.parameter_descriptions": ("ParameterValue",),
}


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins for the launch packages; the classes by name."""
    classes: dict[str, Any] = {}
    for name, members in MODULES.items():
        for i, parent in enumerate(parts := name.split("."), start=1):
            full = ".".join(parts[:i])
            if full not in MODULES or parent == parts[-1]:
                monkeypatch.setitem(sys.modules, full, types.ModuleType(full))
        for member in members:
            classes[member] = type(member, (Recorder,), {})
            setattr(sys.modules[name], member, classes[member])
    sys.modules["ament_index_python.packages"].get_package_share_directory = lambda package: str(ROOT)  # type: ignore[attr-defined]
    monkeypatch.setattr(Recorder, "values", {})
    return classes


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem.replace(".", "_"), path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def actions(path: Path, kind: Any) -> list[Any]:
    """The actions of one class in the launch description of a file."""
    description = load(path).generate_launch_description()
    return [action for action in description.args[0] if isinstance(action, kind)]


def defaults(stubs: dict[str, Any]) -> dict[str, str]:
    """Arguments of the main launch file and their defaults; a computed default counts as 'false'."""
    declared = actions(ROOT / "launch" / "recon.launch.py", stubs["DeclareLaunchArgument"])
    values = {a.args[0]: a.kwargs["default_value"] for a in declared}
    return {name: value if isinstance(value, str) else "false" for name, value in values.items()}


def started(stubs: dict[str, Any], **arguments: str) -> list[Any]:
    """What the main launch file starts besides rviz and Foxglove with these arguments."""
    Recorder.values = defaults(stubs) | arguments
    functions = actions(ROOT / "launch" / "recon.launch.py", stubs["OpaqueFunction"])
    return [action for f in functions for action in f.kwargs["function"](None)]


def test_every_argument_is_declared_with_a_description(stubs: dict[str, Any]) -> None:
    declared = actions(ROOT / "launch" / "recon.launch.py", stubs["DeclareLaunchArgument"])
    assert {a.args[0] for a in declared} == ARGUMENTS
    for argument in declared:
        assert argument.kwargs["description"], argument.args[0]
        assert "default_value" in argument.kwargs, argument.args[0]


def test_files_it_names_exist(stubs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    values = defaults(stubs)
    for name in ("params_file", "rviz_config"):
        assert Path(values[name]).is_file(), name
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    (variable,) = actions(ROOT / "launch" / "recon.launch.py", stubs["SetEnvironmentVariable"])
    assert Path(variable.args[1]).is_file()


def test_parameters_of_the_node_exist(stubs: dict[str, Any]) -> None:
    (node,) = started(stubs)
    assert isinstance(node, stubs["LifecycleNode"])
    assert (node.kwargs["package"], node.kwargs["executable"], node.kwargs["name"]) == (
        "recon_ros",
        "recon_node",
        "recon",
    )
    known = flatten(Config()) | flatten(NodeConfig()) | {"use_sim_time": False}
    for entry in node.kwargs["parameters"][1:]:
        for name, value in entry.items():
            assert name in known
            kind = value.kwargs["value_type"] if isinstance(value, Recorder) else type(value)
            assert kind is type(known[name]), name


def test_topics_are_remapped(stubs: dict[str, Any]) -> None:
    named = {"image_topic": "/a", "depth_topic": "/b", "camera_info_topic": "/c", "odom_topic": "/d"}
    (node,) = started(stubs, **named, mask_topic="/people")
    assert dict(node.kwargs["remappings"]) == {
        "image": "/a",
        "depth": "/b",
        "camera_info": "/c",
        "odom": "/d",
        "imu": "/imu",
        "mask": "/people",
        "object_mask": "/object_mask",
    }
    (node,) = started(stubs, depth_topic="", namespace_tf="true")
    assert {"use_depth": False} in node.kwargs["parameters"]
    assert ("/tf", "tf") in node.kwargs["remappings"]


def test_a_bag_is_played_with_a_clock(stubs: dict[str, Any]) -> None:
    _, player = started(stubs, bag="office", rate="2.0", loop="true")
    assert player.kwargs["cmd"] == [
        *("ros2", "bag", "play", "office", "--clock", "--rate", "2.0", "--loop"),
    ]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name.partition(".")[0])
def test_presets_set_topics_that_exist_as_arguments(stubs: dict[str, Any], path: Path) -> None:
    (include,) = actions(path, stubs["IncludeLaunchDescription"])
    assert Path(include.args[0].args[0]) == ROOT / "launch" / "recon.launch.py"
    assert {name for name, _ in include.kwargs["launch_arguments"]} <= ARGUMENTS


def test_there_is_a_preset_for_each_camera() -> None:
    assert {path.name for path in PRESETS} == {
        f"recon_{camera}.launch.py" for camera in ("realsense", "oak", "zed", "usb_cam")
    }


def test_parameter_file_holds_defaults_under_the_wildcard() -> None:
    path = ROOT / "config" / "recon.yaml"
    assert list(yaml.safe_load(path.read_text())) == ["/**"]
    known = flatten(Config()) | flatten(NodeConfig())
    for name, value in load_yaml(path).items():
        assert name in known, name
        assert value == known[name] and type(value) is type(known[name]), name


def topics_of_the_node() -> set[str]:
    interface = pytest.importorskip("recon_ros.ros.interface", reason="needs ROS 2 (rclpy)")
    return {t.name.replace("~", "/recon") for t in interface.PUBLICATIONS}


def test_rviz_shows_topics_of_the_node_with_the_right_durability() -> None:
    config = yaml.safe_load((ROOT / "rviz" / "recon.rviz").read_text())
    manager = config["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == "map"
    displays = {d["Name"]: d for d in manager["Displays"]}
    topics = {name: d["Topic"] for name, d in displays.items() if "Topic" in d}
    ours = topics_of_the_node()
    for name, topic in topics.items():
        assert topic["Value"] in ours | {"/camera/image_raw"}, name
    assert topics["Map"]["Durability Policy"] == "Transient Local"
    assert displays["Points"]["Decay Time"] > 0
    classes = {d["Class"].rpartition("/")[2] for d in displays.values()}
    assert {"TF", "Odometry", "Path", "PointCloud2", "Image"} <= classes


def test_foxglove_layout_shows_topics_of_the_node() -> None:
    layout = json.loads((ROOT / "foxglove" / "recon.json").read_text())
    panels = set(layout["configById"])

    def leaves(node: Any) -> set[str]:
        return {node} if isinstance(node, str) else leaves(node["first"]) | leaves(node["second"])

    assert leaves(layout["layout"]) == panels
    view = next(config for name, config in layout["configById"].items() if name.startswith("3D!"))
    assert set(view["topics"]) <= topics_of_the_node()
    assert view["followTf"] == "map"
