# SPDX-License-Identifier: Apache-2.0
"""What PyTorch has to compute on, and a network opened on it. Imports torch: only where it is going to be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from recon_ros.networks.graphs import GraphOptions, build_graphs
from recon_ros.networks.precision import prepare
from recon_ros.runtimes import golden
from recon_ros.runtimes.ladder import Variant
from recon_ros.runtimes.torch_executor import TorchExecutor
from recon_ros.runtimes.torch_network import OpenedNetwork


def has_cuda() -> bool:
    """Whether PyTorch was built for CUDA and sees a device."""
    return bool(torch.cuda.is_available())


def open_variant(
    opened: OpenedNetwork, variant: Variant, width: int, height: int, options: GraphOptions, threads: int = 0
) -> tuple[TorchExecutor, Mapping[str, NDArray[Any]] | None]:
    """An executor, and the answers it is to be checked against; None for the reference itself.

    Without a bundle there are no recorded answers: the network gives them here, as it is written and in float32, before
    it is prepared for anything else.

    Args:
        opened: the network; changed in place, and owned by the executor from now on.
        variant: of runtime torch.
        width, height: of the image, pixels.
        options: of the graphs.
        threads: on the CPU, for all of this process; 0 leaves them.

    Raises:
        NetworkError: it cannot run that way here.
    """
    if threads:
        torch.set_num_threads(threads)
    graphs = build_graphs(opened.network, opened.card, width, height, options)
    reference = TorchExecutor(graphs, variant.device)
    if variant.is_reference:
        return reference, None
    answers = golden.record(reference)
    if variant.precision != "fp32":
        prepare(opened.network, variant.precision, variant.attention)
        graphs = build_graphs(opened.network, opened.card, width, height, options)
    return TorchExecutor(graphs, variant.device, variant.mode, variant.precision), answers
