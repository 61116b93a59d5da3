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

import numpy as np
from rich.console import Console

from benchmarks import readme
from benchmarks.machine import Machine

OFFICIAL = {(512, 384): (10.6, 17.8, 3.9), (224, 224): (3.6, 6.6, 3.5)}
"""Size → wall seconds, CPU-seconds and peak GiB a frame of the published CUT3R-512-dpt."""
MODES = {"self points and pose": ("self", "pose"), "everything": ("self", "pose", "cross", "rgb")}


@dataclass(frozen=True)
class Timing:
    """Of one mode at one size: wall and CPU seconds of each step."""

    mode: str
    wall: list[float]
    cpu: list[float]


def measure(width: int, height: int, steps: int, threads: int) -> list[Timing]:
    """Time both modes in turns, the first round unmeasured."""
    import torch

    from recon_ros.networks.card import ModelCard
    from recon_ros.networks.cut3r import Cut3r, Cut3rConfig
    from recon_ros.networks.cut3r_step import Cut3rStep
    from recon_ros.networks.recipe import draw

    torch.set_num_threads(threads)
    with torch.device("meta"):
        network = Cut3r(Cut3rConfig.dpt_512())
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            tensor.copy_(torch.from_numpy(draw(key, tensor.shape, seed=0)))
    card = ModelCard(name="cut3r_512_dpt, drawn weights", family="cut3r", multiple=16, unbounded_confidence=True)
    sources = {mode: Cut3rStep(network, card, wanted=wanted) for mode, wanted in MODES.items()}
    memories = {mode: source.initial_memory() for mode, source in sources.items()}
    timings = {mode: Timing(mode, [], []) for mode in MODES}
    rng = np.random.default_rng(0)
    for step in range(steps + 1):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for mode, source in sources.items():
            wall, cpu = time.perf_counter(), time.process_time()
            memories[mode], _ = source.step(memories[mode], image, None)
            if step > 0:
                timings[mode].wall.append(time.perf_counter() - wall)
                timings[mode].cpu.append(time.process_time() - cpu)
    return list(timings.values())


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
