# SPDX-License-Identifier: Apache-2.0
"""A saved map is the map that was saved, or an error that names a file; and a loaded one is gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from revisits import room_keyframe, room_view, turning
from saved_maps import made_up, save
from test_reconstructor import FAST, FRAMES, METRES, RADIANS, errors, pose, rendered
from textured_room import TexturedRoom

from recon_ros.config import Config, updated
from recon_ros.errors import ReconError
from recon_ros.export.snapshot import FILES
from recon_ros.export.tum import read_tum
from recon_ros.frame import Camera, Frame, State
from recon_ros.geometry import se3
from recon_ros.geometry.two_view import VerifySettings
from recon_ros.mapping import folder_swap
from recon_ros.mapping.atlas import Atlas
from recon_ros.mapping.folder import DATA_FILES, MANIFEST, VERSION, read_map, write_manifest
from recon_ros.mapping.map_data import MapData
from recon_ros.mapping.merge import merge
from recon_ros.memory.places import PlaceIndex
from recon_ros.memory.store import KeyframeStore
from recon_ros.reconstructor import Reconstructor
from recon_ros.tracking.relocalize import relocalize

FEWER = updated(Config(), FAST | {"loops.candidates": 2})
ALL_FILES = sorted({*FILES, *DATA_FILES})


def assert_same(a: MapData, b: MapData) -> None:
    assert [k.id for k in a.keyframes] == [k.id for k in b.keyframes]
    for one, other in zip(a.keyframes, b.keyframes, strict=True):
        assert (one.stamp_ns, one.frame_id, one.is_metric) == (other.stamp_ns, other.frame_id, other.is_metric)
        assert (one.camera.width, one.camera.height) == (other.camera.width, other.camera.height)
        np.testing.assert_array_equal(one.camera.K, other.camera.K)
        for name in ("T_world_camera", "points", "confidence", "colour"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
            assert getattr(one, name).dtype == getattr(other, name).dtype
        for name in ("pixels", "descriptors", "points"):
            np.testing.assert_array_equal(getattr(one.features, name), getattr(other.features, name), name)
    assert a.descriptors.keys() == b.descriptors.keys()
    for i, descriptor in a.descriptors.items():
        np.testing.assert_array_equal(descriptor, b.descriptors[i])
    assert (a.graph.scale_drifts, a.graph.drift) == (b.graph.scale_drifts, b.graph.drift)
    for name in ("ids", "poses", "edges", "gravity"):
        np.testing.assert_array_equal(getattr(a.graph, name), getattr(b.graph, name), name)
    assert a.loops.keys() == b.loops.keys() and a.rejected == b.rejected
    for edge, loop in a.loops.items():
        other_loop = b.loops[edge]
        assert (loop.a, loop.b, loop.inliers, loop.evidence) == (
            other_loop.a,
            other_loop.b,
            other_loop.inliers,
            other_loop.evidence,
        )
        np.testing.assert_array_equal(loop.T_a_b, other_loop.T_a_b)
        np.testing.assert_array_equal(loop.information, other_loop.information)
    np.testing.assert_array_equal(a.path, b.path)
    assert (a.next_id, a.source, a.is_level) == (b.next_id, b.source, b.is_level)
    np.testing.assert_array_equal(a.T_base_camera, b.T_base_camera)


# -- the folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_drifts", [False, True])
def test_what_is_read_is_what_was_written(tmp_path: Path, scale_drifts: bool) -> None:
    data = made_up(scale_drifts=scale_drifts)
    folder = save(data, tmp_path / "map")
    assert sorted(p.name for p in folder.iterdir()) == ALL_FILES
    assert_same(read_map(folder), data)
    assert read_map(folder).believed_loops == 1
    again = save(read_map(folder), tmp_path / "again")
    assert [(again / n).read_bytes() for n in ALL_FILES] == [(folder / n).read_bytes() for n in ALL_FILES]
    assert_same(read_map(save(read_map(folder), folder)), data)


def test_an_empty_map_is_a_map(tmp_path: Path) -> None:
    data = Reconstructor(Config()).state_of_map()
    assert_same(read_map(save(data, tmp_path / "map")), data)


def truncated(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def swapped(path: Path, other: Path) -> None:
    path.rename(path.with_name("kept"))
    other.rename(path)
    path.with_name("kept").rename(other)


def emptied(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path, _: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", ALL_FILES)
@pytest.mark.parametrize("damage", [truncated, flipped, swapped, emptied, missing])
def test_damage_is_said_with_the_name_of_the_file(
    tmp_path: Path, name: str, damage: Callable[[Path, Path], None]
) -> None:
    folder = save(made_up(), tmp_path / "map")
    other = ALL_FILES[ALL_FILES.index(name) - 1]
    damage(folder / name, folder / other)
    with pytest.raises(ReconError) as error:
        read_map(folder)
    assert name in str(error.value) or (damage is swapped and other in str(error.value))


@pytest.mark.parametrize("name", ["points.npy", "keyframes.npy", "edges.npy"])
def test_files_of_two_maps_do_not_mix(tmp_path: Path, name: str) -> None:
    folder, other = save(made_up(4), tmp_path / "a"), save(made_up(5), tmp_path / "b")
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ReconError, match=name):
        read_map(folder)


def resealed(folder: Path, **changes: object) -> None:
    """As whoever writes nonsense and its digests would."""
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()) | changes)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("keyframes.npy", "T_world_camera", np.nan),
        ("keyframes.npy", "T_world_camera", 0.0),
        ("keyframes.npy", "K", 0.0),
        ("keyframes.npy", "id", 7),
        ("keyframes.npy", "frame", 2),
        ("keyframes.npy", "width", -20),
        ("points.npy", None, np.inf),
        ("confidence.npy", None, np.nan),
        ("features.npy", "pixel", np.nan),
        ("nodes.npy", "id", 7),
        ("nodes.npy", "T_world_camera", np.inf),
        ("nodes.npy", "gravity", 1.0),
        ("edges.npy", "a", 99),
        ("edges.npy", "kind", 3),
        ("edges.npy", "information", np.nan),
        ("loops.npy", "T_a_b", np.nan),
        ("path.npy", "reference_id", 99),
        ("path.npy", "T_reference_camera", np.nan),
        ("descriptors.npy", None, np.nan),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, name: str, field: str | None, value: float) -> None:
    folder = save(made_up(), tmp_path / "map")
    array = np.load(folder / name)
    (array if field is None else array[field])[...] = value
    np.save(folder / name, array)
    resealed(folder)
    with pytest.raises(ReconError, match=name):
        read_map(folder)


@pytest.mark.parametrize("name", [name for name in DATA_FILES if name.endswith(".npy")])
def test_arrays_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    folder = save(made_up(), tmp_path / "map")
    for content in (np.zeros(3, np.complex64), np.array([{"a": 1}], object), np.zeros((2, 2, 2), np.float32)):
        np.save(folder / name, content, allow_pickle=True)
        resealed(folder)
        with pytest.raises(ReconError, match=name):
            read_map(folder)


def test_other_versions_and_other_folders_are_refused(tmp_path: Path) -> None:
    folder = save(made_up(), tmp_path / "map")
    resealed(folder, version=VERSION + 1)
    with pytest.raises(ReconError, match=f"version {VERSION + 1}"):
        read_map(folder)
    resealed(folder, version=VERSION, T_base_camera=[[0.0] * 4] * 4)
    with pytest.raises(ReconError, match=r"map\.json.*T_base_camera"):
        read_map(folder)
    resealed(folder, T_base_camera=None, frames="x")
    with pytest.raises(ReconError, match=r"keyframes\.npy|map\.json"):
        read_map(folder)
    with pytest.raises(ReconError, match="no map folder"):
        read_map(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    with pytest.raises(ReconError, match=r"no map\.json"):
        read_map(tmp_path / "other")


def test_a_writer_killed_at_any_moment_leaves_the_old_map_or_the_new(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {k: v for k, v in os.environ.items() if k != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here.parent}:{here}"}
    command = [sys.executable, str(here / "killed_writers.py"), str(tmp_path / "map"), "20"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    found = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("keyframes")]
    assert len(found) == 20 and set(found) == {"3", "6"}, result.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["map"], "what the killed have left is taken away"


def test_a_map_that_has_stepped_aside_is_found_and_kept_until_there_is_another(tmp_path: Path) -> None:
    folder = save(made_up(3), tmp_path / "map")
    folder.rename(tmp_path / ".map.0123abcd.old")
    assert len(read_map(folder).keyframes) == 3
    with pytest.raises(RuntimeError), folder_swap.replacing(folder):
        raise RuntimeError("a writer that fails")
    assert len(read_map(folder).keyframes) == 3
    save(made_up(5), folder)
    assert len(read_map(folder).keyframes) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["map"]


# -- going on with a map -----------------------------------------------------------------------------------------


def fresh(**options: object) -> Reconstructor:
    return Reconstructor(updated(Config(), FAST | {k.replace("__", "."): v for k, v in options.items()}))


def test_maps_of_different_sources_are_not_joined() -> None:
    with pytest.raises(ReconError, match="different sources"):
        merge(made_up(scale_drifts=False), made_up(scale_drifts=True), FEWER)


def session(frames: Iterable[Frame]) -> Reconstructor:
    """After some frames, of which most became keyframes."""
    r = fresh(memory__min_overlap=0.95, memory__min_translation=0.01, memory__min_rotation=0.02)
    for frame in frames:
        r.process(frame)
    assert len(r.keyframes) >= 4
    return r


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The map of the first session."""
    return save(session(FRAMES[:10:2]).state_of_map(), tmp_path_factory.mktemp("session") / "map")


def test_a_second_session_goes_on_in_the_frame_of_the_first(folder: Path, tmp_path: Path) -> None:
    r = fresh(map__load=str(folder))
    assert r.state is State.LOST
    before = read_map(folder)
    assert [k.id for k in r.keyframes] == [k.id for k in before.keyframes]
    for step in range(6, 16):
        update = r.process(FRAMES[step])
        assert update.state is State.TRACKING
        metres, radians = errors(update, pose(step))
        assert metres < METRES and radians < RADIANS
    assert len(r.keyframes) > len(before.keyframes), "the map grows"
    np.testing.assert_array_equal(r.trajectory().stamps_ns, [f.stamp_ns for f in FRAMES[6:]])
    again = read_map(save(r.state_of_map(), tmp_path / "map"))
    assert len(again.path) == len(before.path) + 10, "the saved path is that of both sessions"
    assert len(read_tum(tmp_path / "map" / "trajectory.tum")) == len(again.path)


def test_the_cloud_of_a_loaded_map_is_the_one_that_was_saved(folder: Path) -> None:
    expected, cloud = session(FRAMES[:10:2]).map_cloud(), fresh(map__load=str(folder)).map_cloud()
    for name in ("points", "colours", "confidence"):
        np.testing.assert_array_equal(getattr(cloud, name), getattr(expected, name), name)


def test_a_new_keyframe_is_not_tied_to_a_newest_one_that_may_be_anywhere(folder: Path) -> None:
    data = read_map(folder)
    r = fresh(map__load=str(folder))
    for step in range(11, 16):
        r.process(FRAMES[step])
    first = next(k.id for k in r.keyframes if k.id >= data.next_id)
    edges = r.state_of_map().graph.edges
    assert edges["kind"][edges["b"] == first].tolist() == [0], "to what it was tracked against, and nothing else"


def test_who_starts_again_where_they_stopped_needs_no_second_witness() -> None:
    views = [room_view(TexturedRoom(), turning(step)) for step in (0, 1)]
    store, index = KeyframeStore(10), PlaceIndex()
    store.add(room_keyframe(0, views[0], turning(0)))
    index.add(0, store[0].features)
    found = relocalize(views[1], store, index, budget=6)
    assert found is not None
    few = VerifySettings(min_inliers=found[2] * 2 // 3)
    assert relocalize(views[1], store, index, 6, few) is None
    assert relocalize(views[1], store, index, 6, few, last_seen=1) is None
    assert relocalize(views[1], store, index, 6, few, last_seen=0) is not None


def turned_to(step: int) -> Frame:
    """A camera that turns fast: the seventh frame shares little with the first."""
    return rendered(step, None, se3.exp(np.array([0, 0, 0, 0, np.radians(7.0) * step, 0])))


def test_the_last_view_is_kept_so_that_the_next_session_begins_where_this_one_ended(tmp_path: Path) -> None:
    first = fresh(memory__min_overlap=0.2, memory__min_rotation=1.0, memory__min_translation=2.0)
    for step in range(7):
        update = first.process(turned_to(step))
    assert update.keyframe_id is None and update.T_world_camera is not None, "the last frame is no keyframe"
    without = fresh(map__load=str(save(first.state_of_map(), tmp_path / "without")))
    assert without.process(turned_to(7)).state is State.LOST

    keyframe, path = first.keep_last_view(), first.trajectory()
    assert keyframe is not None and keyframe.stamp_ns == turned_to(6).stamp_ns
    assert keyframe.id == first.keyframes[-1].id
    np.testing.assert_allclose(keyframe.T_world_camera, update.T_world_camera, atol=1e-12)
    np.testing.assert_allclose(path.poses[-1], update.T_world_camera, atol=1e-12)
    assert first.keep_last_view() is None, "once is enough"
    state = first.state_of_map()
    assert state.path["reference_id"][-1] == keyframe.id
    assert np.count_nonzero(state.graph.edges["b"] == keyframe.id) == 1, "it is tied to the map"
    second = fresh(map__load=str(save(state, tmp_path / "with")))
    assert second.process(turned_to(7)).state is State.TRACKING
    assert second.keyframes[0].id == 0 and len(second.trajectory()) == 1, "in the frame of the first session"


def test_no_view_is_kept_where_none_may_be(folder: Path) -> None:
    assert fresh().keep_last_view() is None, "nothing was seen"
    r = fresh(map__load=str(folder), mode="localization")
    assert r.process(FRAMES[6]).state is State.TRACKING
    assert r.keep_last_view() is None, "the map is frozen"
    r = fresh(map__load=str(folder))
    r.process(FRAMES[6])
    r.lose()
    assert r.keep_last_view() is None, "nobody knows where the camera is"


def test_the_last_view_follows_a_correction_that_came_after_it() -> None:
    r = fresh()
    for frame in FRAMES[:4]:
        update = r.process(frame)
    assert update.keyframe_id is None and update.reference_id is not None
    moved = se3.make(np.eye(3), np.array([0.0, 0.0, 1.5]))
    r._atlas.store[update.reference_id].T_world_camera[:] = moved @ r._atlas.store[update.reference_id].T_world_camera
    keyframe = r.keep_last_view()
    assert keyframe is not None and update.T_world_camera is not None
    np.testing.assert_allclose(keyframe.T_world_camera, moved @ update.T_world_camera, atol=1e-12)


def test_localization_leaves_the_map_as_it_is(folder: Path, tmp_path: Path) -> None:
    data = read_map(folder)
    r = fresh(map__load=str(folder), mode="localization")
    version = r.map_version
    for step in range(6, 16):
        update = r.process(FRAMES[step])
        assert update.T_world_camera is not None and update.keyframe_id is None
    r.settle()
    assert r.map_version == version
    state = r.state_of_map()
    assert_same(replace(state, path=data.path), data)
    r.lose()
    assert r.state is State.LOST
    assert r.process(FRAMES[0]).state is State.TRACKING
    r.set_config(replace(r.config, mode="mapping"))
    for step in range(6, 16):
        r.process(FRAMES[step])
    assert len(r.keyframes) > len(data.keyframes), "and grows again when it may"


def test_without_a_map_there_is_nothing_to_localize_in() -> None:
    r = fresh(mode="localization")
    assert r.process(FRAMES[0]).state is State.INITIALIZING
    assert len(r.keyframes) == 0


def test_a_map_larger_than_the_bound_is_pruned(folder: Path) -> None:
    data = read_map(folder)
    assert len(data.keyframes) == 5
    r = fresh(map__load=str(folder), memory__max_keyframes=4)
    assert len(r.keyframes) == 4
    assert r.process(FRAMES[6]).state is State.TRACKING
    assert set(r.state_of_map().path["reference_id"].tolist()) <= {k.id for k in r.keyframes}


def test_a_map_of_another_source_is_refused_and_nothing_changes(folder: Path) -> None:
    data = read_map(folder)
    r = fresh()
    r.process(FRAMES[0])
    with pytest.raises(ReconError, match="cut3r"):
        r.load_map(replace(data, source=replace(data.source, name="cut3r")))
    assert r.state is State.TRACKING and len(r.keyframes) == 1


# -- joining maps ------------------------------------------------------------------------------------------------


def test_who_cannot_load_its_map_leaves_no_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Atlas] = []
    close = Atlas.close
    monkeypatch.setattr(Atlas, "close", lambda atlas: ended.append(atlas) or close(atlas))
    with pytest.raises(ReconError, match="nowhere"):
        Reconstructor(updated(Config(), {"map.load": str(folder / "nowhere")}), live=True)
    assert len(ended) == 1 and ended[0].drawing._thread is not None
    assert not ended[0].drawing._thread.is_alive()


def test_a_map_is_ready_to_be_written_before_its_cloud_is_drawn(folder: Path) -> None:
    r = Reconstructor(updated(Config(), FAST | {"map.load": str(folder)}), live=True)
    drawing = r._atlas.drawing
    expected = fresh(map__load=str(folder)).map_cloud()
    with drawing._at_work:  # as if a keyframe took for ever
        thread = threading.Thread(target=lambda: (r.catch_up(), r.state_of_map()), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "tracking waits for the cloud"
        cloud = r.whole_cloud
        r._atlas.drawing.draw(r.keyframes[0])
    r.reset()
    np.testing.assert_array_equal(cloud().points, expected.points)
    assert len(r.map_cloud()) == 0
    r.close()


def test_maps_that_overlap_are_joined_in_the_frame_of_the_first() -> None:
    first, second = (session(frames).state_of_map() for frames in (FRAMES[:10:2], FRAMES[6::2]))
    joined = merge(first, second, FEWER)
    assert len(joined.keyframes) == len(first.keyframes) + len(second.keyframes)
    assert joined.believed_loops >= 2
    step_of = {frame.stamp_ns: step for step, frame in enumerate(FRAMES)}
    for keyframe in joined.keyframes:
        truth = se3.inverse(pose(0)) @ pose(step_of[keyframe.stamp_ns])
        assert se3.distance(se3.inverse(truth) @ keyframe.T_world_camera)[0] < 2 * METRES
    assert set(joined.path["reference_id"].tolist()) <= {k.id for k in joined.keyframes}
    r = fresh()
    r.load_map(joined)
    assert r.process(FRAMES[12]).state is State.TRACKING


def test_maps_of_different_places_are_not_joined() -> None:
    other = TexturedRoom(Camera.from_focal(240, 180, 195.0), seed=5)
    first, second = session(FRAMES[:8:2]), session(rendered(step, other) for step in range(0, 8, 2))
    with pytest.raises(ReconError, match="could not be joined"):
        merge(first.state_of_map(), second.state_of_map(), FEWER)
