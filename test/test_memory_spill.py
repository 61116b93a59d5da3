# SPDX-License-Identifier: Apache-2.0
"""Keyframes beyond the bound of RAM are on the disk, and nobody who uses them can tell."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import textured_room
from helpers import make_keyframe, quick, seeds
from hypothesis import given
from hypothesis import strategies as st
from revisits import room_keyframe, room_view, turning
from saved_maps import save
from test_map_folder import assert_same
from test_reconstructor import FAST, FRAMES, blank, stamp
from textured_room import TexturedRoom

from recon_ros.config import Config, MemoryConfig, updated
from recon_ros.frame import Camera, Frame, Keyframe, State
from recon_ros.geometry import se3
from recon_ros.geometry.features import Features
from recon_ros.mapping.backend import InlineBackend, ThreadBackend
from recon_ros.mapping.folder import read_map
from recon_ros.memory import mapped, spill
from recon_ros.memory.mapped import Arrays, let_go, mapping_of, written
from recon_ros.memory.places import PlaceIndex
from recon_ros.memory.sides import neighbours
from recon_ros.memory.spill import FILES, IN_USE, KEPT, Spill, Worker
from recon_ros.memory.store import KeyframeStore
from recon_ros.reconstructor import Reconstructor
from recon_ros.tracking.relocalize import relocalize

CAMERA = Camera.from_focal(160, 120, 130.0)
LARGE = Camera.from_focal(640, 480, 500.0)
EACH = CAMERA.width * CAMERA.height * 11 + 100 * 52
"""Bytes of a keyframe of `seen`."""
MOST = 4 * 2**20
FIT = MOST // EACH


def seen(keyframe_id: int, x: float = 0.0, camera: Camera = CAMERA) -> Keyframe:
    """A keyframe at (x, 0, 0) with holes in its points and a hundred features."""
    keyframe = make_keyframe(keyframe_id, se3.make(np.eye(3), [x, 0, 0]), camera=camera)
    keyframe.points[:3, :5] = np.nan
    rng = np.random.default_rng(keyframe_id)
    features = Features(
        rng.uniform(0, 100, (100, 2)).astype(np.float32),
        rng.integers(0, 256, (100, 32), dtype=np.uint8),
        rng.normal(size=(100, 3)).astype(np.float32),
    )
    return replace(keyframe, features=features)


def store_with(folder: Path, worker: Worker | None = None, most_mb: int = 4) -> KeyframeStore:
    config = MemoryConfig(max_ram_mb=most_mb, spill_folder=str(folder))
    return KeyframeStore(10_000, Spill(config, worker or InlineBackend()))


def walk(store: KeyframeStore, count: int) -> list[list[bytes]]:
    """Keyframes in a line, the camera by the newest; returns what they hold."""
    for i in range(store.next_id, store.next_id + count):
        store.add(seen(i, float(i)))
        store.stay_by(i)
    return [contents(seen(k.id)) for k in store.keyframes]


def contents(keyframe: Keyframe) -> list[bytes]:
    return [a.tobytes() for a in Arrays.of(keyframe).arrays]


def in_ram(store: KeyframeStore) -> list[int]:
    return [k.id for k in store.keyframes if Arrays.of(k).ram_bytes]


def counted(store: KeyframeStore) -> int:
    """Bytes in RAM, by looking at each array."""
    return sum(Arrays.of(k).ram_bytes for k in store.keyframes)


# -- the file ----------------------------------------------------------------------------------------------------


def test_what_is_mapped_is_what_was_written_and_has_no_name(tmp_path: Path) -> None:
    keyframes = [seen(0), make_keyframe(1, np.eye(4), camera=Camera.from_focal(3, 1, 2.0)), seen(2)]
    there = written(tmp_path, [Arrays.of(k) for k in keyframes])
    assert list(tmp_path.iterdir()) == []
    for keyframe, arrays in zip(keyframes, there, strict=True):
        for old, new in zip(Arrays.of(keyframe).arrays, arrays.arrays, strict=True):
            assert (old.dtype, old.shape, old.tobytes()) == (new.dtype, new.shape, new.tobytes())
            assert mapping_of(new) is not None and mapping_of(new[:1].reshape(-1)) is mapping_of(new)
            assert not new.flags.writeable and new.flags.aligned
        assert arrays.ram_bytes == 0 and arrays.nbytes == keyframe.nbytes
        back = arrays.in_ram()
        assert back.ram_bytes == back.nbytes == arrays.nbytes
        assert [a.tobytes() for a in back.arrays] == contents(keyframe)


def test_a_loaded_map_is_known_to_be_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10.0))
    loaded = np.asarray(np.load(tmp_path / "a.npy", mmap_mode="r"))[2:8].reshape(3, 2)
    assert mapping_of(loaded) is not None
    assert mapping_of(np.arange(10.0)[2:].reshape(4, 2)) is None
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    assert mapping_of(private) is None, "what was written to it would be lost"


def resident_mb() -> int:
    """Of mapped files."""
    found = re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def test_what_was_read_is_let_go_of(tmp_path: Path) -> None:
    keyframes = [seen(i, camera=LARGE) for i in range(10)]  # 34 MB
    there = written(tmp_path, [Arrays.of(k) for k in keyframes])
    before = resident_mb()
    assert all(np.isfinite(a.arrays[2].sum()) and a.arrays[0].tobytes() for a in there)
    assert resident_mb() > before + 15
    let_go(there[0].mappings())
    assert resident_mb() < before + 5
    assert [a.tobytes() for a in there[7].arrays] == contents(keyframes[7])


def test_it_is_let_go_of_as_the_camera_moves_on(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    for i in range(10):
        store.add(seen(i, float(i), LARGE))
        store.stay_by(i)
    before = resident_mb()
    everything = [contents(k) for k in store.keyframes]
    assert resident_mb() > before + 15
    store.stay_by(8)
    assert resident_mb() < before + 5
    assert [contents(k) for k in store.keyframes] == everything


# -- the bound ---------------------------------------------------------------------------------------------------


def test_the_bound_holds_and_nothing_is_lost(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    for i in range(3 * FIT):
        keyframe = seen(i, float(i))
        store.add(keyframe)
        store.stay_by(i)
        assert store.usage.ram_bytes == counted(store) <= MOST
        assert store[i] is keyframe
    assert store.usage.spilled > 1.5 * FIT and store.usage.ram_bytes > 0.8 * KEPT * MOST
    assert [contents(k) for k in store.keyframes] == [contents(seen(k.id)) for k in store.keyframes]
    assert list(tmp_path.iterdir()) == []


def test_nothing_goes_while_there_is_room(tmp_path: Path) -> None:
    store = store_with(tmp_path / "is not made")
    walk(store, FIT - 1)
    assert store.usage.spilled == store.usage.disk_bytes == 0
    assert not list(tmp_path.iterdir())


def test_the_farthest_go_and_the_nearest_come_back(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    walk(store, 2 * FIT)
    kept = in_ram(store)
    assert kept == list(range(2 * FIT))[-len(kept) :], "the nearest are the newest"
    store.stay_by(3)
    back = in_ram(store)
    assert set(range(2 * FIT)) - set(kept) >= {2, 3, 4} and {2, 3, 4} <= set(back) and counted(store) <= MOST
    far = set(kept) - set(back)
    assert all(i > max(set(kept) & set(back)) for i in far), "not the farthest have gone"
    assert [contents(k) for k in store.keyframes] == [contents(seen(k.id)) for k in store.keyframes]


def test_other_submaps_go_first_the_oldest_before_the_others(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    for i in range(FIT):
        store.add(seen(i, 100.0 * (i % 2)), submap=1 if i < 6 else 0)
    store.stay_by(7)
    assert len(in_ram(store)) == FIT
    store.add(seen(FIT, 100.0))
    store.stay_by(FIT)
    gone = [i for i in range(FIT + 1) if i not in in_ram(store)]
    assert gone == list(range(len(gone))) and 1 <= len(gone) <= 6


def test_who_walks_to_and_fro_writes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counting(folder: Path, arrays: list[Arrays]) -> list[Arrays]:
        sizes.append(len(arrays))
        return written(folder, arrays)

    monkeypatch.setattr(spill, "written", counting)
    store = store_with(tmp_path)
    count = 2 * FIT
    walk(store, count)
    for i in (*range(count - 1, -1, -1), *range(count)) * 2:
        store.stay_by(i)
        assert Arrays.of(store[i]).ram_bytes == EACH, "not there when the camera is"
        assert counted(store) == store.usage.ram_bytes <= MOST
    assert sum(sizes) <= count
    assert store.usage.disk_bytes <= count * EACH


def test_there_are_few_files(tmp_path: Path) -> None:
    """Each holds a descriptor; with a small bound they are written one keyframe at a time."""
    store = store_with(tmp_path, most_mb=1)
    before = len(os.listdir("/proc/self/fd"))
    walk(store, 150)
    assert store.usage.spilled > 140
    assert len(os.listdir("/proc/self/fd")) - before <= FILES + 2
    assert [contents(k) for k in store.keyframes] == [contents(seen(i)) for i in range(150)]


@quick
@given(seeds(), st.integers(20, 60))
def test_whatever_happens_the_books_are_right(seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    small = Camera.from_focal(96, 72, 80.0)
    store = store_with(Path("/var/tmp"), most_mb=1)
    for _ in range(steps):
        deed = rng.integers(4) if len(store) > 3 else 0
        if deed <= 1:
            store.add(seen(store.next_id, rng.uniform(0, 9), small if rng.integers(2) else CAMERA))
        elif deed == 2:
            store.remove(int(rng.choice([k.id for k in store.keyframes])))
        store.stay_by(int(rng.choice([k.id for k in store.keyframes])))
        usage = store.usage
        assert usage.ram_bytes == counted(store) <= 2**20
        assert usage.spilled == len(store) - len(in_ram(store))
    for _ in range(2):  # what was given up in the last step is written anew in the next
        store.stay_by(store.keyframes[0].id)
        store.stay_by(store.keyframes[-1].id)
    for keyframe in store.keyframes:
        camera = small if keyframe.camera.width == small.width else CAMERA
        assert contents(keyframe) == contents(seen(keyframe.id, camera=camera))
    held = sum(k.nbytes for k in store.keyframes)
    assert store.usage.disk_bytes <= held / IN_USE


# -- beside the tracking -----------------------------------------------------------------------------------------


class Held:
    """A worker who does nothing until he is told to."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], Any]] = []
        self.inner = InlineBackend()

    def submit(self, job: Callable[[], Any]) -> int:
        self.jobs.append(job)
        return len(self.jobs)

    def work(self) -> None:
        for job in self.jobs:
            self.inner.submit(job)
        self.jobs = []

    def poll(self) -> Any:
        return self.inner.poll()

    def close(self) -> None:
        pass


def test_tracking_does_not_wait_and_takes_over_what_is_done(tmp_path: Path) -> None:
    worker = Held()
    store = store_with(tmp_path, worker)
    walk(store, 2 * FIT)
    assert len(worker.jobs) == 1, "one thing at a time"
    assert len(in_ram(store)) == 2 * FIT, "until it is done, keyframes stay where they are"
    worker.work()
    store.remove(1)  # culled, while somebody has written it
    store.stay_by(2 * FIT - 1)
    worker.work()
    store.stay_by(2 * FIT - 1)
    assert counted(store) == store.usage.ram_bytes <= MOST
    assert 1 not in store and [contents(k) for k in store.keyframes] == [contents(seen(k.id)) for k in store.keyframes]


def test_what_was_asked_for_before_a_map_was_loaded_is_not_taken(tmp_path: Path) -> None:
    worker = Held()
    store = store_with(tmp_path, worker)
    walk(store, 2 * FIT)
    others = [replace(seen(1000 + i, float(i)), id=i) for i in range(FIT)]
    store.restore(others, FIT)
    worker.work()
    store.stay_by(0)
    assert [contents(k) for k in store.keyframes] == [contents(seen(1000 + i)) for i in range(FIT)]
    assert store.usage.spilled == store.usage.disk_bytes == 0


def test_a_thread_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who: set[str] = set()

    def noting(folder: Path, arrays: list[Arrays]) -> list[Arrays]:
        who.add(threading.current_thread().name)
        return written(folder, arrays)

    monkeypatch.setattr(spill, "written", noting)
    worker = ThreadBackend()
    store = store_with(tmp_path, worker)
    for i in range(3 * FIT):
        store.add(seen(i, float(i)))
        store.stay_by(i)
        assert worker.wait(10)
    store.stay_by(3 * FIT - 1)
    assert counted(store) <= MOST and threading.current_thread().name not in who and who
    store.close()
    store.stay_by(0)
    assert [contents(k) for k in store.keyframes] == [contents(seen(i)) for i in range(3 * FIT)]


def test_others_keep_what_they_have(tmp_path: Path) -> None:
    """A frozen store, in another thread or process, is the same whatever becomes of the keyframes here."""
    store = store_with(tmp_path)
    walk(store, 2 * FIT)
    frozen = store.frozen()
    before = {k.id: contents(k) for k in frozen.keyframes}
    store.stay_by(0)
    for i in range(1, 2 * FIT):
        store.remove(i)
    store.stay_by(0)
    assert store.usage.disk_bytes == 0
    found: dict[int, list[bytes]] = {}
    reader = threading.Thread(target=lambda: found.update({k.id: contents(k) for k in frozen.keyframes}))
    reader.start()
    reader.join()
    assert found == before == {i: contents(seen(i)) for i in range(2 * FIT)}
    travelled = pickle.loads(pickle.dumps(frozen))
    assert {k.id: contents(k) for k in travelled.keyframes} == before
    frozen.stay_by(0)
    assert frozen.usage.spilled == 0, "nobody keeps a bound there"


# -- when the disk does not take it ------------------------------------------------------------------------------


def full(_: Path) -> Any:
    return SimpleNamespace(total=10**12, used=10**12, free=10**6)


def no_write(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("trouble", ["a file is there", "full", "fills up", "in RAM"])
def test_keyframes_stay_in_ram_when_the_disk_does_not_take_them(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "spill"
    if trouble == "a file is there":
        folder.touch()
    elif trouble == "full":
        monkeypatch.setattr(mapped.shutil, "disk_usage", full)
    elif trouble == "fills up":
        monkeypatch.setattr(mapped.tempfile, "TemporaryFile", no_write)
    else:
        monkeypatch.setattr(mapped, "_is_in_ram", lambda _: True)
    monkeypatch.setattr(spill, "RETRY_S", 0.0)
    store = store_with(folder)
    walk(store, 2 * FIT)
    assert len(in_ram(store)) == 2 * FIT and store.usage.ram_bytes == counted(store)
    assert store.usage.failures > 1
    assert len(caplog.records) == 1, "it is said once"
    assert "memory.spill_folder" in caplog.text and "memory.max_ram_mb" in caplog.text
    assert str(folder) in caplog.text or trouble == "fills up"
    monkeypatch.undo()
    if folder.is_file():
        folder.unlink()
    store.add(seen(2 * FIT, 0.0))
    deadline = time.monotonic() + spill.RETRY_S
    monkeypatch.setattr(spill.time, "monotonic", lambda: deadline)
    store.stay_by(2 * FIT)
    assert counted(store) <= MOST, "it was not tried again"


def test_a_failing_disk_is_not_asked_all_the_time(tmp_path: Path) -> None:
    (tmp_path / "spill").touch()
    store = store_with(tmp_path / "spill")
    walk(store, 2 * FIT)
    assert store.usage.failures == 1


def test_ram_disks_are_known() -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no /dev/shm here")
    with pytest.raises(OSError, match="RAM"):
        mapped.folder_for("/dev/shm")


def test_without_a_wish_it_is_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped.tempfile, "gettempdir", lambda: "/dev/shm")
    monkeypatch.setattr(mapped, "_is_in_ram", lambda folder: folder == Path("/dev/shm"))
    assert mapped.folder_for("") == Path("/var/tmp")
    assert mapped.folder_for(str(tmp_path / "new" / "one")).is_dir()


def test_who_is_killed_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np; from helpers import make_keyframe\n"
        "from recon_ros.memory.mapped import Arrays, written\n"
        "arrays = [Arrays.of(make_keyframe(i, np.eye(4))) for i in range(20)]\n"
        "there = [written(Path(sys.argv[1]), arrays)]; print(there[0][0].ram_bytes, flush=True)\n"
        "while True: there = [*there[-9:], written(Path(sys.argv[1]), arrays)]"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "0\n"
    time.sleep(0.1)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait(10) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


# -- in the whole ------------------------------------------------------------------------------------------------

MANY = FAST | {"memory.points_stride": 1, "memory.min_overlap": 0.95, "memory.min_rotation": 0.02}
"""A keyframe at nearly every frame, half a megabyte each."""


def run(folder: Path, most_mb: int, live: bool = False, **more: Any) -> Reconstructor:
    config = updated(Config(), MANY | {"memory.max_ram_mb": most_mb, "memory.spill_folder": str(folder)} | more)
    r = Reconstructor(config, live=live)
    for frame in FRAMES[:10]:
        r.process(frame)
    return r


@pytest.fixture(scope="module")
def unbounded(tmp_path_factory: pytest.TempPathFactory) -> Reconstructor:
    """A run whose keyframes are all in RAM; not to be changed."""
    return run(tmp_path_factory.mktemp("nothing"), 1000)


def assert_same_run(one: Reconstructor, other: Reconstructor) -> None:
    assert [contents(k) for k in one.keyframes] == [contents(k) for k in other.keyframes]
    assert one.trajectory().poses.tobytes() == other.trajectory().poses.tobytes()
    assert one.map_cloud().points.tobytes() == other.map_cloud().points.tobytes()


def test_a_reconstruction_is_the_same_to_the_bit(tmp_path: Path, unbounded: Reconstructor) -> None:
    bounded = run(tmp_path, 1)
    assert bounded.keyframe_usage.spilled > len(bounded.keyframes) / 2 and unbounded.keyframe_usage.spilled == 0
    assert bounded.keyframe_usage.ram_bytes <= 2**20
    assert_same_run(bounded, unbounded)
    assert_same_run(run(tmp_path, 1, **{"memory.max_keyframes": 5}), run(tmp_path, 1000, **{"memory.max_keyframes": 5}))
    bounded.close()
    assert_same_run(bounded, unbounded)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_camera_is_found_among_spilled_keyframes(tmp_path: Path) -> None:
    found = []
    for most_mb in (1, 1000):
        r = run(tmp_path, most_mb)
        assert (r.keyframe_usage.spilled > 5) == (most_mb == 1)
        r.process(blank(20))
        r.lose()
        assert r.state is State.LOST
        again = FRAMES[1]
        update = r.process(Frame(stamp(30), again.image, again.camera, again.depth, frame_id="eye"))
        assert update.state is State.TRACKING and update.T_world_camera is not None
        found.append(update.T_world_camera)
    np.testing.assert_array_equal(found[0], found[1])


def test_relocalisation_and_neighbours_with_all_on_the_disk(tmp_path: Path) -> None:
    answers, room = [], TexturedRoom(textured_room.CAMERA)
    for spilled in (False, True):
        store, index = KeyframeStore(100), PlaceIndex()
        for i in range(8):
            view = room_view(room, turning(i))
            keyframe = room_keyframe(i, view, turning(i))
            if spilled:
                written(tmp_path, [Arrays.of(keyframe)])[0].give(keyframe)
                assert Arrays.of(keyframe).ram_bytes == 0
            store.add(keyframe)
            index.add(i, keyframe.features)
        answer = relocalize(room_view(room, turning(3)), store, index, budget=6)
        assert answer is not None
        answers.append((answer[0].tobytes(), answer[1:], [k.id for k in neighbours(store[2], store, 5)]))
    assert answers[0] == answers[1]


def test_a_map_with_spilled_keyframes_is_saved_loaded_and_gone_on_with(
    tmp_path: Path, unbounded: Reconstructor
) -> None:
    bounded = run(tmp_path / "s", 1)
    data = bounded.state_of_map()
    folder = save(data, tmp_path / "map")
    assert_same(read_map(folder), unbounded.state_of_map())

    again = Reconstructor(updated(bounded.config, {"map.load": str(folder), "memory.max_ram_mb": 3}))
    for step, frame in enumerate(FRAMES[:6]):
        again.process(Frame(stamp(40 + step), frame.image, frame.camera, frame.depth, frame_id="eye"))
    usage = again.keyframe_usage
    assert again.state is State.TRACKING and usage.ram_bytes <= 3 * 2**20
    assert any(Arrays.of(k).ram_bytes == k.nbytes for k in again.keyframes[:3]), "nothing came back of what is near"
    before = again.state_of_map()
    save(before, folder)  # over what it is mapped from
    assert_same(read_map(folder), before)
    assert [contents(k) for k in again.keyframes[: len(data.keyframes)]] == [contents(k) for k in data.keyframes]
    bounded.go_on_with(bounded.restored(data))
    assert [contents(k) for k in bounded.keyframes] == [contents(k) for k in unbounded.keyframes]


def test_a_live_reconstruction_keeps_the_bound(tmp_path: Path, unbounded: Reconstructor) -> None:
    r = run(tmp_path, 1, live=True)
    deadline = time.monotonic() + 30
    step = 0
    while r.keyframe_usage.ram_bytes > 2**20 and time.monotonic() < deadline:
        frame, step = FRAMES[9], step + 1
        r.process(Frame(stamp(50 + step), frame.image, frame.camera, frame.depth, frame_id="eye"))
    assert r.keyframe_usage.ram_bytes <= 2**20 and r.keyframe_usage.spilled > 0
    r.close()
    expected = {k.stamp_ns: contents(k) for k in unbounded.keyframes}
    common = [k for k in r.keyframes if k.stamp_ns in expected]
    assert len(common) > 5 and all(contents(k) == expected[k.stamp_ns] for k in common)
    r.reset()
    assert r.keyframe_usage.spilled == r.keyframe_usage.ram_bytes == 0
    r.close()
