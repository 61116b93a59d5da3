# SPDX-License-Identifier: Apache-2.0
"""PyTorch as an executor: memories are never changed, move between executors, and what is not there is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from recon_ros import Camera, load_network  # noqa: E402
from recon_ros.config import EngineConfig  # noqa: E402
from recon_ros.errors import InputError, NetworkError  # noqa: E402
from recon_ros.networks.graphs import StepGraphs, build_graphs  # noqa: E402
from recon_ros.runtimes import torch_executor  # noqa: E402
from recon_ros.runtimes.families import NetworkStep, make_step  # noqa: E402
from recon_ros.runtimes.torch_executor import TorchExecutor  # noqa: E402
from recon_ros.runtimes.torch_network import OpenedNetwork, open_network  # noqa: E402

FAMILIES = ("cut3r-small-linear", "dust3r-small-linear", "mast3r-small-conv", "spann3r-small")
CAMERA = Camera.from_focal(96, 64, 80.0)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def opened(name: str) -> OpenedNetwork:
    return open_network(name)


def graphs_of(name: str) -> StepGraphs:
    return build_graphs(opened(name).network, opened(name).card, 96, 64)


def step_of(name: str) -> NetworkStep:
    return make_step(TorchExecutor(graphs_of(name)), opened(name).card)


def pictures(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def run(step: NetworkStep, memory: Any, images: list[np.ndarray]) -> tuple[Any, list[np.ndarray]]:
    """Points of each image; a frame whose pose is not found leaves the memory as it was."""
    points = []
    for image in images:
        try:
            memory, prediction = step.step(memory, image, CAMERA)
            points.append(prediction.points_self)
        except InputError as error:
            assert error.reason == "pose"
    return memory, points


@pytest.mark.parametrize("name", FAMILIES)
def test_a_memory_moves_to_another_executor_in_mid_stream(name: str) -> None:
    images = pictures(7)
    whole = step_of(name)
    _, expected = run(whole, whole.initial_memory(), images)
    first, second = step_of(name), step_of(name)
    memory, before = run(first, first.initial_memory(), images[:4])
    saved = first.save_memory(memory)
    first.close()
    _, after = run(second, second.load_memory(saved), images[4:])
    assert len(expected) >= 5
    np.testing.assert_array_equal(np.stack(before + after), np.stack(expected))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_changes_no_memory_and_gives_arrays_of_its_own(name: str) -> None:
    executor, images = TorchExecutor(graphs_of(name)), pictures(3)
    memory, _ = executor.step(executor.initial(), images[0])
    before = executor.read(memory)
    _, first = executor.step(memory, images[1])
    for array in first.values():
        array[...] = 0
    _, second = executor.step(memory, images[2])
    _, again = executor.step(memory, images[1])
    assert all(np.array_equal(array, before[name]) for name, array in executor.read(memory).items())
    assert any(not np.array_equal(again[name], second[name]) for name in again)
    assert not np.array_equal(first["descriptor"], again["descriptor"]), "zeroed, without effect on what comes"
    assert set(again) == set(executor.plan.fetched)


def test_a_memory_that_is_not_of_the_plan_is_refused() -> None:
    executor = TorchExecutor(graphs_of("spann3r-small"))
    arrays = executor.read(executor.initial())
    executor.write(arrays)
    damages: list[tuple[dict[str, Any], str]] = [
        ({name: array for name, array in arrays.items() if name != "query"}, "has .*query"),
        ({**arrays, "extra": np.zeros(1)}, "extra"),
        ({**arrays, "query": arrays["query"][:, 1:]}, "query of this spann3r's memory is float32"),
        ({**arrays, "frames": arrays["frames"].astype(np.int64)}, "frames .* is int32"),
    ]
    for damaged, message in damages:
        with pytest.raises(NetworkError, match=message):
            executor.write(damaged)


def test_an_image_that_is_not_of_the_plan_is_refused() -> None:
    executor = TorchExecutor(graphs_of("cut3r-small-linear"))
    for image in (np.zeros((64, 64, 3), np.uint8), np.zeros((64, 96, 3), np.float32)):
        with pytest.raises(NetworkError, match=r"this cut3r takes uint8 \(64, 96, 3\)"):
            executor.step(executor.initial(), image)  # type: ignore[arg-type]


def test_what_this_machine_has_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    graphs = graphs_of("cut3r-small-linear")
    with pytest.raises(NetworkError, match="torch mode 'graphs' needs a CUDA device"):
        TorchExecutor(graphs, mode="graphs")
    with pytest.raises(NetworkError, match="sees no CUDA device here"):
        TorchExecutor(graphs, device="cuda")
    with pytest.raises(NetworkError, match="not 'jit'"):
        TorchExecutor(graphs, mode="jit")


def test_compiling_happens_before_the_first_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every module, at static shapes; that it cannot be done is known then."""
    compiled: list[Any] = []
    calls: list[Any] = []

    def compile_module(module: Any, dynamic: bool) -> Callable[..., Any]:
        assert not dynamic
        compiled.append(module)

        def call(*tensors: Any) -> Any:
            calls.append(module)
            assert all(tensor.is_inference() for tensor in tensors), "of another kind, it would be compiled anew"
            return module(*tensors)

        return call

    monkeypatch.setattr(torch_executor.torch, "compile", compile_module)
    graphs = graphs_of("spann3r-small")
    executor = TorchExecutor(graphs, mode="compile", precision="bf16")
    assert compiled == calls == list(graphs.modules.values())
    assert executor.runtime == "torch bf16 compile"
    memory, _ = executor.step(executor.initial(), pictures(1)[0])
    for again in (memory, executor.write(executor.read(memory))):
        executor.step(again, pictures(1)[0])

    def break_down(module: Any, dynamic: bool) -> Any:
        def call(*tensors: Any) -> Any:
            raise RuntimeError("no C++ compiler\nlong story")

        return call

    monkeypatch.setattr(torch_executor.torch, "compile", break_down)
    with pytest.raises(NetworkError, match=r"torch mode 'compile' failed: RuntimeError: no C\+\+ compiler$"):
        TorchExecutor(graphs, mode="compile")


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "graphs", "compile_graphs"])
@pytest.mark.parametrize("name", FAMILIES)
def test_on_a_gpu_it_says_the_same(name: str, mode: str) -> None:
    images = pictures(6)
    here = TorchExecutor(build_graphs(open_network(name).network, opened(name).card, 96, 64))
    there = TorchExecutor(build_graphs(open_network(name).network, opened(name).card, 96, 64), "cuda", mode)
    mine, other = here.initial(), there.initial()
    for image in images:
        mine, expected = here.step(mine, image)
        other, found = there.step(other, image)
        for output, array in expected.items():
            assert np.abs(found[output] - array).mean() <= 1e-3 * np.abs(array).mean() + 1e-6, output


# --- a network by name


def test_the_first_image_decides_the_size() -> None:
    source = load_network("cut3r-small-linear")
    assert source.runtime == "torch fp32"
    with pytest.raises(InputError, match="50x32; its sides must be multiples of 16") as error:
        source.step(source.initial_memory(), np.zeros((32, 50, 3), np.uint8), None)
    assert error.value.reason == "image_size"
    memory, _ = source.step(source.initial_memory(), pictures(1)[0], None)
    with pytest.raises(InputError, match="not of the first one's size 96x64") as error:
        source.step(memory, pictures(1, 48, 64)[0], None)
    assert error.value.reason == "image_size"
    _, prediction = source.step(source.initial_memory(), pictures(1, 48, 64)[0], None)
    assert prediction.points_self.shape == (48, 64, 3)


def test_a_named_network_takes_a_saved_memory_before_any_image() -> None:
    images, first, second = pictures(3), load_network("spann3r-small"), load_network("spann3r-small")
    memory = first.load_memory(first.save_memory(first.initial_memory()))
    memory, _ = first.step(memory, images[0], None)
    saved = first.save_memory(memory)
    _, expected = first.step(memory, images[1], CAMERA)
    _, found = second.step(second.load_memory(saved), images[1], CAMERA)
    np.testing.assert_array_equal(found.points_self, expected.points_self)
    with pytest.raises(NetworkError, match="does not say of which size"):
        load_network("spann3r-small").load_memory({"frames": np.zeros((), np.int32)})


def test_every_mode_can_be_asked_for() -> None:
    assert EngineConfig.__dataclass_fields__["torch_mode"].metadata["choices"] == torch_executor.MODES
