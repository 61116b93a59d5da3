# SPDX-License-Identifier: Apache-2.0
"""Building engines: with TensorRT-RTX for real, which needs no GPU for it; with the full TensorRT simulated."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import quick
from hypothesis import given
from hypothesis import strategies as st
from trt_fake import Behaviour, FakeCuda, FakeTrt, load_surface

from recon_ros.errors import NetworkError
from recon_ros.runtimes.trt import rtx
from recon_ros.runtimes.trt.builder import BuildOptions, build_engine
from recon_ros.runtimes.trt.engine import open_engine, open_runtime
from recon_ros.runtimes.trt.library import Library, load_library
from recon_ros.runtimes.trt.progress import BuildCancelled, Part, PhaseTree


class Watch:
    """A `ProgressSink` that keeps what it is told; cancels from a fraction on, or raises."""

    def __init__(self, cancel_at: float = 2.0, failure: BaseException | None = None) -> None:
        self.told: list[tuple[str, float]] = []
        self.cancel_at, self.failure = cancel_at, failure

    def update(self, phase: str, fraction: float) -> bool:
        self.told.append((phase, fraction))
        if fraction >= self.cancel_at and self.failure is not None:
            raise self.failure
        return fraction < self.cancel_at

    @property
    def fractions(self) -> list[float]:
        return [fraction for _, fraction in self.told]


# -- for real, with TensorRT-RTX ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Library:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    return load_library("tensorrt_rtx")


def write_onnx(path: Path, dtype: str = "float16", rows: int | str = 8, operator: str = "Relu") -> Path:
    """One recurrent step: x uint8, state float32 → y, state.next; the products in `dtype`."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    inner = kinds.FLOAT16 if dtype == "float16" else kinds.FLOAT
    weights = np.random.default_rng(0).normal(size=(16, 16)).astype(dtype) / 8
    nodes = [
        helper.make_node("Cast", ["x"], ["x_inner"], to=inner),
        helper.make_node("Cast", ["state"], ["state_inner"], to=inner),
        helper.make_node("Add", ["x_inner", "state_inner"], ["sum"]),
        helper.make_node("MatMul", ["sum", "weights"], ["product"]),
        helper.make_node(operator, ["product"], ["after"], name="act"),
        helper.make_node("Cast", ["after"], ["state.next"], to=kinds.FLOAT),
        helper.make_node("Sqrt", ["state.next"], ["y"]),
    ]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "step",
        [tensor("x", kinds.UINT8, [rows, 16]), tensor("state", kinds.FLOAT, [rows, 16])],
        [tensor("y", kinds.FLOAT, [rows, 16]), tensor("state.next", kinds.FLOAT, [rows, 16])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("target", ["8.6", "8.9", "12.0", "8.6,8.9,12.0", None])
def test_rtx_builds(real: Library, tmp_path: Path, dtype: str, target: str | None) -> None:
    onnx, watch = write_onnx(tmp_path / "step.onnx", dtype), Watch()
    engine = tmp_path / "new" / "step.engine"
    build_engine(real, onnx, engine, BuildOptions(compute_capability=target), watch)
    assert engine.stat().st_size > 1000
    assert [path.name for path in engine.parent.iterdir()] == ["step.engine"]
    assert watch.fractions == sorted(watch.fractions) and watch.fractions[0] == 0 and watch.told[-1] == ("done", 1.0)
    assert len(set(watch.fractions)) > 10 and any("Building engine" in phase for phase, _ in watch.told)


@pytest.mark.parametrize("target", ["8.7", "9.0", "11.0", "8.6,8.7", "nonsense"])
def test_rtx_refuses(real: Library, tmp_path: Path, target: str) -> None:
    onnx = write_onnx(tmp_path / "step.onnx")
    with pytest.raises(NetworkError, match=r"does not build for compute capability .*, only for 7\.5, 8\.0, 8\.6"):
        build_engine(real, onnx, tmp_path / "step.engine", BuildOptions(compute_capability=target), Watch())
    assert not (tmp_path / "step.engine").exists()


def test_rtx_targets(real: Library) -> None:
    assert set(rtx.targets(real)) >= {"8.0", "8.6", "8.9", "12.0"}


def test_rtx_cannot_read(real: Library, tmp_path: Path) -> None:
    onnx = tmp_path / "step.onnx"
    with pytest.raises(NetworkError, match=r"no ONNX file at"):
        build_engine(real, onnx, tmp_path / "e", BuildOptions(), Watch())
    onnx.write_bytes(b"this is no protobuf")
    with pytest.raises(NetworkError, match=r"cannot read step\.onnx: it holds no graph"):
        build_engine(real, onnx, tmp_path / "e", BuildOptions(), Watch())
    whole = write_onnx(onnx).read_bytes()
    onnx.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NetworkError, match=r"cannot read step\.onnx: "):
        build_engine(real, onnx, tmp_path / "e", BuildOptions(), Watch())
    write_onnx(onnx, operator="NoSuchOperator")
    with pytest.raises(NetworkError, match=r"cannot read step\.onnx: node 4 act \(NoSuchOperator\): "):
        build_engine(real, onnx, tmp_path / "e", BuildOptions(), Watch())
    write_onnx(onnx, rows="n")
    with pytest.raises(NetworkError, match=r"input x of step\.onnx has the shape \(-1, 16\); export it static"):
        build_engine(real, onnx, tmp_path / "e", BuildOptions(), Watch())
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("cancel_at", [0.0, 0.02, 0.3, 0.6])
def test_rtx_is_cancelled(real: Library, tmp_path: Path, cancel_at: float) -> None:
    onnx, watch = write_onnx(tmp_path / "step.onnx"), Watch(cancel_at)
    with pytest.raises(BuildCancelled):
        build_engine(real, onnx, tmp_path / "step.engine", BuildOptions(compute_capability="8.6"), watch)
    assert [path.name for path in tmp_path.iterdir()] == ["step.onnx"]
    assert watch.fractions[-1] >= cancel_at and max(watch.fractions[:-1], default=0) <= cancel_at


def test_rtx_survives_a_sink_that_raises(real: Library, tmp_path: Path) -> None:
    onnx = write_onnx(tmp_path / "step.onnx")
    with pytest.raises(KeyboardInterrupt):
        build_engine(
            real, onnx, tmp_path / "e", BuildOptions(compute_capability="8.6"), Watch(0.3, KeyboardInterrupt())
        )
    assert not (tmp_path / "e").exists()


def test_rtx_without_a_gpu_takes_no_engine(real: Library, tmp_path: Path) -> None:
    """The message of an engine that is refused, from the real library; on a GPU the engine would be taken."""
    from recon_ros.runtimes.trt.device import find_gpu

    if find_gpu() is not None:
        pytest.skip("there is a GPU")
    engine = tmp_path / "step.engine"
    build_engine(real, write_onnx(tmp_path / "step.onnx"), engine, BuildOptions(compute_capability="8.6"), Watch())
    with pytest.raises(NetworkError, match=r"does not take the engine step\.engine.*build it again"):
        open_engine(real, open_runtime(real), engine)


# -- simulated ---------------------------------------------------------------------------------------------


def fake(surface: str = "tensorrt_10.3.0", **behaviour: Any) -> FakeTrt:
    return FakeTrt(load_surface(surface), FakeCuda(), behaviour=Behaviour(**behaviour))


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    path = tmp_path / "step.onnx"
    path.write_bytes(b"a graph")
    return path


def test_options_arrive(onnx: Path, tmp_path: Path) -> None:
    trt = fake()
    build_engine(trt.library, onnx, tmp_path / "e", BuildOptions(workspace_mb=5, optimization_level=4), Watch())
    build_engine(trt.library, onnx, tmp_path / "e", BuildOptions(tf32=True), Watch())
    assert trt.log == [
        f"[] {{'WORKSPACE': {5 * 2**20}}} level 4 {{}}",
        f"['TF32'] {{'WORKSPACE': {4096 * 2**20}}} level 3 {{}}",
    ]


def test_options_of_rtx_arrive(onnx: Path, tmp_path: Path) -> None:
    trt = fake("tensorrt_rtx_1.7.1.116")
    options = BuildOptions(compute_capability="8.6, 12.0", timing_cache=tmp_path / "cache")
    build_engine(trt.library, onnx, tmp_path / "e", options, Watch())
    assert trt.log == [
        f"['REQUIRE_USER_ALLOCATION'] {{'WORKSPACE': {4096 * 2**20}}} level 3 {{0: 'SM86', 1: 'SM120'}}",
    ]
    assert not (tmp_path / "cache").exists()


def test_refused_capability(onnx: Path, tmp_path: Path) -> None:
    trt = fake("tensorrt_rtx_1.7.1.116", refuse_capability=True)
    with pytest.raises(NetworkError, match=r"refuses compute capability 8\.6"):
        build_engine(trt.library, onnx, tmp_path / "e", BuildOptions(compute_capability="8.6"), Watch())


def test_full_tensorrt_has_no_target(onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"for the GPU it runs on, not for compute capability 8\.7"):
        build_engine(fake().library, onnx, tmp_path / "e", BuildOptions(compute_capability="8.7"), Watch())


@pytest.mark.parametrize("options", [{"workspace_mb": 0}, {"optimization_level": 6}, {"optimization_level": -1}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(NetworkError, match=f"{next(iter(options))} is "):
        BuildOptions(**options)


def test_all_errors_of_the_parser_are_told(onnx: Path, tmp_path: Path) -> None:
    trt = fake(parse_errors=("unsupported type", "bad shape"))
    with pytest.raises(NetworkError, match=r"node 0 /n0 \(Foo\): unsupported type; node 1 /n1 \(Foo\): bad shape"):
        build_engine(trt.library, onnx, tmp_path / "e", BuildOptions(), Watch())


def test_the_builders_error_is_told(onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"cannot build step\.onnx: Could not find any implementation"):
        build_engine(fake(build_fails=True).library, onnx, tmp_path / "e", BuildOptions(), Watch())


def test_no_gpu_for_the_full_one(onnx: Path, tmp_path: Path) -> None:
    trt = fake()

    def no_builder(logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.__dict__["Builder"] = no_builder
    with pytest.raises(NetworkError, match=r"tensorrt 10\.3\.0 does not start .*needs a GPU"):
        build_engine(trt.library, onnx, tmp_path / "e", BuildOptions(), Watch())


def test_timing_cache(onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "folder" / "cache"
    options = BuildOptions(timing_cache=cache)
    for expected in (b"+", b"++"):
        build_engine(fake().library, onnx, tmp_path / "e", options, Watch())
        assert cache.read_bytes() == expected
    with caplog.at_level("INFO"):
        build_engine(fake(refuse_timing_cache=True).library, onnx, tmp_path / "e", options, Watch())
    assert "of another GPU or version" in caplog.text
    assert cache.read_bytes() == b"+"


def test_a_lost_timing_cache_does_no_harm(onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    options = BuildOptions(timing_cache=tmp_path / "file" / "cache")
    build_engine(fake().library, onnx, tmp_path / "e", options, Watch())
    assert (tmp_path / "e").exists() and "timing cache is lost" in caplog.text


def test_full_disk(onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out" / "e"
    target.parent.mkdir()
    target.write_bytes(b"the one before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NetworkError, match=r"cannot write .*No space left on device"):
        build_engine(fake().library, onnx, target, BuildOptions(), Watch())
    assert [path.name for path in target.parent.iterdir()] == ["e"] and target.read_bytes() == b"the one before"


def test_who_reads_the_old_engine_goes_on(onnx: Path, tmp_path: Path) -> None:
    target = tmp_path / "e"
    target.write_bytes(b"the one before")
    with target.open("rb") as reader:
        build_engine(fake().library, onnx, target, BuildOptions(), Watch())
        assert reader.read() == b"the one before"
    assert target.read_bytes() == b"engine 10.3.0 step"


def test_without_a_sink_the_log_is_told(onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        build_engine(fake().library, onnx, tmp_path / "e", BuildOptions())
    assert "engine of step.onnx: 0 %" in caplog.text and "100 %, done" in caplog.text
    assert len(caplog.records) <= 11


# -- progress ----------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["start", "step", "finish"]), st.integers(-1, 5))))
def test_any_reports_grow(reports: list[tuple[str, str, int]]) -> None:
    """Whatever order phases come in, unknown and repeated ones among them."""
    watch = Watch()
    tree = PhaseTree(watch)
    for name, kind, number in reports:
        if kind == "start":
            tree.start(name, "abcdef"[number] if number >= 0 else None, number)
        elif kind == "step":
            assert tree.step(name)
        else:
            tree.finish(name)
    assert watch.fractions == sorted(watch.fractions)
    assert all(0 <= fraction <= 1 for fraction in watch.fractions)


def test_inner_phases_count() -> None:
    watch = Watch()
    tree = PhaseTree(watch)
    tree.start("build", None, 2)
    tree.start("optimise", "build", 4)
    tree.step("optimise")
    tree.step("optimise")
    assert watch.fractions[-1] == pytest.approx(0.5 * 0.5 * 0.5)
    tree.finish("optimise")
    tree.start("time", "build", 1)
    assert watch.fractions[-1] == pytest.approx(0.5 * 0.5)
    tree.step("time")
    assert watch.fractions[-1] == pytest.approx(0.5 * 0.75)
    tree.finish("time")
    tree.step("build")
    assert watch.fractions[-1] == pytest.approx(0.5)
    tree.step("build")
    assert watch.fractions[-1] == 1


def test_once_cancelled_all_threads_stop() -> None:
    watch = Watch(cancel_at=0.5)
    tree = PhaseTree(watch)
    tree.start("build", None, 2)
    assert not tree.step("build") and tree.cancelled
    told = len(watch.told)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(tree.step("build")))
    thread.start()
    thread.join()
    assert answers == [False] and len(watch.told) == told


def test_part() -> None:
    watch = Watch(cancel_at=0.5)
    part = Part(watch, 0.2, 0.6)
    assert part.update("a", 0.0) and part.update("b", 0.5) and not part.update("c", 1.0)
    assert watch.fractions == pytest.approx([0.2, 0.4, 0.6])
