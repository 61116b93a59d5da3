# SPDX-License-Identifier: Apache-2.0
"""Named QoS profiles, after nav2's. Every topic names one of these; SystemDefaultsQoS is never used.

Each call makes a new object, because applying ``qos_overrides`` parameters changes the profile it is given.
"""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

# Pairs of image and depth that the middleware holds for us while the executor is busy. Of a best-effort
# stream nothing is sent twice, so with a depth of 1 a single late callback (a service call, the garbage
# collector, a burst of image and depth together) loses a frame and no counter knows. Ten frames are 0.3 s at
# 30 Hz; the executor only stores what it takes, so it empties the queue at once and the worker's mailbox,
# which does count, decides what is dropped.
SENSOR_DEPTH = 10

# With queue:=all the player runs ahead of us; this many frames may wait in the middleware.
REPLAY_DEPTH = 100


def _profile(
    depth: int,
    reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE,
    durability: DurabilityPolicy = DurabilityPolicy.VOLATILE,
) -> QoSProfile:
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability, durability=durability)


def make(name: str) -> QoSProfile:
    """A new profile by name, one of `NAMES`.

    - ``standard``: reliable, volatile, the last 10; small messages.
    - ``large``: reliable, volatile, the last 2; images and clouds. Reliable, since it is rviz's default and one
      lost fragment of a best-effort cloud loses all of it.
    - ``latched``: reliable, transient local, the last 1; late subscribers receive it, if theirs is transient
      local too.
    - ``sensor``: best effort, volatile, the last 10; accepts every publisher.
    - ``replay``: best effort, volatile, the last 100; see `REPLAY_DEPTH`.
    - ``tf``, ``tf_static``: as tf2_ros has them.
    """
    if name == "standard":
        return _profile(10)
    if name == "large":
        return _profile(2)
    if name in ("latched", "tf_static"):
        return _profile(1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    if name == "sensor":
        return _profile(SENSOR_DEPTH, ReliabilityPolicy.BEST_EFFORT)
    if name == "replay":
        return _profile(REPLAY_DEPTH, ReliabilityPolicy.BEST_EFFORT)
    if name == "tf":
        return _profile(100)
    raise KeyError(f"no QoS profile '{name}'; known: {', '.join(NAMES)}")


NAMES = ("standard", "large", "latched", "sensor", "replay", "tf", "tf_static")


def describe(name: str) -> str:
    """A profile in words, for tables: ``reliable, transient local, 1``."""
    profile = make(name)
    parts = ["reliable" if profile.reliability == ReliabilityPolicy.RELIABLE else "best effort"]
    if profile.durability == DurabilityPolicy.TRANSIENT_LOCAL:
        parts.append("transient local")
    return ", ".join([*parts, str(profile.depth)])
