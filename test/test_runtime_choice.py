# SPDX-License-Identifier: Apache-2.0
"""Who executes a network: order, self-check and ladder, builds, and the memory on a change; all with fakes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recon_ros import Reconstructor
from recon_ros.config import Config, updated
from recon_ros.errors import ConfigError, InputError, NetworkError
from recon_ros.frame import Camera, Prediction
from recon_ros.networks.card import ModelCard
from recon_ros.runtimes import source as source_module
from recon_ros.runtimes.choice import Checked, Lack, Machine, Opened, Size, Unusable, choose_ladders
from recon_ros.runtimes.depth import DepthSource
from recon_ros.runtimes.engine_request import BuildProgress
from recon_ros.runtimes.ladder import PRECISIONS, Variant, make_ladder
from recon_ros.runtimes.source import NetworkSource
from recon_ros.runtimes.status import RuntimeStatus, close_source, status_of

CARD = ModelCard(name="fake", family="cut3r", max_size=64, multiple=16)
SIZE = (64, 48)
IMAGE = np.zeros((48, 64, 3), np.uint8)


class FakeDriver:
    """Counts its steps in its memory; a memory carried over goes on counting."""

    card = CARD

    def __init__(self, variant: Variant, takes_memory: bool = True) -> None:
        self.runtime = str(variant)
        self.takes_memory, self.closed = takes_memory, False

    def initial_memory(self) -> tuple[str, int]:
        return (self.runtime, 0)

    def step(
        self,
        memory: tuple[str, int],
        image: NDArray[np.uint8],
        camera: Camera | None,
        depth: NDArray[np.float32] | None = None,
    ) -> tuple[tuple[str, int], Prediction]:
        assert not self.closed, "a closed driver is not used"
        assert memory[0] == self.runtime, "a memory of its own"
        if image.min() == 255:
            raise NetworkError("the GPU fell off the bus")
        if image.max() == 255:
            raise InputError("network_output", "a frame it does not like")
        count = memory[1] + 1
        points = np.full((*image.shape[:2], 3), count, np.float32)
        return (self.runtime, count), Prediction(points, points[..., 0])

    def save_memory(self, memory: tuple[str, int]) -> dict[str, NDArray[Any]]:
        assert not self.closed and memory[0] == self.runtime
        return {"count": np.array(memory[1])}

    def load_memory(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[str, int]:
        if not self.takes_memory:
            raise NetworkError("tensor 'count' is of another shape")
        return (self.runtime, int(arrays["count"]))

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeBuild:
    """A build that ends when the test says so."""

    variant: Variant
    progress: BuildProgress = BuildProgress("exporting", 0.43, 12.0)  # noqa: RUF009 - frozen
    running: bool = True
    done: bool = False
    failed: str = ""
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakeWorkshop:
    """Where `impossible` runtimes are not installed, `ready` variants lie in the cache, `wrong` ones give wrong
    numbers, `broken` and `stale` ones do not load, and `forgetful` ones take no memory over. PyTorch needs nothing."""

    impossible: set[str] = field(default_factory=lambda: {"tensorrt", "tensorrt_rtx"})
    ready: set[str] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)
    broken: dict[str, Exception] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)
    forgetful: set[str] = field(default_factory=set)
    machine: Machine = Machine(cuda=False, bf16=True)  # noqa: RUF009 - frozen
    card: ModelCard = CARD
    opened: list[FakeDriver] = field(default_factory=list)
    builds: list[FakeBuild] = field(default_factory=list)

    def lack(self, variant: Variant, size: Size | None) -> Lack | None:
        if variant.runtime in self.impossible:
            return Lack(f"{variant.runtime} is not installed")
        if size is None or variant.runtime == "torch" or str(variant) in self.ready:
            return None
        return Lack("not in the cache", f"recon engine build fake --precision {variant.precision}", buildable=True)

    def open(self, variant: Variant, size: Size) -> Opened:
        if str(variant) in self.stale:
            self.stale.remove(str(variant))
            self.ready.remove(str(variant))
            raise Unusable("the engine is of another version")
        if str(variant) in self.broken:
            raise self.broken[str(variant)]
        driver = FakeDriver(variant, str(variant) not in self.forgetful)
        self.opened.append(driver)
        checked = None
        if not variant.is_reference:
            bad = str(variant) in self.wrong
            checked = Checked(not bad, 7.5 if bad else 0.25, "0/points")
        return Opened(variant, driver, "/cache/folder", checked)

    def build(self, variant: Variant, size: Size) -> FakeBuild:
        self.builds.append(FakeBuild(variant))
        return self.builds[-1]

    def finish(self, well: bool = True) -> None:
        """The last build ends."""
        build = self.builds[-1]
        build.running, build.done, build.failed = False, well, "" if well else "the disk is full"
        if well:
            self.ready.add(str(build.variant))


def make(workshop: FakeWorkshop | None = None, **options: Any) -> tuple[NetworkSource, FakeWorkshop]:
    """A source with options, ``engine_build`` meaning ``engine.build``."""
    workshop = workshop or FakeWorkshop()
    config = updated(Config(), {name.replace("engine_", "engine."): value for name, value in options.items()})
    return NetworkSource(config, workshop), workshop


def bad_image() -> NDArray[np.uint8]:
    image = IMAGE.copy()
    image[0, 0] = 255
    return image


def first_step(source: NetworkSource) -> str:
    """Who executes the first step."""
    source.step(source.initial_memory(), IMAGE, None)
    return source.runtime


# --- ladders


def rungs(runtime: str, precision: str, **options: Any) -> list[str]:
    return [str(variant) for variant in make_ladder(runtime, precision, **options).rungs]


def test_the_ladder_of_a_gpu_goes_from_half_to_exact() -> None:
    expected = ["fp16", "fp16 with fp32 attention", "bf16", "fp32"]
    assert rungs("tensorrt", "auto") == [f"tensorrt {rung}" for rung in expected]
    assert rungs("tensorrt", "bf16") == ["tensorrt bf16", "tensorrt fp32"]
    assert rungs("torch", "auto", device="cuda")[0] == "torch fp16 on cuda"


def test_the_ladder_of_a_cpu_follows_what_it_has() -> None:
    assert rungs("openvino", "auto", bf16=True) == ["openvino bf16", "openvino fp32"]
    assert rungs("openvino", "auto", bf16=False) == ["openvino fp32"]
    assert rungs("openvino", "int8", bf16=False) == ["openvino int8", "openvino fp32"]
    assert rungs("openvino", "bf16", bf16=False)[0] == "openvino bf16", "asked for by name, emulated or not"
    assert rungs("torch", "auto") == ["torch fp32 on cpu"]


def test_the_last_rung_of_torch_is_the_reference() -> None:
    for mode in ("eager", "compile", "graphs", "compile_graphs"):
        for precision in ("auto", *PRECISIONS["torch"]):
            ladder = make_ladder("torch", precision, "cuda", mode)
            assert ladder.rungs[-1].is_reference and len(set(ladder.rungs)) == len(ladder.rungs)
    assert rungs("torch", "fp32", mode="compile") == ["torch fp32 on cpu (compile)", "torch fp32 on cpu"]


@pytest.mark.parametrize(("runtime", "precision"), [("tensorrt", "int8"), ("openvino", "fp16"), ("torch", "int8")])
def test_a_precision_that_the_runtime_lacks_is_a_sentence(runtime: str, precision: str) -> None:
    with pytest.raises(ConfigError, match=f"'precision' is '{precision}'; runtime {runtime} has "):
        make(FakeWorkshop(impossible=set()), runtime=runtime, precision=precision)


def test_auto_prefers_gpus_and_compiled_graphs() -> None:
    def order(machine: Machine, **options: str) -> list[str]:
        return [str(ladder.rungs[0]) for ladder in choose_ladders(updated(Config(), options), machine)]

    assert order(Machine(cuda=True, bf16=True)) == [
        *("tensorrt fp16", "tensorrt_rtx fp16", "torch fp16 on cuda", "openvino bf16", "torch fp32 on cpu"),
    ]
    assert order(Machine())[2:] == ["openvino fp32", "torch fp32 on cpu"]
    assert order(Machine(), precision="int8")[0] == "openvino int8", "who has what was asked for comes first"
    assert order(Machine(), runtime="openvino")[0] == "openvino fp32"


# --- the choice


def test_nothing_is_loaded_before_the_first_image() -> None:
    source, workshop = make()
    assert not workshop.opened and source.runtime == "auto"
    assert source.runtime_status.state == "waiting" and not source.runtime_status.serves
    assert source.card is CARD


def test_auto_takes_the_best_that_is_ready_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source, _ = make()
    assert first_step(source) == "torch fp32 on cpu"
    (line,) = [r.getMessage() for r in caplog.records if "runs with" in r.getMessage()]
    for expected in (
        "fake runs with torch fp32 on cpu at 64x48",
        "tensorrt fp16 (tensorrt is not installed)",
        "openvino bf16 (not in the cache: run `recon engine build fake --precision bf16`)",
    ):
        assert expected in line
    assert "with fp32 attention" not in line, "one reason for each runtime"
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "looking for what can run fake at 64x48", "said before it begins"
    assert said[1] == "loading fake as torch fp32 on cpu for 64x48"


@pytest.mark.parametrize(
    ("ready", "cuda", "expected"),
    [
        ({"openvino bf16"}, False, "openvino bf16"),
        ({"openvino fp32"}, False, "openvino fp32"),
        ({"openvino bf16"}, True, "torch fp16 on cuda"),
        ({"tensorrt_rtx fp16", "openvino bf16"}, True, "tensorrt_rtx fp16"),
        ({"tensorrt fp32", "tensorrt_rtx fp16"}, True, "tensorrt fp32"),
    ],
)
def test_what_is_ready_decides(ready: set[str], cuda: bool, expected: str) -> None:
    workshop = FakeWorkshop(impossible=set() if cuda else {"tensorrt", "tensorrt_rtx"}, ready=ready)
    workshop.machine = Machine(cuda=cuda, bf16=True)
    source, _ = make(workshop)
    assert first_step(source) == expected
    status = source.runtime_status
    assert (status.state, status.degraded, status.file) == ("ready", False, "/cache/folder")
    assert status.self_check == 0.25 and status.runtime == expected


def test_the_reference_is_not_checked_against_itself() -> None:
    source, _ = make(runtime="torch")
    first_step(source)
    assert source.runtime_status.self_check is None


def test_a_runtime_that_can_never_run_is_refused_at_load() -> None:
    with pytest.raises(NetworkError, match="'depth' cannot run here: tensorrt: tensorrt is not installed"):
        make(runtime="tensorrt")
    with pytest.raises(NetworkError, match=r"openvino: .* is not installed; torch: torch is not installed"):
        make(FakeWorkshop(impossible=set(PRECISIONS)))


def test_a_runtime_asked_for_by_name_refuses_frames_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    source, workshop = make(runtime="openvino")
    with pytest.raises(InputError, match="run `recon engine build fake --precision bf16`") as caught:
        first_step(source)
    assert caught.value.reason == "engine_missing" and source.runtime_status.state == "missing"
    assert not workshop.opened and not workshop.builds, "no other runtime, and no build that nobody asked for"
    workshop.ready.add("openvino bf16")
    with pytest.raises(InputError):
        first_step(source)  # not looked for with every frame
    monkeypatch.setattr(source_module, "LOOK_AGAIN_S", 0.0)
    assert first_step(source) == "openvino bf16", "built in another terminal meanwhile"


def test_a_precision_asked_for_by_name_is_waited_for() -> None:
    source, _ = make(FakeWorkshop(ready={"openvino fp32"}), runtime="openvino", precision="bf16")
    with pytest.raises(InputError, match="openvino bf16"):
        first_step(source)
    source, _ = make(FakeWorkshop(ready={"openvino fp32"}), runtime="openvino")
    assert first_step(source) == "openvino fp32", "auto takes what there is"


def test_another_size_is_refused_and_the_first_goes_on() -> None:
    source, _ = make()
    memory, _ = source.step(source.initial_memory(), IMAGE, None)
    with pytest.raises(InputError, match="has 32x48 pixels for the network, which was prepared for 64x48") as caught:
        source.step(memory, IMAGE[:, :32], None)
    assert caught.value.reason == "image_size"
    _, prediction = source.step(memory, IMAGE, None)
    assert prediction.points_self[0, 0, 0] == 2


# --- self-check and ladder


def test_wrong_numbers_lead_down_the_ladder(caplog: pytest.LogCaptureFixture) -> None:
    workshop = FakeWorkshop(impossible=set(), ready={f"tensorrt {p}" for p in ("fp16", "bf16", "fp32")})
    workshop.ready.add("tensorrt fp16 with fp32 attention")
    workshop.wrong = {"tensorrt fp16", "tensorrt fp16 with fp32 attention"}
    source, _ = make(workshop, runtime="tensorrt", precision="fp16")
    assert first_step(source) == "tensorrt bf16"
    assert [d.closed for d in workshop.opened] == [True, True, False]
    status = source.runtime_status
    assert status.degraded and status.state == "ready" and "tensorrt fp16 is given up: wrong numbers" in status.message
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings[0].startswith(
        "fake: tensorrt fp16 is given up: wrong numbers: in the self-check 0/points is off by"
    )
    assert len(warnings) == 2


def test_rungs_that_are_missing_on_the_way_are_said_and_passed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    workshop = FakeWorkshop(impossible=set(), ready={"tensorrt fp16", "tensorrt fp32"}, wrong={"tensorrt fp16"})
    source, _ = make(workshop, runtime="tensorrt", precision="fp16")
    assert first_step(source) == "tensorrt fp32"
    assert "tensorrt fp16 with fp32 attention (not in the cache: run `recon engine build" in caplog.text


def test_rungs_that_are_missing_on_the_way_are_built() -> None:
    workshop = FakeWorkshop(impossible=set(), ready={"tensorrt fp16"}, wrong={"tensorrt fp16"})
    source, _ = make(workshop, runtime="tensorrt", engine_build=True)
    with pytest.raises(InputError) as caught:
        first_step(source)
    assert caught.value.reason == "engine_building"
    assert [str(b.variant) for b in workshop.builds] == ["tensorrt fp16 with fp32 attention"]
    workshop.finish()
    assert first_step(source) == "tensorrt fp16 with fp32 attention"
    assert len(workshop.builds) == 1 and source.runtime_status.degraded


@pytest.mark.parametrize("runtime", ["auto", "tensorrt"])
def test_below_the_last_rung_comes_another_runtime(runtime: str) -> None:
    names = {str(v) for v in make_ladder("tensorrt", "auto").rungs}
    source, _ = make(FakeWorkshop(impossible={"tensorrt_rtx"}, ready=set(names), wrong=names), runtime=runtime)
    assert first_step(source) == "torch fp32 on cpu"
    assert source.runtime_status.degraded, "and that is seen"


@pytest.mark.parametrize("error", [NetworkError("the engine is of another version"), RuntimeError("myelin")])
def test_what_does_not_load_leads_down_as_well(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    source, _ = make(FakeWorkshop(ready={"openvino bf16", "openvino fp32"}, broken={"openvino bf16": error}))
    assert first_step(source) == "openvino fp32"
    assert str(error) in caplog.text and str(error) in source.runtime_status.message


def test_files_that_are_refused_are_put_aside_and_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    workshop = FakeWorkshop(ready={"openvino bf16"}, stale={"openvino bf16"})
    source, _ = make(workshop, engine_build=True)
    assert first_step(source) == "torch fp32 on cpu"
    assert [str(b.variant) for b in workshop.builds] == ["openvino bf16"] and not source.runtime_status.degraded
    assert "openvino bf16: the engine is of another version; it was put aside" in caplog.text
    workshop.finish()
    assert first_step(source) == "openvino bf16"


def test_when_nothing_works_frames_are_refused_and_it_is_said() -> None:
    workshop = FakeWorkshop(impossible={"tensorrt", "tensorrt_rtx", "openvino"})
    workshop.broken = {"torch fp32 on cpu": NetworkError("weights of another network")}
    source, _ = make(workshop)
    with pytest.raises(InputError, match=r"torch fp32 on cpu \(weights of another network\)") as caught:
        first_step(source)
    assert caught.value.reason == "engine_failed" and source.runtime_status.state == "failed"


def test_who_breaks_down_is_replaced_with_the_next_frame(caplog: pytest.LogCaptureFixture) -> None:
    source, workshop = make(FakeWorkshop(ready={"openvino bf16", "openvino fp32"}))
    memory, _ = source.step(source.initial_memory(), IMAGE, None)
    memory, _ = source.step(memory, IMAGE, None)
    with pytest.raises(InputError, match="openvino bf16 broke down: the GPU fell off the bus") as caught:
        source.step(memory, np.full_like(IMAGE, 255), None)
    assert caught.value.reason == "engine_failed" and workshop.opened[0].closed
    memory, prediction = source.step(memory, IMAGE, None)
    assert source.runtime == "openvino fp32" and prediction.points_self[0, 0, 0] == 1
    assert "the memory is lost; the network begins anew" in caplog.text and source.runtime_status.degraded
    _, prediction = source.step(memory, IMAGE, None)
    assert prediction.points_self[0, 0, 0] == 2


def test_when_two_break_down_in_a_row_the_third_serves(caplog: pytest.LogCaptureFixture) -> None:
    source, _ = make(FakeWorkshop(ready={"openvino bf16", "openvino fp32"}))
    memory, _ = source.step(source.initial_memory(), IMAGE, None)
    for broken in ("openvino bf16", "openvino fp32"):
        with pytest.raises(InputError, match=f"{broken} broke down"):
            source.step(memory, np.full_like(IMAGE, 255), None)
    with pytest.raises(InputError, match="does not like"):
        source.step(memory, bad_image(), None)
    _, prediction = source.step(memory, IMAGE, None)
    assert source.runtime == "torch fp32 on cpu" and prediction.points_self[0, 0, 0] == 1
    assert caplog.text.count("the memory is lost") == 1


def test_a_check_without_a_result_says_why() -> None:
    assert str(Checked(True, 0.25, "0/points")) == "in the self-check 0/points is off by 0.25× the tolerance"
    assert str(Checked(False, float("inf"), "1/pose")) == "wrong numbers: in the self-check 1/pose is not finite"
    failed = Checked(False, float("inf"), "", "openvino bf16: out of memory")
    assert str(failed) == "the self-check failed: openvino bf16: out of memory"


# --- builds


def test_a_better_rung_is_built_while_a_lower_one_serves() -> None:
    source, workshop = make(FakeWorkshop(ready={"openvino fp32"}), engine_build=True)
    memory, _ = source.step(source.initial_memory(), IMAGE, None)
    assert source.runtime == "openvino fp32" and source.runtime_status.state == "building"
    assert [str(b.variant) for b in workshop.builds] == ["openvino bf16"]
    workshop.finish()
    _, prediction = source.step(memory, IMAGE, None)
    assert source.runtime == "openvino bf16" and prediction.points_self[0, 0, 0] == 2


def test_what_is_built_and_never_there_is_not_built_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    source, workshop = make(FakeWorkshop(impossible={"tensorrt", "tensorrt_rtx"}), engine_build=True)
    memory = source.initial_memory()
    for _ in range(6):
        memory, _ = source.step(memory, IMAGE, None)
        workshop.builds[-1].running, workshop.builds[-1].done = False, True
    assert [str(b.variant) for b in workshop.builds] == 2 * ["openvino bf16"] + 2 * ["openvino fp32"]
    assert "openvino bf16 is given up: it was built 2 times, and still: not in the cache" in caplog.text
    assert source.runtime == "torch fp32 on cpu" and source.runtime_status.state == "ready"


def test_auto_serves_while_it_builds_and_then_changes_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source, workshop = make(engine_build=True)
    memory = source.initial_memory()
    for expected in (1, 2):
        memory, prediction = source.step(memory, IMAGE, None)
        assert prediction.points_self[0, 0, 0] == expected
    status = source.runtime_status
    assert (status.state, status.runtime, status.progress, status.elapsed_s) == (
        *("building", "torch fp32 on cpu", 0.43, 12.0),
    )
    assert status.message == "building openvino bf16: exporting 43%, 12 s; torch fp32 on cpu serves meanwhile"
    workshop.finish()
    memory, prediction = source.step(memory, IMAGE, None)
    assert source.runtime == "openvino bf16" and prediction.points_self[0, 0, 0] == 3, "the memory moved over"
    assert [d.closed for d in workshop.opened] == [True, False]
    assert "openvino bf16 was built for 64x48 in 12 s" in caplog.text
    assert source.runtime_status.state == "ready" and len(workshop.builds) == 1


def test_a_frame_refused_at_the_change_costs_no_memory() -> None:
    source, workshop = make(engine_build=True)
    memory, _ = source.step(source.initial_memory(), IMAGE, None)
    workshop.finish()
    with pytest.raises(InputError, match="does not like"):
        source.step(memory, bad_image(), None)
    _, prediction = source.step(memory, IMAGE, None)
    assert source.runtime == "openvino bf16" and prediction.points_self[0, 0, 0] == 2


def test_after_a_reset_the_change_is_free() -> None:
    source, workshop = make(engine_build=True)
    old, _ = source.step(source.initial_memory(), IMAGE, None)
    workshop.finish()
    _, prediction = source.step(source.initial_memory(), IMAGE, None)
    assert source.runtime == "openvino bf16" and prediction.points_self[0, 0, 0] == 1
    assert workshop.opened[0].closed
    with pytest.raises(NetworkError, match="older than the last change of the runtime"):
        source.step(old, IMAGE, None)


def test_a_memory_is_saved_and_loaded_whoever_executes() -> None:
    source, _ = make()
    assert source.save_memory(source.initial_memory()) == {}
    memory, _ = source.step(source.initial_memory(), IMAGE, None)
    saved = source.save_memory(memory)
    other, _ = make(FakeWorkshop(ready={"openvino bf16"}))
    for again in (other.load_memory(saved), source.load_memory(saved)):
        owner = source if again.home is not None else other
        _, prediction = owner.step(again, IMAGE, None)
        assert prediction.points_self[0, 0, 0] == 2
    assert other.runtime == "openvino bf16"


def test_who_does_not_take_the_memory_does_not_serve(caplog: pytest.LogCaptureFixture) -> None:
    source, workshop = make(FakeWorkshop(forgetful={"openvino bf16"}), engine_build=True)
    memory, _ = source.step(source.initial_memory(), IMAGE, None)
    workshop.finish()
    memory, prediction = source.step(memory, IMAGE, None)
    assert source.runtime == "torch fp32 on cpu" and prediction.points_self[0, 0, 0] == 2
    assert [d.closed for d in workshop.opened] == [False, True]
    assert "openvino bf16 is given up: it does not take over the memory" in caplog.text
    source.step(memory, IMAGE, None)


def test_a_named_runtime_refuses_frames_while_it_is_built() -> None:
    source, workshop = make(runtime="openvino", engine_build=True)
    for _ in range(2):
        with pytest.raises(
            InputError, match="building openvino bf16: exporting 43%, 12 s; frames are skipped"
        ) as caught:
            first_step(source)
        assert caught.value.reason == "engine_building"
    workshop.finish()
    assert first_step(source) == "openvino bf16" and len(workshop.builds) == 1


def test_a_build_that_fails_leads_on(caplog: pytest.LogCaptureFixture) -> None:
    source, workshop = make(engine_build=True)
    memory, _ = source.step(source.initial_memory(), IMAGE, None)
    workshop.finish(well=False)
    memory, _ = source.step(memory, IMAGE, None)
    assert [str(b.variant) for b in workshop.builds] == ["openvino bf16", "openvino fp32"]
    assert "openvino bf16 is given up: building it failed: the disk is full" in caplog.text
    workshop.finish(well=False)
    memory, prediction = source.step(memory, IMAGE, None)
    assert prediction.points_self[0, 0, 0] == 3 and source.runtime_status.state == "ready"
    assert source.runtime_status.degraded


def test_prepare_waits_for_the_build_and_tells() -> None:
    source, workshop = make(runtime="openvino", engine_build=True)
    told: list[RuntimeStatus] = []

    def tell(status: RuntimeStatus) -> None:
        told.append(status)
        if len(told) == 2:
            workshop.finish()

    source.prepare(*SIZE, tell)
    assert [status.state for status in told] == ["building", "building", "ready"]
    assert source.runtime == "openvino bf16"


def test_prepare_without_a_build_is_a_sentence() -> None:
    source, _ = make(runtime="openvino")
    with pytest.raises(NetworkError, match="run `recon engine build fake"):
        source.prepare(*SIZE)


def test_close_cancels_the_build_and_frees_the_executor() -> None:
    source, workshop = make(engine_build=True)
    first_step(source)
    close_source(source)
    assert workshop.builds[0].cancelled and workshop.opened[0].closed
    with pytest.raises(NetworkError, match="was closed"):
        source.prepare(*SIZE)
    close_source(source)


def test_close_while_prepare_waits_ends_it() -> None:
    source, workshop = make(runtime="openvino", engine_build=True)
    with pytest.raises(NetworkError, match="was closed"):
        source.prepare(*SIZE, lambda status: source.close())
    assert workshop.builds[0].cancelled


# --- with the core


def test_the_core_knows_the_grid_before_anything_is_loaded() -> None:
    source, workshop = make()
    grid = Reconstructor(Config(), source).grid(640, 480)
    assert (grid.grid_width, grid.grid_height) == SIZE and not workshop.opened


def test_a_source_without_a_say_is_simply_ready() -> None:
    source = DepthSource(Config().input)
    assert status_of(source) == RuntimeStatus("ready", "numpy", message="numpy serves")
    close_source(source)
