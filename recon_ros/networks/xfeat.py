# SPDX-License-Identifier: Apache-2.0
"""Dense local descriptors of XFeat (Potje et al., CVPR 2024; published under Apache-2.0), without its keypoints.

Trained to be alike where two photographs see the same point, and small: half a million weights at full resolution of
few channels. Of the published network only what gives descriptors is here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 64


class Layer(nn.Module):
    """Convolution, normalisation by stored statistics, ReLU."""

    def __init__(self, dim: int, out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(dim, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out, affine=False), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class XFeat(nn.Module):
    """Images (B, 3, H, W) in [0, 1] → (B, 64, H/8, W/8) descriptors of length 1; names of weights as published."""

    def __init__(self) -> None:
        super().__init__()
        self.skip1 = nn.Sequential(nn.AvgPool2d(4, 4), nn.Conv2d(1, 24, 1))
        self.block1 = nn.Sequential(Layer(1, 4), Layer(4, 8, stride=2), Layer(8, 8), Layer(8, 24, stride=2))
        self.block2 = nn.Sequential(Layer(24, 24), Layer(24, 24))
        self.block3 = nn.Sequential(Layer(24, 64, stride=2), Layer(64, 64), Layer(64, 64, 1))
        self.block4 = nn.Sequential(Layer(64, 64, stride=2), Layer(64, 64), Layer(64, 64))
        self.block5 = nn.Sequential(Layer(64, 128, stride=2), Layer(128, 128), Layer(128, 128), Layer(128, 64, 1))
        self.block_fusion = nn.Sequential(Layer(64, 64), Layer(64, 64), nn.Conv2d(64, CHANNELS, 1))

    def train(self, mode: bool = True) -> XFeat:
        """As `nn.Module.train`, but the layers' statistics stay what they are."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        x = image.mean(dim=1, keepdim=True)
        mean = x.mean(dim=(2, 3), keepdim=True)
        x = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(dim=(2, 3), keepdim=True) + 1e-5)
        x = x.to(self.skip1[1].weight.dtype)  # sums over an image want float32
        x2 = self.block2(self.block1(x) + self.skip1(x))
        x3 = self.block3(x2)
        x4 = self.block4(x3)
        x5 = self.block5(x4)
        size = x3.shape[2], x3.shape[3]
        x4 = F.interpolate(x4, size, mode="bilinear", align_corners=False)
        x5 = F.interpolate(x5, size, mode="bilinear", align_corners=False)
        found = self.block_fusion(x3 + x4 + x5).float()
        return found / torch.sqrt((found * found).sum(dim=1, keepdim=True) + 1e-8)
