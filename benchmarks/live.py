# SPDX-License-Identifier: Apache-2.0
"""The live node over DDS on a recording, at several speeds: what it processes, how late, and how well.

`python -m benchmarks.live BAG` runs `recon demo` once per rate and puts the reports side by side.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import readme
from benchmarks.machine import Machine
from recon_ros.cli.demo import Demo, set_ros_environment
from recon_ros.config import Config
from recon_ros.datasets.topics import Topics
from recon_ros.errors import ReconError

RATES = [1.0, 5.0]
COLUMNS = (
    "rate",
    "images",
    "processed",
    "tracked of these",
    "dropped",
    "lost in transport",
    "ATE live m",
    "ATE final m",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "max ms",
    "RSS MB",
)


def measure(bag: Path, rate: float, out: Path) -> dict[str, Any]:
    """One `recon demo`; its report."""
    folder = out / f"rate_{rate:g}"
    Demo(folder, bag, Config(), Topics(), rate).run()
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def cells(report: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table; a dash for what there is not."""
    latency = report["latency_ms"] or {}
    ates = (report[name] and f"{report[name]['se3_rmse']:.3f}" for name in ("ate_live", "ate"))
    return (
        f"{report['rate']:g}",
        str(report["frames"]),
        f"{report['processed'] / max(report['frames'], 1):.1%}",
        f"{report['tracked'] / max(report['processed'], 1):.1%}",
        str(report["dropped"]),
        str(report["lost_in_transport"]),
        *(ate or "–" for ate in ates),
        *(f"{latency[p]:.0f}" if p in latency else "–" for p in ("p50", "p95", "p99", "max")),
        f"{report['rss_mb']['max']:.0f}",
    )


def transport() -> str:
    """How messages travel: the middleware's profile decides whether whole images arrive."""
    profile = os.environ.get("FASTRTPS_DEFAULT_PROFILES_FILE", "")
    rmw = os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    return f"{rmw}, {'default transports' if not profile else Path(profile).name}"


def main(
    bag: Annotated[Path, typer.Argument(help="Recording to play")],
    rates: Annotated[list[float] | None, typer.Option("--rate", help="Speed of playing; repeatable [1 and 5]")] = None,
    out: Annotated[Path, typer.Option(help="Folder for live.json and what each run leaves")] = Path("out/live"),
    write_readme: Annotated[bool, typer.Option("--write-readme", help="Put the table into README.md here")] = False,
) -> None:
    """Play a recording to the live node at several speeds; prints a table and writes live.json."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    machine = Machine()
    set_ros_environment()
    try:
        reports = [measure(bag, rate, out) for rate in rates or RATES]
    except ReconError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    machine.finish()
    rows = [cells(report) for report in reports]
    table = Table(*COLUMNS, box=None, title=f"{bag.resolve().name}, live over {transport()}", title_justify="left")
    for line in rows:
        table.add_row(*line)
    console.print(table)
    console.print(machine.line(), highlight=False)
    if machine.warning:
        console.print(f"[yellow]warning:[/] {machine.warning}", soft_wrap=True)
    result = {"machine": machine.as_dict(), "bag": bag.resolve().name, "transport": transport(), "runs": reports}
    (out / "live.json").write_text(json.dumps(result, indent=2) + "\n")
    if write_readme:
        said = f"`{bag.resolve().name}` over {transport()}. Measured on: {machine.line()}."
        care = f"\n\n**Take with care:** {machine.warning}." if machine.warning else ""
        readme.write_block("live", f"{said}{care}\n\n{readme.table(COLUMNS, rows)}")


if __name__ == "__main__":
    typer.run(main)
