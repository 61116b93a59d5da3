# SPDX-License-Identifier: Apache-2.0
"""int8 bundles: what they cost is measured and within its bound, and half of one never stays."""

from __future__ import annotations

import numpy as np
import pytest

from recon_ros.errors import NetworkError
from recon_ros.runtimes import golden

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("onnxscript", reason="needs onnx and onnxscript")
pytest.importorskip("openvino", reason="needs openvino")
pytest.importorskip("nncf", reason="needs nncf")

from tiny_bundles import HEIGHT, WIDTH, tiny_bundle

from recon_ros.runtimes import int8
from recon_ros.runtimes.bundle import load_bundle
from recon_ros.runtimes.openvino_executor import OpenVinoExecutor, cpu_precisions
from recon_ros.runtimes.trt.progress import BuildCancelled

if "int8" not in cpu_precisions():
    pytest.skip("this processor has no int8 for OpenVINO", allow_module_level=True)

BOUND = 0.12
"""Of the error of any output, of a network with seeded weights."""


class Progress:
    def __init__(self, cancel_at: float = 2.0) -> None:
        self.fractions: list[float] = []
        self.cancel_at = cancel_at

    def update(self, phase: str, fraction: float) -> bool:
        self.fractions.append(fraction)
        return fraction < self.cancel_at


@pytest.fixture(scope="module")
def exported():
    return tiny_bundle("cut3r-small-linear")


@pytest.fixture(scope="module")
def rounded(exported, tmp_path_factory):
    return int8.quantise(exported, folder=tmp_path_factory.mktemp("bundles") / "int8")


def test_a_rounded_bundle_is_whole_smaller_and_passes_its_self_check(exported, rounded):
    assert (rounded.precision, rounded.plan, rounded.weights_digest) == ("int8", exported.plan, exported.weights_digest)
    assert rounded.digest != exported.digest and load_bundle(rounded.folder) == rounded
    weights = rounded.onnx("step").with_suffix(".bin").stat().st_size
    assert weights < 0.5 * exported.onnx("step").stat().st_size
    report = golden.check(OpenVinoExecutor(rounded, "int8", threads=1), rounded.golden(), "int8")
    assert report.passed and 1e-3 < report.error < BOUND, str(report)


def test_the_cost_is_kept_and_true(exported, rounded):
    cost = int8.read_cost(rounded)
    assert cost.images == int8.INDICATIVE_IMAGES and not cost.real and "only indicative" in str(cost)
    assert {"points", "confidence", "pose", "state.next"} <= cost.errors.keys()
    assert max(cost.errors.values()) < BOUND and cost.errors["points"] > 1e-3
    other = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), dtype=np.uint8)
    seen = int8.measure(exported, rounded, list(other))
    assert seen.real and seen.images == 4 and max(seen.errors.values()) < BOUND
    assert seen.errors["points"] != cost.errors["points"]


def test_a_network_beside_itself_costs_nothing(exported):
    executors = OpenVinoExecutor(exported, threads=1), OpenVinoExecutor(exported, threads=1)
    errors = int8.compare(*executors, golden.golden_images(WIDTH, HEIGHT, 2))
    assert set(errors.values()) == {0.0}


def test_a_cancelled_one_leaves_nothing_and_the_wrong_source_is_refused(exported, rounded, tmp_path):
    with pytest.raises(BuildCancelled):
        int8.quantise(exported, folder=tmp_path / "int8", progress=Progress(cancel_at=0.5))
    assert not (tmp_path / "int8").exists() and not (tmp_path / "int8.part").exists()
    with pytest.raises(NetworkError, match="from a bundle in fp32"):
        int8.quantise(rounded, folder=tmp_path / "int8")
    (tmp_path / "cost.json").write_text("{}")
    with pytest.raises(NetworkError, match="does not say what"):
        int8.read_cost(load_bundle(exported.folder))
