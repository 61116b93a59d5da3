# SPDX-License-Identifier: Apache-2.0
"""One tree of options: into every form and back, and each mistake answered with one sentence."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from helpers import quick
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_ros.config import (
    Config,
    NodeConfig,
    config_hash,
    flatten,
    leaves,
    load_yaml,
    markdown_table,
    nested,
    updated,
)
from recon_ros.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
BOTH = [Config(), NodeConfig()]
OPTIONS = [(config, name, value, field) for config in BOTH for name, value, field in leaves(config)]
option_ids = [f"{type(config).__name__}.{name}" for config, name, _, _ in OPTIONS]


def kind_of(config: Any, name: str) -> type:
    """The declared type of an option."""
    *groups, last = name.split(".")
    for group in groups:
        config = getattr(config, group)
    return get_type_hints(type(config))[last]


def another_value(config: Any, name: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    """A legal value that is not the default, where there is one."""
    kind, limits, choices = kind_of(config, name), field.metadata["range"], field.metadata["choices"]
    if kind is bool:
        return not value
    if choices:
        return choices[-1] if value != choices[-1] else choices[0]
    if kind is str:
        return value + "_2"
    return kind(limits[0] if value != limits[0] else limits[1])


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Legal values for some options of `Config`."""
    drawn: dict[str, Any] = {}
    for name, _, field in leaves(Config()):
        if draw(st.booleans()):
            kind, limits, choices = kind_of(Config(), name), field.metadata["range"], field.metadata["choices"]
            if kind is bool:
                drawn[name] = draw(st.booleans())
            elif choices:
                drawn[name] = draw(st.sampled_from(choices))
            elif kind is str:
                drawn[name] = draw(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"])))
            elif kind is int:
                drawn[name] = draw(st.integers(*limits))
            else:
                drawn[name] = draw(st.floats(*limits))
    return drawn


# --- there and back


@quick
@given(changes())
def test_flat_there_and_back(flat: dict[str, Any]) -> None:
    config = updated(Config(), flat)
    assert updated(Config(), flatten(config)) == config
    assert flatten(config) == flatten(Config()) | flat
    assert {name: flatten(config)[name] for name in flat} == flat


@settings(quick, max_examples=12)
@given(changes())
def test_yaml_there_and_back(tmp_path_factory: pytest.TempPathFactory, flat: dict[str, Any]) -> None:
    """Nested, with dots, or as ROS has it: the same."""
    config = updated(Config(), flat)
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    for form in (
        nested(config),
        flatten(config),
        {"/**": {"ros__parameters": nested(config)}},
        {"recon": {"ros__parameters": flatten(config)}},
    ):
        path.write_text(yaml.safe_dump(form))
        assert updated(Config(), load_yaml(path)) == config


@quick
@given(changes())
def test_command_line_there_and_back(flat: dict[str, Any]) -> None:
    """`--set name=value` hands over text."""
    assert updated(Config(), {name: str(value) for name, value in flat.items()}) == updated(Config(), flat)


@pytest.mark.parametrize("config", BOTH)
def test_defaults_pass_their_own_checks(config: Any) -> None:
    assert updated(config, flatten(config)) == config


def test_an_update_changes_what_it_names_and_nothing_else() -> None:
    config = Config()
    changed = updated(config, {"memory.max_keyframes": 7, "source": "depth"})
    assert changed.memory.max_keyframes == 7
    assert config == Config(), "the original has changed"
    assert {n for n, v in flatten(changed).items() if v != flatten(config)[n]} == {"memory.max_keyframes"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.memory.max_keyframes = 8  # type: ignore[misc]


# --- numbers and text


@pytest.mark.parametrize(
    ("name", "given_value", "expected"),
    [
        ("input.depth_scale", "1e-3", 0.001),
        ("input.depth_scale", "1E-3", 0.001),
        ("input.max_depth", 8, 8.0),
        ("input.max_depth", "8", 8.0),
        ("input.max_size", "320", 320),
        ("map.path", "123", "123"),
        ("map.path", "true", "true"),
    ],
)
def test_text_and_whole_numbers_are_converted(name: str, given_value: Any, expected: Any) -> None:
    value = flatten(updated(Config(), {name: given_value}))[name]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("false", False), ("no", False)])
def test_text_of_a_truth_value(text: str, expected: bool) -> None:
    assert updated(NodeConfig(), {"use_depth": text}).use_depth is expected


# --- mistakes


@pytest.mark.parametrize(
    ("flat", "sentence"),
    [
        ({"memory.max_keyframe": 5}, "unknown option 'memory.max_keyframe'; did you mean 'memory.max_keyframes'?"),
        ({"max_keyframes": 5}, "unknown option 'max_keyframes'; did you mean 'memory.max_keyframes'?"),
        ({"memory": 5}, "unknown option 'memory'; "),
        ({"qqqq": 1}, "unknown option 'qqqq'; known: engine.build, "),
        ({"input.max_size": 320.5}, "option 'input.max_size' is 320.5; it must be of type int"),
        ({"input.max_size": "big"}, "option 'input.max_size' is 'big'; it must be of type int"),
        ({"input.max_size": True}, "option 'input.max_size' is True; it must be of type int"),
        ({"input.max_size": None}, "option 'input.max_size' is None; it must be of type int"),
        ({"input.max_size": [320]}, r"option 'input.max_size' is [320]; it must be of type int"),
        ({"input.max_size": 63}, "option 'input.max_size' is 63; it must be between 64 and 4096"),
        ({"input.max_size": 4097}, "option 'input.max_size' is 4097; it must be between 64 and 4096"),
        ({"input.max_depth": "deep"}, "option 'input.max_depth' is 'deep'; it must be of type float"),
        ({"input.max_depth": False}, "option 'input.max_depth' is False; it must be of type float"),
        ({"input.max_depth": ""}, "option 'input.max_depth' is ''; it must be of type float"),
        ({"input.max_depth": "nan"}, "option 'input.max_depth' is 'nan'; it must be finite"),
        ({"input.max_depth": float("inf")}, "option 'input.max_depth' is inf; it must be finite"),
        ({"input.max_depth": "[1"}, "option 'input.max_depth' is '[1'; it must be of type float"),
        ({"source": 3}, "option 'source' is 3; it must be of type str"),
        ({"map.path": None}, "option 'map.path' is None; it must be of type str"),
    ],
)
def test_each_mistake_has_its_sentence(flat: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        updated(Config(), flat)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [1, 0, "maybe", 1.0, None])
def test_only_truth_values_are_truth_values(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"'use_depth' is .* it must be of type bool"):
        updated(NodeConfig(), {"use_depth": value})


def test_nothing_is_taken_over_from_a_bad_update() -> None:
    config = Config()
    with pytest.raises(ConfigError):
        updated(config, {"memory.max_keyframes": 7, "input.max_size": -1})
    assert config == Config()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- 1\n- 2\n", "must be a mapping of options, it is a list"),
        (b"just text", "must be a mapping of options, it is a str"),
        (b"a: [1", "is not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not valid YAML"),
        (b"a: \xff\xfe\xfa", "is not valid YAML"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*none\.yaml: No such file"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_yaml(tmp_path)


def test_parameters_that_are_no_mapping_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("/**:\n  ros__parameters: [1, 2]\n")
    with pytest.raises(ConfigError, match="ros__parameters"):
        updated(Config(), load_yaml(path))


def test_a_ros_parameter_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "/**:\n  ros__parameters:\n    source: depth\n    input:\n      max_size: 320\n    memory.max_keyframes: 9\n"
    )
    assert load_yaml(path) == {"source": "depth", "input.max_size": 320, "memory.max_keyframes": 9}


@pytest.mark.parametrize(
    "text", ["", "{}", "# nothing\n", "/**:\n  ros__parameters:\n", "/**:\n  ros__parameters: {}\n"]
)
def test_an_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert load_yaml(path) == {}


def test_the_shipped_configuration_is_understood() -> None:
    files = sorted((ROOT / "config").glob("*.yaml"))
    assert files
    known = flatten(Config()) | flatten(NodeConfig())
    for path in files:
        flat = load_yaml(path)
        for config in BOTH:
            updated(config, {name: value for name, value in flat.items() if name in flatten(config)})
        assert set(flat) <= set(known), f"{path.name}: {set(flat) - set(known)}"


# --- what is derived


@pytest.mark.parametrize(("config", "name", "value", "field"), OPTIONS, ids=option_ids)
def test_every_option_is_declared_whole(config: Any, name: str, value: Any, field: dataclasses.Field[Any]) -> None:
    kind, metadata = kind_of(config, name), field.metadata
    assert type(value) is kind and kind in (bool, int, float, str)
    assert len(metadata["help"]) > 5 and not metadata["help"].endswith(".")
    assert (metadata["range"] is not None) == (kind in (int, float)), "numbers have limits, others have none"
    assert name in markdown_table(config)
    if metadata["range"]:
        assert all(isinstance(limit, kind | int) for limit in metadata["range"])
    if metadata["choices"]:
        assert value in metadata["choices"]


def test_core_and_node_do_not_share_names() -> None:
    """They are declared on one node."""
    assert not set(flatten(Config())) & set(flatten(NodeConfig()))


def test_markdown_table() -> None:
    lines = markdown_table(Config()).splitlines()
    assert len(lines) == 2 + len(flatten(Config()))
    assert all(line.count(" | ") == 4 or line.startswith("|---") for line in lines)
    assert "| `input.max_size` | `640` px | 64 … 4096 |  | Longer side" in markdown_table(Config())


@pytest.mark.parametrize(("config", "name", "value", "field"), OPTIONS, ids=option_ids)
def test_the_hash_sees_every_option(config: Any, name: str, value: Any, field: dataclasses.Field[Any]) -> None:
    other = another_value(config, name, value, field)
    if other == value:
        assert field.metadata["choices"] and len(field.metadata["choices"]) == 1
        return
    assert config_hash(updated(config, {name: other})) != config_hash(config)


def test_the_hash_is_the_same_everywhere() -> None:
    config = updated(Config(), {"input.max_depth": 6, "memory.max_keyframes": 9})
    assert config_hash(config) == config_hash(updated(Config(), {"memory.max_keyframes": 9, "input.max_depth": 6.0}))
    assert len(config_hash(config)) == 12 and int(config_hash(config), 16) >= 0
    code = (
        "from recon_ros.config import *; "
        "print(config_hash(updated(Config(), {'input.max_depth': 6.0, 'memory.max_keyframes': 9})))"
    )
    command = [sys.executable, "-c", code]  # strings hash to other numbers there
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == config_hash(config)


# --- no parameter does nothing


def attribute_reads() -> dict[str, set[str]]:
    """Attribute name → what it is read from, as written, in every module of the package but config.py.

    A parameter that a node reads by its name before it has a config counts as read from a config.
    """
    reads = defaultdict(set)
    for path in sorted((ROOT / "recon_ros").rglob("*.py")):
        if path.name != "config.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    reads[node.attr].add(ast.unparse(node.value))
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.get_parameter":
                    reads[ast.literal_eval(node.args[0])].add("config")
    return reads


def test_every_option_is_read_somewhere() -> None:
    """An option nobody reads does nothing; `config.map.voxel_size` and `self._config.voxel_size` are reads of one."""
    reads = attribute_reads()
    names = Counter(name.split(".")[-1] for _, name, _, _ in OPTIONS)
    for _, name, _, _ in OPTIONS:
        *groups, last = name.split(".")
        holders = {base for base in reads[last] if base.endswith("config") or base.split(".")[-1] in groups}
        assert holders, f"nobody reads {name}"
        if groups and names[last] > 1:
            assert any(base.split(".")[-1] in groups for base in holders), f"nobody reads {name}, only its namesake"
        if not groups and names[last] > 1:
            assert any(base.endswith("config") for base in holders), f"nobody reads {name}, only its namesake"
