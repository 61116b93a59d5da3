# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines that cannot be used: why is said, and a reconstruction goes on with another runtime.

On a pretended GPU, with a simulated TensorRT of one version; PyTorch is real. The node with a damaged, full or
half-built cache is in test_node_engine_faults.py.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")

from handmade_bundle import export
from textured_room import CAMERA, TexturedRoom, walk
from trt_fake import FakeCuda, FakeTrt, Simulated, engine_bytes, load_surface

from recon_ros import Frame, Reconstructor
from recon_ros.config import Config, updated
from recon_ros.errors import NetworkError
from recon_ros.runtimes import torch_device, workshop
from recon_ros.runtimes.bundle import Bundle, load_bundle
from recon_ros.runtimes.engine_cache import EngineCache
from recon_ros.runtimes.engine_key import key_of
from recon_ros.runtimes.engine_prepare import build_options
from recon_ros.runtimes.engine_request import BuildRequest
from recon_ros.runtimes.status import status_of
from recon_ros.runtimes.trt import cuda
from recon_ros.runtimes.trt.device import Gpu
from recon_ros.runtimes.trt.library import Library

pytestmark = pytest.mark.faults

MODEL, SIZE = "random-small", (128, 96)
ORIN = Gpu("Orin", "8.7", 16, 64000, "540.3.0", "12.6")
TRT = FakeTrt(load_surface("tensorrt_10.3.0"), FakeCuda(), {"step": Simulated({}, {}, lambda given: {})})


@pytest.fixture(autouse=True)
def jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and TensorRT 10.3.0, but without TensorRT-RTX and without CUDA in PyTorch."""

    def load_library(name: str) -> Library:
        if name != "tensorrt":
            raise NetworkError(f"{name} is not installed")
        return TRT.library

    monkeypatch.setattr(workshop, "load_library", load_library)
    monkeypatch.setattr(workshop, "find_gpu", lambda: ORIN)
    monkeypatch.setattr(torch_device, "has_cuda", lambda: False)
    monkeypatch.setattr(cuda, "find_cuda", lambda: TRT.cuda)


def build(cache: Path, bundle: Bundle, content: bytes, version: str = "10.3.0") -> Path:
    """The engine file of that bundle in the cache, as TensorRT of a version would have it built there."""
    request = BuildRequest(model=MODEL, width=SIZE[0], height=SIZE[1], cache=str(cache))
    key = key_of(bundle, TRT.library, ORIN, build_options(request, ORIN))
    key = dataclasses.replace(key, library_version=version)
    engines = EngineCache(cache / "engines").build(key, lambda folder: (folder / "step.engine").write_bytes(content))
    return engines.files["step"]


def of_another_version(cache: Path, bundle: Bundle) -> str:
    build(cache, bundle, b"engine 10.7.0 step", "10.7.0")
    return "not taken: tensorrt fp16 (built by TensorRT 10.7.0, this is 10.3.0: run `recon engine build"


def of_another_version_in_disguise(cache: Path, bundle: Bundle) -> str:
    """By the cache's own records it fits; the library knows better."""
    build(cache, bundle, b"engine 10.7.0 step")
    return "does not take the engine step.engine: it is damaged, or was built by another version"


def truncated(cache: Path, bundle: Bundle) -> str:
    with build(cache, bundle, engine_bytes(TRT, "step")).open("r+b") as file:
        file.truncate(10)
    return "not taken: tensorrt fp16 (truncated: engine file step.engine has 10 of 18 bytes: run `recon engine build"


def with_a_bit_flipped(cache: Path, bundle: Bundle) -> str:
    path = build(cache, bundle, engine_bytes(TRT, "step"))
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    return "not taken: tensorrt fp16 (damaged: engine file step.engine is not as it was built"


def of_another_network(cache: Path, bundle: Bundle) -> str:
    """Whole, and of this very version."""
    build(cache, bundle, engine_bytes(TRT, "step"))
    return "the engine is not one of graph step: output state.next is missing; build it again"


@pytest.mark.parametrize(
    "fault",
    [of_another_version, of_another_version_in_disguise, truncated, with_a_bit_flipped, of_another_network],
    ids=lambda fault: fault.__name__,
)
def test_an_engine_that_cannot_be_used_is_explained_and_frames_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Callable[[Path, Bundle], str]
) -> None:
    bundle = load_bundle(export(tmp_path, MODEL, SIZE, precision="fp16"))
    expected = fault(tmp_path, bundle)
    caplog.set_level(logging.INFO, "recon_ros.runtimes")
    r = Reconstructor(updated(Config(), {"source": MODEL, "engine.cache": str(tmp_path)}))
    room = TexturedRoom()
    for i in range(2):
        update = r.process(Frame(1 + i, room.render(walk(i))[0], CAMERA))
        assert update.prediction.points_self.shape == (SIZE[1], SIZE[0], 3)
    assert r.source.runtime == "torch fp32"
    assert status_of(r.source).serves and expected in caplog.text
    assert "Traceback" not in caplog.text
