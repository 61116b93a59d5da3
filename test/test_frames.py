# SPDX-License-Identifier: Apache-2.0
"""map, odom, base and camera: conventions, corrections, covariances, and TF without tf2_ros."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from geometry_msgs.msg import TransformStamped
from helpers import quick
from hypothesis import given
from hypothesis import strategies as st

from recon_ros.config import NodeConfig
from recon_ros.errors import ConfigError, InputError
from recon_ros.frame import Prediction, State, Update
from recon_ros.geometry import se3
from recon_ros.geometry.camera import Camera
from recon_ros.messages import stamp_ns
from recon_ros.ros import tf
from recon_ros.ros.conversions import matrix_from_transform, transform_message
from recon_ros.ros.frames import Frames, Poses, covariance_of_base
from recon_ros.ros.mount import T_BASE_OPTICAL, Mount, mount_from_text
from recon_ros.ros.pose_tracks import Track, Tree

SECOND = 1_000_000_000
CAMERA = Camera.from_focal(2, 2, 1.0)
twists = st.lists(st.floats(-2, 2), min_size=6, max_size=6).map(np.array)


class FakeTf(tf.NoTf):
    """Remembers what was sent, knows what it is given."""

    def __init__(self, tree: Tree | None = None) -> None:
        self.tree = tree or Tree()
        self.sent: list[TransformStamped] = []
        self.static: list[TransformStamped] = []

    def send(self, transforms: list[TransformStamped]) -> None:
        self.sent += transforms

    def send_static(self, transforms: list[TransformStamped]) -> None:
        self.static += transforms

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> se3.Matrix | None:
        return self.tree.lookup(target, source, stamp_ns)

    def root(self, frame: str) -> str:
        return self.tree.root(frame)


class FakeNode:
    """A clock and a log."""

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns
        self.warnings: list[str] = []

    def get_clock(self) -> Any:
        return types.SimpleNamespace(now=lambda: types.SimpleNamespace(nanoseconds=self.now_ns))

    def get_logger(self) -> Any:
        return types.SimpleNamespace(info=lambda text: None, warning=self.warnings.append)


def update(T_world_camera: se3.Matrix | None, stamp: int = SECOND, **known: Any) -> Update:
    prediction = Prediction(np.zeros((2, 2, 3), np.float32), np.ones((2, 2), np.float32))
    state = State.LOST if T_world_camera is None else State.TRACKING
    return Update(stamp, "c", state, T_world_camera, np.zeros((2, 2, 3), np.uint8), CAMERA, prediction, **known)


def frames(node: FakeNode | None = None, **config: Any) -> tuple[Frames, FakeTf]:
    port = FakeTf()
    return Frames(node or FakeNode(), NodeConfig(**config), port), port  # type: ignore[arg-type]


def nothing_moved(_: int) -> se3.Matrix | None:
    return np.eye(4)


# -- conventions ------------------------------------------------------------------------------------------------


@quick
@given(twists)
def test_the_first_base_pose_is_the_identity_whatever_the_mount(mount: np.ndarray) -> None:
    poses = frames()[0].place(update(np.eye(4)), se3.exp(mount), None, nothing_moved)
    assert poses is not None
    np.testing.assert_allclose(poses.T_map_base, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(poses.T_map_camera, se3.exp(mount), atol=1e-9)


@quick
@given(twists, twists)
def test_base_and_camera_agree_through_the_mount(mount: np.ndarray, motion: np.ndarray) -> None:
    poses = frames()[0].place(update(se3.exp(motion)), se3.exp(mount), None, nothing_moved)
    assert poses is not None
    np.testing.assert_allclose(poses.T_map_base @ se3.exp(mount), poses.T_map_camera, atol=1e-8)


def test_a_level_map_shows_how_the_base_stands() -> None:
    ramp = se3.exp(np.array([0, 0, 0, 0, -0.2, 0]))  # of the base, nose up
    T_map_world = T_BASE_OPTICAL  # the world is level, the camera in it as tilted as the base
    tilted = se3.inverse(T_BASE_OPTICAL) @ ramp @ T_BASE_OPTICAL
    poses = frames()[0].place(update(tilted), T_BASE_OPTICAL, None, nothing_moved, T_map_world)
    assert poses is not None
    np.testing.assert_allclose(poses.T_map_base, ramp, atol=1e-12)


def test_forward_of_the_camera_is_x_of_the_map() -> None:
    ahead = se3.make(np.eye(3), np.array([0, 0, 1.0]))
    poses = frames()[0].place(update(ahead), T_BASE_OPTICAL, None, nothing_moved)
    assert poses is not None
    np.testing.assert_allclose(poses.T_map_base[:3, 3], [1, 0, 0], atol=1e-12)


@quick
@given(twists, twists)
def test_with_odometry_map_odom_is_what_is_missing(motion: np.ndarray, odometry: np.ndarray) -> None:
    where, port = frames(odom_source="topic")
    poses = where.place(update(se3.exp(motion)), np.eye(4), se3.exp(odometry), nothing_moved)
    assert poses is not None
    np.testing.assert_allclose(where.T_map_odom @ se3.exp(odometry), poses.T_map_base, atol=1e-8)
    where.broadcast(SECOND, poses)
    assert [t.child_frame_id for t in port.sent] == ["odom"]


def test_a_correction_moves_map_odom_and_leaves_odom_base_continuous() -> None:
    where, _ = frames()
    keyframe = np.eye(4)
    T_reference_camera = se3.make(np.eye(3), np.array([0, 0, 1.0]))
    hung = {"reference_id": 7, "T_reference_camera": T_reference_camera}
    first = where.place(update(T_reference_camera, **hung), T_BASE_OPTICAL, None, lambda i: keyframe)
    np.testing.assert_array_equal(where.T_map_odom, np.eye(4))
    moved = se3.exp(np.array([0.5, 0.1, -0.2, 0.0, 0.3, 0.0]))
    second = where.place(update(moved @ T_reference_camera, **hung), T_BASE_OPTICAL, None, lambda i: moved @ keyframe)
    assert first is not None and second is not None
    assert first.T_odom_base is not None and second.T_odom_base is not None
    np.testing.assert_allclose(second.T_odom_base, first.T_odom_base, atol=1e-9)
    np.testing.assert_allclose(where.T_map_odom @ second.T_odom_base, second.T_map_base, atol=1e-9)
    assert se3.distance(where.T_map_odom)[1] == pytest.approx(0.3)
    third = where.place(update(moved @ T_reference_camera, **hung), T_BASE_OPTICAL, None, lambda i: moved @ keyframe)
    assert third is not None and third.T_odom_base is not None
    np.testing.assert_allclose(third.T_odom_base, second.T_odom_base, atol=1e-9)


def test_lost_stops_odom_base_and_keeps_map_odom() -> None:
    where, port = frames(FakeNode(SECOND))
    where.broadcast(SECOND, where.place(update(np.eye(4)), np.eye(4), None, nothing_moved))
    assert [t.child_frame_id for t in port.sent] == ["base_link", "odom"]
    port.sent.clear()
    where._node.now_ns += SECOND  # type: ignore[attr-defined]
    where.broadcast(2 * SECOND, where.place(update(None), np.eye(4), None, nothing_moved))
    assert [t.child_frame_id for t in port.sent] == ["odom"]


def test_map_odom_is_dated_ahead_of_now_or_of_an_old_recording() -> None:
    old, now = 5 * SECOND, 1_700_000_000 * SECOND
    for clock, expected in ((old + SECOND // 2, old + SECOND // 2), (now, old)):
        where, port = frames(FakeNode(clock), transform_tolerance=0.25)
        where.broadcast(old, where.place(update(np.eye(4), old), np.eye(4), None, nothing_moved))
        base, odom = port.sent
        assert stamp_ns(base.header.stamp) == old
        assert stamp_ns(odom.header.stamp) == expected + SECOND // 4
        where.keep_alive()
        assert len(port.sent) == 2, "a stamp is sent once only: tf2 complains of repeated data"


def test_publish_tf_false_sends_nothing() -> None:
    where, port = frames(publish_tf=False)
    where.broadcast(SECOND, where.place(update(np.eye(4)), np.eye(4), None, nothing_moved))
    where.keep_alive()
    assert port.sent == []


@quick
@given(twists, twists)
def test_covariance_is_that_of_moved_samples(mount: np.ndarray, pose: np.ndarray) -> None:
    T_base_camera, T_map_base = se3.exp(mount), se3.exp(pose)
    poses = Poses(T_map_base, T_map_base, T_map_base @ T_base_camera, T_base_camera)
    T_map_camera, step = poses.T_map_camera, 1e-6
    J = np.zeros((6, 6))
    for i in range(6):
        moved = T_map_camera @ se3.exp(step * np.eye(6)[i]) @ se3.inverse(T_base_camera)
        turn = moved[:3, :3] @ T_map_base[:3, :3].T
        J[:3, i] = (moved[:3, 3] - T_map_base[:3, 3]) / step
        J[3:, i] = se3.log(se3.make(turn, np.zeros(3)))[3:] / step
    expected = J @ np.diag([1.0, 2, 3, 4, 5, 6]) @ J.T
    found = covariance_of_base(np.diag([1.0, 2, 3, 4, 5, 6]), poses, T_map_base)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_rigid_takes_the_scale_away() -> None:
    T = se3.exp(np.array([1.0, 2, 3, 0.1, 0.2, 0.3]))
    scaled = se3.make(T[:3, :3], T[:3, 3], scale=2.5)
    np.testing.assert_allclose(se3.rigid(scaled), T, atol=1e-12)
    np.testing.assert_allclose(se3.rigid(np.stack([scaled, T])), np.stack([T, T]), atol=1e-12)


# -- the mount --------------------------------------------------------------------------------------------------


def test_base_to_camera_is_read() -> None:
    assert mount_from_text("  ") is None
    np.testing.assert_array_equal(mount_from_text("optical"), T_BASE_OPTICAL)
    T = mount_from_text("0.1 0 0.3 -0.5 0.5 -0.5 0.5")
    assert T is not None
    np.testing.assert_allclose(T[:3, :3], T_BASE_OPTICAL[:3, :3], atol=1e-12)
    np.testing.assert_allclose(T[:3, 3], [0.1, 0, 0.3])


@pytest.mark.parametrize("text", ["1 2 3", "a b c d e f g", "0 0 0 0 0 0 0", "nan 0 0 0 0 0 1", "front"])
def test_an_unusable_base_to_camera_is_refused_by_value(text: str) -> None:
    with pytest.raises(ConfigError, match="base_to_camera") as error:
        mount_from_text(text)
    assert text in str(error.value)


def mount(
    tree: Tree | None = None, parameter: se3.Matrix | None = None, **config: Any
) -> tuple[Mount, FakeTf, FakeNode]:
    port, node = FakeTf(tree), FakeNode()
    return Mount(node, NodeConfig(**config), port, parameter), port, node  # type: ignore[arg-type]


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon_ros.ros.mount.GRACE_AFTER_START_S", -1)
    monkeypatch.setattr("recon_ros.ros.mount.GRACE_AFTER_FIRST_IMAGE_S", -1)


def test_tf_tells_the_mount_before_the_parameter() -> None:
    tree = Tree()
    T = se3.exp(np.array([0.1, 0, 0.2, 0, 0.3, 0]))
    tree.add("base_link", "camera_link", 0, T, static=True)
    tree.add("camera_link", "optical", 0, T_BASE_OPTICAL, static=True)
    found, port, _ = mount(tree, parameter=np.eye(4))
    np.testing.assert_allclose(found.find("optical"), T @ T_BASE_OPTICAL, atol=1e-12)
    assert port.static == []


def test_the_image_frame_as_base_needs_no_mount() -> None:
    found, port, _ = mount(base_frame="optical")
    np.testing.assert_array_equal(found.find("optical"), np.eye(4))
    assert port.static == []


def test_tf_is_given_time() -> None:
    assert mount(parameter=np.eye(4))[0].find("optical") is None


def test_the_parameter_is_used_where_tf_has_none(no_grace: None) -> None:
    T = se3.exp(np.array([0.1, 0, 0.2, 0, 0.3, 0]))
    found, port, node = mount(parameter=T)
    np.testing.assert_array_equal(found.find("optical"), T)
    assert port.static == [] and node.warnings == []


def test_a_guess_is_made_aloud_and_hung_on_the_root_of_the_drivers_tree(no_grace: None) -> None:
    tree = Tree()
    T_link_optical = se3.make(T_BASE_OPTICAL[:3, :3], np.array([0, 0.015, 0]))
    tree.add("camera_link", "optical", 0, T_link_optical, static=True)
    found, port, node = mount(tree)
    np.testing.assert_array_equal(found.find("optical"), T_BASE_OPTICAL)
    (edge,) = port.static
    assert (edge.header.frame_id, edge.child_frame_id) == ("base_link", "camera_link"), "one parent each"
    T_base_link = matrix_from_transform(edge.transform)
    np.testing.assert_allclose(T_base_link @ T_link_optical, T_BASE_OPTICAL, atol=1e-12)
    assert len(node.warnings) == 1 and "base_to_camera" in node.warnings[0]
    found.find("optical")
    assert len(port.static) == len(node.warnings) == 1


def test_two_cameras_on_one_topic_are_refused() -> None:
    found, _, _ = mount(base_frame="left")
    found.find("left")
    with pytest.raises(InputError, match="'right'") as error:
        found.find("right")
    assert error.value.reason == "frame_id"


# -- TF without tf2_ros -----------------------------------------------------------------------------------------


@quick
@given(twists, twists, st.integers(0, SECOND))
def test_a_track_interpolates_on_the_geodesic(a: np.ndarray, step: np.ndarray, at: int) -> None:
    step = 0.5 * step
    track = Track()
    track.add(SECOND, se3.exp(a))
    track.add(2 * SECOND, se3.exp(a) @ se3.exp(step))
    found = track.at(SECOND + at)
    assert found is not None
    np.testing.assert_allclose(found, se3.exp(a) @ se3.exp(step * at / SECOND), atol=1e-7)


def test_a_track_does_not_extrapolate_and_forgets() -> None:
    track = Track()
    assert track.at(None) is None and track.at(5) is None
    for second in range(1, 31):
        track.add(second * SECOND, np.eye(4))
    assert track.at(31 * SECOND) is None and track.at(19 * SECOND) is None
    assert track.at(20 * SECOND) is not None and len(track.stamps) == 11
    track.add(SECOND, np.eye(4))
    assert track.stamps == [SECOND], "time has jumped back"


def test_a_tree_looks_up_through_the_common_ancestor() -> None:
    tree = Tree()
    A, B, C = (se3.exp(np.array(x)) for x in ([1, 0, 0, 0, 0, 0.5], [0, 1, 0, 0.2, 0, 0], [0, 0, 1, 0, 0.3, 0]))
    tree.add("map", "odom", SECOND, A, static=False)
    tree.add("odom", "base", 0, B, static=True)
    tree.add("odom", "other", 0, C, static=True)
    np.testing.assert_allclose(tree.lookup("map", "base", SECOND), A @ B, atol=1e-12)
    np.testing.assert_allclose(tree.lookup("base", "other", 99), se3.inverse(B) @ C, atol=1e-12)
    np.testing.assert_array_equal(tree.lookup("base", "base", None), np.eye(4))
    assert tree.lookup("map", "base", 2 * SECOND) is None, "a moving edge is not extrapolated"
    assert tree.lookup("map", "nowhere", None) is None
    assert tree.root("other") == "map" and tree.root("nowhere") == "nowhere"
    tree.clear()
    assert tree.lookup("map", "base", None) is None
    assert tree.lookup("odom", "base", None) is not None, "static edges hold at any time"


def test_a_loop_in_the_tree_is_survived() -> None:
    tree = Tree()
    tree.add("a", "b", 0, np.eye(4), static=True)
    tree.add("b", "a", 0, np.eye(4), static=True)
    assert tree.lookup("a", "c", None) is None


def test_foreign_edges_are_told_from_our_own() -> None:
    foreign: list[tuple[str, str]] = []
    ownership = tf.Ownership(lambda parent, child: foreign.append((parent, child)))
    ours = transform_message(np.eye(4), SECOND, "map", "odom")
    ownership.sent([ours])
    ownership.heard([ours, transform_message(np.eye(4), SECOND, "base", "arm")])
    assert foreign == []
    ownership.heard([transform_message(np.eye(4), 2 * SECOND, "map", "odom")])
    ownership.heard([transform_message(np.eye(4), SECOND, "world", "odom")])
    assert foreign == [("map", "odom"), ("world", "odom")]


def test_without_tf2_msgs_it_runs_without_tf_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2_msgs.msg", None)
    node = FakeNode()
    port = tf.make(node, lambda parent, child: None)  # type: ignore[arg-type]
    assert len(node.warnings) == 1 and "without TF" in node.warnings[0]
    port.send([transform_message(np.eye(4), 1, "map", "odom")])
    assert port.lookup("map", "odom", None) is None and port.root("odom") == "odom"


def test_tf2_ros_is_used_through_its_public_interface() -> None:
    """tf2_ros is not among the wheels: a stand-in with its signatures (Humble and Jazzy)."""
    log: list[Any] = []

    class TransformException(Exception):
        pass

    class Buffer:
        def lookup_transform(self, target: str, source: str, time: Any) -> TransformStamped:
            log.append((target, source, time.nanoseconds))
            if source == "nowhere":
                raise TransformException
            return transform_message(np.eye(4), 0, target, source)

        def all_frames_as_yaml(self) -> str:
            return "optical: \n  parent: 'link'\n  rate: 1.0\nlink: \n  parent: 'mast'\n"

    class TransformListener:
        def __init__(self, buffer: Any, node: Any, *, spin_thread: bool = False) -> None:
            assert not spin_thread
            self.subscribed = (self.callback, self.static_callback)

        def callback(self, data: Any) -> None:
            log.append("heard")

        def static_callback(self, data: Any) -> None:
            log.append("heard static")

    class Broadcaster:
        def __init__(self, node: Any) -> None:
            pass

        def sendTransform(self, transforms: Any) -> None:
            log.append(len(transforms))

    tf2_ros = types.SimpleNamespace(
        Buffer=Buffer,
        TransformListener=TransformListener,
        TransformException=TransformException,
        TransformBroadcaster=Broadcaster,
        StaticTransformBroadcaster=Broadcaster,
    )
    foreign: list[Any] = []
    port = tf.Tf2Ros(None, lambda *edge: foreign.append(edge), tf2_ros)  # type: ignore[arg-type]
    np.testing.assert_array_equal(port.lookup("a", "b", 5), np.eye(4))
    assert port.lookup("a", "nowhere", None) is None
    assert port.root("optical") == "mast" and port.root("alone") == "alone"
    port.send([transform_message(np.eye(4), 1, "map", "odom")])
    hear, hear_static = port._listener.subscribed
    hear(types.SimpleNamespace(transforms=[transform_message(np.eye(4), 2, "map", "odom")]))
    hear_static(types.SimpleNamespace(transforms=[]))
    assert log == [("a", "b", 5), ("a", "nowhere", 0), 1, "heard", "heard static"]
    assert foreign == [("map", "odom")]
