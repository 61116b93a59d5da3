# SPDX-License-Identifier: Apache-2.0
"""Export: the ONNX graphs give what the network gives, step after step, in every precision; nothing half done stays.

An export takes seconds, so by default each family is exported once, at its smallest and with one of the precisions.
RECON_ALL_EXPORTS=1 takes every small network in every precision (minutes); the errors measured so are at `BOUNDS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import torch.nn.functional as F  # noqa: E402
from onnx_executor import OnnxExecutor  # noqa: E402
from tiny_bundles import HEIGHT, WIDTH, tiny_bundle, tiny_network  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from recon_ros.errors import NetworkError  # noqa: E402
from recon_ros.networks import small  # noqa: E402
from recon_ros.networks.blocks import Attention, CrossAttention  # noqa: E402
from recon_ros.networks.graphs import GraphModule, StepGraphs, assemble, build_graphs, floats  # noqa: E402
from recon_ros.networks.precision import PRECISIONS  # noqa: E402
from recon_ros.runtimes import bundle, export, golden, onnx_ops  # noqa: E402
from recon_ros.runtimes.export import export_bundle, export_graph  # noqa: E402
from recon_ros.runtimes.torch_executor import TorchExecutor  # noqa: E402
from recon_ros.runtimes.torch_network import OpenedNetwork, open_network  # noqa: E402
from recon_ros.runtimes.trt.progress import BuildCancelled  # noqa: E402

STEPS = 6
"""Spann3R's memory is pruned at the fifth."""

BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}

DEFAULT = [
    ("cut3r-small-linear", "fp16"),
    ("dust3r-small-linear", "bf16"),
    ("mast3r-small-conv", "fp32"),
    ("spann3r-small", "fp32"),
]
ALL = [(name, precision) for name in small.SMALL for precision in PRECISIONS]

needs_time = pytest.mark.skipif(not os.environ.get("RECON_ALL_EXPORTS"), reason="minutes; RECON_ALL_EXPORTS=1 runs it")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def reference(opened: OpenedNetwork) -> dict[str, Any]:
    """What the float32 network in PyTorch answers."""
    return golden.record(TorchExecutor(build_graphs(opened.network, opened.card, WIDTH, HEIGHT)), STEPS)


def check_parity(expected: dict[str, Any], made: bundle.Bundle) -> None:
    answers = golden.record(OnnxExecutor(made), STEPS)
    errors = {name: golden.relative_error(answers[name], expected[name]) for name in expected}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < BOUNDS[made.precision], (worst, errors[worst])
    assert golden.check(OnnxExecutor(made), made.golden(), made.precision).passed


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("bundles")

    @cache
    def get(name: str, precision: str) -> bundle.Bundle:
        if precision == "fp32":
            return tiny_bundle(name)
        return export_bundle(tiny_network(name), WIDTH, HEIGHT, precision, folder=folder / f"{name}-{precision}")

    yield get


@pytest.mark.parametrize(("name", "precision"), DEFAULT)
def test_parity(exported: Any, name: str, precision: str) -> None:
    if precision == "bf16":
        pytest.importorskip("openvino")
    made = exported(name, precision)
    check_parity(reference(tiny_network(name)), made)
    assert made.card == small.SMALL[name].card and made.precision == precision
    for graph in made.plan.graphs:
        model = onnx.load(str(made.onnx(graph.name)))
        kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
        assert {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}[precision] in kinds
        assert model.opset_import[0].version == onnx_ops.MAX_OPSET and not onnx_ops.problems(model)


@needs_time
@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), ALL)
def test_parity_of_all(tmp_path: Path, name: str, precision: str) -> None:
    if precision == "bf16":
        pytest.importorskip("openvino")
    expected = reference(open_network(name))
    check_parity(expected, export_bundle(open_network(name), WIDTH, HEIGHT, precision, folder=tmp_path / "made"))


def test_a_bundle_of_half_precision_begins_as_the_float32_network(exported: Any) -> None:
    """Initial memory and golden answers are those of float32, not the rounded ones."""
    made = exported("cut3r-small-linear", "fp16")
    opened = tiny_network("cut3r-small-linear")
    graphs = build_graphs(opened.network, opened.card, WIDTH, HEIGHT)
    for name, array in graphs.initial.items():
        np.testing.assert_array_equal(made.initial()[name], array)
    for name, array in golden.record(TorchExecutor(graphs)).items():
        np.testing.assert_allclose(made.golden()[name], array, rtol=1e-5, atol=1e-6)


def test_graphs_name_no_place_on_this_machine(exported: Any) -> None:
    made = exported("cut3r-small-linear", "fp16")
    root = str(Path(__file__).resolve().parents[1]).encode()
    for path in made.folder.iterdir():
        content = path.read_bytes()
        assert root not in content and b"stack_trace" not in content and b".py" not in content, path.name


def test_what_is_there_is_not_exported_again(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = exported("mast3r-small-conv", "fp32")
    monkeypatch.setattr(export, "export_graph", lambda *args: pytest.fail("exported again"))
    assert export_bundle(tiny_network("mast3r-small-conv"), WIDTH, HEIGHT, folder=made.folder) == made


@pytest.mark.parametrize("attention", ["dec_blocks.0.cross_attn", "enc_blocks.0.attn"])
def test_the_self_check_finds_an_attention_scale_that_is_off(attention: str) -> None:
    """By 5 % in one block of one network, as a wrong fusion would have it."""
    opened = open_network("cut3r-small-dpt")
    executor = TorchExecutor(build_graphs(opened.network, opened.card, WIDTH, HEIGHT))
    answers = golden.record(executor)
    assert golden.check(executor, answers, "fp32").passed
    module = opened.network.get_submodule(attention)
    assert isinstance(module, Attention | CrossAttention)
    module.core = lambda q, k, v: F.scaled_dot_product_attention(q * 1.05, k, v)
    report = golden.check(executor, answers, "fp32")
    assert not report.passed and report.error > 5 * report.tolerance, str(report)


class Fails:
    """Cancels the export when it comes to a phase."""

    def __init__(self, phase: str) -> None:
        self.phase, self.heard = phase, [0.0]

    def update(self, phase: str, fraction: float) -> bool:
        assert self.heard[-1] <= fraction <= 1
        self.heard.append(fraction)
        return not phase.startswith(self.phase)


@pytest.mark.parametrize("phase", ["golden", "precision", "export"])
def test_cancelling_leaves_nothing(tmp_path: Path, phase: str) -> None:
    with pytest.raises(BuildCancelled, match=phase):
        export_bundle(
            tiny_network("dust3r-small-linear"), WIDTH, HEIGHT, folder=tmp_path / "made", progress=Fails(phase)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["made.lock"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(graphs: StepGraphs, spec: Any, folder: Path) -> None:
        (folder / "encode.onnx").write_bytes(b"half")
        raise error

    monkeypatch.setattr(export, "export_graph", fail)
    with pytest.raises(NetworkError if isinstance(error, OSError) else type(error)):
        export_bundle(tiny_network("dust3r-small-linear"), WIDTH, HEIGHT, folder=tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made.lock"]


def test_a_disk_that_is_too_small_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(NetworkError, match="MB may be needed"):
        export_bundle(tiny_network("dust3r-small-linear"), WIDTH, HEIGHT, folder=tmp_path / "made")


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    opened = tiny_network("dust3r-small-linear")
    with pytest.raises(NetworkError, match="int8"):
        export_bundle(opened, WIDTH, HEIGHT, "int8", folder=tmp_path / "made")
    with pytest.raises(NetworkError, match="multiples of 16"):
        export_bundle(opened, 100, HEIGHT, folder=tmp_path / "made")


# Single graphs


class Made(GraphModule):
    """A graph of one operation, with a weight."""

    inputs = ("image", "state")
    outputs = ("points", "state.next", "health")

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation = operation
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, image: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        points = image.to(torch.float32)
        return points, self.operation(state * self.weight), points.mean()


def graphs_of(operation: Any) -> StepGraphs:
    initial = {"state": torch.zeros(1, 4, 8)}
    given = {"points": floats(16, 16, 3)}
    return assemble("made", 16, 16, {"step": Made(operation)}, initial, given, ("points",))


@pytest.mark.parametrize(
    ("operation", "match"),
    [
        (lambda x: x.cumsum(1).to(torch.float64).exp().to(torch.float32), "double"),
        (lambda x: x[:, :, (x[0].sum(0) != 0).to(torch.int64).cumsum(0) % 8], "CumSum.*takes int64"),
        (lambda x: torch.zeros_like(x).index_add(1, torch.zeros(4, dtype=torch.int64), x), "Scatter.*reduction"),
    ],
)
def test_a_graph_that_tensorrt_does_not_take_is_refused(tmp_path: Path, operation: Any, match: str) -> None:
    graphs = graphs_of(operation)
    with pytest.raises(NetworkError, match=match):
        export_graph(graphs, graphs.plan.graphs[0], tmp_path)


def test_a_graph_that_pytorch_cannot_export_is_named(tmp_path: Path) -> None:
    def data_dependent(x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x

    graphs = graphs_of(data_dependent)
    with pytest.raises(NetworkError, match="cannot export the graph step"):
        export_graph(graphs, graphs.plan.graphs[0], tmp_path)


def test_a_graph_with_another_border_is_refused(tmp_path: Path) -> None:
    graphs = graphs_of(lambda x: x)
    wrong = replace(graphs.plan, tensors={**graphs.plan.tensors, "state.next": floats(1, 4, 9)})
    with pytest.raises(NetworkError, match="other inputs or outputs"):
        export_graph(graphs._replace(plan=wrong), wrong.graphs[0], tmp_path)


def test_many_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    graphs = graphs_of(lambda x: x + 1)
    monkeypatch.setattr(export, "EXTERNAL_BYTES", 1)
    path = export_graph(graphs, graphs.plan.graphs[0], tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["step.onnx", "step.onnx.data"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {"image": np.full((16, 16, 3), 7, np.uint8), "state": np.full((1, 4, 8), 2, np.float32)}
    points, state, health = session.run(["points", "state.next", "health"], given)
    assert (points == 7).all() and (state == 3).all() and health == 7
