# SPDX-License-Identifier: Apache-2.0
"""Networks in half precision: what stays in float32, how far the answers move, and that float32 stays what it was."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from recon_ros.errors import NetworkError  # noqa: E402
from recon_ros.networks import precision  # noqa: E402
from recon_ros.networks.blocks import Attention, CrossAttention, LayerNorm  # noqa: E402
from recon_ros.networks.compact import Compact  # noqa: E402
from recon_ros.networks.graphs import build_graphs  # noqa: E402
from recon_ros.networks.patches import PatchEmbed  # noqa: E402
from recon_ros.networks.precision import ATTENTIONS, PRECISIONS, ShuffledConv, prepare  # noqa: E402
from recon_ros.networks.small import SMALL  # noqa: E402
from recon_ros.runtimes import golden  # noqa: E402
from recon_ros.runtimes.torch_executor import TorchExecutor  # noqa: E402
from recon_ros.runtimes.torch_network import open_network  # noqa: E402

WIDTH, HEIGHT, STEPS = 96, 64, 6

BOUNDS = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2}
"""mean |Δ| / mean |float32| of any output of six steps and of the memory after them. Measured: 1e-6, 3.2e-3, 2.1e-2."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def executor(network: nn.Module, name: str) -> TorchExecutor:
    return TorchExecutor(build_graphs(network, SMALL[name].card, WIDTH, HEIGHT))


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_stays_near_float32_through_the_recursion(name: str) -> None:
    reference = golden.record(executor(open_network(name).network, name), STEPS)
    # Matches of the compact network are decisions: one that falls otherwise moves the pose.
    leeway = 2 if name.startswith("compact") else 1
    for kind, bound in BOUNDS.items():
        answers = golden.record(executor(prepare(open_network(name).network, kind), name), STEPS)
        errors = {key: golden.relative_error(answers[key], reference[key]) for key in reference}
        assert max(errors.values()) < leeway * bound, (kind, max(errors, key=errors.__getitem__))
        # It is not float32 in disguise.
        assert max(errors.values()) > {"fp32": 0, "fp16": 1e-4, "bf16": 1e-3}[kind]


def test_fp32_fused_changes_nothing() -> None:
    network = open_network("dust3r-small-linear").network
    reference = golden.record(executor(network, "dust3r-small-linear"), 2)
    answers = golden.record(executor(prepare(network, "fp32", "fused"), "dust3r-small-linear"), 2)
    assert all((answers[key] == reference[key]).all() for key in reference)


@pytest.mark.parametrize("name", SMALL)
def test_islands(name: str) -> None:
    """Norms, embeddings and heads keep their float32 weights, all the rest is halved."""
    network = prepare(open_network(name).network, "bf16")
    heads = [module for module in network.modules() if isinstance(module, (*precision.HEADS, LayerNorm, PatchEmbed))]
    if isinstance(network, Compact):  # ONNX has no convolutions in bfloat16 that TensorRT 10.3 reads
        heads += [*network.exact_modules(), *(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))]
    kept = {id(parameter) for module in heads for parameter in module.parameters()}
    assert heads
    for key, parameter in network.named_parameters():
        wide = id(parameter) in kept or key.startswith("attn_head_")
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), key


def test_layer_norm_is_computed_in_float32() -> None:
    """Halves that sum to more than float16 holds."""
    norm = LayerNorm(64, eps=1e-6)
    x = torch.linspace(0, 60000, 64).to(torch.float16)
    normed = norm(x)
    assert normed.dtype == torch.float16
    torch.testing.assert_close(normed.float(), norm(x.float()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("core", precision.CORES)
def test_attention_cores_are_attention(core: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16) for n in (7, 9, 9))
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(precision.CORES[core](q, k, v), expected, rtol=1e-5, atol=1e-6)
    half = precision.CORES[core](q.half(), k.half(), v.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=2e-2, atol=2e-3)


def test_scores_beyond_float16() -> None:
    """Products of 16 × 70 × 70 exceed float16: scaled before the product they fit, and float32 holds them anyway."""
    q = k = torch.full((1, 1, 4, 16), 70.0, dtype=torch.float16)
    v = torch.arange(64, dtype=torch.float16).reshape(1, 1, 4, 16)
    assert torch.isinf(q @ k.transpose(-1, -2)).all()
    for core in precision.CORES.values():
        torch.testing.assert_close(core(q, k, v), v.float().mean(dim=2, keepdim=True).expand_as(v).half())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_form(attention: str) -> None:
    network = prepare(open_network("cut3r-small-linear").network, "fp16", attention)
    cores = {module.core for module in network.modules() if isinstance(module, Attention | CrossAttention)}
    assert cores == {precision.CORES.get(attention, F.scaled_dot_product_attention)}


@pytest.mark.parametrize("kernel", [2, 4])
def test_transposed_convolution_is_a_pixel_shuffle(kernel: int) -> None:
    torch.manual_seed(0)
    transposed = nn.ConvTranspose2d(5, 3, kernel, stride=kernel)
    x = torch.randn(2, 5, 6, 7)
    torch.testing.assert_close(ShuffledConv(transposed)(x), transposed(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["cut3r-small-dpt", "mast3r-small-dpt"])
def test_no_transposed_convolution_is_left(name: str) -> None:
    network = open_network(name).network
    count = sum(isinstance(module, nn.ConvTranspose2d) for module in network.modules())
    prepare(network, "fp32", "fused")
    assert count > 0
    assert not any(isinstance(module, nn.ConvTranspose2d) for module in network.modules())
    assert sum(isinstance(module, ShuffledConv) for module in network.modules()) == count


def test_a_transposed_convolution_of_another_kind_is_refused() -> None:
    with pytest.raises(NetworkError, match="no pixel shuffle"):
        prepare(nn.Sequential(nn.ConvTranspose2d(2, 2, 3, stride=2)), "fp32")


def test_far_points_fit_the_value_encoder() -> None:
    """Spann3R encodes pointmaps, and metres × exp go beyond float16."""
    network = prepare(open_network("spann3r-small").network, "fp16")
    value = network.encode_value(torch.full((1, 32, 48, 3), 1e5))
    assert torch.isfinite(value).all()


def test_what_cannot_be_prepared_is_refused() -> None:
    network = open_network("dust3r-small-linear").network
    for kind, attention in (("int8", "fused"), ("fp16", "flash")):
        with pytest.raises(NetworkError, match=r"fp32, fp16, bf16 and fused, softmax32, fp32"):
            prepare(network, kind, attention)
    prepare(network, "fp16")
    with pytest.raises(NetworkError, match="not in float32"):
        prepare(network, "bf16")
    assert PRECISIONS == ("fp32", "fp16", "bf16")
