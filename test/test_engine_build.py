# SPDX-License-Identifier: Apache-2.0
"""The process that builds: what it says, how it is cancelled, and that it does not outlive who wanted it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.networks.plan import GraphSpec, StepPlan
from recon_ros.runtimes import engine_build, engine_prepare
from recon_ros.runtimes.bundle import Bundle
from recon_ros.runtimes.engine_build import BuildProcess
from recon_ros.runtimes.engine_request import BuildProgress, BuildRequest, check_size
from recon_ros.runtimes.trt.builder import BuildOptions
from recon_ros.runtimes.trt.library import Library
from recon_ros.runtimes.trt.progress import BuildCancelled, ProgressSink

ROOT = Path(__file__).resolve().parents[1]
REQUEST = BuildRequest(model="cut3r-small-dpt", width=96, height=64, outputs=("points_memory",))

PROGRAM = """
import os, sys, time
from pathlib import Path
from recon_ros.errors import NetworkError
from recon_ros.runtimes import engine_build
notes = Path(sys.argv[1])
def until(name):
    while not (notes / name).exists():
        time.sleep(0.01)
def work(request, progress):
    (notes / "pid").write_text(str(os.getpid()))
    print("a library chatters on stdout")
{body}
sys.exit(engine_build.main(sys.argv[2:], work))
"""


def process(folder: Path, body: str) -> BuildProcess:
    """A building process that does `body` instead of building."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    program = PROGRAM.replace("{body}", lines)
    return BuildProcess(REQUEST, [sys.executable, "-c", program, str(folder)])


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def wait_for(path: Path, build: BuildProcess) -> None:
    while not path.exists():
        assert build.running, build.failed
        time.sleep(0.01)


def assert_gone(folder: Path) -> None:
    pid = int((folder / "pid").read_text())
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.01)


# Requests


def test_a_request_survives_the_command_line() -> None:
    assert BuildRequest.from_json(REQUEST.to_json()) == REQUEST
    rtx = BuildRequest(model="x", width=32, height=16, runtime="tensorrt_rtx", targets=("8.6", "12.0"), cache="/c")
    assert BuildRequest.from_json(rtx.to_json()) == rtx
    assert rtx.cache_root == Path("/c")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": "x", "width": 1, "height": 1, "colour": "red"}'])
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(NetworkError, match="not a request"):
        BuildRequest.from_json(text)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(NetworkError, match="'torch' needs nothing built"):
        BuildRequest(model="x", width=16, height=16, runtime="torch")
    with pytest.raises(NetworkError, match=r"tensorrt builds for this machine, not for 8\.6"):
        BuildRequest(model="x", width=16, height=16, targets=("8.6",))


def test_the_nearest_size_is_named() -> None:
    card = ModelCard(name="net", family="cut3r", max_size=512, multiple=16)
    check_size(card, 512, 384)
    for size, nearest in {(500, 300): "304x496", (1, 16): "16x16", (1024, 512): "512x512"}.items():
        with pytest.raises(NetworkError, match=rf"multiples of 16 and at most 512; the nearest is {nearest}"):
            check_size(card, *size)


def test_progress_in_words() -> None:
    assert BuildProgress("building decode", 0.374, 192.8).message == "building decode, 37 %, 3:12"


def test_a_process_that_cannot_be_started_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match="cannot be started: No such file"):
        BuildProcess(REQUEST, ["/no/such/program"]).start()

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_build.tempfile, "TemporaryFile", full)
    build = BuildProcess(REQUEST)
    with pytest.raises(NetworkError, match="cannot be started: No space left on device"):
        build.start()
    assert not build.running and not build.done


# The work, with a library that only pretends


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that were built."""
    built: list[str] = []
    graphs = tuple(GraphSpec(name, (), ()) for name in ("encode", "decode"))
    bundle = Bundle(
        model="m",
        card=ModelCard(name="m", family="dust3r"),
        terms="",
        precision="fp16",
        attention="softmax32",
        options={},
        weights_digest="",
        made_by="",
        plan=StepPlan("dust3r", 96, 64, graphs, {}, (), ()),
        folder=tmp_path / "bundle",
        digest="0",
    )

    def build_engine(library: Library, onnx: Path, target: Path, options: BuildOptions, progress: ProgressSink) -> None:
        assert onnx == tmp_path / "bundle" / f"{target.stem}.onnx"
        assert options.compute_capability == "8.6,8.9,12.0"
        if not progress.update("kernels", 0.5):
            raise BuildCancelled("the sink said no")
        target.write_bytes(target.stem.encode())
        built.append(target.stem)

    monkeypatch.setattr(engine_prepare, "load_library", lambda name: Library(None, name, "1.7.1"))
    monkeypatch.setattr(engine_prepare, "find_gpu", lambda: None)
    monkeypatch.setattr(engine_prepare, "build_engine", build_engine)
    monkeypatch.setattr(engine_prepare, "bundle_place", lambda request: tmp_path)
    monkeypatch.setattr(engine_prepare, "export", lambda request, folder, progress: bundle)
    return built


class Listener:
    """Hears of progress, and says no from a phase on."""

    def __init__(self, last: str = "") -> None:
        self.heard: list[tuple[str, float]] = []
        self._last = last

    def update(self, phase: str, fraction: float) -> bool:
        self.heard.append((phase, round(fraction, 3)))
        return phase != self._last


def wish(tmp_path: Path, runtime: str = "tensorrt_rtx") -> BuildRequest:
    return BuildRequest(model="m", width=96, height=64, runtime=runtime, cache=str(tmp_path / "cache"))


def test_what_is_missing_is_built_once(tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    first = engine_prepare.prepare(wish(tmp_path), listener)
    assert builds == ["encode", "decode"]
    assert first.why == "no engine yet"
    assert first.engines is not None
    assert first.engines.files["decode"].read_bytes() == b"decode"
    assert first.engines.folder.parent == tmp_path / "cache" / "engines"
    assert listener.heard == [
        ("no engine yet; building", 0.3),
        ("building encode (1 of 2)", 0.475),
        ("building decode (2 of 2)", 0.825),
    ]
    again = engine_prepare.prepare(wish(tmp_path), Listener())
    assert again.engines == first.engines
    assert builds == ["encode", "decode"]
    monkeypatch.setattr(engine_prepare, "load_library", lambda name: Library(None, name, "1.8.0"))
    upgraded = engine_prepare.prepare(wish(tmp_path), Listener())
    assert upgraded.why == "built by TensorRT-RTX 1.7.1, this is 1.8.0"
    assert builds == ["encode", "decode"] * 2


def test_the_sink_may_say_no_at_any_time(tmp_path: Path, builds: list[str]) -> None:
    for phase in ("no engine yet; building", "building encode (1 of 2)", "building decode (2 of 2)"):
        with pytest.raises(BuildCancelled):
            engine_prepare.prepare(wish(tmp_path), Listener(phase))
        assert not list(tmp_path.glob("cache/engines/m_*/"))
    assert builds == ["encode"]


def test_tensorrt_without_a_gpu_exports_nothing(tmp_path: Path, builds: list[str]) -> None:
    with pytest.raises(NetworkError, match=r"tensorrt 1.7.1 builds engines for the GPU of this machine, and none is"):
        engine_prepare.prepare(wish(tmp_path, "tensorrt"), Listener())


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, builds: list[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    request = BuildRequest(model="m", width=96, height=64, runtime="openvino", out=str(tmp_path))
    with pytest.raises(NetworkError, match="holds no exported network"):
        engine_prepare.prepare(request, Listener())


# The process


def test_progress_and_result_come_through(tmp_path: Path) -> None:
    build = process(
        tmp_path, 'assert progress.update("half", 0.5)\nuntil("go")\nreturn {"bundle": request.model, "engines": ""}'
    )
    assert not build.running
    assert build.progress == BuildProgress()
    build.start()
    while build.progress.phase != "half":
        assert build.running, build.failed
    assert build.progress.fraction == 0.5
    assert build.progress.elapsed_s > 0
    assert not build.done
    assert build.failed is None
    (tmp_path / "go").touch()
    assert build.wait()
    assert build.done
    assert build.result == {"bundle": "cut3r-small-dpt", "engines": ""}
    assert build.failed is None
    build.cancel()  # too late, and harmless


@pytest.mark.faults
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise NetworkError('no weights at /x')", "no weights at /x"),
        ("raise ValueError('odd')", "ValueError: odd"),
    ],
)
def test_what_goes_wrong_is_told(tmp_path: Path, body: str, expected: str) -> None:
    build = process(tmp_path, body)
    build.start()
    assert build.wait()
    assert build.failed == expected
    assert not build.done


@pytest.mark.faults
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo out of luck >&2; kill -9 $$", "the build was killed, perhaps for want of memory (out of luck)"),
        ("kill -SEGV $$", "the build was ended by SIGSEGV (it said nothing)"),
        ("echo a >&2; echo b >&2; echo >&2; exit 3", "the build ended with exit code 3: b"),
        ("exit 0", "the build ended with exit code 0: it said nothing"),
        ('echo \'{"done": {"bundle": "x"}}\'; exit 4', "the build ended with exit code 4: it said nothing"),
        ("echo '{\"failed\": \"why\"}'; echo no JSON; echo '[]'; exit 1", "why"),
    ],
)
def test_every_death_has_a_sentence(script: str, expected: str) -> None:
    build = BuildProcess(REQUEST, ["/bin/sh", "-c", f"{script}; :"])
    build.start()
    assert build.wait()
    assert build.failed == expected
    assert not build.done


@pytest.mark.faults
@pytest.mark.parametrize(
    "body",
    [
        'while progress.update("on", 0.1): time.sleep(0.01)\nraise NetworkError("the sink said no")',
        "try:\n    while True: time.sleep(0.01)\nfinally:\n    (notes / 'tidied').touch()",
    ],
    ids=["asks the sink", "Python code that tidies up"],
)
def test_cancel(tmp_path: Path, body: str) -> None:
    build = process(tmp_path, body)
    build.start()
    wait_for(tmp_path / "pid", build)
    build.cancel()
    assert build.wait()
    assert build.failed == "cancelled"
    assert_gone(tmp_path)
    assert ("tidied" in body) == (tmp_path / "tidied").exists()


@pytest.mark.faults
def test_code_that_heeds_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As C++ code for minutes, with no Python in between."""
    body = "engine_build.PATIENCE_S = 0.1\nimport ctypes; ctypes.CDLL(None).sleep(3600)"
    build = process(tmp_path, body)
    build.start()
    wait_for(tmp_path / "pid", build)
    build.cancel()
    assert build.wait()
    assert build.failed
    assert_gone(tmp_path)


@pytest.mark.faults
def test_it_does_not_outlive_who_wanted_it(tmp_path: Path) -> None:
    """Kill −9 of the node: the build ends as well, tidily."""
    child = PROGRAM.replace(
        "{body}", "    try:\n        while True: time.sleep(0.01)\n    finally:\n        (notes / 'tidied').touch()"
    )
    parent = (
        "import sys, time\n"
        "from recon_ros.runtimes.engine_build import BuildProcess, BuildRequest\n"
        "build = BuildProcess(BuildRequest.from_json(sys.argv[3]), [sys.executable, '-c', sys.argv[2], sys.argv[1]])\n"
        "build.start(); build.wait()\n"
    )
    arguments = [sys.executable, "-c", parent, str(tmp_path), child, REQUEST.to_json()]
    node = subprocess.Popen(arguments, env=os.environ)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert node.poll() is None
        time.sleep(0.01)
    node.send_signal(signal.SIGKILL)
    node.wait()
    assert_gone(tmp_path)
    assert (tmp_path / "tidied").exists()
