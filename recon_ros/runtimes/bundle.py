# SPDX-License-Identifier: Apache-2.0
"""A network as files: one folder with ONNX graphs, the plan, the first memory and golden answers.

``plan.json`` names every other file with its size and SHA-256, and carries its own; nothing in a bundle is
pickled. A bundle is written beside its place and moved there when it is whole, so that there is never half of one.
Knows nothing of torch.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from recon_ros.disk import sync, sync_folder
from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.networks.fetch import cache_folder, file_digest
from recon_ros.networks.plan import BYTES, NEXT, GraphSpec, StepPlan, TensorSpec
from recon_ros.runtimes.golden import sample_sizes

EXPORT_VERSION = 1
"""Counts changes of what an export writes; bundles of another version are not read, and made anew.

To be raised with a change after which an older bundle would be refused, or used and give other answers: of a graph's
tensors, their names or what they mean; of the numbers that a network computes; of the golden images, steps or samples;
of the layout of a bundle. Not with one that makes graphs faster and leaves their answers within the self-check.
"""

PLAN, INITIAL, GOLDEN = "plan.json", "initial.npz", "golden.npz"

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says when a disk, or the share of it that a user may fill, is full."""

POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """What a bundle says of itself.

    Attributes:
        model: the name it was opened by.
        card: of the network.
        terms: what the licence of the weights asks of a user, with the address of its text; may be empty.
        precision, attention: see `recon_ros.networks.precision`; of a quantised bundle ``int8``.
        options: of the graphs, by name.
        weights_digest: tells the weights apart.
        made_by: library and version that exported it.
        plan: the graphs and their tensors.
    """

    model: str
    card: ModelCard
    terms: str
    precision: str
    attention: str
    options: Mapping[str, Any]
    weights_digest: str
    made_by: str
    plan: StepPlan


@dataclass(frozen=True, kw_only=True)
class Bundle(BundleFacts):
    """A bundle on the disk, checked.

    Attributes:
        folder: where it lies.
        digest: SHA-256 of all that it is; changes with any bit of any file.
    """

    folder: Path
    digest: str

    def onnx(self, graph: str) -> Path:
        """The file of a graph of the plan: ONNX, or in an int8 bundle OpenVINO's own format, its weights beside it."""
        return self.folder / f"{graph}.{'xml' if self.precision == 'int8' else 'onnx'}"

    def initial(self) -> dict[str, NDArray[Any]]:
        """The memory before the first image: name → array as the plan has it.

        Raises:
            NetworkError: the file cannot be read, or is not of this plan.
        """
        wanted = {name: self.plan.tensors[name] for name in self.plan.memory}
        return _load(self.folder / INITIAL, {name: (spec.shape, spec.dtype) for name, spec in wanted.items()})

    def golden(self) -> dict[str, NDArray[np.float32]]:
        """What the float32 network answered, see `golden.record`.

        Raises:
            NetworkError: the file cannot be read, or is not of this plan.
        """
        return _load(self.folder / GOLDEN, {name: ((n,), "float32") for name, n in sample_sizes(self.plan).items()})

    @property
    def facts(self) -> BundleFacts:
        """What it says of itself, for a bundle that is made from this one."""
        return BundleFacts(**{item.name: getattr(self, item.name) for item in dataclasses.fields(BundleFacts)})


def bundle_folder(
    model: str, width: int, height: int, precision: str, attention: str, options: Any, weights_digest: str
) -> Path:
    """Where a bundle lies in the cache; another for everything that makes it another.

    Args:
        model: name it is opened by.
        width, height: of the image, pixels.
        precision, attention: see `recon_ros.networks.precision`.
        options: of the graphs: a dataclass or a mapping.
        weights_digest: of the weights.
    """
    key = [EXPORT_VERSION, model, width, height, precision, attention, plain_options(options), weights_digest]
    digest = hashlib.sha256(_canonical(key)).hexdigest()
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-")[:60]
    return cache_folder() / "onnx" / f"{plain}_{height}x{width}_{precision}_{attention}_{digest[:8]}"


def plain_options(options: Any) -> dict[str, Any]:
    """Options of a dataclass or a mapping as JSON gives them back."""
    values = dict(options) if isinstance(options, Mapping) else dataclasses.asdict(options)
    plain: dict[str, Any] = json.loads(_canonical(values))
    return plain


# Reading


def load_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, after a look at every byte of it.

    Raises:
        NetworkError: there is none, it is of another version, or a file is missing, damaged or not its own; the
            message names the file.
    """
    path = folder / PLAN
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NetworkError(f"{folder} holds no exported network: there is no {PLAN}") from error
    except (OSError, ValueError) as error:
        raise NetworkError(f"cannot read {path}: {error}; {_AGAIN}") from error
    version = data.get("export_version") if isinstance(data, dict) else None
    if version != EXPORT_VERSION:
        raise NetworkError(f"{path} is of export version {version}, this program reads {EXPORT_VERSION}; {_AGAIN}")
    digest = data.pop("digest", None)
    if digest != hashlib.sha256(_canonical(data)).hexdigest():
        raise NetworkError(f"{path} is damaged or was edited: its SHA-256 is not the one in it; {_AGAIN}")
    try:
        facts = _facts_from(data["facts"])
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in data["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NetworkError(f"{path} is not a plan: {error}; {_AGAIN}") from error
    bundle = Bundle(folder=folder, digest=digest, **_fields(facts))
    missing = {INITIAL, GOLDEN, *(bundle.onnx(graph.name).name for graph in facts.plan.graphs)} - set(files)
    if missing:
        raise NetworkError(f"{path} does not list {', '.join(sorted(missing))}; {_AGAIN}")
    for name, (size, sha) in files.items():
        _check_file(folder, name, size, sha)
    return bundle


_AGAIN = "remove the folder and export the network again"


def _check_file(folder: Path, name: str, size: int, sha: str) -> None:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise NetworkError(f"{path} is missing; {_AGAIN}")
    if path.stat().st_size != size:
        raise NetworkError(f"{path} has {path.stat().st_size} bytes, not {size}: it is truncated or another; {_AGAIN}")
    if file_digest(path) != sha:
        raise NetworkError(f"{path} is damaged or was replaced: its SHA-256 is not that in {PLAN}; {_AGAIN}")


def _load(path: Path, wanted: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise NetworkError(f"cannot read {path}: {error}; {_AGAIN}") from error
    found = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise NetworkError(f"{path}: {name} is {found.get(name)}, the plan has {wanted.get(name)}; {_AGAIN}")
    return {name: arrays[name] for name in wanted}


# Writing


@contextmanager
def writing(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """An empty folder beside `folder`, for `finish`; only one process at a time has it, the others wait.

    Removed at the end whatever happens; what a killed process left there is removed at the beginning.

    Args:
        folder: of the bundle.
        waiting: called every fraction of a second while another process has it; may raise to wait no longer.

    Raises:
        NetworkError: the disk is full, or does not take it for another reason.
    """
    part = folder.with_name(folder.name + ".part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock"), waiting):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                yield part
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        what = str(error.strerror or error)
        if error.errno in NO_ROOM:
            what = f"the disk is full ({what}); make room, or set engine.cache to a folder on another disk"
        raise NetworkError(f"cannot write the exported network to {folder}: {what}") from error


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=POLL_S)
            break
        except Timeout:
            waiting()
    try:
        yield
    finally:
        lock.release()


def finish(part: Path, folder: Path, facts: BundleFacts) -> Bundle:
    """Make the files in `part` (of `writing`) the bundle in `folder`; one that lies there is replaced.

    Raises:
        NetworkError: a file that the plan needs is not there.
        OSError: the disk does not take it; `writing` says so in words.
    """
    names = sorted(path.name for path in part.iterdir())
    files = {name: (os.path.getsize(part / name), file_digest(part / name)) for name in names}
    data = {"export_version": EXPORT_VERSION, "facts": _facts_to(facts), "files": files}
    digest = hashlib.sha256(_canonical(data)).hexdigest()
    (part / PLAN).write_text(json.dumps({"digest": digest, **data}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    sync_folder(part)
    if folder.exists():
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
        os.rename(part, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(part, folder)
    sync(folder.parent)
    return load_bundle(folder)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """`arrays` as an .npz file whose bytes depend on nothing else."""
    np.savez(path, allow_pickle=False, **dict(arrays))


# JSON


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _fields(facts: BundleFacts) -> dict[str, Any]:
    return {item.name: getattr(facts, item.name) for item in dataclasses.fields(facts)}


def _facts_to(facts: BundleFacts) -> dict[str, Any]:
    plan = facts.plan
    card = {item.name: getattr(facts.card, item.name) for item in dataclasses.fields(ModelCard)}
    return _fields(facts) | {
        "card": card,
        "options": plain_options(facts.options),
        "plan": _fields_of_plan(plan)
        | {
            "graphs": [dataclasses.asdict(graph) for graph in plan.graphs],
            "tensors": {name: [list(spec.shape), spec.dtype] for name, spec in plan.tensors.items()},
        },
    }


def _fields_of_plan(plan: StepPlan) -> dict[str, Any]:
    return {item.name: getattr(plan, item.name) for item in dataclasses.fields(plan)}


def _facts_from(data: Mapping[str, Any]) -> BundleFacts:
    card = ModelCard(**data["card"])
    return BundleFacts(**{**data, "card": card, "plan": _plan_from(data["plan"])})


def _plan_from(data: Mapping[str, Any]) -> StepPlan:
    tensors = {name: TensorSpec(tuple(map(int, shape)), dtype) for name, (shape, dtype) in data["tensors"].items()}
    graphs = tuple(
        GraphSpec(g["name"], tuple(g["inputs"]), tuple(g["outputs"]), bool(g.get("exact"))) for g in data["graphs"]
    )
    plan = StepPlan(
        **{**data, "graphs": graphs, "tensors": tensors, "memory": tuple(data["memory"])}
        | {"fetched": tuple(data["fetched"])}
    )
    made = {name for graph in graphs for name in graph.outputs}
    used = {name for graph in graphs for name in graph.inputs} | made
    unknown = (used | set(plan.memory)) - set(tensors) | {name for name in plan.memory if name + NEXT not in made}
    unknown |= set(plan.fetched) - made
    if unknown or any(spec.dtype not in BYTES or min(spec.shape, default=1) < 1 for spec in tensors.values()):
        raise ValueError(f"its tensors do not fit together: {', '.join(sorted(unknown)) or 'shape or type'}")
    return plan
