# SPDX-License-Identifier: Apache-2.0
"""What a step must do at least: operations, and bytes moved; and what a machine can do: the roofline.

Williams et al., "Roofline: an insightful visual performance model", CACM 2009. Counted are matrix products,
convolutions and attention, each reading its operands and writing its result once; all else is taken as fused into
them, and attention's scores never leave the chip. So the bytes are a floor, and the ratio is of what could be reached.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")
ATTENTION = "_scaled_dot_product"
BYTES = {"fp32": (4, 4), "fp16": (2, 2), "bf16": (2, 2), "int8": (1, 2)}
"""Precision → bytes of a weight and of an activation."""

DATASHEETS: dict[str, tuple[float, float, float]] = {
    "H200": (66.9e12, 989e12, 4.8e12),
    "H100": (66.9e12, 989e12, 3.35e12),
    "A100": (19.5e12, 312e12, 2.04e12),
    "RTX 5090": (104.8e12, 209.5e12, 1.79e12),
    "RTX 4090": (82.6e12, 165.2e12, 1.01e12),
    "RTX 3090": (35.6e12, 71e12, 0.936e12),
    "Orin": (5.3e12, 42.5e12, 0.205e12),
}
"""Part of a device's name → float32 operations a second (without TF32), those of fp16 and bf16 matrices (dense, summed
in float32), bytes a second. From NVIDIA's datasheets (H200, H100 SXM, A100 80GB SXM, Jetson AGX Orin 64GB, half of the
sparse figure) and architecture papers (GA102, Ada, Blackwell)."""


@dataclass(frozen=True)
class StepCost:
    """Of one step: operations (two for a multiplication with addition), and numbers moved.

    Attributes:
        flops: of all products.
        weights: numbers in the weights that are read.
        activations: numbers read and written beside them.
    """

    flops: float
    weights: float
    activations: float

    def nbytes(self, precision: str) -> float:
        """Bytes moved at least."""
        weight, activation = BYTES[precision]
        return self.weights * weight + self.activations * activation

    def least_seconds(self, precision: str, peak: Peak) -> float:
        """No step on a machine of this peak is faster."""
        return max(self.flops / peak.flops, self.nbytes(precision) / peak.bandwidth)


@dataclass(frozen=True)
class Peak:
    """What a device can do in a precision: operations and bytes a second, and where that is from."""

    flops: float
    bandwidth: float
    source: str


def count(executor: Any, image: NDArray[np.uint8]) -> StepCost:
    """Of a `TorchExecutor` in eager mode, by running a step."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    modules = executor._modules.values()
    stored = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    moved = {True: 0, False: 0}

    class Traffic(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            if name in PRODUCTS or name.startswith(ATTENTION):
                outputs = out if isinstance(out, tuple) else (out,)
                for tensor in (*args, outputs[0]):
                    if isinstance(tensor, torch.Tensor):
                        moved[tensor.untyped_storage().data_ptr() in stored] += tensor.numel()
            return out

    def attention(query: Any, key: Any, value: Any, *others: Any, **options: Any) -> int:
        batch, heads, queries, width = query
        return int(2 * batch * heads * queries * key[2] * (width + value[3]))

    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={cpu_attention: attention})
    with Traffic(), counter:
        executor.step(executor.initial(), image)
    return StepCost(float(counter.get_total_flops()), float(moved[True]), float(moved[False]))


def datasheet(device: str, precision: str) -> Peak | None:
    """What the maker says of a GPU; None when it is not in `DATASHEETS`."""
    for name, (single, half, bandwidth) in DATASHEETS.items():
        if name in device:
            return Peak(single if precision == "fp32" else half, bandwidth, f"datasheet of {name}")
    return None


def measure(device: str, precision: str, threads: int = 1) -> Peak | None:
    """What PyTorch reaches here with one large matrix product and one large copy; None of a precision it has not."""
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes or (device == "cpu" and precision == "fp16"):
        return None
    torch.set_num_threads(threads)
    size, copied = (8192, 2**30) if device == "cuda" else (1536, 2**27)
    left = torch.rand(size, size, device=device).to(dtypes[precision])
    source, target = torch.ones(2, copied, dtype=torch.uint8, device=device)
    product = _fastest(lambda: left @ left, device, threads)
    copy = _fastest(lambda: target.copy_(source), device, threads)
    return Peak(2 * size**3 / product, 2 * copied / copy, "measured: matrix product and copy")


def _fastest(call: Any, device: str, threads: int) -> float:
    """Seconds of a call; on the CPU those of its threads, which others do not disturb."""
    import torch

    clock = time.perf_counter if device == "cuda" else lambda: time.process_time() / threads
    times = []
    for _ in range(6):
        start = clock()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times[1:])
