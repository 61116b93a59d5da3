# SPDX-License-Identifier: Apache-2.0
"""Runtimes on an NVIDIA GPU, one after the other, within a time for all and one for each. Called by benchmarks/gpu.sh.

`python -m benchmarks.gpu [--dry-run] [--out out/gpu]` leaves ``gpu.json`` and ``gpu.md`` there, written anew after each
runtime, so that what is measured stays whatever happens next. The dry run does the same with a small network on the
CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import readme, step_cost
from benchmarks.arena import Outcome, race
from benchmarks.contenders import Contender, Subject
from benchmarks.machine import Machine
from recon_ros.errors import NetworkError
from recon_ros.runtimes.trt.library import load_library

FULL = ("cut3r_512_dpt", 512, 384)
SMALL = ("cut3r-small-dpt", 96, 64)
BASELINE = Contender("torch", device="cuda", everything=True)
TARGET_SPEED_UP, TARGET_FPS = 3.0, 25.0
HEADER = (
    "runtime",
    "min ms",
    "median ms",
    "frames a second",
    "speed-up",
    "GPU MB",
    "worst error",
    "of",
    "of the roofline",
    "of the datasheet's",
    "load s",
)


@dataclass
class Context:
    """The machine that is measured on.

    Attributes:
        machine: the host.
        device: name of the GPU; None in a dry run.
        has_bf16: it computes in bf16.
        software: versions.
        peaks: what it can do, by precision.
    """

    machine: Machine
    device: str | None
    has_bf16: bool
    software: str
    peaks: dict[str, step_cost.Peak | None]


def stages(has_bf16: bool) -> list[Contender]:
    """In order of what one must know first, should the time run out."""
    reference = Contender("torch", device="cuda")
    bf16 = [replace(reference, precision="bf16", mode=mode) for mode in ("compile_graphs", "eager")]
    return [
        reference,
        BASELINE,
        replace(BASELINE, tf32=True),
        *(replace(reference, precision="fp16", mode=mode) for mode in ("compile_graphs", "eager", "graphs", "compile")),
        Contender("tensorrt", "fp16"),
        Contender("tensorrt_rtx", "fp16"),
        *(bf16 if has_bf16 else []),
        *(replace(reference, mode=mode) for mode in ("graphs", "compile_graphs")),
        *([Contender("tensorrt", "bf16")] if has_bf16 else []),
    ]


def obstacle(contender: Contender, has_gpu: bool) -> str:
    """Why a contender cannot run here, as far as can be told without trying; empty when it may."""
    if contender.runtime == "torch":
        if has_gpu or (contender.mode == "eager" and not contender.tf32):
            return ""
        return "no GPU, and TF32, compiling and recording are measured on one only"
    if not has_gpu:
        return "no GPU"
    try:
        load_library(contender.runtime)
    except NetworkError as error:
        return str(error)
    return ""


def measure(
    subject: Subject,
    entered: Sequence[Contender],
    context: Context,
    out: Path,
    steps: int,
    budget_s: float = 180.0,
    total_s: float = 480.0,
    **given: Any,
) -> list[Outcome]:
    """Each contender, the reference first; results are written to `out` after each.

    Args:
        subject, entered: who executes what.
        context: the machine.
        out: folder of the results.
        steps: counted of each.
        budget_s, total_s: seconds for each and for all.
        given: further arguments of `race`.
    """
    end = time.monotonic() + total_s
    has_gpu = context.device is not None
    outcomes: list[Outcome] = []
    reference = None
    for contender in entered:
        reason = obstacle(contender, has_gpu)
        if reason:
            outcomes.append(Outcome(contender, failure=f"not run: {reason}"))
        else:
            mine = contender if has_gpu else replace(contender, device="cpu", tf32=False)
            left = end - time.monotonic()
            found, reference = race(
                subject, [mine], steps, budget_s, together=False, tell=_tell, total_s=left, reference=reference, **given
            )
            outcomes += found
        write(subject, outcomes, context, out)
        print(f"  {outcomes[-1].failure or f'{1e3 * min(outcomes[-1].wall_s):.1f} ms'}", flush=True)
    return outcomes


def _tell(text: str) -> None:
    print(text, flush=True)


def rows(outcomes: Sequence[Outcome], peaks: dict[str, step_cost.Peak | None], device: str) -> list[list[str]]:
    """One a contender; speed-up is over fp32 eager PyTorch with all outputs."""
    baseline = next((o for o in outcomes if o.contender.everything and not o.contender.tf32 and o.wall_s), None)
    cost = next((outcome.cost for outcome in outcomes if outcome.cost), None)
    result = []
    for outcome in outcomes:
        contender = outcome.contender
        if not outcome.wall_s:
            result.append([str(contender), outcome.failure, *["–"] * (len(HEADER) - 2)])
            continue
        median = float(np.median(outcome.wall_s))
        worst = max(outcome.errors, key=outcome.errors.__getitem__, default="")
        speed = None if baseline is None else float(np.median(baseline.wall_s)) / median
        shares = [
            f"{cost.least_seconds(contender.precision, peak) / median:.0%}" if cost and peak and not plain else "–"
            for peak in (peaks.get(contender.precision), step_cost.datasheet(device, contender.precision))
            for plain in (contender.everything or contender.tf32,)
        ]
        result.append(
            [
                str(contender),
                f"{1e3 * min(outcome.wall_s):.2f}",
                f"{1e3 * median:.2f}",
                f"{1 / median:.1f}",
                "–" if speed is None else f"{speed:.2f} ×",
                "–" if outcome.gpu_mb is None else f"{outcome.gpu_mb:,.0f}",
                f"{outcome.errors[worst]:.1e}" if worst else "–",
                worst,
                *shares,
                f"{outcome.load_s:.1f}",
            ]
        )
    return result


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Whether the targets are met, in a sentence."""
    baseline = next((o for o in outcomes if o.contender.everything and not o.contender.tf32 and o.wall_s), None)
    others = [o for o in outcomes if o.wall_s and not o.contender.everything and o.contender.precision != "fp32"]
    if baseline is None or not others:
        return "The targets cannot be judged: no baseline, or nothing in half precision was measured."
    best = min(others, key=lambda outcome: float(np.median(outcome.wall_s)))
    median = float(np.median(best.wall_s))
    speed = float(np.median(baseline.wall_s)) / median
    met = "met" if speed >= TARGET_SPEED_UP and 1 / median >= TARGET_FPS else "not met"
    return (
        f"Best: {best.contender}, {speed:.2f} times eager fp32 and {1 / median:.1f} frames a second; the target of "
        f"{TARGET_SPEED_UP:.0f} times and {TARGET_FPS:.0f} frames a second is {met}."
    )


def write(subject: Subject, outcomes: Sequence[Outcome], context: Context, out: Path) -> None:
    """What is known so far, as Markdown and JSON."""
    machine, name = context.machine.finish(), context.device or "the CPU (dry run)"
    lines = [f"{subject} on {name}, {context.software}. Host: {machine.line()}."]
    cost = next((outcome.cost for outcome in outcomes if outcome.cost), None)
    if cost is not None:
        lines.append(
            f"A step is {cost.flops / 1e9:,.2f} G operations on {cost.weights / 1e6:,.1f} M weights, and moves at "
            f"least {cost.nbytes('fp32') / 1e6:,.0f} MB in fp32 and half of that in fp16."
        )
    for precision, peak in context.peaks.items():
        if peak is not None:
            speed = f"{peak.flops / 1e12:,.2f} T operations/s, {peak.bandwidth / 1e9:,.0f} GB/s"
            lines.append(f"{precision}: {speed} ({peak.source}).")
    lines.append(verdict(outcomes) if context.device else "A dry run: these times are of a small network, on the CPU.")
    text = "\n".join(["\n\n".join(lines), "", readme.table(HEADER, rows(outcomes, context.peaks, name)), ""])
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.md").write_text(text, encoding="utf-8")
    record = {
        "subject": str(subject),
        "device": name,
        "software": context.software,
        "machine": machine.as_dict(),
        "peaks": {precision: peak and asdict(peak) for precision, peak in context.peaks.items()},
        "outcomes": [outcome.as_dict() for outcome in outcomes],
    }
    (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def find_context(dry_run: bool) -> Context:
    """This machine. Raises SystemExit where there is no GPU, and it is not a dry run."""
    import torch

    has_gpu = torch.cuda.is_available() and not dry_run
    if not has_gpu and not dry_run:
        raise SystemExit(
            f"PyTorch {torch.__version__} sees no NVIDIA GPU here: is the driver there (nvidia-smi), and is it a build "
            "with CUDA? --dry-run tries everything else on the CPU"
        )
    peaks = {p: step_cost.measure("cuda" if has_gpu else "cpu", p) for p in ("fp32", "fp16", "bf16")}
    if has_gpu:
        torch.cuda.empty_cache()
    return Context(
        machine=Machine(),
        device=torch.cuda.get_device_name(0) if has_gpu else None,
        has_bf16=not has_gpu or torch.cuda.get_device_capability(0)[0] >= 8,
        software=f"PyTorch {torch.__version__}, CUDA {torch.version.cuda if has_gpu else 'none'}",
        peaks=peaks,
    )


def main() -> None:
    """Measure what this machine can run, and say where the results are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="a small network, on the CPU")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--steps", type=int, default=None, help="of each runtime (default 30, dry run 3)")
    parser.add_argument("--budget", type=float, default=180.0, help="seconds for each runtime, loading included")
    parser.add_argument("--total", type=float, default=480.0, help="seconds for all")
    parser.add_argument("--folder", type=Path, help="for weights and engines (default OUT/files)")
    parser.add_argument("--only", action="append", metavar="TEXT", help="runtimes whose name has it")
    options = parser.parse_args()
    context = find_context(options.dry_run)
    model, width, height = SMALL if options.dry_run else FULL
    folder = options.folder or options.out / "files"
    subject = Subject(model, width, height, str(folder.resolve()), seeded=not options.dry_run, threads=1)
    entered = stages(context.has_bf16)
    if options.only:
        entered = [c for c in entered if c.is_reference or any(text in str(c) for text in options.only)]
    steps = options.steps or (3 if options.dry_run else 30)
    measure(subject, entered, context, options.out, steps, options.budget, options.total)
    print((options.out / "gpu.md").read_text(), f"written to {options.out}/gpu.md and gpu.json", sep="\n")


if __name__ == "__main__":
    main()
