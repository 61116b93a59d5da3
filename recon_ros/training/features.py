# SPDX-License-Identifier: Apache-2.0
"""What the frozen encoder says of the training images, computed once and kept beside them.

The encoder is most of the network's work, and frozen: with its answers on the disk a training step takes what the
rest takes. In a shard, ``<name>_f8.npy`` and ``<name>_f16.npy`` (N, F, C, h, w) float16 lie beside ``images.npy``,
and ``<name>.json`` says which encoder and weights they are of. OpenVINO computes them where it is installed, in
bfloat16 where the processor has it and the numbers stay close to PyTorch's; else PyTorch does.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recon_ros.disk import sync
from recon_ros.errors import DatasetError, NetworkError
from recon_ros.runtimes.openvino_executor import cpu_precisions, require_openvino
from recon_ros.training.batches import Shard, finished
from recon_ros.training.initial import Say

TOLERANCES = {"bf16": 0.05, "fp32": 1e-3}
"""Largest error of OpenVINO's features against PyTorch's in float32, both squared means under the root."""
Encode = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""(H, W, 3) uint8 RGB → (C8, H/8, W/8) and (C16, H/16, W/16)."""


def cache_features(
    folder: Path, encoder: nn.Module, name: str, threads: int = 1, say: Say = lambda sentence: None
) -> list[Path]:
    """Write the features of all finished shards that lack them, or have them of other weights.

    A shard's features appear when all of them are there. Ended at any time, the next call begins again with the shard
    it was at. Call it again as shards are added; one process at a time.

    Args:
        folder: of shards, or one shard.
        encoder: frozen, (1, 3, H, W) float32 in [0, 1] → `networks.hiera.Encoded`; used in evaluation mode.
        name: what the files are called by, as in `CompactConfig.encoder`.
        threads: to compute with.
        say: hears what is being done.

    Returns:
        The shards that were written.

    Raises:
        DatasetError: no finished shard is there, or one cannot be read or written.
    """
    shards = finished(Path(folder))
    if not shards:
        raise DatasetError(f"{folder} holds no finished shard (shard.json); render some first")
    digest = fingerprint(encoder)
    todo = [shard for shard in shards if _known(shard, name) != digest]
    say(f"{len(shards)} shards, {len(todo)} of them without features of {name} {digest[:12]}")
    about = {"encoder": name, "shape": repr(getattr(encoder, "config", "")), "fingerprint": digest}
    encoders: dict[tuple[int, int], tuple[Encode, str]] = {}
    for count, shard in enumerate(todo, 1):
        images = Shard.open(shard, None).images
        size = images.shape[2:4]
        if size not in encoders:
            encoders[size] = fastest(encoder, images[0, :2], threads, say)
        encode, how = encoders[size]
        start = time.monotonic()
        _write(shard, name, images, encode, {**about, "computed": how})
        rate = images.shape[0] * images.shape[1] / (time.monotonic() - start)
        say(f"{shard.name}: done, {rate:.1f} images a second ({count} of {len(todo)})")
    return todo


def fingerprint(encoder: nn.Module) -> str:
    """SHA-256 of an encoder's weights with their names."""
    digest = hashlib.sha256()
    for key, tensor in encoder.state_dict().items():
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fastest(
    encoder: nn.Module, samples: NDArray[np.uint8], threads: int, say: Say = lambda sentence: None
) -> tuple[Encode, str]:
    """The quickest way to run an encoder on this processor whose numbers are right, and its name.

    Args:
        encoder: as of `cache_features`.
        samples: (n, H, W, 3) uint8, of the size that will be encoded; its answers to these are compared.
        threads: to compute with.
        say: hears what was refused, and why.
    """
    encoder.eval()
    reference = _by_torch(encoder, threads)
    wanted = [reference(image) for image in samples]
    try:
        available = cpu_precisions()
    except NetworkError as reason:
        say(f"PyTorch computes the features: {reason}")
        return reference, "pytorch fp32"
    for precision in [precision for precision in TOLERANCES if precision in available]:
        encode = _by_openvino(encoder, samples.shape[1:3], precision, threads)
        error = _distance([encode(image) for image in samples], wanted)
        if error <= TOLERANCES[precision]:
            say(f"OpenVINO computes the features in {precision}, {error:.2g} from PyTorch's")
            return encode, f"openvino {precision}"
        say(f"OpenVINO in {precision} is not used: {error:.2g} from PyTorch's, more than {TOLERANCES[precision]}")
    return reference, "pytorch fp32"


def _by_torch(encoder: nn.Module, threads: int) -> Encode:
    def encode(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                f8, f16 = encoder(_tensor(image))
        finally:
            torch.set_num_threads(before)
        return f8[0].numpy(), f16[0].numpy()

    return encode


def _by_openvino(encoder: nn.Module, size: tuple[int, ...], precision: str, threads: int) -> Encode:
    openvino = require_openvino()
    with torch.no_grad():
        program = torch.export.export(encoder, (torch.zeros(1, 3, *size),))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    model = openvino.Core().compile_model(openvino.convert_model(program), "CPU", options)
    request = model.create_infer_request()

    def encode(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        answer = request.infer({0: _tensor(image).numpy()})
        return answer[0][0], answer[1][0]

    return encode


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 → (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(torch.float32).div(255).contiguous()


def _distance(answers: list[Any], wanted: list[Any]) -> float:
    """The largest relative error of any image's f8 or f16; infinite when something is not finite."""
    worst = 0.0
    for pair, truth in zip(answers, wanted, strict=True):
        for a, b in zip(pair, truth, strict=True):
            error = float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))
            worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def _known(shard: Path, name: str) -> str | None:
    """Fingerprint of the weights that a shard's features are of; None when it has none."""
    try:
        record = json.loads((shard / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record.get("fingerprint") if isinstance(record, dict) else None


def _write(shard: Path, name: str, images: NDArray[np.uint8], encode: Encode, record: dict[str, str]) -> None:
    """A shard's features, its record last: what reads it in between finds the old ones, or none."""
    targets = [shard / f"{name}_f8.npy", shard / f"{name}_f16.npy"]
    parts = [target.with_name(target.name + ".part") for target in targets]
    try:
        arrays: list[np.memmap[Any, np.dtype[np.float16]]] = []
        for sequence, frame in np.ndindex(*images.shape[:2]):
            answer = encode(images[sequence, frame])
            if not arrays:
                shapes = [(*images.shape[:2], *features.shape) for features in answer]
                arrays = [
                    np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
                    for part, shape in zip(parts, shapes, strict=True)
                ]
            for array, features in zip(arrays, answer, strict=True):
                array[sequence, frame] = features
        for array, part in zip(arrays, parts, strict=True):
            array.flush()
            sync(part)
        (shard / f"{name}.json").unlink(missing_ok=True)
        for part, target in zip(parts, targets, strict=True):
            os.replace(part, target)
        record_part = shard / f"{name}.json.part"
        record_part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(record_part, shard / f"{name}.json")
    except OSError as error:
        raise DatasetError(f"{shard} cannot take features: {error.strerror or error}") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
