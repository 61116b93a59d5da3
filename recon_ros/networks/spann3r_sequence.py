# SPDX-License-Identifier: Apache-2.0
"""Spann3R over a whole sequence: in the order given, or in the order that it is most sure of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

from torch import Tensor

from recon_ros.networks.heads import Pointmap
from recon_ros.networks.spann3r import Spann3r, Spann3rOutput, Spann3rState


class Spann3rSequence(NamedTuple):
    """What a sequence of F images gave.

    Attributes:
        order: indices of the images as they were used; frame ids in the memory count along it.
        pointmaps: F of them, in that order, the final ones (of the last image, the preview), in the frame of the
            first.
        outputs, states: F of them, after each image.
    """

    order: list[int]
    pointmaps: list[Pointmap]
    outputs: list[Spann3rOutput]
    states: list[Spann3rState]


def online(network: Spann3r, images: Sequence[Tensor]) -> Spann3rSequence:
    """Each image as it comes: F (B, 3, H, W) images of one size, one at least."""
    state = _initial(network, images)
    outputs: list[Spann3rOutput] = []
    states: list[Spann3rState] = []
    for image in images:
        state, output = network(state, image)
        outputs.append(output)
        states.append(state)
    return _sequence(list(range(len(images))), outputs, states)


def offline(network: Spann3r, images: Sequence[Tensor]) -> Spann3rSequence:
    """The surest pair first, then always the image that, with what is known, is surest (section 3.4).

    F² decodings, for F (B, 3, H, W) images of one size, two at least.
    """
    encodings = [network.dust3r.encode(image) for image in images]
    pairs = {(i, j): network.dust3r.pair(encodings[i], encodings[j]) for i, j in permutations(range(len(images)), 2)}
    surest, _ = max(pairs.items(), key=lambda item: sureness(*item[1]))
    order = list(surest)
    state = _initial(network, images)
    outputs: list[Spann3rOutput] = []
    states: list[Spann3rState] = []
    for index in order:
        state, output = network.step(state, encodings[index])
        outputs.append(output)
        states.append(state)
    while left := [index for index in range(len(images)) if index not in order]:
        steps = {index: network.step(states[-1], encodings[index]) for index in left}
        best = max(left, key=lambda index: sureness(steps[index][1].previous, steps[index][1].current))
        order.append(best)
        states.append(steps[best][0])
        outputs.append(steps[best][1])
    return _sequence(order, outputs, states)


def sureness(first: Pointmap, second: Pointmap) -> float:
    """Sum of the mean (c − 1)/c of the two confidences, each in [0, 1)."""
    return sum(((c - 1) / c).mean().item() for c in (first.confidence, second.confidence))


def _initial(network: Spann3r, images: Sequence[Tensor]) -> Spann3rState:
    batch, _, height, width = images[0].shape
    return network.initial_state(height, width, batch)


def _sequence(order: list[int], outputs: list[Spann3rOutput], states: list[Spann3rState]) -> Spann3rSequence:
    final = [output.previous for output in outputs[1:]]
    return Spann3rSequence(order, [*final, outputs[-1].current], outputs, states)
