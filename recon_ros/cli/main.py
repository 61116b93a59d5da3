# SPDX-License-Identifier: Apache-2.0
"""`recon`: the command line. Commands load what they need when they run, so that --help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recon_ros.cli.engine import engine
from recon_ros.cli.maps import maps
from recon_ros.cli.models import models
from recon_ros.cli.spoken import spoken_errors
from recon_ros.cli.train import train

app = typer.Typer(
    name="recon",
    help="Live metric 3D maps from camera streams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models, name="models")
app.add_typer(engine, name="engine")
app.add_typer(maps, name="map")
app.add_typer(train, name="train")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of options", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one option, e.g. memory.max_keyframes=100; repeatable"),
]
ImageTopic = Annotated[str | None, typer.Option(help="Image topic; found by type when not given", show_default=False)]
InfoTopic = Annotated[str | None, typer.Option("--camera-info-topic", help="Its CameraInfo topic", show_default=False)]
DepthTopic = Annotated[str | None, typer.Option(help="Depth topic, registered to the image", show_default=False)]
MaskTopic = Annotated[
    str | None,
    typer.Option(help="Masks of what to leave out (not 0); sets input.mask", show_default=False),
]
TruthTopic = Annotated[str | None, typer.Option("--ground-truth-topic", help="True camera poses", show_default=False)]


@app.callback()
def _root() -> None:
    """Live metric 3D maps from camera streams."""


@app.command()
def run(
    recording: Annotated[Path, typer.Argument(metavar="BAG_OR_DATASET", help="rosbag2 folder, .mcap, .db3 or .bag")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made when missing")],
    source: Annotated[str | None, typer.Option(help="Where pointmaps come from", show_default="depth")] = None,
    map_folder: Annotated[
        Path | None, typer.Option("--map", help="Saved map to go on with, in its frame", show_default=False)
    ] = None,
    save_map: Annotated[
        Path | None, typer.Option("--save-map", help="Folder to save the map to", show_default=False)
    ] = None,
    no_loops: Annotated[bool, typer.Option("--no-loops", help="Close no loops")] = False,
    mesh: Annotated[bool, typer.Option("--mesh", help="Also write mesh.ply, the surface of the map")] = False,
    save_depth: Annotated[bool, typer.Option("--save-depth", help="Also write depth/<stamp_ns>.npy")] = False,
    evaluate_map: Annotated[
        bool, typer.Option(help="Compare the map with the truth where the recording has one")
    ] = True,
    config: ConfigFile = None,
    settings: Settings = None,
    image_topic: ImageTopic = None,
    camera_info_topic: InfoTopic = None,
    depth_topic: DepthTopic = None,
    mask_topic: MaskTopic = None,
    ground_truth_topic: TruthTopic = None,
) -> None:
    """Reconstruct a recording offline: every frame, in order, the same result each time."""
    with spoken_errors():
        from recon_ros.cli.run import Offline, resolve
        from recon_ros.datasets.topics import Topics

        topics = Topics(
            image=image_topic,
            camera_info=camera_info_topic,
            depth=depth_topic,
            ground_truth=ground_truth_topic,
            mask=mask_topic,
        )
        chosen = [*(settings or []), *(["loops.enabled=false"] if no_loops else [])]
        chosen += [] if map_folder is None else [f"map.load={map_folder}"]
        chosen += [] if mask_topic is None else ["input.mask=true"]
        chosen_config = resolve(config, chosen, source)
        Offline(recording, out, chosen_config, topics, save_depth, evaluate_map, save_map, mesh).run()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; made when missing")] = Path("out/demo"),
    bag: Annotated[
        Path | None,
        typer.Option(help="Recording to play; a synthetic warehouse when not given", show_default=False),
    ] = None,
    depth: Annotated[
        bool, typer.Option("--depth", help="Use the recording's depth; else a network sees the colour image only")
    ] = False,
    rate: Annotated[float, typer.Option(min=0.01, max=100, help="Speed of playing")] = 1.0,
    config: ConfigFile = None,
    settings: Settings = None,
    image_topic: ImageTopic = None,
    camera_info_topic: InfoTopic = None,
    depth_topic: DepthTopic = None,
    mask_topic: MaskTopic = None,
    ground_truth_topic: TruthTopic = None,
) -> None:
    """Run the live node over DDS on a recording, and show what it published."""
    with spoken_errors():
        from recon_ros.cli.demo import Demo
        from recon_ros.cli.run import resolve
        from recon_ros.datasets.topics import Topics

        topics = Topics(
            image=image_topic,
            camera_info=camera_info_topic,
            depth=depth_topic,
            ground_truth=ground_truth_topic,
            mask=mask_topic,
        )
        chosen = [*(settings or []), *([] if mask_topic is None else ["input.mask=true"])]
        if depth or config is None:  # a file may name a source, and a setting wins over all
            chosen = [f"source={'depth' if depth else 'auto'}", *chosen]
        Demo(out, bag, resolve(config, chosen, None), topics, rate).run()


def main() -> None:
    """Entry point of the `recon` script."""
    app()


if __name__ == "__main__":
    main()
