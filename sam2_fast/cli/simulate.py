"""`sam2-fast simulate IMAGES ANNOTATIONS`: simulated users on benchmark folders."""

from __future__ import annotations

import sys
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sam2_fast import SAM2ImagePredictor, build_sam2, build_sam2_video_predictor
from sam2_fast.cli import options as o
from sam2_fast.cli.report import Summary, guarded
from sam2_fast.cli.weights import choose_weights
from sam2_fast.evaluation import User, save_curves, simulate_images, simulate_users


class Protocol(str, Enum):
    """Who prompts when."""

    offline = "offline"
    online = "online"
    semi_supervised = "semi-supervised"
    images = "images"


class Prompt(str, Enum):
    """What an object is prompted with."""

    mask = "mask"
    box = "box"
    click = "click"
    clicks_3 = "3 clicks"
    clicks_5 = "5 clicks"


@guarded
def simulate(
    images: Annotated[
        Path, typer.Argument(help="Frames: a folder a video, or <video>.mp4.", show_default=False)
    ],
    annotations: Annotated[
        Path, typer.Argument(help="True masks: a folder a video.", show_default=False)
    ],
    protocol: Annotated[
        Protocol, typer.Option("--protocol", help="Who prompts when; see docs/evaluation.md.")
    ] = Protocol.offline,
    prompt: Annotated[
        Prompt,
        typer.Option(
            "--prompt", help="Of semi-supervised tracking: what each object is shown with."
        ),
    ] = Prompt.mask,
    frames: Annotated[
        int, typer.Option("--frames", min=1, help="Frames that are prompted, at most.")
    ] = 8,
    clicks: Annotated[
        int, typer.Option("--clicks", min=1, help="Clicks on each of them, at most.")
    ] = 3,
    weights: o.Weights = None,
    size: o.ModelSize = None,
    image_size: o.ImageSize = None,
    device: o.Device = None,
    dtype: o.NumberFormat = o.Dtype.float32,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A .csv or .json file with all rounds."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="J&F over prompted frames, as .svg, .png or .pdf."
        ),
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Videos at a time.")] = 1,
    progress: o.Progress = None,
    json: o.AsJson = False,
) -> None:
    """Let simulated users prompt every object of every video (offline, online, once) or image, and
    judge the masks.
    """
    for name, path, kinds in (
        ("--output", output, (".csv", ".json")),
        ("--plot", plot, (".svg", ".png", ".pdf")),
    ):
        if path is not None and path.suffix.lower() not in kinds:
            raise ValueError(f"{name} {path}: expected a file ending in {', '.join(kinds)}")
    shown = sys.stderr.isatty() if progress is None else progress
    summary = Summary("simulate", images)
    chosen = choose_weights(weights, size)
    settings = o.model_options(device, dtype, image_size)
    arguments = (chosen.config, chosen.path)
    if protocol is Protocol.images:
        if output is not None or plot is not None:
            raise ValueError("--output, --plot: not with --protocol images; --json has the means")
        scores = simulate_images(
            lambda: SAM2ImagePredictor(build_sam2(*arguments, seed=chosen.seed, **settings)),
            images,
            annotations,
            progress=shown,
        )
        means = (
            {
                count: 100 * sum(row.iou[count] for row in scores) / len(scores)
                for count in scores[0].iou
            }
            if scores
            else {}
        )
        summary.facts |= {
            "weights": chosen.label,
            "protocol": "images",
            "objects": len(scores),
            "iou_by_clicks": means,
        }
        words = "  ".join(f"{count}: {mean:.1f}" for count, mean in means.items())
        summary.show(
            json, f"IoU by clicks {words}  ({len(scores)} objects; weights {chosen.label})"
        )
        return
    build = partial(build_sam2_video_predictor, *arguments, seed=chosen.seed, **settings)
    user = User(protocol.value, prompt.value, frames, clicks)
    found = simulate_users(build, images, annotations, user, processes=processes, progress=shown)
    curve = found.curve()
    summary.facts |= {
        "weights": chosen.label,
        "protocol": protocol.value,
        "mean_j_and_f": 100 * found.mean(),
    }
    summary.facts |= {"curve": {count: 100 * value for count, value in curve.items()}}
    if output is not None:
        found.save(output)
        summary.wrote(output)
    if plot is not None:
        save_curves({protocol.value: curve}, plot)
        summary.wrote(plot)
    points = "  ".join(f"{count}: {100 * value:.1f}" for count, value in curve.items())
    summary.show(
        json,
        f"J&F {100 * found.mean():.1f}  (by prompted frames: {points}; weights {chosen.label})",
    )
