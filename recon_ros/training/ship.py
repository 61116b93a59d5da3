# SPDX-License-Identifier: Apache-2.0
"""A trained network as what is shipped: weights in half precision, and graphs for those who have no PyTorch.

The graphs are exported from the very weights of the file, which half precision has rounded, so that both are one
network. In the graphs, too, large weights are stored in half precision, and widened when a graph is loaded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from recon_ros.disk import sync
from recon_ros.errors import NetworkError
from recon_ros.networks.cards import read_card
from recon_ros.networks.factory import load_network
from recon_ros.networks.graphs import GraphOptions
from recon_ros.runtimes.bundle import INITIAL, PLAN, Bundle, finish, writing
from recon_ros.runtimes.export import export_bundle
from recon_ros.runtimes.shipped import shipped_folder
from recon_ros.runtimes.torch_network import OpenedNetwork
from recon_ros.training.initial import Say
from recon_ros.training.weights import read_network

SIZES = ((256, 192), (256, 160))
"""(width, height) of images that graphs are shipped for: 4:3 and 3:2, reduced to 256 pixels."""
SMALL_NUMBERS = 1024
"""Weights of fewer numbers stay in float32."""


def ship(trained: Path, card_path: Path, sizes: Sequence[tuple[int, int]] = SIZES, say: Say = lambda _: None) -> Path:
    """Write what is shipped of a network beside its card, whose SHA-256 is brought up to date.

    Args:
        trained: of `weights.write_network`.
        card_path: ``models/<name>.yaml``.
        sizes: (width, height) that graphs are written for; graphs of other sizes are removed.
        say: hears what is being done.

    Returns:
        The weights' file.

    Raises:
        NetworkError: the network or the card cannot be read, do not belong together, or a graph cannot be exported.
    """
    network, facts = read_network(trained, torch.device("cpu"))
    path = card_path.with_suffix(".safetensors")
    state = {name: _halved(tensor) for name, tensor in network.state_dict().items()}
    # safetensors writes metadata in no particular order: one entry, so that the same numbers are the same file.
    save_file(state, path, metadata={"recon_ros": json.dumps(facts, sort_keys=True)})
    sync(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    count = sum(p.numel() for p in network.parameters())
    say(f"{path.name}: {count / 1e6:.2f} M parameters, {path.stat().st_size / 1e6:.1f} MB")
    _update(card_path, {"sha256": digest, "parameters": str(count)})
    card = read_card(card_path)
    if dict(card.constructor) != _differences(network):
        raise NetworkError(f"{card_path}: its constructor is {dict(card.constructor)}, not {_differences(network)}")
    shutil.rmtree(card_path.with_suffix(""), ignore_errors=True)
    for width, height in sizes:
        folder = shipped_folder(card, width, height, "fp32", card_path.parent)
        opened = OpenedNetwork(load_network(card, path), card, digest)
        made = export_bundle(opened, width, height, options=GraphOptions(), folder=folder)
        slimmed = slim(made)
        total = sum(file.stat().st_size for file in slimmed.folder.iterdir())
        say(f"graphs for {width}x{height}: {total / 1e6:.1f} MB")
        for left in card_path.parent.glob(f"{card.name}/*.lock"):
            left.unlink()
    return path


def slim(bundle: Bundle) -> Bundle:
    """The bundle with large weights stored in half precision, where that changes no number."""
    with writing(bundle.folder) as part:
        for file in sorted(bundle.folder.iterdir()):
            if file.suffix == ".onnx":
                _slim_graph(file, part / file.name)
            elif file.name != PLAN:
                shutil.copyfile(file, part / file.name)
        assert (part / INITIAL).exists()
        return finish(part, bundle.folder, bundle.facts)


def _slim_graph(source: Path, target: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(source))
    casts: list[Any] = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        numbers = numpy_helper.to_array(weight)
        half = numbers.astype("float16")
        if numbers.size < SMALL_NUMBERS or (half.astype("float32") != numbers).any():
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.widened", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(target))


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous()


def _differences(network: Any) -> dict[str, Any]:
    """The configuration as a card writes it: only what is not the default."""
    config, usual = network.config, type(network.config)()
    return {name: value for name, value in vars(config).items() if value != getattr(usual, name)}


def _update(card_path: Path, values: dict[str, str]) -> None:
    """Replace single values of a card and leave its comments."""
    try:
        lines = card_path.read_text(encoding="utf-8").splitlines()
        yaml.safe_load("\n".join(lines))
    except (OSError, yaml.YAMLError) as error:
        raise NetworkError(f"cannot read the model card {card_path}: {error}") from error
    for name, value in values.items():
        found = [i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:")]
        if len(found) != 1:
            raise NetworkError(f"the model card {card_path} has {len(found)} lines of {name}, wanted one")
        line = lines[found[0]]
        lines[found[0]] = f"{line[: len(line) - len(line.lstrip())]}{name}: {value}"
    card_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
