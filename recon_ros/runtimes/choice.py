# SPDX-License-Identifier: Apache-2.0
"""Which ways of executing a network are tried, in which order, and what one needs to know of them to choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from recon_ros.config import Config
from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes.ladder import PRECISIONS, Ladder, Variant, in_order, make_ladder
from recon_ros.runtimes.step import StepRuntime

Size = tuple[int, int]
"""(width, height) of the network's image, pixels."""


@dataclass(frozen=True)
class Machine:
    """What matters of the machine: whether PyTorch has a CUDA device, whether the CPU has bf16 arithmetic."""

    cuda: bool = False
    bf16: bool = False


@dataclass(frozen=True)
class Lack:
    """Why a variant cannot be used now.

    Attributes:
        reason: a clause for people.
        command: what a user types to change it; empty when it is not a matter of a command of ours.
        buildable: this package can make what is missing, here.
    """

    reason: str
    command: str = ""
    buildable: bool = False

    def __str__(self) -> str:
        return f"{self.reason}: run `{self.command}`" if self.command else self.reason


class Unusable(NetworkError):
    """Files that are whole, and that who executes them refuses; they were put aside, and are to be made anew."""


class Progress(Protocol):
    """How far a build is; `recon_ros.runtimes.engine_build.BuildProgress`."""

    @property
    def phase(self) -> str: ...

    @property
    def fraction(self) -> float: ...

    @property
    def elapsed_s(self) -> float: ...


class Build(Protocol):
    """A build that goes on in another process; `recon_ros.runtimes.engine_build.BuildProcess`."""

    @property
    def progress(self) -> Progress: ...

    @property
    def running(self) -> bool: ...

    @property
    def done(self) -> bool:
        """It has ended, and what was asked for is there."""
        ...

    @property
    def failed(self) -> str | None:
        """Why it is neither running nor done."""
        ...

    def cancel(self) -> None: ...


class Driver(StepRuntime, Protocol):
    """A network's step on an executor; `recon_ros.runtimes.families.NetworkStep`."""

    def close(self) -> None: ...


class Checked(NamedTuple):
    """Result of the golden self-check: the largest error over its tolerance (1 is the limit), and whose it is; or why
    there is no result."""

    passed: bool
    share: float
    worst: str
    failure: str = ""

    def __str__(self) -> str:
        """A clause for people."""
        if self.failure:
            return f"the self-check failed: {self.failure}"
        if not math.isfinite(self.share):
            return f"wrong numbers: in the self-check {self.worst} is not finite"
        words = f"in the self-check {self.worst} is off by {self.share:.3g}× the tolerance"
        return words if self.passed else f"wrong numbers: {words}"


@dataclass(eq=False)
class Opened:
    """A variant that is loaded.

    Attributes:
        variant: which one.
        driver: the network's step on it.
        file: folder of its graphs or engines; empty where there are none.
        checked: its self-check; None for the reference itself.
    """

    variant: Variant
    driver: Driver
    file: str = ""
    checked: Checked | None = None


class Workshop(Protocol):
    """Finds, opens and builds variants of one network; `recon_ros.runtimes.workshop.NetworkWorkshop`."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def machine(self) -> Machine: ...

    def lack(self, variant: Variant, size: Size | None) -> Lack | None:
        """What a variant lacks; without a size, of what can be known before the first image."""
        ...

    def open(self, variant: Variant, size: Size) -> Opened:
        """Load a variant and check it.

        Raises:
            Unusable: `lack` will ask for new files.
            NetworkError: it cannot be used.
        """
        ...

    def build(self, variant: Variant, size: Size) -> Build:
        """Begin to build what it lacks. Raises NetworkError."""
        ...


def choose_ladders(config: Config, machine: Machine) -> list[Ladder]:
    """The ladders to climb down, the best first.

    With `runtime: auto` these are TensorRT, TensorRT-RTX, PyTorch on a CUDA device, OpenVINO, PyTorch on the CPU: a GPU
    before the CPU, and compiled before interpreted. A runtime asked for by name comes first, and the others after it,
    for when all that it gives is wrong.

    Raises:
        ConfigError: the runtime asked for does not have the precision asked for.
    """
    device = "cuda" if machine.cuda else "cpu"
    if config.runtime != "auto":
        asked = make_ladder(config.runtime, config.precision, device, config.engine.torch_mode, machine.bf16)
        return [asked, *(ladder for ladder in _all(config, machine) if ladder.rungs[0] not in asked.rungs)]
    return in_order(_all(config, machine), config.precision)


def _all(config: Config, machine: Machine) -> list[Ladder]:
    places = [("tensorrt", ""), ("tensorrt_rtx", ""), ("torch", "cuda"), ("openvino", ""), ("torch", "cpu")]
    if not machine.cuda:
        places.remove(("torch", "cuda"))
    ladders = []
    for runtime, device in places:
        precision = config.precision if config.precision in PRECISIONS[runtime] else "auto"
        ladders.append(make_ladder(runtime, precision, device, config.engine.torch_mode, machine.bf16))
    return ladders
