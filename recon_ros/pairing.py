# SPDX-License-Identifier: Apache-2.0
"""Images and depths (or images and masks, the rule is the same) of two streams brought together by their stamps.

The rule is that of message_filters' ApproximateTime in its spirit, for two streams: an image takes the depth
nearest to it within the tolerance, unless another image is nearer to that depth; an equal stamp is nearest
of all. Nothing is decided before everything that could change the decision has arrived, so the pairs depend
on the stamps only and not on how the two streams interleave (as long as each is in order and the queues do
not overflow). Equal stamps need no waiting.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

ImageItem = TypeVar("ImageItem")
DepthItem = TypeVar("DepthItem")
T = TypeVar("T")

QUEUE_SIZE = 30
JUMP_NS = 1_000_000_000
"""A stamp further back than this is not disorder: the stream has been started anew (a looped bag)."""


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[T]):
    stamp_ns: int
    value: T


_stamp = attrgetter("stamp_ns")


class Pairer(Generic[ImageItem, DepthItem]):
    """Matches images with depths.

    Args:
        tolerance_ns: largest difference of the stamps of a pair.
        wait_depth: False lets every image through at once, without depth.

    Attributes:
        unpaired_images, unpaired_depths: how many were given up so far.
        last_miss_ns: how far the nearest depth that waited was from the image given up last (positive when
            later), or None when there was no depth at all.
    """

    def __init__(self, tolerance_ns: int, wait_depth: bool) -> None:
        self.tolerance_ns = tolerance_ns
        self.wait_depth = wait_depth
        self.unpaired_images = 0
        self.unpaired_depths = 0
        self.last_miss_ns: int | None = None
        self._images: list[_Waiting[ImageItem]] = []
        self._depths: list[_Waiting[DepthItem]] = []
        self._newest_image: int | None = None
        self._newest_depth: int | None = None

    def add_image(self, stamp_ns: int, item: ImageItem) -> list[tuple[int, ImageItem, DepthItem | None]]:
        """Take an image in; the pairs that are now complete, in the order of their images."""
        if not self.wait_depth:
            return [(stamp_ns, item, None)]
        self._begin_anew_on_jump(stamp_ns, self._newest_image)
        self._newest_image = _later(self._newest_image, stamp_ns)
        insort(self._images, _Waiting(stamp_ns, item), key=_stamp)
        return self._pairs()

    def add_depth(self, stamp_ns: int, item: DepthItem) -> list[tuple[int, ImageItem, DepthItem | None]]:
        """Take a depth in; the pairs that are now complete, in the order of their images."""
        if not self.wait_depth:
            return []
        self._begin_anew_on_jump(stamp_ns, self._newest_depth)
        self._newest_depth = _later(self._newest_depth, stamp_ns)
        insort(self._depths, _Waiting(stamp_ns, item), key=_stamp)
        return self._pairs()

    def flush(self) -> list[tuple[int, ImageItem, DepthItem | None]]:
        """The streams have ended: decide with what is there, and give up the rest."""
        pairs = self._pairs(ended=True)
        self.clear()
        return pairs

    def clear(self) -> None:
        """Give up all that wait; the next stamps may be any."""
        self.unpaired_images += len(self._images)
        self.unpaired_depths += len(self._depths)
        self._images.clear()
        self._depths.clear()
        self._newest_image = self._newest_depth = None

    def _begin_anew_on_jump(self, stamp_ns: int, newest: int | None) -> None:
        if newest is not None and stamp_ns < newest - JUMP_NS:
            self.clear()

    def _pairs(self, ended: bool = False) -> list[tuple[int, ImageItem, DepthItem | None]]:
        pairs: list[tuple[int, ImageItem, DepthItem | None]] = []
        while self._images:
            depth = self._nearest_free_depth(self._images[0].stamp_ns)
            if depth is None:
                if not (ended or self._is_past_hope(self._images[0].stamp_ns)):
                    break
                self._give_up_image()
            elif ended or self._is_final(self._images[0].stamp_ns, depth.stamp_ns):
                image = self._images.pop(0)
                self._depths.remove(depth)
                pairs.append((image.stamp_ns, image.value, depth.value))
            else:
                break
        self._drop_old_depths()
        return pairs

    def _nearest_free_depth(self, stamp: int) -> _Waiting[DepthItem] | None:
        """The nearest depth within tolerance that no later image is nearer to; of two, the earlier."""
        near = [d for d in self._depths if abs(d.stamp_ns - stamp) <= self.tolerance_ns and self._is_free(d, stamp)]
        return min(near, key=lambda d: abs(d.stamp_ns - stamp), default=None)

    def _is_free(self, depth: _Waiting[DepthItem], stamp: int) -> bool:
        gap = abs(depth.stamp_ns - stamp)
        return not any(abs(depth.stamp_ns - image.stamp_ns) < gap for image in self._images)

    def _is_final(self, image: int, depth: int) -> bool:
        """Nothing still to come can be nearer: neither a depth to this image nor an image to this depth."""
        gap = abs(depth - image)
        if gap == 0:
            return True
        newest_image, newest_depth = self._newest_image, self._newest_depth
        assert newest_image is not None and newest_depth is not None
        return newest_depth >= image + gap and newest_image >= depth + gap

    def _is_past_hope(self, image: int) -> bool:
        """No depth still to come can be within tolerance; or too many images wait."""
        if len(self._images) > QUEUE_SIZE:
            return True
        return self._newest_depth is not None and self._newest_depth > image + self.tolerance_ns

    def _give_up_image(self) -> None:
        image = self._images.pop(0)
        self.unpaired_images += 1
        gaps = [d.stamp_ns - image.stamp_ns for d in self._depths]
        self.last_miss_ns = min(gaps, key=abs, default=None)

    def _drop_old_depths(self) -> None:
        """Depths too old for any image that waits or will come, and those beyond the bound of the queue."""
        oldest = self._images[0].stamp_ns if self._images else self._newest_image
        horizon = None if oldest is None else oldest - self.tolerance_ns
        while self._depths and (
            len(self._depths) > QUEUE_SIZE or (horizon is not None and self._depths[0].stamp_ns < horizon)
        ):
            self._depths.pop(0)
            self.unpaired_depths += 1


def _later(a: int | None, b: int) -> int:
    return b if a is None else max(a, b)
