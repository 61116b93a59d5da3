# SPDX-License-Identifier: Apache-2.0
"""From an ONNX file to an engine: minutes on a Jetson, seconds with TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.runtimes.trt import rtx, timing_cache
from recon_ros.runtimes.trt.files import write_atomically
from recon_ros.runtimes.trt.library import Library
from recon_ros.runtimes.trt.progress import (
    BuildCancelled,
    LogProgress,
    Part,
    PhaseTree,
    ProgressSink,
    make_monitor,
    tell,
)

READ, BUILT = 0.02, 0.98
"""Fractions of a build at which its file is read and its engine is made."""

LEVELS = range(6)


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        workspace_mb: most memory that one kernel may use beside its tensors, MiB.
        optimization_level: 0 to 5; higher tries more kernels and takes longer.
        compute_capability: what the engine is for, ``8.6`` or several, ``8.6,8.9,12.0``; of TensorRT-RTX only, which
            takes all that it knows from 8.0 on if None. The full TensorRT builds for the GPU it runs on.
        tf32: whether float32 products may be rounded to 10 bits of mantissa, which float32 parts are not meant for.
        timing_cache: file in which the full TensorRT keeps what it measured, for the next build on this GPU.
    """

    workspace_mb: int = 4096
    optimization_level: int = 3
    compute_capability: str | None = None
    tf32: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.workspace_mb < 1:
            raise NetworkError(f"workspace_mb is {self.workspace_mb}; it must be 1 or more")
        if self.optimization_level not in LEVELS:
            raise NetworkError(
                f"optimization_level is {self.optimization_level}; it must be {LEVELS[0]} to {LEVELS[-1]}"
            )


def build_engine(
    library: Library, onnx: Path, target: Path, options: BuildOptions, progress: ProgressSink | None = None
) -> None:
    """Build an engine from a strongly typed ONNX file of static shapes; its dtypes are the engine's.

    Args:
        library: to build with; the full one needs a GPU.
        onnx: file, its external data beside it.
        target: engine to write; appears whole or not at all.
        options: see there.
        progress: told how far it is, and may cancel; without one the log is told.

    Raises:
        BuildCancelled: `progress` said so.
        NetworkError: the file cannot be read, the library refuses the target or the graph, or the disk is full.
    """
    progress = progress or LogProgress(f"engine of {onnx.name}")
    tell(progress, f"reading {onnx.name}", 0.0)
    builder = _create(library, library.module.Builder, library.logger)
    network, parser = _read_onnx(library, builder, onnx)
    config = _configure(library, builder, options)
    tell(progress, "building", READ)
    serialized = _build(library, builder, network, config, Part(progress, READ, BUILT), onnx)
    del parser  # not before: the network's weights are its
    tell(progress, "writing", BUILT)
    write_atomically(target, serialized)
    if options.timing_cache is not None and not library.is_rtx:
        timing_cache.save(config, options.timing_cache)
    progress.update("done", 1.0)


def _create(library: Library, make: Any, *arguments: Any) -> Any:
    """An object of TensorRT's; it throws TypeError where its factory gave nothing."""
    try:
        return make(*arguments)
    except (TypeError, RuntimeError) as error:
        hint = "" if library.is_rtx else "; the full TensorRT needs a GPU and its driver to build"
        raise NetworkError(f"{library} does not start ({error}){library.logger.take_errors()}{hint}") from error


def _read_onnx(library: Library, builder: Any, onnx: Path) -> tuple[Any, Any]:
    """The network of a file, checked: it parses, and all shapes are static. Its weights live as long as the parser."""
    if not onnx.is_file():
        raise NetworkError(f"no ONNX file at {onnx}; export the network first")
    trt = library.module
    # 10.x types layers as it likes without the flag; 11 and RTX know nothing but strong typing.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    # External data is looked for beside an absolute path only.
    if not parser.parse_from_file(str(onnx.resolve())):
        problems = "; ".join(_describe(parser.get_error(index)) for index in range(parser.num_errors))
        library.logger.take_errors()  # the same again
        raise NetworkError(f"{library} cannot read {onnx.name}: {problems or 'no reason given'}")
    if network.num_outputs == 0:  # the parser takes many a file that is no ONNX for an empty graph
        raise NetworkError(f"{library} cannot read {onnx.name}: it holds no graph; export the network again")
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if any(size < 0 for size in shape):
            raise NetworkError(f"input {tensor.name} of {onnx.name} has the shape {shape}; export it static")
    return network, parser


def _describe(problem: Any) -> str:
    """One error of the parser: which node, and what is wrong with it."""
    where = f"node {problem.node()}"
    if name := problem.node_name():
        where += f" {name}"
    if kind := problem.node_operator():
        where += f" ({kind})"
    return f"{where}: {problem.desc()}"


def _configure(library: Library, builder: Any, options: BuildOptions) -> Any:
    trt = library.module
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * 2**20)
    config.builder_optimization_level = options.optimization_level
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if library.is_rtx:
        rtx.aim(library, config, options.compute_capability)
        rtx.require_user_memory(library, config)
        return config
    if options.compute_capability is not None:
        raise NetworkError(
            f"{library} builds for the GPU it runs on, not for compute capability {options.compute_capability}; "
            "leave the target out, or build with tensorrt_rtx"
        )
    if options.timing_cache is not None:
        timing_cache.load(config, options.timing_cache)
    return config


def _build(library: Library, builder: Any, network: Any, config: Any, progress: ProgressSink, onnx: Path) -> Any:
    """The engine as bytes of TensorRT's own."""
    tree = PhaseTree(progress)
    monitor = make_monitor(library.module, tree)
    config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if tree.failure is not None:
        raise tree.failure
    if tree.cancelled:
        raise BuildCancelled(f"cancelled while {onnx.name} was built; nothing was written")
    if serialized is None:
        raise NetworkError(f"{library} cannot build {onnx.name}{library.logger.take_errors()}")
    return serialized
