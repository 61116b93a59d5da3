# SPDX-License-Identifier: Apache-2.0
"""A network as the graphs of one step: modules from named tensors to named tensors, all of static shape.

What executes the step (PyTorch, OpenVINO, TensorRT) sees only these. The image comes in as uint8 and is normalised
inside; memory and outputs are float32, or int32 where they count, whatever precision the network was prepared for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.networks.plan import HEALTH, IMAGE, NEXT, GraphSpec, StepPlan, TensorSpec


@dataclass(frozen=True)
class GraphOptions:
    """What may be chosen of a step.

    Attributes:
        update_rule: of a CUT3R: ``overwrite``, ``ttt3r`` or ``filt3r``.
        outputs: beside the usual ones; `optional_outputs` tells which there are.
    """

    update_rule: str = "filt3r"
    outputs: tuple[str, ...] = ()


class StepGraphs(NamedTuple):
    """A step: its plan, the module of each of the plan's graphs, and the memory before the first image by name."""

    plan: StepPlan
    modules: Mapping[str, nn.Module]
    initial: Mapping[str, NDArray[Any]]


class GraphModule(nn.Module):
    """A graph: `forward` takes the tensors `inputs` one by one, and returns a tuple in the order of `outputs`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    exact: bool = False


def build_graphs(
    network: nn.Module, card: ModelCard, width: int, height: int, options: GraphOptions | None = None
) -> StepGraphs:
    """The graphs of a network's step, on its weights.

    Args:
        network: of the card's family, as loaded, or as prepared for another precision; put in evaluation mode.
        card: what it is.
        width, height: of the images, pixels.
        options: None for the usual ones.

    Raises:
        NetworkError: a side is not a multiple of the patch size; an option is not of this family; or a memory's
            rules do not allow for this size.
    """
    if width % card.multiple or height % card.multiple or min(width, height) < 1:
        raise NetworkError(f"{card.name} at {width}x{height}: both sides must be multiples of {card.multiple}")
    options = options or GraphOptions()
    known = optional_outputs(card.family)
    if unknown := [name for name in options.outputs if name not in known]:
        raise NetworkError(f"{card.name} has no output {unknown[0]!r}; to choose from: {', '.join(known) or 'none'}")
    network.eval()
    if card.family == "cut3r":
        from recon_ros.networks.graphs_cut3r import cut3r_graphs

        return cut3r_graphs(network, width, height, options)
    if card.family == "spann3r":
        from recon_ros.networks.graphs_spann3r import spann3r_graphs

        return spann3r_graphs(network, width, height)
    if card.family == "compact":
        from recon_ros.networks.graphs_compact import compact_graphs

        return compact_graphs(network, width, height)
    from recon_ros.networks.graphs_pair import pair_graphs

    return pair_graphs(network, card.family, width, height, options)


def optional_outputs(family: str) -> tuple[str, ...]:
    """Outputs that a family gives only when asked for them (`GraphOptions.outputs`)."""
    matching = ("descriptors1", "descriptors2", "descriptor_confidence1", "descriptor_confidence2")
    return {"cut3r": ("points_memory",), "mast3r": matching}.get(family, ())


def assemble(
    family: str,
    width: int,
    height: int,
    graphs: Mapping[str, GraphModule],
    initial: Mapping[str, Tensor],
    given: Mapping[str, TensorSpec],
    fetched: Sequence[str],
) -> StepGraphs:
    """Put a step together.

    Args:
        family: of the network.
        width, height: of the image, pixels.
        graphs: by name, in the order in which they run.
        initial: the memory before the first image, by name, in the types of the border.
        given: all other tensors but the image, the memory that follows, and the health.
        fetched: what the host wants, the health aside.
    """
    memory = {name: TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in initial.items()}
    health = [name for module in graphs.values() for name in module.outputs if name.startswith(HEALTH)]
    tensors = {
        IMAGE: TensorSpec((height, width, 3), "uint8"),
        **memory,
        **given,
        **{name + NEXT: spec for name, spec in memory.items()},
        **{name: TensorSpec((), "float32") for name in health},
    }
    plan = StepPlan(
        family=family,
        width=width,
        height=height,
        graphs=tuple(GraphSpec(name, module.inputs, module.outputs, module.exact) for name, module in graphs.items()),
        tensors=tensors,
        memory=tuple(memory),
        fetched=(*fetched, *health),
    )
    return StepGraphs(plan, graphs, {name: tensor.cpu().numpy() for name, tensor in initial.items()})


def pixels(image: Tensor, dtype: torch.dtype) -> Tensor:
    """(H, W, 3) uint8 → (1, 3, H, W) in [−1, 1]."""
    return (image.to(torch.float32) / 127.5 - 1).permute(2, 0, 1)[None].to(dtype)


def health(tensors: Iterable[Tensor]) -> Tensor:
    """() float32, the sum of the mean magnitudes of floating-point tensors: finite if, and only if, all of them are."""
    return torch.stack([tensor.to(torch.float32).abs().mean() for tensor in tensors]).sum()


def cleared(flag: Tensor) -> Tensor:
    """A flag's 0 for the next step; calculated, since not every library takes a constant for an output."""
    return flag * 0


def floats(*shape: int) -> TensorSpec:
    """A float32 tensor of this shape."""
    return TensorSpec(shape, "float32")
