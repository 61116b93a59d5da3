# SPDX-License-Identifier: Apache-2.0
"""A model card to test with: a very small DUSt3R."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TINY: dict[str, Any] = {
    "enc_dim": 16,
    "enc_depth": 1,
    "enc_heads": 2,
    "dec_dim": 16,
    "dec_depth": 2,
    "dec_heads": 2,
    "head": "linear",
}


def write_card(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """A card of a very small DUSt3R; `changes` of the weights section begin with ``weights_``."""
    data = yaml.safe_load((ROOT / "models" / "dust3r_512_linear.yaml").read_text())
    data |= {"constructor": TINY, "parameters": 1, "input_size": [64, 64]}
    data["weights"]["file"] = "tiny.pth"
    for key, value in changes.items():
        if key.startswith("weights_"):
            data["weights"][key.removeprefix("weights_")] = value
        else:
            data[key] = value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path
