# SPDX-License-Identifier: Apache-2.0
"""Weight files: read without running anything in them, compared strictly with the network, converted.

Official files are pickles of ``{'args', 'model', …}``. Only their tensors are wanted: torch's weights-only
reader refuses every other object, and the few harmless kinds that official files carry beside the weights
(the arguments of their training) are read as empty stand-ins. The constructor string among these arguments
is never looked at, much less evaluated; the configuration comes from the model card.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recon_ros.errors import NetworkError
from recon_ros.networks.recipe import canonical

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Dtype = Literal["fp32", "fp16", "bf16"]

# What training programs pickle beside the weights. None of it is imported; each becomes an `_Inert`.
_BESIDE_WEIGHTS = (
    "argparse.Namespace",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "collections.defaultdict",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "pathlib.PosixPath",
    "typing.Any",
)

# A key that only this family has, the most particular first.
_SIGNATURES = (
    ("vggt", "aggregator."),
    ("cut3r", "pose_retriever."),
    ("spann3r", "value_encoder."),
    ("mast3r", "downstream_head1.head_local_features."),
    ("dust3r", "downstream_head1."),
    ("croco", "prediction_head."),
)


class StateMismatch(NetworkError):
    """A state dict is not of the network it was meant for; every key at fault is named here.

    Attributes:
        missing: keys of the network that the state dict lacks.
        unexpected: keys of the state dict that the network does not know.
        misshaped: key → (shape wanted, shape found).
        contradicting: pairs of keys that name one tensor and hold different numbers.
    """

    def __init__(
        self,
        what: str,
        missing: list[str],
        unexpected: list[str],
        misshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
        contradicting: list[str],
        family: str | None,
    ) -> None:
        self.missing, self.unexpected, self.misshaped = missing, unexpected, misshaped
        self.contradicting = contradicting
        shapes = [f"{key} is {found}, not {wanted}" for key, (wanted, found) in misshaped.items()]
        parts = [
            _listed("missing", missing),
            _listed("unexpected", unexpected),
            _listed("of another shape", shapes),
            _listed("two names of one tensor with different numbers", contradicting),
        ]
        looks = f" (the file looks like a {family} checkpoint)" if family else ""
        super().__init__(f"the weights do not fit {what}{looks}: {'; '.join(part for part in parts if part)}")


class _Inert:
    """Stands for an object beside the weights; takes anything and keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of an official ``.pth`` or a ``.safetensors`` file, on the CPU, in the file's own dtype.

    A ``module.`` in front of every key (a trace of parallel training) is taken off. Nothing in the file is
    executed.

    Raises:
        NetworkError: the file is missing, damaged, holds objects other than weights, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise NetworkError(f"{path}: no such weight file; `recon models list` names the known ones")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = _find_state(path, content)
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return state


def load_into(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load `state` into `module`; its numbers are converted to the module's dtype.

    ``scratch.layer_rn.<n>`` and ``scratch.layer<n+1>_rn`` are one tensor; either name, or both, will do.

    Args:
        module: left untouched when `state` does not fit.
        state: key → tensor, as of `load_state_dict`.
        what: the network's name, for the message.

    Raises:
        StateMismatch: a key is missing, unexpected or has another shape.
    """
    module.load_state_dict(match(module, state, what), strict=True)


def match(module: nn.Module, state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`state` under exactly the keys of `module`, or a report of what does not fit.

    Works with a module on the ``meta`` device, so a file can be checked without room for a second network.

    Raises:
        StateMismatch: as of `load_into`.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    contradicting = _contradictions(state)
    by_canonical = {canonical(key): tensor for key, tensor in state.items()}
    fitted = {key: by_canonical[canonical(key)] for key in wanted if canonical(key) in by_canonical}
    missing = [key for key in wanted if key not in fitted]
    known = {canonical(key) for key in wanted}
    unexpected = [key for key in state if canonical(key) not in known]
    misshaped = {
        key: (wanted[key], tuple(tensor.shape)) for key, tensor in fitted.items() if tuple(tensor.shape) != wanted[key]
    }
    if missing or unexpected or misshaped or contradicting:
        family = guess_family(state) if missing or unexpected else None
        raise StateMismatch(what, missing, unexpected, misshaped, contradicting, family)
    return fitted


def guess_family(keys: Iterable[str]) -> str | None:
    """Which family a state dict's keys belong to; None when they tell nothing."""
    names = list(keys)
    for family, prefix in _SIGNATURES:
        if any(name.startswith(prefix) for name in names):
            return family
    return None


def convert(source: Path, target: Path, dtype: Dtype) -> dict[str, str]:
    """Write the weights of `source` as safetensors of one dtype; returns the metadata written with them.

    A tensor with two names is written once, under ``scratch.layer<n>_rn``. The file appears whole or not
    at all.

    Raises:
        NetworkError: as of `load_state_dict`, or the target does not end in ``.safetensors``, or a number
            does not fit the dtype.
    """
    if target.suffix != ".safetensors":
        raise NetworkError(f"{target}: the converted file must end in .safetensors")
    state = load_state_dict(source)
    tensors = {canonical(key): _cast(key, tensor, DTYPES[dtype]) for key, tensor in state.items()}
    metadata = {
        "format": "pt",
        "source": source.name,
        "source_sha256": sha256(source),
        "dtype": dtype,
        "family": guess_family(state) or "unknown",
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    try:
        save_file(tensors, partial, metadata)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return metadata


def read_metadata(path: Path) -> dict[str, str]:
    """What `convert` wrote beside the tensors; empty for a file of another program.

    Raises:
        NetworkError: the file cannot be read as safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise NetworkError(f"{path} is damaged or not a safetensors file: {error}") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise NetworkError(f"{path} is damaged or not a safetensors file: {error}; fetch it again") from error


def _read_pickle(path: Path) -> Any:
    stand_ins: list[Any] = [(_Inert, name) for name in _BESIDE_WEIGHTS]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|Trying to load unsupported GLOBAL (\S+)", str(error))
        if found is None:
            raise NetworkError(f"{path} is damaged or not a weight file; fetch it again") from error
        raise NetworkError(
            f"{path} holds more than weights: it asks for {next(filter(None, found.groups()))}. It was not "
            "loaded and nothing in it was run; get the file from its published address"
        ) from error
    except Exception as error:  # torch raises whatever the damaged bytes lead it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError(f"{path} is damaged or not a weight file ({reason}); fetch it again") from error


def _find_state(path: Path, content: Any) -> dict[str, Tensor]:
    """The weights in what a file held: under ``model``, under ``state_dict``, or the whole of it."""
    if isinstance(content, Mapping):
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content:
        raise NetworkError(f"{path} holds no weights: expected names and tensors, found {type(content).__name__}")
    strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise NetworkError(f"{path} holds no plain weights: {_listed('not tensors', strangers)}")
    return {str(key): tensor for key, tensor in content.items()}


def _contradictions(state: Mapping[str, Tensor]) -> list[str]:
    """Pairs of keys that mean one tensor but hold different numbers."""
    pairs = []
    for key, tensor in state.items():
        twin = canonical(key)
        if twin != key and twin in state and not _equal(tensor, state[twin]):
            pairs.append(f"{key} and {twin}")
    return pairs


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)


def _cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.contiguous().clone()
    cast = tensor.to(dtype, copy=True).contiguous()
    if tensor.isfinite().all() and not cast.isfinite().all():
        raise NetworkError(f"{key}: its largest number {tensor.abs().max():g} does not fit {dtype}")
    return cast


def _listed(title: str, names: list[str], limit: int = 8) -> str:
    """``3 missing: a, b, c``, cut after `limit` names; empty when there are none."""
    if not names:
        return ""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} {title}: {', '.join(names[:limit])}{rest}"
