# SPDX-License-Identifier: Apache-2.0
"""int8 for the CPU: an exported network with its matrices rounded to 8 bits by NNCF, and what that costs.

Weights are rounded here, with a scale for each output channel. Activations are rounded by OpenVINO when the network
runs, with a scale for each token and group of channels (`openvino_executor.ACTIVATION_GROUP`), so nothing depends on
images seen beforehand. Measured on a seeded CUT3R at 512x384: post-training quantisation with fixed activation scales,
calibrated on recurrent steps, is 6 % faster and 2 to 7 times less accurate. Leaving out the pose head, the pose memory,
either decoder, the encoder, or the second layers of the MLPs gains no accuracy worth its time. Convolutions stay as
they are: OpenVINO has none with int8 weights and float activations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import NetworkError
from recon_ros.networks.plan import HEALTH
from recon_ros.runtimes import bundle as bundles
from recon_ros.runtimes.bundle import Bundle
from recon_ros.runtimes.executor import Executor
from recon_ros.runtimes.golden import golden_images, relative_error
from recon_ros.runtimes.openvino_executor import OpenVinoExecutor, require_openvino
from recon_ros.runtimes.trt.progress import ProgressSink, tell

COST = "cost.json"
"""File of an int8 bundle that says what the rounding costs."""

INDICATIVE_IMAGES = 5
FLOAT_OPERATIONS = ["Convolution", "ConvolutionBackpropData"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """The error of a rounded network against its fp32 graphs, fed with the same images, each with its own memory.

    Attributes:
        errors: output → mean over the images of mean |Δ| / mean |reference|; the memory after the last image as
            ``<name>.next``.
        images: how many.
        real: they were given by the caller; otherwise they are made ones, and the errors only indicative.
    """

    errors: Mapping[str, float]
    images: int
    real: bool

    def __str__(self) -> str:
        """One line for people."""
        errors = ", ".join(f"{name} {error:.1%}" for name, error in self.errors.items() if not name.startswith(HEALTH))
        hint = "" if self.real else "; made images, so only indicative: give a recording"
        return f"mean error over {self.images} images: {errors}{hint}"


def quantise(
    source: Bundle,
    images: Sequence[NDArray[np.uint8]] = (),
    folder: Path | None = None,
    progress: ProgressSink | None = None,
) -> Bundle:
    """An int8 bundle from one in fp32, with its `Cost` measured and kept in it.

    Args:
        source: in fp32.
        images: (H, W, 3) uint8 in the order of a recording, of the bundle's size, on which the cost is measured; none:
            made ones.
        folder: where to; None for the place in the cache.
        progress: hears of each phase, and may cancel.

    Raises:
        BuildCancelled: `progress` said so; nothing is left behind.
        NetworkError: the bundle is not in fp32, OpenVINO or NNCF is not installed, the processor has no int8, an image
            is of another size, or the disk is full.
    """
    if source.precision != "fp32":
        raise NetworkError(f"int8 is made from a bundle in fp32, and {source.folder} is in {source.precision}")
    openvino, nncf = require_openvino(), _require_nncf()
    target = folder or int8_folder(source)
    facts = dataclasses.replace(source.facts, precision="int8", made_by=f"{source.made_by}, nncf {nncf.__version__}")
    graphs = source.plan.graphs
    core = openvino.Core()
    with bundles.writing(target) as part:
        made = dataclasses.replace(source, folder=part, precision="int8")
        for index, graph in enumerate(graphs):
            tell(progress, f"rounding {graph.name}", 0.7 * index / len(graphs))
            with _silence():
                rounded = nncf.compress_weights(
                    core.read_model(source.onnx(graph.name)),
                    mode=nncf.CompressWeightsMode.INT8_SYM,
                    ignored_scope=nncf.IgnoredScope(types=FLOAT_OPERATIONS, validate=False),
                )
            openvino.save_model(rounded, made.onnx(graph.name), compress_to_fp16=False)
        for name in (bundles.INITIAL, bundles.GOLDEN):
            shutil.copyfile(source.folder / name, part / name)
        tell(progress, "measuring the error", 0.7)
        cost = measure(source, made, images)
        (part / COST).write_text(json.dumps(dataclasses.asdict(cost), indent=1) + "\n", encoding="utf-8")
        tell(progress, "checksums", 0.95)
        result = bundles.finish(part, target, facts)
    if progress is not None:
        progress.update("done", 1.0)  # too late to cancel
    return result


def int8_folder(source: Bundle) -> Path:
    """Where the int8 bundle of an fp32 bundle lies in the cache."""
    plan, facts = source.plan, source.facts
    return bundles.bundle_folder(
        facts.model, plan.width, plan.height, "int8", facts.attention, facts.options, facts.weights_digest
    )


def read_cost(bundle: Bundle) -> Cost:
    """What was measured when the int8 bundle was made.

    Raises:
        NetworkError: it cannot be read.
    """
    try:
        return Cost(**json.loads((bundle.folder / COST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise NetworkError(f"{bundle.folder} does not say what its rounding costs: {error}") from error


def measure(source: Bundle, rounded: Bundle, images: Sequence[NDArray[np.uint8]] = ()) -> Cost:
    """The cost of an int8 bundle beside the fp32 one that it was made from; arguments as of `quantise`."""
    plan = source.plan
    shown = list(images) or golden_images(plan.width, plan.height, INDICATIVE_IMAGES)
    reference, other = OpenVinoExecutor(source, "fp32"), OpenVinoExecutor(rounded, "int8")
    try:
        return Cost(compare(reference, other, shown), len(shown), bool(len(images)))
    finally:
        reference.close()
        other.close()


def compare(reference: Executor, other: Executor, images: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Output → mean over the images of its relative error (`golden.relative_error`), each executor on its own memory;
    and ``<name>.next`` → that of the memory after the last image."""
    ours, theirs = other.initial(), reference.initial()
    errors: dict[str, list[float]] = {}
    for image in images:
        ours, answers = other.step(ours, image)
        theirs, expected = reference.step(theirs, image)
        for name, array in expected.items():
            errors.setdefault(name, []).append(relative_error(answers[name], array))
    after = other.read(ours)
    memory = {f"{name}.next": relative_error(after[name], array) for name, array in reference.read(theirs).items()}
    return {name: float(np.mean(found)) for name, found in errors.items()} | memory


def _require_nncf() -> Any:
    """NNCF, which reports nothing to its maker.

    Raises:
        NetworkError: it is not installed.
    """
    require_openvino()
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
    except ImportError as error:
        raise NetworkError(f"to make int8, pip install nncf ({error})") from error
    return nncf


@contextlib.contextmanager
def _silence() -> Any:
    """Without NNCF's tables and bars."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
