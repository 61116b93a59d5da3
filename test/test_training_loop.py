# SPDX-License-Identifier: Apache-2.0
"""The training: it learns, goes on exactly where it was, survives what is not finite, and ends when asked."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; RECON_TORCH=1 make setup")

from safetensors.torch import load_file  # noqa: E402
from tiny_shards import HEIGHT, WIDTH, write_shard  # noqa: E402

from recon_ros.errors import ConfigError, NetworkError  # noqa: E402
from recon_ros.networks.compact import Compact, CompactConfig  # noqa: E402
from recon_ros.training import checkpoints  # noqa: E402
from recon_ros.training.averaging import average  # noqa: E402
from recon_ros.training.batches import Batch, Shards  # noqa: E402
from recon_ros.training.curriculum import Curriculum, Stage  # noqa: E402
from recon_ros.training.log import CsvLog  # noqa: E402
from recon_ros.training.loop import MOST_SKIPPED, Status, Trainer  # noqa: E402
from recon_ros.training.losses import LossWeights  # noqa: E402
from recon_ros.training.settings import Settings  # noqa: E402
from recon_ros.training.unroll import unroll  # noqa: E402
from recon_ros.training.validate import validate  # noqa: E402
from recon_ros.training.weights import read_network  # noqa: E402

CONFIG = CompactConfig(
    encoder="scratch",
    width=WIDTH,
    height=HEIGHT,
    slots=3,
    match_dim=16,
    planes=16,
    tokens=48,
    context=32,
    fine=16,
    token_blocks=1,
    blocks=1,
)
SETTINGS = Settings(
    steps=6,
    batch=2,
    log_every=1,
    sample_every=4,
    validate_on=2,
    rate=2e-3,
    curriculum=Curriculum(shortest=2, longest=4, warmup=2),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_shard(root / "shard_0", 3, 0)
    return root


def network(config: CompactConfig = CONFIG) -> Compact:
    torch.manual_seed(0)
    return Compact(config)


def trainer(folder: Path, data: Path, settings: Settings = SETTINGS, resume: bool = False) -> Trainer:
    return Trainer(network(), settings, folder, lambda: Shards(data, None), lambda: Shards(data, None), resume)


def weights(folder: Path, step: int, part: str = "weights") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / f"{part}.safetensors")


def test_going_on_from_a_checkpoint_gives_the_same_as_going_through(tmp_path: Path, data: Path) -> None:
    assert trainer(tmp_path / "through", data).run()
    first = trainer(tmp_path / "halves", data)

    def stop_at_three(status: Status) -> None:
        first.stop = status.progress.step >= 3

    assert not first.run(stop_at_three)
    assert [path.name for path in checkpoints.find_all(tmp_path / "halves/checkpoints")] == ["step_00000003"]
    assert trainer(tmp_path / "halves", data, resume=True).run()
    for part in checkpoints.PARTS:
        through, halves = weights(tmp_path / "through", 6, part), weights(tmp_path / "halves", 6, part)
        assert through.keys() == halves.keys() and through
        assert all(torch.equal(through[name], halves[name]) for name in through), part
    with (tmp_path / "halves/train.csv").open(encoding="utf-8") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]


def test_trainings_side_by_side_become_one_again(tmp_path: Path, data: Path) -> None:
    """Two trainings from one checkpoint, of 4 and 2 steps more; each goes on from the average, weighed so."""
    one, two = tmp_path / "one", tmp_path / "two"
    trainer(one, data, dataclasses.replace(SETTINGS, steps=2)).run()
    shutil.copytree(one / "checkpoints", two / "checkpoints")
    trainer(one, data, dataclasses.replace(SETTINGS, steps=6), resume=True).run()
    trainer(two, data, dataclasses.replace(SETTINGS, steps=4, seed=1), resume=True).run()
    assert average([one, two]) == 7
    for part in ("weights", "average", "first"):
        a, b, mean = weights(one, 6, part), weights(two, 4, part), weights(one, 7, part)
        assert any(not torch.equal(a[name], b[name]) for name in a), "they went apart"
        for name in a:
            torch.testing.assert_close(mean[name], (4 * a[name] + 2 * b[name]) / 6)
        same = weights(two, 7, part)
        assert all(torch.equal(same[name], mean[name]) for name in mean)
    with pytest.raises(NetworkError, match="since the last average"):
        average([one, two])
    assert trainer(two, data, dataclasses.replace(SETTINGS, steps=8), resume=True).run()
    average([one, two])
    after, mean = weights(two, 8), weights(one, 9)
    assert all(torch.equal(mean[name], after[name]) for name in mean), "one has done nothing since, and has no say"
    assert [path.name for path in checkpoints.find_all(two / "checkpoints")][-1] == "step_00000009"


def test_what_cannot_be_averaged_is_said(tmp_path: Path, data: Path) -> None:
    trainer(tmp_path / "one", data, dataclasses.replace(SETTINGS, steps=1)).run()
    with pytest.raises(NetworkError, match="two runs or more"):
        average([tmp_path / "one"])
    with pytest.raises(NetworkError, match="no checkpoint"):
        average([tmp_path / "one", tmp_path / "none"])
    other = Trainer(
        network(dataclasses.replace(CONFIG, planes=12)),
        dataclasses.replace(SETTINGS, steps=1),
        tmp_path / "other",
        lambda: Shards(data, None),
        lambda: None,
    )
    other.run()
    with pytest.raises(NetworkError, match="different networks"):
        average([tmp_path / "one", tmp_path / "other"])


def test_what_a_training_leaves(tmp_path: Path, data: Path) -> None:
    assert trainer(tmp_path, data).run()
    assert (tmp_path / "samples/step_00000004.png").stat().st_size > 1000
    with (tmp_path / "validation.csv").open(encoding="utf-8") as file:
        (scores,) = csv.DictReader(file)
    assert 0 < float(scores["abs_rel"]) < 5 and 0 <= float(scores["delta"]) <= 1
    shipped, facts = read_network(tmp_path / "network.safetensors", torch.device("cpu"))
    assert shipped.config == CONFIG and facts["progress"]["step"] == 6
    average = weights(tmp_path, 6, "average")
    state = shipped.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in average.items())
    assert any(not torch.equal(tensor, average[name]) for name, tensor in weights(tmp_path, 6).items())
    again = validate(shipped, Shards(data, None), 2, torch.device("cpu"))
    assert again["abs_rel"] == pytest.approx(float(scores["abs_rel"]), rel=1e-3)
    with pytest.raises(NetworkError, match="holds a training already"):
        trainer(tmp_path, data)


def test_it_learns(tmp_path: Path, data: Path) -> None:
    settings = dataclasses.replace(SETTINGS, steps=16, average=0.9, sample_every=1000, validate_on=1)
    seen: list[dict[str, float]] = []
    assert trainer(tmp_path, data, settings).run(lambda status: seen.append(dict(status.terms)))
    for name in ("match", "planes", "loss"):
        first, last = (np.mean([terms[name] for terms in part]) for part in (seen[:3], seen[-3:]))
        assert last < 0.75 * first, name


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path: Path, data: Path) -> None:
    training = trainer(tmp_path, data, dataclasses.replace(SETTINGS, steps=3))
    before = {name: parameter.detach().clone() for name, parameter in training.parameters.items()}
    shards = Shards(data, None)

    class Poisoned(Shards):
        def draw(self, seed: int, step: int, batch: int, frames: int) -> Batch:
            drawn = super().draw(seed, step, batch, frames)
            drawn.images[0, 0, 0, 0, 0] = float("nan") if step < 2 else 0.0
            return drawn

    training._open_data = lambda: Poisoned(shards.root, None)
    assert training.run()
    assert training.progress.skipped == 2 and training.progress.step == 3
    assert all(torch.isfinite(parameter).all() for parameter in training.parameters.values())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in training.parameters.items())


def test_a_training_that_gives_nothing_finite_gives_up(tmp_path: Path, data: Path) -> None:
    training = trainer(tmp_path, data, dataclasses.replace(SETTINGS, steps=1000, sample_every=1000))

    def nothing(batch: Batch) -> dict[str, float]:
        training.progress.step += 1
        training._skip()
        return {}

    training._step = nothing
    with pytest.raises(NetworkError, match=rf"{MOST_SKIPPED} steps in a row"):
        training.run()


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, data: Path) -> None:
    assert trainer(tmp_path, data, dataclasses.replace(SETTINGS, steps=2)).run()
    newest = checkpoints.latest(tmp_path / "checkpoints")
    (tmp_path / "checkpoints/step_00000099.part").mkdir()  # a writer that was killed
    assert checkpoints.latest(tmp_path / "checkpoints") == newest
    (newest / "second.safetensors").write_bytes(b"half")
    with pytest.raises(NetworkError, match="no whole checkpoint"):
        trainer(tmp_path, data, resume=True)
    with pytest.raises(NetworkError, match="no checkpoint to go on from"):
        trainer(tmp_path / "elsewhere", data, resume=True)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, data: Path) -> None:
    assert trainer(tmp_path, data, dataclasses.replace(SETTINGS, steps=1)).run()
    other = network(dataclasses.replace(CONFIG, rays=False))
    with pytest.raises(NetworkError, match="rays: True there, False here"):
        Trainer(other, SETTINGS, tmp_path, lambda: Shards(data, None), lambda: None, resume=True)


def test_old_checkpoints_go(tmp_path: Path, data: Path) -> None:
    settings = dataclasses.replace(SETTINGS, steps=5, keep=2, checkpoint_every=0.0)
    assert trainer(tmp_path, data, settings).run()
    names = [path.name for path in checkpoints.find_all(tmp_path / "checkpoints")]
    assert names == ["step_00000004", "step_00000005"]


@pytest.mark.parametrize(("memory", "rays"), [(True, False), (False, True)])
def test_ablations_train(tmp_path: Path, data: Path, memory: bool, rays: bool) -> None:
    config = dataclasses.replace(CONFIG, memory=memory, rays=rays)
    training = Trainer(network(config), SETTINGS, tmp_path, lambda: Shards(data, None), lambda: None)
    terms: list[dict[str, float]] = []
    assert training.run(lambda status: terms.append(dict(status.terms)))
    assert training.progress.skipped == 0
    assert ("match" in terms[0]) == memory


def test_segments_and_who_gives_the_pose(data: Path) -> None:
    batch = Shards(data, None).draw(0, 0, 2, 5)
    net = network()

    def total(stage: Stage, truncate: int) -> tuple[list[int], float]:
        generator = torch.Generator().manual_seed(1)
        segments = list(unroll(net, batch, stage, LossWeights(), generator, truncate))
        return [segment.frames for segment in segments], sum(float(s.loss.detach()) for s in segments)

    true = Stage(frames=5, located=0.0, noise=0.0, rate=1.0, pose=1.0)
    frames, whole = total(true, 5)
    assert frames == [5]
    frames, parts = total(true, 2)
    assert frames == [2, 3]  # one frame alone teaches nothing about memory
    assert parts == pytest.approx(whole, rel=1e-4)  # truncation changes gradients, not losses
    _, own = total(dataclasses.replace(true, located=1.0), 2)
    assert own != pytest.approx(whole, rel=1e-6)


def test_curriculum() -> None:
    curriculum = Curriculum(shortest=2, longest=8, grown=0.6, own=0.6, warmup=100)
    begin, middle, end = curriculum.at(0, 0.0), curriculum.at(500, 0.3), curriculum.at(1000, 1.0)
    assert (begin.frames, middle.frames, end.frames) == (2, 5, 8)
    assert begin.located == 0 and 0 < middle.located < end.located == 0.6
    assert begin.rate == pytest.approx(0.01, rel=0.01) and end.rate == pytest.approx(0.02)
    assert begin.pose == 0 and middle.pose == 1


def test_settings_need_one_length(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="steps or minutes"):
        Settings()
    with pytest.raises(ConfigError, match="steps or minutes"):
        Settings(steps=1, minutes=1.0)
    assert Settings(minutes=2.0).share(10, 60.0) == 0.5


def test_a_row_cut_off_is_none(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    log = CsvLog(path, ("loss",), 0)
    log.add(1, {"loss": 0.5})
    log.add(2, {"loss": 0.25})
    with path.open("a", encoding="utf-8") as file:
        file.write("\n,")
    CsvLog(path, ("loss",), 1).add(2, {"loss": 0.125})
    assert path.read_text(encoding="utf-8").split() == ["step,loss", "1,0.5", "2,0.125"]


def test_sigterm_ends_with_a_checkpoint(tmp_path: Path) -> None:
    write_shard(tmp_path / "data/shard_0", 1, 0)
    run = tmp_path / "run"
    code = f"""
import dataclasses, test_training_loop as t
from pathlib import Path
from recon_ros.training.commands import _stopping
training = t.trainer(Path({str(run)!r}), Path({str(tmp_path / "data")!r}), dataclasses.replace(t.SETTINGS, steps=10**6))
with _stopping(training):
    over = training.run(lambda status: print("step", status.progress.step, flush=True))
print("over", over, flush=True)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent, env=environment
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline().startswith("step 1")
        child.send_signal(signal.SIGTERM)
        output = child.stdout.read()
        assert child.wait(60) == 0
    finally:
        child.kill()
    assert "over False" in output
    steps = [int(line.split()[1]) for line in output.splitlines() if line.startswith("step")]
    newest = checkpoints.read(checkpoints.latest(run / "checkpoints"))
    assert newest.progress.step >= max(steps, default=1)
