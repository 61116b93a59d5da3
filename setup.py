# SPDX-License-Identifier: Apache-2.0
"""Build script for colcon (ament_python) and pip alike.

Everything static lives in setup.cfg, which every setuptools from Ubuntu 22.04 on understands; a [project]
table in pyproject.toml would be a second truth and unknown to the setuptools of Humble. Only the list of
data files is computed here, and the Python version stated: setuptools turns the one in setup.cfg into an
object that colcon cannot read back.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup

PACKAGE = "recon_ros"
ROOT = Path(__file__).resolve().parent
DATA_FOLDERS = ("launch", "config", "rviz", "foxglove", "models")


def find_data_files() -> list[tuple[str, list[str]]]:
    """The files installed to share/recon_ros, with the ament resource index entry."""
    share = f"share/{PACKAGE}"
    found: dict[str, list[str]] = {
        "share/ament_index/resource_index/packages": [f"resource/{PACKAGE}"],
        share: ["package.xml"],
    }
    for folder in DATA_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            relative = path.relative_to(ROOT)
            hidden = any(part.startswith((".", "__")) for part in relative.parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                found.setdefault(f"{share}/{relative.parent.as_posix()}", []).append(relative.as_posix())
    return sorted(found.items())


if __name__ == "__main__":
    setup(data_files=find_data_files(), python_requires=">=3.10")
