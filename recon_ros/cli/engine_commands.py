# SPDX-License-Identifier: Apache-2.0
"""What `recon engine export` and `build` do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.networks.cards import NetworkCard
from recon_ros.networks.small import SMALL
from recon_ros.runtimes.engine_build import CANCELLED, BuildProcess
from recon_ros.runtimes.engine_request import BuildProgress, BuildRequest, check_size, nearest_side
from recon_ros.runtimes.torch_network import known_networks, network_card

POLL_S = 0.1
ASPECT = 4 / 3


def request(model: str, size: str | None, targets: str | None = None, **fields: Any) -> BuildRequest:
    """What a user asks for, checked as far as it can be before anything is loaded.

    Args:
        model: name of a card, or of a small network.
        size: HEIGHTxWIDTH; None takes the largest that the network was trained for.
        targets: compute capabilities with commas between them.
        fields: of the request.

    Raises:
        NetworkError: the model is unknown, or size or targets cannot be meant.
    """
    card = find_any_card(model)
    width, height = read_size(size) if size else default_size(card)
    check_size(card, width, height)
    wanted = tuple(part.strip() for part in (targets or "").split(",") if part.strip())
    wrong = [part for part in wanted if not re.fullmatch(r"\d{1,2}\.\d", part)]
    if wrong:
        raise NetworkError(f"{wrong[0]!r} is no compute capability; they look like 8.6,8.9,12.0")
    # The name is part of what files are found by: the card's, though the name of its weight file does as well.
    name = card.name if isinstance(card, NetworkCard) else model
    return BuildRequest(model=name, width=width, height=height, targets=wanted, **fields)


def find_any_card(model: str) -> ModelCard:
    """The card of a published or a small network.

    Raises:
        NetworkError: there is none of that name.
    """
    try:
        return network_card(model)
    except NetworkError as error:
        near = difflib.get_close_matches(model, [*SMALL, *known_networks()], n=1)
        raise NetworkError(f"no model named {model!r}; did you mean {near[0]}?" if near else str(error)) from error


def read_size(text: str) -> tuple[int, int]:
    """(width, height) of ``HEIGHTxWIDTH``.

    Raises:
        NetworkError: it is not of that form.
    """
    found = re.fullmatch(r"(\d{1,5})\s*[xX×]\s*(\d{1,5})", text.strip())
    if found is None:
        raise NetworkError(f"size {text!r} is not HEIGHTxWIDTH in pixels, for example 384x512")
    return int(found[2]), int(found[1])


def default_size(card: ModelCard) -> tuple[int, int]:
    """(width, height) that a network was trained for; for a small one, which was not, some landscape image."""
    if isinstance(card, NetworkCard):
        return card.input_size
    width = card.max_size or 512
    return width, nearest_side(round(width / ASPECT), card.multiple, card.max_size)


def make(request: BuildRequest) -> None:
    """Build what is asked for in a process of its own, and say what came of it.

    Raises:
        NetworkError: it failed, or was cancelled.
    """
    process = BuildProcess(request)
    console = Console(stderr=True)
    title = f"{request.model} {request.height}x{request.width} {request.precision}"
    process.start()
    try:
        with _shown(title, console) as show:
            while not process.wait(POLL_S):
                show(process.progress)
            show(process.progress)
    except KeyboardInterrupt:
        process.cancel()
        console.print("cancelling …")
        process.wait()
        raise NetworkError(f"{title}: {CANCELLED}; what was there before is as it was") from None
    if not process.done:
        raise NetworkError(str(process.failed))
    _say(process, Console())


def _say(process: BuildProcess, console: Console) -> None:
    for what in ("bundle", "engines"):
        if folder := process.result.get(what):
            size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
            console.print(f"{what}: {folder}, {size:.1f} MB", highlight=False, soft_wrap=True)
    if cost := process.result.get("cost"):
        console.print(f"int8: {cost}", highlight=False, soft_wrap=True)
    why = process.result.get("why") or "all of it was here"
    console.print(f"{process.progress.elapsed_s:.1f} s ({why})", style="dim", highlight=False, soft_wrap=True)


@contextmanager
def _shown(title: str, console: Console) -> Iterator[Callable[[BuildProgress], None]]:
    """A bar on a terminal, a line for each new phase elsewhere."""
    if not console.is_terminal:
        said: list[str] = []

        def say(progress: BuildProgress) -> None:
            if progress.phase not in said[-1:]:
                said.append(progress.phase)
                console.print(f"{title}: {progress.message}", highlight=False, soft_wrap=True, markup=False)

        yield say
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda progress: bar.update(
            task, completed=progress.fraction, description=f"{title}: {progress.phase}".replace("[", r"\[")
        )
