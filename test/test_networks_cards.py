# SPDX-License-Identifier: Apache-2.0
"""Model cards: those we ship describe the published networks, and what cannot be meant is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from model_card import TINY, write_card

from recon_ros.errors import NetworkError
from recon_ros.networks import cards
from recon_ros.networks.cards import find_card, list_cards, read_card

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT.parent / "shared" / "fixtures"
PUBLISHED = {
    "DUSt3R_ViTLarge_BaseDecoder_224_linear.pth",
    "DUSt3R_ViTLarge_BaseDecoder_512_linear.pth",
    "DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth",
    "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric.pth",
    "spann3r.pth",
    "cut3r_512_dpt_4_64.pth",
    "cut3r_224_linear_4.pth",
}


def test_there_is_a_card_of_each_published_file() -> None:
    found = {card.weights.file: card for card in list_cards(ROOT / "models") if not card.weights.shipped}
    assert set(found) == PUBLISHED
    for file, card in found.items():
        assert card.weights.licence == "CC-BY-NC-SA-4.0"
        assert card.unbounded_confidence
        assert card.multiple == 16
        assert card.is_metric == ("cut3r" in file or "metric" in file)
        assert card.max_size == (224 if "224" in file or "spann3r" in file else 512)
        if card.weights.url:
            assert card.weights.url.startswith("https://download.europe.naverlabs.com/ComputerVision/")
            assert card.weights.url.endswith(f"/{file}")
        else:
            assert "Google Drive" in str(card.weights.by_hand)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="needs ../shared/fixtures")
@pytest.mark.parametrize(
    "card", [card for card in list_cards(ROOT / "models") if not card.weights.shipped], ids=lambda card: card.name
)
def test_the_card_builds_the_published_network(card: cards.NetworkCard) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from recon_ros.networks.factory import build_network

    lists = {path.stem: path for path in (FIXTURES / "keys").glob("*.json")}
    stem = Path(card.weights.file).stem.lower()
    keys = json.loads(lists[stem].read_text())
    network = build_network(card, "meta")
    ours = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert ours == {key: entry["shape"] for key, entry in keys["keys"].items()}
    assert card.parameters == keys["n_params_unique"] == sum(tensor.numel() for tensor in network.parameters())


def test_the_card_of_what_is_shipped_builds_it() -> None:
    pytest.importorskip("torch", reason="needs torch")
    from recon_ros.networks.factory import load_network

    (card,) = [card for card in list_cards(ROOT / "models") if card.weights.shipped]
    network = load_network(card, ROOT / "models" / card.weights.file)
    assert card.parameters == sum(tensor.numel() for tensor in network.parameters())
    assert card.weights.licence == "Apache-2.0"


def test_a_card_is_found_by_its_name_and_by_its_file() -> None:
    models_folder = ROOT / "models"
    for name in ("cut3r_512_dpt", "cut3r_512_dpt_4_64", "CUT3R_512_DPT_4_64.pth"):
        assert find_card(name, models_folder).name == "cut3r_512_dpt"
    with pytest.raises(NetworkError, match=r"did you mean dust3r_512_dpt\?"):
        find_card("dust3r_512_dp", models_folder)
    with pytest.raises(NetworkError, match=r"known: recon_compact, dust3r_224_linear, "):
        find_card("yolo", models_folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"family": "yolo"}, "family 'yolo'"),
        ({"multiple": 0}, "multiple 0"),
        ({"input_size": [500, 512]}, r"input_size \(500, 512\)"),
        ({"input_size": 512}, "input_size 512 is of the wrong type"),
        ({"std": [0.5, 0.5, 0]}, "std"),
        ({"mean": [0.5, 0.5]}, "mean .* wrong type"),
        ({"confidence": "percent"}, "confidence 'percent'"),
        ({"pose": "xyz"}, "pose 'xyz'"),
        ({"is_metric": "yes"}, "is_metric 'yes' is of the wrong type"),
        ({"colour": "red"}, "unknown fields colour"),
        ({"max_size": 64}, "states max_size"),
        ({"weights": None}, "no weights section"),
        ({"weights_url": None}, "a url, or by_hand, or to be shipped"),
        ({"weights_by_hand": "there"}, "a url, or by_hand, or to be shipped"),
        ({"weights_url": "ftp://x/y"}, "does not start with https"),
        ({"weights_file": "../x.pth"}, "is not a file name"),
        ({"weights_sha256": "abc"}, "64 hexadecimal digits"),
        ({"weights_licence": None}, "licence None is of the wrong type"),
    ],
)
def test_a_card_that_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert read_card(write_card(tmp_path)).name == "tiny"
    with pytest.raises(NetworkError, match=words):
        read_card(write_card(tmp_path, **changes))


def test_a_damaged_or_incomplete_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("family: [")
    with pytest.raises(NetworkError, match="cannot read the model card"):
        read_card(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(NetworkError, match="not a mapping"):
        read_card(tmp_path / "b.yaml")
    data = yaml.safe_load(write_card(tmp_path).read_text())
    del data["parameters"], data["mean"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(NetworkError, match="lacks mean, parameters"):
        read_card(tmp_path / "c.yaml")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_network_is_loaded_by_its_card(tmp_path: Path, dtype: Any) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from recon_ros.networks.checkpoint import convert
    from recon_ros.networks.dust3r import Dust3r, Dust3rConfig
    from recon_ros.networks.factory import load_network

    original = Dust3r(Dust3rConfig(**TINY)).requires_grad_(False)
    torch.save({"model": original.state_dict()}, tmp_path / "tiny.pth")
    path = tmp_path / "tiny.pth"
    if dtype == "fp16":
        path = tmp_path / "tiny.safetensors"
        convert(tmp_path / "tiny.pth", path, dtype)
        original = original.half().float()
    loaded = load_network(read_card(write_card(tmp_path)), path)
    images = torch.rand(2, 1, 3, 32, 48)
    assert torch.equal(loaded(*images)[1].points, original(*images)[1].points)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
