# SPDX-License-Identifier: Apache-2.0
"""Features of a frozen encoder beside the training images: complete or not there, and of the right weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
from recon_ros.errors import DatasetError, NetworkError  # noqa: E402
from recon_ros.networks.hiera import Hiera, HieraConfig  # noqa: E402
from recon_ros.runtimes.openvino_executor import cpu_precisions  # noqa: E402
from recon_ros.training import features  # noqa: E402
from recon_ros.training.batches import Shards  # noqa: E402
from recon_ros.training.features import cache_features, fastest, fingerprint  # noqa: E402

COUNT, FRAMES, HEIGHT, WIDTH = 2, 3, 32, 64


@pytest.fixture
def encoder() -> Hiera:
    torch.manual_seed(1)
    return Hiera(HieraConfig(width=8, blocks=1)).eval().requires_grad_(False)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return make_shard(tmp_path / "shards" / "shard_1", seed=1)


@pytest.fixture(autouse=True)
def by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO takes seconds to convert a network; one test is enough."""
    monkeypatch.setattr(features, "cpu_precisions", lambda: ())


def make_shard(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    np.save(folder / "images.npy", generator.integers(0, 256, (COUNT, FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8))
    np.save(folder / "depth.npy", np.ones((COUNT, FRAMES, HEIGHT, WIDTH), np.float16))
    np.save(folder / "K.npy", np.full((COUNT, 4), 30, np.float32))
    np.save(folder / "T_world_camera.npy", np.tile(np.eye(4, dtype=np.float32), (COUNT, FRAMES, 1, 1)))
    (folder / "shard.json").write_text("{}")
    return folder


def test_features_are_the_encoders(shard: Path, encoder: Hiera) -> None:
    assert cache_features(shard.parent, encoder, "hiera") == [shard]
    f8, f16 = (np.load(shard / f"hiera_{stride}.npy") for stride in ("f8", "f16"))
    assert f8.shape == (COUNT, FRAMES, 16, HEIGHT // 8, WIDTH // 8)
    assert f16.shape == (COUNT, FRAMES, 32, HEIGHT // 16, WIDTH // 16)
    assert f8.dtype == f16.dtype == np.float16
    image = np.load(shard / "images.npy")[1, 2]
    expected = encoder(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    assert np.allclose(f8[1, 2], expected.f8[0].numpy(), rtol=2e-3, atol=2e-3)
    assert np.allclose(f16[1, 2], expected.f16[0].numpy(), rtol=2e-3, atol=2e-3)


def test_a_training_reads_them(shard: Path, encoder: Hiera) -> None:
    cache_features(shard.parent, encoder, "hiera")
    batch = Shards(shard.parent, "hiera").whole(1)
    assert batch.f8 is not None
    assert np.array_equal(batch.f8[0].numpy(), np.load(shard / "hiera_f8.npy")[1])


def test_the_record_names_encoder_and_weights(shard: Path, encoder: Hiera) -> None:
    cache_features(shard, encoder, "hiera")
    record = json.loads((shard / "hiera.json").read_text())
    assert record == {
        "encoder": "hiera",
        "shape": "HieraConfig(width=8, blocks=1, window=0)",
        "fingerprint": fingerprint(encoder),
        "computed": "pytorch fp32",
    }


def test_only_what_is_missing_is_computed(shard: Path, encoder: Hiera) -> None:
    cache_features(shard.parent, encoder, "hiera")
    another = make_shard(shard.parent / "shard_2", seed=2)
    make_shard(shard.parent / ".shard_3.being_written", seed=3)
    assert cache_features(shard.parent, encoder, "hiera") == [another]
    assert cache_features(shard.parent, encoder, "hiera") == []


def test_other_weights_compute_again(shard: Path, encoder: Hiera) -> None:
    cache_features(shard.parent, encoder, "hiera")
    before = np.load(shard / "hiera_f16.npy")
    encoder.blocks[3].mlp.fc2.bias[0] += 1
    assert cache_features(shard.parent, encoder, "hiera") == [shard]
    assert not np.array_equal(np.load(shard / "hiera_f16.npy"), before)


def test_an_interrupted_shard_has_no_features(shard: Path, encoder: Hiera, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = encoder.forward, []

    def breaking(image: torch.Tensor) -> object:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(image)

    monkeypatch.setattr(encoder, "forward", breaking)
    with pytest.raises(KeyboardInterrupt):
        cache_features(shard, encoder, "hiera")
    assert not list(shard.glob("hiera*"))
    assert cache_features(shard, encoder, "hiera") == [shard]


def test_no_shard(tmp_path: Path, encoder: Hiera) -> None:
    with pytest.raises(DatasetError, match="no finished shard"):
        cache_features(tmp_path, encoder, "hiera")


def test_a_damaged_shard_is_named(shard: Path, encoder: Hiera) -> None:
    (shard / "images.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DatasetError, match=r"images\.npy"):
        cache_features(shard, encoder, "hiera")


# Who computes


def test_fingerprints_tell_weights_apart(encoder: Hiera) -> None:
    before = fingerprint(encoder)
    encoder.position[0, 0, 0, 0] += 1e-6
    assert fingerprint(encoder) != before


def test_wrong_numbers_are_refused(encoder: Hiera, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenVINO's in bfloat16 were, see `test_networks_hiera`."""
    right = features._by_torch(encoder, 1)

    def openvino(network: Hiera, size: tuple[int, ...], precision: str, threads: int) -> features.Encode:
        return lambda image: (right(image)[0], right(image)[1] * (0.8 if precision == "bf16" else 1))

    monkeypatch.setattr(features, "cpu_precisions", lambda: ("fp32", "bf16", "int8"))
    monkeypatch.setattr(features, "_by_openvino", openvino)
    said: list[str] = []
    _, how = fastest(encoder, np.zeros((2, HEIGHT, WIDTH, 3), np.uint8), 1, said.append)
    assert how == "openvino fp32"
    assert said[0].startswith("OpenVINO in bf16 is not used: 0.2")


def test_without_openvino(encoder: Hiera, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[str, ...]:
        raise NetworkError("OpenVINO is not installed")

    monkeypatch.setattr(features, "cpu_precisions", missing)
    assert fastest(encoder, np.zeros((1, HEIGHT, WIDTH, 3), np.uint8), 1)[1] == "pytorch fp32"


def test_openvino_is_taken(encoder: Hiera, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO")
    monkeypatch.setattr(features, "cpu_precisions", cpu_precisions)
    samples = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    said: list[str] = []
    encode, how = fastest(encoder, samples, 1, said.append)
    assert how.startswith("openvino"), said
    f8, f16 = encode(samples[0])
    assert f8.shape == (16, HEIGHT // 8, WIDTH // 8)
    assert f16.shape == (32, HEIGHT // 16, WIDTH // 16)
