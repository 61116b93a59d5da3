# SPDX-License-Identifier: Apache-2.0
"""What an engine was built from and for. Two keys are equal if, and only if, one engine does for both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.runtimes.bundle import Bundle
from recon_ros.runtimes.trt.builder import BuildOptions
from recon_ros.runtimes.trt.device import Gpu
from recon_ros.runtimes.trt.library import Library

NOT_IN_KEY = ("compute_capability", "timing_cache")
"""Build options that are elsewhere in the key, or that do not change what an engine gives."""

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
SHORT = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """All that an engine depends on.

    An engine of TensorRT is made for one GPU and driver. One of TensorRT-RTX is made for compute capabilities, runs
    with the very version of the library that made it, and its kernels are compiled when it is loaded: `gpu`,
    `sm_count` and `driver` are empty then.

    Attributes:
        model: name of the network.
        size: (width, height) of the image, pixels.
        precision, attention: arithmetic of the graphs.
        bundle_digest: tells the graphs and their weights apart from all others.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        library_version: in full.
        gpu: name of the GPU.
        compute_capability: ``8.7``; of TensorRT-RTX all that the engine is for, ``8.6,8.9,12.0``.
        sm_count: multiprocessors of the GPU; boards of one name may differ in it.
        driver: its version.
        options: of the build, by name, as text.
    """

    model: str
    size: tuple[int, int]
    precision: str
    attention: str
    bundle_digest: str
    library: str
    library_version: str
    gpu: str = ""
    compute_capability: str = ""
    sm_count: int = 0
    driver: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @property
    def folder_name(self) -> str:
        """``<model>_<height>x<width>_<precision>_trt10.7.0_sm87_<first 8 digits of a SHA-256 of the key>``."""
        width, height = self.size
        targets = "-".join(part.replace(".", "") for part in self.targets)
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
        library = f"{SHORT.get(self.library, self.library)}{self.library_version}"
        parts = (self.model, f"{height}x{width}", self.precision, library, f"sm{targets}", digest[:8])
        return "_".join(_plain(part) for part in parts)

    @property
    def targets(self) -> tuple[str, ...]:
        """The compute capabilities, one by one."""
        return tuple(part for part in self.compute_capability.split(",") if part)

    def serves(self, wanted: EngineKey) -> bool:
        """Whether an engine of this key does where one of `wanted` is asked for."""
        if self.library != "tensorrt_rtx":
            return self == wanted
        # An engine of TensorRT-RTX for several targets does for each of them.
        same = dataclasses.replace(self, compute_capability=wanted.compute_capability)
        return same == wanted and set(wanted.targets) <= set(self.targets)

    def is_like(self, other: EngineKey) -> bool:
        """Whether both are the same network at the same size and precision, whatever it was built with."""
        return (self.model, self.size, self.precision, self.library) == (
            other.model,
            other.size,
            other.precision,
            other.library,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self) | {"size": list(self.size), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineKey:
        """The inverse of `to_dict`.

        Raises:
            TypeError, ValueError: a field is missing, unknown or not of its kind.
        """
        width, height = (int(side) for side in values["size"])
        options = tuple((str(name), str(value)) for name, value in sorted(values["options"].items()))
        return cls(**{**values, "size": (width, height), "options": options})


def key_of(bundle: Bundle, library: Library, gpu: Gpu | None, options: BuildOptions) -> EngineKey:
    """The key of a bundle's engines.

    Args:
        bundle: whose graphs.
        library: that builds and runs them.
        gpu: of this machine; TensorRT-RTX needs none when `options` names compute capabilities.
        options: of the build.

    Raises:
        NetworkError: there is no GPU, and an engine without one would be for none.
    """
    facts = dataclasses.asdict(options)
    common = EngineKey(
        model=bundle.model,
        size=(bundle.plan.width, bundle.plan.height),
        precision=bundle.precision,
        attention=bundle.attention,
        bundle_digest=bundle.digest,
        library=library.name,
        library_version=library.version,
        options=tuple((name, str(value)) for name, value in sorted(facts.items()) if name not in NOT_IN_KEY),
    )
    if library.is_rtx and (options.compute_capability or gpu):
        return dataclasses.replace(
            common, compute_capability=options.compute_capability or (gpu.compute_capability if gpu else "")
        )
    if gpu is None:
        raise NetworkError(f"{library} builds engines for the GPU of this machine, and none is found here")
    return dataclasses.replace(
        common,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        sm_count=gpu.sm_count,
        driver=gpu.driver,
    )


def differences(there: EngineKey, wanted: EngineKey) -> list[str]:
    """Why an engine of the first key cannot serve the second: a clause for each field, the weightiest first."""
    title = TITLES.get(there.library, there.library)
    clauses: dict[str, Callable[[Any, Any], str]] = {
        "library_version": lambda a, b: f"built by {title} {a}, this is {b}",
        "gpu": lambda a, b: f"for another GPU: {a}, this is {b}",
        "compute_capability": lambda a, b: f"for compute capability {a}, not {b}",
        "sm_count": lambda a, b: f"for a GPU with {a} multiprocessors, this one has {b}",
        "driver": lambda a, b: f"built with driver {a}, this is {b}",
        "attention": lambda a, b: f"with attention {a}, not {b}",
        "options": lambda a, b: f"built with {_listed(a)}, not {_listed(b)}",
        "bundle_digest": lambda a, b: "of other weights, or of graphs that were exported otherwise",
    }
    if there.serves(wanted):
        return []
    differing = [name for name in clauses if getattr(there, name) != getattr(wanted, name)]
    if there.library == "tensorrt_rtx" and set(wanted.targets) <= set(there.targets):
        differing = [name for name in differing if name != "compute_capability"]
    return [clauses[name](getattr(there, name), getattr(wanted, name)) for name in differing]


def misfit(key: EngineKey, library: Library, gpu: Gpu | None) -> str:
    """Why this machine cannot run an engine; empty when nothing is known that speaks against it."""
    if gpu is None:
        return f"no GPU is found here, it is for {key.gpu or 'compute capability ' + key.compute_capability}"
    here = dataclasses.replace(key, library_version=library.version, compute_capability=gpu.compute_capability)
    if not library.is_rtx:
        here = dataclasses.replace(here, gpu=gpu.name, sm_count=gpu.sm_count, driver=gpu.driver)
    return "; ".join(differences(key, here))


def _listed(options: tuple[tuple[str, str], ...]) -> str:
    return " ".join(f"{name}={value}" for name, value in options) or "no options"


def _plain(text: str) -> str:
    """Fit for the name of a folder."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text)
