# SPDX-License-Identifier: Apache-2.0
"""A synthetic RGB-D recording with exact truth: a robot drives laps through a small warehouse."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from recon_ros.datasets.warehouse import driven_rectangle, warehouse
from recon_ros.errors import DatasetError
from recon_ros.frame import Frame, Trajectory
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera

START_NS = 1_700_000_000_000_000_000
FRAME_ID = "camera_color_optical_frame"
CAMERA_HEIGHT = 1.2
PITCH_DOWN = 0.09
CORNER_RADIUS = 2.0
GLANCE = 0.22  # the camera looks left and right by this much, twice a lap
START_OFFSET = 2.5  # of the first frame behind the loop's first corner, metres along the way


class AisleLoop:
    """The driven way: a closed smooth curve and the pose of the camera along it."""

    def __init__(self, stretch: int = 0) -> None:
        outline = _rounded_rectangle(*driven_rectangle(stretch), CORNER_RADIUS)
        # Smoothing makes the turning rate continuous, as that of a vehicle with a mass is.
        smooth = gaussian_filter1d(outline, 12, axis=0, mode="wrap")
        closed = np.vstack([smooth, smooth[:1]])
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
        self.length = float(arc[-1])
        self._curve = CubicSpline(arc, closed, bc_type="periodic")

    def pose(self, distance: float, roll: float = 0.0, pitch: float = 0.0) -> NDArray[np.float64]:
        """(4, 4) T_world_camera after `distance` metres; roll and pitch, radians, disturb the level drive."""
        arc = (distance + START_OFFSET) % self.length
        x, y = self._curve(arc)
        dx, dy = self._curve(arc, 1)
        yaw = np.arctan2(dy, dx) + GLANCE * np.sin(4 * np.pi * arc / self.length)
        tilt = PITCH_DOWN + pitch
        forward = np.array([np.cos(yaw) * np.cos(tilt), np.sin(yaw) * np.cos(tilt), -np.sin(tilt)])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        level = se3.make(np.stack([right, np.cross(forward, right), forward], axis=1), np.array([x, y, CAMERA_HEIGHT]))
        return level @ se3.exp(np.array([0.0, 0.0, 0.0, 0.0, 0.0, roll])) if roll else level


class SyntheticWarehouse:
    """RGB-D frames of a drive through the warehouse; any number of frames, lap after lap.

    Iterating renders frame by frame, `dataset[i]` one. Equal arguments give equal frames, in any order.

    Args:
        frames: number of frames; the default is a bit more than a lap, so that the start is seen again.
        width, height: image size in pixels.
        fov: horizontal field of view in radians.
        rate_hz: frames per second; the stamps are 1.7e18 ns + i · round(1e9 / rate_hz).
        speed: metres per second.
        max_range: depth beyond it, along z in metres, is NaN.
        noise: give depth the errors of a stereo sensor (see `sensor_depth`) and the image some grain;
            otherwise the depth is exact.
        shake: amplitude in radians of a smooth roll and pitch disturbance.
        seed: of the scene, the noise and the disturbance.
        stretch: bays of 2.7 m by which the hall is longer; each makes a lap 5.4 m longer.

    Raises:
        DatasetError: for fewer than one frame, or a size, rate or range that is not positive.
    """

    def __init__(
        self,
        frames: int = 300,
        width: int = 480,
        height: int = 360,
        *,
        fov: float = 1.29,
        rate_hz: float = 10.0,
        speed: float = 1.2,
        max_range: float = 8.0,
        noise: bool = False,
        shake: float = 0.0,
        seed: int = 0,
        stretch: int = 0,
    ) -> None:
        for name, value in (
            ("frames", frames),
            ("width", width),
            ("height", height),
            ("rate_hz", rate_hz),
            ("max_range", max_range),
        ):
            if not value > 0:
                raise DatasetError(f"{name} of the synthetic warehouse is {value}; it must be positive")
        if not 0 < fov < np.pi:
            raise DatasetError(f"fov of the synthetic warehouse is {fov}; it must be between 0 and π radians")
        self.frames = frames
        self.camera = Camera.from_focal(width, height, width / 2 / float(np.tan(fov / 2)))
        self.speed, self.max_range, self.noise, self.shake, self.seed = speed, max_range, noise, shake, seed
        self._period_ns = round(1e9 / rate_hz)
        self.stretch = stretch
        self._loop = AisleLoop(stretch)

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[Frame]:
        return (self[i] for i in range(self.frames))

    def __getitem__(self, index: int) -> Frame:
        """Frame `index`; raises IndexError outside the recording."""
        if not 0 <= index < self.frames:
            raise IndexError(f"frame {index} of {self.frames}")
        image, depth = warehouse(self.seed, self.stretch).render(self.pose(index), self.camera)
        depth[depth > self.max_range] = np.nan
        if self.noise:
            rng = np.random.default_rng((self.seed, index))
            depth = sensor_depth(depth, rng)
            grain = rng.normal(0.0, 1.8, image.shape[:2]).astype(np.float32)
            image = cv2.add(image, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
        return Frame(self.stamp_ns(index), image, self.camera, depth, FRAME_ID)

    @property
    def lap_length(self) -> float:
        """Metres of one lap."""
        return self._loop.length

    def stamp_ns(self, index: int) -> int:
        """Stamp of a frame, nanoseconds."""
        return START_NS + index * self._period_ns

    def pose(self, index: int) -> NDArray[np.float64]:
        """(4, 4) float64 true T_world_camera of a frame."""
        seconds = index * self._period_ns * 1e-9
        roll, pitch = self.shake * self._disturbance(seconds) if self.shake else (0.0, 0.0)
        return self._loop.pose(self.speed * seconds, roll, pitch)

    def ground_truth(self) -> Trajectory:
        """The true pose of every frame."""
        stamps = np.array([self.stamp_ns(i) for i in range(self.frames)], dtype=np.int64)
        return Trajectory(stamps, np.stack([self.pose(i) for i in range(self.frames)]))

    @cached_property
    def _waves(self) -> NDArray[np.float64]:
        """(2, 4, 2) frequency in rad/s and phase of the waves that make up roll and pitch."""
        rng = np.random.default_rng((self.seed, 1))
        return np.stack([rng.uniform(1.0, 9.0, (2, 4)), rng.uniform(0, 2 * np.pi, (2, 4))], axis=-1)

    def _disturbance(self, seconds: float) -> NDArray[np.float64]:
        """(roll, pitch) between -1 and 1."""
        waves: NDArray[np.float64] = np.sin(self._waves[..., 0] * seconds + self._waves[..., 1]).mean(axis=1)
        return waves


def sensor_depth(depth: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """What a stereo camera would make of exact depth.

    Noise of standard deviation 0.0015 z² (a disparity error of constant size), holes along depth steps, and
    millimetres as the unit.

    Args:
        depth: (H, W) float32 metres, NaN invalid.

    Returns:
        (H, W) float32 metres, NaN invalid; the argument stays as it is.
    """
    noisy = depth + rng.standard_normal(depth.shape, dtype=np.float32) * (0.0015 * depth**2)
    known = np.nan_to_num(depth, nan=1e3)
    kernel = np.ones((3, 3), np.uint8)
    step = cv2.dilate(known, kernel) - cv2.erode(known, kernel) > 0.06 * known
    noisy[step & (rng.random(depth.shape, dtype=np.float32) < 0.7)] = np.nan
    return (np.round(noisy * 1000.0) / 1000.0).astype(np.float32)


def _rounded_rectangle(x0: float, y0: float, x1: float, y1: float, radius: float) -> NDArray[np.float64]:
    """(N, 2) points about 5 cm apart, counter-clockwise from the lower left."""
    corners = ((x1, y0, -np.pi / 2), (x1, y1, 0.0), (x0, y1, np.pi / 2), (x0, y0, np.pi))
    vertices = []
    for x, y, angle in corners:
        centre = np.array([np.clip(x, x0 + radius, x1 - radius), np.clip(y, y0 + radius, y1 - radius)])
        turn = angle + np.linspace(0, np.pi / 2, 32)
        vertices.append(centre + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1))
    path = np.vstack(vertices)
    path = np.roll(path, 32, axis=0)
    closed = np.vstack([path, path[:1]])
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    even = np.linspace(0, arc[-1], round(arc[-1] / 0.05), endpoint=False)
    return np.stack([np.interp(even, arc, closed[:, k]) for k in range(2)], axis=1)
