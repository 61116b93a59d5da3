# SPDX-License-Identifier: Apache-2.0
"""The compact network's step as four graphs: see the image; find the camera and search memory; decode; remember.

Finding, searching and remembering are geometry, and exact. The camera is a memory tensor that no step changes: whoever
knows it writes it once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recon_ros.errors import NetworkError
from recon_ros.networks.compact import Compact, CompactMemory, Decoded, Seen
from recon_ros.networks.compact_geometry import cell_centres, rays_of
from recon_ros.networks.compact_pose import STRIDE
from recon_ros.networks.graphs import GraphModule, StepGraphs, assemble, floats, health
from recon_ros.networks.plan import HEALTH, IMAGE, NEXT

CAMERA = "camera"
"""(1, 4) fx, fy, cx, cy of the images, pixels; memory."""
MEMORY = tuple(f"memory.{name}" for name in CompactMemory._fields)


class SeeGraph(GraphModule):
    """What an image shows by itself."""

    inputs = (IMAGE, CAMERA)
    outputs = ("match", "context", "fine", "descriptor", f"{HEALTH}.see")

    def __init__(self, network: Compact) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, camera: Tensor) -> tuple[Tensor, ...]:
        x = (image.to(torch.float32) / 255).permute(2, 0, 1)[None]
        seen = self.network.see(x, self.network.encode(x), camera)
        given = seen.match.float(), seen.context.float(), seen.fine.float(), seen.descriptor[0].float()
        return *given, health(given)


class SearchGraph(GraphModule):
    """Where the camera is, and what memory says of every depth."""

    inputs = ("match", CAMERA, *MEMORY)
    outputs = ("pose", "found", f"{HEALTH}.search")
    exact = True

    def __init__(self, network: Compact) -> None:
        super().__init__()
        self.network = network

    def forward(self, match: Tensor, camera: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        seen, held = Seen(match, match, match, match), CompactMemory(*memory)
        pose = self.network.locate(seen, held, camera).T_anchor_camera
        found = self.network.search(seen, held, pose, camera)
        return pose, found, health((pose, found))


class DecodeGraph(GraphModule):
    """What image and memory say together."""

    inputs = ("found", "context", "fine")
    outputs = ("logits", "details", f"{HEALTH}.decode")

    def __init__(self, network: Compact) -> None:
        super().__init__()
        self.network = network

    def forward(self, found: Tensor, context: Tensor, fine: Tensor) -> tuple[Tensor, ...]:
        dtype = self.network.stem2.weight.dtype
        decoded = self.network.decode(found, Seen(context, context.to(dtype), fine.to(dtype), context))
        given = decoded.logits.float(), decoded.fine.float()
        return *given, health(given)


class RememberGraph(GraphModule):
    """Points and confidence of every pixel, and the memory that follows."""

    inputs = ("logits", "details", "match", "pose", CAMERA, *MEMORY)
    outputs = (
        "points",
        "confidence",
        "T_memory_camera",
        *(name + NEXT for name in (CAMERA, *MEMORY)),
        f"{HEALTH}.depth",
    )
    exact = True

    def __init__(self, network: Compact) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, logits: Tensor, details: Tensor, match: Tensor, pose: Tensor, camera: Tensor, *memory: Tensor
    ) -> tuple[Tensor, ...]:
        measured = self.network.finish(Decoded(logits, details), camera)
        height, width = logits.shape[2] * STRIDE, logits.shape[3] * STRIDE
        depth, sure = self.network.full_depth(measured)
        rays = rays_of(cell_centres(height, width, 1, depth), camera).reshape(height, width, 3)
        points = rays * depth[0, :, :, None]
        after = self.network.remember(CompactMemory(*memory), Seen(match, match, match, match), measured, pose, camera)
        # A library may not hand an input on as an output.
        given = points, sure[0], pose[0] + 0, camera + 0, *after[:-1], after.T_last + 0
        return *given, health(given)


def compact_graphs(network: nn.Module, width: int, height: int) -> StepGraphs:
    """See `graphs.build_graphs`.

    Raises:
        NetworkError: a side is not a multiple of 32.
    """
    assert isinstance(network, Compact), "a card of family compact is of a Compact"
    if width % 32 or height % 32:
        raise NetworkError(f"a compact network at {width}x{height}: both sides must be multiples of 32")
    c, (h, w) = network.config, (height // STRIDE, width // STRIDE)
    empty = network.empty(1, width, height)
    camera = torch.tensor([[width, width, width / 2 - 0.5, height / 2 - 0.5]], dtype=torch.float32)
    initial = {CAMERA: camera, **dict(zip(MEMORY, empty, strict=True))}
    given = {
        "match": floats(1, c.match_dim, h, w),
        "context": floats(1, c.context, h, w),
        "fine": floats(1, c.fine, 2 * h, 2 * w),
        "descriptor": floats(network.norm16.norm.normalized_shape[0]),
        "pose": floats(1, 4, 4),
        "found": floats(1, 3 * c.planes, h, w),
        "logits": floats(1, c.planes, h, w),
        "details": floats(1, 2, 2 * h, 2 * w),
        "points": floats(height, width, 3),
        "confidence": floats(height, width),
        "T_memory_camera": floats(4, 4),
    }
    graphs: dict[str, GraphModule] = {
        "see": SeeGraph(network),
        "search": SearchGraph(network),
        "decode": DecodeGraph(network),
        "remember": RememberGraph(network),
    }
    return assemble(
        "compact", width, height, graphs, initial, given, ("points", "confidence", "T_memory_camera", "descriptor")
    )
