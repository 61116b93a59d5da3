# SPDX-License-Identifier: Apache-2.0
"""Who takes part: one way of executing a network on one machine, and how to open it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.runtimes.bundle import Bundle, load_bundle
from recon_ros.runtimes.executor import Executor

STATE = "weights.pt"


@dataclass(frozen=True)
class Subject:
    """What is executed.

    Attributes:
        model: name of a card, or of a small network.
        width, height: of the image, pixels.
        folder: for weights, exported graphs and engines; kept for the next time.
        seeded: weights drawn by the recipe; timing does not depend on their values.
        threads: of computations on the CPU.
    """

    model: str
    width: int
    height: int
    folder: str
    seeded: bool = False
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.model} {self.width}x{self.height}"


@dataclass(frozen=True)
class Contender:
    """One way of executing it.

    Attributes:
        runtime: ``torch``, ``openvino``, ``tensorrt`` or ``tensorrt_rtx``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        mode: of torch, see `TorchExecutor`.
        device: of torch, ``cpu`` or ``cuda``.
        everything: all outputs are computed, as the published CUT3R does, and not what the node asks for.
        tf32: products of float32 matrices in TensorFloat-32 (torch on CUDA).
    """

    runtime: str
    precision: str = "fp32"
    mode: str = "eager"
    device: str = "cpu"
    everything: bool = False
    tf32: bool = False

    def __str__(self) -> str:
        words = [self.runtime, self.precision, *([self.mode.replace("_", " + ")] if self.runtime == "torch" else [])]
        return " ".join(words) + ", TF32" * self.tf32 + ", all outputs" * self.everything

    @property
    def is_reference(self) -> bool:
        """What the numbers of the others are compared with."""
        return dataclasses.replace(self, device="cpu") == Contender("torch")

    @property
    def bundle_precision(self) -> str | None:
        """Precision of the exported graphs that it needs; OpenVINO computes in bf16 from float32 graphs."""
        if self.runtime == "torch":
            return None
        return "fp32" if self.runtime == "openvino" else self.precision

    def open(self, subject: Subject) -> Executor:
        """Ready to step; what it needs is made when it is not there.

        Raises:
            NetworkError: a library or a device is missing, or it cannot run this.
        """
        if self.runtime == "torch":
            return self._open_torch(subject)
        assert self.bundle_precision is not None
        exported = find_bundle(subject, self.bundle_precision)
        return self._open_openvino(subject, exported) if self.runtime == "openvino" else self._open_trt(exported)

    def _open_torch(self, subject: Subject) -> Executor:
        import torch

        from recon_ros.networks.cut3r_heads import OUTPUTS
        from recon_ros.networks.graphs import GraphOptions, build_graphs
        from recon_ros.networks.precision import prepare
        from recon_ros.runtimes.torch_executor import TorchExecutor

        torch.set_num_threads(subject.threads)
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32
        opened = open_subject(subject)
        if self.precision != "fp32":
            prepare(opened.network, self.precision, "fused")
        all_of_cut3r = self.everything and opened.card.family == "cut3r"
        options = GraphOptions(outputs=("points_memory",) if all_of_cut3r else ())
        graphs = build_graphs(opened.network, opened.card, subject.width, subject.height, options)
        if all_of_cut3r:
            # The colours are computed as well, and go nowhere.
            module: Any = graphs.modules["step"]
            module.wanted = OUTPUTS
        return TorchExecutor(graphs, self.device, self.mode, self.precision)

    def _open_openvino(self, subject: Subject, exported: Bundle) -> Executor:
        from recon_ros.runtimes import int8
        from recon_ros.runtimes.openvino_executor import OpenVinoExecutor

        if self.precision == "int8":
            exported = find_int8(exported, int8)
        return OpenVinoExecutor(exported, self.precision, subject.threads)

    def _open_trt(self, exported: Bundle) -> Executor:
        from recon_ros.runtimes.trt.builder import BuildOptions, build_engine
        from recon_ros.runtimes.trt.cuda import find_cuda
        from recon_ros.runtimes.trt.library import load_library
        from recon_ros.runtimes.trt.runner import TrtExecutor

        library = load_library(self.runtime)
        cuda = find_cuda()
        engines = {}
        for graph in exported.plan.graphs:
            engines[graph.name] = exported.folder.parent / f"{exported.folder.name}_{graph.name}_{library}.engine"
            if not engines[graph.name].is_file():
                build_engine(library, exported.onnx(graph.name), engines[graph.name], BuildOptions())
        return TrtExecutor(exported, engines, library, cuda)


def open_subject(subject: Subject) -> Any:
    """The network (`OpenedNetwork`); weights drawn once are kept in the folder, since drawing many takes a while."""
    import torch

    from recon_ros.networks import factory
    from recon_ros.networks.cards import NetworkCard
    from recon_ros.runtimes.torch_network import OpenedNetwork, network_card, network_digest, open_network

    card = network_card(subject.model)
    if not (subject.seeded and isinstance(card, NetworkCard)):
        return open_network(subject.model, seeded=subject.seeded)
    path = _state_path(subject)
    if not path.is_file():
        opened = open_network(subject.model, seeded=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(opened.network.state_dict(), part)
        part.replace(path)
        return opened
    network = factory.build_network(card, "meta")
    network.load_state_dict(torch.load(path, mmap=True, weights_only=True), assign=True)
    return OpenedNetwork(network.eval().requires_grad_(False), card, network_digest(subject.model, seeded=True))


def _state_path(subject: Subject) -> Path:
    return Path(subject.folder) / subject.model / STATE


def find_bundle(subject: Subject, precision: str) -> Bundle:
    """The exported graphs, made when they are not there."""
    folder = Path(subject.folder) / subject.model / f"{subject.width}x{subject.height}_{precision}"
    try:
        return load_bundle(folder)
    except NetworkError:
        from recon_ros.runtimes.export import export_bundle

        return export_bundle(open_subject(subject), subject.width, subject.height, precision, folder=folder)


def find_int8(exported: Bundle, int8: Any) -> Bundle:
    """The int8 graphs of float32 ones, made when they are not there."""
    folder = exported.folder.with_name(exported.folder.name + "_int8")
    try:
        return load_bundle(folder)
    except NetworkError:
        made: Bundle = int8.quantise(exported, folder=folder)
        return made


def needs_files(subject: Subject, contender: Contender) -> bool:
    """Whether something may have to be made beforehand: graphs, or weights that are not drawn yet."""
    return contender.runtime != "torch" or (subject.seeded and not _state_path(subject).is_file())


def make_files(subject: Subject, contender: Contender) -> None:
    """Make what it needs beforehand, in a process that is not measured."""
    if contender.runtime == "torch":
        open_subject(subject)
        return
    assert contender.bundle_precision is not None
    exported = find_bundle(subject, contender.bundle_precision)
    if contender.precision == "int8":
        from recon_ros.runtimes import int8

        find_int8(exported, int8)
