# SPDX-License-Identifier: Apache-2.0
"""In which ways a network can be executed, and which of them comes next when one gives wrong numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from recon_ros.errors import ConfigError

HALF_ATTENTION, EXACT_ATTENTION = "softmax32", "fp32"

RUNGS = (
    ("int8", HALF_ATTENTION),
    ("fp16", HALF_ATTENTION),
    ("fp16", EXACT_ATTENTION),
    ("bf16", HALF_ATTENTION),
    ("fp32", HALF_ATTENTION),
)
"""(precision, attention) from fast to exact. Fused half-precision attention is what runtimes get wrong first, so it is
what is made exact first; bf16 has float32's range, against overflow, and fewer digits; float32 is the last resort."""

PRECISIONS = {
    "tensorrt": ("fp16", "bf16", "fp32"),
    "tensorrt_rtx": ("fp16", "bf16", "fp32"),
    "openvino": ("int8", "bf16", "fp32"),
    "torch": ("fp16", "bf16", "fp32"),
}
"""What each runtime has. OpenVINO's bf16 and int8 are for CPUs; its fp16 is for graphics."""


@dataclass(frozen=True)
class Variant:
    """One way to execute a network.

    Attributes:
        runtime: ``torch``, ``openvino``, ``tensorrt`` or ``tensorrt_rtx``.
        precision: of the trunk.
        attention: as `recon_ros.networks.precision.prepare` takes it.
        device: ``cpu`` or ``cuda``.
        mode: of torch: ``eager``, ``compile``, ``graphs`` or ``compile_graphs``.
    """

    runtime: str
    precision: str
    attention: str = HALF_ATTENTION
    device: str = "cpu"
    mode: str = ""

    @property
    def is_reference(self) -> bool:
        """It is what the others are checked against."""
        return (self.runtime, self.precision, self.mode) == ("torch", "fp32", "eager")

    def __str__(self) -> str:
        words = [self.runtime, self.precision]
        if self.attention == EXACT_ATTENTION and self.precision != "fp32":
            words.append("with fp32 attention")
        if self.runtime == "torch":
            words.append(f"on {self.device}")
        if self.mode not in ("", "eager"):
            words.append(f"({self.mode})")
        return " ".join(words)


@dataclass(frozen=True)
class Ladder:
    """The ways to execute a network with one runtime, the preferred one first.

    `free` tells that a lower rung may serve merely because it is ready; otherwise the first is what was asked for,
    and only its wrong numbers lead on.
    """

    rungs: tuple[Variant, ...]
    free: bool = True

    @property
    def runtime(self) -> str:
        return self.rungs[0].runtime


def make_ladder(runtime: str, precision: str, device: str = "cpu", mode: str = "eager", bf16: bool = True) -> Ladder:
    """The rungs from `precision` downwards that the runtime has.

    Args:
        runtime: its name.
        precision: ``auto`` takes fp16 on a GPU: of the half precisions it has the more digits (relative error 1e-3
            against bf16's 9e-3), at the same speed, and its overflows do not pass the self-check. With OpenVINO bf16
            where the CPU has it: twice as fast as fp32, from the same graphs. PyTorch on a CPU takes fp32: it is the
            reference itself there, and who wants speed on a CPU is better served by OpenVINO in every precision.
        device, mode: of torch.
        bf16: whether the CPU has bf16 arithmetic.

    Raises:
        ConfigError: the runtime does not have this precision.
    """
    has, free = PRECISIONS[runtime], precision == "auto"
    if precision == "auto":
        on_gpu = runtime.startswith("tensorrt") or device == "cuda"
        precision = "fp16" if on_gpu else "bf16" if runtime == "openvino" and bf16 else "fp32"
    elif precision not in has:
        raise ConfigError(f"option 'precision' is '{precision}'; runtime {runtime} has {', '.join(has)}")
    rungs = [
        Variant(runtime, name, attention, device if runtime == "torch" else "", mode if runtime == "torch" else "")
        for name, attention in RUNGS[_first(precision) :]
        if name in has and not (runtime == "openvino" and name == "bf16" and not bf16 and precision != "bf16")
    ]
    if runtime == "torch" and mode != "eager":
        rungs.append(Variant("torch", "fp32", HALF_ATTENTION, device, "eager"))
    return Ladder(tuple(rungs), free)


def _first(precision: str) -> int:
    return next(i for i, (name, _) in enumerate(RUNGS) if name == precision)


def in_order(ladders: Collection[Ladder], precision: str) -> list[Ladder]:
    """The ladders that begin with the precision asked for come first."""
    return sorted(ladders, key=lambda ladder: precision not in ("auto", ladder.rungs[0].precision))
