# SPDX-License-Identifier: Apache-2.0
"""Where the files that are not Python live: `config/`, `models/`, `launch/`, `rviz/`, `foxglove/`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from recon_ros.errors import ConfigError

PACKAGE = "recon_ros"


def share_file(relative: str) -> Path:
    """The installed file or folder of that name, for example ``share_file("config/recon.yaml")``.

    Looked for in the source tree (an editable install), in the ROS workspace (colcon) and where pip puts
    data files; the first place that has it wins.
    """
    name = PurePosixPath(relative)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise ConfigError(f"not a path inside the share folder of {PACKAGE}: {relative!r}")
    places = list(dict.fromkeys(_places()))
    for place in places:
        if (place / name).exists():
            return place / name
    raise ConfigError(
        f"{relative} is not part of this installation of {PACKAGE}; looked in "
        + ", ".join(str(place) for place in places)
    )


def _places() -> Iterator[Path]:
    """Every folder that may be our share folder, the most specific first."""
    here = Path(__file__).resolve()
    source = here.parents[1]
    if (source / "package.xml").is_file():
        yield source
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if prefix:
            yield Path(prefix) / "share" / PACKAGE
    # <prefix>/lib/python3.x/site-packages/recon_ros: also right with --user and with an unsourced workspace.
    for prefix_of_code in here.parents[2:6]:
        if (prefix_of_code / "share" / PACKAGE).is_dir():
            yield prefix_of_code / "share" / PACKAGE
    yield Path(sys.prefix) / "share" / PACKAGE
