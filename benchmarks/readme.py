# SPDX-License-Identifier: Apache-2.0
"""Results go into README.md by the tools themselves, between two markers, so that no number is copied by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

NUMBER = re.compile(r"[\d.,]+%?|–")
README = Path(__file__).with_name("README.md")


def write_block(name: str, text: str, path: Path = README) -> None:
    """Replace what is between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: when the file has no such markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = path.read_text()
    head, found, rest = old.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{path} has no place for results: {begin} … {end}")
    path.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns of numbers are set to the right."""
    numeric = [all(NUMBER.fullmatch(row[i]) for row in rows) for i in range(len(header))]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---:" if n else "---" for n in numeric) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
