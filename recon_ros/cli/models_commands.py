# SPDX-License-Identifier: Apache-2.0
"""What the commands of `recon models` do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from recon_ros.errors import NetworkError
from recon_ros.networks import fetch as weights
from recon_ros.networks.cards import NetworkCard, find_card, list_cards

if TYPE_CHECKING:
    from recon_ros.networks.parity import Comparison, Fixture

SHOWN_PROBLEMS = 5


def show_list() -> None:
    """Every network we have a card of, and whether its weights are there."""
    from rich.table import Table

    columns = ("name", "network", "size", "metric", "pose", "weight licence", "weights")
    table = Table(*columns, box=None, pad_edge=False)
    for card in list_cards():
        table.add_row(
            card.name,
            card.title.split(",")[0],
            str(card.max_size),
            "yes" if card.is_metric else "no",
            "from points" if card.pose == "none" else "own",
            card.weight_licence,
            _whereabouts(card),
        )
    console = _wide_console()
    console.print(table)
    console.print(f"[dim]weights lie in {escape(str(weights.cache_folder() / 'weights'))}[/]", highlight=False)


def _whereabouts(card: NetworkCard) -> str:
    path = weights.weight_path(card)
    if path.is_file():
        return f"here, {path.stat().st_size / 1e9:.2f} GB"
    if path.with_name(path.name + ".part").is_file():
        return "fetched in part"
    return "recon models fetch" if card.weights.url else "by hand"


def fetch_weights(name: str, accept_licence: bool, address: str | None) -> None:
    """Fetch one weight file into the cache."""
    card = find_card(name)
    path = weights.weight_path(card)
    console = Console(stderr=True)
    if path.is_file():
        console.print(f"{card.name} is here already: {path}", highlight=False, soft_wrap=True)
        return
    _agree(card, accept_licence, console)
    if card.weights.url is None and address is None:
        raise NetworkError(f"{card.name}: {weights.how_to_get(card)}")
    with _progress(card.weights.file) as progress:
        digest = weights.fetch(card, address, progress)
    console.print(f"fetched {path}", highlight=False, soft_wrap=True)
    console.print(f"SHA-256 {digest} {_standing(card)}", highlight=False, soft_wrap=True)


def _agree(card: NetworkCard, accepted: bool, console: Console) -> None:
    """Show the licence the first time, and go on only when it is accepted."""
    terms = card.weights
    if weights.is_accepted(terms):
        return
    console.print(f"The weights {terms.file} are licensed under [bold]{terms.licence}[/], {terms.licence_url}")
    console.print(f"{terms.terms}", highlight=False, soft_wrap=True)
    if not accepted and console.is_terminal:
        accepted = typer.confirm("Do you accept?", err=True)
    if not accepted:
        raise NetworkError(f"{card.name}: the licence was not accepted; to accept it, add --accept-license")
    weights.accept(terms)


def _standing(card: NetworkCard) -> str:
    if card.weights.sha256:
        return "(as in the model card)"
    return "(the card records none; kept from the first time the file was here)"


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int | None], None]]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)

        def report(have: int, total: int | None) -> None:
            progress.update(task, completed=have, total=total)

        yield report


def verify_weights(name: str, card_name: str | None) -> None:
    """Check one weight file: its SHA-256, and that every key and shape is the network's."""
    path, card = _find_file(name, card_name)
    _need_torch()
    from recon_ros.networks.checkpoint import load_state_dict, match
    from recon_ros.networks.factory import build_network

    console = Console()
    state = load_state_dict(path)
    match(build_network(card, "meta"), state, card.name)
    numbers = sum(tensor.numel() for tensor in state.values())
    console.print(f"{path}: {len(state)} tensors with {numbers:,} numbers, all as {card.name} has them", soft_wrap=True)
    if path.name == card.weights.file:
        console.print(f"SHA-256 {weights.check_digest(card, path)} {_standing(card)}", soft_wrap=True)
    else:
        digest = weights.file_digest(path)
        console.print(f"SHA-256 {digest} (not a published file: nothing to hold it against)", soft_wrap=True)


def _find_file(name: str, card_name: str | None) -> tuple[Path, NetworkCard]:
    """A file and its card, from either's name."""
    path = Path(name)
    if not path.is_file():
        card = find_card(card_name or name)
        return weights.find_weights(card), card
    if card_name is None:
        card_name = path.name if path.suffix != ".safetensors" else _source(path)
    try:
        return path, find_card(card_name)
    except NetworkError as error:
        raise NetworkError(f"{path}: which network's weights are these? say it with --card ({error})") from error


def _source(path: Path) -> str:
    """The published file that a converted one was made of."""
    _need_torch()
    from recon_ros.networks.checkpoint import read_metadata

    return read_metadata(path).get("source", path.stem)


def convert_weights(source: Path, target: Path, dtype: str) -> None:
    """Write weights as safetensors."""
    _need_torch()
    from recon_ros.networks import checkpoint

    if dtype not in checkpoint.DTYPES:
        raise NetworkError(f"dtype {dtype!r} is not one of {', '.join(checkpoint.DTYPES)}")
    facts = checkpoint.convert(source, target, dtype)  # type: ignore[arg-type]
    size = target.stat().st_size / 1e6
    Console().print(f"{target}: {size:.1f} MB, {dtype}, family {facts['family']}", highlight=False, soft_wrap=True)
    Console().print("the licence of the weights stays what it was", style="dim")


def show_parity(folder: Path, full: bool) -> bool:
    """Hold our networks against the stored outputs; whether all is well."""
    _need_torch()
    from rich.table import Table

    from recon_ros.networks import parity as cases

    fixtures = cases.find_fixtures(folder, full)
    table = Table("case", "arrays", "max abs", "max rel to tolerance", "ok", box=None, pad_edge=False)
    results: list[Comparison] = []
    with _spinner() as report:
        for fixture in fixtures:
            for result in cases.check(fixture, report):
                results.append(result)
                worst = (f"{result.max_abs:.1e}", f"{result.max_ratio:.3f}")
                table.add_row(result.case, str(result.arrays), *worst, _mark(result.ok))
        # Full-size networks are slow, and have no new code to run with other weights.
        others = [] if full else [case for fixture in fixtures for case in _other_weights(fixture, report)]
    console = _wide_console()
    console.print(table)
    missed = [result for result in (*results, *others) if not result.ok]
    for result in missed:
        shown = "; ".join(result.problems[:SHOWN_PROBLEMS])
        console.print(f"[red]{escape(result.case)}[/]: {escape(shown)}", highlight=False, soft_wrap=True)
    arrays = sum(result.arrays for result in results)
    unit = " times the standard deviation where that is above 1" if full else ""
    console.print(
        f"{sum(result.ok for result in results)} of {len(results)} cases, {arrays} arrays, with every |a−b| within "
        f"{cases.ABSOLUTE:g}{unit} + {cases.RELATIVE:g}·|b|",
        highlight=False,
    )
    if others:
        well = sum(other.ok for other in others)
        console.print(f"weights of another seed, shapes and finiteness: {well} of {len(others)} cases", highlight=False)
    return not missed


def _other_weights(fixture: Fixture, report: Callable[[str], None]) -> list[Comparison]:
    from recon_ros.networks import parity as cases

    return list(cases.check_other_weights(fixture, report))


@contextmanager
def _spinner() -> Iterator[Callable[[str], None]]:
    with Console(stderr=True).status("parity") as status:
        yield lambda case: status.update(escape(case))


def _mark(ok: bool) -> str:
    return "[green]ok[/]" if ok else "[bold red]MISS[/]"


def _wide_console() -> Console:
    """A table in a pipe is not cut to 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _need_torch() -> None:
    import importlib.util

    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("safetensors") is None:
        raise NetworkError("this needs torch and safetensors, which are not installed: pip install 'recon_ros[torch]'")
