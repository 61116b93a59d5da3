# SPDX-License-Identifier: Apache-2.0
"""The engine cache under every fault a robot has: two nodes at once, half files, upgrades, full disks, kill −9."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recon_ros.errors import NetworkError
from recon_ros.runtimes.engine_cache import BuildStopped, EngineCache, Engines, Missing, read_engines, set_aside
from recon_ros.runtimes.engine_key import EngineKey, differences
from recon_ros.runtimes.trt.rtx import KERNELS_SUFFIX

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[1]
KEY = EngineKey(
    model="cut3r_512_dpt",
    size=(512, 384),
    precision="fp16",
    attention="softmax32",
    bundle_digest="b" * 64,
    library="tensorrt",
    library_version="10.7.0",
    gpu="Orin",
    compute_capability="8.7",
    sm_count=16,
    driver="540.4",
    options=(("optimization_level", "3"), ("workspace_mb", "4096")),
)
RTX = EngineKey(
    model="cut3r_512_dpt",
    size=(512, 384),
    precision="fp16",
    attention="softmax32",
    bundle_digest="b" * 64,
    library="tensorrt_rtx",
    library_version="1.7.1.116",
    compute_capability="8.6,8.9,12.0",
)
CONTENT = b"engine " * 1000


def change(key: EngineKey, **fields: object) -> EngineKey:
    return dataclasses.replace(key, **fields)  # type: ignore[arg-type]


def make(folder: Path) -> None:
    (folder / "encode.engine").write_bytes(CONTENT)
    (folder / "decode.engine").write_bytes(CONTENT[::-1])


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def reason(cache: EngineCache, key: EngineKey = KEY) -> str:
    found = cache.find(key)
    assert isinstance(found, Missing), found
    return found.reason


def assert_usable(cache: EngineCache, key: EngineKey = KEY) -> None:
    """An engine can be built and found, and nothing but it, and locks, is left."""
    built = cache.build(key, make)
    assert cache.find(key) == built
    assert built.files["encode"].read_bytes() == CONTENT
    assert [path.name for path in cache.root.iterdir() if path.suffix != ".lock"] == [key.folder_name]


# Keys


def test_the_folder_name_reads_well_and_tells_keys_apart() -> None:
    assert KEY.folder_name.startswith("cut3r_512_dpt_384x512_fp16_trt10.7.0_sm87_")
    assert RTX.folder_name.startswith("cut3r_512_dpt_384x512_fp16_rtx1.7.1.116_sm86-89-120_")
    others = [
        change(KEY, **{field: value})
        for field, value in {
            "model": "a/../b",
            "size": (384, 512),
            "precision": "bf16",
            "attention": "fp32",
            "bundle_digest": "c" * 64,
            "library": "tensorrt_rtx",
            "library_version": "10.7.0.1",
            "gpu": "Thor",
            "compute_capability": "8.9",
            "sm_count": 8,
            "driver": "541",
            "options": (),
        }.items()
    ]
    assert {field.name for field in dataclasses.fields(EngineKey)} == {
        name for other in others for name, value in vars(other).items() if value != getattr(KEY, name)
    }
    assert len({key.folder_name for key in [KEY, *others]}) == 1 + len(others)
    assert not any("/" in key.folder_name for key in others)
    for key in [KEY, RTX, *others]:
        assert EngineKey.from_dict(json.loads(json.dumps(key.to_dict()))) == key


def test_an_rtx_engine_serves_each_of_its_targets(cache: EngineCache) -> None:
    built = cache.build(RTX, make)
    assert cache.find(change(RTX, compute_capability="8.9")) == built
    assert cache.build(change(RTX, compute_capability="12.0,8.6"), make) == built
    wanted = change(RTX, compute_capability="7.5")
    assert reason(cache, wanted) == "for compute capability 8.6,8.9,12.0, not 7.5"
    wanted = change(RTX, compute_capability="8.9", library_version="1.6.1.120")
    assert reason(cache, wanted) == "built by TensorRT-RTX 1.7.1.116, this is 1.6.1.120"
    # One of TensorRT is for one GPU, whatever its capability.
    assert not change(KEY, compute_capability="8.7,8.9").serves(change(KEY, compute_capability="8.9"))


# What there is, and why it does not do


def test_nothing_is_there(cache: EngineCache) -> None:
    assert reason(cache) == "no engine yet"
    assert cache.entries() == []
    assert not cache.root.exists()
    cache.build(change(KEY, size=(224, 224)), make)
    assert reason(cache) == "no engine yet"


def test_built_once_and_found(cache: EngineCache) -> None:
    built = cache.build(KEY, make)
    assert sorted(built.files) == ["decode", "encode"]
    assert built.nbytes == 2 * len(CONTENT)
    assert cache.find(KEY) == built
    assert [entry.found for entry in cache.entries()] == [built]

    def again(folder: Path) -> None:
        raise AssertionError("built twice")

    assert cache.build(KEY, again) == built


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"library_version": "10.3.0"}, "built by TensorRT 10.3.0, this is 10.7.0"),
        ({"gpu": "Thor"}, "for another GPU: Thor, this is Orin"),
        ({"sm_count": 8}, "for a GPU with 8 multiprocessors, this one has 16"),
        ({"driver": "535"}, "built with driver 535, this is 540.4"),
        ({"bundle_digest": "c"}, "of other weights, or of graphs that were exported otherwise"),
        ({"attention": "fp32"}, "with attention fp32, not softmax32"),
        ({"options": ()}, "built with no options, not optimization_level=3 workspace_mb=4096"),
        (
            {"library_version": "10.3.0", "gpu": "Thor", "compute_capability": "11.0"},
            "built by TensorRT 10.3.0, this is 10.7.0; for another GPU: Thor, this is Orin; for compute capability "
            "11.0, not 8.7",
        ),
    ],
)
def test_a_stale_or_foreign_engine_is_explained_and_stays(
    cache: EngineCache, fields: dict[str, object], expected: str
) -> None:
    other = cache.build(change(KEY, **fields), make)
    assert reason(cache) == expected
    assert differences(other.key, KEY) == expected.split("; ")
    mine = cache.build(KEY, make)
    assert cache.find(KEY) == mine
    assert cache.find(other.key) == other


# Damage


def truncate(folder: Path) -> str:
    with (folder / "encode.engine").open("r+b") as file:
        file.truncate(10)
    return "truncated: engine file encode.engine has 10 of 7000 bytes"


def flip(folder: Path) -> str:
    (folder / "decode.engine").write_bytes(b"E" + CONTENT[::-1][1:])
    return "damaged: engine file decode.engine is not as it was built (its SHA-256 differs)"


def remove(folder: Path) -> str:
    (folder / "decode.engine").unlink()
    return "incomplete: decode.engine is missing"


def remove_sidecar(folder: Path) -> str:
    (folder / "engine.json").unlink()
    return "incomplete: engine.json is missing"


def empty_sidecar(folder: Path) -> str:
    (folder / "engine.json").write_bytes(b"")
    return "damaged: engine.json cannot be read"


def odd_sidecar(folder: Path) -> str:
    (folder / "engine.json").write_text('{"format": 1, "key": {"size": [1]}, "engines": []}')
    return "damaged: engine.json cannot be read"


def binary_sidecar(folder: Path) -> str:
    (folder / "engine.json").write_bytes(bytes(range(256)))
    return "damaged: engine.json cannot be read"


def future_sidecar(folder: Path) -> str:
    (folder / "engine.json").write_text('{"format": 99}')
    return "written by another version of this program (format 99)"


@pytest.mark.parametrize(
    "damage",
    [truncate, flip, remove, remove_sidecar, empty_sidecar, odd_sidecar, binary_sidecar, future_sidecar],
    ids=lambda function: function.__name__,
)
def test_a_damaged_engine_is_explained_and_rebuilt(cache: EngineCache, damage) -> None:  # type: ignore[no-untyped-def]
    folder = cache.build(KEY, make).folder
    expected = damage(folder)
    assert reason(cache).startswith(expected)
    if damage is not flip:  # a list does not read every byte
        (entry,) = cache.entries()
        assert isinstance(entry.found, Missing)
        assert entry.found.reason.startswith(expected)
    assert_usable(cache)


def test_a_damaged_engine_stays_until_the_new_one_is_there(cache: EngineCache) -> None:
    folder = cache.build(KEY, make).folder
    expected = truncate(folder)

    def fail(folder: Path) -> None:
        raise NetworkError("TensorRT refused the graph")

    with pytest.raises(NetworkError, match="refused the graph"):
        cache.build(KEY, fail)
    assert reason(cache) == expected
    assert_usable(cache)


def test_an_engine_that_the_library_refuses_is_set_aside_and_rebuilt(cache: EngineCache) -> None:
    set_aside(cache.build(KEY, make).folder)
    assert reason(cache) == "no engine yet"
    assert cache.entries() == []
    cache.build(KEY, make)
    set_aside(cache.build(KEY, make).folder)
    assert [path.suffix for path in cache.root.iterdir() if path.is_dir()] == [".damaged"]
    assert_usable(cache)


def test_kernels_beside_an_engine_disturb_nobody_and_go_with_it(cache: EngineCache) -> None:
    built = cache.build(RTX, make)
    kernels = built.folder / f"encode.engine{KERNELS_SUFFIX}"
    kernels.write_bytes(b"compiled for this GPU")
    assert cache.find(RTX) == built
    (entry,) = cache.entries()
    assert entry.found == built
    truncate(built.folder)
    assert cache.build(RTX, make).files == built.files and not kernels.exists(), "they were of the engine before"


# A full disk


def write_to_full_disk(folder: Path) -> None:
    (folder / "encode.engine").write_bytes(CONTENT)
    (folder / "decode.engine").symlink_to("/dev/full")
    (folder / "decode.engine").write_bytes(CONTENT)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_leaves_none(cache: EngineCache) -> None:
    with pytest.raises(NetworkError, match=r"the disk is full \(No space left on device\): .* MB left; make room"):
        cache.build(KEY, write_to_full_disk)
    assert reason(cache) == "no engine yet"
    assert_usable(cache)


def test_a_disk_that_ends_in_the_middle(cache: EngineCache) -> None:
    """The system itself refuses the last bytes: of the engine, or of the sidecar."""
    program = PROGRAM + "print(cache.build(key, lambda folder: write(folder, int(sys.argv[4]))).folder)\n"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    for size in (20_000, 400):
        result = subprocess.run(
            [*command(program, cache), str(size)], preexec_fn=limit, capture_output=True, text=True, env=environment()
        )
        assert result.returncode == 1
        assert "NetworkError: " in result.stderr
        assert "the disk is full (File too large)" in result.stderr
        assert reason(cache) == "no engine yet"
    assert_usable(cache)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NetworkError, match="file/engines: Not a directory"):
        EngineCache(tmp_path / "file" / "engines").build(KEY, make)


def test_a_build_that_writes_nothing(cache: EngineCache) -> None:
    with pytest.raises(NetworkError, match="wrote no engine"):
        cache.build(KEY, lambda folder: None)
    assert_usable(cache)


def test_a_cancelled_build_leaves_none(cache: EngineCache) -> None:
    def interrupt(folder: Path) -> None:
        make(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.build(KEY, interrupt)
    assert reason(cache) == "no engine yet"
    assert_usable(cache)


# Other processes

PROGRAM = f"""
import json, sys, time
from pathlib import Path
from recon_ros.runtimes.engine_cache import EngineCache
from recon_ros.runtimes.engine_key import EngineKey
cache, notes = EngineCache(Path(sys.argv[1])), Path(sys.argv[2])
key = EngineKey.from_dict(json.loads(sys.argv[3]))
def write(folder, size):
    (folder / "encode.engine").write_bytes(bytes(size))
def until(name):
    while not (notes / name).exists():
        time.sleep(0.01)
def make(folder):
    with (notes / "builds").open("a") as file:
        file.write("built\\n")
    (folder / "encode.engine").write_bytes({CONTENT!r}[:3000])
    (notes / "half").touch()
    until("go")
    (folder / "encode.engine").write_bytes({CONTENT!r})
def waiting(seconds):
    (notes / "waiting").touch()
    return True
"""


def command(program: str, cache: EngineCache, key: EngineKey = KEY) -> list[str]:
    notes = cache.root.parent
    return [sys.executable, "-c", program, str(cache.root), str(notes), json.dumps(key.to_dict())]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def start(cache: EngineCache) -> subprocess.Popen[str]:
    program = PROGRAM + "print(cache.build(key, make, waiting).folder)\n"
    return subprocess.Popen(command(program, cache), stdout=subprocess.PIPE, text=True, env=environment())


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, "the process ended early"
        time.sleep(0.01)


def test_two_processes_at_once_build_once(cache: EngineCache, tmp_path: Path) -> None:
    first = start(cache)
    wait_for(tmp_path / "half", first)
    second = start(cache)
    wait_for(tmp_path / "waiting", second)
    assert reason(cache) == "no engine yet"
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=60)[0].strip() for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert said == [str(cache.root / KEY.folder_name)] * 2
    assert (tmp_path / "builds").read_text() == "built\n"
    found = cache.find(KEY)
    assert isinstance(found, Engines)
    assert found.files["encode"].read_bytes() == CONTENT


def test_who_waits_may_give_up(cache: EngineCache, tmp_path: Path) -> None:
    builder = start(cache)
    wait_for(tmp_path / "half", builder)
    asked = []

    def waiting(seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) < 2

    with pytest.raises(BuildStopped, match="gave up waiting"):
        cache.build(KEY, make, waiting)
    assert len(asked) == 2
    # Other engines are built meanwhile, and the one that is being built is not swept away.
    cache.build(change(KEY, precision="bf16"), make)
    (tmp_path / "go").touch()
    builder.communicate(timeout=60)
    assert builder.returncode == 0
    assert isinstance(cache.find(KEY), Engines)


def test_kill_9_during_a_build(cache: EngineCache, tmp_path: Path) -> None:
    builder = start(cache)
    wait_for(tmp_path / "half", builder)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert builder.stdout is not None
    builder.stdout.close()
    assert reason(cache) == "no engine yet"
    assert cache.entries() == []
    left = cache.root / f"{KEY.folder_name}.building"
    assert left.is_dir()
    # Any later build sweeps, and the same one succeeds.
    cache.build(change(KEY, precision="bf16"), make)
    assert not left.exists()
    assert isinstance(cache.build(KEY, make), Engines)
    left.mkdir()
    set_aside(cache.root / KEY.folder_name)
    assert isinstance(cache.build(KEY, make), Engines)
    assert isinstance(read_engines(cache.root / KEY.folder_name), Engines)
    assert not left.exists()
