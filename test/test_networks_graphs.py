# SPDX-License-Identifier: Apache-2.0
"""Networks as graphs of static tensors: what the plan says is what the modules take and give, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
from helpers import quick, seeds  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from recon_ros.errors import NetworkError  # noqa: E402
from recon_ros.networks import ranking, spann3r_memory  # noqa: E402
from recon_ros.networks.graphs import GraphOptions, StepGraphs, build_graphs, optional_outputs  # noqa: E402
from recon_ros.networks.plan import BYTES, HEALTH, IMAGE, NEXT  # noqa: E402
from recon_ros.networks.ranking import largest, running_sum  # noqa: E402
from recon_ros.networks.small import SMALL  # noqa: E402
from recon_ros.networks.spann3r_memory import EMPTY, MemoryRules, SpatialMemory  # noqa: E402
from recon_ros.networks.update_rules import RULES  # noqa: E402
from recon_ros.runtimes.torch_executor import TorchExecutor  # noqa: E402
from recon_ros.runtimes.torch_network import OpenedNetwork, network_digest, open_network  # noqa: E402

WIDTH, HEIGHT = 96, 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def opened(name: str) -> OpenedNetwork:
    return open_network(name)


def graphs_of(name: str, **options: Any) -> StepGraphs:
    network = opened(name)
    return build_graphs(network.network, network.card, WIDTH, HEIGHT, GraphOptions(**options))


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(count)]


def signature(tensor: Any) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


@pytest.mark.parametrize("name", SMALL)
def test_the_plan_is_what_the_modules_do(name: str) -> None:
    """Names, shapes and dtypes; nothing comes from nowhere, nothing is left out."""
    graphs = graphs_of(name, outputs=optional_outputs(opened(name).card.family))
    plan = graphs.plan
    assert plan.tensors[IMAGE].shape == (HEIGHT, WIDTH, 3) and plan.tensors[IMAGE].dtype == "uint8"
    assert {spec.dtype for spec in plan.tensors.values()} <= set(BYTES)
    assert set(graphs.modules) == {graph.name for graph in plan.graphs}
    tensors = {name: torch.from_numpy(array) for name, array in graphs.initial.items()}
    assert tuple(tensors) == plan.memory
    tensors[IMAGE] = torch.from_numpy(pictures(1)[0])
    for graph in plan.graphs:
        with torch.inference_mode():
            outputs = graphs.modules[graph.name](*(tensors[name] for name in graph.inputs))
        assert len(outputs) == len(graph.outputs) and not set(graph.outputs) & set(tensors)
        tensors.update(zip(graph.outputs, outputs, strict=True))
    assert {name: signature(tensor) for name, tensor in tensors.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in plan.tensors.items()
    }
    assert {memory + NEXT for memory in plan.memory} <= set(tensors)
    assert {name for name in tensors if name.startswith(HEALTH)} <= set(plan.fetched)
    assert {"descriptor", *optional_outputs(plan.family)} <= set(plan.fetched)


@pytest.mark.parametrize("name", ["cut3r-small-linear", "mast3r-small-conv", "spann3r-small"])
def test_only_what_is_asked_for_is_given(name: str) -> None:
    plain = graphs_of(name).plan
    assert not set(optional_outputs(plain.family)) & set(plain.tensors)
    assert all(output not in optional_outputs(plain.family) for graph in plain.graphs for output in graph.outputs)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_remembers_in_the_plan(rule: str) -> None:
    graphs = graphs_of("cut3r-small-linear", update_rule=rule)
    remembered = {name.removeprefix("rule.") for name in graphs.plan.memory if name.startswith("rule.")}
    assert remembered == set(RULES[rule]().start(torch.zeros(1, 2, 3)))


def test_what_cannot_be_built_is_refused() -> None:
    network, card, _ = opened("cut3r-small-linear")
    with pytest.raises(NetworkError, match="at 100x64: both sides must be multiples of 16"):
        build_graphs(network, card, 100, 64)
    with pytest.raises(NetworkError, match="update rule 'overwirte' is not one of overwrite, ttt3r, filt3r"):
        build_graphs(network, card, WIDTH, HEIGHT, GraphOptions("overwirte"))
    with pytest.raises(NetworkError, match="no output 'rgb'; to choose from: points_memory"):
        build_graphs(network, card, WIDTH, HEIGHT, GraphOptions(outputs=("rgb",)))


@pytest.mark.parametrize("name", ["cut3r-small-linear", "dust3r-small-linear", "spann3r-small"])
def test_health_is_finite_if_and_only_if_everything_is(name: str) -> None:
    """A number that is none may come from any memory, and may go (a level starts anew), but is never overlooked."""
    executor = TorchExecutor(graphs_of(name))
    memory, image, caught = executor.initial(), pictures(1)[0], 0
    for _ in range(2):
        memory, _ = executor.step(memory, image)
    for spoilt in (None, *(name for name, tensor in memory.items() if tensor.is_floating_point())):
        given = dict(memory)
        if spoilt is not None:
            given[spoilt] = torch.full_like(memory[spoilt], torch.nan)
        after, outputs = executor.step(given, image)
        is_well = all(np.isfinite(value) for name, value in outputs.items() if name.startswith(HEALTH))
        said = [array for name, array in outputs.items() if not name.startswith(HEALTH)]
        assert is_well == all(np.isfinite(array).all() for array in (*said, *executor.read(after).values())), spoilt
        assert is_well or spoilt is not None
        caught += not is_well
    assert caught > 0


def test_digests_tell_networks_apart() -> None:
    assert len({network_digest(name) for name in SMALL}) == len(SMALL)
    assert opened("cut3r-small-dpt").digest == network_digest("cut3r-small-dpt")
    full = network_digest("cut3r_512_dpt", seeded=True)
    assert full.startswith("seeded-0-") and full != network_digest("cut3r_224_linear", seeded=True)


# --- choosing the largest, and pruning by it


def slow_largest(weights: np.ndarray, count: int) -> list[int]:
    order = sorted(range(len(weights)), key=lambda slot: (-weights[slot], slot))
    return sorted(order[:count])


@quick
@given(seeds(), st.integers(1, 40), st.integers(1, 40), st.integers(2, 30), st.integers(1, 6))
def test_the_largest_are_found_whatever_the_ties(seed: int, slots: int, count: int, limit: int, levels: int) -> None:
    """In one TopK or in several, from above or from below; of equal weights the first."""
    rng = np.random.default_rng(seed)
    count = min(count, slots)
    weights = rng.integers(0, levels, (2, slots)).astype(np.float32)
    weights[rng.random((2, slots)) < 0.2] = -np.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "TOPK_LIMIT", limit)
        found = largest(torch.from_numpy(weights), count)
    assert found.tolist() == [slow_largest(row, count) for row in weights]


@quick
@given(seeds(), st.integers(1, 70))
def test_running_sum(seed: int, length: int) -> None:
    x = np.random.default_rng(seed).integers(-5, 6, (2, length)).astype(np.int32)
    found = running_sum(torch.from_numpy(x))
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found, np.cumsum(x, axis=1))


def slow_prune(memory: SpatialMemory, tokens: int, rules: MemoryRules) -> SpatialMemory:
    """The rule in loops: what is kept, in order, then empty slots."""
    used = int((memory.frame_ids[0] != EMPTY).sum())
    work = min(used // tokens, rules.work_frames) * tokens
    if used - work <= rules.long_tokens:
        return memory
    batches = []
    for keys, values, attention, age, ids in zip(*memory, strict=True):
        weights = np.full(len(ids), -np.inf)
        for slot in range(len(ids)):
            if ids[slot] == EMPTY:
                continue
            if rules.long_tokens == 0:
                weights[slot] = -age[slot]
            elif age[slot] < rules.work_frames + 5:
                weights[slot] = 1e6 - age[slot]
            else:
                weights[slot] = attention[slot] / max(age[slot], 1)
        kept = slow_largest(weights, rules.kept_tokens(tokens))
        fields = [torch.zeros_like(field) for field in (keys, values, attention, age)] + [torch.full_like(ids, EMPTY)]
        for new, old in zip(fields, (keys, values, attention, age, ids), strict=True):
            new[: len(kept)] = old[kept]
        batches.append(fields)
    return SpatialMemory(*(torch.stack(field) for field in zip(*batches, strict=True)))


@quick
@given(seeds(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 30), st.integers(1, 2), st.integers(2, 20))
def test_a_pruning_is_what_the_rule_says(seed: int, tokens: int, work: int, more: int, batch: int, limit: int) -> None:
    """Exactly, with ties of attention and of age, whether it prunes or not."""
    rng = np.random.default_rng(seed)
    rules = MemoryRules(long_tokens=0 if more == 0 else work * tokens + more, work_frames=work)
    slots = rules.capacity(tokens)
    used = tokens * int(rng.integers(0, slots // tokens + 1))
    ids = np.where(np.arange(slots) < used, np.arange(slots) // tokens, EMPTY)
    age = np.where(ids >= 0, (used // tokens - 1 - ids), 0)
    keys = rng.normal(size=(batch, slots, 3)) * (ids >= 0)[:, None]
    attention = rng.integers(0, 4, (batch, slots)) * (ids >= 0)
    memory = SpatialMemory(
        torch.from_numpy(keys.astype(np.float32)),
        torch.from_numpy(-keys.astype(np.float32)),
        torch.from_numpy(attention.astype(np.float32)),
        torch.from_numpy(np.tile(age, (batch, 1)).astype(np.float32)),
        torch.from_numpy(np.tile(ids, (batch, 1))),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "TOPK_LIMIT", limit)
        found = spann3r_memory.prune(memory, tokens, rules)
    for name, ours, wanted in zip(SpatialMemory._fields, found, slow_prune(memory, tokens, rules), strict=True):
        assert torch.equal(ours, wanted), name
