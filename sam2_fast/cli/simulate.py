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
from sam2_fast.cli.report import BAD_INPUT, Summary, fail, guarded
from sam2_fast.cli.results import Unfinished, refuse_file
from sam2_fast.cli.weights import choose_weights
from sam2_fast.evaluation import Unjudged, User, save_curves, simulate_images, simulate_users


class Protocol(str, Enum):
    """Protocols that decide which frames a simulated user prompts."""

    offline = "offline"
    online = "online"
    semi_supervised = "semi-supervised"
    images = "images"


class Prompt(str, Enum):
    """The first prompt of an object."""

    mask = "mask"
    box = "box"
    click = "click"
    clicks_3 = "3 clicks"
    clicks_5 = "5 clicks"


@guarded
def simulate(
    images: Annotated[
        Path,
        typer.Argument(
            help="Folder of videos: a folder of frames or <video>.mp4 for each. With --protocol "
            "images: a folder of images.",
            show_default=False,
        ),
    ],
    annotations: Annotated[
        Path,
        typer.Argument(
            help="Folder of true masks, one folder per video. With --protocol images: one .png or "
            ".json file per image.",
            show_default=False,
        ),
    ],
    protocol: Annotated[
        Protocol,
        typer.Option("--protocol", help="When the simulated user prompts; see docs/evaluation.md."),
    ] = Protocol.offline,
    prompt: Annotated[
        Prompt,
        typer.Option("--prompt", help="With --protocol semi-supervised: the prompt of an object."),
    ] = Prompt.mask,
    frames: Annotated[
        int, typer.Option("--frames", min=1, help="Prompt at most this many frames per object.")
    ] = 8,
    clicks: Annotated[
        int, typer.Option("--clicks", min=1, help="At most this many clicks per prompted frame.")
    ] = 3,
    weights: o.Weights = None,
    size: o.ModelSize = None,
    image_size: o.ImageSize = None,
    device: o.Device = None,
    dtype: o.NumberFormat = o.Dtype.float32,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write one row per object and round to this .csv or .json file.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Plot J&F over the number of prompted frames to this .svg, .png or .pdf file.",
        ),
    ] = None,
    overwrite: o.Overwrite = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if a video, image or object is not judged.")
    ] = False,
    processes: o.Processes = 1,
    progress: o.Progress = None,
    json: o.AsJson = False,
) -> None:
    """Score the masks that simulated users obtain on a benchmark.

    The protocol decides when an object of a video is prompted: offline, online, or once
    (semi-supervised). With --protocol images, objects in images are clicked.
    """
    for name, path, kinds in (
        ("--output", output, (".csv", ".json")),
        ("--plot", plot, (".svg", ".png", ".pdf")),
    ):
        if path is not None and path.suffix.lower() not in kinds:
            raise ValueError(f"{name} {path}: expected a file ending in {', '.join(kinds)}")
        refuse_file(path, name, overwrite)
    shown = sys.stderr.isatty() if progress is None else progress
    summary = Summary("simulate", images)
    chosen = choose_weights(weights, size)
    settings = o.model_options(device, dtype, image_size)
    arguments = (chosen.config, chosen.path)
    if protocol is Protocol.images:
        if output is not None or plot is not None:
            raise ValueError(
                "--output, --plot: not supported with --protocol images; use --json to get the "
                "means"
            )
        scores = simulate_images(
            lambda: SAM2ImagePredictor(build_sam2(*arguments, seed=chosen.seed, **settings)),
            images,
            annotations,
            strict=strict,
            progress=shown,
        )
        counts = list(scores[0].iou) if scores else []
        means = {
            count: 100 * sum(row.iou[count] for row in scores) / len(scores) for count in counts
        }
        summary.facts |= {
            "weights": chosen.label,
            "protocol": "images",
            "objects": len(scores),
            "iou_by_clicks": means,
            "unjudged": [str(item) for item in scores.unjudged],
        }
        by_clicks = "  ".join(f"{count}: {mean:.1f}" for count, mean in means.items())
        summary.show(
            json,
            f"IoU by number of clicks: {by_clicks}  ({len(scores)} objects; weights "
            f"{chosen.label}){_not_judged(scores.unjudged)}",
        )
        if not scores:
            fail(f"no object was judged in {annotations}", BAD_INPUT)
        return
    build = partial(build_sam2_video_predictor, *arguments, seed=chosen.seed, **settings)
    user = User(protocol.value, prompt.value, frames, clicks)
    unfinished = Unfinished(output)
    with unfinished.saved_on_error():
        rounds = simulate_users(
            build,
            images,
            annotations,
            user,
            processes=processes,
            strict=strict,
            progress=shown,
            finished=unfinished.keep,
        )
    curve = rounds.curve()
    summary.facts |= {
        "weights": chosen.label,
        "protocol": protocol.value,
        "mean_j_and_f": 100 * rounds.mean(),
        "unjudged": [str(item) for item in rounds.unjudged],
    }
    summary.facts |= {"curve": {count: 100 * value for count, value in curve.items()}}
    if output is not None:
        rounds.save(output)
        summary.wrote(output)
    if plot is not None:
        save_curves({protocol.value: curve}, plot)
        summary.wrote(plot)
    points = "  ".join(f"{count}: {100 * value:.1f}" for count, value in curve.items())
    summary.show(
        json,
        f"J&F {100 * rounds.mean():.1f}  (by number of prompted frames: {points}; weights "
        f"{chosen.label}){_not_judged(rounds.unjudged)}",
    )
    if not rounds.rounds:
        fail(f"no object was judged in {annotations}", BAD_INPUT)


def _not_judged(unjudged: list[Unjudged]) -> str:
    return "".join(f"\n  not judged: {item}" for item in unjudged)
