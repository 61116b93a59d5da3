# SPDX-License-Identifier: Apache-2.0
"""Bundles on the disk: whole or not at all, and every damage is named. No torch, no ONNX."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon_ros.errors import NetworkError
from recon_ros.networks.card import ModelCard
from recon_ros.networks.plan import GraphSpec, StepPlan, TensorSpec
from recon_ros.runtimes import bundle, golden

PLAN = StepPlan(
    family="cut3r",
    width=64,
    height=48,
    graphs=(GraphSpec("step", ("image", "state"), ("points", "state.next", "health")),),
    tensors={
        "image": TensorSpec((48, 64, 3), "uint8"),
        "state": TensorSpec((1, 5, 8), "float32"),
        "state.next": TensorSpec((1, 5, 8), "float32"),
        "points": TensorSpec((48, 64, 3), "float32"),
        "health": TensorSpec((), "float32"),
    },
    memory=("state",),
    fetched=("points", "health"),
)
CARD = ModelCard(name="made", family="cut3r", multiple=16, is_metric=True, unbounded_confidence=True)
FACTS = bundle.BundleFacts(
    model="made",
    card=replace(CARD, weight_licence="CC-BY-NC-SA-4.0"),
    terms="not for commercial use (https://example.org/licence)",
    precision="fp16",
    attention="softmax32",
    options={"update_rule": "filt3r", "outputs": []},
    weights_digest="seeded-0-abc",
    made_by="torch 2.13.0",
    plan=PLAN,
)


def fill(part: Path, content: bytes = b"graph") -> None:
    (part / "step.onnx").write_bytes(content)
    (part / "step.onnx.data").write_bytes(b"weights" * 100)
    bundle.save_arrays(part / bundle.INITIAL, {"state": np.ones((1, 5, 8), np.float32)})
    sizes = golden.sample_sizes(PLAN)
    bundle.save_arrays(part / bundle.GOLDEN, {name: np.full(n, 0.5, np.float32) for name, n in sizes.items()})


def write(folder: Path, content: bytes = b"graph", facts: bundle.BundleFacts = FACTS) -> bundle.Bundle:
    with bundle.writing(folder) as part:
        fill(part, content)
        return bundle.finish(part, folder, facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "made")
    return tmp_path / "made"


def test_what_was_written_is_read(folder: Path) -> None:
    made = bundle.load_bundle(folder)
    assert made.facts == FACTS and made.plan == PLAN and made.card.weight_licence == "CC-BY-NC-SA-4.0"
    assert made.onnx("step").read_bytes() == b"graph"
    np.testing.assert_array_equal(made.initial()["state"], np.ones((1, 5, 8), np.float32))
    assert set(made.golden()) == set(golden.sample_sizes(PLAN))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["made", "made.lock"]


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    first, again = write(tmp_path / "a"), write(tmp_path / "b")
    assert first.digest == again.digest
    assert write(tmp_path / "c", b"grapH").digest != first.digest
    assert write(tmp_path / "d", facts=replace(FACTS, weights_digest="other")).digest != first.digest


def test_a_bundle_is_replaced(folder: Path) -> None:
    made = write(folder, b"another")
    assert bundle.load_bundle(folder) == made and made.onnx("step").read_bytes() == b"another"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["made", "made.lock"]


@pytest.mark.parametrize("name", ["step.onnx", "step.onnx.data", bundle.INITIAL, bundle.GOLDEN, bundle.PLAN])
@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped", "swapped"])
def test_damage_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-3])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        other = folder / ("step.onnx" if name != "step.onnx" else bundle.INITIAL)
        swapped = other.read_bytes()
        other.write_bytes(content)
        path.write_bytes(swapped)
    with pytest.raises(NetworkError, match=name if damage != "swapped" else r"step\.onnx|\.npz|plan\.json"):
        bundle.load_bundle(folder)


def edit(folder: Path, change: Any) -> None:
    """Change the plan and seal it again: what a program of another version, or a mischievous one, may write."""
    data = json.loads((folder / bundle.PLAN).read_text())
    del data["digest"]
    change(data)
    data["digest"] = bundle.hashlib.sha256(bundle._canonical(data)).hexdigest()
    (folder / bundle.PLAN).write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data.update(export_version=0), "version 0"),
        (lambda data: data["facts"].pop("card"), "not a plan"),
        (lambda data: data["facts"].update(extra=1), "not a plan"),
        (lambda data: data["facts"]["plan"]["tensors"].pop("state.next"), "not a plan.*state.next"),
        (lambda data: data["facts"]["plan"]["tensors"].update(image=[[0, 64, 3], "uint8"]), "not a plan"),
        (lambda data: data["facts"]["plan"]["tensors"].update(image=[[48, 64, 3], "int64"]), "not a plan"),
        (lambda data: data["facts"]["plan"].update(fetched=["image"]), "not a plan.*image"),
        (lambda data: data["files"].pop("initial.npz"), "does not list initial.npz"),
        (lambda data: data["files"].update({"../made.lock": [0, "0" * 64]}), "missing"),
        (lambda data: data["files"].update({"step.onnx": 5}), "not a plan"),
    ],
)
def test_plans_that_cannot_be_meant_are_refused(folder: Path, change: Any, match: str) -> None:
    edit(folder, change)
    with pytest.raises(NetworkError, match=match):
        bundle.load_bundle(folder)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"export_version": 1}', "\x00"])
def test_a_plan_that_is_none(folder: Path, text: str) -> None:
    (folder / bundle.PLAN).write_text(text)
    with pytest.raises(NetworkError, match=bundle.PLAN):
        bundle.load_bundle(folder)


@pytest.mark.parametrize(
    "state", [np.zeros((1, 5, 9), np.float32), np.zeros((1, 5, 8)), np.array([[[None] * 8] * 5], dtype=object)]
)
def test_arrays_that_are_not_of_the_plan_are_refused(tmp_path: Path, state: Any) -> None:
    """Also objects, which would have to be unpickled."""
    with bundle.writing(tmp_path / "made") as part:
        fill(part)
        np.savez(part / bundle.INITIAL, state=state)
        made = bundle.finish(part, tmp_path / "made", FACTS)
    with pytest.raises(NetworkError, match=r"initial\.npz"):
        made.initial()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), bundle.writing(tmp_path / "made") as part:
        fill(part)
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["made.lock"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NetworkError, match="disk is full"):
        write(tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made.lock"]


KILLED = """
import sys, time
from pathlib import Path
from recon_ros.runtimes import bundle
with bundle.writing(Path(sys.argv[1])) as part:
    (part / "step.onnx").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_kill_leaves_nothing_that_is_taken_for_a_bundle(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "made")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "made.part" / "step.onnx").exists()
    with pytest.raises(NetworkError, match=r"no plan\.json"):
        bundle.load_bundle(tmp_path / "made")
    # The next one finds the lock free, and starts from nothing.
    assert write(tmp_path / "made").onnx("step").read_bytes() == b"graph"
    assert not (tmp_path / "made.part").exists()


def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    made: list[bundle.Bundle] = []
    threads = [
        threading.Thread(target=lambda c=content: made.append(write(tmp_path / "made", c))) for content in (b"a", b"b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2 and bundle.load_bundle(tmp_path / "made") == made[1]


def test_who_waits_may_give_up(tmp_path: Path) -> None:
    def give_up() -> None:
        raise InterruptedError("no longer")

    with bundle.writing(tmp_path / "made") as part:
        with pytest.raises(NetworkError, match="no longer"), bundle.writing(tmp_path / "made", give_up):
            pytest.fail("two have it")
        assert part.is_dir()


def test_folders_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key: dict[str, Any] = {
        "model": "cut3r 512/dpt",
        "width": 512,
        "height": 384,
        "precision": "fp16",
        "attention": "softmax32",
        "options": {"update_rule": "filt3r", "outputs": ()},
        "weights_digest": "abc",
    }
    place = bundle.bundle_folder(**key)
    assert place.parent == tmp_path / "recon_ros" / "onnx"
    assert place.name.startswith("cut3r-512-dpt_384x512_fp16_softmax32_")
    assert bundle.bundle_folder(**{**key, "options": {"outputs": [], "update_rule": "filt3r"}}) == place
    changes = {"width": 480, "precision": "bf16", "attention": "fp32", "weights_digest": "b", "model": "cut3r 512-dpt"}
    changes |= {"options": {"update_rule": "ttt3r", "outputs": ()}}  # type: ignore[dict-item]
    places = {bundle.bundle_folder(**{**key, name: value}) for name, value in changes.items()}
    assert len(places | {place}) == len(changes) + 1
