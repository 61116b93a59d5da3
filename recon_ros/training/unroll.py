# SPDX-License-Identifier: Apache-2.0
"""A batch of sequences through the network and its memory, frame by frame, with the truth beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon_ros.networks.compact import Compact, CompactMemory, Encoded, Measured, Seen
from recon_ros.networks.compact_geometry import exp_se3, invert
from recon_ros.networks.compact_pose import Located, every_other
from recon_ros.training import losses
from recon_ros.training.batches import Batch
from recon_ros.training.curriculum import Stage
from recon_ros.training.losses import LossWeights

NOISE_ROTATION, NOISE_TRANSLATION = 0.0087, 0.01
"""Standard deviations of the noise on true poses at stage.noise = 1: radians, and share of the median depth."""
LARGEST_SCALE = 0.4
"""Bound of |log| of a sequence's scale: a first frame that is wrong by more is not followed."""


@dataclass
class Segment:
    """What some successive frames cost: `loss` to go backwards from, `terms` to be shown."""

    loss: Tensor
    terms: dict[str, float]
    frames: int


@dataclass
class _Past:
    """True and given poses of the frames so far: which slot of the memory holds which frame is told by its pose."""

    given: list[Tensor] = field(default_factory=list)

    def frames_in(self, memory: CompactMemory) -> Tensor:
        """(B, S) index of the frame in each slot."""
        given = torch.stack(self.given, dim=1)  # B, F, 4, 4
        distance = (memory.T_anchor_slot[:, :, None] - given[:, None]).abs().flatten(3).amax(-1)
        return distance.argmin(dim=2)


def unroll(
    network: Compact,
    batch: Batch,
    stage: Stage,
    weights: LossWeights,
    generator: torch.Generator,
    truncate: int = 2,
    half: bool = False,
) -> Iterator[Segment]:
    """The losses of a batch, in segments with a memory that no gradient passes between them.

    The truth of a sequence is brought to the scale that the network gave its first frame: a wrong guess there is
    punished once (by the term ``scale``), and all that follows for being inconsistent with it.

    Args:
        network: in training mode; its encoder is frozen.
        batch: on the network's device.
        stage: says who gives the poses.
        weights: of the terms.
        generator: of the choices made here, on the CPU.
        truncate: frames of a segment.
        half: bfloat16 in what only sees; geometry and losses are in float32.
    """
    walk = _Walk(network, batch, stage, weights, generator, half)
    start = 0
    while start < batch.frames:
        end = min(start + truncate, batch.frames)
        # A segment of one frame would teach nothing about memory; it joins the one before.
        end = batch.frames if batch.frames - end == 1 else end
        yield walk.segment(start, end)
        start = end


class _Walk:
    def __init__(
        self,
        network: Compact,
        batch: Batch,
        stage: Stage,
        weights: LossWeights,
        generator: torch.Generator,
        half: bool,
    ) -> None:
        self.network, self.batch, self.stage, self.weights = network, batch, stage, weights
        self.generator, self.half = generator, half
        count = len(batch.images)
        self.own = torch.rand(count, generator=generator).lt(stage.located).to(batch.K.device)
        self.memory = network.empty(count)
        self.past = _Past()
        self.scale = torch.zeros(count, device=batch.K.device)  # logarithm
        first, later = (1, batch.frames - 1) if network.config.memory else (batch.frames, 0)
        # How many frames each term is a mean over; what needs a memory is not asked of the first.
        self.counts = dict.fromkeys(LossWeights.names(), max(later, 1))
        self.counts |= {"scale": first, "depth": batch.frames, "edges": batch.frames, "planes": batch.frames}
        self.depth8 = [losses.log_truth(batch.depth[:, t], 8) for t in range(batch.frames)]

    def segment(self, start: int, end: int) -> Segment:
        self.memory = self.memory.detached()
        sums: dict[str, Tensor] = {}
        for t in range(start, end):
            for name, term in self.frame(t).items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term
        means = {name: term.mean() / self.counts[name] for name, term in sums.items()}
        loss = sum(
            (self._weight(name) * mean for name, mean in means.items()), torch.zeros((), device=self.scale.device)
        )
        return Segment(loss, {name: float(mean.detach()) for name, mean in means.items()}, end - start)

    def _weight(self, name: str) -> float:
        share = self.stage.pose if name in ("rotation", "translation") else 1.0
        return share * getattr(self.weights, name)

    def frame(self, t: int) -> dict[str, Tensor]:
        """The (B,) terms of one frame; the memory goes on."""
        network, batch, K = self.network, self.batch, self.batch.K
        image = batch.images[:, t]
        with self._half():
            seen = network.see(image, encoded_of(network, batch, t), K)
        terms: dict[str, Tensor] = {}
        true_pose = self._true_pose(t)
        shaken, kept = true_pose, true_pose
        if t > 0 and network.config.memory:
            located = network.locate(seen, self._held(), K)
            terms.update(self._matching(t, located))
            terms.update(self._posing(t, located.T_anchor_camera))
            found = located.T_anchor_camera.detach()
            own = self.own[:, None, None] & torch.isfinite(found).all((1, 2), keepdim=True)
            shaken = torch.where(own, found, self._shaken(true_pose))
            kept = torch.where(own, found, true_pose)
        measured = self._measure(seen, shaken)
        terms.update(self._measuring(t, measured))
        self.memory = network.remember(self.memory, seen, measured, kept, K)
        self.past.given.append(kept)
        return terms

    def _measure(self, seen: Seen, T: Tensor) -> Measured:
        """`Compact.measure`, with the geometry kept out of bfloat16."""
        if self.past.given:
            held, planes = self._held(), self.network.config.planes
            found = self.network.search(seen, held, T, self.batch.K)
            # How many see a plane is told as a share of all slots, the empty ones too.
            share = held.valid.shape[1] / self.memory.valid.shape[1]
            found = torch.cat([found[:, : 2 * planes], found[:, 2 * planes :] * share], dim=1)
        else:  # nothing is remembered, and looking for it gives zeros
            found = seen.match.new_zeros(len(T), 3 * self.network.config.planes, *seen.match.shape[2:])
        with self._half():
            decoded = self.network.decode(found, seen)
        return self.network.finish(decoded, self.batch.K)

    def _held(self) -> CompactMemory:
        """The memory without slots that cannot hold anything yet: after t frames, no more than t + 1 do."""
        count = min(len(self.past.given) + 1, self.memory.valid.shape[1])
        *slots, T_last = self.memory
        return CompactMemory._make([*(held[:, :count] for held in slots), T_last])

    def _half(self) -> torch.autocast:
        return torch.autocast(self.batch.K.device.type, dtype=torch.bfloat16, enabled=self.half)

    def _true_pose(self, t: int) -> Tensor:
        """(B, 4, 4) true pose in the anchor's frame, at the sequence's scale."""
        T = self.batch.T_anchor_camera[:, t].clone()
        T[:, :3, 3] *= torch.exp(self.scale)[:, None]
        return T

    def _shaken(self, T: Tensor) -> Tensor:
        depth = torch.exp(
            losses.masked_median(torch.log(self.memory.depth[:, 0].clamp_min(1e-3)), self.memory.depth[:, 0] > 0)
        )
        noise = torch.randn(len(T), 6, generator=self.generator).to(T.device)
        # Half of the noise is little, so that the network learns to use good poses as well.
        amount = self.stage.noise * torch.rand(len(T), 1, generator=self.generator).to(T.device)
        v = noise[:, :3] * amount * NOISE_TRANSLATION * depth[:, None]
        return T @ exp_se3(torch.cat([v, noise[:, 3:] * amount * NOISE_ROTATION], dim=1))

    def _measuring(self, t: int, measured: Measured) -> dict[str, Tensor]:
        truth, mask = losses.log_truth(self.batch.depth[:, t], 4)
        coarse, known = self.depth8[t]
        terms = {}
        if t == 0 or not self.network.config.memory:
            # The only place where the scale itself is taught: if the planes were taught a scale that follows the
            # network's, it would run away.
            terms["scale"] = losses.absolute(measured.log_depth, truth, mask)
            terms["planes"] = losses.plane_entropy(measured.logits, measured.log_planes, coarse, known)
            ratio = losses.masked_median((measured.log_depth - truth).detach(), mask)
            self.scale = ratio.clamp(-LARGEST_SCALE, LARGEST_SCALE)
        shift = self.scale[:, None, None, None]
        terms["depth"] = losses.depth_nll(measured.log_depth, measured.log_scale, truth + shift, mask)
        terms["edges"] = losses.edges(measured.log_depth, truth, mask)
        if "planes" not in terms:
            terms["planes"] = losses.plane_entropy(measured.logits, measured.log_planes, coarse + shift, known)
        return terms

    def _matching(self, t: int, located: Located) -> dict[str, Tensor]:
        memory = self._held()
        frames = self.past.frames_in(memory)
        logs = torch.stack([log[:, 0] for log, _ in self.depth8[:t]], dim=1)
        known = torch.stack([mask[:, 0] for _, mask in self.depth8[:t]], dim=1)
        rows = torch.arange(len(frames), device=frames.device)[:, None]
        depth = torch.where(known, logs.exp(), torch.zeros_like(logs))[rows, frames]
        T_slot = self.batch.T_anchor_camera[rows, frames]
        T_camera_slot = invert(self.batch.T_anchor_camera[:, t])[:, None] @ T_slot
        truth = losses.true_matches(depth, T_camera_slot, memory.valid, self.batch.K, self.batch.depth[:, t], 8)
        truth = truth.of(every_other(*memory.depth.shape[2:]).to(frames.device))
        error = losses.pixel_error(located.pixels, truth, 8)
        return {
            "match": losses.match_entropy(located.similarity, located.log_sum, truth, memory.depth.shape[-1], 8),
            "pixel": losses.pixel_loss(error, truth),
            "trust": losses.trust_entropy(located.weights, error, truth),
        }

    def _posing(self, t: int, T: Tensor) -> dict[str, Tensor]:
        """Errors of the step from the previous frame: what was lost before is not this frame's fault."""
        previous = self._true_pose(t - 1)
        step = invert(previous) @ self._true_pose(t)
        rotation, translation = losses.pose_errors(T, self.past.given[-1] @ step)
        truth, mask = self.depth8[t - 1]
        depth = torch.exp(losses.masked_median(truth, mask) + self.scale)
        return {"rotation": losses.bounded(rotation), "translation": losses.bounded(translation / depth)}


def encoded_of(network: Compact, batch: Batch, t: int) -> Encoded:
    """The frozen encoder's features of frame t: from the batch where it carries them, else computed."""
    if batch.f8 is not None and batch.f16 is not None:
        return Encoded(batch.f8[:, t], batch.f16[:, t])
    frozen = not any(parameter.requires_grad for parameter in network.encoder.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        return network.encode(batch.images[:, t])
