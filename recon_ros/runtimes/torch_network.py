# SPDX-License-Identifier: Apache-2.0
"""A pointmap network by name, with its weights, and executed by PyTorch. Loads torch only when asked for one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError, NetworkError
from recon_ros.frame import Camera, Prediction
from recon_ros.networks.card import ModelCard
from recon_ros.networks.cards import NetworkCard, find_card, list_cards
from recon_ros.networks.small import SEED, SMALL
from recon_ros.runtimes.families.network_step import SIZE, NetworkStep
from recon_ros.runtimes.step import Memory, StepRuntime

if TYPE_CHECKING:
    from torch import nn

SEEDED = "seeded-"
"""Digests of weights that are drawn begin so."""

RANDOM = "random-small"
RANDOM_CARD = ModelCard(
    name="random-small (random weights: plumbing tests only, the map means nothing)",
    family="cut3r",
    max_size=128,
    multiple=16,
    unbounded_confidence=True,
)
RANDOM_SIZES: Mapping[str, Any] = {
    "enc_dim": 64,
    "enc_depth": 2,
    "enc_heads": 4,
    "ray_depth": 1,
    "dec_dim": 64,
    "dec_depth": 2,
    "dec_heads": 4,
    "state_tokens": 24,
    "state_heads": 4,
    "pose_slots": 16,
    "head": "linear",
}
RANDOM_RULES = ((".*", "none", 0.0, 0.05),)


class OpenedNetwork(NamedTuple):
    """A network with its weights, in float32 on the CPU.

    Attributes:
        network: in evaluation mode.
        card: what it is.
        digest: of its weights, see `network_digest`.
    """

    network: nn.Module
    card: ModelCard
    digest: str


def known_networks() -> tuple[str, ...]:
    """Names `load_network` answers to."""
    return (RANDOM, *(card.name for card in list_cards()))


def network_card(name: str) -> ModelCard:
    """The card of any name that `open_network` knows.

    Raises:
        NetworkError: nobody answers to it.
    """
    if name == RANDOM:
        return RANDOM_CARD
    return SMALL[name].card if name in SMALL else find_card(name)


def network_digest(name: str, weights: str = "", seeded: bool = False) -> str:
    """What tells these weights from all others: the file's SHA-256, or ``seeded-<seed>-<hash of the sizes>``.

    Arguments and errors are those of `open_network`, but torch is not needed. A file whose digest is not recorded is
    read.
    """
    recipe = _recipe(name, seeded)
    if recipe is not None:
        text = json.dumps([recipe.family, dict(recipe.constructor), recipe.rules], sort_keys=True)
        return f"{SEEDED}{SEED}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    from recon_ros.networks import fetch

    card = find_card(name)
    path = _weights(card, weights)
    if path == fetch.weight_path(card):
        return fetch.recorded_digest(card) or fetch.check_digest(card, path)
    return fetch.file_digest(path)


def open_network(name: str, weights: str = "", seeded: bool = False) -> OpenedNetwork:
    """A network with its weights.

    Args:
        name: of a card in ``models/``; ``random-small``, a tiny CUT3R with random weights, for plumbing tests only; or
            one of `small.SMALL`.
        weights: file to load instead of the one the card names in the cache.
        seeded: of a card: weights drawn by the recipe instead of a file, at full size.

    Raises:
        NetworkError: torch is missing, the name is unknown, the weights are not here, or are not this network's.
    """
    card, recipe = network_card(name), _recipe(name, seeded)
    digest = network_digest(name, weights, seeded)
    _require_torch(name)
    from recon_ros.networks import factory
    from recon_ros.networks.recipe import parse_rules

    if recipe is not None:
        rules = parse_rules(recipe.rules)
        return OpenedNetwork(factory.seeded_network(recipe.family, recipe.constructor, SEED, rules), card, digest)
    assert isinstance(card, NetworkCard)
    return OpenedNetwork(factory.load_network(card, _weights(card, weights)), card, digest)


def load_network(name: str, weights: str = "", update_rule: str = "filt3r") -> StepRuntime:
    """A network as a step, ready to run by PyTorch as it is written, on the CPU.

    Args:
        name, weights: see `open_network`.
        update_rule: of a CUT3R: ``overwrite``, ``ttt3r`` or ``filt3r``.

    Raises:
        NetworkError: torch is missing, the name is unknown, the weights are not here, or are not this network's.
    """
    return TorchStep(open_network(name, weights), update_rule)


class TorchStep:
    """A `StepRuntime` that makes its graphs for the first image's size; those of another size begin a new sequence."""

    runtime = "torch fp32"

    def __init__(self, opened: OpenedNetwork, update_rule: str = "filt3r") -> None:
        self.card = opened.card
        self._opened, self._update_rule = opened, update_rule
        self._step: NetworkStep | None = None

    def initial_memory(self) -> Memory:
        """Nothing seen yet."""
        return {}

    def step(
        self,
        memory: Memory,
        image: NDArray[np.uint8],
        camera: Camera | None,
        depth: NDArray[np.float32] | None = None,
    ) -> tuple[Memory, Prediction]:
        """Take in one image; see `StepRuntime.step`.

        Raises:
            InputError: ``image_size``, sides that are no multiples of the patch size, or not of the size that the
                memory began with; and those of the network.
        """
        height, width = image.shape[:2]
        multiple = self.card.multiple
        if height % multiple or width % multiple:
            raise InputError("image_size", f"the image is {width}x{height}; its sides must be multiples of {multiple}")
        if self._step is None or (not memory and self._step.size != (width, height)):
            self._step = self._make(width, height)
        return self._step.step(memory, image, camera, depth)

    def save_memory(self, memory: Memory) -> dict[str, NDArray[Any]]:
        """The memory's arrays by name, the host's own."""
        return {} if self._step is None else self._step.save_memory(memory)

    def load_memory(self, arrays: Mapping[str, NDArray[Any]]) -> Memory:
        """The memory that `save_memory` gave.

        Raises:
            NetworkError: the arrays are not such a memory.
        """
        if not arrays:
            return {}
        size = arrays.get(SIZE)
        if size is None or size.shape != (2,):
            raise NetworkError(f"the saved memory of {self.card.name} does not say of which size its images are")
        width, height = size.tolist()
        if self._step is None or self._step.size != (width, height):
            self._step = self._make(width, height)
        return self._step.load_memory(arrays)

    def _make(self, width: int, height: int) -> NetworkStep:
        from recon_ros.networks.graphs import GraphOptions, build_graphs
        from recon_ros.runtimes.families import make_step
        from recon_ros.runtimes.torch_executor import TorchExecutor

        opened = self._opened
        graphs = build_graphs(opened.network, opened.card, width, height, GraphOptions(self._update_rule))
        return make_step(TorchExecutor(graphs), opened.card)


@dataclass(frozen=True)
class _Recipe:
    """A network whose weights are drawn."""

    family: str
    constructor: Mapping[str, Any]
    rules: tuple[Any, ...] = ()


def _recipe(name: str, seeded: bool) -> _Recipe | None:
    if name == RANDOM:
        return _Recipe("cut3r", RANDOM_SIZES, RANDOM_RULES)
    if name in SMALL:
        small = SMALL[name]
        return _Recipe(small.card.family, small.constructor, tuple(small.rules))
    if seeded:
        card = find_card(name)
        return _Recipe(card.family, card.constructor)
    return None


def _require_torch(name: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise NetworkError(f"source '{name}' needs PyTorch: pip install torch, or choose source depth")


def _weights(card: NetworkCard, given: str) -> Path:
    from recon_ros.networks.fetch import find_weights

    if not given:
        return find_weights(card)
    path = Path(given).expanduser()
    if not path.is_file():
        raise NetworkError(f"option 'weights' names {path}, which is not a file")
    return path
