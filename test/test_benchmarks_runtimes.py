# SPDX-License-Identifier: Apache-2.0
"""The runtimes' benchmarks count what they say, stop who takes too long, and keep what they have."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")

from benchmarks import gpu, runtimes, step_cost
from benchmarks.arena import Outcome, Session, Stopped, Worker, compare, race
from benchmarks.contenders import Contender, Subject
from benchmarks.machine import Machine

ROOT = Path(__file__).resolve().parents[1]
PEAK = step_cost.Peak(1e9, 1e9, "made up")


@pytest.fixture
def subject(tmp_path) -> Subject:
    return Subject("cut3r-small-linear", 64, 48, str(tmp_path))


class InProcess:
    """A `Worker` without a process."""

    def __init__(self, subject: Subject, contender: Contender, budget_s: float) -> None:
        self.given = subject, contender

    def call(self, name):
        if name == "open":
            self.session = Session(*self.given)
            return self.session.opened()
        return None if name == "files" else getattr(self.session, name)()

    def close(self) -> None:
        pass


class Failing(InProcess):
    def call(self, name):
        if name == "step":
            raise Stopped("its process ended")
        return super().call(name)


def test_operations_and_numbers_of_a_known_network_are_counted():
    import torch

    class Known:
        def __init__(self):
            self.layer = torch.nn.Linear(8, 16)
            self._modules = {"only": self.layer}

        def initial(self):
            return None

        @torch.inference_mode()
        def step(self, memory, image):
            tokens = self.layer(torch.ones(4, 8)).view(1, 1, 4, 16)
            return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    cost = step_cost.count(Known(), np.zeros((1, 1, 3), np.uint8))
    assert cost.flops == 2 * 4 * 8 * 16 + 2 * 4 * 4 * (16 + 16)
    assert cost.weights == 8 * 16 + 16
    assert cost.activations == (4 * 8 + 4 * 16) + 4 * (4 * 16)
    assert cost.nbytes("int8") == cost.weights + 2 * cost.activations
    assert cost.least_seconds("fp32", step_cost.Peak(1.0, 1e9, "")) == cost.flops
    assert cost.least_seconds("fp32", step_cost.Peak(1e15, 1.0, "")) == cost.nbytes("fp32")


def test_a_race_compares_all_with_fp32_and_all_outputs_are_more_work(subject):
    entered = [Contender("torch"), Contender("torch", everything=True), Contender("torch", "bf16")]
    outcomes, reference = race(subject, entered, steps=2, open_worker=InProcess)
    exact, everything, half = outcomes
    assert all(len(outcome.wall_s) == 2 and not outcome.failure and outcome.peak_mb > 10 for outcome in outcomes)
    assert reference is not None and set(exact.errors.values()) == {0.0}
    assert everything.worst_error == 0.0 and 1e-4 < half.errors["points"] < 0.2
    assert "health" not in exact.errors and "state" in exact.errors
    assert exact.cost is not None and exact.cost.flops > 1e6
    sessions = [Session(subject, contender) for contender in entered[:2]]
    assert sessions[1].cost().flops > 1.05 * sessions[0].cost().flops
    table = runtimes.rows(subject, outcomes, {"fp32": PEAK, "bf16": None})
    assert table[0][3] == "1.00 ×" and all(len(row) == len(runtimes.HEADER) for row in table)
    assert "M weights" in runtimes.describe(subject, outcomes, {"fp32": PEAK})


def test_who_fails_is_out_and_the_others_go_on(subject):
    failed, _ = race(subject, [Contender("torch")], steps=2, open_worker=Failing)
    assert failed[0].failure == "its process ended" and failed[0].wall_s == []
    late, _ = race(subject, [Contender("torch")], steps=2, open_worker=InProcess, total_s=0.0)
    assert "are over" in late[0].failure
    rows = runtimes.rows(subject, [failed[0], late[0]], {})
    assert rows[0][2] == "not run: its process ended"


def test_a_worker_is_stopped_when_its_time_is_out(subject):
    worker = Worker(subject, Contender("torch"), budget_s=0.05)
    with pytest.raises(Stopped, match="stopped after its 0 s, in: open"):
        worker.call("open")
    worker.close()


def test_errors_are_the_worst_of_all_steps():
    one, two = np.ones(4, np.float32), np.full(4, 2.0, np.float32)
    reference = {"0/points": one, "1/points": one, "0/health": one, "memory/state": two}
    record = {"0/points": one, "1/points": one * 1.5, "0/health": two, "memory/state": two, "0/more": one}
    assert compare(record, reference) == {"points": 0.5, "state": 0.0}


def test_the_gpu_run_keeps_its_results_and_says_what_did_not_run(subject, tmp_path):
    context = gpu.Context(Machine(), None, True, "PyTorch", {"fp32": PEAK})
    entered = [c for c in gpu.stages(True) if c.precision == "fp32" or c.runtime != "torch"]
    outcomes = gpu.measure(subject, entered, context, tmp_path / "out", steps=1, open_worker=InProcess)
    ran = [str(outcome.contender) for outcome in outcomes if outcome.wall_s]
    assert ran == ["torch fp32 eager", "torch fp32 eager, all outputs"]
    assert {o.failure for o in outcomes if o.contender.runtime.startswith("tensorrt")} == {"not run: no GPU"}
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert "the CPU (dry run)" in text and text.count("not run: no GPU") == len(outcomes) - len(ran)
    record = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert len(record["outcomes"]) == len(entered) and record["outcomes"][0]["cost"]["flops"] > 1e6


def test_targets_are_judged_against_eager_fp32_with_all_outputs():
    half = Contender("torch", "fp16", "compile_graphs", "cuda")

    def found(contender, seconds):
        return Outcome(contender, wall_s=[seconds])

    assert "is met" in gpu.verdict([found(gpu.BASELINE, 0.2), found(half, 0.02)])
    assert "is not met" in gpu.verdict([found(gpu.BASELINE, 0.05), found(half, 0.02)])
    assert "is not met" in gpu.verdict([found(gpu.BASELINE, 0.4), found(half, 0.05)])
    assert "cannot be judged" in gpu.verdict([found(half, 0.02)])


def test_datasheets_are_found_by_the_devices_name():
    found = step_cost.datasheet("NVIDIA H200", "fp16")
    assert found is not None and found.flops == 989e12
    assert step_cost.datasheet("Some GPU", "fp16") is None


def test_the_script_is_sound_and_executable():
    script = ROOT / "benchmarks" / "gpu.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert script.stat().st_mode & 0o111


def test_the_readme_has_a_place_for_the_results():
    text = runtimes.readme.README.read_text()
    assert "<!-- runtimes:begin -->" in text and "<!-- runtimes:end -->" in text
