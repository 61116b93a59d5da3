# SPDX-License-Identifier: Apache-2.0
"""The compact network: a streaming pointmap network of our own, small enough for a CPU and a Jetson.

A frozen encoder that was trained on real photographs sees; what is learned here is how to match, how much to believe,
and what depth follows from an image and from a memory of explicit geometry: a few keyframes with their depth, their
features and their pose relative to the first camera, the anchor. Because memory is geometry, a correction of the map
can be applied to it (`reanchor`), exactly.

    Encoded = encode(image)                 what a training cache stores
    Seen    = see(image, encoded, K)        features to match, context for depth
    Located = locate(seen, memory, K)       matches of memory cells, and the pose solved from them
    Measured = measure(seen, memory, T, K)  depth from context and a plane sweep through memory
    memory  = remember(memory, seen, measured, T, K)

Depth is predicted for a canonical focal length and scaled by the camera's own (Metric3D, Yin et al. 2023), and every
cell is told its ray: K is an input, not a guess of the network.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon_ros.networks.compact_geometry import cell_centres, invert, rays_of
from recon_ros.networks.compact_layers import ChannelNorm, ResidualBlock, TokenBlock, doubled
from recon_ros.networks.compact_pose import STRIDE, SURE_SCALE, Located, Locator
from recon_ros.networks.compact_sweep import sweep
from recon_ros.networks.hiera import Encoded

CANONICAL_FOCAL = 0.8
"""Focal length per image width for which depth is predicted."""
DESCRIPTORS = {"lite_xfeat": 64, "efficientnet_lite0": 0, "hiera": 0, "scratch": 0}
"""The encoders there are, and how many of the last channels of their f8 are descriptors to match already."""
NEW_VIEW = (0.12, math.cos(math.radians(15.0)))
"""A keyframe: translation per typical depth above, or cosine of the rotation below, against the newest one."""


@dataclass(frozen=True)
class CompactConfig:
    """Quantities of a compact network.

    Attributes:
        encoder: one of `DESCRIPTORS`: ``lite_xfeat`` (EfficientNet-lite0 and XFeat), ``efficientnet_lite0`` alone,
            ``hiera`` (SAM2's tiny one), or ``scratch``.
        encoder_blocks: of hiera's third stage.
        width, height: of the images it is trained on, pixels, multiples of 32.
        slots: of memory: the image before, and keyframes.
        match_dim: channels to match.
        planes: of the sweep.
        near, far: depth of the first and last plane for the canonical focal length, metres.
        tokens, context, fine: channels at strides 16, 8, 4.
        token_blocks, blocks: transformer blocks at stride 16, residual blocks at stride 8.
        rays: the network knows the camera; False for the ablation.
        memory: the network remembers; False for the ablation.
    """

    encoder: str = "lite_xfeat"
    encoder_blocks: int = 6
    width: int = 256
    height: int = 192
    slots: int = 4
    match_dim: int = 32
    planes: int = 40
    near: float = 0.25
    far: float = 16.0
    tokens: int = 192
    context: int = 96
    fine: int = 48
    token_blocks: int = 2
    blocks: int = 4
    rays: bool = True
    memory: bool = True


class Seen(NamedTuple):
    """What an image shows.

    Attributes:
        match: (B, C, h, w) unit vectors.
        context: (B, context, h, w).
        fine: (B, fine, 2 h, 2 w).
        descriptor: (B, C16) unit vectors, of the place.
    """

    match: Tensor
    context: Tensor
    fine: Tensor
    descriptor: Tensor


class Decoded(NamedTuple):
    """(B, D, h, w) logits of the planes; (B, 2, 2 h, 2 w) what is added to the logarithm of depth, and of its error."""

    logits: Tensor
    fine: Tensor


class Measured(NamedTuple):
    """Depth at stride 4, and on the way to it.

    Attributes:
        log_depth: (B, 1, H/4, W/4), of metres.
        log_scale: (B, 1, H/4, W/4), logarithm of the expected error of `log_depth`.
        logits: (B, D, H/8, W/8) of the planes.
        log_planes: (B, D) logarithm of their depths.
    """

    log_depth: Tensor
    log_scale: Tensor
    logits: Tensor
    log_planes: Tensor


class CompactMemory(NamedTuple):
    """What is remembered: slot 0 is the image before, the others are keyframes, the newest first.

    Attributes:
        match: (B, S, C, h, w).
        depth, confidence: (B, S, h, w), metres, and in [0, 1].
        T_anchor_slot: (B, S, 4, 4).
        K: (B, S, 4).
        valid: (B, S) 1 where something is held.
        T_last: (B, 4, 4) T_anchor_camera of the image before.
    """

    match: Tensor
    depth: Tensor
    confidence: Tensor
    T_anchor_slot: Tensor
    K: Tensor
    valid: Tensor
    T_last: Tensor

    def detached(self) -> CompactMemory:
        """The same without its history, for truncated backpropagation."""
        return CompactMemory(*(tensor.detach() for tensor in self))


class Compact(nn.Module):
    """See the module."""

    def __init__(self, config: CompactConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CompactConfig()
        self.encoder, (c8, c16) = build_encoder(config)
        self.stem1 = nn.Conv2d(3, config.fine // 2, 3, stride=2, padding=1)
        self.stem2 = nn.Conv2d(config.fine // 2, config.fine, 3, stride=2, padding=1)
        given = DESCRIPTORS[config.encoder]
        self.norm8, self.norm16 = ChannelNorm(c8 - given), ChannelNorm(c16)
        self.to_tokens = nn.Conv2d(c16, config.tokens, 1)
        self.of_ray = nn.Sequential(nn.Linear(5, 64), nn.GELU(), nn.Linear(64, config.tokens))
        self.tokens = nn.ModuleList(TokenBlock(config.tokens, 6) for _ in range(config.token_blocks))
        self.to_context = nn.Conv2d(config.tokens, config.context, 1)
        self.skip8 = nn.Conv2d(c8, config.context, 1)
        self.match8, self.match16 = nn.Conv2d(c8 - given, 96, 1), nn.Conv2d(c16, 96, 1)
        self.match_out = nn.Sequential(
            nn.GELU(), nn.Conv2d(96, 96, 3, padding=1), nn.GELU(), nn.Conv2d(96, config.match_dim, 1)
        )
        self.match_given = nn.Conv2d(given, config.match_dim, 1, bias=False) if given else None
        if self.match_given is not None:
            # To begin with, descriptors are matched as they are, in fewer dimensions.
            nn.init.orthogonal_(self.match_given.weight)
            last = self.match_out[-1]
            nn.init.normal_(last.weight, std=1e-3)
            nn.init.zeros_(last.bias)
        self.locator = Locator()
        self.swept = nn.Conv2d(3 * config.planes, config.context, 1)
        self.join = nn.Conv2d(2 * config.context, config.context, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(config.context, dilation) for dilation in _dilations(config.blocks))
        self.to_planes = nn.Conv2d(config.context, config.planes, 1)
        # What memory says of a plane speaks for that plane, in any world; only how much of it is to be learned.
        self.direct = nn.Parameter(torch.tensor([6.0, 3.0, 0.0]))
        self.to_fine = nn.Conv2d(config.context, config.fine, 1)
        self.fine1 = nn.Conv2d(2 * config.fine, config.fine, 3, padding=1)
        self.fine2 = ResidualBlock(config.fine)
        self.out = nn.Conv2d(config.fine, 2, 1)
        nn.init.zeros_(self.out.weight)
        # To begin with, nothing is added to the planes' depth, and errors are expected to be of 20 %.
        self.out.bias = nn.Parameter(torch.tensor([0.0, math.log(0.2)]))

    # -- one image -------------------------------------------------------------------------------------------

    def encode(self, image: Tensor) -> Encoded:
        """The frozen part, for (B, 3, H, W) images in [0, 1]."""
        return Encoded(*self.encoder(image))

    def see(self, image: Tensor, encoded: Encoded, K: Tensor) -> Seen:
        """What is learned of an image alone: (B, 3, H, W) in [0, 1], and its camera (B, 4)."""
        dtype = self.stem2.weight.dtype
        f8, f16 = encoded.f8.to(dtype), self.norm16(encoded.f16.to(dtype))
        given = DESCRIPTORS[self.config.encoder]
        f8, descriptors = f8.split([f8.shape[1] - given, given], dim=1)
        f8 = self.norm8(f8)
        fine = self.stem2(F.gelu(self.stem1(image - 0.5)).to(dtype))
        x = self.to_tokens(f16)
        batch, channels, height, width = x.shape
        x = x.flatten(2).transpose(1, 2).to(self.of_ray[0].weight.dtype)
        if self.config.rays:
            rays = rays_of(cell_centres(height, width, 2 * STRIDE, image), K)[..., :2]
            facts = torch.cat([rays, rays * rays, rays[..., :1] * rays[..., 1:]], dim=-1)
            x = x + self.of_ray(facts.to(x.dtype))
        for block in self.tokens:
            x = block(x)
        x = x.transpose(1, 2).reshape(batch, channels, height, width).to(dtype)
        context = self.skip8(torch.cat([f8, descriptors], dim=1) if given else f8) + doubled(self.to_context(x))
        match = self.match_out(self.match8(f8) + doubled(self.match16(f16)))
        if self.match_given is not None:
            match = match + self.match_given(descriptors)
        descriptor = f16.float().mean(dim=(2, 3))
        return Seen(unit(match.float()), context, fine, unit(descriptor))

    # -- with memory -----------------------------------------------------------------------------------------

    def empty(self, batch: int = 1, width: int | None = None, height: int | None = None) -> CompactMemory:
        """A memory of nothing, for images of this size, or of the one trained for."""
        c, p = self.config, self.out.bias.detach().float()
        width, height = width or c.width, height or c.height
        h, w = height // STRIDE, width // STRIDE
        eye = torch.eye(4, dtype=p.dtype, device=p.device)
        return CompactMemory(
            match=p.new_zeros(batch, c.slots, c.match_dim, h, w),
            depth=p.new_ones(batch, c.slots, h, w),
            confidence=p.new_zeros(batch, c.slots, h, w),
            T_anchor_slot=eye.expand(batch, c.slots, 4, 4).clone(),
            K=p.new_tensor([width, width, width / 2, height / 2]).expand(batch, c.slots, 4).clone(),
            valid=p.new_zeros(batch, c.slots),
            T_last=eye.expand(batch, 4, 4).clone(),
        )

    def locate(self, seen: Seen, memory: CompactMemory, K: Tensor) -> Located:
        """Where the camera of an image is, in the frame of memory's anchor."""
        batch, slots, h, w = memory.depth.shape
        centres = cell_centres(h, w, STRIDE, memory.depth)
        rays = rays_of(centres, memory.K.reshape(batch * slots, 4)).reshape(batch, slots, h * w, 3)
        rays = rays * memory.depth.reshape(batch, slots, h * w, 1)
        rays = rays @ memory.T_anchor_slot[..., :3, :3].transpose(-1, -2)
        points = rays + memory.T_anchor_slot[..., None, :3, 3]
        confidence = memory.confidence.reshape(batch, slots, h * w)
        return self.locator(seen.match, memory.match, points, rays, confidence, memory.valid, K, memory.T_last)

    def measure(self, seen: Seen, memory: CompactMemory, T_anchor_camera: Tensor, K: Tensor) -> Measured:
        """Depth of an image whose camera is at T_anchor_camera (B, 4, 4)."""
        return self.finish(self.decode(self.search(seen, memory, T_anchor_camera, K), seen), K)

    def search(self, seen: Seen, memory: CompactMemory, T_anchor_camera: Tensor, K: Tensor) -> Tensor:
        """(B, 3 D, h, w) what memory says of every plane; see `compact_sweep.sweep`."""
        if not self.config.memory:
            return seen.match.new_zeros(len(K), 3 * self.config.planes, *seen.match.shape[2:])
        planes = torch.exp(self.planes(K, seen.match.shape[3] * STRIDE))
        slots = (memory.match, memory.depth, memory.confidence, memory.valid, memory.T_anchor_slot, memory.K)
        return sweep(seen.match, *slots, T_anchor_camera, K, planes, STRIDE)

    def decode(self, found: Tensor, seen: Seen) -> Decoded:
        """What an image's context and memory's answers (B, 3 D, h, w) say together."""
        x = self.join(torch.cat([self.swept(found.to(seen.context.dtype)), seen.context], dim=1))
        for block in self.blocks:
            x = block(x)
        y = self.fine2(F.gelu(self.fine1(torch.cat([doubled(self.to_fine(x)), seen.fine], dim=1))))
        answers = found.reshape(len(found), 3, self.config.planes, *found.shape[2:])
        directly = (answers * self.direct.float()[:, None, None, None]).sum(dim=1)
        return Decoded(self.to_planes(x).float() + directly, self.out(y))

    def finish(self, decoded: Decoded, K: Tensor) -> Measured:
        """Depth and its expected error, in float32."""
        logits, (delta, log_scale) = decoded.logits.float(), decoded.fine.float().split(1, dim=1)
        log_planes = self.planes(K, logits.shape[3] * STRIDE)
        log_depth = (torch.softmax(logits, dim=1) * log_planes[:, :, None, None]).sum(dim=1, keepdim=True)
        return Measured(doubled(log_depth) + delta, log_scale.clamp(-5.0, 1.5), logits, log_planes)

    def planes(self, K: Tensor, width: int) -> Tensor:
        """(B, D) logarithms of the planes' depths, metres, for cameras (B, 4) of images so wide."""
        c = self.config
        log_planes = torch.linspace(math.log(c.near), math.log(c.far), c.planes, device=K.device)[None]
        if not c.rays:
            return log_planes + torch.zeros_like(K[:, :1])
        return log_planes + torch.log(K[:, :1] / (CANONICAL_FOCAL * width))

    def remember(
        self, memory: CompactMemory, seen: Seen, measured: Measured, T_anchor_camera: Tensor, K: Tensor
    ) -> CompactMemory:
        """The memory after an image: it is the last one now, and a keyframe if it shows enough that is new."""
        log_depth = F.avg_pool2d(measured.log_depth, 2)[:, 0]
        depth, sure = torch.exp(log_depth), confidence_of(F.avg_pool2d(measured.log_scale, 2)[:, 0])
        new = self._is_new(memory, log_depth, T_anchor_camera)
        entry = (seen.match, depth, sure, T_anchor_camera, K, torch.ones_like(new))
        kept = []
        for held, item in zip(memory[:6], entry, strict=True):
            as_keyframe = torch.cat([item[:, None], item[:, None], held[:, 1:-1]], dim=1)
            as_last = torch.cat([item[:, None], held[:, 1:]], dim=1)
            chosen = new.reshape(-1, *[1] * (held.dim() - 1))
            kept.append(as_keyframe * chosen + as_last * (1 - chosen))
        return CompactMemory._make([*kept, T_anchor_camera])

    def _is_new(self, memory: CompactMemory, log_depth: Tensor, T_anchor_camera: Tensor) -> Tensor:
        """(B,) 1 where an image is to be a keyframe."""
        T = invert(memory.T_anchor_slot[:, 1]) @ T_anchor_camera
        cosine = (T[:, 0, 0] + T[:, 1, 1] + T[:, 2, 2] - 1) / 2
        typical = torch.exp(log_depth.mean(dim=(1, 2)))
        moved = torch.linalg.vector_norm(T[:, :3, 3], dim=-1) / typical
        old = (memory.valid[:, 1] > 0) & (moved <= NEW_VIEW[0]) & (cosine >= NEW_VIEW[1])
        return 1 - old.to(log_depth.dtype)

    def exact_modules(self) -> list[nn.Module]:
        """What computes in float32 in every precision: colours of 8 bits, matches, and the last layers."""
        first = [self.encoder.patch_embed] if isinstance(getattr(self.encoder, "patch_embed", None), nn.Module) else []
        return [*first, self.stem1, self.locator, self.to_planes, self.out]

    # -- results ---------------------------------------------------------------------------------------------

    def full_depth(self, measured: Measured) -> tuple[Tensor, Tensor]:
        """(B, H, W) depth in metres and (B, H, W) confidence in [0, 1]; interpolated in the logarithm."""
        log_depth = F.interpolate(measured.log_depth, scale_factor=4.0, mode="bilinear", align_corners=False)
        sure = F.interpolate(confidence_of(measured.log_scale), scale_factor=4.0, mode="bilinear", align_corners=False)
        return torch.exp(log_depth)[:, 0], sure[:, 0]

    def step(self, image: Tensor, K: Tensor, memory: CompactMemory) -> tuple[Located, Measured, Seen, CompactMemory]:
        """One image through everything."""
        seen = self.see(image, self.encode(image), K)
        located = self.locate(seen, memory, K)
        measured = self.measure(seen, memory, located.T_anchor_camera, K)
        after = self.remember(memory, seen, measured, located.T_anchor_camera, K)
        return located, measured, seen, after


def reanchor(memory: CompactMemory, S: Tensor) -> CompactMemory:
    """Memory after a correction of its world: (4, 4) Sim(3) S maps points of the old anchor frame to the new one."""
    scale = torch.linalg.vector_norm(S[:3, 0])
    R = S[:3, :3] / scale

    def moved(T: Tensor) -> Tensor:
        out = T.clone()
        out[..., :3, :3] = R @ T[..., :3, :3]
        out[..., :3, 3] = scale * T[..., :3, 3] @ R.T + S[:3, 3]
        return out

    return memory._replace(
        depth=memory.depth * scale, T_anchor_slot=moved(memory.T_anchor_slot), T_last=moved(memory.T_last)
    )


def confidence_of(log_scale: Tensor) -> Tensor:
    """In [0, 1], from the logarithm of the expected error of the logarithm of depth."""
    return torch.sigmoid(math.log(SURE_SCALE) - log_scale)


def unit(x: Tensor) -> Tensor:
    """(B, C, …) of length 1 along C."""
    return x / torch.sqrt((x * x).sum(dim=1, keepdim=True) + 1e-6)


def build_encoder(config: CompactConfig) -> tuple[nn.Module, tuple[int, int]]:
    """The frozen encoder of a configuration, and its channels at strides 8 and 16."""
    if config.encoder == "hiera":
        from recon_ros.networks.hiera import Hiera, HieraConfig

        trunk = HieraConfig(blocks=config.encoder_blocks)
        return Hiera(trunk), trunk.channels
    if config.encoder == "lite_xfeat":
        pair = LiteXFeat()
        return pair, pair.channels
    if config.encoder == "efficientnet_lite0":
        from recon_ros.networks.efficientnet_lite import EfficientNetLite

        lite = EfficientNetLite(context=True)
        return lite, lite.channels
    if config.encoder == "scratch":
        return ScratchEncoder(), (96, 192)
    raise ValueError(f"no encoder is called {config.encoder!r}; there are {', '.join(DESCRIPTORS)}")


class LiteXFeat(nn.Module):
    """EfficientNet-lite0, which was taught what things are, and XFeat, which was taught where they are again.

    f8 is the one's 40 channels and the other's 64 descriptors, f16 the first's 432.
    """

    def __init__(self) -> None:
        super().__init__()
        from recon_ros.networks.efficientnet_lite import EfficientNetLite
        from recon_ros.networks.xfeat import XFeat

        self.lite = EfficientNetLite(context=True)
        self.xfeat = XFeat()

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of `Encoded.f8` and `Encoded.f16`."""
        return 40 + 64, 432

    def forward(self, image: Tensor) -> Encoded:
        seen = self.lite(image)
        return Encoded(torch.cat([seen.f8, self.xfeat(image).to(seen.f8.dtype)], dim=1), seen.f16)


class ScratchEncoder(nn.Module):
    """A small convolutional encoder that knows nothing, to be trained with the rest."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 32, 64, 96, 192)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(sizes))
        self.blocks = nn.ModuleList(ResidualBlock(size) for size in sizes[1:])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x, seen = (image - 0.5).to(self.down[0].weight.dtype), []
        for down, block in zip(self.down, self.blocks, strict=True):
            x = F.gelu(block(down(x)))
            seen.append(x)
        return seen[2], seen[3]


def _dilations(count: int) -> list[int]:
    return [(1, 2, 4, 1)[i % 4] for i in range(count)]
