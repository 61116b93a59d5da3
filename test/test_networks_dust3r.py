# SPDX-License-Identifier: Apache-2.0
"""DUSt3R and MASt3R equal the official networks, and a change of any detail is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
F = torch.nn.functional
from safetensors.torch import load_file  # noqa: E402

from recon_ros.networks import blocks, heads, pair  # noqa: E402
from recon_ros.networks.dpt import FusionBlock, ResidualUnit  # noqa: E402
from recon_ros.networks.dust3r import Dust3r, Dust3rConfig  # noqa: E402
from recon_ros.networks.landscape import encode_landscape, forward_landscape, is_portrait  # noqa: E402
from recon_ros.networks.mast3r import Mast3r, Mast3rConfig  # noqa: E402
from recon_ros.networks.rope import rope_2d  # noqa: E402

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.exists(), reason="needs ../shared/fixtures")

DUST3R, MAST3R = ("dust3r_linear", "dust3r_dpt"), ("mast3r_catmlpdpt", "mast3r_catconv")
UPRIGHT_CASES = ("land", "port", "mixed", "odd", "sym")
LANDSCAPE_CASES = ("manyar", "allport")
# The names of a map's parts in the fixtures, in our order; the points of view 2 have one of their own.
PARTS = ("pts3d", "conf", "desc", "desc_conf")

Network = Any
Outputs = dict[str, torch.Tensor]


@cache
def load(fixture: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """Inputs, outputs and weights of a fixture."""
    folder = FIXTURES / fixture
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "outputs.npz") as outputs:
        return dict(inputs), dict(outputs), load_file(folder / "weights.safetensors")


def build(fixture: str) -> Network:
    """The network of a fixture's sizes with its weights, loaded by their official names."""
    made = json.loads((FIXTURES / fixture / "config.json").read_text())["constructor"]
    sizes = {
        "enc_dim": made["enc_embed_dim"],
        "enc_depth": made["enc_depth"],
        "enc_heads": made["enc_num_heads"],
        "dec_dim": made["dec_embed_dim"],
        "dec_depth": made["dec_depth"],
        "dec_heads": made["dec_num_heads"],
        "dpt_feature_dim": 16,
        "dpt_last_dim": 8,
        "dpt_layer_dims": (8, 12, 16, 24),
        "head": made["head_type"],
    }
    if fixture in DUST3R:
        network = Dust3r(Dust3rConfig(**sizes))
    else:
        network = Mast3r(Mast3rConfig(**sizes, descriptor_dim=4))
    network.load_state_dict(load(fixture)[2], strict=True)
    return network.eval()


def views(fixture: str, case: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """An input of both views."""
    first, second = (torch.from_numpy(load(fixture)[0][f"{case}/{name}{view}"]) for view in (1, 2))
    return first, second


def named(map1: Any, map2: Any) -> Outputs:
    """Both maps under the names of the fixtures."""
    outputs = {f"view1/{part}": value for part, value in zip(PARTS, map1, strict=False)}
    outputs |= {f"view2/{part}": value for part, value in zip(PARTS, map2, strict=False)}
    outputs["view2/pts3d_in_other_view"] = outputs.pop("view2/pts3d")
    return outputs


def mismatches(fixture: str, case: str, outputs: Outputs) -> list[str]:
    """Which outputs leave the tolerance; every output of the case must be there."""
    wrong = []
    for name, value in outputs.items():
        expected = load(fixture)[1][f"{case}/{name}"]
        assert value.shape == expected.shape, name
        error = np.abs(value.numpy() - expected)
        if not (error <= 1e-4 + 1e-4 * np.abs(expected)).all():
            wrong.append(f"{fixture}/{case}/{name}: {error.max():.2g}")
    return wrong


def expected_names(fixture: str, case: str, part: str) -> set[str]:
    """The outputs of a case below a part of it."""
    names = (name.removeprefix(f"{case}/") for name in load(fixture)[1] if name.startswith(f"{case}/{part}"))
    return set(names)


def run(network: Network, fixture: str, case: str) -> Outputs:
    """The maps of a case in which images are stored upright."""
    with torch.inference_mode():
        return named(*network(*views(fixture, case, "img")))


@needs_fixtures
@pytest.mark.parametrize(
    "fixture, case",
    [(fixture, case) for fixture in DUST3R for case in UPRIGHT_CASES]
    + [(fixture, case) for fixture in MAST3R for case in ("land", "mixed", "odd")],
)
def test_maps_equal_the_official_ones(fixture: str, case: str) -> None:
    outputs = run(build(fixture), fixture, case)
    assert set(outputs) == expected_names(fixture, case, "view")
    assert mismatches(fixture, case, outputs) == []


@needs_fixtures
@pytest.mark.parametrize("case", LANDSCAPE_CASES)
@pytest.mark.parametrize("fixture", DUST3R)
def test_maps_of_mixed_orientations_equal_the_official_ones(fixture: str, case: str) -> None:
    network = build(fixture)
    images, shapes = views(fixture, case, "img"), views(fixture, case, "true_shape")
    with torch.inference_mode():
        outputs = named(*forward_landscape(network, *images, *shapes))
        for view, (image, shape) in enumerate(zip(images, shapes, strict=True), start=1):
            encoding = encode_landscape(network, image, is_portrait(shape))
            outputs |= {f"enc/feat{view}": encoding.features, f"enc/pos{view}": encoding.positions}
    assert set(outputs) == expected_names(fixture, case, "")
    assert mismatches(fixture, case, outputs) == []


@needs_fixtures
@pytest.mark.parametrize("case", UPRIGHT_CASES)
@pytest.mark.parametrize("fixture", DUST3R)
def test_features_equal_the_official_ones(fixture: str, case: str) -> None:
    network = build(fixture)
    with torch.inference_mode():
        view1, view2 = (network.encode(image) for image in views(fixture, case, "img"))
        decoded = network.decode(view1.features, view1.positions, view2.features, view2.positions)
    outputs = {"enc/feat1": view1.features, "enc/feat2": view2.features}
    outputs |= {"enc/pos1": view1.positions, "enc/pos2": view2.positions}
    if expected_names(fixture, case, "dec"):
        for view, features in enumerate(decoded, start=1):
            outputs |= {f"dec{view}/{layer}": feature for layer, feature in enumerate(features)}
    assert set(outputs) == expected_names(fixture, case, "enc") | expected_names(fixture, case, "dec")
    assert mismatches(fixture, case, outputs) == []


@needs_fixtures
@pytest.mark.parametrize("fixture", ["dust3r_dpt", "mast3r_catconv"])
def test_a_step_against_a_keyframe_is_the_pair_of_both_images(fixture: str) -> None:
    network = build(fixture)
    first, second = views(fixture, "odd", "img")
    with torch.inference_mode():
        keyframe = network.encode(first)
        reference, current, encoding = network.step(keyframe, second)
        assert mismatches(fixture, "odd", named(reference, current)) == []
        torch.testing.assert_close(encoding.features, network.encode(second).features, rtol=0, atol=0)
        # The next keyframe needs nothing else.
        turned = network.step(encoding, first)[:2]
        for ours, official in zip(turned, network(second, first), strict=True):
            torch.testing.assert_close(tuple(ours), tuple(official), rtol=0, atol=0)


# Mutations: each makes a detail wrong that is easily got wrong.

Mutation = Callable[[Network, pytest.MonkeyPatch], None]


def wrong_rope_base(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in network.modules():
        if hasattr(module, "rope_base"):
            module.rope_base = 90.0


def swapped_axes(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "rope_2d", lambda x, at, base: rope_2d(x, at.flip(-1), base))


def interleaved_pairs(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def rotate(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
        halves = x.unflatten(-1, (2, -1, 2)).transpose(-1, -2).flatten(-3)
        return rope_2d(halves, positions, base).unflatten(-1, (2, 2, -1)).transpose(-1, -2).flatten(-3)

    monkeypatch.setattr(blocks, "rope_2d", rotate)


def no_rope_in_cross_attention(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        blocks.CrossAttention, "_split", lambda self, x, at: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    )


def rounded_rope(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in network.enc_blocks:
        block.attn.faithful_fp16_rope = True


def norm_epsilon(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


def tanh_gelu(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks.Mlp, "forward", lambda self, x: self.fc2(F.gelu(self.fc1(x), approximate="tanh")))


def sequential_decoders(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: Network, features1: Any, at1: Any, features2: Any, at2: Any) -> tuple[list, list]:
        outputs1, outputs2 = [self.decoder_embed(features1)], [self.decoder_embed(features2)]
        for block1, block2 in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            outputs1.append(block1(outputs1[-1], outputs2[-1], at1, at2))
            outputs2.append(block2(outputs2[-1], outputs1[-1], at2, at1))
        outputs1[0], outputs2[0] = features1, features2
        outputs1[-1], outputs2[-1] = self.dec_norm(outputs1[-1]), self.dec_norm(outputs2[-1])
        return outputs1, outputs2

    monkeypatch.setattr(pair.PairNetwork, "decode", decode)


def swapped_decoders(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.dec_blocks, network.dec_blocks2 = network.dec_blocks2, network.dec_blocks


def swapped_heads(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.downstream_head1, network.downstream_head2 = network.downstream_head2, network.downstream_head1


def no_norm_of_the_memory(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (*network.dec_blocks, *network.dec_blocks2):
        block.norm_y = torch.nn.Identity()


def no_encoder_norm(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.enc_norm = torch.nn.Identity()


def no_decoder_norm(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.dec_norm = torch.nn.Identity()


def exponential_without_minus_one(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def exp_norm(raw: torch.Tensor) -> torch.Tensor:
        norm = raw.norm(dim=-1, keepdim=True)
        return raw / norm * norm.exp()

    monkeypatch.setattr(heads, "exp_norm", exp_norm)


def fusion_without_aligned_corners(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: FusionBlock, path: torch.Tensor, level: torch.Tensor | None = None) -> torch.Tensor:
        path = path if level is None else path + self.resConfUnit1(level)
        return self.out_conv(F.interpolate(self.resConfUnit2(path), scale_factor=2, mode="bilinear"))

    monkeypatch.setattr(FusionBlock, "forward", forward)


def head_without_aligned_corners(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    for head in (network.downstream_head1, network.downstream_head2):
        head.dpt.head[1] = torch.nn.Upsample(scale_factor=2, mode="bilinear")


def shifted_hooks(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.downstream_head1.hooks = network.downstream_head2.hooks = (0, 1, 2, 3)


def relu_on_the_skip(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResidualUnit, "forward", lambda self, x: F.relu(x) + self.conv2(F.relu(self.conv1(F.relu(x)))))


def descriptors_as_they_come(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "normalize", lambda x, dim: x)


ANY_PAIR: list[Mutation] = [
    wrong_rope_base,
    swapped_axes,
    interleaved_pairs,
    no_rope_in_cross_attention,
    rounded_rope,
    norm_epsilon,
    tanh_gelu,
    sequential_decoders,
    swapped_decoders,
    swapped_heads,
    no_norm_of_the_memory,
    no_encoder_norm,
    no_decoder_norm,
    exponential_without_minus_one,
]
ANY_DPT: list[Mutation] = [
    fusion_without_aligned_corners,
    head_without_aligned_corners,
    shifted_hooks,
    relu_on_the_skip,
]


@needs_fixtures
@pytest.mark.parametrize(
    "fixture, mutate",
    [
        *(("dust3r_linear", mutate) for mutate in ANY_PAIR),
        *(("dust3r_dpt", mutate) for mutate in (*ANY_PAIR, *ANY_DPT)),
        *(("mast3r_catmlpdpt", mutate) for mutate in (*ANY_DPT, descriptors_as_they_come)),
        ("mast3r_catconv", descriptors_as_they_come),
    ],
)
def test_a_wrong_detail_is_noticed(fixture: str, mutate: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(fixture)
    mutate(network, monkeypatch)
    assert mismatches(fixture, "odd", run(network, fixture, "odd"))


# The full-size networks, without their weights.


@needs_fixtures
@pytest.mark.parametrize(
    "name, make",
    [
        ("dust3r_vitlarge_basedecoder_224_linear", lambda: Dust3r(Dust3rConfig.vitlarge_linear())),
        ("dust3r_vitlarge_basedecoder_512_linear", lambda: Dust3r(Dust3rConfig.vitlarge_linear())),
        ("dust3r_vitlarge_basedecoder_512_dpt", lambda: Dust3r(Dust3rConfig.vitlarge_512_dpt())),
        (
            "mast3r_vitlarge_basedecoder_512_catmlpdpt_metric",
            lambda: Mast3r(Mast3rConfig.vitlarge_512()),
        ),
    ],
)
def test_names_and_shapes_are_those_of_the_published_checkpoints(name: str, make: Callable) -> None:
    with torch.device("meta"):
        network = make()
    published = json.loads((FIXTURES / "keys" / f"{name}.json").read_text())
    ours = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert ours == {key: entry["shape"] for key, entry in published["keys"].items()}
    assert sum(value.numel() for value in network.parameters()) == published["n_params_unique"]
