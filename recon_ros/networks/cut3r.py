# SPDX-License-Identifier: Apache-2.0
"""CUT3R: one image at a time, read and written through a persistent state.

Wang et al., "Continuous 3D perception model with persistent state", CVPR 2025. Section 3.1: an image is encoded,
its tokens and the state tokens are decoded together, each attending to the other. Section 3.2: the same
decoder answers a query for a camera it has not seen, given as a ray map. The state's update rule is outside
(`update_rules`), so TTT3R and FILT3R run on the same weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recon_ros.networks.blocks import DecoderBlock, EncoderBlock, layer_norm
from recon_ros.networks.cut3r_heads import OUTPUTS, Cut3rHead, DPTCut3rHead, LinearCut3rHead
from recon_ros.networks.cut3r_state import PoseRetriever, state_positions
from recon_ros.networks.patches import PatchEmbed, grid_positions
from recon_ros.networks.update_rules import Overwrite, RuleMemory, UpdateRule, select, where

PATCH = 16
RAY_HEADS = 16
RAY_CHANNELS = 6
POSE_POSITION = -1
"""Row and column of the pose token: one step outside of the image."""

Grid = tuple[int, int]
"""Rows and columns of patches."""

DEFAULT_RULE: UpdateRule = Overwrite()
"""What the published model does."""


@dataclass(frozen=True)
class Cut3rConfig:
    """Sizes of a CUT3R; the defaults are those of the published models.

    Attributes:
        enc_dim, enc_depth, enc_heads: image encoder.
        ray_depth: blocks of the ray-map encoder, which has the image encoder's width.
        dec_dim, dec_depth, dec_heads: decoder of the image side; the state's has its own number of heads.
        state_tokens, state_heads: state and its decoder.
        pose_slots: of the pose memory.
        head: ``dpt`` or ``linear``.
        dpt_feature_dim, dpt_last_dim, dpt_layer_dims: of the three DPT heads.
        faithful_fp16_rope: round queries and keys of the image encoder to float16 around the rotation, as the
            published GPU code does; False is the better arithmetic.
    """

    enc_dim: int = 1024
    enc_depth: int = 24
    enc_heads: int = 16
    ray_depth: int = 2
    dec_dim: int = 768
    dec_depth: int = 12
    dec_heads: int = 12
    state_tokens: int = 768
    state_heads: int = 16
    pose_slots: int = 256
    head: str = "dpt"
    dpt_feature_dim: int = 256
    dpt_last_dim: int = 128
    dpt_layer_dims: tuple[int, int, int, int] = (96, 192, 384, 768)
    faithful_fp16_rope: bool = False

    @classmethod
    def dpt_512(cls, **changes: Any) -> Cut3rConfig:
        """``cut3r_512_dpt_4_64``."""
        return cls(head="dpt", **changes)

    @classmethod
    def linear_224(cls, **changes: Any) -> Cut3rConfig:
        """``cut3r_224_linear_4``."""
        return cls(head="linear", **changes)


@dataclass(frozen=True, eq=False)
class View:
    """One frame of a batch of sequences, all of one size.

    Attributes:
        image: (B, 3, H, W) float32 in [−1, 1], or None.
        ray_map: (B, H, W, 6) float32 origin and direction of each pixel's ray in the first camera's frame, or
            None.
        has_image, has_rays: (B,) bool; None: as `image` and `ray_map` are given.
        update: (B,) bool, the state takes this frame in; None: yes. A frame without image never enters.
        reset: (B,) bool, the state is forgotten *after* this frame; None: no.
    """

    image: Tensor | None
    ray_map: Tensor | None = None
    has_image: Tensor | None = None
    has_rays: Tensor | None = None
    update: Tensor | None = None
    reset: Tensor | None = None

    @property
    def grid(self) -> Grid:
        """Rows and columns of the view's patches."""
        if self.image is not None:
            height, width = self.image.shape[2:]
        else:
            assert self.ray_map is not None, "a view needs an image or a ray map"
            height, width = self.ray_map.shape[1:3]
        return height // PATCH, width // PATCH

    def mask(self, name: str) -> Tensor:
        """(B,) bool of `has_image`, `has_rays`, `update` or `reset`, with its default filled in."""
        given = getattr(self, name)
        if given is not None:
            return given
        defaults = {"has_image": self.image is not None, "has_rays": self.ray_map is not None, "update": True}
        some = self.image if self.image is not None else self.ray_map
        assert some is not None, "a view needs an image or a ray map"
        return torch.full((some.shape[0],), defaults.get(name, False), dtype=torch.bool, device=some.device)


class Cut3rMemory(NamedTuple):
    """Everything that a sequence leaves behind; tensors of fixed shapes.

    Attributes:
        state: (B, S, D) float32 state tokens.
        pose_memory: (B, M, 2·D) float32.
        is_first: (B,) bool, the next frame gets the learned pose token.
        rule: what the update rule remembers.
    """

    state: Tensor
    pose_memory: Tensor
    is_first: Tensor
    rule: RuleMemory


class Result(NamedTuple):
    """What one frame of a sequence gives: the outputs of `Cut3rHead`, and the memory after it."""

    outputs: dict[str, Tensor]
    memory: Cut3rMemory


class Decoded(NamedTuple):
    """What one frame says before the state is updated; what crosses the border to an exported engine.

    Attributes:
        outputs: see `Cut3rHead`.
        candidate: (B, S, D) float32 proposed state.
        pose_memory: (B, M, 2·D) float32 proposed pose memory.
        logits: (B, S) float32 mean logits of the state's attention to the image, for `Ttt3r`.
    """

    outputs: dict[str, Tensor]
    candidate: Tensor
    pose_memory: Tensor
    logits: Tensor


class Cut3r(nn.Module):
    """The network. `forward` runs sequences at once, `forward_recurrent` frame by frame, `query` asks."""

    def __init__(self, config: Cut3rConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.patch_embed = PatchEmbed(c.enc_dim, PATCH)
        self.patch_embed_ray_map = PatchEmbed(c.enc_dim, PATCH, RAY_CHANNELS)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(c.enc_dim, c.enc_heads, faithful_fp16_rope=c.faithful_fp16_rope) for _ in range(c.enc_depth)
        )
        self.enc_norm = layer_norm(c.enc_dim)
        self.enc_blocks_ray_map = nn.ModuleList(EncoderBlock(c.enc_dim, RAY_HEADS) for _ in range(c.ray_depth))
        self.enc_norm_ray_map = layer_norm(c.enc_dim)
        self.masked_img_token = nn.Parameter(torch.zeros(1, c.enc_dim))
        self.masked_ray_map_token = nn.Parameter(torch.zeros(1, c.enc_dim))

        self.register_tokens = nn.Embedding(c.state_tokens, c.enc_dim)
        self.decoder_embed_state = nn.Linear(c.enc_dim, c.dec_dim)
        self.dec_blocks_state = nn.ModuleList(DecoderBlock(c.dec_dim, c.state_heads) for _ in range(c.dec_depth))
        self.dec_norm_state = layer_norm(c.dec_dim)

        self.decoder_embed = nn.Linear(c.enc_dim, c.dec_dim)
        self.dec_blocks = nn.ModuleList(DecoderBlock(c.dec_dim, c.dec_heads) for _ in range(c.dec_depth))
        self.dec_norm = layer_norm(c.dec_dim)

        self.pose_token = nn.Parameter(torch.zeros(1, 1, c.dec_dim))
        self.pose_retriever = PoseRetriever(c.enc_dim, c.dec_dim, c.pose_slots, c.dec_heads)
        self.downstream_head = _head(c)

    # Encoding

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [−1, 1] → (B, N, enc_dim), row by row."""
        tokens, positions = self.patch_embed(image)
        for block in self.enc_blocks:
            tokens = block(tokens, positions)
        return self.enc_norm(tokens)

    def encode_rays(self, ray_map: Tensor) -> Tensor:
        """(B, H, W, 6) → (B, N, enc_dim)."""
        tokens, positions = self.patch_embed_ray_map(ray_map.permute(0, 3, 1, 2))
        for block in self.enc_blocks_ray_map:
            tokens = block(tokens, positions)
        return self.enc_norm_ray_map(tokens)

    def encode(self, view: View, mask_image: bool, mask_rays: bool) -> tuple[Tensor, Grid]:
        """The sum of the encodings of what a view has.

        Args:
            view: an image, a ray map or both.
            mask_image, mask_rays: where the image, the rays are missing, the learned token stands in.

        Returns:
            (B, N, enc_dim) tokens, and the rows and columns of their grid.
        """
        image = None if view.image is None else self.encode_image(view.image)
        rays = None if view.ray_map is None else self.encode_rays(view.ray_map)
        parts = (
            _stand_in(image, self.masked_img_token if mask_image else None, view.mask("has_image")),
            _stand_in(rays, self.masked_ray_map_token if mask_rays else None, view.mask("has_rays")),
        )
        # At least one part is not a lone token: a view has an image or a ray map.
        return torch.stack(torch.broadcast_tensors(*(p for p in parts if p is not None))).sum(dim=0), view.grid

    # Memory

    def initial_state(self, batch: int) -> Tensor:
        """(batch, S, D) state tokens before the first frame."""
        return self.decoder_embed_state(self.register_tokens.weight).expand(batch, -1, -1)

    def initial_memory(self, batch: int = 1, rule: UpdateRule = DEFAULT_RULE) -> Cut3rMemory:
        """Before the first frame of `batch` sequences; in float32 whatever the weights are, for the rule's sake."""
        state = self.initial_state(batch).float()
        pose_memory = self.pose_retriever.mem.float().expand(batch, -1, -1)
        is_first = torch.ones(batch, dtype=torch.bool, device=state.device)
        return Cut3rMemory(state, pose_memory, is_first, rule.start(state))

    # One frame

    def decode(
        self,
        feature: Tensor,
        grid: Grid,
        state: Tensor,
        pose_memory: Tensor,
        is_first: Tensor,
        wanted: Collection[str] = OUTPUTS,
    ) -> Decoded:
        """Read the state for one frame, and propose what it should become.

        Args:
            feature: (B, N, enc_dim) encoding of the frame.
            grid: rows and columns.
            state, pose_memory: of the frame before.
            is_first: (B,) bool: the pose token is the learned one, not what the pose memory expects.
            wanted: of `OUTPUTS`.
        """
        batch = feature.shape[0]
        state, pose_memory = state.to(feature.dtype), pose_memory.to(feature.dtype)
        overview = feature.float().mean(dim=1, keepdim=True).to(feature.dtype)
        pose_token = where(
            is_first, self.pose_token.expand(batch, -1, -1), self.pose_retriever.read(pose_memory, overview)
        )
        patches = grid_positions(batch, *grid, device=feature.device)
        positions = torch.cat((torch.full_like(patches[:, :1], POSE_POSITION), patches), dim=1)
        places = state_positions(state.shape[1], feature.device).expand(batch, -1, -1)

        x = torch.cat((pose_token, self.decoder_embed(feature)), dim=1)
        features, logits = [feature], []
        for image_block, state_block in zip(self.dec_blocks, self.dec_blocks_state, strict=True):
            # Both sides read what the other was one layer before.
            next_x = image_block(x, state, positions, places)
            state, layer_logits = state_block.forward_with_logits(state, x, places, positions)
            x = next_x
            features.append(x[:, 1:])
            logits.append(layer_logits)
        x = self.dec_norm(x)
        features[-1] = x[:, 1:]
        return Decoded(
            self.downstream_head(features, x[:, :1], patches, grid, wanted),
            candidate=self.dec_norm_state(state).float(),
            pose_memory=self.pose_retriever.write(pose_memory, overview, x[:, :1]).float(),
            logits=torch.stack(logits).float().mean(dim=0),
        )

    def advance(self, memory: Cut3rMemory, decoded: Decoded, view: View, rule: UpdateRule) -> Cut3rMemory:
        """The memory after a frame, by the rule and the view's `update` mask; `reset` is not looked at."""
        state, rule_memory = rule.update(
            memory.state, decoded.candidate, memory.rule, decoded.logits if rule.needs_gate else None
        )
        takes = view.mask("has_image") & view.mask("update")
        return Cut3rMemory(
            state=where(takes, state, memory.state),
            pose_memory=where(takes, decoded.pose_memory, memory.pose_memory),
            is_first=torch.zeros_like(memory.is_first),
            rule=select(takes, rule_memory, memory.rule),
        )

    def forget(self, memory: Cut3rMemory, reset: Tensor, rule: UpdateRule, restart: bool) -> Cut3rMemory:
        """The initial memory where the (B,) bool `reset` holds.

        Args:
            memory: after the frame.
            reset: which samples forget.
            rule: whose memory it is.
            restart: the next frame counts as a first one, for the pose token and for the rule; otherwise only
                the state and the pose memory are forgotten.
        """
        start = self.initial_memory(reset.shape[0], rule)
        again = reset & restart
        return Cut3rMemory(
            state=where(reset, start.state, memory.state),
            pose_memory=where(reset, start.pose_memory, memory.pose_memory),
            is_first=memory.is_first | again,
            rule=select(again, start.rule, memory.rule),
        )

    # Sequences

    def forward(
        self, views: Sequence[View], rule: UpdateRule = DEFAULT_RULE, wanted: Collection[str] = OUTPUTS
    ) -> list[Result]:
        """Whole sequences at once, as CUT3R is trained: what a view lacks is marked by a learned token.

        The token of missing ray maps is used only when some view has a ray map.
        """
        any_rays = bool(torch.stack([view.mask("has_rays") for view in views]).any())
        return list(self._run(views, rule, wanted, mask_image=True, mask_rays=any_rays, restart=rule.restarts))

    def forward_recurrent(
        self,
        views: Iterable[View],
        rule: UpdateRule = DEFAULT_RULE,
        wanted: Collection[str] = OUTPUTS,
        restart: bool | None = None,
    ) -> Iterator[Result]:
        """Frame by frame, as they come: what a view lacks is left out. Same as `forward` without ray maps.

        Args:
            views: one a frame.
            rule: how the state takes a frame in.
            wanted: of `OUTPUTS`.
            restart: after a reset, the next frame counts as a first one; None: as the rule has it.
        """
        restart = rule.restarts if restart is None else restart
        return self._run(views, rule, wanted, mask_image=False, mask_rays=False, restart=restart)

    def query(self, memory: Cut3rMemory, ray_map: Tensor, wanted: Collection[str] = OUTPUTS) -> dict[str, Tensor]:
        """What a camera that has seen nothing would see: (B, H, W, 6) ray map → outputs. Nothing is changed."""
        feature, grid = self.encode(View(None, ray_map), mask_image=False, mask_rays=False)
        return self.decode(feature, grid, memory.state, memory.pose_memory, memory.is_first, wanted).outputs

    def _run(
        self,
        views: Iterable[View],
        rule: UpdateRule,
        wanted: Collection[str],
        mask_image: bool,
        mask_rays: bool,
        restart: bool,
    ) -> Iterator[Result]:
        memory: Cut3rMemory | None = None
        for view in views:
            feature, grid = self.encode(view, mask_image, mask_rays)
            memory = memory or self.initial_memory(feature.shape[0], rule)
            decoded = self.decode(feature, grid, memory.state, memory.pose_memory, memory.is_first, wanted)
            memory = self.advance(memory, decoded, view, rule)
            memory = self.forget(memory, view.mask("reset"), rule, restart)
            yield Result(decoded.outputs, memory)


def _head(config: Cut3rConfig) -> Cut3rHead:
    if config.head == "linear":
        return LinearCut3rHead(config.dec_dim, config.dec_heads, PATCH)
    depth = config.dec_depth
    return DPTCut3rHead(
        config.dec_dim,
        config.dec_heads,
        config.enc_dim,
        (0, depth // 2, 3 * depth // 4, depth),
        config.dpt_layer_dims,
        config.dpt_feature_dim,
        config.dpt_last_dim,
    )


def _stand_in(tokens: Tensor | None, token: Tensor | None, has: Tensor) -> Tensor | None:
    """(B, N, enc_dim) `tokens` where the (B,) bool mask holds, else the (1, enc_dim) `token`, else 0."""
    if tokens is None:
        return token
    other = torch.zeros_like(tokens) if token is None else token.expand_as(tokens)
    return where(has, tokens, other)
