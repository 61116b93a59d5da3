# SPDX-License-Identifier: Apache-2.0
"""OpenVINO computes what PyTorch does, through the recursion of the memory, and leaves its inputs alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from recon_ros.errors import NetworkError
from recon_ros.runtimes import golden

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("onnxscript", reason="needs onnx and onnxscript")
pytest.importorskip("openvino", reason="needs openvino")

from tiny_bundles import HEIGHT, SHALLOW, WIDTH, tiny_bundle, tiny_network

from recon_ros.networks.graphs import build_graphs
from recon_ros.runtimes import openvino_executor
from recon_ros.runtimes.openvino_executor import OpenVinoExecutor, cpu_precisions
from recon_ros.runtimes.torch_executor import TorchExecutor

STEPS = 6
PRECISIONS = tuple(
    pytest.param(precision, marks=[] if precision in cpu_precisions() else pytest.mark.skip(f"no {precision} here"))
    for precision in ("fp32", "bf16")
)
BOUNDS = {"fp32": 1e-4, "bf16": 0.1}


def images(count: int = STEPS) -> list[np.ndarray]:
    return golden.golden_images(WIDTH, HEIGHT, count)


@pytest.mark.parametrize("model", SHALLOW)
def test_every_step_equals_pytorchs_and_the_memory_given_is_not_touched(model):
    opened = tiny_network(model)
    reference = TorchExecutor(build_graphs(opened.network, opened.card, WIDTH, HEIGHT))
    executor = OpenVinoExecutor(tiny_bundle(model), "fp32", threads=1)
    memory, expected = executor.initial(), reference.initial()
    for image in images():
        given, before = image.copy(), executor.read(memory)
        after, answers = executor.step(memory, image)
        assert np.array_equal(image, given)
        assert all(np.array_equal(memory[name], before[name]) for name in before)
        expected, right = reference.step(expected, image)
        assert answers.keys() == right.keys() == set(executor.plan.fetched)
        for name, array in right.items():
            assert golden.relative_error(answers[name], array) < BOUNDS["fp32"], name
        memory = after
    kept = reference.read(expected)
    for name, array in executor.read(memory).items():
        assert golden.relative_error(array, kept[name]) < BOUNDS["fp32"], name


def test_what_is_fetched_and_used_by_a_later_graph_reaches_both():
    bundle = tiny_bundle("dust3r-small-linear")
    wanted = dataclasses.replace(bundle.plan, fetched=(*bundle.plan.fetched, "features"))
    usual = OpenVinoExecutor(bundle, threads=1)
    executor = OpenVinoExecutor(dataclasses.replace(bundle, plan=wanted), threads=1)
    for image in images(2):
        _, expected = usual.step(usual.initial(), image)
        _, answers = executor.step(executor.initial(), image)
        assert np.array_equal(answers["points2"], expected["points2"])
        np.testing.assert_allclose(answers["features"][0].mean(axis=0), expected["descriptor"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_self_check_passes(precision):
    bundle = tiny_bundle("cut3r-small-linear")
    report = golden.check(OpenVinoExecutor(bundle, precision, threads=1), bundle.golden(), precision)
    assert report.passed and report.error < BOUNDS[precision], str(report)
    assert precision == "fp32" or report.error > 1e-4, "nothing was rounded"


def test_an_image_in_a_message_is_taken():
    """It may be read-only, or part of a larger one."""
    executor = OpenVinoExecutor(tiny_bundle("cut3r-small-linear"), threads=1)
    (image,) = images(1)
    _, expected = executor.step(executor.initial(), image)
    read_only, part = image.copy(), np.repeat(image, 2, axis=1)[:, ::2]
    read_only.flags.writeable = False
    for other in (read_only, part):
        _, answers = executor.step(executor.initial(), other)
        assert all(np.array_equal(answers[name], array) for name, array in expected.items())


def test_old_memories_stay_and_answers_are_the_callers():
    executor = OpenVinoExecutor(tiny_bundle("cut3r-small-linear"), threads=1)
    first, second, third = images(3)
    start = executor.initial()
    one, answers = executor.step(start, first)
    kept = {name: array.copy() for name, array in answers.items()}
    two, _ = executor.step(one, second)
    executor.step(two, third)
    assert all(np.array_equal(answers[name], kept[name]) for name in kept)
    again, same = executor.step(start, first)
    assert all(np.array_equal(same[name], kept[name]) for name in kept)
    assert all(np.array_equal(again[name], one[name]) for name in one)


def test_a_memory_goes_to_another_executor_and_back():
    bundle = tiny_bundle("spann3r-small")
    ours, other = OpenVinoExecutor(bundle, threads=1), OpenVinoExecutor(bundle, threads=1)
    memory = ours.initial()
    for image in images(2):
        memory, _ = ours.step(memory, image)
    arrays = ours.read(memory)
    moved = other.write(arrays)
    for array in arrays.values():
        array[...] = 0  # it was a copy
    last = images(3)[2]
    for mine, theirs in zip(ours.step(memory, last)[1].values(), other.step(moved, last)[1].values(), strict=True):
        assert np.array_equal(mine, theirs)
    with pytest.raises(NetworkError, match="frames"):
        ours.write({name: array for name, array in arrays.items() if name != "frames"})


def test_what_cannot_run_is_said(monkeypatch, tmp_path):
    bundle = tiny_bundle("cut3r-small-linear")
    with pytest.raises(NetworkError, match=r"int8 from graphs in int8.*--precision int8"):
        monkeypatch.setattr(openvino_executor, "cpu_precisions", lambda: ("fp32", "int8"))
        OpenVinoExecutor(bundle, "int8")
    monkeypatch.setattr(openvino_executor, "cpu_precisions", lambda: ("fp32",))
    with pytest.raises(NetworkError, match="no bf16 on this processor, only fp32"):
        OpenVinoExecutor(bundle, "bf16")
    (tmp_path / "step.onnx").write_bytes(b"no graph")
    initial = bundle.folder / "initial.npz"
    (tmp_path / "initial.npz").write_bytes(initial.read_bytes())
    with pytest.raises(NetworkError, match=r"cannot run .*step\.onnx"):
        OpenVinoExecutor(dataclasses.replace(bundle, folder=tmp_path))
    executor = OpenVinoExecutor(bundle, threads=1)
    with pytest.raises(NetworkError, match="takes uint8"):
        executor.step(executor.initial(), np.zeros((HEIGHT, WIDTH + 16, 3), np.uint8))


def test_a_missing_openvino_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(NetworkError, match="pip install openvino"):
        cpu_precisions()


def test_it_runs_without_torch_and_without_telemetry():
    code = (
        "import sys, pathlib\n"
        "from recon_ros.runtimes.bundle import load_bundle\n"
        "from recon_ros.runtimes.openvino_executor import OpenVinoExecutor\n"
        "from recon_ros.runtimes.golden import golden_images\n"
        "bundle = load_bundle(pathlib.Path(sys.argv[1]))\n"
        "executor = OpenVinoExecutor(bundle)\n"
        f"executor.step(executor.initial(), golden_images({WIDTH}, {HEIGHT}, 1)[0])\n"
        "assert 'torch' not in sys.modules and sys.modules['openvino_telemetry'] is None\n"
    )
    folder = tiny_bundle("cut3r-small-linear").folder
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
