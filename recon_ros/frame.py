# SPDX-License-Identifier: Apache-2.0
"""What travels through the house: Frame in, Prediction and Keyframe inside, Update out. All frozen but Keyframe."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recon_ros.errors import InputError
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera

if TYPE_CHECKING:
    from recon_ros.geometry.features import Features

__all__ = ["Camera", "Cloud", "Frame", "Keyframe", "Prediction", "State", "Trajectory", "Update"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of the stream with what is known beside it.

    Attributes:
        stamp_ns: acquisition time, integer nanoseconds, exactly that of the message.
        image: (H, W, 3) uint8 RGB.
        camera: calibration of this very image size, or None when unknown.
        depth: (H, W) float32 metres along z, registered to the image, NaN where invalid; or None.
        frame_id: name of the optical frame (z forward).
        T_odom_camera: (4, 4) pose prior from odometry at this stamp, or None. Only its increments are used.
        mask: (H, W) bool, True where the image shows what must stay out of tracking and map (people, other robots, a
            gripper); or None.
        gravity: (3,) unit vector down in the camera frame, or None where nobody knows.

    Raises:
        InputError: ``image``, ``depth``, ``mask``, ``camera``, ``odometry`` or ``gravity`` when an array has the wrong
            shape or dtype, or is no pose or unit vector.
    """

    stamp_ns: int
    image: NDArray[np.uint8]
    camera: Camera | None = None
    depth: NDArray[np.float32] | None = None
    frame_id: str = "camera"
    T_odom_camera: NDArray[np.float64] | None = None
    mask: NDArray[np.bool_] | None = None
    gravity: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8 or self.image.size == 0:
            raise InputError(
                "image", f"image is {self.image.dtype} of shape {self.image.shape}, expected uint8 (H, W, 3)"
            )
        size = self.image.shape[:2]
        if self.depth is not None and (self.depth.shape != size or self.depth.dtype != np.float32):
            raise InputError(
                "depth",
                f"depth is {self.depth.dtype} of shape {self.depth.shape}, expected float32 {size}: it must be "
                "registered to the image (for RealSense, use aligned_depth_to_color)",
            )
        if self.mask is not None and (self.mask.shape != size or self.mask.dtype != np.bool_):
            raise InputError("mask", f"mask is {self.mask.dtype} of shape {self.mask.shape}, expected bool {size}")
        if self.camera is not None and (self.camera.height, self.camera.width) != size:
            raise InputError(
                "camera",
                f"camera_info is {self.camera.width}x{self.camera.height}, the image {size[1]}x{size[0]}: they must "
                "be of one stream",
            )
        if self.T_odom_camera is not None and not se3.is_valid(self.T_odom_camera):
            raise InputError(
                "odometry", f"T_odom_camera is not a rigid (4, 4) pose: {np.asarray(self.T_odom_camera)!r}"
            )
        if self.gravity is not None and not (
            np.shape(self.gravity) == (3,) and abs(float(np.linalg.norm(self.gravity)) - 1) < 1e-3
        ):
            raise InputError("gravity", f"gravity is no unit vector of three numbers: {np.asarray(self.gravity)!r}")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one step of a network, or of the depth source, says of one frame, at the source's resolution.

    Attributes:
        points_self: (H, W, 3) float32 points in the current camera frame; NaN where there is none.
        confidence: (H, W) float32, 0 where there is no point; its range is the model card's (``[0, 1]`` or
            ``[1, ∞)``).
        T_memory_camera: (4, 4) pose in the frame of the source's memory, or None when the source gives none.
        points_memory: (H, W, 3) float32 the same points in the memory's frame, or None.
        descriptor: (D,) float32 place descriptor, or None.
        is_metric: True when the points are in metres.
    """

    points_self: NDArray[np.float32]
    confidence: NDArray[np.float32]
    T_memory_camera: NDArray[np.float64] | None = None
    points_memory: NDArray[np.float32] | None = None
    descriptor: NDArray[np.float32] | None = None
    is_metric: bool = False

    @property
    def depth(self) -> NDArray[np.float32]:
        """(H, W) float32, z of the points; NaN where there is none."""
        return self.points_self[..., 2]


@dataclass(eq=False)
class Keyframe:
    """A remembered frame. Its points are *local*, so that moving the keyframe moves what it saw.

    Attributes:
        id: position in the order of creation, never re-used.
        stamp_ns, frame_id: of its image.
        camera: calibration of the stored (strided) pointmap.
        T_world_camera: (4, 4) Sim(3) pose; the only thing of a keyframe that ever changes.
        points: (h, w, 3) float16 pointmap in the camera frame, metres if `is_metric`; NaN where there is none.
        confidence: (h, w) float16.
        colour: (h, w, 3) uint8 RGB.
        features: keypoints with local 3D points and descriptors, for tracking and relocalisation.
        is_metric: True when `points` are in metres.
    """

    id: int
    stamp_ns: int
    frame_id: str
    camera: Camera
    T_world_camera: NDArray[np.float64]
    points: NDArray[np.float16]
    confidence: NDArray[np.float16]
    colour: NDArray[np.uint8]
    features: Features
    is_metric: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of memory its arrays take."""
        arrays = (self.points, self.confidence, self.colour)
        return sum(a.nbytes for a in arrays) + self.features.nbytes


class State(str, Enum):
    """Where the tracker stands; the value is what `~/status` says."""

    INITIALIZING = "INITIALIZING"
    TRACKING = "TRACKING"
    LOST = "LOST"
    RELOCALIZING = "RELOCALIZING"
    PAUSED = "PAUSED"


@dataclass(frozen=True, eq=False)
class Update:
    """What one processed frame changed; everything a publisher or a writer needs, and nothing that changes later.

    Attributes:
        stamp_ns, frame_id: of the frame, exactly.
        state: after this frame.
        T_world_camera: (4, 4) pose, or None unless TRACKING.
        image: (H, W, 3) uint8 RGB at the processing resolution.
        camera: undistorted calibration at that resolution.
        prediction: points and confidence at that resolution.
        keyframe_id: id of the keyframe this frame became, or None.
        reference_id: keyframe the pose is measured against, or None; with `T_reference_camera` it lets the pose
            of a past frame follow that keyframe when a correction moves it.
        T_reference_camera: (4, 4) pose in that keyframe's camera frame, or None.
        inliers: correspondences that support the pose.
        confidence: [0, 1], share of the correspondences looked for that support the pose.
        covariance: (6, 6) of the pose (x, y, z, rx, ry, rz) in the camera frame, or None.
        is_metric: True when lengths are metres.
        timings_ms: stage name → milliseconds of wall time.
    """

    stamp_ns: int
    frame_id: str
    state: State
    T_world_camera: NDArray[np.float64] | None
    image: NDArray[np.uint8]
    camera: Camera
    prediction: Prediction
    keyframe_id: int | None = None
    reference_id: int | None = None
    T_reference_camera: NDArray[np.float64] | None = None
    inliers: int = 0
    confidence: float = 0.0
    covariance: NDArray[np.float64] | None = None
    is_metric: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Stamped camera poses, in the order of time.

    Attributes:
        stamps_ns: (N,) int64 nanoseconds.
        poses: (N, 4, 4) float64 T_world_camera.

    Raises:
        ValueError: when the shapes do not fit together; lists and other dtypes are converted.
    """

    stamps_ns: NDArray[np.int64]
    poses: NDArray[np.float64]

    def __post_init__(self) -> None:
        stamps_ns = np.asarray(self.stamps_ns)
        if stamps_ns.size and not np.issubdtype(stamps_ns.dtype, np.integer):
            raise ValueError(f"stamps_ns are {stamps_ns.dtype}; a float cannot hold nanoseconds, pass integers")
        poses = np.asarray(self.poses, dtype=np.float64)
        if poses.size == 0:
            poses = poses.reshape(0, 4, 4)
        if stamps_ns.ndim != 1 or poses.shape != (len(stamps_ns), 4, 4):
            raise ValueError(f"stamps_ns {stamps_ns.shape} and poses {poses.shape} are not (N,) and (N, 4, 4)")
        object.__setattr__(self, "stamps_ns", stamps_ns.astype(np.int64))
        object.__setattr__(self, "poses", poses)

    def __len__(self) -> int:
        return len(self.stamps_ns)

    @property
    def positions(self) -> NDArray[np.float64]:
        """(N, 3) camera centres in the world."""
        return self.poses[:, :3, 3]


@dataclass(frozen=True, eq=False)
class Cloud:
    """Coloured points of the world.

    Attributes:
        points: (N, 3) float32 metres (or the map's unit, where it is not metric).
        colours: (N, 3) uint8 RGB.
        confidence: (N,) float32.
        normals: (N, 3) float32 unit vectors towards where the surface was seen from, zero where there is none known;
            or None.

    Raises:
        ValueError: when the shapes do not fit together; other dtypes are converted, but colours must be uint8.
    """

    points: NDArray[np.float32]
    colours: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    normals: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        points = np.asarray(self.points, dtype=np.float32)
        colours, confidence = np.asarray(self.colours), np.asarray(self.confidence, dtype=np.float32)
        n = len(points)
        if points.shape != (n, 3) or colours.shape != (n, 3) or confidence.shape != (n,):
            raise ValueError(
                f"points {points.shape}, colours {colours.shape} and confidence {confidence.shape} are not (N, 3), "
                "(N, 3) and (N,)"
            )
        if colours.dtype != np.uint8:
            raise ValueError(f"colours are {colours.dtype}, expected uint8 RGB")
        if self.normals is not None:
            normals = np.asarray(self.normals, dtype=np.float32)
            if normals.shape != (n, 3):
                raise ValueError(f"normals {normals.shape} are not (N, 3) as the points {points.shape} are")
            object.__setattr__(self, "normals", normals)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "colours", colours)
        object.__setattr__(self, "confidence", confidence)

    def __len__(self) -> int:
        return len(self.points)
