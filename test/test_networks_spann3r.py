# SPDX-License-Identifier: Apache-2.0
"""Spann3R equals the official network, a change of any detail is noticed, and both its defects are mended."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
from helpers import quick, seeds  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from recon_ros.errors import NetworkError  # noqa: E402
from recon_ros.networks import spann3r_memory  # noqa: E402
from recon_ros.networks.card import ModelCard  # noqa: E402
from recon_ros.networks.dust3r import Dust3rConfig  # noqa: E402
from recon_ros.networks.graphs import build_graphs  # noqa: E402
from recon_ros.networks.spann3r import Spann3r, Spann3rConfig, Spann3rState  # noqa: E402
from recon_ros.networks.spann3r_memory import EMPTY, MemoryRules, SpatialMemory  # noqa: E402
from recon_ros.networks.spann3r_sequence import Spann3rSequence, offline, online  # noqa: E402
from recon_ros.runtimes.torch_executor import TorchExecutor  # noqa: E402

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.exists(), reason="needs ../shared/fixtures")

# The official names of the memory's rules, in a case's overrides.
RULES = {"long_mem_size": "long_tokens", "work_mem_size": "work_frames", "attn_thresh": "attention_threshold"}
ONLINE_CASES = ("seq6", "prune", "nolong", "dup", "thresh", "portrait", "batch2")
SIZES = Spann3rConfig(
    Dust3rConfig(
        enc_dim=48,
        enc_depth=2,
        enc_heads=4,
        dec_dim=32,
        dec_depth=4,
        dec_heads=2,
        dpt_feature_dim=16,
        dpt_last_dim=8,
        dpt_layer_dims=(8, 12, 16, 24),
    ),
    value_depth=2,
    value_heads=4,
)
PATCHES = 12  # of an image of 48×64
CARD = ModelCard(name="spann3r-test", family="spann3r", multiple=16, unbounded_confidence=True)


@cache
def fixture() -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Config, inputs and outputs."""
    folder = FIXTURES / "spann3r"
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "outputs.npz") as outputs:
        return json.loads((folder / "config.json").read_text()), dict(inputs), dict(outputs)


def rules_of(case: str, **changes: Any) -> MemoryRules:
    """The memory's rules of a case, as the official code unless changed."""
    overrides = fixture()[0]["cases"].get(case, {"overrides": {}})["overrides"]
    given = {RULES[name]: value for name, value in overrides.items()}
    return MemoryRules(**{"faithful": True, **given, **changes})


def build(rules: MemoryRules, weights: bool = True) -> Spann3r:
    """The small network of the fixture, with its weights by their official names, or PyTorch's own."""
    torch.manual_seed(0)
    network = Spann3r(Spann3rConfig(SIZES.dust3r, SIZES.value_depth, SIZES.value_heads, rules))
    if weights:
        network.load_state_dict(load_file(FIXTURES / "spann3r" / "weights.safetensors"), strict=True)
    return network.eval()


def images_of(case: str) -> list[torch.Tensor]:
    images = torch.from_numpy(fixture()[1][f"{case}/imgs"])
    return list(images if images.ndim == 5 else images[:, None])


@torch.inference_mode()
def run(case: str, change: Callable[[Spann3r], None] = lambda network: None, **rules: Any) -> Spann3rSequence:
    """A case on the network as it is, or changed."""
    network = build(rules_of(case, **rules))
    change(network)
    return online(network, images_of(case))


def ours(sequence: Spann3rSequence, name: str) -> np.ndarray:
    """The array of a sequence that the fixture calls so, without its case."""
    first, *rest = name.split("/")
    written = [state.memory for state in sequence.states[1:]]
    if first.startswith("pred"):
        pointmap = sequence.pointmaps[int(first[4:])]
        return (pointmap.points if rest[0] == "pts3d" else pointmap.confidence).numpy()
    if first.startswith("pair"):
        pointmap = sequence.outputs[int(first[4:]) + 1].current
        return (pointmap.points if rest[1] == "pts3d_in_other_view" else pointmap.confidence).numpy()
    if first.startswith("read"):
        return sequence.outputs[int(first[4:]) + 1].feature.numpy()
    if first == "mem_sizes":
        return np.array([int(memory.used) for memory in written])
    if first == "max_sim":
        values = np.array([float(output.similarity) for output in sequence.outputs[1:]], np.float32)
        return np.where(values == -1, np.nan, values)
    if first in ("skipped", "pruned"):
        newest = np.array([int(memory.frame_ids.max()) for memory in written])
        skipped = newest != np.arange(len(newest))
        sizes = np.diff(ours(sequence, "mem_sizes"), prepend=0)
        return skipped if first == "skipped" else ~skipped & (sizes < PATCHES) & (sizes != 0)
    memory = written[int(first[3:])]
    field = {"mem_k": "keys", "mem_v": "values", "mem_attn": "attention", "mem_count": "age"}[rest[0]]
    tensor = getattr(memory, field)[:, : int(memory.used)]
    return (tensor if tensor.ndim == 3 else tensor[..., None]).numpy()


def as_set(sequence: Spann3rSequence, case: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A memory of ours and theirs, the tokens of both sorted by their key."""
    keys = name.rsplit("/", 1)[0] + "/mem_k"
    pairs = (
        (ours(sequence, name), ours(sequence, keys)),
        (fixture()[2][f"{case}/{name}"], fixture()[2][f"{case}/{keys}"]),
    )
    mine, theirs = (array[:, np.lexsort(np.round(key[0], 2).T)] for array, key in pairs)
    return mine, theirs


def mismatches(case: str, sequence: Spann3rSequence) -> list[str]:
    """The arrays of a case that a sequence does not reproduce."""
    outputs = fixture()[2]
    pruned = np.flatnonzero(outputs.get(f"{case}/pruned", np.zeros(1, bool)))
    wrong = []
    for full_name, theirs in outputs.items():
        of_case, name = full_name.split("/", 1)
        if of_case != case or name in ("lm", "wm", "idx_used", "pair_idx", "pair_score"):
            continue
        mine = ours(sequence, name)
        if name == "max_sim" and len(pruned):
            # After a prune ties of protected tokens stand in no defined order, and the next frame looks at some.
            defined = ~np.isin(np.arange(len(theirs)), pruned + 1)
            mine, theirs = mine[defined], theirs[defined]
        if len(pruned) and name.startswith("mem") and name[3].isdigit() and mine.shape == theirs.shape:
            mine, theirs = as_set(sequence, case, name)
        if mine.shape != theirs.shape or not np.allclose(mine, theirs, rtol=1e-4, atol=1e-4, equal_nan=True):
            wrong.append(name)
    return wrong


@needs_fixtures
@pytest.mark.parametrize("case", ONLINE_CASES)
def test_online_equals_the_official_network(case: str) -> None:
    sequence = run(case)
    assert mismatches(case, sequence) == []


@needs_fixtures
@pytest.mark.parametrize("case", [case for case in ONLINE_CASES if case not in ("prune", "portrait")])
def test_mended_rules_change_nothing_where_no_defect_shows(case: str) -> None:
    assert mismatches(case, run(case, faithful=False)) == []


@needs_fixtures
@torch.inference_mode()
def test_offline_takes_the_images_in_the_official_order() -> None:
    outputs = fixture()[2]
    sequence = offline(build(rules_of("offline")), images_of("offline"))
    assert sequence.order == outputs["offline/idx_used"].tolist()
    assert mismatches("offline", sequence) == []


@needs_fixtures
def test_full_size_names_and_shapes_are_the_official_ones() -> None:
    official = json.loads((FIXTURES / "keys" / "spann3r.json").read_text())["keys"]
    with torch.device("meta"):
        network = Spann3r(Spann3rConfig.vitlarge_224_dpt())
    assert {key: list(tensor.shape) for key, tensor in network.state_dict().items()} == {
        key: entry["shape"] for key, entry in official.items()
    }


def _set_eps(network: Spann3r) -> None:
    for norm in (network.norm_q, network.norm_k, network.norm_v):
        norm.eps = 1e-6


def _share_key_head(network: Spann3r) -> None:
    network.attn_head_2 = network.attn_head_1


def _swap_heads(network: Spann3r) -> None:
    pair = network.dust3r
    pair.downstream_head1, pair.downstream_head2 = pair.downstream_head2, pair.downstream_head1


def _swap_decoders(network: Spann3r) -> None:
    network.dust3r.dec_blocks, network.dust3r.dec_blocks2 = network.dust3r.dec_blocks2, network.dust3r.dec_blocks


def _skip_a_value_block(network: Spann3r) -> None:
    network.value_encoder = network.value_encoder[:1]


def _skip_value_norm(network: Spann3r) -> None:
    network.value_norm = torch.nn.Identity()


@needs_fixtures
@pytest.mark.parametrize(
    "change", [_set_eps, _share_key_head, _swap_heads, _swap_decoders, _skip_a_value_block, _skip_value_norm]
)
def test_a_changed_network_is_noticed(change: Callable[[Spann3r], None]) -> None:
    assert mismatches("seq6", run("seq6", change))


@needs_fixtures
@pytest.mark.parametrize(
    ("case", "rules"),
    [
        ("thresh", {"attention_threshold": 0.0}),
        ("thresh", {"attention_threshold": 0.031}),
        ("dup", {"similarity_threshold": 1.0}),
        ("dup", {"similarity_threshold": 0.97}),
        ("prune", {"long_tokens": 99}),
        ("prune", {"work_frames": 3}),
        ("nolong", {"work_frames": 3}),
        ("nolong", {"long_tokens": 4000}),
        ("portrait", {"faithful": False}),
    ],
)
def test_a_changed_rule_is_noticed(case: str, rules: dict[str, Any]) -> None:
    assert mismatches(case, run(case, **rules))


@needs_fixtures
def test_a_changed_memory_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write, young = spann3r_memory.read, spann3r_memory.write, spann3r_memory.YOUNG

    def read_without_query(memory: SpatialMemory, query: Any, *rest: Any) -> Any:
        feature, memory = read(memory, query, *rest)
        return feature - query, memory

    def write_without_key(memory: SpatialMemory, keys: Any, values: Any, *rest: Any) -> Any:
        return write(memory, keys, values - keys, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(spann3r_memory, "read", read_without_query)
        assert mismatches("seq6", run("seq6"))
    with monkeypatch.context() as patched:
        patched.setattr(spann3r_memory, "write", write_without_key)
        assert mismatches("seq6", run("seq6"))
    with monkeypatch.context() as patched:
        patched.setattr(spann3r_memory, "YOUNG", young - 1)
        assert mismatches("prune", run("prune"))


@needs_fixtures
def test_after_a_prune_only_the_mended_memory_compares_with_the_latest_frames() -> None:
    expected = fixture()[2]["prune/max_sim"]
    mended, faithful = run("prune", faithful=False), run("prune")
    keys = {  # of every frame, as the memory held it just after it was written
        i: state.memory.keys[0, state.memory.frame_ids[0] == i]
        for i, state in enumerate(mended.states[1:])
        if not fixture()[2]["prune/skipped"][i]
    }
    for i in range(2, len(keys)):
        to_latest = [torch.cosine_similarity(keys[i], keys[j], dim=-1).mean() for j in (i - 1, i - 2)]
        assert float(mended.outputs[i + 1].similarity) == pytest.approx(float(max(to_latest)), abs=1e-5)
    assert abs(ours(faithful, "max_sim") - ours(mended, "max_sim"))[11:].max() > 0.01
    assert abs(expected - ours(mended, "max_sim"))[12] > 0.01
    # It keeps the same tokens all the same, and so says the same.
    for name in ("pred17/pts3d", "pred12/conf", "read16/feat_fuse"):
        np.testing.assert_allclose(ours(mended, name), fixture()[2][f"prune/{name}"], rtol=1e-4, atol=1e-4)


def identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def frame(rng: np.random.Generator, frame_id: int, tokens: int, dim: int, batch: int) -> tuple[Any, Any]:
    """Keys and values that carry their frame's id and the place in it, so that a mix-up shows."""
    keys = torch.from_numpy(rng.normal(scale=30, size=(batch, tokens, dim)).astype(np.float32))
    keys[..., 0], keys[..., 1] = frame_id, torch.arange(tokens)
    return keys, -keys


def test_a_query_with_no_weight_above_the_threshold_reads_nothing() -> None:
    rules = MemoryRules(long_tokens=0, work_frames=3, attention_threshold=0.9)
    memory = spann3r_memory.empty(rules, 2, 4)
    memory = spann3r_memory.append(memory, torch.zeros(1, 2, 4), torch.ones(1, 2, 4), 0)  # two weights of a half
    query = torch.randn(1, 2, 4)
    feature, after = spann3r_memory.read(memory, query, identity, identity, identity, rules)
    assert torch.equal(feature, query)
    assert torch.equal(after.attention, torch.zeros_like(after.attention))
    official = MemoryRules(long_tokens=0, work_frames=3, attention_threshold=0.9, faithful=True)
    assert spann3r_memory.read(memory, query, identity, identity, identity, official)[0].isnan().all()
    empty = spann3r_memory.empty(rules, 2, 4)
    feature, after = spann3r_memory.read(empty, query, identity, identity, identity, rules)
    assert torch.equal(feature, query)
    assert not after.attention.any()


def test_empty_slots_are_never_read() -> None:
    rules = MemoryRules(long_tokens=0, work_frames=4, attention_threshold=0.0)
    memory = spann3r_memory.append(spann3r_memory.empty(rules, 2, 4), torch.zeros(1, 2, 4), torch.ones(1, 2, 4), 0)
    memory = memory._replace(values=torch.where(memory.valid[..., None], memory.values, 1e6))
    feature, after = spann3r_memory.read(memory, torch.zeros(1, 3, 4), identity, identity, identity, rules)
    assert torch.allclose(feature, torch.ones_like(feature))
    assert after.attention[0, :2].tolist() == [1.5, 1.5]
    assert not after.attention[0, 2:].any()


@quick
@given(seeds(), st.integers(1, 3), st.integers(1, 4), st.integers(0, 40), st.integers(1, 2))
def test_the_memory_keeps_its_order_whatever_happens(seed: int, tokens: int, work: int, more: int, batch: int) -> None:
    """Frame ids, keys, values and places stay together; the working memory is the latest frames, whole."""
    rng = np.random.default_rng(seed)
    long = 0 if more == 0 else work * tokens + more - 1
    rules = MemoryRules(long_tokens=long, work_frames=work, similarity_threshold=0.9999)
    memory, written, repeated = spann3r_memory.empty(rules, tokens, 6, batch), [], None
    for frame_id in range(30):
        if repeated is not None and rng.random() < 0.2:
            keys, values = repeated
        else:
            keys, values = frame(rng, frame_id, tokens, 6, batch)
        _, memory = spann3r_memory.read(memory, keys, identity, identity, identity, rules)
        before = memory.copy()
        memory, closest = spann3r_memory.write(memory, keys, values, frame_id, rules)
        if closest > rules.similarity_threshold:
            assert all(torch.equal(a, b) for a, b in zip(memory, before, strict=True))
            continue
        written.append(frame_id)
        repeated = keys, values
        used = int(memory.used)
        assert used <= long + work * tokens
        assert memory.valid[:, :used].all()
        assert (memory.frame_ids[:, used:] == EMPTY).all()
        assert not any(tensor[:, used:].any() for tensor in memory[:-1])
        ids = memory.frame_ids[:, :used]
        assert torch.equal(memory.keys[:, :used, 0].long(), ids)
        assert torch.equal(memory.keys[:, :used], -memory.values[:, :used])
        order = ids * tokens + memory.keys[:, :used, 1].long()
        assert (order.diff(dim=1) > 0).all()
        latest = np.repeat(written[-work:], tokens)
        assert ids[:, -len(latest) :].tolist() == [latest.tolist()] * batch
        ages = torch.tensor([[len(written) - 1 - written.index(i) for i in row] for row in ids.tolist()])
        assert torch.equal(memory.age[:, :used].long(), ages)


def test_a_prune_keeps_what_was_read_most_often_and_the_young() -> None:
    rules = MemoryRules(long_tokens=9, work_frames=1, similarity_threshold=2.0)
    memory = spann3r_memory.empty(rules, 1, 2)
    for frame_id in range(10):
        memory, _ = spann3r_memory.write(memory, torch.randn(1, 1, 2), torch.randn(1, 1, 2), frame_id, rules)
    # Ages 9 … 0; those below work_frames + 5 = 6 are protected, and frame 1 was read least for its age.
    attention = torch.zeros_like(memory.attention)
    attention[0, :4] = torch.tensor([9.0, 0.8, 6.0, 6.0])
    memory, _ = spann3r_memory.write(
        memory._replace(attention=attention), torch.randn(1, 1, 2), torch.randn(1, 1, 2), 10, rules
    )
    # Of eleven nine are left: frames 6 to 10 and 5 are young, 0, 2 and 3 were read more than 1 and 4.
    assert memory.frame_ids[0][memory.valid[0]].tolist() == [0, 2, 3, 5, 6, 7, 8, 9, 10]


def test_protected_frames_that_do_not_all_fit_go_oldest_first() -> None:
    rules = MemoryRules(long_tokens=4, work_frames=2, similarity_threshold=2.0)
    memory = spann3r_memory.empty(rules, 2, 3)
    for frame_id in range(5):
        memory, _ = spann3r_memory.write(memory, torch.randn(1, 2, 3), torch.randn(1, 2, 3), frame_id, rules)
    assert memory.frame_ids[0][memory.valid[0]].tolist() == [3, 3, 4, 4]


def test_rules_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(NetworkError, match="work_frames"):
        MemoryRules(work_frames=0)
    with pytest.raises(NetworkError, match="long_tokens 10 cannot hold"):
        spann3r_memory.empty(MemoryRules(long_tokens=10, work_frames=2), 6, 4)


def random_images(count: int, height: int = 48, width: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, height, width, generator=generator) * 2 - 1 for _ in range(count)]


@torch.inference_mode()
@pytest.mark.parametrize("faithful", [False, True])
def test_nothing_is_read_or_written_before_there_is_a_pair(faithful: bool) -> None:
    network = build(MemoryRules(faithful=faithful), weights=False)
    initial = network.initial_state(48, 64).memory
    sequence = online(network, random_images(3))
    used = [int(state.memory.used) for state in sequence.states]
    assert used == [0, PATCHES, PATCHES] or used == [0, PATCHES, 2 * PATCHES]
    assert all(torch.equal(a, b) for a, b in zip(sequence.states[0].memory, initial, strict=True))
    assert not sequence.states[1].memory.attention.any()
    assert all(tensor.isfinite().all() for state in sequence.states for tensor in state.state_dict().values())


@torch.inference_mode()
def test_shapes_never_change_and_a_step_leaves_its_state_alone() -> None:
    network = build(MemoryRules(long_tokens=24, work_frames=2), weights=False)
    state = network.initial_state(48, 64)
    shapes = {name: (t.shape, t.dtype) for name, t in state.state_dict().items()}
    for image in random_images(7):
        before = {name: tensor.clone() for name, tensor in state.state_dict().items()}
        after, _ = network(state, image)
        assert all(torch.equal(tensor, before[name]) for name, tensor in state.state_dict().items())
        assert {name: (t.shape, t.dtype) for name, t in after.state_dict().items()} == shapes
        state = after
    assert state.memory.used > 0


@torch.inference_mode()
def test_upright_images_stay_upright() -> None:
    network = build(MemoryRules(), weights=False)
    sequence = online(network, random_images(3, 64, 48))
    assert {tuple(pointmap.points.shape) for pointmap in sequence.pointmaps} == {(1, 64, 48, 3)}
    assert {tuple(pointmap.confidence.shape) for pointmap in sequence.pointmaps} == {(1, 64, 48)}


@torch.inference_mode()
def test_a_saved_state_goes_on_as_if_nothing_had_happened() -> None:
    network = build(MemoryRules(long_tokens=24, work_frames=2, similarity_threshold=2.0), weights=False)
    images = random_images(6)
    whole = online(network, images)
    saved = {name: tensor.clone() for name, tensor in whole.states[3].state_dict().items()}
    state = Spann3rState.from_state_dict(saved)
    for i in (4, 5):
        state, output = network(state, images[i])
        assert torch.equal(output.current.points, whole.outputs[i].current.points)
    assert torch.equal(state.memory.frame_ids, whole.states[-1].memory.frame_ids)
    copy = state.memory.copy()
    copy.keys.zero_()
    assert state.memory.keys.any()


def test_a_damaged_state_is_refused() -> None:
    state = build(MemoryRules(long_tokens=24, work_frames=2), weights=False).initial_state(48, 64).state_dict()
    damages: list[tuple[dict[str, Any], str]] = [
        ({key: value for key, value in state.items() if key != "query"}, "not"),
        ({key: value for key, value in state.items() if key != "memory.keys"}, "a Spann3R memory has"),
        ({**state, "memory.age": torch.zeros(1, 3)}, "do not fit together"),
        ({**state, "memory.frame_ids": state["memory.frame_ids"].float()}, "do not fit together"),
        ({**state, "feature": torch.zeros(1, 12, 7)}, "do not fit a Spann3R memory"),
    ]
    for damaged, message in damages:
        with pytest.raises(NetworkError, match=message):
            Spann3rState.from_state_dict(damaged)


class MemoryStep(torch.nn.Module):
    """The memory's part of a step."""

    rules = MemoryRules(long_tokens=9, work_frames=2)

    def forward(self, memory: SpatialMemory, keys: Any, values: Any, frame_id: Any) -> Any:
        feature, memory = spann3r_memory.read(memory, keys, identity, identity, identity, self.rules)
        return feature, *spann3r_memory.write(memory, keys, values, frame_id, self.rules)


def test_the_memory_is_one_static_graph_before_during_and_after_pruning() -> None:
    step, rng = MemoryStep(), np.random.default_rng(0)
    memory = spann3r_memory.empty(step.rules, 3, 6)
    graph = torch.export.export(step, (memory, *frame(rng, 0, 3, 6, 1), torch.tensor(0))).module()
    for frame_id in range(9):
        arguments = (memory, *frame(rng, frame_id, 3, 6, 1), torch.tensor(frame_id))
        feature, memory, closest = step(*arguments)
        exported, exported_memory, exported_closest = graph(*arguments)
        assert torch.equal(exported, feature) and torch.equal(exported_closest, closest)
        assert all(torch.equal(a, b) for a, b in zip(exported_memory, memory, strict=True))
    assert 0 not in memory.frame_ids and 8 in memory.frame_ids


def test_the_graphs_of_a_step_equal_the_network() -> None:
    """Before, during and after pruning; what is kept on the way is the network's state."""
    network = build(MemoryRules(long_tokens=20, work_frames=1, similarity_threshold=2.0), weights=False)
    images = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for rng in [np.random.default_rng(2)] for _ in range(6)]
    executor = TorchExecutor(build_graphs(network, CARD, 64, 48))
    memory, state, used = executor.initial(), network.initial_state(48, 64), []
    for image in images:
        with torch.inference_mode():
            state, wanted = network(state, (torch.from_numpy(image).float() / 127.5 - 1).permute(2, 0, 1)[None])
        memory, outputs = executor.step(memory, image)
        np.testing.assert_array_equal(outputs["points"], wanted.current.points[0])
        np.testing.assert_array_equal(outputs["confidence"], wanted.current.confidence[0])
        for name, array in executor.read(memory).items():
            np.testing.assert_array_equal(array, state.state_dict()[name], err_msg=name)
        used.append(int(state.memory.used))
    assert np.diff(used).min() < 0, "a pruning took place"


def test_the_published_defects_are_no_stream() -> None:
    with pytest.raises(NetworkError, match="faithful"):
        build_graphs(build(MemoryRules(faithful=True), weights=False), CARD, 64, 48)
