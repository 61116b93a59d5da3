# SPDX-License-Identifier: Apache-2.0
"""Networks in half precision, with islands of float32 where half precision is not enough.

The trunk, which holds nearly all weights, becomes float16 or bfloat16. In float32 remain what sums many numbers,
takes exponentials or decides: LayerNorms, the softmax of attention, the patch embeddings (8 bits of colour do not
survive bfloat16, far points do not fit float16), all heads with their exponentials, Spann3R's memory and its keys,
and CUT3R's update rules. Every change of dtype is explicit, as a strongly typed engine needs it; nothing is left to
autocast.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon_ros.errors import NetworkError
from recon_ros.networks.blocks import Attention, AttentionCore, CrossAttention
from recon_ros.networks.compact import Compact
from recon_ros.networks.compact_layers import TokenBlock
from recon_ros.networks.cut3r_heads import Cut3rHead
from recon_ros.networks.heads import DPTPointHead, LinearHead
from recon_ros.networks.hiera import WindowAttention
from recon_ros.networks.mast3r import DescriptorHead
from recon_ros.networks.patches import PatchEmbed
from recon_ros.networks.spann3r import Spann3r

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
AttentionForm = Literal["fused", "softmax32", "fp32"]
ATTENTIONS: tuple[AttentionForm, ...] = ("fused", "softmax32", "fp32")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HEADS = (LinearHead, DPTPointHead, DescriptorHead, Cut3rHead)
"""All that turns decoder features into outputs."""

Network = TypeVar("Network", bound=nn.Module)


def prepare(network: Network, precision: str, attention: str = "softmax32") -> Network:
    """Give a float32 network its precision, in place, and return it.

    What it is given afterwards may be in float32 (images, memory) as before; its heads answer in float32.

    Args:
        network: Dust3r, Mast3r, Cut3r or Spann3r, in float32, not prepared before.
        precision: of the trunk, one of `PRECISIONS`.
        attention: ``fused`` leaves the attention to PyTorch in the trunk's precision; ``softmax32`` scales the
            queries, multiplies, and takes the softmax of the scores in float32; ``fp32`` computes both products
            in float32 as well.

    Raises:
        NetworkError: precision or attention is not one of these, or the network was prepared before.
    """
    if precision not in DTYPES or attention not in ATTENTIONS:
        raise NetworkError(
            f"no precision '{precision}' with attention '{attention}'; there are {', '.join(PRECISIONS)} and "
            f"{', '.join(ATTENTIONS)}"
        )
    if any(parameter.dtype != torch.float32 for parameter in network.parameters()):
        raise NetworkError("the network is not in float32; prepare it once, from its float32 weights")
    _exchange_transposed_convolutions(network)
    _choose_attention(network, attention)
    dtype = DTYPES[precision]
    if dtype != torch.float32:
        _make_islands(network, dtype)
        _halve(network, dtype)
    return network


# Attention


def softmax32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with a float32 softmax; the queries are scaled before the product, which keeps float16 in range."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.to(torch.float32).softmax(dim=-1).to(v.dtype) @ v


def attention_fp32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax32` on operands in float32."""
    return softmax32(q.to(torch.float32), k.to(torch.float32), v.to(torch.float32)).to(v.dtype)


CORES: dict[str, AttentionCore] = {"softmax32": softmax32, "fp32": attention_fp32}


def _choose_attention(network: nn.Module, attention: str) -> None:
    for module in network.modules():
        if attention in CORES and isinstance(module, Attention | CrossAttention | TokenBlock | WindowAttention):
            module.core = CORES[attention]


# Islands


def _islands(network: nn.Module, dtype: torch.dtype) -> list[nn.Module]:
    """The modules whose weights stay in float32."""
    islands = [module for module in network.modules() if isinstance(module, (nn.LayerNorm, PatchEmbed, *HEADS))]
    if isinstance(network, Spann3r):
        # Two cosines and a threshold on attention decide what the memory keeps.
        islands += [network.attn_head_1, network.attn_head_2]
    if isinstance(network, Compact):
        islands += network.exact_modules()
        if dtype == torch.bfloat16:
            # ONNX has convolutions in bfloat16 from opset 22 on, which TensorRT 10.3 does not read.
            islands += [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return islands


def _make_islands(network: nn.Module, dtype: torch.dtype) -> None:
    for island in _islands(network, dtype):
        if isinstance(island, nn.LayerNorm):
            continue  # `blocks.LayerNorm` does so itself
        island.register_forward_pre_hook(_widen, with_kwargs=True)
        if isinstance(island, PatchEmbed):
            island.register_forward_hook(partial(_narrow, dtype))


def _widen(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _cast(args, torch.float32), _cast(kwargs, torch.float32)


def _narrow(dtype: torch.dtype, module: nn.Module, args: Any, output: Any) -> Any:
    return _cast(output, dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with the floating tensors in it cast, through lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _halve(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast all weights but those of the islands, one by one: only one is held twice at a time."""
    kept = {id(parameter) for island in _islands(network, dtype) for parameter in island.parameters()}
    for parameter in network.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)


# Transposed convolutions


class ShuffledConv(nn.Module):
    """A transposed convolution whose kernel is its stride, as a 1×1 convolution and a pixel shuffle.

    The same numbers in the same sums. TensorRT-RTX cannot build the transposed one in bfloat16.
    """

    def __init__(self, transposed: nn.ConvTranspose2d) -> None:
        super().__init__()
        assert transposed.bias is not None
        self.stride = transposed.stride[0]
        # (in, out, k, k) → (out·k·k, in, 1, 1): the k·k outputs of a pixel become channels.
        weight = transposed.weight.detach().permute(1, 2, 3, 0).flatten(0, 2)[..., None, None].contiguous()
        self.weight = nn.Parameter(weight, requires_grad=False)
        bias = transposed.bias.detach().repeat_interleave(self.stride**2)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, k·H, k·W)."""
        return F.pixel_shuffle(F.conv2d(x, self.weight, self.bias), self.stride)


def _exchange_transposed_convolutions(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ConvTranspose2d):
                setattr(parent, name, ShuffledConv(_exchangeable(child, name)))


def _exchangeable(layer: nn.ConvTranspose2d, name: str) -> nn.ConvTranspose2d:
    height, width = layer.kernel_size
    plain = layer.padding == layer.output_padding == (0, 0) and layer.dilation == (1, 1) and layer.groups == 1
    if height != width or layer.kernel_size != layer.stride or not plain or layer.bias is None:
        raise NetworkError(f"the transposed convolution {name} is no pixel shuffle: {layer}")
    return layer
