# SPDX-License-Identifier: Apache-2.0
"""The documents agree with the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _tables_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "scripts/readme_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_tables_are_those_of_the_code() -> None:
    pytest.importorskip("rclpy", reason="the interface table is made from message types")
    script = _tables_script()
    text = (ROOT / "README.md").read_text()
    assert script.filled(text, script.tables()) == text, "run: python scripts/readme_tables.py"


def test_a_changed_table_is_noticed() -> None:
    script = _tables_script()
    text = (ROOT / "README.md").read_text()
    broken = text.replace("`memory.max_keyframes`", "`memory.most_keyframes`")
    assert broken != text
    assert script.filled(broken, {"parameters": script.markdown_table(script.Config())}) == text


def test_files_named_in_the_documents_exist() -> None:
    for document in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http"):
                assert (ROOT / target).exists(), f"{document} links to {target}, which is not there"


def test_every_room_is_described() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {p.name for p in (ROOT / "recon_ros").iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    missing = {room for room in rooms if f"{room}/" not in text}
    assert not missing, f"ARCHITECTURE.md does not describe {sorted(missing)}"
