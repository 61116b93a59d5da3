# SPDX-License-Identifier: Apache-2.0
"""One tree of frozen dataclasses; YAML, ROS parameters, CLI options and the README table all derive from it.

Every option carries its help, unit and limits as field metadata, so nothing is declared twice. `Config` is what
the core needs; `NodeConfig` is what only the ROS node needs. Flat names join groups with dots
(``memory.max_keyframes``) and are the same in YAML, in ROS and on the command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from recon_ros.errors import ConfigError

C = TypeVar("C")


def option(
    default: Any,
    help: str,
    *,
    range: tuple[float, float] | None = None,
    choices: tuple[str, ...] | None = None,
    dynamic: bool = False,
    unit: str = "",
) -> Any:
    """A dataclass field with the metadata everything else is derived from.

    `range` is inclusive; `dynamic` means that a running node accepts a new value.
    """
    return field(
        default=default,
        metadata={"help": help, "range": range, "choices": choices, "dynamic": dynamic, "unit": unit},
    )


@dataclass(frozen=True)
class InputConfig:
    """How a frame is prepared."""

    max_size: int = option(
        640,
        "Longer side the image is reduced to before processing; never enlarged",
        range=(64, 4096),
        unit="px",
    )
    depth_scale: float = option(
        0.001,
        "Metres per unit of 16-bit depth images; 32-bit float depth is metres already",
        range=(1e-6, 1.0),
    )
    min_depth: float = option(0.1, "Sensor depth below this is dropped", range=(0.0, 100.0), unit="m")
    max_depth: float = option(8.0, "Sensor depth above this is dropped", range=(0.1, 1000.0), unit="m")
    mask: bool = option(
        False,
        "Wait for a mask with every image: pixels where it is not 0 (people, other robots) stay out of tracking and "
        "map; an image without one is not used",
    )


@dataclass(frozen=True)
class TrackingConfig:
    """How a pose is found for a frame."""

    features: int = option(1200, "Features detected in an image, spread over a grid", range=(100, 10000))
    references: int = option(
        3, "Keyframes a frame is registered against: the most covisible ones", range=(1, 16), dynamic=True
    )
    min_inliers: int = option(
        20,
        "Fewer supporting correspondences than this and the frame is not tracked",
        range=(6, 1000),
        dynamic=True,
    )
    reprojection_threshold: float = option(3.0, "RANSAC inlier threshold", range=(0.5, 20.0), unit="px", dynamic=True)
    depth_sigma: float = option(
        0.01,
        "Relative standard deviation of depth, in the pose refinement and for telling whether two depths are the same",
        range=(0.001, 1.0),
        dynamic=True,
    )
    surface_sigma: float = option(
        0.02,
        "Standard deviation of the distance of two samples of one depth surface, for registration; 0 turns it off",
        range=(0.0, 1.0),
        unit="m",
        dynamic=True,
    )
    lost_after: int = option(
        5, "Frames in a row without a pose before the state is LOST", range=(1, 1000), dynamic=True
    )
    submap_after: int = option(
        50,
        "Frames in a row without a pose before a submap is begun, which is joined to the map when a place is "
        "recognised; 0 never begins one",
        range=(0, 100000),
        dynamic=True,
    )
    relocalization_candidates: int = option(
        6, "Stored keyframes tried per frame while there is no pose, beside the newest", range=(1, 100), dynamic=True
    )


@dataclass(frozen=True)
class MemoryConfig:
    """What is remembered."""

    max_keyframes: int = option(500, "Keyframes kept; beyond it the most redundant one goes", range=(4, 100000))
    min_overlap: float = option(
        0.7,
        "A new keyframe is made when the best keyframe sees less than this share of the current points",
        range=(0.05, 0.95),
        dynamic=True,
    )
    min_translation: float = option(
        0.08,
        "Motion gate: no keyframe below this translation (relative to the median depth) and min_rotation",
        range=(0.0, 10.0),
        dynamic=True,
    )
    min_rotation: float = option(0.15, "Motion gate: see min_translation", range=(0.0, 3.2), unit="rad", dynamic=True)
    points_stride: int = option(2, "Stride in pixels of the pointmaps stored with keyframes", range=(1, 16))
    max_ram_mb: int = option(
        600,
        "RAM for what keyframes hold, 0.9 MB each at the defaults; beyond it those far from the camera are moved to a "
        "disk, and memory-mapped",
        range=(1, 1000000),
        unit="MB",
    )
    spill_folder: str = option(
        "",
        "Folder on a disk that keyframes are moved to, in files without names that go with the process; empty takes "
        "one for temporary files",
    )
    max_poses: int = option(
        200000, "Poses of the trajectory kept; beyond it older ones are thinned out", range=(100, 10000000)
    )


@dataclass(frozen=True)
class LoopConfig:
    """When a place is recognised as one seen before."""

    enabled: bool = option(True, "Look for earlier keyframes of the place in view whenever a keyframe is made")
    candidates: int = option(
        5, "Earlier keyframes verified for a new one: those that look most alike", range=(1, 100), dynamic=True
    )
    again: int = option(
        20,
        "Pairs of keyframes that are looked at after a correction has brought them together; 0 looks at new keyframes "
        "only",
        range=(0, 1000),
        dynamic=True,
    )
    min_inliers: int = option(
        20, "Points two keyframes must have in common, found in both directions", range=(10, 1000), dynamic=True
    )
    exclusion: int = option(
        10,
        "This many keyframes before a new one are not asked, because tracking has connected them already",
        range=(1, 10000),
    )
    max_drift: float = option(
        0.1,
        "A loop that would move the new keyframe by more than this share of the way in between is not believed",
        range=(0.001, 1.0),
        dynamic=True,
    )


@dataclass(frozen=True)
class MapConfig:
    """How the world cloud is derived from the keyframes."""

    voxel_size: float = option(0.03, "Edge of a map voxel", range=(0.001, 10.0), unit="m")
    max_points: int = option(
        600000,
        "Points of the map cloud at most (16 bytes each in a message)",
        range=(1000, 20000000),
        dynamic=True,
    )
    max_voxels: int = option(
        2000000,
        "Voxels the map is kept in at most (about 170 bytes each); beyond it the lightest of those far away go",
        range=(1000, 100000000),
        dynamic=True,
    )
    carving: int = option(
        3,
        "Keyframes that must see through a voxel, after the last that saw something there, before it goes: what has "
        "moved away leaves the map; 0 turns it off",
        range=(0, 1000),
    )
    level: bool = option(
        True,
        "Make a map level, and keep it so in its pose graph, where its first frame knows which way is down; off, the "
        "first camera's tilt is the map's",
    )
    min_confidence: float = option(
        0.1, "Points below this confidence, relative to the maximum, stay out", range=(0.0, 1.0), dynamic=True
    )
    min_observations: int = option(
        1, "Points that must fall into a voxel before it is shown", range=(1, 1000), dynamic=True
    )
    directory: str = option("~/.ros/recon_maps", "Folder ~/save_map writes to when map.path is empty", dynamic=True)
    path: str = option("", "Map folder ~/save_map writes to and ~/load_map reads", dynamic=True)
    load: str = option("", "Map folder to begin with; empty begins a new map")


@dataclass(frozen=True)
class EngineConfig:
    """How a network is executed."""

    build: bool = option(
        False,
        "Build what the wanted runtime lacks (ONNX graphs, engine) in a process of its own; until it is ready, another "
        "runtime serves (runtime auto), or frames are skipped and counted",
    )
    torch_mode: str = option(
        "eager",
        "How PyTorch runs a network: as written, compiled, as CUDA graphs (on a GPU), or compiled and as CUDA graphs",
        choices=("eager", "compile", "graphs", "compile_graphs"),
    )
    threads: int = option(0, "Threads of a network on the CPU; 0 takes the library's choice", range=(0, 1024))
    size: str = option(
        "",
        "Height x width of the camera's image, as 480x640, that build_only builds for; empty takes the network's own",
    )
    cache: str = option("", "Folder of ONNX graphs and engines; empty takes the user's cache")


@dataclass(frozen=True)
class Config:
    """Everything the core needs to know."""

    source: str = option(
        "depth",
        "Where pointmaps come from: the aligned depth stream (depth), or a network by the name of its card "
        "(recon models list), which sees the colour image only; auto takes the largest one whose weights are here, or "
        "the compact one that is part of this package",
    )
    mode: str = option(
        "mapping",
        "Grow the map (mapping), or leave a loaded one as it is and tell poses in it only (localization)",
        choices=("mapping", "localization"),
        dynamic=True,
    )
    weights: str = option("", "Weight file of the network; empty takes the card's from the cache")
    update_rule: str = option(
        "filt3r",
        "How the state of a CUT3R takes a frame in: replaced (overwrite, as published), or filtered per token",
        choices=("overwrite", "ttt3r", "filt3r"),
    )
    runtime: str = option(
        "auto",
        "Who executes a network; auto takes the fastest that is ready on this machine, and says why",
        choices=("auto", "torch", "openvino", "tensorrt", "tensorrt_rtx"),
    )
    precision: str = option(
        "auto",
        "Arithmetic of a network; auto takes the fastest that the runtime has here and that passes its self-check",
        choices=("auto", "fp32", "fp16", "bf16", "int8"),
    )
    engine: EngineConfig = field(default_factory=EngineConfig)
    input: InputConfig = field(default_factory=InputConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    loops: LoopConfig = field(default_factory=LoopConfig)
    map: MapConfig = field(default_factory=MapConfig)


@dataclass(frozen=True)
class NodeConfig:
    """Everything only the ROS node needs to know."""

    autostart: bool = option(True, "Configure and activate without a lifecycle manager")
    build_only: bool = option(
        False, "Build what the runtime of the source lacks, for images of engine.size, and end: exit code 0, or 1"
    )
    map_frame: str = option("map", "Frame the map and ~/pose are in")
    odom_frame: str = option("odom", "Frame ~/odometry is in")
    base_frame: str = option(
        "base_link", "Frame of the robot; set it to the image's own frame_id when there is no robot"
    )
    camera_frame: str = option("", "Optical frame; empty takes the image's frame_id")
    publish_tf: bool = option(True, "Broadcast TF")
    publish_camera_tf: bool = option(
        False, "Also broadcast base_frame → camera (static) from base_to_camera; for robots without a URDF"
    )
    odom_source: str = option(
        "none",
        "Where odometry comes from: the node itself (none), the odom topic, or TF odom → base",
        choices=("none", "topic", "tf"),
    )
    gravity: str = option(
        "none",
        "How it is known which way is down, so that the map is level and stays so (map.level): not at all (none), by "
        "the imu topic and TF from its frame to the camera's (imu), or because base_frame always stands level (base)",
        choices=("none", "imu", "base"),
    )
    base_to_camera: str = option(
        "",
        "Pose of the optical frame in base_frame as 'x y z qx qy qz qw' (metres), used where TF has none; 'optical' "
        "is a camera at the base looking along +x",
    )
    transform_tolerance: float = option(
        0.1, "How far map → odom is dated into the future", range=(0.0, 10.0), unit="s", dynamic=True
    )
    image_transport: str = option("raw", "Transport of the image", choices=("raw", "compressed"))
    depth_transport: str = option("raw", "Transport of the depth image", choices=("raw", "compressed"))
    use_depth: bool = option(True, "Subscribe to depth")
    sync_tolerance: float = option(
        0.02, "Largest stamp difference of an image and its depth", range=(0.0, 1.0), unit="s"
    )
    queue: str = option(
        "newest",
        "What happens to frames that come faster than they are processed: keep the newest and count the rest, or "
        "keep all (offline replay only)",
        choices=("newest", "all"),
    )
    points_frame: str = option("camera", "Frame of ~/points", choices=("camera", "map"))
    points_stride: int = option(2, "Stride in pixels of ~/points", range=(1, 64), dynamic=True)
    map_publish_period: float = option(2.0, "Period of ~/map", range=(0.1, 3600.0), unit="s")
    path_period: float = option(0.5, "Period of ~/path", range=(0.02, 3600.0), unit="s")
    path_max_size: int = option(2000, "Poses kept in ~/path; older ones are thinned out", range=(2, 10000000))
    watchdog_period: float = option(
        5.0, "Silence on an input after which the node says so", range=(0.5, 3600.0), unit="s"
    )
    camera_info_timeout: float = option(
        2.0,
        "How long images are held back waiting for camera_info before the node says so",
        range=(0.1, 600.0),
        unit="s",
    )


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Each option of a config instance as (flat name, value, field), depth first in order of declaration."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value, f


def flatten(config: Any) -> dict[str, Any]:
    """Flat name → value of every option."""
    return {name: value for name, value, _ in leaves(config)}


def updated(config: C, flat: Mapping[str, Any]) -> C:
    """`config` with some options replaced by flat name; values are checked and converted.

    Raises:
        ConfigError: for an unknown name (with the nearest known one), a wrong type, a value out of range or
            outside the choices.
    """
    known = {name: f for name, _, f in leaves(config)}
    for name in flat:
        if name not in known:
            raise ConfigError(f"unknown option '{name}'{_suggestion(name, known)}")
    return _rebuilt(config, flat, "")


def _rebuilt(config: Any, flat: Mapping[str, Any], prefix: str) -> Any:
    hints = get_type_hints(type(config))
    changes = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        name = prefix + f.name
        if dataclasses.is_dataclass(value):
            changes[f.name] = _rebuilt(value, flat, name + ".")
        elif name in flat:
            changes[f.name] = _checked(name, flat[name], hints[f.name], f.metadata)
    return dataclasses.replace(config, **changes)


def _checked(name: str, value: Any, kind: type, metadata: Mapping[str, Any]) -> Any:
    """`value` as `kind`, or a ConfigError that names it. Text from a command line is parsed as YAML."""
    original = value
    if isinstance(value, str) and kind is not str:
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            value = original
        if isinstance(value, str) and kind is float:
            with contextlib.suppress(ValueError):  # YAML reads '1e-3' as text
                value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"option '{name}' is {original!r}; it must be of type {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"option '{name}' is {original!r}; it must be finite")
    limits, choices = metadata.get("range"), metadata.get("choices")
    if limits is not None and not limits[0] <= value <= limits[1]:
        raise ConfigError(f"option '{name}' is {value}; it must be between {limits[0]} and {limits[1]}")
    if choices is not None and value not in choices:
        raise ConfigError(f"option '{name}' is '{value}'; it must be one of {', '.join(choices)}")
    return value


def _suggestion(name: str, known: Mapping[str, Any]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}"


def nested(config: Any) -> dict[str, Any]:
    """The config as nested plain dictionaries, ready for YAML."""
    return dataclasses.asdict(config)


def load_yaml(path: Path) -> dict[str, Any]:
    """Flat options from a YAML file: nested groups, dotted names, or a ROS parameter file (``/**:``).

    Raises:
        ConfigError: when the file cannot be read or is not a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not valid YAML: {error}") from error
    if not isinstance(data or {}, dict):
        raise ConfigError(f"the configuration {path} must be a mapping of options, it is a {type(data).__name__}")
    flat: dict[str, Any] = {}
    for key, value in (data or {}).items():
        parameters = value.get("ros__parameters", "") if isinstance(value, dict) else ""
        if parameters is None or isinstance(parameters, dict):
            _flatten_into(flat, parameters or {}, "")
        else:
            _flatten_into(flat, {key: value}, "")
    return flat


def _flatten_into(flat: dict[str, Any], data: Mapping[str, Any], prefix: str) -> None:
    for key, value in data.items():
        if isinstance(value, dict):
            _flatten_into(flat, value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value


def config_hash(config: Any) -> str:
    """Twelve hex digits that identify the configuration."""
    return hashlib.sha256(json.dumps(nested(config), sort_keys=True).encode()).hexdigest()[:12]


def markdown_table(config: Any) -> str:
    """The README's parameter table of a config instance."""
    lines = ["| parameter | default | range | dynamic | what it does |", "|---|---|---|---|---|"]
    for name, value, f in leaves(config):
        limits, choices, unit = f.metadata["range"], f.metadata["choices"], f.metadata["unit"]
        allowed = " … ".join(f"{x:g}" for x in limits) if limits else ", ".join(choices or ())
        shown = f"`{json.dumps(value)}`" + (f" {unit}" if unit else "")
        lines.append(
            f"| `{name}` | {shown} | {allowed} | {'yes' if f.metadata['dynamic'] else ''} | {f.metadata['help']} |"
        )
    return "\n".join(lines) + "\n"
