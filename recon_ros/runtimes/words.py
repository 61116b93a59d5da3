# SPDX-License-Identifier: Apache-2.0
"""How it stands with who executes a network, in words: who serves, what is built, and why nobody better does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from recon_ros.runtimes.choice import Build, Lack, Opened, Size
from recon_ros.runtimes.ladder import Ladder, Variant
from recon_ros.runtimes.status import BUILDING, READY, RuntimeStatus

Rejected = Mapping[Variant, str]
"""What was given up, and why."""


def serving(current: Opened, rejected: Rejected) -> RuntimeStatus:
    """While `current` serves."""
    given_up = [f"{variant} is given up: {why}" for variant, why in rejected.items()]
    return RuntimeStatus(
        state=READY,
        runtime=current.driver.runtime,
        precision=current.variant.precision,
        file=current.file,
        message="; ".join([f"{current.driver.runtime} serves", *given_up]),
        self_check=None if current.checked is None else current.checked.share,
        degraded=bool(given_up),
    )


def building(variant: Variant, build: Build, current: Opened | None, rejected: Rejected) -> RuntimeStatus:
    """While a variant is built, and `current` serves, or nobody."""
    progress = build.progress
    meanwhile, status = "frames are skipped until it is ready", RuntimeStatus()
    if current is not None:
        meanwhile, status = f"{current.driver.runtime} serves meanwhile", serving(current, rejected)
    words = f"building {variant}: {progress.phase} {progress.fraction:.0%}, {progress.elapsed_s:.0f} s"
    return replace(
        status,
        state=BUILDING,
        progress=progress.fraction,
        elapsed_s=progress.elapsed_s,
        message=f"{words}; {meanwhile}",
    )


def choice(model: str, current: Opened, size: Size, reasons: Collection[str]) -> str:
    """Who serves from now on, and why nobody before him."""
    said = f"{model} runs with {current.driver.runtime} at {by(size)}"
    if current.checked is not None:
        said += f", self-check at {current.checked.share:.0%} of its tolerance"
    return f"{said}; not taken: {', '.join(reasons)}" if reasons else said


def passed_over(
    ladders: Collection[Ladder], chosen: Variant | None, rejected: Rejected, lacks: Mapping[Variant, Lack]
) -> list[str]:
    """Why each variant that comes before `chosen` is not taken, of those that lack something the best only."""
    reasons: list[str] = []
    for ladder in ladders:
        is_told = False
        for variant in ladder.rungs:
            if variant == chosen:
                return reasons
            if variant in rejected:
                reasons.append(f"{variant} ({rejected[variant]})")
            elif variant in lacks and not is_told:
                reasons.append(f"{variant} ({lacks[variant]})")
                is_told = True
    return reasons


def by(size: Size) -> str:
    """``512x384``."""
    return f"{size[0]}x{size[1]}"
