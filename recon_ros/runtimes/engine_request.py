# SPDX-License-Identifier: Apache-2.0
"""What is to be built, and how far it is: the words between who wants an engine and the process that builds it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.networks.fetch import cache_folder

RUNTIMES = ("openvino", "tensorrt", "tensorrt_rtx")
TARGETS = ("8.6", "8.9", "12.0")
"""Compute capabilities that TensorRT-RTX builds for when no GPU is here to be asked: GeForce RTX 30, 40 and 50."""


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """One network at one size for one runtime.

    Attributes:
        model: name of a card, or of a small network for tests.
        width, height: of the image, pixels.
        runtime: ``openvino`` runs the exported graphs as they are; ``tensorrt`` and ``tensorrt_rtx`` need engines.
        precision, attention: arithmetic of the graphs.
        update_rule: of a CUT3R.
        outputs: optional ones that are wanted.
        weights: file to take instead of the one in the cache.
        seeded: random weights that need no file; the map means nothing.
        targets: compute capabilities for TensorRT-RTX; empty takes this machine's GPU, or `TARGETS` without one.
        cache: folder of graphs and engines; empty takes the user's cache.
        out: folder for the graphs instead of the one in the cache.
    """

    model: str
    width: int
    height: int
    runtime: str = "tensorrt"
    precision: str = "fp16"
    attention: str = "softmax32"
    update_rule: str = "filt3r"
    outputs: tuple[str, ...] = ()
    weights: str = ""
    seeded: bool = False
    targets: tuple[str, ...] = ()
    cache: str = ""
    out: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            NetworkError: the runtime is unknown, has no use for targets, or not this precision.
        """
        if self.runtime not in RUNTIMES:
            raise NetworkError(f"runtime {self.runtime!r} needs nothing built; one of {', '.join(RUNTIMES)} does")
        if self.targets and self.runtime != "tensorrt_rtx":
            raise NetworkError(
                f"targets are for runtime tensorrt_rtx; {self.runtime} builds for this machine, not for "
                f"{', '.join(self.targets)}"
            )
        if self.precision == "int8" and self.runtime != "openvino":
            raise NetworkError(f"int8 is for runtime openvino; {self.runtime} has fp32, fp16 and bf16")

    @property
    def cache_root(self) -> Path:
        """Folder of graphs (``onnx/``) and engines (``engines/``)."""
        return Path(self.cache).expanduser() if self.cache else cache_folder()

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BuildRequest:
        """The inverse of `to_json`.

        Raises:
            NetworkError: it is not a request.
        """
        try:
            values = json.loads(text)
            tuples = {name: tuple(values.get(name, ())) for name in ("outputs", "targets")}
            return cls(**{**values, **tuples})
        except (ValueError, TypeError, AttributeError) as error:
            raise NetworkError(f"not a request to build something: {text!r} ({error})") from error


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        phase: what is being done, in words.
        fraction: of the whole, [0, 1].
        elapsed_s: since it was started, seconds.
    """

    phase: str = "starting"
    fraction: float = 0.0
    elapsed_s: float = 0.0

    @property
    def message(self) -> str:
        """``exporting decode, 37 %, 3:12``."""
        minutes, seconds = divmod(int(self.elapsed_s), 60)
        return f"{self.phase}, {self.fraction:.0%}, {minutes}:{seconds:02d}".replace("%", " %")


def check_size(card: ModelCard, width: int, height: int) -> None:
    """Refuse a size that the network's patches do not fill.

    Raises:
        NetworkError: the message names the nearest size that is usable.
    """
    good = tuple(nearest_side(side, card.multiple, card.max_size) for side in (height, width))
    if (height, width) == good:
        return
    limit = f" and at most {card.max_size}" if card.max_size else ""
    raise NetworkError(
        f"{card.name}: size {height}x{width} (height x width) is not usable, its sides must be multiples of "
        f"{card.multiple}{limit}; the nearest is {good[0]}x{good[1]}"
    )


def nearest_side(side: int, multiple: int, most: int | None) -> int:
    """The nearest multiple, in pixels."""
    largest = most // multiple if most else side // multiple + 1
    return multiple * max(1, min(round(side / multiple), largest))
