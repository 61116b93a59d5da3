# SPDX-License-Identifier: Apache-2.0
"""An engine from its file, held against the plan: names, shapes, dtypes and directions must be the graph's own."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.networks.plan import GraphSpec, StepPlan
from recon_ros.runtimes.trt.library import Library

DTYPES = {"uint8": "UINT8", "float32": "FLOAT", "int32": "INT32"}
"""Of the plan's border, as TensorRT calls them."""

_NO_ROOM = re.compile(r"out ?of ?memory", re.IGNORECASE)


class EngineRefused(NetworkError):
    """The file holds no engine that can be used here; another build may give one."""


def open_runtime(library: Library) -> Any:
    """The object that engines are opened with; keep it as long as them. Only with a GPU: without one it may crash.

    Raises:
        NetworkError: it does not start.
    """
    try:
        return library.module.Runtime(library.logger)
    except (TypeError, RuntimeError) as error:
        raise NetworkError(f"{library} does not start ({error}){library.logger.take_errors()}") from error


def open_engine(library: Library, runtime: Any, path: Path) -> Any:
    """The engine in a file.

    Raises:
        EngineRefused: there is none, it is damaged, or it is of another version or GPU.
        NetworkError: the GPU has no room for it.
    """
    library.logger.take_errors()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # Mapped, not read: where the GPU shares the host's memory, there may be no room for it twice.
            engine = runtime.deserialize_cuda_engine(data)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise EngineRefused(f"cannot read the engine {path}: {error}; build it again") from error
    if engine is None:
        said = library.logger.take_errors()
        if _NO_ROOM.search(said):
            raise NetworkError(f"the GPU has no room for the engine {path.name}{said}; end what else uses it")
        raise EngineRefused(
            f"{library} does not take the engine {path.name}: it is damaged, or was built by another version or for "
            f"another GPU{said}; build it again"
        )
    return engine


def tensor_names(engine: Any) -> tuple[str, ...]:
    """Names of all inputs and outputs."""
    return tuple(engine.get_tensor_name(index) for index in range(engine.num_io_tensors))


def check_engine(library: Library, engine: Any, graph: GraphSpec, plan: StepPlan) -> None:
    """Nothing where the engine is one of this graph.

    An input may be missing: TensorRT drops those that nothing depends on.

    Raises:
        EngineRefused: what differs.
    """
    trt = library.module
    problems = []
    names = tensor_names(engine)
    for name in names:
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        if name not in (graph.inputs if is_input else graph.outputs):
            problems.append(f"{'input' if is_input else 'output'} {name} is unknown")
            continue
        spec = plan.tensors[name]
        shape, dtype = tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name)
        if shape != spec.shape:
            problems.append(f"{name} has the shape {shape}, not {spec.shape}")
        if dtype != getattr(trt.DataType, DTYPES[spec.dtype]):
            problems.append(f"{name} is {dtype}, not {spec.dtype}")
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            problems.append(f"{name} is not in the GPU's memory")
    problems += [f"output {name} is missing" for name in graph.outputs if name not in names]
    if problems:
        raise EngineRefused(f"the engine is not one of graph {graph.name}: {'; '.join(problems)}; build it again")
