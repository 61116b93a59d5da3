# SPDX-License-Identifier: Apache-2.0
"""`recon engine`: export networks, build engines, and what is in the cache. Loads libraries only where needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recon_ros.cli.spoken import spoken_errors

engine = typer.Typer(help="Graphs and engines of networks: export, build, check, list.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model, as `recon models list` shows it")]
Size = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Height x width of the image, pixels", show_default="the model's largest"),
]
Attention = Annotated[str, typer.Option(help="Arithmetic of attention: fused, softmax32 or fp32")]
Rule = Annotated[str, typer.Option("--update-rule", help="Of a CUT3R: overwrite, ttt3r or filt3r")]
Outputs = Annotated[
    list[str] | None, typer.Option("--output", metavar="NAME", help="An optional output of the graphs; repeatable")
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weight file", show_default="the fetched one, in the cache")
]
Seeded = Annotated[bool, typer.Option("--seeded", help="Random weights, no file: to try, the map means nothing")]
Cache = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of graphs and engines", show_default="the user's cache")
]


@engine.command()
def export(
    model: Model,
    size: Size = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16")] = "fp32",
    attention: Attention = "softmax32",
    update_rule: Rule = "filt3r",
    output: Outputs = None,
    weights: Weights = None,
    seeded: Seeded = False,
    cache: Cache = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write there, not into the cache")] = None,
) -> None:
    """Export a network as ONNX graphs, which OpenVINO runs and engines are built from."""
    with spoken_errors():
        from recon_ros.cli.engine_commands import make, request

        wish = request(
            model,
            size,
            runtime="openvino",
            precision=precision,
            attention=attention,
            update_rule=update_rule,
            outputs=tuple(output or ()),
            weights=str(weights or ""),
            seeded=seeded,
            cache=str(cache or ""),
            out=str(out or ""),
        )
        make(wish)


@engine.command()
def build(
    model: Model,
    size: Size = None,
    runtime: Annotated[str, typer.Option(help="tensorrt, tensorrt_rtx or openvino")] = "tensorrt",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or bf16; openvino: fp32, bf16 or int8", show_default="fp16, or fp32")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="8.6,8.9",
            help="Compute capabilities, with tensorrt_rtx",
            show_default="this machine's; without a GPU 8.6,8.9,12.0",
        ),
    ] = None,
    attention: Attention = "softmax32",
    update_rule: Rule = "filt3r",
    output: Outputs = None,
    weights: Weights = None,
    seeded: Seeded = False,
    cache: Cache = None,
) -> None:
    """Build all that a runtime needs for a network at one size, in a process of its own; nothing when it is here."""
    with spoken_errors():
        from recon_ros.cli.engine_commands import make, request

        precision = precision or ("fp32" if runtime == "openvino" else "fp16")
        if (runtime, precision) == ("openvino", "bf16"):
            precision = "fp32"  # OpenVINO computes in bf16 from the same graphs
        wish = request(
            model,
            size,
            targets,
            runtime=runtime,
            precision=precision,
            attention=attention,
            update_rule=update_rule,
            outputs=tuple(output or ()),
            weights=str(weights or ""),
            seeded=seeded,
            cache=str(cache or ""),
        )
        make(wish)


@engine.command()
def check(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False)] = None,
    all_small: Annotated[
        bool, typer.Option("--all-small", help="A small network of every family, with random weights")
    ] = False,
    size: Size = None,
    targets: Annotated[str, typer.Option(metavar="8.6,8.9", help="Compute capabilities")] = "8.6,8.9,12.0",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16")] = "fp16",
    attention: Attention = "softmax32",
    update_rule: Rule = "filt3r",
    weights: Weights = None,
    seeded: Seeded = False,
) -> None:
    """Export and build with TensorRT-RTX, which needs no GPU for it, and keep nothing; exit code 1 on any miss."""
    with spoken_errors():
        from recon_ros.cli.engine_commands import request
        from recon_ros.cli.engine_table import show_check, small_models

        if (model is None) != all_small:
            raise typer.BadParameter("either a model, or --all-small")
        models = small_models() if model is None else [model]
        wishes = [
            request(
                name,
                size,
                targets,
                runtime="tensorrt_rtx",
                precision=precision,
                attention=attention,
                update_rule=update_rule,
                weights=str(weights or ""),
                seeded=seeded or all_small,
            )
            for name in models
        ]
        if not show_check(wishes):
            raise typer.Exit(1)


@engine.command("list")
def list_all(cache: Cache = None) -> None:
    """The graphs and engines in the cache, and whether they fit this machine."""
    with spoken_errors():
        from recon_ros.cli.engine_table import show_list

        show_list(cache)
