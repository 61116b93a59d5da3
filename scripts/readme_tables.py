#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the README's tables from the code: `python scripts/readme_tables.py`, or `--check` to fail on a difference."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from recon_ros.config import Config, NodeConfig, markdown_table

README = Path(__file__).resolve().parents[1] / "README.md"


def tables() -> dict[str, str]:
    """Name of a marked block → its content."""
    from recon_ros.ros import interface

    return {
        "interface": interface.markdown(),
        "parameters": markdown_table(Config()),
        "node parameters": markdown_table(NodeConfig()),
    }


def filled(text: str, contents: dict[str, str]) -> str:
    """The text with the content of each marked block replaced.

    Raises:
        ValueError: when a block is not there.
    """
    for name, content in contents.items():
        block = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not block.search(text):
            raise ValueError(f"README.md has no block '{name}'")
        text = block.sub(lambda match, content=content: f"{match[1]}{content}{match[2]}", text)  # type: ignore[misc]
    return text


def main() -> int:
    """0, or 1 when --check finds a difference."""
    text = README.read_text()
    new = filled(text, tables())
    if "--check" in sys.argv[1:]:
        if new != text:
            print("README.md's tables are not those of the code; run: python scripts/readme_tables.py")
        return int(new != text)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
