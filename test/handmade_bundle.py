# SPDX-License-Identifier: Apache-2.0
"""A bundle that took no export: whole as a file, empty as a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recon_ros.networks.plan import IMAGE, GraphSpec, StepPlan, TensorSpec
from recon_ros.runtimes.bundle import GOLDEN, INITIAL, BundleFacts, finish, plain_options, save_arrays, writing
from recon_ros.runtimes.engine_prepare import bundle_place
from recon_ros.runtimes.engine_request import BuildRequest
from recon_ros.runtimes.golden import sample_sizes
from recon_ros.runtimes.torch_network import network_card, network_digest


def export(cache: Path, model: str, size: tuple[int, int], weights_digest: str = "", precision: str = "fp32") -> Path:
    """A bundle of an empty graph where that of the network is looked for; `size` is (width, height)."""
    tensors = {
        IMAGE: TensorSpec((size[1], size[0], 3), "uint8"),
        "state": TensorSpec((1, 2), "float32"),
        "state.next": TensorSpec((1, 2), "float32"),
    }
    graphs = (GraphSpec("step", (IMAGE, "state"), ("state.next",)),)
    plan = StepPlan("cut3r", *size, graphs, tensors, memory=("state",), fetched=())
    digest = weights_digest or network_digest(model)
    request = BuildRequest(model=model, width=size[0], height=size[1], precision=precision, cache=str(cache))
    folder = bundle_place(request, digest)
    facts = BundleFacts(
        model=network_card(model).name,
        card=network_card(model),
        terms="",
        precision=precision,
        attention="softmax32",
        options=plain_options({"update_rule": "filt3r", "outputs": ()}),
        weights_digest=digest,
        made_by="hand",
        plan=plan,
    )
    with writing(folder) as part:
        (part / "step.onnx").write_bytes(b"onnx")
        save_arrays(part / INITIAL, {"state": np.zeros((1, 2), np.float32)})
        save_arrays(part / GOLDEN, {name: np.zeros(n, np.float32) for name, n in sample_sizes(plan).items()})
        finish(part, folder, facts)
    return folder
