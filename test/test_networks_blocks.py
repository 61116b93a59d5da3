# SPDX-License-Identifier: Apache-2.0
"""Attention against the textbook formula, and the errors of the patch embedding."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
from recon_ros.errors import InputError  # noqa: E402
from recon_ros.networks.blocks import Attention, CrossAttention, DecoderBlock, EncoderBlock  # noqa: E402
from recon_ros.networks.heads import exp_norm, postprocess  # noqa: E402
from recon_ros.networks.patches import PatchEmbed, grid_positions, tokens_to_map  # noqa: E402
from recon_ros.networks.rope import rope_2d, rope_2d_fp16  # noqa: E402

HEADS, DIM = 2, 16
IMAGE_AT = grid_positions(3, 2, 4)
MEMORY_AT = grid_positions(3, 1, 5) - 1


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def logits(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Scaled products (B, heads, N, M)."""
    return q @ k.mT / (DIM // HEADS) ** 0.5


def by_head(x: torch.Tensor) -> torch.Tensor:
    """(B, N, DIM) → (B, heads, N, DIM/heads)."""
    return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)


@pytest.mark.parametrize("faithful", [False, True])
def test_self_attention_is_the_textbook_one(faithful: bool) -> None:
    attention = Attention(DIM, HEADS, faithful_fp16_rope=faithful)
    x = torch.randn(3, 8, DIM)
    rotate = rope_2d_fp16 if faithful else rope_2d
    q, k, v = (by_head(part) for part in attention.qkv(x).chunk(3, dim=-1))
    weights = logits(rotate(q, IMAGE_AT), rotate(k, IMAGE_AT)).softmax(dim=-1)
    expected = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, IMAGE_AT), expected)
    assert not torch.allclose(attention(x), expected)


def test_cross_attention_is_the_textbook_one_and_hands_out_its_mean_logits() -> None:
    attention = CrossAttention(DIM, HEADS)
    x, memory = torch.randn(3, 8, DIM), torch.randn(3, 5, DIM)
    q = rope_2d(by_head(attention.projq(x)), IMAGE_AT)
    k = rope_2d(by_head(attention.projk(memory)), MEMORY_AT)
    weights = logits(q, k).softmax(dim=-1)
    expected = attention.proj((weights @ by_head(attention.projv(memory))).transpose(1, 2).flatten(2))
    result, mean_logits = attention.forward_with_logits(x, memory, IMAGE_AT, MEMORY_AT)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(mean_logits, logits(q, k).mean(dim=(1, 3)))
    torch.testing.assert_close(attention(x, memory, IMAGE_AT, MEMORY_AT), result)


def test_asking_a_decoder_block_for_logits_changes_nothing_else() -> None:
    block = DecoderBlock(DIM, HEADS)
    x, memory = torch.randn(3, 8, DIM), torch.randn(3, 5, DIM)
    result, mean_logits = block.forward_with_logits(x, memory, IMAGE_AT, MEMORY_AT)
    torch.testing.assert_close(block(x, memory, IMAGE_AT, MEMORY_AT), result, rtol=0, atol=0)
    assert mean_logits.shape == (3, 8)


def test_blocks_without_positions_do_not_care_for_order() -> None:
    block = EncoderBlock(DIM, HEADS)
    x, order = torch.randn(3, 8, DIM), torch.randperm(8)
    torch.testing.assert_close(block(x)[:, order], block(x[:, order]))
    assert not torch.allclose(block(x, IMAGE_AT)[:, order], block(x[:, order], IMAGE_AT), atol=1e-4)


def test_tokens_lie_where_their_positions_say() -> None:
    embed = PatchEmbed(4, patch=16)
    image = torch.rand(1, 3, 48, 64)
    tokens, positions = embed(image)
    assert tokens.shape == (1, 12, 4)
    assert positions.tolist()[0][:5] == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]
    token_map = tokens_to_map(tokens, 3, 4)
    row, column = positions[0, 6].tolist()
    patch = image[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
    torch.testing.assert_close(token_map[0, :, row, column], embed.proj(patch)[0, :, 0, 0])


@pytest.mark.parametrize("height, width", [(40, 64), (48, 70)])
def test_an_image_that_patches_do_not_tile_is_an_input_error(height: int, width: int) -> None:
    with pytest.raises(InputError, match=f"{width}×{height}.*multiples of 16") as caught:
        PatchEmbed(4, patch=16)(torch.zeros(1, 3, height, width))
    assert caught.value.reason == "image_size"


def test_points_keep_direction_and_confidence_is_above_one() -> None:
    raw = torch.randn(2, 4, 3, 5) * 2
    points, confidence = postprocess(raw)
    assert points.shape == (2, 3, 5, 3) and confidence.shape == (2, 3, 5)
    assert (confidence > 1).all()
    xyz = raw[:, :3].permute(0, 2, 3, 1)
    torch.testing.assert_close(points.norm(dim=-1), xyz.norm(dim=-1).expm1())
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(points, xyz, dim=-1), torch.ones(2, 3, 5))
    assert exp_norm(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]
