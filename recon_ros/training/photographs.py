# SPDX-License-Identifier: Apache-2.0
"""Photographs under permissive licences that installed packages bring; without them textures are procedural.

Nothing is downloaded. Only licences that allow everything with at most attribution are listed: CC0, public
domain, CC-BY, BSD, MIT. Share-alike and non-commercial ones are not.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Photograph:
    """One file of one package.

    Attributes:
        package: distribution that brings it (PyPI name, or `debian:` and the package).
        file: path below the package's folder.
        licence: SPDX identifier.
        author: whom to credit.
        kind: "surface" (a material, seen straight on) or "picture" (what posters, screens and windows show).
        path: where it lies; "" if it is not installed.
    """

    package: str
    file: str
    licence: str
    author: str
    kind: str
    path: str = ""

    def read(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, at most 1024 pixels wide or high."""
        return _read(self.path)

    def record(self) -> dict[str, str]:
        """What to write beside the data that was made with it."""
        return {key: value for key, value in asdict(self).items() if key not in ("path", "kind")}


_SKIMAGE = "scikit-image"
TABLE: tuple[Photograph, ...] = (
    # skimage/data/README.txt; brick and gravel are from CC0Textures.com.
    Photograph(_SKIMAGE, "data/brick.png", "CC0-1.0", "Lennart Demes (CC0Textures)", "surface"),
    Photograph(_SKIMAGE, "data/grass.png", "CC0-1.0", "linolafett (DeviantArt)", "surface"),
    Photograph(_SKIMAGE, "data/gravel.png", "CC0-1.0", "Lennart Demes (CC0Textures)", "surface"),
    Photograph(_SKIMAGE, "data/coffee.png", "CC0-1.0", "Rachel Michetti", "picture"),
    Photograph(_SKIMAGE, "data/chelsea.png", "CC0-1.0", "Stefan van der Walt", "picture"),
    Photograph(_SKIMAGE, "data/astronaut.png", "CC-PDDC", "NASA (public domain)", "picture"),
    # sklearn/datasets/images/README.txt
    Photograph("scikit-learn", "datasets/images/china.jpg", "CC-BY-2.0", "danielbuechele (flickr)", "picture"),
    Photograph("scikit-learn", "datasets/images/flower.jpg", "CC-BY-2.0", "vultilion (flickr)", "picture"),
)
_MODULES = {"scikit-image": "skimage", "scikit-learn": "sklearn"}


@lru_cache(maxsize=1)
def find_photographs() -> tuple[Photograph, ...]:
    """Those of `TABLE` that are installed here."""
    found = []
    for photograph in TABLE:
        folder = _folder(photograph.package)
        if folder is not None and (folder / photograph.file).is_file():
            found.append(Photograph(**{**asdict(photograph), "path": str(folder / photograph.file)}))
    return tuple(found)


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(_MODULES.get(package, package))
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@lru_cache(maxsize=64)
def _read(path: str) -> NDArray[np.uint8]:
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    scale = min(1.0, 1024 / max(image.shape[:2]))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
