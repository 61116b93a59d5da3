# SPDX-License-Identifier: Apache-2.0
"""The full-size CUT3R step on this CPU: what is asked for, beside everything, beside the published code's figures.

`python -m benchmarks.networks [--size 512x384] [--steps 3] [--threads 2] [--write-readme]`

Weights are drawn from the seeded recipe: timing does not depend on their values. The two modes take turns in one
process on the same images, so that both meet the same disturbances. The published code's figures were measured
elsewhere (CPU, fp32, two threads, machine of the same kind); CPU-seconds are the ones to compare, wall time on a
shared machine is not reliable.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import readme
from benchmarks.machine import Machine
from recon_ros.runtimes.step import StepRuntime

OFFICIAL = {(512, 384): (10.6, 17.8, 3.9), (224, 224): (3.6, 6.6, 3.5)}
"""Size → wall seconds, CPU-seconds and peak GiB a frame of the published CUT3R-512-dpt."""


@dataclass(frozen=True)
class Timing:
    """Of one mode at one size: wall and CPU seconds of each step."""

    mode: str
    wall: list[float]
    cpu: list[float]


def measure(width: int, height: int, steps: int, threads: int, model: str = "cut3r_512_dpt") -> list[Timing]:
    """Time both modes in turns, the first round unmeasured."""
    import torch

    from recon_ros.networks.graphs import build_graphs
    from recon_ros.runtimes.families import make_step
    from recon_ros.runtimes.torch_executor import TorchExecutor
    from recon_ros.runtimes.torch_network import open_network

    torch.set_num_threads(threads)
    opened = open_network(model, seeded=True)
    source = make_step(TorchExecutor(build_graphs(opened.network, opened.card, width, height)), opened.card)
    modes: dict[str, StepLoop | NetworkLoop] = {
        "self points and pose": StepLoop(source),
        "everything": NetworkLoop(opened.network),
    }
    timings = {mode: Timing(mode, [], []) for mode in modes}
    rng = np.random.default_rng(0)
    for step in range(steps + 1):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for mode, loop in modes.items():
            wall, cpu = time.perf_counter(), time.process_time()
            loop.take_in(image)
            if step > 0:
                timings[mode].wall.append(time.perf_counter() - wall)
                timings[mode].cpu.append(time.process_time() - cpu)
    return list(timings.values())


class StepLoop:
    """The step as the node runs it."""

    def __init__(self, source: StepRuntime) -> None:
        self.source, self.memory = source, source.initial_memory()

    def take_in(self, image: NDArray[np.uint8]) -> None:
        self.memory, _ = self.source.step(self.memory, image, None)


class NetworkLoop:
    """The network by itself, with all that it can say: as the published code runs it, with our update rule."""

    def __init__(self, network: Any) -> None:
        from recon_ros.networks.update_rules import Filt3r

        self.network, self.rule = network, Filt3r()
        self.memory = network.initial_memory(1, self.rule)

    def take_in(self, image: NDArray[np.uint8]) -> None:
        import torch

        from recon_ros.networks.cut3r import View
        from recon_ros.networks.cut3r_heads import OUTPUTS
        from recon_ros.networks.patches import image_tensor

        with torch.inference_mode():
            view, memory = View(image_tensor(image, 16)), self.memory
            feature, grid = self.network.encode(view, mask_image=False, mask_rays=False)
            decoded = self.network.decode(feature, grid, memory.state, memory.pose_memory, memory.is_first, OUTPUTS)
            self.memory = self.network.advance(memory, decoded, view, self.rule)


def rows(size: tuple[int, int], timings: Sequence[Timing], peak_gib: float) -> list[list[str]]:
    """Table rows: each mode, then the published figures, with ratios of CPU-seconds to the first mode."""
    first = min(timings[0].cpu)
    name = f"{size[0]}x{size[1]}"
    result = [
        [name, t.mode, f"{min(t.wall):.2f}", f"{np.median(t.wall):.2f}", f"{min(t.cpu):.2f}",
         f"{min(t.cpu) / first:.2f} ×", f"{peak_gib:.1f}"]
        for t in timings
    ]  # fmt: skip
    if size in OFFICIAL:
        wall, cpu, gib = OFFICIAL[size]
        result.append([name, "published code", f"{wall:.2f}", "", f"{cpu:.2f}", f"{cpu / first:.2f} ×", f"{gib:.1f}"])
    return result


def main() -> None:
    """Measure, print, and write the README's block when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", action="append", help="WIDTHxHEIGHT; repeatable; default 224x224 and 512x384")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write-readme", action="store_true")
    options = parser.parse_args()
    console = Console()
    machine = Machine()
    table: list[list[str]] = []
    for text in options.size or ["224x224", "512x384"]:
        width, height = map(int, text.split("x"))
        with console.status(f"CUT3R-512-dpt at {text}: weights, then {options.steps} steps of each mode"):
            timings = measure(width, height, options.steps, options.threads)
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        table += rows((width, height), timings, peak_gib)
    header = ["size", "computes", "wall min s", "wall median s", "CPU min s", "CPU, of the first", "peak GiB"]
    text = f"Measured on: {machine.finish().line()}; {options.threads} threads, fp32.\n\n{readme.table(header, table)}"
    console.print(text)
    if options.write_readme:
        readme.write_block("networks", text)


if __name__ == "__main__":
    main()
