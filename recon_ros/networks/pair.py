# SPDX-License-Identifier: Apache-2.0
"""What DUSt3R and MASt3R share: one encoder, two decoders that read each other, a head per view.

Wang et al., "DUSt3R: Geometric 3D vision made easy", CVPR 2024, section 3.1. Attribute names are those of
published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from recon_ros.networks.blocks import DecoderBlock, EncoderBlock, layer_norm
from recon_ros.networks.dpt import DPTHead
from recon_ros.networks.patches import PatchEmbed

Map = TypeVar("Map")
"""What a head returns: a pointmap, with or without descriptors."""


@dataclass(frozen=True)
class PairConfig:
    """Sizes of encoder, decoders and DPT heads; the defaults are those of the published ViT-L models.

    Attributes:
        enc_dim, enc_depth, enc_heads: width, blocks and heads of the encoder.
        dec_dim, dec_depth, dec_heads: the same of each decoder.
        mlp_ratio: width of the MLPs over that of the tokens.
        patch: side of a patch, pixels.
        dpt_feature_dim, dpt_last_dim, dpt_layer_dims: widths inside a DPT head.
    """

    enc_dim: int = 1024
    enc_depth: int = 24
    enc_heads: int = 16
    dec_dim: int = 768
    dec_depth: int = 12
    dec_heads: int = 12
    mlp_ratio: float = 4.0
    patch: int = 16
    dpt_feature_dim: int = 256
    dpt_last_dim: int = 128
    dpt_layer_dims: tuple[int, int, int, int] = (96, 192, 384, 768)

    @property
    def dpt_hooks(self) -> tuple[int, int, int, int]:
        """Which features a DPT head reads: the encoder's, and those at half, three quarters and the end."""
        return 0, self.dec_depth // 2, self.dec_depth * 3 // 4, self.dec_depth

    def dpt(self, channels: int) -> DPTHead:
        """A DPT head of these sizes."""
        return DPTHead(
            (self.enc_dim, self.dec_dim, self.dec_dim, self.dec_dim),
            channels,
            self.dpt_layer_dims,
            self.dpt_feature_dim,
            self.dpt_last_dim,
        )


class Encoding(NamedTuple):
    """An encoded image: all that a later pair needs of it.

    `features` (B, N, enc_dim), `positions` (B, N, 2) int64, `rows` and `columns` of the patch grid.
    """

    features: Tensor
    positions: Tensor
    rows: int
    columns: int


class PairNetwork(nn.Module, Generic[Map]):
    """Two images to two maps, both in the camera of the first.

    Args:
        config: the sizes.
        head1: head of the first view: features as `decode` returns them, rows, columns → map.
        head2: head of the second view.
    """

    def __init__(self, config: PairConfig, head1: nn.Module, head2: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.enc_dim, config.patch)
        # Left over from pre-training by masking; part of every checkpoint, read by nothing.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dec_dim))
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(config.enc_dim, config.enc_heads, config.mlp_ratio) for _ in range(config.enc_depth)
        )
        self.enc_norm = layer_norm(config.enc_dim)
        self.decoder_embed = nn.Linear(config.enc_dim, config.dec_dim)
        self.dec_blocks = self._decoder()
        self.dec_norm = layer_norm(config.dec_dim)
        self.dec_blocks2 = self._decoder()
        self.downstream_head1 = head1
        self.downstream_head2 = head2

    def _decoder(self) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(
            DecoderBlock(config.dec_dim, config.dec_heads, config.mlp_ratio) for _ in range(config.dec_depth)
        )

    def encode(self, images: Tensor) -> Encoding:
        """(B, 3, H, W) float32 in [−1, 1], RGB → the encoding; InputError unless 16 divides H and W."""
        tokens, positions = self.patch_embed(images)
        rows, columns = (side // self.config.patch for side in images.shape[-2:])
        return Encoding(self.encode_tokens(tokens, positions), positions, rows, columns)

    def encode_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(B, N, enc_dim) patch tokens and (B, N, 2) int64 → (B, N, enc_dim) normalised features."""
        for block in self.enc_blocks:
            tokens = block(tokens, positions)
        return self.enc_norm(tokens)

    def decode(
        self, features1: Tensor, positions1: Tensor, features2: Tensor, positions2: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run both decoders over (B, N, enc_dim) features with (B, N, 2) int64 positions.

        Returns per view 1 + dec_depth features: the encoder's as given, then the output of every decoder
        block, (B, N, dec_dim); only the last is normalised.
        """
        view1, view2 = self.decoder_embed(features1), self.decoder_embed(features2)
        outputs1, outputs2 = [features1], [features2]
        for block1, block2 in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            # Both read what the other was before this layer.
            view1, view2 = (
                block1(view1, view2, positions1, positions2),
                block2(view2, view1, positions2, positions1),
            )
            outputs1.append(view1)
            outputs2.append(view2)
        outputs1[-1], outputs2[-1] = self.dec_norm(view1), self.dec_norm(view2)
        return outputs1, outputs2

    def head(self, view: Literal[1, 2], features: Sequence[Tensor], rows: int, columns: int) -> Map:
        """The map of view 1 or 2 from its features as `decode` returns them."""
        head = self.downstream_head1 if view == 1 else self.downstream_head2
        return head(features, rows, columns)

    def forward(self, image1: Tensor, image2: Tensor) -> tuple[Map, Map]:
        """Maps of both images, in the camera of the first.

        Args:
            image1: (B, 3, H, W) float32 in [−1, 1], RGB, H and W multiples of the patch size.
            image2: the same; its size may differ.

        Raises:
            InputError: a side is not a multiple of the patch size.
        """
        return self.pair(self.encode(image1), self.encode(image2))

    def pair(self, encoding1: Encoding, encoding2: Encoding) -> tuple[Map, Map]:
        """`forward` from encoded images."""
        features1, features2 = self.decode(
            encoding1.features, encoding1.positions, encoding2.features, encoding2.positions
        )
        return (
            self.head(1, features1, encoding1.rows, encoding1.columns),
            self.head(2, features2, encoding2.rows, encoding2.columns),
        )

    def step(self, keyframe: Encoding, image: Tensor) -> tuple[Map, Map, Encoding]:
        """One image of a stream against a reference keyframe, whose encoding is all the memory there is.

        Returns the maps of the keyframe and of the image, both in the keyframe's camera, and the image's
        encoding, with which it becomes the next keyframe.
        """
        encoding = self.encode(image)
        reference, current = self.pair(keyframe, encoding)
        return reference, current, encoding
