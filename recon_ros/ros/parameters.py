# SPDX-License-Identifier: Apache-2.0
"""ROS parameters from the config dataclasses and back: nothing is declared by hand, nothing twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node

from recon_ros.config import Config, NodeConfig, flatten, leaves, updated
from recon_ros.errors import ConfigError


class Parameters:
    """Declares every option of `Config` and `NodeConfig` on a node and keeps what they say now.

    A value given from outside (file, launch, command line) is converted as the config converts it, so that
    ``max_depth: 8`` is as good as ``8.0``; one that cannot be is remembered, and `read` says so.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._errors: list[str] = []
        self._changed: Callable[[Config, NodeConfig], None] = lambda config, node_config: None
        self._core, self._own = Config(), NodeConfig()
        self._core = self._declare(self._core)
        self._own = self._declare(self._own)
        node.add_on_set_parameters_callback(self._set)

    def read(self) -> tuple[Config, NodeConfig]:
        """What the parameters say.

        Raises:
            ConfigError: one sentence naming the first unusable value.
        """
        if self._errors:
            raise ConfigError(self._errors[0])
        return self._core, self._own

    def on_change(self, changed: Callable[[Config, NodeConfig], None]) -> None:
        """Call `changed` with the new configs whenever a dynamic parameter has been accepted."""
        self._changed = changed

    def unknown(self) -> list[str]:
        """Names that were given to this node but are nobody's parameters; a typing error otherwise goes unseen."""
        given = getattr(self._node, "_parameter_overrides", {})  # rclpy has no public way to ask
        return sorted(
            name for name in given if not self._node.has_parameter(name) and not name.startswith("qos_overrides.")
        )

    def _declare(self, config: Any) -> Any:
        values: dict[str, Any] = {}
        for name, default, _ in leaves(config):
            raw = self._given(name, default)
            try:
                updated(config, {name: raw})
                values[name] = raw
            except ConfigError as error:
                self._errors.append(str(error))
        config = updated(config, values)
        for name, value, field in leaves(config):
            self._node.declare_parameter(name, value, describe(value, field), ignore_override=True)
        return config

    def _given(self, name: str, default: Any) -> Any:
        """The value from outside, of whatever type it came in; declared without a type for a moment to be seen."""
        untyped = ParameterDescriptor(dynamic_typing=True)
        raw = self._node.declare_parameter(name, default, untyped).value
        self._node.undeclare_parameter(name)
        return raw

    def _set(self, parameters: list[Any]) -> SetParametersResult:
        changes = {p.name: p.value for p in parameters}
        try:
            core, own = self._with(self._core, changes), self._with(self._own, changes)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if (core, own) != (self._core, self._own):
            self._core, self._own = core, own
            self._changed(core, own)
        return SetParametersResult(successful=True)

    @staticmethod
    def _with(config: Any, changes: Mapping[str, Any]) -> Any:
        known = flatten(config)
        return updated(config, {name: value for name, value in changes.items() if name in known})


def describe(value: Any, field: dataclasses.Field[Any]) -> ParameterDescriptor:
    """The descriptor `ros2 param describe` shows."""
    metadata = field.metadata
    unit = f" [{metadata['unit']}]" if metadata["unit"] else ""
    descriptor = ParameterDescriptor(description=metadata["help"] + unit, read_only=not metadata["dynamic"])
    if metadata["choices"]:
        descriptor.additional_constraints = "one of: " + ", ".join(metadata["choices"])
    if metadata["range"]:
        low, high = metadata["range"]
        if isinstance(value, int):
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=0)]
        else:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high), step=0.0)
            ]
    return descriptor
