# SPDX-License-Identifier: Apache-2.0
"""CUT3R and TTT3R against what the official models gave on seeded weights, and the mistakes that would show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks need torch; install it to run their tests")

from safetensors.torch import load_file  # noqa: E402

from recon_ros.errors import InputError  # noqa: E402
from recon_ros.geometry import se3  # noqa: E402
from recon_ros.networks import blocks, cut3r, cut3r_heads, cut3r_rays, cut3r_state, recipe  # noqa: E402
from recon_ros.networks.card import ModelCard  # noqa: E402
from recon_ros.networks.cut3r import Cut3r, Cut3rConfig, View  # noqa: E402
from recon_ros.networks.cut3r_heads import NAMES, decode_pose  # noqa: E402
from recon_ros.networks.graphs import GraphOptions, build_graphs  # noqa: E402
from recon_ros.networks.precision import prepare  # noqa: E402
from recon_ros.networks.update_rules import Filt3r, Overwrite, Ttt3r, UpdateRule  # noqa: E402
from recon_ros.runtimes.families.cut3r import Cut3rStep, pose_matrix  # noqa: E402
from recon_ros.runtimes.torch_executor import TorchExecutor  # noqa: E402

FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="../shared/fixtures (outputs of the official models) is not there"
)
ATOL = RTOL = 1e-4

SMALL = Cut3rConfig(
    enc_dim=64,
    enc_depth=2,
    enc_heads=4,
    ray_depth=2,
    dec_dim=32,
    dec_depth=4,
    dec_heads=2,
    state_tokens=15,
    state_heads=4,
    pose_slots=16,
    dpt_feature_dim=16,
    dpt_last_dim=8,
    dpt_layer_dims=(8, 12, 16, 24),
)
HEADS = ("linear", "dpt")
CASES = {  # case → frames
    "plain": 6,
    "noupdatekey": 2,
    "update_off": 6,
    "reset": 6,
    "batch2": 5,
    "portrait": 3,
    "odd": 2,
    "ray": 6,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


Arrays = dict[str, np.ndarray]
_loaded: dict[str, Arrays] = {}


def arrays(name: str) -> Arrays:
    """All arrays of ``<folder>/<file>.npz``, read once."""
    if name not in _loaded:
        with np.load(FIXTURES / f"{name}.npz") as archive:
            _loaded[name] = {key: archive[key] for key in archive.files}
    return _loaded[name]


def small(head: str, **changes: object) -> Cut3r:
    """A small network with the fixtures' weights."""
    network = Cut3r(config(head, **changes))
    network.load_state_dict(load_file(FIXTURES / f"cut3r_{head}" / "weights.safetensors"), strict=True)
    return network.eval()


def config(head: str, **changes: object) -> Cut3rConfig:
    return Cut3rConfig(**{**vars(SMALL), "head": head, **changes})  # type: ignore[arg-type]


def views(head: str, case: str) -> list[View]:
    inputs = arrays(f"cut3r_{head}/inputs")
    names = ("imgs", "ray_maps", "img_mask", "ray_mask", "update", "reset")

    def item(name: str, frame: int) -> torch.Tensor | None:
        key = f"{case}/{name}"
        return torch.from_numpy(inputs[key][frame]) if key in inputs else None

    return [View(*(item(name, frame) for name in names)) for frame in range(CASES[case])]


def excess(mine: torch.Tensor, wanted: np.ndarray, skip: np.ndarray | None = None) -> float:
    """Largest |a − b| / (1e-4 + 1e-4·|b|); at most 1 is equal. Infinite where a number is not finite."""
    got = mine.numpy()
    if got.shape != wanted.shape:
        got = got[:, 1::3, 1::3]  # the fixtures' sub-sampling
    assert got.shape == wanted.shape
    ratio = np.abs(got - wanted) / (ATOL + RTOL * np.abs(wanted))
    if skip is not None:
        assert skip.mean() < 0.05
        ratio = ratio[~skip]
    return float(np.nan_to_num(ratio, nan=np.inf).max())


def near_sign_flip(points: np.ndarray) -> np.ndarray:
    """Where the linear head's sign(z) is decided by rounding (exception a of the fixtures' README)."""
    return np.abs(points[..., 2]) / np.linalg.norm(points, axis=-1) < 1e-3


def compare(head: str, expected: Arrays, prefix: str, results: list[cut3r.Result]) -> dict[str, float]:
    """Array's name → `excess`, of all outputs and memories that the fixtures hold under `prefix`."""
    found = {}
    for index, (outputs, memory) in enumerate(results):
        for name, value in outputs.items():
            wanted = expected.get(f"{prefix}/frame{index}/{name}")
            if wanted is not None:
                flips = head == "linear" and name == "pts3d_in_self_view"
                found[f"frame{index}/{name}"] = excess(value, wanted, near_sign_flip(wanted) if flips else None)
        for name, value in (("state_feat", memory.state), ("mem", memory.pose_memory)):
            wanted = expected.get(f"{prefix}/state{index + 1}/{name}")
            if wanted is not None:
                found[f"state{index + 1}/{name}"] = excess(value, wanted)
    return found


def assert_equal(found: dict[str, float], at_least: int) -> None:
    assert len(found) >= at_least, "fixture arrays are missing"
    wrong = {name: ratio for name, ratio in found.items() if ratio > 1}
    assert not wrong, f"times the tolerance: {wrong}"


@needs_fixtures
@pytest.mark.parametrize("head", HEADS)
class TestParity:
    @pytest.mark.parametrize("case", CASES)
    def test_forward(self, head: str, case: str) -> None:
        results = small(head).forward(views(head, case))
        found = compare(head, arrays(f"cut3r_{head}/outputs"), f"{case}/forward", results)
        assert_equal(found, at_least=7 * CASES[case])

    @pytest.mark.parametrize("case", CASES)
    def test_forward_recurrent(self, head: str, case: str) -> None:
        """Frame by frame equals the whole sequence, but for rays: these have arrays of their own."""
        api = "forward_recurrent" if case == "ray" else "forward"
        results = list(small(head).forward_recurrent(views(head, case)))
        found = compare(head, arrays(f"cut3r_{head}/outputs"), f"{case}/{api}", results)
        assert_equal(found, at_least=7 * CASES[case])

    def test_query(self, head: str) -> None:
        network = small(head)
        memory = network.forward(views(head, "plain"), wanted=("pose",))[-1].memory
        rays = torch.from_numpy(arrays(f"cut3r_{head}/inputs")["plain/query_ray_map"])
        expected = arrays(f"cut3r_{head}/outputs")
        found = compare(head, expected, "plain/query", [cut3r.Result(network.query(memory, rays), memory)])
        assert_equal(found, at_least=6)

    def test_fp16_rope(self, head: str) -> None:
        """The rounding of the published GPU code, on request; without it the numbers are others."""
        expected = arrays(f"cut3r_{head}/outputs")
        rounded = small(head, faithful_fp16_rope=True).forward(views(head, "plain"))
        assert_equal(compare(head, expected, "plain/forward_enc16", rounded), at_least=42)
        exact = small(head).forward(views(head, "plain"))
        assert max(compare(head, expected, "plain/forward_enc16", exact).values()) > 3

    @pytest.mark.parametrize("case", ["plain", "ray"])
    def test_inner_steps(self, head: str, case: str) -> None:
        """Encoder, pose token and decoder one by one: where a difference starts."""
        network, expected = small(head), arrays(f"cut3r_{head}/outputs")
        memory = network.initial_memory(1)
        found = {
            "state0": excess(memory.state, expected[f"{case}/forward/state0/state_feat"]),
            "mem0": excess(memory.pose_memory, expected[f"{case}/forward/state0/mem"]),
        }
        for index, view in enumerate(views(head, case)):
            if f"{case}/debug{index}/feat" not in expected:
                break
            feature, grid = network.encode(view, mask_image=True, mask_rays=case == "ray")
            decoded = network.decode(feature, grid, memory.state, memory.pose_memory, memory.is_first, ())
            found[f"{index} feat"] = excess(feature, expected[f"{case}/debug{index}/feat"])
            found[f"{index} new_state"] = excess(decoded.candidate, expected[f"{case}/debug{index}/new_state"])
            memory = network.advance(memory, decoded, view, Overwrite())
        assert_equal(found, at_least=8)
        assert torch.equal(cut3r_state.state_positions(15), torch.from_numpy(expected["plain/debug0/state_pos"][0]))

    @pytest.mark.parametrize("case", ["plain", "update_off", "reset"])
    def test_ttt3r(self, head: str, case: str) -> None:
        """Both published ways to run it: they differ after a reset."""
        network, expected = small(head), arrays(f"ttt3r_{head}/outputs")
        whole = network.forward(views(head, case), Ttt3r())
        found = compare(head, expected, f"{case}/forward", whole)
        lighter = list(network.forward_recurrent(views(head, case), Ttt3r(), restart=True))
        found_lighter = compare(head, expected, f"{case}/lighter", lighter)
        assert_equal(found, at_least=7 * CASES[case])
        assert_equal(found_lighter, at_least=6 * CASES[case])

    def test_ttt3r_gate(self, head: str) -> None:
        network, gates = small(head), arrays(f"ttt3r_{head}/outputs")["plain/gate"]
        memory = network.initial_memory(1, Ttt3r())
        for index, view in enumerate(views(head, "plain")):
            feature, grid = network.encode(view, mask_image=False, mask_rays=False)
            decoded = network.decode(feature, grid, memory.state, memory.pose_memory, memory.is_first, ())
            gate = torch.sigmoid(decoded.logits) if index else torch.ones_like(decoded.logits)
            # The fixture's gate is a quotient of differences of states, so it has their rounding.
            np.testing.assert_allclose(gate.numpy(), gates[index], atol=1e-4)
            memory = network.advance(memory, decoded, view, Ttt3r())
        assert gates[1:].std() > 0.02


# Each of these one-line mistakes was measured on the official model (`mutation_sensitivity` of the fixtures).
Mutation = Callable[[pytest.MonkeyPatch, Cut3r], None]


def pose_token_at_zero(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    patch.setattr(cut3r, "POSE_POSITION", 0)


def pose_token_at_the_last_patch(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    patch.setattr(cut3r, "POSE_POSITION", 3)


def layer_norm_of_torch(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


def state_on_a_line(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    patch.setattr(cut3r_state, "grid_width", lambda tokens: tokens)


def narrow_state_grid(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    patch.setattr(cut3r_state, "grid_width", lambda tokens: 3)


def always_the_pose_token(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    patch.setattr(network.pose_retriever, "read", lambda memory, feature: network.pose_token)


def pose_memory_never_written(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    patch.setattr(network.pose_retriever, "write", lambda memory, feature, token: memory)


def scale_without_one(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    def forward(self: cut3r_heads.ModulatedNorm, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.mlp(condition).chunk(2, dim=-1)
        return self.norm(x) * scale + shift

    patch.setattr(cut3r_heads.ModulatedNorm, "forward", forward)


def final_transform_without_rope(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    for block in network.downstream_head.final_transform:
        attend = block.attn.forward
        patch.setattr(block.attn, "forward", lambda x, positions, attend=attend: attend(x))


def image_heads_for_the_state(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    for block in network.dec_blocks_state:
        block.attn.heads = block.cross_attn.heads = SMALL.dec_heads


def sequential_decoders(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    """The state reads the image tokens of its own layer instead of the layer before."""
    last: list[torch.Tensor] = []
    for block in network.dec_blocks:
        plain = block.forward

        def remember(*args: torch.Tensor, plain: Callable[..., torch.Tensor] = plain) -> torch.Tensor:
            last[:] = [plain(*args)]
            return last[0]

        patch.setattr(block, "forward", remember)
    for block in network.dec_blocks_state:
        logits = block.forward_with_logits
        patch.setattr(
            block,
            "forward_with_logits",
            lambda x, memory, *places, logits=logits: logits(x, last[0], *places),
        )


def rope_base_ten_thousand(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    for module in network.modules():
        if isinstance(module, blocks.Attention | blocks.CrossAttention):
            module.rope_base = 10_000.0


def tanh_gelu(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    def forward(self: blocks.Mlp, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.nn.functional.gelu(self.fc1(x), approximate="tanh"))

    patch.setattr(blocks.Mlp, "forward", forward)


def points_not_turned_forward(patch: pytest.MonkeyPatch, network: Cut3r) -> None:
    patch.setattr(cut3r_heads, "face_forward", lambda raw: raw)


@needs_fixtures
@pytest.mark.parametrize(
    "mutation",
    [
        pose_token_at_zero,
        pose_token_at_the_last_patch,
        layer_norm_of_torch,
        state_on_a_line,
        narrow_state_grid,
        always_the_pose_token,
        pose_memory_never_written,
        scale_without_one,
        final_transform_without_rope,
        image_heads_for_the_state,
        sequential_decoders,
        rope_base_ten_thousand,
        tanh_gelu,
        points_not_turned_forward,
    ],
    ids=lambda mutation: mutation.__name__,
)
def test_mistakes_are_seen(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small("linear")
    mutation(monkeypatch, network)
    results = network.forward(views("linear", "plain"))
    found = compare("linear", arrays("cut3r_linear/outputs"), "plain/forward", results)
    assert max(found.values()) > 3, "the parity test would not notice this mistake"


@needs_fixtures
def test_overwriting_is_not_ttt3r() -> None:
    results = small("linear").forward(views("linear", "plain"))
    assert max(compare("linear", arrays("ttt3r_linear/outputs"), "plain/forward", results).values()) > 100


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "config"),
    [("cut3r_512_dpt_4_64", Cut3rConfig.dpt_512()), ("cut3r_224_linear_4", Cut3rConfig.linear_224())],
)
def test_full_size_keys(name: str, config: Cut3rConfig) -> None:
    with torch.device("meta"):
        mine = {key: list(value.shape) for key, value in Cut3r(config).state_dict().items()}
    listed = json.loads((FIXTURES / "keys" / f"{name}.json").read_text(encoding="utf-8"))["keys"]
    assert mine == {key: item["shape"] for key, item in listed.items()}


@needs_fixtures
def test_pose_and_ray_conventions() -> None:
    expected = arrays("geometry/outputs_cut3r")
    inputs = arrays("geometry/inputs_cut3r")
    encoding = decode_pose(torch.from_numpy(inputs["pose/raw"])).numpy()
    np.testing.assert_allclose(encoding, expected["pose/encoding"], atol=1e-6, rtol=1e-5)
    matrices = [pose_matrix(pose) for pose in encoding]
    np.testing.assert_allclose(matrices, expected["pose/c2w"], atol=1e-5)

    T_first_camera = se3.inverse(inputs["raymap/c2w_first"]) @ inputs["raymap/c2w"]
    wanted = expected["raymap/ray_map"]
    mine = cut3r_rays.ray_map(T_first_camera, inputs["raymap/K"], *wanted.shape[:2])
    np.testing.assert_allclose(mine, wanted, atol=1e-6)


# From here on nothing of the fixtures is needed.


def seeded(head: str, seed: int = 7) -> Cut3r:
    """A small network with weights drawn by the recipe, loaded as a checkpoint's would be."""
    network = Cut3r(config(head))
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    weights = recipe.draw_all(shapes, seed)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=True)
    return network.eval()


def pictures(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


CARD = ModelCard("small", "cut3r", multiple=16, is_metric=True)


def stream(network: Cut3r, rule: UpdateRule | None = None, outputs: tuple[str, ...] = ()) -> Cut3rStep:
    """As a step for `pictures`, executed by PyTorch."""
    options = GraphOptions((rule or Filt3r()).name, outputs)
    return Cut3rStep(TorchExecutor(build_graphs(network, CARD, 48, 32, options)), CARD)


@pytest.mark.parametrize("head", HEADS)
def test_other_weights(head: str) -> None:
    """Seeded weights through the same door: shapes, ranges, finite numbers."""
    outputs = seeded(head).forward([View(torch.rand(2, 3, 32, 48) * 2 - 1) for _ in range(3)])[-1].outputs
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "pts3d_in_self_view": (2, 32, 48, 3),
        "conf_self": (2, 32, 48),
        "pts3d_in_other_view": (2, 32, 48, 3),
        "conf": (2, 32, 48),
        "camera_pose": (2, 7),
        "rgb": (2, 32, 48, 3),
    }
    assert all(torch.isfinite(value).all() for value in outputs.values())
    assert outputs["conf"].min() > 1 and outputs["rgb"].abs().max() < 1
    torch.testing.assert_close(outputs["camera_pose"][:, 3:].norm(dim=-1), torch.ones(2))


def refuse(*_: object) -> None:
    raise AssertionError("computed without being asked for")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("output", sorted(NAMES))
def test_only_what_is_wanted_is_computed(head: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = seeded(head)
    owners = {"self": "self_view", "cross": "cross_view", "rgb": "colour"}
    for other in set(owners) - {output}:
        monkeypatch.setattr(network.downstream_head, owners[other], refuse)
    if output != "pose":
        monkeypatch.setattr(network.downstream_head.pose_head, "forward", refuse)
    outputs = network.forward([View(torch.zeros(1, 3, 32, 48))], wanted=(output,))[0].outputs
    assert tuple(outputs) == NAMES[output]


@pytest.mark.parametrize(("tokens", "width"), [(768, 28), (15, 4), (16, 4), (9, 4), (1, 2)])
def test_state_grid(tokens: int, width: int) -> None:
    places = cut3r_state.state_positions(tokens)
    assert cut3r_state.grid_width(tokens) == width
    assert places.shape == (tokens, 2)
    assert torch.equal(places[:, 0] * width + places[:, 1], torch.arange(tokens))


@pytest.mark.parametrize("rule", [Overwrite(), Ttt3r(), Filt3r()], ids=lambda rule: rule.name)
def test_stream_equals_sequence(rule: UpdateRule) -> None:
    network, images = seeded("linear"), pictures(4)
    source = stream(network, rule, ("points_memory",))
    memory = source.initial_memory()
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1 for image in images]
    results = network.forward([View(t) for t in tensors], rule)
    for image, tensor, (outputs, after) in zip(images, tensors, results, strict=True):
        memory, prediction = source.step(memory, image, None)
        saved = source.save_memory(memory)
        np.testing.assert_allclose(saved["state"], after.state, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(saved["pose_memory"], after.pose_memory, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(prediction.points_self, outputs["pts3d_in_self_view"][0], rtol=1e-4, atol=1e-5)
        assert prediction.points_memory is not None
        np.testing.assert_allclose(prediction.points_memory, outputs["pts3d_in_other_view"][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(prediction.confidence, outputs["conf_self"][0], rtol=1e-4)
        assert prediction.confidence.shape == (32, 48) and prediction.confidence.min() > 1
        assert se3.is_valid(prediction.T_memory_camera) and prediction.is_metric
        feature = network.encode_image(tensor)
        assert prediction.descriptor is not None
        np.testing.assert_allclose(prediction.descriptor, feature.mean(dim=1)[0], rtol=1e-4, atol=1e-5)


def test_stream_can_go_back() -> None:
    """The memory is the caller's: kept, it gives the same step again; nothing hides in the source."""
    source, images = stream(seeded("linear")), pictures(3)
    memory, _ = source.step(source.initial_memory(), images[0], None)
    saved = source.save_memory(memory)
    again, first = source.step(memory, images[1], None)
    source.step(again, images[2], None)
    assert all(np.array_equal(array, saved[name]) for name, array in source.save_memory(memory).items())
    _, second = source.step(memory, images[1], None)
    np.testing.assert_array_equal(first.points_self, second.points_self)
    np.testing.assert_array_equal(first.T_memory_camera, second.T_memory_camera)


def test_stream_in_half_precision() -> None:
    """The memory stays in float32, and the answer near that of float32."""
    image = pictures(1)[0]
    source, half = stream(seeded("linear")), stream(prepare(seeded("linear"), "bf16"))
    _, wanted = source.step(source.initial_memory(), image, None)
    memory, found = half.step(half.initial_memory(), image, None)
    saved = half.save_memory(memory)
    assert {saved[name].dtype for name in half.executor.plan.memory} == {np.dtype(np.float32)}
    assert found.points_self.dtype == found.confidence.dtype == np.float32
    assert not np.array_equal(found.confidence, wanted.confidence)
    assert np.median(np.abs(found.confidence - wanted.confidence) / wanted.confidence) < 0.05


def test_stream_refuses_a_wrong_size() -> None:
    source = stream(seeded("linear"))
    with pytest.raises(InputError, match="image is 64x32, not of the first one's size 48x32") as error:
        source.step(source.initial_memory(), np.zeros((32, 64, 3), np.uint8), None)
    assert error.value.reason == "image_size"


def test_stream_refuses_to_spoil_its_state() -> None:
    network = seeded("linear")
    source = stream(network)
    network.decoder_embed.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite") as error:
        source.step(source.initial_memory(), pictures(1)[0], None)
    assert error.value.reason == "network_output"


def test_filt3r_starts_anew_after_a_reset() -> None:
    """What came before a reset changes nothing after it."""
    network, rule = seeded("linear"), Filt3r()
    images = [torch.from_numpy(i).permute(2, 0, 1)[None] / 127.5 - 1 for i in pictures(5)]
    plain = network.forward([View(image) for image in images[2:]], rule)
    yes = torch.ones(1, dtype=torch.bool)
    after = network.forward([View(images[0]), View(images[1], reset=yes), *map(View, images[2:])], rule)[2:]
    for (first, _), (second, _) in zip(plain, after, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_can_be_exported() -> None:
    """One static graph serves the first frame and all later ones."""
    graphs = build_graphs(seeded("linear"), CARD, 48, 32)
    graph, given = graphs.modules["step"], {name: torch.from_numpy(array) for name, array in graphs.initial.items()}
    exported = None
    for image in pictures(2):
        arguments = (torch.from_numpy(image), *given.values())
        exported = exported or torch.export.export(graph, arguments).module()
        outputs = dict(zip(graph.outputs, graph(*arguments), strict=True))
        torch.testing.assert_close(exported(*arguments), tuple(outputs.values()))
        given = {name: outputs[f"{name}.next"] for name in given}


def test_a_step_stays_on_its_device() -> None:
    """No tensor is made on the processor on the way: the meta device refuses to mix."""
    with torch.device("meta"):
        network = Cut3r(config("dpt"))
    memory = network.initial_memory(1, Filt3r())
    with torch.device("cpu"):
        view = View(torch.empty(1, 3, 32, 48, device="meta"))
        feature, grid = network.encode(view, mask_image=True, mask_rays=True)
        decoded = network.decode(feature, grid, memory.state, memory.pose_memory, memory.is_first)
        after = network.advance(memory, decoded, view, Filt3r())
        after = network.forget(after, view.mask("reset"), Filt3r(), restart=True)
    tensors = (*decoded.outputs.values(), after.state, after.pose_memory, after.is_first, *after.rule.values())
    assert {tensor.device.type for tensor in tensors} == {"meta"}
