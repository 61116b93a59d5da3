# SPDX-License-Identifier: Apache-2.0
"""Spann3R: DUSt3R's pointmaps in one common frame, through a memory of what was seen before.

Wang and Agapito, "3D Reconstruction with Spatial Memory", 3DV 2025. With every new image the *previous* one is
finished: its feature asks the memory with the key made when it was new, the two decoders run on what came back and
on the new image, the first head places the previous image in the world for good and the second one, in advance,
the new one. Then the previous image is written to the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from recon_ros.errors import NetworkError
from recon_ros.networks import spann3r_memory
from recon_ros.networks.blocks import EncoderBlock, layer_norm
from recon_ros.networks.dust3r import Dust3r, Dust3rConfig
from recon_ros.networks.heads import Pointmap
from recon_ros.networks.pair import Encoding
from recon_ros.networks.patches import PatchEmbed
from recon_ros.networks.spann3r_memory import MemoryRules, SpatialMemory, select

READ_NORM_EPS = 1e-5
"""Epsilon of the LayerNorms in front of the memory's attention; 1e-6 everywhere else."""


MEMORY_PREFIX = "memory."


@dataclass(frozen=True)
class Spann3rConfig:
    """Sizes of the network; the defaults are the published ones.

    Attributes:
        dust3r: the pair network inside.
        value_depth, value_heads: blocks of the value encoder, as wide as the image encoder.
        rules: of the memory.
    """

    dust3r: Dust3rConfig = field(default_factory=Dust3rConfig)
    value_depth: int = 6
    value_heads: int = 16
    rules: MemoryRules = field(default_factory=MemoryRules)

    @classmethod
    def vitlarge_224_dpt(cls) -> Spann3rConfig:
        """The published Spann3R."""
        return cls()


class Spann3rState(NamedTuple):
    """What one image leaves for the next: all sizes fixed.

    Attributes:
        memory: the spatial memory, P tokens a frame.
        feature: (B, P, C) encoder feature of the latest image.
        query: (B, P, C) key with which it will ask the memory.
        frames: () int64, images seen.
    """

    memory: SpatialMemory
    feature: Tensor
    query: Tensor
    frames: Tensor

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors by name, those of the memory as `memory.<name>`: for copying, saving and restoring."""
        memory = {MEMORY_PREFIX + name: tensor for name, tensor in self.memory.state_dict().items()}
        return {**memory, "feature": self.feature, "query": self.query, "frames": self.frames}

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor]) -> Spann3rState:
        """Restore what `state_dict` gave.

        Raises:
            NetworkError: a tensor is missing or unknown, or its size does not fit the others.
        """
        prefix = len(MEMORY_PREFIX)
        memory = SpatialMemory.from_state_dict(
            {k[prefix:]: t for k, t in tensors.items() if k.startswith(MEMORY_PREFIX)}
        )
        rest = {k: t for k, t in tensors.items() if not k.startswith(MEMORY_PREFIX)}
        if set(rest) != set(cls._fields[1:]):
            raise NetworkError(f"a Spann3R state has {sorted(cls._fields[1:])} beside its memory, not {sorted(rest)}")
        state = cls(memory, **rest)
        (batch, slots, dim), tokens = memory.keys.shape, state.feature.shape[1]
        if state.feature.shape != (batch, tokens, dim) or state.query.shape != state.feature.shape or tokens > slots:
            found = tuple(state.feature.shape), tuple(state.query.shape)
            raise NetworkError(f"feature and query {found} do not fit a Spann3R memory of {batch}x{slots}x{dim}")
        return state


class Spann3rOutput(NamedTuple):
    """What one image gave; points are in the frame of the first camera.

    Attributes:
        previous: pointmap of the image before, final; of no meaning at the first image.
        current: pointmap of this image, in advance.
        feature: (B, P, C) the previous image's feature after reading the memory.
        similarity: () of the previous image to the working memory; −1 where that is empty. Above the rules'
            threshold the image was not written.
    """

    previous: Pointmap
    current: Pointmap
    feature: Tensor
    similarity: Tensor


class Glance(NamedTuple):
    """What `Spann3r.look` finds out.

    Attributes:
        key: (B, P, C) under which the previous image is remembered.
        query: (B, P, C) with which the current one will ask.
        previous, current, feature: see `Spann3rOutput`.
        memory: where the reading was counted.
    """

    key: Tensor
    query: Tensor
    previous: Pointmap
    current: Pointmap
    feature: Tensor
    memory: SpatialMemory


class Spann3r(nn.Module):
    """The network; its state dict has the official names."""

    def __init__(self, config: Spann3rConfig) -> None:
        super().__init__()
        self.config = config
        dim, decoder_dim = config.dust3r.enc_dim, config.dust3r.dec_dim
        self.dust3r = Dust3r(config.dust3r)
        self.pos_patch_embed = PatchEmbed(dim, config.dust3r.patch)
        self.value_encoder = nn.ModuleList(EncoderBlock(dim, config.value_heads) for _ in range(config.value_depth))
        self.value_norm = layer_norm(dim)
        self.value_out = nn.Linear(dim, dim)
        self.norm_q = layer_norm(dim, READ_NORM_EPS)
        self.norm_k = layer_norm(dim, READ_NORM_EPS)
        self.norm_v = layer_norm(dim, READ_NORM_EPS)
        self.attn_head_1 = _key_head(dim + decoder_dim, dim)
        self.attn_head_2 = _key_head(dim + decoder_dim, dim)

    def initial_state(self, height: int, width: int, batch: int = 1) -> Spann3rState:
        """The state before the first of a sequence of (batch, 3, height, width) images."""
        weight = self.value_out.weight
        tokens = (height // self.config.dust3r.patch) * (width // self.config.dust3r.patch)
        memory = spann3r_memory.empty(
            self.config.rules, tokens, weight.shape[0], batch, dtype=weight.dtype, device=weight.device
        )
        nothing = weight.new_zeros(batch, tokens, weight.shape[0])
        return Spann3rState(memory, nothing, nothing.clone(), torch.zeros((), dtype=torch.int64, device=weight.device))

    def forward(self, state: Spann3rState, images: Tensor) -> tuple[Spann3rState, Spann3rOutput]:
        """One step: the state, and the (B, 3, H, W) images in [−1, 1] that come next.

        Raises:
            InputError: a side is not a multiple of the patch size.
        """
        return self.step(state, self.dust3r.encode(images))

    def step(self, state: Spann3rState, image: Encoding) -> tuple[Spann3rState, Spann3rOutput]:
        """`forward` from encoded images."""
        glance = self.look(state, image)
        memory, similarity = self.keep(glance.memory, glance.key, glance.previous.points, state.frames)
        output = Spann3rOutput(glance.previous, glance.current, glance.feature, similarity)
        return Spann3rState(memory, image.features, glance.query, state.frames + 1), output

    def look(self, state: Spann3rState, image: Encoding) -> Glance:
        """Ask the memory for the image before, and decode it with the new one."""
        is_first, has_memory = state.frames == 0, state.frames > 1
        # The first image is paired with itself: its preview then lies in its own camera, which is the world.
        previous = torch.where(is_first, image.features, state.feature)
        recalled, memory = spann3r_memory.read(
            state.memory, state.query, self.norm_q, self.norm_k, self.norm_v, self.config.rules
        )
        read = torch.where(has_memory, recalled.to(previous.dtype), previous)
        memory = select(has_memory, memory, state.memory)

        decoded1, decoded2 = self.dust3r.decode(read, image.positions, image.features, image.positions)
        # The key tells what was seen, not what was remembered: it is made of the feature as it was encoded.
        return Glance(
            key=self.attn_head_1(torch.cat((previous, decoded1[-1]), dim=-1)),
            query=self.attn_head_2(torch.cat((image.features, decoded2[-1]), dim=-1)),
            previous=self._head(1, decoded1, image.rows, image.columns),
            current=self._head(2, decoded2, image.rows, image.columns),
            feature=read,
            memory=memory,
        )

    def keep(self, memory: SpatialMemory, key: Tensor, points: Tensor, frames: Tensor) -> tuple[SpatialMemory, Tensor]:
        """The memory with the image before, and that image's () similarity to it.

        Args:
            memory: as `look` left it.
            key, points: of the image before: (B, P, C), and its final (B, H, W, 3) pointmap.
            frames: () int64, images seen before the current one; with none there is nothing to be written.
        """
        value = self.encode_value(points) + key
        written, similarity = spann3r_memory.write(memory, key, value, frames - 1, self.config.rules)
        return select(frames == 0, memory, written), similarity

    def encode_value(self, points: Tensor) -> Tensor:
        """(B, H, W, 3) points → (B, P, C), what the memory will tell of them, without the key."""
        # As wide as the embedding is: far points are beyond float16.
        x, _ = self.pos_patch_embed(points.permute(0, 3, 1, 2).to(self.pos_patch_embed.proj.weight.dtype))
        for block in self.value_encoder:
            x = block(x)
        return self.value_out(self.value_norm(x))

    def _head(self, view: Literal[1, 2], features: Sequence[Tensor], rows: int, columns: int) -> Pointmap:
        """The pointmap of view 1 or 2 of an image of rows × columns patches."""
        points, confidence = self.dust3r.head(view, features, rows, columns)
        if self.config.rules.faithful and rows > columns:
            # The official code lays upright pointmaps on their side, and its values no longer meet their keys.
            return Pointmap(points.transpose(1, 2), confidence.transpose(1, 2))
        return Pointmap(points, confidence)


def _key_head(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, in_dim), nn.GELU(), nn.Linear(in_dim, out_dim))
