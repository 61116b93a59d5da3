# SPDX-License-Identifier: Apache-2.0
"""Runtimes on this CPU side by side: latency, throughput, memory, error and roofline of a network's step.

`python -m benchmarks.runtimes [--model NAME] [--size 512x384] [--runtime openvino] [--seeded] [--write-readme]`

Each runtime has a process of its own; all are open at once and take turns step by step, unless told to go one by one.
CPU seconds are the ones to compare on a shared machine. The first row is fp32 PyTorch computing all outputs, as the
published code does. On a GPU: benchmarks/gpu.sh.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import readme, step_cost
from benchmarks.arena import Outcome, race
from benchmarks.contenders import Contender, Subject
from benchmarks.machine import Machine
from recon_ros.networks.fetch import cache_folder
from recon_ros.runtimes.openvino_executor import cpu_precisions

MODELS = ("cut3r_512_dpt",)
SIZES = ("224x224", "512x384")
SMALL_SIZE = "96x64"
HEADER = (
    "network",
    "runtime",
    "CPU min s",
    "speed-up",
    "wall min s",
    "wall median s",
    "steps a second",
    "peak MB",
    "error",
    "of",
    "of the roofline",
)


def contenders(runtimes: Sequence[str]) -> list[Contender]:
    """The published way and the reference, and then what was asked for that this processor has."""
    found = [Contender("torch", everything=True), Contender("torch")]
    if "torch" in runtimes:
        found += [Contender("torch", "bf16")]
    if "compile" in runtimes:
        found += [Contender("torch", mode="compile"), Contender("torch", "bf16", mode="compile")]
    if "openvino" in runtimes:
        found += [Contender("openvino", precision) for precision in cpu_precisions()]
    return found


def rows(subject: Subject, outcomes: Sequence[Outcome], peaks: dict[str, step_cost.Peak | None]) -> list[list[str]]:
    """One row a runtime; speed-up is over the first, in CPU seconds."""
    first = min(outcomes[0].cpu_s, default=None)
    cost = next((outcome.cost for outcome in outcomes if outcome.cost), None)
    result = []
    for outcome in outcomes:
        name = str(outcome.contender)
        if not outcome.wall_s:
            result.append([str(subject), name, f"not run: {outcome.failure}", *["–"] * (len(HEADER) - 3)])
            continue
        cpu, wall = min(outcome.cpu_s), min(outcome.wall_s)
        peak = peaks.get(outcome.contender.precision)
        # CPU seconds are of all threads, the roofline is of them together: its seconds are wall seconds.
        share = cost and peak and cost.least_seconds(outcome.contender.precision, peak) * subject.threads / cpu
        worst = max(outcome.errors, key=outcome.errors.__getitem__, default="")
        result.append(
            [
                str(subject),
                name,
                f"{cpu:.3f}",
                "–" if first is None else f"{first / cpu:.2f} ×",
                f"{wall:.3f}",
                f"{np.median(outcome.wall_s):.3f}",
                f"{1 / np.median(outcome.wall_s):.2f}",
                f"{outcome.peak_mb:,.0f}",
                f"{outcome.errors[worst]:.1e}" if worst else "–",
                worst,
                f"{share:.0%}" if share and not outcome.contender.everything else "–",
            ]
        )
    return result


def describe(subject: Subject, outcomes: Sequence[Outcome], peaks: dict[str, step_cost.Peak | None]) -> str:
    """What a step is, and what the machine can do, in a sentence each."""
    cost = next((outcome.cost for outcome in outcomes if outcome.cost), None)
    if cost is None:
        return ""
    lines = [
        f"- {subject}: a step is {cost.flops / 1e9:,.2f} G operations on {cost.weights / 1e6:,.1f} M weights, and "
        f"moves at least {cost.nbytes('fp32') / 1e6:,.0f} MB in fp32 and half of that in bf16"
    ]
    lines += [
        f"- {precision}: {peak.flops / 1e9:,.0f} G operations/s, {peak.bandwidth / 1e9:.1f} GB/s ({peak.source})"
        for precision, peak in peaks.items()
        if peak is not None
    ]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help=f"card or small network (default {', '.join(MODELS)})")
    parser.add_argument("--size", action="append", help="WIDTHxHEIGHT")
    parser.add_argument("--runtime", action="append", choices=("torch", "compile", "openvino"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeded", action="store_true", help="draw weights instead of reading a file")
    parser.add_argument("--one-by-one", action="store_true", help="for when memory is not enough for all at once")
    parser.add_argument("--folder", default=str(cache_folder() / "benchmarks"), help="for exported graphs")
    parser.add_argument("--out", type=Path, default=Path("out/runtimes.json"))
    parser.add_argument("--write-readme", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the README's block when asked to."""
    options = arguments()
    console = Console()
    machine = Machine()
    peaks = {precision: step_cost.measure("cpu", precision, options.threads) for precision in ("fp32", "bf16")}
    table: list[list[str]] = []
    notes: list[str] = []
    records = []
    for model in options.model or MODELS:
        for size in options.size or ((SMALL_SIZE,) if "-small" in model else SIZES):
            width, height = map(int, size.split("x"))
            subject = Subject(model, width, height, options.folder, options.seeded, options.threads)
            entered = contenders(options.runtime or ("torch", "openvino"))
            with console.status("…") as status:
                outcomes, _ = race(subject, entered, options.steps, together=not options.one_by_one, tell=status.update)
            table += rows(subject, outcomes, peaks)
            notes.append(describe(subject, outcomes, peaks if not notes else {}))
            records += [{"subject": str(subject), **outcome.as_dict()} for outcome in outcomes]
    machine.finish()
    turns = "one after the other" if options.one_by_one else "in turns"
    heading = f"Measured on: {machine.line()}; {options.threads} threads, {turns}, {options.steps} steps."
    warning = f"\n\n**Take with care:** {machine.warning}." if machine.warning else ""
    text = f"{heading}{warning}\n\n{readme.table(HEADER, table)}\n\n" + "\n".join(notes)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine.as_dict(), "outcomes": records}, indent=1) + "\n")
    if options.write_readme:
        readme.write_block("runtimes", text)


if __name__ == "__main__":
    main()
