# SPDX-License-Identifier: Apache-2.0
"""Weight files: what is read, what is refused, and that nothing in them is ever run."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("safetensors", reason="needs safetensors")

from safetensors.torch import load_file, save_file  # noqa: E402

from recon_ros.errors import NetworkError  # noqa: E402
from recon_ros.networks.checkpoint import (  # noqa: E402
    StateMismatch,
    convert,
    guess_family,
    load_into,
    load_state_dict,
    match,
    read_metadata,
    sha256,
)
from recon_ros.networks.dust3r import Dust3r, Dust3rConfig  # noqa: E402
from recon_ros.networks.mast3r import Mast3r, Mast3rConfig  # noqa: E402

torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "enc_dim": 16,
    "enc_depth": 1,
    "enc_heads": 2,
    "dec_dim": 16,
    "dec_depth": 4,
    "dec_heads": 2,
    "dpt_feature_dim": 8,
    "dpt_last_dim": 4,
    "dpt_layer_dims": (4, 6, 8, 10),
}


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Dust3r(Dust3rConfig(**SMALL, head="dpt"))


def assert_same(state: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(state) == set(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


class Evil:
    """Unpickled by an ordinary loader, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


class Evaluated(Evil):
    """The same through an expression."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"__import__('os').system({self.command!r})",)


# What published files look like


def test_a_published_file_is_read_and_its_constructor_string_is_not_run(tmp_path: Path) -> None:
    marker, state = tmp_path / "marker", network().state_dict()
    arguments = argparse.Namespace(
        model=f"Dust3r(__import__('os').system('touch {marker}'))", lr=1e-4, output=Path("x")
    )
    content = {"args": arguments, "model": state, "epoch": 3, "best_so_far": np.float64(0.5)}
    torch.save(content, tmp_path / "published.pth")
    assert_same(load_state_dict(tmp_path / "published.pth"), state)
    assert not marker.exists()
    assert eval(arguments.model.replace("Dust3r", "")) == 0, "the string would have run"
    assert marker.exists()


def test_a_file_with_a_configuration_of_a_package_we_do_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DictConfig:
        def __init__(self) -> None:
            self.content = {"lr": 1}

    DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"
    package, module = types.ModuleType("omegaconf"), types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = DictConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", package)
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    state = {"a": torch.ones(2)}
    torch.save({"args": DictConfig(), "model": state}, tmp_path / "published.pth")
    monkeypatch.delitem(sys.modules, "omegaconf.dictconfig")
    monkeypatch.delitem(sys.modules, "omegaconf")
    assert_same(load_state_dict(tmp_path / "published.pth"), state)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 1}])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_by_any_name_and_with_a_prefix(tmp_path: Path, wrap: Any, zipped: bool) -> None:
    state = network().state_dict()
    prefixed = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save(wrap(prefixed), tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    assert_same(load_state_dict(tmp_path / "weights.pth"), state)


def test_a_prefix_of_some_keys_only_is_part_of_their_names(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "weights.pth")
    assert set(load_state_dict(tmp_path / "weights.pth")) == {"module.a", "b"}


# What is refused


@pytest.mark.parametrize("kind", [Evil, Evaluated])
@pytest.mark.parametrize("place", ["beside", "instead", "inside", "raw"])
def test_a_malicious_file_is_refused_and_nothing_is_run(tmp_path: Path, kind: type[Evil], place: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    evil = kind(f"touch {marker}")
    contents = {
        "beside": {"args": evil, "model": network().state_dict()},
        "instead": evil,
        "inside": {"model": {"a": torch.ones(1), "b": evil}},
        "raw": {"model": evil},
    }
    if place == "raw":
        path.write_bytes(pickle.dumps(contents[place], protocol=2))
    else:
        torch.save(contents[place], path)
    with pytest.raises(NetworkError, match=r"not a weight file|holds more than weights") as caught:
        load_state_dict(path)
    assert not marker.exists()
    assert str(path) in str(caught.value)
    if place != "raw":
        assert "system" in str(caught.value) or "eval" in str(caught.value)
        torch.load(path, weights_only=False)
        assert marker.exists(), "the file is harmless, so the test shows nothing"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path, state = tmp_path / f"weights{suffix}", {"a": torch.randn(300, 20), "b": torch.randn(50)}
    torch.save({"model": state}, path) if suffix == ".pth" else save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(NetworkError, match="damaged") as caught:
        load_state_dict(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_weight_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"page{suffix}"
    path.write_text("<html><body>Quota exceeded</body></html>" * 20)
    with pytest.raises(NetworkError, match="damaged or not"):
        load_state_dict(path)
    with pytest.raises(NetworkError, match="no such weight file"):
        load_state_dict(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("content", [{}, [1, 2], torch.ones(3), {"model": {}}, {"model": {"a": 1}}, {"a": "text"}])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(NetworkError, match="holds no"):
        load_state_dict(tmp_path / "weights.pth")


# The report


def test_weights_of_another_family_are_told() -> None:
    other = Mast3r(Mast3rConfig(**SMALL)).state_dict()
    target = network()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(StateMismatch, match=r"do not fit dust3r \(the file looks like a mast3r checkpoint\)") as caught:
        load_into(target, other, "dust3r")
    assert caught.value.missing == []
    assert set(caught.value.unexpected) == set(other) - set(before)
    assert "downstream_head1.head_local_features.fc1.weight" in str(caught.value)
    assert_same(target.state_dict(), before)


def test_each_fault_is_named() -> None:
    target = network()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    state = dict(network(1).state_dict())
    del state["enc_norm.bias"], state["mask_token"]
    state["extra.weight"] = torch.ones(1)
    state["dec_norm.weight"] = torch.ones(3)
    with pytest.raises(StateMismatch) as caught:
        load_into(target, state, "dust3r")
    assert caught.value.missing == ["mask_token", "enc_norm.bias"]
    assert caught.value.unexpected == ["extra.weight"]
    assert caught.value.misshaped == {"dec_norm.weight": ((16,), (3,))}
    for words in (
        "2 missing: mask_token, enc_norm.bias",
        "1 unexpected: extra.weight",
        "dec_norm.weight is (3,), not (16,)",
    ):
        assert words in str(caught.value)
    assert_same(target.state_dict(), before)


def test_a_long_list_is_cut_in_the_message_only() -> None:
    with pytest.raises(StateMismatch, match=r"missing: .* and [0-9]+ more") as caught:
        load_into(network(), {"enc_norm.bias": torch.ones(16)}, "dust3r")
    assert len(str(caught.value)) < 1000
    assert len(caught.value.missing) == len(network().state_dict()) - 1


# One tensor under two names


@pytest.mark.parametrize("left_out", [r"scratch.layer_rn.", r"_rn.weight", None])
def test_either_name_of_a_tensor_will_do(left_out: str | None) -> None:
    source, target = network(1), network(2)
    state = {key: tensor for key, tensor in source.state_dict().items() if left_out is None or left_out not in key}
    assert (len(state) < len(source.state_dict())) == (left_out is not None)
    load_into(target, state, "dust3r")
    assert_same(target.state_dict(), source.state_dict())


def test_two_names_with_different_numbers_are_a_contradiction() -> None:
    state = {key: tensor.clone() for key, tensor in network(1).state_dict().items()}
    key = "downstream_head1.dpt.scratch.layer_rn.0.weight"
    state[key] = state[key] + 1
    with pytest.raises(StateMismatch, match=r"different numbers: .*layer_rn.0.weight and .*layer1_rn.weight"):
        load_into(network(), state, "dust3r")


def test_a_file_is_checked_without_room_for_the_network() -> None:
    state = network().state_dict()
    with torch.device("meta"):
        empty = Dust3r(Dust3rConfig(**SMALL, head="dpt"))
    assert set(match(empty, state, "dust3r")) == set(state)


def test_families_are_told_apart() -> None:
    assert guess_family(network().state_dict()) == "dust3r"
    assert guess_family(["dust3r.enc_norm.bias", "value_encoder.0.norm1.bias"]) == "spann3r"
    assert guess_family(["pose_retriever.mem", "downstream_head.x"]) == "cut3r"
    assert guess_family(["aggregator.camera_token"]) == "vggt"
    assert guess_family(["conv.weight"]) is None


# Conversion


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")])
def test_conversion(tmp_path: Path, dtype: Any, kind: str) -> None:
    source, target = tmp_path / "weights.pth", tmp_path / "new" / "weights.safetensors"
    original = network(1)
    torch.save({"args": argparse.Namespace(), "model": original.state_dict()}, source)
    facts = convert(source, target, dtype)
    assert facts == read_metadata(target)
    assert facts["source"] == "weights.pth"
    assert facts["source_sha256"] == sha256(source)
    assert facts["family"] == "dust3r"
    written = load_file(target)
    assert {tensor.dtype for tensor in written.values()} == {getattr(torch, kind)}
    assert not any("layer_rn." in key for key in written), "one tensor is written once"
    loaded = network(2)
    load_into(loaded, load_state_dict(target), "dust3r")
    expected = {key: tensor.to(getattr(torch, kind)).float() for key, tensor in original.state_dict().items()}
    assert_same(loaded.state_dict(), expected)
    assert [path.name for path in target.parent.iterdir()] == ["weights.safetensors"]


def test_a_number_that_does_not_fit_is_told(tmp_path: Path) -> None:
    torch.save({"big": torch.tensor([1e6]), "count": torch.tensor([3])}, tmp_path / "weights.pth")
    with pytest.raises(NetworkError, match=r"big: its largest number 1e\+06 does not fit"):
        convert(tmp_path / "weights.pth", tmp_path / "out.safetensors", "fp16")
    assert not (tmp_path / "out.safetensors").exists()
    convert(tmp_path / "weights.pth", tmp_path / "out.safetensors", "bf16")
    assert load_file(tmp_path / "out.safetensors")["count"].tolist() == [3]


def test_conversion_writes_safetensors_only(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(NetworkError, match=r"must end in \.safetensors"):
        convert(tmp_path / "weights.pth", tmp_path / "out.pth", "fp16")
    with pytest.raises(NetworkError, match="not a safetensors file"):
        read_metadata(tmp_path / "weights.pth")
