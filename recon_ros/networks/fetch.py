# SPDX-License-Identifier: Apache-2.0
"""Weight files in the cache: where they lie, how they get there, and whether they are what they were.

The cache is ``$XDG_CACHE_HOME/recon_ros`` (``~/.cache/recon_ros``): weights in ``weights/``, each with its
``.sha256`` beside it, and in ``licences.json`` the terms that the user has accepted.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon_ros.errors import NetworkError
from recon_ros.networks.cards import NetworkCard, WeightFile
from recon_ros.resources import share_file

TIMEOUT_S = 30.0
BLOCK = 1 << 20

Progress = Callable[[int, int | None], None]
"""Hears how many bytes of how many (None: unknown) are there."""


def cache_folder() -> Path:
    """Where this package keeps what it can get again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "recon_ros"


def weight_path(card: NetworkCard) -> Path:
    """Where the card's weights lie once they are there."""
    if card.weights.shipped:
        return share_file("models") / card.weights.file
    return cache_folder() / "weights" / card.weights.file


def find_weights(card: NetworkCard) -> Path:
    """The card's weight file.

    Raises:
        NetworkError: it is not there; the message says how to get it.
    """
    path = weight_path(card)
    if not path.is_file():
        raise NetworkError(f"{card.name}: no weights at {path}; {how_to_get(card)}")
    return path


def how_to_get(card: NetworkCard) -> str:
    """One sentence: how the weights get to their place."""
    if card.weights.shipped:
        return "they belong to this package: install it again"
    if card.weights.url is None:
        where = str(card.weights.by_hand).rstrip(".")
        return f"{where}, put it at {weight_path(card)} and run `recon models verify {card.name}`"
    return f"run `recon models fetch {card.name}`, or, without internet, {_carry(card)}"


def _carry(card: NetworkCard) -> str:
    return f"download {card.weights.url or card.weights.file} elsewhere and put it at {weight_path(card)}"


def is_accepted(weights: WeightFile) -> bool:
    """Whether the user has accepted these terms before."""
    return any(entry.get("terms") == _terms(weights) for entry in _accepted())


def accept(weights: WeightFile) -> None:
    """Remember that the user accepts these terms."""
    if is_accepted(weights):
        return
    entries = [*_accepted(), {"terms": _terms(weights), "first_for": weights.file}]
    _write(_licences(), json.dumps(entries, indent=2) + "\n")


def _licences() -> Path:
    return cache_folder() / "licences.json"


def _terms(weights: WeightFile) -> str:
    return f"{weights.licence} ({weights.licence_url}): {weights.terms}"


def _accepted() -> list[dict[str, Any]]:
    try:
        entries = json.loads(_licences().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def fetch(card: NetworkCard, address: str | None = None, progress: Progress = lambda have, total: None) -> str:
    """Bring the card's weights to their place, going on where an earlier attempt stopped.

    Args:
        card: whose weights; its terms must have been accepted.
        address: taken instead of the card's, for a mirror.
        progress: hears of every block.

    Returns:
        SHA-256 of the file, which is now recorded beside it.

    Raises:
        NetworkError: the terms are not accepted, there is no address, the server cannot be reached or stopped
            in the middle, the disk is full, or the file is not the recorded one.
    """
    if not is_accepted(card.weights):
        raise NetworkError(f"{card.name}: the licence of its weights, {card.weights.licence}, was not accepted")
    address = address or card.weights.url
    if address is None:
        raise NetworkError(f"{card.name}: {how_to_get(card)}")
    if not address.startswith(("https://", "http://")):
        raise NetworkError(f"{card.name}: {address} is not an address on the web; {_carry(card)}")
    target = weight_path(card)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        _download(address, part, progress)
    except urllib.error.HTTPError as error:
        raise NetworkError(
            f"{card.name}: the server answered {error.code} {error.reason} for {address}; {_carry(card)}"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise NetworkError(
            f"{card.name}: {address} was not fetched ({reason}); fetch again to go on where it stopped, or "
            f"{_carry(card)}"
        ) from error
    except OSError as error:
        raise NetworkError(f"{card.name}: cannot write {part}: {error.strerror or error}") from error
    digest = check_digest(card, part, forget_wrong=True)
    os.replace(part, target)
    _validator(part).unlink(missing_ok=True)
    return digest


def check_digest(card: NetworkCard, path: Path, forget_wrong: bool = False) -> str:
    """SHA-256 of a file that should be the card's; recorded when nothing is known of it yet.

    Raises:
        NetworkError: it is not what the card says, or not what was there the first time. With `forget_wrong`
            the file is removed then.
    """
    digest, known = file_digest(path), recorded_digest(card)
    if known is None:
        _write(_digest_path(card), f"{digest}  {card.weights.file}\n")
    elif digest != known:
        if forget_wrong:
            path.unlink()
            _validator(path).unlink(missing_ok=True)
        origin = "the model card" if card.weights.sha256 else f"{_digest_path(card)}, kept from the first time"
        raise NetworkError(
            f"{card.name}: SHA-256 of {path.name} is {digest}, not {known} as in {origin}; it is damaged or was "
            "replaced, fetch it again"
        )
    return digest


def recorded_digest(card: NetworkCard) -> str | None:
    """The SHA-256 that the card's weights must have; None as long as nothing is known."""
    if card.weights.sha256:
        return card.weights.sha256
    try:
        words = _digest_path(card).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return None
    return words[0] if words and re.fullmatch(r"[0-9a-f]{64}", words[0]) else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _digest_path(card: NetworkCard) -> Path:
    path = weight_path(card)
    return path.with_name(path.name + ".sha256")


@dataclass(frozen=True)
class _Answer:
    """Where in the file the server's bytes begin, and how long the whole file is (None: not told)."""

    start: int
    total: int | None


def _download(address: str, part: Path, progress: Progress) -> None:
    """Fill `part` from the address; what it holds already is asked for no more, if the server still has it."""
    with _open(address, part) as response:
        answer = _read_answer(response)
        _check_room(part, answer)
        _write(_validator(part), response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
        have = answer.start
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            progress(have, answer.total)
            while block := response.read(BLOCK):
                file.write(block)
                have += len(block)
                progress(have, answer.total)
    if answer.total is not None and have != answer.total:
        raise ConnectionError(f"it stopped after {have} of {answer.total} bytes")


def _open(address: str, part: Path) -> Any:
    have = part.stat().st_size if part.is_file() else 0
    validator = _validator(part).read_text(encoding="utf-8") if have and _validator(part).is_file() else ""
    request = urllib.request.Request(address, headers={"User-Agent": "recon_ros"})
    if have and validator:
        # Only if it is still the same file; otherwise the server sends all of it.
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # All was there already, or more than all: from the beginning.
        error.close()
        part.unlink()
        return urllib.request.urlopen(
            urllib.request.Request(address, headers={"User-Agent": "recon_ros"}), timeout=TIMEOUT_S
        )


def _read_answer(response: Any) -> _Answer:
    length = response.headers.get("Content-Length")
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return _Answer(0, int(length) if length else None)
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None:
        raise http.client.HTTPException("the server sent a part of the file without saying which")
    return _Answer(int(found[1]), int(found[2]) if found[2] != "*" else None)


def _check_room(part: Path, answer: _Answer) -> None:
    free = shutil.disk_usage(part.parent).free
    if answer.total is not None and answer.total - answer.start > free:
        raise NetworkError(
            f"{part.parent} has {free / 1e9:.1f} GB left, {(answer.total - answer.start) / 1e9:.1f} GB are needed; "
            "make room, or set XDG_CACHE_HOME to a folder on another disk"
        )


def _validator(part: Path) -> Path:
    """Keeps what the server called this version of the file, so that two versions are never joined."""
    return part.with_name(part.name + ".version")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".new")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
