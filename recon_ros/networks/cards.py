# SPDX-License-Identifier: Apache-2.0
"""The model cards in `models/`: one YAML file for each published weight file. Knows nothing of torch."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.resources import share_file

FAMILIES = ("compact", "dust3r", "mast3r", "spann3r", "cut3r")
CONFIDENCES = {"1+exp": True, "sigmoid": False}
"""Convention of the confidence → whether it is unbounded."""
POSES = ("none", "camera_to_world_wxyz")
"""Poses a network gives itself: none (they come from its pointmaps), or translation and quaternion (w first)."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The published file that a network's weights come from.

    Attributes:
        file: its name as published.
        url: where it is fetched from; None when it cannot be fetched by a program.
        by_hand: for a file without `url`: where a person gets it.
        shipped: the file comes with this package, beside the card.
        sha256: of the file, in hexadecimal; None when it is not recorded. Then the first fetch computes it and
            keeps it, which guards against later damage and change, not against a wrong first file.
        licence: SPDX-like name of the licence of the weights.
        licence_url: its text.
        terms: what it asks of a user, in a sentence.
    """

    file: str
    licence: str
    licence_url: str
    terms: str
    url: str | None = None
    by_hand: str | None = None
    shipped: bool = False
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkCard(ModelCard):
    """All a user of one published network must know.

    Attributes:
        title: the network and its paper, in a line.
        input_size: (width, height) it was trained for at most, pixels; other sizes of the same `multiple` work.
        mean, std: images are ``(rgb / 255 − mean) / std``, each channel.
        confidence: a convention of `CONFIDENCES`.
        pose: a convention of `POSES`.
        constructor: arguments of the family's configuration.
        parameters: how many numbers the weights are.
        weights: the published file.
        runtimes_tested: what was run to equal outputs, each in words.
    """

    title: str
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    confidence: str
    pose: str
    constructor: Mapping[str, Any]
    parameters: int
    weights: WeightFile
    runtimes_tested: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            NetworkError: a value is out of range; the message names the card, the field and the value.
        """
        width, height = self.input_size
        checks = {
            "name": bool(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.name)),
            "family": self.family in FAMILIES,
            "multiple": self.multiple > 0,
            "input_size": min(width, height) > 0 and not any(side % max(self.multiple, 1) for side in self.input_size),
            "max_size": self.max_size == max(width, height),
            "mean": all(math.isfinite(value) for value in self.mean),
            "std": all(math.isfinite(value) and value > 0 for value in self.std),
            "confidence": self.confidence in CONFIDENCES,
            "unbounded_confidence": CONFIDENCES.get(self.confidence) == self.unbounded_confidence,
            "pose": self.pose in POSES,
            "parameters": self.parameters > 0,
            "weight_licence": bool(self.weight_licence) and self.weight_licence == self.weights.licence,
        }
        for name, fine in checks.items():
            if not fine:
                raise NetworkError(f"model card {self.name}: {name} {getattr(self, name)!r} is not usable")
        _check_weights(self.name, self.weights)


def _check_weights(name: str, weights: WeightFile) -> None:
    if Path(weights.file).name != weights.file or not weights.file:
        raise NetworkError(f"model card {name}: weights.file {weights.file!r} is not a file name")
    if (weights.url is not None) + (weights.by_hand is not None) + weights.shipped != 1:
        raise NetworkError(f"model card {name}: weights need a url, or by_hand, or to be shipped, and one of them only")
    if weights.shipped and weights.sha256 is None:
        raise NetworkError(f"model card {name}: weights that are shipped have a known sha256")
    if weights.url is not None and not weights.url.startswith("https://"):
        raise NetworkError(f"model card {name}: weights.url {weights.url!r} does not start with https://")
    if weights.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", weights.sha256):
        raise NetworkError(f"model card {name}: weights.sha256 {weights.sha256!r} is not 64 hexadecimal digits")


def list_cards(folder: Path | None = None) -> tuple[NetworkCard, ...]:
    """Every card of the installation (or of `folder`), by family and name.

    Raises:
        NetworkError: a card cannot be read.
    """
    cards = [read_card(path) for path in sorted((folder or share_file("models")).glob("*.yaml"))]
    return tuple(sorted(cards, key=lambda card: (FAMILIES.index(card.family), card.name)))


def find_card(name: str, folder: Path | None = None) -> NetworkCard:
    """The card of that name; the name of its weight file, with or without suffix, does as well.

    Raises:
        NetworkError: there is none; the message says what there is.
    """
    cards = list_cards(folder)
    for card in cards:
        if name.lower() in (card.name.lower(), card.weights.file.lower(), Path(card.weights.file).stem.lower()):
            return card
    known = [card.name for card in cards]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise NetworkError(f"no model named {name!r}; {hint}")


def read_card(path: Path) -> NetworkCard:
    """One card from its file, whose name without suffix is the card's name.

    Raises:
        NetworkError: the file is not readable, a field is missing, unknown, of another type, or not usable.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NetworkError(f"cannot read the model card {path}: {error}") from error
    if not isinstance(data, dict):
        raise NetworkError(f"the model card {path} is not a mapping of fields")
    # These follow from others, and are not to be written twice.
    derived = sorted({"name", "max_size", "unbounded_confidence", "weight_licence"} & set(data))
    if derived:
        raise NetworkError(f"the model card {path} states {', '.join(derived)}, which follows from other fields")
    weights = data.get("weights")
    if not isinstance(weights, dict):
        raise NetworkError(f"the model card {path} has no weights section")
    convention = data.get("confidence")
    values = data | {
        "name": path.stem,
        "weights": _build(WeightFile, weights, f"{path}: weights"),
        "max_size": max(data["input_size"]) if _is_pair(data.get("input_size")) else None,
        "unbounded_confidence": CONFIDENCES.get(convention, False) if isinstance(convention, str) else False,
        "weight_licence": weights.get("licence"),
    }
    return _build(NetworkCard, values, str(path))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value)


def _build(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """A frozen dataclass from plain values, their types checked and lists made tuples."""
    hints = get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    missing = [
        name
        for name, item in fields.items()
        if name not in values and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    if unknown or missing:
        what = [f"has unknown fields {', '.join(unknown)}"] if unknown else []
        what += [f"lacks {', '.join(missing)}"] if missing else []
        raise NetworkError(f"the model card {where} {' and '.join(what)}")
    frozen = {name: _freeze(value) for name, value in values.items()}
    for name, value in frozen.items():
        if not _is_of(value, hints[name]):
            raise NetworkError(f"the model card {where}: {name} {value!r} is of the wrong type, wanted {hints[name]}")
    return kind(**frozen)


def _freeze(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    return value


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a type hint; a whole number is a float as well."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return any(_is_of(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if origin is Mapping:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint
