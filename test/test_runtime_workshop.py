# SPDX-License-Identifier: Apache-2.0
"""What is installed and what lies in the cache, in words and commands; on a bundle made by hand, without torch."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade_bundle import export

from recon_ros.config import Config, updated
from recon_ros.errors import NetworkError
from recon_ros.runtimes import engine_prepare, make_source, openvino_executor, workshop
from recon_ros.runtimes.bundle import load_bundle
from recon_ros.runtimes.choice import Lack, Machine, Unusable
from recon_ros.runtimes.engine_cache import EngineCache
from recon_ros.runtimes.engine_key import key_of
from recon_ros.runtimes.ladder import Variant
from recon_ros.runtimes.torch_network import network_digest
from recon_ros.runtimes.trt import cuda, runner
from recon_ros.runtimes.trt.device import Gpu
from recon_ros.runtimes.trt.engine import EngineRefused
from recon_ros.runtimes.trt.library import Library
from recon_ros.runtimes.workshop import NetworkWorkshop

MODEL, SIZE = "cut3r-small-linear", (96, 64)
OPENVINO, BF16 = Variant("openvino", "fp32", device=""), Variant("openvino", "bf16", device="")
INT8 = Variant("openvino", "int8", device="")
TENSORRT, TORCH = Variant("tensorrt", "fp16", device=""), Variant("torch", "fp32", mode="eager")
ORIN = Gpu("Orin", "8.7", 16, 64000, "540.3.0", "12.6")
DISTRIBUTIONS = {"torch", "openvino", "nncf"}
Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Pretend that these of torch, openvino and nncf are installed, and no other, and that there is no GPU."""
    real = importlib.util.find_spec
    monkeypatch.setattr(workshop, "find_gpu", lambda: None)

    def pretend(*names: str) -> None:
        def find(name: str, package: str | None = None) -> Any:
            if name in DISTRIBUTIONS:
                return object() if name in names else None
            return real(name, package)

        monkeypatch.setattr(workshop.importlib.util, "find_spec", find)

    return pretend


def make(folder: Path, **options: Any) -> NetworkWorkshop:
    return NetworkWorkshop(updated(Config(), {"source": MODEL, "engine.cache": str(folder), **options}))


def test_what_is_not_installed_is_said_before_the_first_image(tmp_path: Path, install: Install) -> None:
    install()
    shop = make(tmp_path)
    assert str(shop.lack(TORCH, None)) == "PyTorch is not installed: pip install torch"
    assert str(shop.lack(OPENVINO, None)) == "OpenVINO is not installed: pip install openvino"
    assert str(shop.lack(TENSORRT, None)) == "no NVIDIA GPU here"
    with pytest.raises(NetworkError, match="'cut3r-small-linear' cannot run here: tensorrt: no NVIDIA GPU here"):
        make_source(updated(Config(), {"source": MODEL}))
    install("torch")
    assert shop.lack(TORCH, None) is None and shop.lack(TORCH, SIZE) is None


def test_the_library_is_asked_for_only_where_there_is_a_gpu(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_library(name: str) -> Any:
        raise NetworkError(f"{name} is too old")

    install()
    monkeypatch.setattr(workshop, "load_library", no_library)
    assert str(make(tmp_path).lack(TENSORRT, None)) == "no NVIDIA GPU here"
    monkeypatch.setattr(workshop, "find_gpu", lambda: ORIN)
    assert str(make(tmp_path).lack(TENSORRT, None)) == "tensorrt is too old"


def test_what_is_missing_comes_with_the_command_that_makes_it(tmp_path: Path, install: Install) -> None:
    install("torch", "openvino")
    cache = tmp_path / "of mine"
    lack = make(cache, update_rule="ttt3r").lack(BF16, SIZE)
    assert isinstance(lack, Lack) and lack.buildable and lack.reason == "not exported for 96x64 yet"
    assert lack.command == shlex.join(
        f"recon engine build {MODEL} --size 64x96 --runtime openvino --precision fp32 --update-rule ttt3r".split()
        + ["--cache", str(cache)]
    )
    install("openvino")
    lack = make(cache).lack(BF16, SIZE)
    assert isinstance(lack, Lack) and not lack.buildable and "PyTorch, which exports it" in lack.reason


def test_exported_graphs_are_found_for_every_precision_they_serve(tmp_path: Path, install: Install) -> None:
    install("openvino")
    folder = export(tmp_path, MODEL, SIZE)
    assert make(tmp_path).lack(OPENVINO, SIZE) is None and make(tmp_path).lack(BF16, SIZE) is None
    for other in (make(tmp_path).lack(OPENVINO, (64, 64)), make(tmp_path, update_rule="ttt3r").lack(OPENVINO, SIZE)):
        assert other is not None, "of another size, or with another rule"
    (folder / "step.onnx").write_bytes(b"onny")
    lack = make(tmp_path).lack(OPENVINO, SIZE)
    assert lack is not None and "step.onnx is damaged" in lack.reason


def test_graphs_serve_where_the_weights_are_not(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A robot gets the cache of another machine, and neither PyTorch nor gigabytes of weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    install("openvino", "torch")
    model = "cut3r_512_dpt"
    with pytest.raises(NetworkError, match="no weights at"):
        make(tmp_path, source=model)
    export(tmp_path, model, SIZE, weights_digest="abc")
    shop = make(tmp_path, source=model)
    assert shop.lack(OPENVINO, SIZE) is None
    lack = shop.lack(TORCH, None)
    assert lack is not None and "no weights at" in lack.reason and not lack.buildable
    lack = shop.lack(OPENVINO, (512, 384))
    assert lack is not None and not lack.buildable and "no weights at" in lack.reason


def test_int8_is_made_from_graphs_where_the_weights_are_not(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    install("openvino", "nncf")
    model = "cut3r_512_dpt"
    export(tmp_path, model, SIZE, weights_digest="abc")
    lack = make(tmp_path, source=model).lack(INT8, SIZE)
    assert lack is not None and lack.buildable and "--runtime openvino --precision int8" in lack.command
    lack = make(tmp_path, source=model).lack(INT8, (512, 384))
    assert lack is not None and not lack.buildable and "no weights at" in lack.reason, "there is nothing to round"
    install("openvino", "torch")
    lack = make(tmp_path, source=model).lack(INT8, SIZE)
    assert lack is not None and not lack.buildable and "pip install nncf" in lack.reason


def test_graphs_of_random_weights_do_not_stand_in_for_the_network(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    install("openvino", "torch")
    model = "cut3r_512_dpt"
    export(tmp_path, model, SIZE, weights_digest=network_digest(model, seeded=True))
    with pytest.raises(NetworkError, match="no weights at"):
        make(tmp_path, source=model)


def test_a_cache_that_cannot_be_read_is_a_sentence(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(folder: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    install("openvino", "torch")
    folder = export(tmp_path, MODEL, SIZE)
    monkeypatch.setattr(workshop, "load_bundle", deny)
    assert str(make(tmp_path).lack(OPENVINO, SIZE)) == f"the cache cannot be read: {folder}: Permission denied"


def test_a_broken_library_leaves_the_others(tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise NetworkError("libopenvino.so: undefined symbol")

    install("openvino", "torch")
    monkeypatch.setattr(openvino_executor, "cpu_precisions", broken)
    assert make(tmp_path).machine == Machine()


def test_engines_that_the_library_refuses_are_put_aside_once(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    library = Library(None, "tensorrt", "10.3.0")
    monkeypatch.setattr(workshop, "find_gpu", lambda: ORIN)
    monkeypatch.setattr(workshop, "load_library", lambda name: library)
    bundle = load_bundle(export(tmp_path, MODEL, SIZE, precision="fp16"))
    shop = make(tmp_path)
    lack = shop.lack(TENSORRT, SIZE)
    assert lack is not None and lack.buildable and "--runtime tensorrt --precision fp16" in lack.command
    assert lack.reason == "no engine yet", "an exported bundle needs neither torch nor weights to become an engine"

    request = shop._request(TENSORRT, SIZE)
    key = key_of(bundle, library, ORIN, engine_prepare.build_options(request, ORIN))
    cache = EngineCache(tmp_path / "engines")

    def build() -> None:
        cache.build(key, lambda folder: (folder / "step.engine").write_bytes(b"engine") and None)

    def refuse(*arguments: Any) -> Any:
        raise EngineRefused("memory.keys is unknown: it was built by another version")

    monkeypatch.setattr(runner, "TrtExecutor", refuse)
    monkeypatch.setattr(cuda, "find_cuda", lambda: None)
    build()
    assert shop.lack(TENSORRT, SIZE) is None
    with pytest.raises(Unusable, match="another version"):
        shop.open(TENSORRT, SIZE)
    assert shop.lack(TENSORRT, SIZE) == lack
    build()
    assert shop.lack(TENSORRT, SIZE) is None
    with pytest.raises(NetworkError) as caught:
        shop.open(TENSORRT, SIZE)
    assert not isinstance(caught.value, Unusable), "new engines would be no better"
    assert shop.lack(TENSORRT, SIZE) is None


def test_openvino_runs_bf16_from_float32_graphs(tmp_path: Path, install: Install) -> None:
    install("openvino", "torch")
    shop = make(tmp_path)
    assert shop._request(BF16, SIZE).precision == "fp32"
    assert shop._request(TENSORRT, SIZE).precision == "fp16"


def test_torch_runs_what_it_is_checked_against(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    shop = make(tmp_path)
    reference = shop.open(TORCH, SIZE)
    half = shop.open(Variant("torch", "bf16", mode="eager"), SIZE)
    assert reference.checked is None and half.checked is not None
    assert half.checked.passed and 0 < half.checked.share < 1, "it is another arithmetic, and right"
    image = np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    memory, _ = reference.driver.step(reference.driver.initial_memory(), image, None)
    moved = half.driver.load_memory(reference.driver.save_memory(memory))
    _, expected = reference.driver.step(memory, image, None)
    _, prediction = half.driver.step(moved, image, None)
    error = np.abs(prediction.points_self - expected.points_self).mean() / np.abs(expected.points_self).mean()
    assert 0 < error < 0.1
    for opened in (reference, half):
        opened.driver.close()
