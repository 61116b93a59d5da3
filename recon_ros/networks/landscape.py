# SPDX-License-Identifier: Apache-2.0
"""Batches that mix landscape and portrait images, all stored as landscape.

Training fills a batch with images of both orientations: a portrait image is stored transposed. The network sees
it upright, and its map is transposed to match the stored image again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recon_ros.networks.pair import Encoding, PairNetwork


def forward_landscape(
    network: PairNetwork[Any], image1: Tensor, image2: Tensor, true_shape1: Tensor, true_shape2: Tensor
) -> tuple[Any, Any]:
    """`network(image1, image2)` for images stored as landscape.

    Args:
        network: a DUSt3R or a MASt3R.
        image1: (B, 3, H, W) float32 in [−1, 1] with W ≥ H; portrait images transposed.
        image2: the same.
        true_shape1: (B, 2) int64, (height, width) of every image before it was transposed.
        true_shape2: the same for the second view.

    Returns:
        The two maps of the network, (B, H, W, …), laid out as the stored images are.
    """
    portrait1, portrait2 = is_portrait(true_shape1), is_portrait(true_shape2)
    view1 = encode_landscape(network, image1, portrait1)
    view2 = encode_landscape(network, image2, portrait2)
    features1, features2 = network.decode(view1.features, view1.positions, view2.features, view2.positions)
    return (
        _head(network.downstream_head1, features1, view1, portrait1),
        _head(network.downstream_head2, features2, view2, portrait2),
    )


def is_portrait(true_shape: Tensor) -> Tensor:
    """(B, 2) int64 (height, width) → (B,) bool."""
    return true_shape[:, 0] > true_shape[:, 1]


def encode_landscape(network: PairNetwork[Any], images: Tensor, portrait: Tensor) -> Encoding:
    """Encode (B, 3, H, W) images, where (B,) `portrait` with rows and columns swapped back.

    `rows` and `columns` of the result are those of a landscape image.
    """
    lying, upright = network.patch_embed(images), network.patch_embed(images.mT)
    tokens, positions = (
        torch.where(portrait[:, None, None], turned, as_stored)
        for turned, as_stored in zip(upright, lying, strict=True)
    )
    rows, columns = (side // network.config.patch for side in images.shape[-2:])
    return Encoding(network.encode_tokens(tokens, positions), positions, rows, columns)


def _head(head: Any, features: list[Tensor], view: Encoding, portrait: Tensor) -> Any:
    """Each orientation through the head by itself, then back in the order of the batch."""
    lying = head([feature[~portrait] for feature in features], view.rows, view.columns)
    upright = head([feature[portrait] for feature in features], view.columns, view.rows)
    order = torch.cat((torch.nonzero(~portrait), torch.nonzero(portrait))).squeeze(1).argsort()
    return type(lying)(*(torch.cat((a, b.transpose(1, 2)))[order] for a, b in zip(lying, upright, strict=True)))
