# SPDX-License-Identifier: Apache-2.0
"""TensorRT and CUDA for tests without either: what they do is simulated, what they have is the real thing's.

`FakeTrt` has the names of one real version (test/data/trt_surfaces) and no others: asking any of its objects for
something that version lacks is an AttributeError, as it would be there. What was asked for is kept in `FakeTrt.used`.
`FakeCuda` does nothing of what is sent to its stream before `synchronise`, so that a wait forgotten shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from recon_ros.networks.plan import TensorSpec
from recon_ros.runtimes.trt.cuda import CudaError
from recon_ros.runtimes.trt.library import Library

SURFACES = Path(__file__).parent / "data" / "trt_surfaces"

Arrays = dict[str, NDArray[Any]]


def surface_names() -> list[str]:
    """``tensorrt_10.3.0`` …"""
    return sorted(path.stem for path in SURFACES.glob("*.json"))


def load_surface(name: str) -> dict[str, Any]:
    surface: dict[str, Any] = json.loads((SURFACES / f"{name}.json").read_text(encoding="utf-8"))
    return surface


class FakeCuda:
    """See `recon_ros.runtimes.trt.cuda.Cuda`."""

    name = "fake"
    stream = 4711

    def __init__(self) -> None:
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.host: dict[int, NDArray[Any]] = {}
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.downloads: list[int] = []
        self.launches: list[int] = []
        self.graphs: list[list[Callable[[], None]]] = []
        self.fail_capture = False
        self.fail_synchronise = False
        self.closed = 0

    def allocate(self, nbytes: int) -> int:
        assert self.captured is None, "allocated while capturing"
        address = (len(self.memory) + 1) << 32
        self.memory[address] = np.full(nbytes, 0xCD, np.uint8)  # nobody may count on zeros
        return address

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        array = np.full(shape, 77, dtype)
        self.host[array.ctypes.data] = array
        return array

    def upload(self, address: int, array: NDArray[Any]) -> None:
        assert array.ctypes.data in self.host, "only page-locked memory can be copied asynchronously"
        self.send(lambda: self.put(address, array))

    def download(self, array: NDArray[Any], address: int) -> None:
        assert array.ctypes.data in self.host
        self.downloads.append(address)

        def work() -> None:
            array[...] = self.get(address, array.shape, array.dtype)

        self.send(work)

    def synchronise(self) -> None:
        assert self.captured is None, "waited while capturing"
        if self.fail_synchronise:
            raise CudaError("the device fell off the bus")
        for work in self.queue:
            work()
        self.queue.clear()

    def capture(self, work: Callable[[], None]) -> int:
        assert not self.queue, "work is under way"
        self.captured = []
        try:
            work()
            if self.fail_capture:
                raise CudaError("operation not permitted when stream is capturing")
            self.graphs.append(self.captured)
        finally:
            self.captured = None
        return len(self.graphs) - 1

    def launch(self, graph: int) -> None:
        self.launches.append(graph)
        self.queue.extend(self.graphs[graph])

    def close(self) -> None:
        self.closed += 1
        self.memory.clear()

    def send(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def put(self, address: int, array: NDArray[Any]) -> None:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.memory[address][: flat.size] = flat

    def get(self, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.memory[address][:nbytes].copy().view(dtype).reshape(shape)


@dataclass(frozen=True)
class Simulated:
    """A graph: `compute` takes arrays by name and gives arrays by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    compute: Callable[[Arrays], Arrays]
    scratch: int = 256


class FakeEnum:
    """An enumeration of a surface; members are their own names."""

    def __init__(self, name: str, members: list[str]) -> None:
        numbers = {member: index for index, member in enumerate(members) if member not in ("name", "value")}
        self.__members__ = {member: FakeMember(name, member, number) for member, number in numbers.items()}
        self._name = name

    def __getattr__(self, name: str) -> FakeMember:
        if name in self.__members__:
            return self.__members__[name]
        raise AttributeError(f"{self._name} has no {name}")


@dataclass(frozen=True)
class FakeMember:
    kind: str
    name: str
    number: int = field(default=-1, compare=False)

    def __int__(self) -> int:
        return self.number

    def __str__(self) -> str:
        return f"{self.kind}.{self.name}"


@dataclass
class Behaviour:
    """What goes otherwise than well; all of it does not by default."""

    parse_errors: tuple[str, ...] = ()
    input_shape: tuple[int, ...] = (4, 32)
    build_fails: bool = False
    refuse_capability: bool = False
    refuse_timing_cache: bool = False
    refuse_address: str = ""
    refuse_enqueue: str = ""
    no_room: bool = False
    location: str = "DEVICE"
    capturable: bool = True
    kernels: bytes = b"compiled"
    take_kernels: bool = True


@dataclass
class FakeTrt:
    """The module of one version. `graphs`: what its engines compute, by name; `cuda`: where they do."""

    surface: dict[str, Any]
    cuda: FakeCuda
    graphs: Mapping[str, Simulated] = field(default_factory=dict)
    behaviour: Behaviour = field(default_factory=Behaviour)

    def __post_init__(self) -> None:
        self.used: set[tuple[str, str]] = set()
        self.log: list[str] = []

    @property
    def library(self) -> Library:
        return Library(self, self.surface["library"], self.surface["version"])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self.surface["names"]:
            raise AttributeError(f"{self.surface['library']} {self.surface['version']} has no {name}")
        self.used.add(("module", name))
        if name in ("ILogger", "IProgressMonitor"):
            return _base(self, name)
        if name in ("Builder", "OnnxParser", "Runtime"):
            return lambda *arguments: Wrapped(self, name, _IMPLEMENTATIONS[name](self, *arguments))
        return Watched(self, name, FakeEnum(name, self.surface["classes"][name]))

    def check(self, kind: str, name: str) -> None:
        """As the real object would: AttributeError for what it lacks."""
        if name not in self.surface["classes"][kind]:
            raise AttributeError(f"{self.surface['library']} {self.surface['version']}: {kind} has no {name}")
        self.used.add((kind, name))

    def wrap(self, kind: str, implementation: Any) -> Wrapped:
        return Wrapped(self, kind, implementation)

    def complain(self, logger: Any, text: str) -> None:
        logger.log(SimpleNamespace(name="ERROR"), text)


def _base(trt: FakeTrt, name: str) -> type:
    """A class to derive from, which like a C++ one does not work unless its own __init__ was called."""

    class Base:
        def __init__(self) -> None:
            self.is_complete = True

    Base.__name__ = name
    return Base


class Watched:
    """An enumeration whose members are held against the surface."""

    def __init__(self, trt: FakeTrt, kind: str, enum: FakeEnum) -> None:
        self._trt, self._kind, self._enum = trt, kind, enum

    def __getattr__(self, name: str) -> Any:
        if name != "__members__":
            self._trt.check(self._kind, name)
        return getattr(self._enum, name)


class Wrapped:
    """An object whose attributes are held against the surface, each time."""

    def __init__(self, trt: FakeTrt, kind: str, implementation: Any) -> None:
        self.__dict__.update(_trt=trt, _kind=kind, _implementation=implementation)

    def __getattr__(self, name: str) -> Any:
        self._trt.check(self._kind, name)
        return getattr(self._implementation, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._trt.check(self._kind, name)
        setattr(self._implementation, name, value)


def inside(wrapped: Any) -> Any:
    return wrapped.__dict__["_implementation"]


class HostMemory(bytes):
    """Bytes of TensorRT's own."""


# -- building ----------------------------------------------------------------------------------------------


class _Builder:
    def __init__(self, trt: FakeTrt, logger: Any) -> None:
        assert logger.is_complete
        self.trt, self.logger = trt, logger

    def create_network(self, flags: int) -> Wrapped:
        members = self.trt.surface["classes"]["NetworkDefinitionCreationFlag"]
        assert flags == 1 << members.index("STRONGLY_TYPED")
        return self.trt.wrap("INetworkDefinition", _Network(self.trt))

    def create_builder_config(self) -> Wrapped:
        return self.trt.wrap("IBuilderConfig", _Config(self.trt))

    def build_serialized_network(self, network: Wrapped, config: Wrapped) -> HostMemory | None:
        monitor = inside(config).progress_monitor
        assert monitor.is_complete
        monitor.phase_start("Building engine", None, 2)
        for step in range(2):
            monitor.phase_start("Timing", "Building engine", 4)
            for inner in range(4):
                if not monitor.step_complete("Timing", inner):
                    return None
            monitor.phase_finish("Timing")
            if not monitor.step_complete("Building engine", step):
                return None
        monitor.phase_finish("Building engine")
        self.trt.log.append(inside(config).summary())
        if self.trt.behaviour.build_fails:
            self.trt.complain(self.logger, "Could not find any implementation for node {ForeignNode}")
            return None
        return HostMemory(engine_bytes(self.trt, inside(network).name))


def engine_bytes(trt: FakeTrt, graph: str) -> bytes:
    """The file of an engine."""
    return f"engine {trt.surface['version']} {graph}".encode()


class _Network:
    def __init__(self, trt: FakeTrt) -> None:
        self.trt, self.name, self.num_inputs, self.num_outputs = trt, "", 1, 1

    def get_input(self, index: int) -> Wrapped:
        return self.trt.wrap("ITensor", SimpleNamespace(name="x", shape=self.trt.behaviour.input_shape))


class _Parser:
    def __init__(self, trt: FakeTrt, network: Wrapped, logger: Any) -> None:
        self.trt, self.network = trt, network
        self.num_errors = len(trt.behaviour.parse_errors)

    def parse_from_file(self, path: str) -> bool:
        assert Path(path).is_absolute()
        inside(self.network).name = Path(path).stem
        return not self.num_errors

    def get_error(self, index: int) -> Wrapped:
        text = self.trt.behaviour.parse_errors[index]
        said = SimpleNamespace(
            desc=lambda: text, node=lambda: index, node_name=lambda: f"/n{index}", node_operator=lambda: "Foo"
        )
        return self.trt.wrap("ParserError", said)


class _Config:
    def __init__(self, trt: FakeTrt) -> None:
        self.trt = trt
        self.flags = {"TF32"}
        self.pools: dict[str, int] = {}
        self.builder_optimization_level = 3
        self.num_compute_capabilities = 0
        self.capabilities: dict[int, str] = {}
        self.progress_monitor: Any = None
        self.cache: Any = None

    def summary(self) -> str:
        return f"{sorted(self.flags)} {self.pools} level {self.builder_optimization_level} {self.capabilities}"

    def set_memory_pool_limit(self, pool: FakeMember, nbytes: int) -> None:
        self.pools[pool.name] = nbytes

    def set_flag(self, flag: FakeMember) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: FakeMember) -> None:
        self.flags.discard(flag.name)

    def set_compute_capability(self, capability: FakeMember, index: int) -> bool:
        if self.trt.behaviour.refuse_capability or index >= self.num_compute_capabilities:
            return False
        self.capabilities[index] = capability.name
        return True

    def create_timing_cache(self, data: bytes) -> Wrapped:
        return self.trt.wrap("ITimingCache", SimpleNamespace(data=data, serialize=lambda: HostMemory(data + b"+")))

    def set_timing_cache(self, cache: Wrapped, ignore_mismatch: bool) -> bool:
        if inside(cache).data and self.trt.behaviour.refuse_timing_cache:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


# -- running -----------------------------------------------------------------------------------------------


class _Runtime:
    def __init__(self, trt: FakeTrt, logger: Any) -> None:
        assert logger.is_complete
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, data: Any) -> Wrapped | None:
        content = bytes(data).decode()
        graph = content.rsplit(" ", 1)[-1]
        if self.trt.behaviour.no_room:
            self.trt.complain(self.logger, "Error Code 2: OutOfMemory (Requested size was 1000 bytes.)")
            return None
        if content.encode() != engine_bytes(self.trt, graph) or graph not in self.trt.graphs:
            self.trt.complain(self.logger, "The engine plan file is not compatible with this version of TensorRT")
            return None
        return self.trt.wrap("ICudaEngine", _Engine(self.trt, graph, self.logger))


class _Engine:
    def __init__(self, trt: FakeTrt, name: str, logger: Any) -> None:
        self.trt, self.graph_name, self.logger = trt, name, logger
        self.graph = trt.graphs[name]
        self.names = [*self.graph.inputs, *self.graph.outputs]
        self.num_io_tensors = len(self.names)
        self.device_memory_size_v2 = self.graph.scratch

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> FakeMember:
        return FakeMember("TensorIOMode", "INPUT" if name in self.graph.inputs else "OUTPUT")

    def spec(self, name: str) -> TensorSpec:
        return {**self.graph.inputs, **self.graph.outputs}[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.spec(name).shape

    def get_tensor_dtype(self, name: str) -> FakeMember:
        names = {"uint8": "UINT8", "float32": "FLOAT", "int32": "INT32", "float16": "HALF"}
        return FakeMember("DataType", names[self.spec(name).dtype])

    def get_tensor_location(self, name: str) -> FakeMember:
        return FakeMember("TensorLocation", self.trt.behaviour.location)

    def create_execution_context(self, strategy: Any) -> Wrapped:
        chosen = inside(strategy).strategy if isinstance(strategy, Wrapped) else strategy
        assert chosen.name == "USER_MANAGED"
        return self.trt.wrap("IExecutionContext", _Context(self.trt, self))

    def create_runtime_config(self) -> Wrapped:
        return self.trt.wrap("IRuntimeConfig", _RuntimeConfig(self.trt))


class _RuntimeConfig:
    def __init__(self, trt: FakeTrt) -> None:
        self.trt, self.strategy = trt, None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Wrapped:
        trt = self.trt

        def deserialize(data: bytes) -> bool:
            trt.log.append(f"kernels {data!r}")
            return trt.behaviour.take_kernels

        cache = SimpleNamespace(deserialize=deserialize, serialize=lambda: HostMemory(trt.behaviour.kernels))
        return trt.wrap("IRuntimeCache", cache)

    def set_runtime_cache(self, cache: Wrapped) -> bool:
        return True


class _Context:
    def __init__(self, trt: FakeTrt, engine: _Engine) -> None:
        self.trt, self.engine_ = trt, engine
        self.addresses: dict[str, int] = {}
        self.scratch: int | None = None

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name == self.trt.behaviour.refuse_address:
            return False
        assert name not in self.addresses, "an address is set once"
        self.addresses[name] = address
        return name in self.engine_.names and address in self.trt.cuda.memory

    def set_device_memory(self, address: int, nbytes: int) -> None:
        assert nbytes >= self.engine_.graph.scratch
        self.scratch = address

    def is_stream_capturable(self, stream: int) -> bool:
        return self.trt.behaviour.capturable

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.trt.cuda
        assert stream == cuda.stream
        if self.trt.behaviour.refuse_enqueue == self.engine_.graph_name:
            self.trt.complain(self.engine_.logger, "Cask convolution execution")
            return False
        if self.scratch is None or set(self.addresses) != set(self.engine_.names):
            return False
        graph, addresses, scratch = self.engine_.graph, dict(self.addresses), self.scratch

        def work() -> None:
            given = {name: cuda.get(addresses[name], spec.shape, spec.dtype) for name, spec in graph.inputs.items()}
            cuda.memory[scratch][:] = 0xEE  # intermediate results
            for name, array in graph.compute(given).items():
                spec = graph.outputs[name]
                assert array.shape == spec.shape and array.dtype == spec.dtype, name
                cuda.put(addresses[name], array)

        cuda.send(work)
        return True


_IMPLEMENTATIONS: dict[str, Any] = {"Builder": _Builder, "OnnxParser": _Parser, "Runtime": _Runtime}
