# SPDX-License-Identifier: Apache-2.0
"""From a network to a bundle: ONNX graphs, their plan, the first memory and golden answers.

The graphs are of opset 20, with static shapes and explicit types, and of operators that TensorRT 10.3 knows. Golden
answers and the first memory are those of the float32 network, whatever the precision of the graphs.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.networks.cards import NetworkCard
from recon_ros.networks.graphs import GraphOptions, StepGraphs, build_graphs
from recon_ros.networks.plan import GraphSpec, StepPlan
from recon_ros.networks.precision import PRECISIONS, prepare
from recon_ros.runtimes import bundle, golden, onnx_ops
from recon_ros.runtimes.bundle import EXPORT_VERSION, Bundle, BundleFacts
from recon_ros.runtimes.torch_executor import TorchExecutor
from recon_ros.runtimes.torch_network import OpenedNetwork
from recon_ros.runtimes.trt.progress import ProgressSink, tell

__all__ = ["EXPORT_VERSION", "export_bundle", "export_graph"]

EXTERNAL_BYTES = 1.5e9
"""Weights beyond this lie in a file beside the graph; protobuf ends at 2 GB."""

FOLDED_NUMBERS = 1 << 18
"""Constants up to this size are computed at export: the rotary angles of thousands of tokens, and no weight matrix."""


def export_bundle(
    opened: OpenedNetwork,
    width: int,
    height: int,
    precision: str = "fp32",
    attention: str = "softmax32",
    options: GraphOptions | None = None,
    folder: Path | None = None,
    progress: ProgressSink | None = None,
) -> Bundle:
    """Write a network's graphs, or return the bundle that is there already.

    Needs about twice the memory of the float32 weights. The network is given its precision in place, and is not
    to be used afterwards.

    Args:
        opened: the network, in float32.
        width, height: of the image, pixels.
        precision, attention: see `recon_ros.networks.precision.prepare`.
        options: of the graphs; None for the usual ones.
        folder: where to; None for `bundle.bundle_folder`.
        progress: hears of each phase, and may cancel.

    Raises:
        BuildCancelled: `progress` said so; nothing is left behind.
        NetworkError: there is no such precision, size or option; onnx is not installed; a graph cannot be
            exported, or holds what TensorRT 10.3 does not take; the disk is full.
    """
    options = options or GraphOptions()
    say = partial(tell, progress)
    if precision not in PRECISIONS:
        raise NetworkError(f"nothing is exported in {precision}; there are {', '.join(PRECISIONS)}")
    _require_onnx()
    name = opened.card.name
    target = folder or bundle.bundle_folder(name, width, height, precision, attention, options, opened.digest)
    with bundle.writing(target, lambda: say("waiting for another process that exports it", 0.0)) as part:
        graphs = build_graphs(opened.network, opened.card, width, height, options)
        facts = BundleFacts(
            model=name,
            card=_plain_card(opened.card),
            terms=_terms(opened.card),
            precision=precision,
            attention=attention,
            options=bundle.plain_options(options),
            weights_digest=opened.digest,
            made_by=f"torch {torch.__version__}",
            plan=graphs.plan,
        )
        there = _find(target, facts)
        if there is not None:
            return there
        _check_room(opened.network, part)

        say("golden answers", 0.0)
        executor = TorchExecutor(graphs)
        bundle.save_arrays(part / bundle.GOLDEN, golden.record(executor))
        bundle.save_arrays(part / bundle.INITIAL, graphs.initial)
        executor.close()
        del executor, graphs

        say("precision", 0.1)
        prepared = build_graphs(prepare(opened.network, precision, attention), opened.card, width, height, options)
        if prepared.plan != facts.plan:
            raise NetworkError(f"{name}: the plan of the network in {precision} is not that in fp32")
        for index, spec in enumerate(facts.plan.graphs):
            say(f"export of {spec.name}", 0.15 + 0.75 * index / len(facts.plan.graphs))
            export_graph(prepared, spec, part)
        say("checksums", 0.95)
        made = bundle.finish(part, target, facts)
    if progress is not None:
        progress.update("done", 1.0)  # too late to cancel
    return made


def export_graph(graphs: StepGraphs, spec: GraphSpec, folder: Path) -> Path:
    """One graph as ``<name>.onnx`` in a folder; its weights beside it when they are many.

    Raises:
        NetworkError: PyTorch cannot export it, or it holds what TensorRT 10.3 does not take.
    """
    import onnx

    path = folder / f"{spec.name}.onnx"
    module = graphs.modules[spec.name].eval()
    try:
        with torch.no_grad(), _silence(), _without_garbage_collection():
            program = torch.onnx.export(
                module,
                _examples(module, graphs.plan, spec),
                dynamo=True,
                opset_version=onnx_ops.MAX_OPSET,
                input_names=list(spec.inputs),
                output_names=list(spec.outputs),
                optimize=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise NetworkError(f"PyTorch cannot export the graph {spec.name}: {error}") from error
    assert program is not None
    _tidy(program.model)
    # An input that is handed on as an output has been given the output's name.
    for value, name in zip(program.model.graph.inputs, spec.inputs, strict=True):
        value.name = name
    program.save(path, external_data=_weight_bytes(module) > EXTERNAL_BYTES)
    del program
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    if onnx_ops.border(model) != _border(graphs.plan, spec):
        raise NetworkError(f"PyTorch exported the graph {spec.name} with other inputs or outputs than the plan's")
    found = onnx_ops.problems(model)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise NetworkError(f"TensorRT 10.3 would not take the graph {spec.name}: {'; '.join(found[:3])}{more}")
    return path


def _examples(module: nn.Module, plan: StepPlan, spec: GraphSpec) -> tuple[torch.Tensor, ...]:
    device = next(module.parameters()).device
    wanted = (plan.tensors[name] for name in spec.inputs)
    return tuple(torch.zeros(item.shape, dtype=getattr(torch, item.dtype), device=device) for item in wanted)


def _border(plan: StepPlan, spec: GraphSpec) -> onnx_ops.Border:
    def list_of(names: Sequence[str]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        return tuple((name, plan.tensors[name].dtype, plan.tensors[name].shape) for name in names)

    return list_of(spec.inputs), list_of(spec.outputs)


def _tidy(model: Any) -> None:
    """Compute what does not depend on the inputs, and forget what the exporter notes on where code came from."""
    import onnxscript.optimizer
    from onnx_ir.passes import common

    common.InlinePass()(model)
    for _ in range(2):  # what was found the first time gives types to what is left
        onnxscript.optimizer.fold_constants(
            model, onnx_shape_inference=True, input_size_limit=FOLDED_NUMBERS, output_size_limit=4 * FOLDED_NUMBERS
        )
    for simplify in (
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),  # an output that is an input or a constant gets a node of its own
        common.NameFixPass(),
    ):
        simplify(model)
    values = [value for node in model.graph for value in node.outputs]
    for item in (model, model.graph, *model.graph, *model.graph.inputs, *values, *model.graph.initializers.values()):
        item.metadata_props.clear()
        item.doc_string = None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's remarks about other packages and about itself."""
    chatty = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in chatty]
    try:
        for logger in chatty:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Tracing makes so many small objects that looking for garbage among them takes a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _find(folder: Path, facts: BundleFacts) -> Bundle | None:
    """The bundle that is there, if it is whole and of these facts."""
    try:
        there = bundle.load_bundle(folder)
    except NetworkError:
        return None
    return there if there.facts == facts else None


def _check_room(network: nn.Module, part: Path) -> None:
    needed, free = _weight_bytes(network) * 1.1, shutil.disk_usage(part).free
    if needed > free:
        raise NetworkError(
            f"{part.parent} has {free / 1e6:.0f} MB left, {needed / 1e6:.0f} MB may be needed; make room, or set "
            "engine.cache to a folder on another disk"
        )


def _weight_bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def _plain_card(card: ModelCard) -> ModelCard:
    return ModelCard(**{name: getattr(card, name) for name in ModelCard.__dataclass_fields__})


def _terms(card: ModelCard) -> str:
    if not isinstance(card, NetworkCard):
        return ""
    return f"{card.weights.terms} ({card.weights.licence_url})"


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise NetworkError(f"to export a network, pip install onnx onnxscript ({error})") from error
