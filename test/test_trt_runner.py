# SPDX-License-Identifier: Apache-2.0
"""The TensorRT executor on simulated engines: what it computes is compared with the same recurrence in numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trt_fake import Arrays, Behaviour, FakeCuda, FakeTrt, Simulated, engine_bytes, load_surface, surface_names

from recon_ros.errors import NetworkError
from recon_ros.networks.plan import GraphSpec, StepPlan, TensorSpec
from recon_ros.runtimes.trt.engine import EngineRefused
from recon_ros.runtimes.trt.runner import DeviceMemory, TrtExecutor

H, W = 4, 6
OLDEST, RTX = "tensorrt_10.3.0", "tensorrt_rtx_1.7.1.116"

TENSORS = {
    "image": TensorSpec((H, W, 3), "uint8"),
    "features": TensorSpec((3,), "float32"),
    "state": TensorSpec((2, 3), "float32"),
    "state.next": TensorSpec((2, 3), "float32"),
    "frames": TensorSpec((), "int32"),
    "frames.next": TensorSpec((), "int32"),
    "points": TensorSpec((H, W, 3), "float32"),
    "confidence": TensorSpec((H, W), "float32"),
    "health": TensorSpec((), "float32"),
}
PLAN = StepPlan(
    family="cut3r",
    width=W,
    height=H,
    graphs=(
        GraphSpec("encode", ("image",), ("features",)),
        GraphSpec("decode", ("features", "state", "frames"), ("points", "confidence", "state.next", "health")),
        GraphSpec("write", ("frames", "state.next"), ("frames.next",)),
    ),
    tensors=TENSORS,
    memory=("state", "frames"),
    fetched=("points", "health"),
)


def encode(given: Arrays) -> Arrays:
    return {"features": given["image"].astype(np.float32).mean(axis=(0, 1)) / np.float32(255)}


def decode(given: Arrays) -> Arrays:
    state = given["state"] * np.float32(0.5) + given["features"]
    points = np.broadcast_to(state.sum(axis=0) + np.float32(given["frames"]), (H, W, 3)).astype(np.float32)
    return {
        "points": points,
        "confidence": points[..., 0].copy(),
        "state.next": state,
        "health": np.abs(points).mean(dtype=np.float32),
    }


def write(given: Arrays) -> Arrays:
    return {"frames.next": np.int32(given["frames"] + 1 + np.isnan(given["state.next"]).sum()).reshape(())}


COMPUTE = {"encode": encode, "decode": decode, "write": write}
INITIAL: Arrays = {"state": np.arange(6, dtype=np.float32).reshape(2, 3), "frames": np.array(3, np.int32)}


def reference(memory: Arrays, image: NDArray[np.uint8]) -> tuple[Arrays, Arrays]:
    """One step in numpy."""
    tensors: Arrays = {**memory, "image": image}
    for graph in PLAN.graphs:
        tensors.update(COMPUTE[graph.name]({name: tensors[name] for name in graph.inputs}))
    after = {name: tensors[f"{name}.next"] for name in PLAN.memory}
    return after, {name: tensors[name] for name in PLAN.fetched}


class FakeBundle:
    precision = "fp16"

    def __init__(self, plan: StepPlan = PLAN, initial: Arrays = INITIAL) -> None:
        self.plan, self._initial = plan, initial

    def initial(self) -> Arrays:
        return {name: array.copy() for name, array in self._initial.items()}


def simulated(plan: StepPlan = PLAN) -> dict[str, Simulated]:
    return {
        graph.name: Simulated(
            {name: plan.tensors[name] for name in graph.inputs},
            {name: plan.tensors[name] for name in graph.outputs},
            COMPUTE[graph.name],
            scratch=100 * (index + 1),
        )
        for index, graph in enumerate(plan.graphs)
    }


class Bench:
    """An executor with all that it stands on."""

    def __init__(
        self,
        folder: Path,
        surface: str = OLDEST,
        use_graphs: bool = True,
        behaviour: Behaviour | None = None,
        graphs: dict[str, Simulated] | None = None,
        bundle: FakeBundle | None = None,
        cuda: FakeCuda | None = None,
    ) -> None:
        self.cuda = cuda or FakeCuda()
        self.trt = FakeTrt(load_surface(surface), self.cuda, graphs or simulated(), behaviour or Behaviour())
        self.files = {graph.name: folder / f"{graph.name}.engine" for graph in PLAN.graphs}
        for name, file in self.files.items():
            if not file.exists():
                file.write_bytes(engine_bytes(self.trt, name))
        self.bundle = bundle or FakeBundle()
        self.use_graphs = use_graphs

    def open(self) -> TrtExecutor:
        return TrtExecutor(self.bundle, self.files, self.trt.library, self.cuda, self.use_graphs)


def images(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (H, W, 3), np.uint8) for _ in range(count)]


def assert_same(left: Arrays, right: Arrays) -> None:
    assert set(left) == set(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
        assert left[name].dtype == right[name].dtype and left[name].shape == right[name].shape, name


@pytest.mark.parametrize("surface", surface_names())
@pytest.mark.parametrize("use_graphs", [True, False])
def test_recurrence(tmp_path: Path, surface: str, use_graphs: bool) -> None:
    bench = Bench(tmp_path, surface, use_graphs)
    executor = bench.open()
    assert executor.uses_graphs == use_graphs
    memory, expected = executor.initial(), INITIAL
    for image in images(8):
        memory, outputs = executor.step(memory, image)
        expected, wanted = reference(expected, image)
        assert_same(outputs, wanted)
        assert_same(executor.read(memory), expected)
    executor.close()


def test_initial_is_of_the_bundle(tmp_path: Path) -> None:
    executor = Bench(tmp_path).open()
    assert_same(executor.read(executor.initial()), INITIAL)


def test_name(tmp_path: Path) -> None:
    assert Bench(tmp_path).open().runtime == "tensorrt 10.3.0 fp16"


def test_a_step_never_changes_its_memory(tmp_path: Path) -> None:
    executor = Bench(tmp_path).open()
    memory = executor.initial()
    for image in images(3):
        before = executor.read(memory)
        after, _ = executor.step(memory, image)
        assert_same(executor.read(memory), before)
        memory = after


def test_discarded_steps(tmp_path: Path) -> None:
    executor = Bench(tmp_path).open()
    memory, expected = executor.initial(), INITIAL
    for index, image in enumerate(images(9)):
        after, outputs = executor.step(memory, image)
        expected_after, wanted = reference(expected, image)
        assert_same(outputs, wanted)
        if index % 3:  # as a driver does that keeps its reference
            memory, expected = after, expected_after


def test_a_replaced_memory_is_refused(tmp_path: Path) -> None:
    executor = Bench(tmp_path).open()
    first = executor.initial()
    image = images(1)[0]
    discarded, _ = executor.step(first, image)
    second, _ = executor.step(first, image)
    for call in (lambda: executor.step(discarded, image), lambda: executor.read(discarded)):
        with pytest.raises(NetworkError, match="is gone"):
            call()
    executor.step(second, image)  # replaces the first
    with pytest.raises(NetworkError, match="is gone"):
        executor.step(first, image)
    executor.read(second)


def test_write_keeps_the_latest(tmp_path: Path) -> None:
    executor = Bench(tmp_path).open()
    image = images(1)[0]
    first = executor.initial()
    latest, _ = executor.step(first, image)
    before = executor.read(latest)
    written = executor.write({"state": INITIAL["state"] + 1, "frames": np.array(9, np.int32)})
    assert_same(executor.read(latest), before)
    assert_same(executor.read(written), {"state": INITIAL["state"] + 1, "frames": np.array(9, np.int32)})
    with pytest.raises(NetworkError, match="is gone"):
        executor.read(first)


def test_memory_of_another_executor(tmp_path: Path) -> None:
    one, other = Bench(tmp_path).open(), Bench(tmp_path).open()
    image = images(1)[0]
    memory, _ = one.step(one.initial(), image)
    with pytest.raises(NetworkError, match="not of this executor"):
        other.step(memory, image)
    taken = other.write(one.read(memory))
    assert_same(other.step(taken, image)[1], one.step(memory, image)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": None}, "missing.*frames"),
        ({"more": np.zeros(1, np.float32)}, "unknown.*more"),
        ({"state": np.zeros((3, 2), np.float32)}, r"state of .* not float32 \(3, 2\)"),
        ({"frames": np.array(1.0, np.float32)}, "frames of .* not float32"),
    ],
)
def test_write_refuses(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    executor = Bench(tmp_path).open()
    arrays = {name: array for name, array in {**INITIAL, **change}.items() if array is not None}
    with pytest.raises(NetworkError, match=message):
        executor.write(arrays)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["accept", "discard", "move", "restart"]), min_size=1, max_size=14),
    st.integers(0, 2**16),
    st.booleans(),
)
def test_any_course(tmp_path_factory: pytest.TempPathFactory, course: list[str], seed: int, use_graphs: bool) -> None:
    """Whatever a driver does, outputs are those of numpy, with the same memories."""
    executor = Bench(tmp_path_factory.mktemp("course"), use_graphs=use_graphs).open()
    memory, expected = executor.initial(), INITIAL
    for action, image in zip(course, images(len(course), seed), strict=True):
        after, outputs = executor.step(memory, image)
        expected_after, wanted = reference(expected, image)
        assert_same(outputs, wanted)
        if action == "restart":
            memory, expected = executor.initial(), INITIAL
        elif action == "accept":
            memory, expected = after, expected_after
        elif action == "move":
            memory, expected = executor.write(executor.read(after)), expected_after
        assert_same(executor.read(memory), expected)


def test_results_are_the_hosts_own(tmp_path: Path) -> None:
    executor = Bench(tmp_path).open()
    one, two = images(2)
    memory, first = executor.step(executor.initial(), one)
    kept = {name: array.copy() for name, array in first.items()}
    executor.step(memory, two)
    assert_same(first, kept)


def test_only_what_is_fetched_is_copied(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = bench.open()
    memory = executor.initial()
    image = images(1)[0]
    for _ in range(3):
        bench.cuda.downloads.clear()
        memory, outputs = executor.step(memory, image)
        assert set(outputs) == set(PLAN.fetched)
        assert len(bench.cuda.downloads) == len(set(bench.cuda.downloads)) == len(PLAN.fetched)


def test_a_memory_can_be_fetched(tmp_path: Path) -> None:
    plan = replace(PLAN, fetched=("points", "state.next"))
    executor = Bench(tmp_path, bundle=FakeBundle(plan)).open()
    memory = executor.initial()
    for image in images(3):
        memory, outputs = executor.step(memory, image)
        np.testing.assert_array_equal(outputs["state.next"], executor.read(memory)["state"])


def test_everything_is_allocated_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = bench.open()
    # features, image, points, confidence, health; two each of state and frames; one block for all contexts.
    assert len(bench.cuda.memory) == 5 + 2 * 2 + 1
    assert len(bench.cuda.host) == 1 + 2 + 2
    memory = executor.initial()
    for image in images(4):
        memory, _ = executor.step(memory, image)
    assert len(bench.cuda.memory) == 10 and len(bench.cuda.host) == 5


def test_a_graph_per_parity(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = bench.open()
    assert [len(graph) for graph in bench.cuda.graphs] == [3, 3]
    memory = executor.initial()
    used = []
    for image in images(6):
        used.append(memory.parity)
        memory, _ = executor.step(memory, image)
    assert bench.cuda.launches == used
    assert set(used) == {0, 1} and used[:2] * 3 == used


def test_warm_up_is_on_defined_values(tmp_path: Path) -> None:
    """What lies in fresh memory may be an index far outside, which would kill the process's CUDA."""
    graphs, seen = simulated(), []

    def watched(given: Arrays) -> Arrays:
        seen.append((int(given["frames"]), float(np.abs(given["state"]).max()), float(given["features"].max())))
        return decode(given)

    graphs["decode"] = replace(graphs["decode"], compute=watched)
    Bench(tmp_path, graphs=graphs).open()
    assert seen == [(3, 5.0, 0.0), (4, 2.5, 0.0)]


def test_without_graphs_nothing_is_captured(tmp_path: Path) -> None:
    bench = Bench(tmp_path, use_graphs=False)
    executor = bench.open()
    executor.step(executor.initial(), images(1)[0])
    assert not bench.cuda.graphs and not bench.cuda.launches


def test_capture_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cuda = FakeCuda()
    cuda.fail_capture = True
    executor = Bench(tmp_path, cuda=cuda).open()
    assert not executor.uses_graphs
    assert "without CUDA graphs" in caplog.text and "not permitted" in caplog.text
    image = images(1)[0]
    assert_same(executor.step(executor.initial(), image)[1], reference(INITIAL, image)[1])


def test_rtx_says_it_cannot_be_captured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(tmp_path, RTX, behaviour=Behaviour(capturable=False))
    executor = bench.open()
    assert not executor.uses_graphs and not bench.cuda.graphs
    assert "cannot be captured" in caplog.text
    image = images(1)[0]
    assert_same(executor.step(executor.initial(), image)[1], reference(INITIAL, image)[1])


def test_rtx_keeps_its_kernels(tmp_path: Path) -> None:
    Bench(tmp_path, RTX).open().close()
    kept = tmp_path / "decode.engine.kernels"
    assert kept.read_bytes() == b"compiled"
    first = kept.stat().st_ino
    again = Bench(tmp_path, RTX)
    again.open()
    assert again.trt.log.count("kernels b'compiled'") == 3
    assert kept.stat().st_ino == first, "written again though nothing is new"
    other = Bench(tmp_path, RTX, behaviour=Behaviour(take_kernels=False, kernels=b"anew"))
    other.open()
    assert kept.read_bytes() == b"anew"


def test_full_tensorrt_leaves_no_kernels(tmp_path: Path) -> None:
    Bench(tmp_path).open()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decode.engine", "encode.engine", "write.engine"]


@pytest.mark.parametrize("content", [b"", b"engine 10.7.0 decode", b"engine 10.3.0 deco", b"\x00" * 99])
def test_foreign_engine(tmp_path: Path, content: bytes) -> None:
    bench = Bench(tmp_path)
    bench.files["decode"].write_bytes(content)
    with pytest.raises(EngineRefused, match=r"build it again") as caught:
        bench.open()
    assert "decode.engine" in str(caught.value)
    assert bench.cuda.closed


def test_the_reason_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.files["decode"].write_bytes(b"engine 10.7.0 decode")
    with pytest.raises(NetworkError, match=r"another version or for another GPU: .*not compatible with this version"):
        bench.open()


def test_no_room_is_not_the_files_fault(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"no room for the engine encode\.engine.*OutOfMemory") as caught:
        Bench(tmp_path, behaviour=Behaviour(no_room=True)).open()
    assert not isinstance(caught.value, EngineRefused)


def test_missing_engine(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.files["write"].unlink()
    with pytest.raises(NetworkError, match=r"cannot read the engine"):
        bench.open()
    del bench.files["write"]
    with pytest.raises(NetworkError, match=r"no engine for graph write"):
        bench.open()


@pytest.mark.parametrize(
    ("graph", "inputs", "outputs", "message"),
    [
        (
            "encode",
            {"image": TensorSpec((H, W + 1, 3), "uint8")},
            {},
            r"image has the shape \(4, 7, 3\), not \(4, 6, 3\)",
        ),
        ("encode", {"image": TensorSpec((H, W, 3), "float32")}, {}, "image is DataType.FLOAT, not uint8"),
        ("encode", {"picture": TensorSpec((1,), "uint8")}, {}, "input picture is unknown"),
        ("encode", {}, {"more": TensorSpec((1,), "float32")}, "output more is unknown"),
        ("decode", {}, {"health": None}, "output health is missing"),
        ("decode", {"points": TensorSpec((H, W, 3), "float32")}, {"points": None}, "input points is unknown"),
    ],
)
def test_engine_of_another_graph(
    tmp_path: Path, graph: str, inputs: dict[str, Any], outputs: dict[str, Any], message: str
) -> None:
    graphs = simulated()
    changed = {**graphs[graph].outputs, **outputs}
    graphs[graph] = replace(
        graphs[graph],
        inputs={**graphs[graph].inputs, **inputs},
        outputs={name: spec for name, spec in changed.items() if spec is not None},
    )
    with pytest.raises(NetworkError, match=f"not one of graph {graph}: .*{message}"):
        Bench(tmp_path, graphs=graphs).open()


def test_an_input_that_nothing_needs_may_be_gone(tmp_path: Path) -> None:
    graphs = simulated()
    graphs["write"] = replace(
        graphs["write"],
        inputs={"frames": TENSORS["frames"]},
        compute=lambda given: {"frames.next": np.int32(given["frames"] + 1).reshape(())},
    )
    executor = Bench(tmp_path, graphs=graphs).open()
    memory, _ = executor.step(executor.initial(), images(1)[0])
    assert executor.read(memory)["frames"] == 4


def test_tensors_of_the_host(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="image is not in the GPU's memory"):
        Bench(tmp_path, behaviour=Behaviour(location="HOST")).open()


def test_refused_address(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="refuses the buffer of state"):
        Bench(tmp_path, behaviour=Behaviour(refuse_address="state")).open()


def test_refused_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, use_graphs=False)
    executor = bench.open()
    memory = executor.initial()
    image = images(1)[0]
    kept, _ = executor.step(memory, image)
    bench.trt.behaviour.refuse_enqueue = "write"
    with pytest.raises(NetworkError, match="cannot run graph write: Cask convolution"):
        executor.step(kept, image)
    with pytest.raises(NetworkError, match="is gone"):
        executor.step(memory, image)  # was overwritten in part
    bench.trt.behaviour.refuse_enqueue = ""
    executor.step(kept, image)


def test_the_device_fails(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = bench.open()
    memory = executor.initial()
    bench.cuda.fail_synchronise = True
    with pytest.raises(NetworkError, match="fell off the bus"):
        executor.step(memory, images(1)[0])
    executor.close()


def test_image_of_another_size(tmp_path: Path) -> None:
    executor = Bench(tmp_path).open()
    memory = executor.initial()
    for image in (np.zeros((H, W, 4), np.uint8), np.zeros((H, W, 3), np.float32)):
        with pytest.raises(NetworkError, match=r"takes uint8 \(4, 6, 3\)"):
            executor.step(memory, image)
    executor.read(memory)


def test_close(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    executor = bench.open()
    memory = executor.initial()
    executor.close()
    executor.close()
    assert bench.cuda.closed and not bench.cuda.memory
    for call in (executor.initial, lambda: executor.read(memory), lambda: executor.write(INITIAL)):
        with pytest.raises(NetworkError, match="was closed"):
            call()


def test_a_memory_is_not_compared() -> None:
    assert DeviceMemory(0, 1, None) != DeviceMemory(0, 1, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graphs": PLAN.graphs[1:]}, "needs features, which nothing before it gives"),
        ({"graphs": PLAN.graphs[:2]}, "memory frames does not go on"),
        ({"graphs": (*PLAN.graphs, PLAN.graphs[0])}, "gives features, which is there already"),
        ({"fetched": ("depth",)}, "depth cannot be fetched"),
        ({"tensors": {**TENSORS, "frames.next": TensorSpec((1,), "int32")}}, "memory frames is"),
    ],
)
def test_plans_that_are_none(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        Bench(tmp_path, bundle=FakeBundle(replace(PLAN, **change))).open()
