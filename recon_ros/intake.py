# SPDX-License-Identifier: Apache-2.0
"""From camera messages to frames: what the live node and the offline runner have in common.

Taking a message in is cheap (`on_image`, `on_depth`, `on_mask`, `on_camera_info`); decoding happens in `frame`,
wherever the caller likes (a worker thread). Each message is judged by itself: one that is refused changes nothing for
the next.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon_ros.config import InputConfig
from recon_ros.errors import InputError
from recon_ros.frame import Frame
from recon_ros.geometry.camera import Camera
from recon_ros.messages import (
    camera_from_message,
    depth_from_message,
    image_from_message,
    labels_from_message,
    stamp_ns,
)
from recon_ros.pairing import JUMP_NS, Pairer

LEAP_NS = 60_000_000_000
"""A single stamp further ahead than this is not believed until the next one agrees."""


@dataclass(frozen=True, eq=False)
class Pair:
    """An image message and the depth and mask messages that go with it, not decoded yet."""

    stamp_ns: int
    image: Any
    depth: Any | None = None
    mask: Any | None = None


class Intake:
    """Pairs, checks, decodes and counts what comes from the camera. Safe to use from two threads.

    Args:
        config: of which the depth scale is used here, and `mask`: images wait for their mask as well.
        use_depth: images wait for their depth; without one they are given up.
        tolerance_ns: largest stamp difference of an image and its depth, or its mask.
        require_camera: a frame without calibration is refused. When False, frames before the first
            camera_info, and of a driver that publishes a zero K, have ``camera=None``.
    """

    def __init__(self, config: InputConfig, use_depth: bool, tolerance_ns: int, require_camera: bool = True) -> None:
        self.config = config
        self.require_camera = require_camera
        self._pairer: Pairer[Any, Any] = Pairer(tolerance_ns, wait_depth=use_depth)
        # What has its depth waits for its mask, which is made from the image and comes last.
        self._masker: Pairer[Any, Any] = Pairer(tolerance_ns, wait_depth=config.mask)
        self._camera: Camera | None = None
        self._camera_error: InputError | None = None
        self._last_stamp: int | None = None
        self._suspect_stamp: int | None = None
        self._unpaired_noted = {"depth": 0, "mask": 0}
        self._counts: Counter[str] = Counter()
        self._warnings: dict[str, str] = {}
        self._lock = threading.RLock()

    @property
    def camera(self) -> Camera | None:
        """The calibration received last, or None."""
        return self._camera

    @property
    def counters(self) -> dict[str, int]:
        """What happened so far: ``received_images``, ``received_depths``, ``unpaired_images``,
        ``unpaired_depths``, ``camera_info_changed``, ``frames``, and ``skipped_<reason>`` for each reason
        that occurred; where images wait for masks, also ``received_masks`` and ``unpaired_masks``.
        """
        with self._lock:
            fixed = dict.fromkeys(("received_images", "received_depths", "camera_info_changed", "frames"), 0)
            return {
                **fixed,
                "unpaired_images": self._pairer.unpaired_images + self._masker.unpaired_images,
                "unpaired_depths": self._pairer.unpaired_depths,
                **({"received_masks": 0, "unpaired_masks": self._masker.unpaired_depths} if self.config.mask else {}),
                **self._counts,
            }

    def warnings(self) -> dict[str, str]:
        """The newest message for each reason since the last call: for a log that is throttled by reason."""
        with self._lock:
            warnings, self._warnings = self._warnings, {}
            return warnings

    def skip(self, error: InputError) -> None:
        """Count an unusable frame by its reason; for errors that are raised beyond the intake."""
        with self._lock:
            self._counts[f"skipped_{error.reason}"] += 1
            self._warnings[error.reason] = str(error)

    def reset(self) -> None:
        """The streams begin anew: any stamp may come next. Calibration and counters stay."""
        with self._lock:
            self._pairer.clear()
            self._masker.clear()
            self._last_stamp = self._suspect_stamp = None

    def on_camera_info(self, msg: Any) -> None:
        """Take a CameraInfo in. An unusable one is counted, and the calibration known before stays."""
        with self._lock:
            try:
                camera = camera_from_message(msg)
            except InputError as error:
                self._camera_error = error
                if self._camera is not None or not self.require_camera:
                    self.skip(error)  # otherwise each frame says so
                return
            if self._camera is not None and not camera.same_as(self._camera):
                self._counts["camera_info_changed"] += 1
                self._warnings["camera_info_changed"] = (
                    f"camera_info changed from {_brief(self._camera)} to {_brief(camera)}, which is used now"
                )
            self._camera, self._camera_error = camera, None

    def on_image(self, msg: Any) -> list[Pair]:
        """Take an Image or CompressedImage in; the pairs that are complete now. Refuses nothing."""
        stamp = stamp_ns(msg.header.stamp)
        with self._lock:
            self._counts["received_images"] += 1
            if stamp <= 0 or self._is_late(stamp):  # its depth is gone; frame() refuses it by name
                return [Pair(stamp, msg)]
            return self._with_masks(self._pairer.add_image(stamp, msg))

    def on_depth(self, msg: Any) -> list[Pair]:
        """Take a depth message in; the pairs that are complete now. Refuses nothing."""
        stamp = stamp_ns(msg.header.stamp)
        with self._lock:
            self._counts["received_depths"] += 1
            if stamp <= 0:
                self.skip(InputError("depth_stamp_zero", "depth has stamp 0, so no image can be found for it"))
                return []
            return self._with_masks(self._pairer.add_depth(stamp, msg))

    def on_mask(self, msg: Any) -> list[Pair]:
        """Take a mask in; the pairs that are complete now. Refuses nothing."""
        stamp = stamp_ns(msg.header.stamp)
        with self._lock:
            self._counts["received_masks"] += 1
            if stamp <= 0:
                self.skip(InputError("mask_stamp_zero", "mask has stamp 0, so no image can be found for it"))
                return []
            return self._pairs(self._masker.add_depth(stamp, msg))

    def flush(self) -> list[Pair]:
        """The recording has ended: the pairs that waited for something still nearer."""
        with self._lock:
            pairs = self._with_masks(self._pairer.flush())
            return pairs + self._pairs(self._masker.flush())

    def frame(self, pair: Pair) -> Frame:
        """Decode a pair.

        Raises:
            InputError: when the pair is unusable; it has been counted already. Reasons: ``stamp_zero``,
                ``stamp_order`` (not after the frame before), ``stamp_jump`` (more than a second before it:
                the stream was started anew, `reset` is due), ``stamp_leap`` (a lone stamp far ahead),
                ``no_camera_info``, ``camera`` (zero K), ``camera_size``, ``encoding``, ``image``, ``depth``,
                ``depth_size``, ``depth_empty``, ``mask``, ``mask_size``, ``mask_full`` (nothing is left).
        """
        try:
            self._check_stamp(pair.stamp_ns)
            image = image_from_message(pair.image)
            frame = Frame(
                stamp_ns=pair.stamp_ns,
                image=image,
                camera=self._camera_of(image),
                depth=None if pair.depth is None else self._depth_of(pair.depth, image),
                frame_id=str(pair.image.header.frame_id) or "camera",
                mask=None if pair.mask is None else _mask_of(pair.mask, image),
            )
        except InputError as error:
            self.skip(error)
            raise
        with self._lock:
            self._last_stamp, self._suspect_stamp = pair.stamp_ns, None
            self._counts["frames"] += 1
        return frame

    def _is_late(self, stamp: int) -> bool:
        """Whether a stamp is not after the last frame's, but not so far back that the stream began anew."""
        return self._last_stamp is not None and self._last_stamp - JUMP_NS <= stamp <= self._last_stamp

    def _check_stamp(self, stamp: int) -> None:
        if stamp <= 0:
            raise InputError("stamp_zero", f"image has stamp {stamp}; let the driver fill in header.stamp")
        with self._lock:
            last = self._last_stamp
            if last is None:
                return
            if stamp < last - JUMP_NS:
                raise InputError(
                    "stamp_jump",
                    f"time jumped back: image stamp {stamp} is {(last - stamp) / 1e9:.3f} s before the "
                    "previous frame's",
                )
            if stamp <= last:
                raise InputError("stamp_order", f"image stamp {stamp} is not after the previous frame's {last}")
            if stamp > last + LEAP_NS:
                suspect, self._suspect_stamp = self._suspect_stamp, stamp
                if suspect is None or not suspect < stamp <= suspect + LEAP_NS:
                    raise InputError(
                        "stamp_leap",
                        f"image stamp {stamp} is {(stamp - last) / 1e9:.3f} s after the previous frame's; it "
                        "is not believed until the next one agrees",
                    )

    def _camera_of(self, image: NDArray[np.uint8]) -> Camera | None:
        with self._lock:
            camera, error = self._camera, self._camera_error
        if camera is None:
            if not self.require_camera:
                return None
            if error is not None:
                raise InputError(error.reason, str(error))
            raise InputError("no_camera_info", "no camera_info has arrived, so the calibration is not known")
        height, width = image.shape[:2]
        if (camera.width, camera.height) != (width, height):
            raise InputError(
                "camera_size",
                f"camera_info is for {camera.width}x{camera.height} pixels, the image has {width}x{height}: "
                "they must be of one stream",
            )
        return camera

    def _depth_of(self, msg: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        depth = depth_from_message(msg, self.config.depth_scale)
        if depth.shape != image.shape[:2]:
            raise InputError(
                "depth_size",
                f"depth is {depth.shape[1]}x{depth.shape[0]}, the image {image.shape[1]}x{image.shape[0]}: "
                "depth must be registered to the image (for RealSense, use aligned_depth_to_color)",
            )
        if np.isnan(depth).all():
            raise InputError("depth_empty", "depth has no valid pixel: all are 0, NaN or infinite")
        return depth

    def _with_masks(self, pairs: list[tuple[int, Any, Any]]) -> list[Pair]:
        """Images that have their depth: what is complete now that they wait for their masks."""
        self._note_unpaired("depth", self._pairer)
        return self._pairs([done for stamp, *both in pairs for done in self._masker.add_image(stamp, both)])

    def _pairs(self, masked: list[tuple[int, Any, Any]]) -> list[Pair]:
        self._note_unpaired("mask", self._masker)
        return [Pair(stamp, image, depth, mask) for stamp, (image, depth), mask in masked]

    def _note_unpaired(self, wanted: str, pairer: Pairer[Any, Any]) -> None:
        if pairer.unpaired_images <= self._unpaired_noted[wanted]:
            return
        self._unpaired_noted[wanted] = pairer.unpaired_images
        miss = pairer.last_miss_ns
        nearest = "there was none at all" if miss is None else f"the nearest that waited is {miss / 1e6:+.3f} ms away"
        self._warnings["unpaired_image"] = (
            f"an image found no {wanted} within {pairer.tolerance_ns / 1e6:g} ms: {nearest}"
        )


def _mask_of(msg: Any, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W) bool, True where the mask is not 0."""
    height, width = image.shape[:2]
    mask: NDArray[np.bool_] = labels_from_message(msg, width, height) > 0
    if mask.all():
        raise InputError(
            "mask_full", "the mask excludes every pixel: is it the wrong way round? What is not 0 is left out"
        )
    return mask


def _brief(camera: Camera) -> str:
    return f"{camera.width}x{camera.height} fx={camera.fx:g} fy={camera.fy:g} cx={camera.cx:g} cy={camera.cy:g}"
