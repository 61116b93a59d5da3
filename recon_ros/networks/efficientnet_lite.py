# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-lite0 as an encoder: features at /8 and /16 of the image.

Tan and Le, "EfficientNet", ICML 2019; its lite variant (Google, 2020) has ReLU6 and no squeeze and excitation. The
published weights (Apache-2.0; `training/initial.py` gets them) come from TensorFlow: its padding at a stride of 2, its
epsilon, and its normalisation of images are kept.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon_ros.errors import InputError
from recon_ros.networks.hiera import MULTIPLE, Encoded

EPS = 1e-3
"""Of all batch normalisations."""
STAGES = (
    # expansion, channels, blocks, stride, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
AT_8, AT_16 = 4, 10
"""The last blocks at /8 and at /16."""
_PUBLISHED = {
    "stem": "_conv_stem",
    "stem_norm": "_bn0",
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "project": "_project_conv",
    "project_norm": "_bn2",
}


class InvertedBottleneck(nn.Module):
    """Widen, look around, narrow: (B, dim, H, W) → (B, out, H/stride, W/stride)."""

    def __init__(self, dim: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = dim * expansion
        self.stride, self.kernel = stride, kernel
        self.is_residual = stride == 1 and dim == out
        self.expand = nn.Conv2d(dim, wide, 1, bias=False) if expansion > 1 else None
        self.expand_norm = nn.BatchNorm2d(wide, EPS) if expansion > 1 else None
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(wide, EPS)
        self.project = nn.Conv2d(wide, out, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(out, EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = F.relu6(self.expand_norm(self.expand(y)))
        y = self.depthwise(pad_same(y, self.kernel, self.stride))
        y = self.project_norm(self.project(F.relu6(self.depthwise_norm(y))))
        return x + y if self.is_residual else y


class EfficientNetLite(nn.Module):
    """EfficientNet-lite0 without its classifier: images (B, 3, H, W) RGB in [0, 1] → `Encoded`.

    f8 has 40 channels. f16 has 112, and with `context` 320 more, each of which is repeated from /32. H and W are
    multiples of 32; normalisation is inside, and normalisation layers use their stored statistics in training, too.
    Raises InputError for another size.
    """

    def __init__(self, context: bool = False) -> None:
        super().__init__()
        self.context = context
        self.stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(32, EPS)
        blocks, dim = [], 32
        for expansion, out, count, stride, kernel in STAGES:
            for i in range(count):
                blocks.append(InvertedBottleneck(dim, out, expansion, kernel, 1 if i else stride))
                dim = out
        self.blocks = nn.ModuleList(blocks if context else blocks[: AT_16 + 1])

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of `Encoded.f8` and `Encoded.f16`."""
        return 40, 112 + 320 * self.context

    def train(self, mode: bool = True) -> EfficientNetLite:
        """As `nn.Module.train`, but the layers' statistics stay what they are."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, image: Tensor) -> Encoded:
        height, width = image.shape[2:]
        if height % MULTIPLE or width % MULTIPLE:
            raise InputError("image_size", f"the image is {width}x{height}; its sides must be multiples of {MULTIPLE}")
        x = ((image * 255 - 127) / 128).to(self.stem.weight.dtype)
        x = F.relu6(self.stem_norm(self.stem(pad_same(x, 3, 2))))
        kept = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in (AT_8, AT_16):
                kept.append(x)
        f8, f16 = kept
        if self.context:
            f16 = torch.cat((f16, F.interpolate(x, scale_factor=2.0, mode="nearest")), dim=1)
        return Encoded(f8, f16)


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around (B, C, H, W), sides multiples of the stride, where TensorFlow's ``SAME`` puts them."""
    total = kernel - stride
    return F.pad(x, (total // 2, total - total // 2) * 2)


def published_name(key: str) -> str:
    """The published checkpoint's name of one of `EfficientNetLite`'s keys."""
    name = re.sub(r"^blocks\.", "_blocks.", key)
    return ".".join(_PUBLISHED.get(part, part) for part in name.split("."))
