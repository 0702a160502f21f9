"""`sam2-fast track VIDEO`: follow objects through a video from prompts on some of its frames."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from sam2_fast.cli import options as o
from sam2_fast.cli.inputs import note_picture, read_masks
from sam2_fast.cli.plan import Plan
from sam2_fast.cli.prompts import Prompt, gather
from sam2_fast.cli.report import Summary, guarded
from sam2_fast.cli.results import refuse_foreign, refuse_results, writable_directory
from sam2_fast.cli.runs import check_settings, read_run
from sam2_fast.cli.tracking import Tracking
from sam2_fast.cli.weights import WeightsChoice, choose_weights
from sam2_fast.io.frames import FrameSource
from sam2_fast.io.video import open_video


@guarded
def track(
    video: Annotated[
        Path,
        typer.Argument(help="A video file, or a directory of numbered images.", show_default=False),
    ],
    point: o.Points = [],  # noqa: B006
    box: o.Boxes = [],  # noqa: B006
    mask: o.MaskFile = None,
    frame: Annotated[
        int,
        typer.Option(
            "--frame",
            min=0,
            help="The frame of --point, --box and --mask: its position, counted from 0, whatever "
            "the name of its file is.",
        ),
    ] = 0,
    object_: o.Objects = [],  # noqa: B006
    prompts: o.PromptFile = None,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Track towards the beginning of the video.")
    ] = False,
    both: Annotated[
        bool,
        typer.Option(
            "--both",
            help="Track to the end, then from the first prompted frame back to the beginning.",
        ),
    ] = False,
    max_frames: Annotated[
        int | None,
        typer.Option(
            "--max-frames", min=1, help="Track at most this many frames in each direction."
        ),
    ] = None,
    weights: o.Weights = None,
    size: o.ModelSize = None,
    image_size: o.ImageSize = None,
    device: o.Device = None,
    dtype: o.NumberFormat = o.Dtype.float32,
    output: o.Output = None,
    format_: o.MaskFormat = o.Format.png,
    overwrite: o.Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue an unfinished run with the same options. A complete run is not changed; "
            "without an earlier run, a new one starts.",
        ),
    ] = False,
    overlay: o.Overlay = True,
    overlay_format: o.OverlayFormat = o.VideoFormat.mp4,
    json: o.AsJson = False,
    progress: o.Progress = None,
    max_pixels: o.PixelLimit = o.DEFAULT_PIXELS,
) -> None:
    """Follow objects through a video."""
    for first, second in ((reverse, both), (overwrite, resume)):
        if first and second:
            names = "--reverse and --both" if reverse and both else "--overwrite and --resume"
            raise ValueError(f"{names}: use only one of them")
    all_prompts = gather(point, box, mask, object_, prompts, frame)
    o.check_davis_ids(format_, [prompt.object_id for prompt in all_prompts])
    if reverse and all_prompts[0].frame == 0:
        raise ValueError(
            "--reverse: nothing lies before frame 0, which is prompted; use --frame N, or --both"
        )
    directory = o.output_directory(output, video)
    model_options = o.model_options(device, dtype, image_size)
    masks = read_masks(all_prompts, max_pixels)
    summary = Summary("track", video)
    with ExitStack() as stack:
        frames = stack.enter_context(open_video(video, max_pixels=max_pixels, upright=True))
        _check_frames(all_prompts, frames)
        note_picture(video, max_pixels)
        plan = Plan(
            directory=directory,
            video=video,
            prompts=all_prompts,
            num_frames=len(frames),
            reverse=reverse,
            both=both,
            max_frames=max_frames,
            format=format_,
            overlay=overlay_format if overlay else None,
        )
        frames.check_sizes(range(min(plan.order), max(plan.order) + 1))
        earlier = read_run(directory) if resume else None
        if overwrite:
            refuse_foreign(directory)
        elif earlier is None:
            ways = "--resume to continue an unfinished run, --overwrite to replace it"
            refuse_results(directory, ways)
        stack.enter_context(writable_directory(directory))
        chosen = choose_weights(weights, size)
        settings = plan.settings(chosen, model_options, masks)
        if earlier is not None and earlier["complete"]:
            check_settings(directory, settings)
            _show(summary, json, directory, earlier)
            return
        predictor = _predictor(chosen, model_options)
        tracking = Tracking(plan, predictor, frames, settings, masks, earlier is not None)
        shown = sys.stderr.isatty() if progress is None else progress
        run = tracking.run(chosen.label, dtype.value, shown)
    _show(summary, json, directory, run)


def _show(summary: Summary, json: bool, directory: Path, run: dict[str, Any]) -> None:
    """Report a complete run by the content of its `run.json`."""
    for name in run["files"]:
        summary.wrote(directory / name)
    frames = run["frames"]
    keys = ("height", "width", "fps", "weights", "device", "dtype", "objects", "complete")
    summary.facts |= {key: run[key] for key in keys} | {"frames": len(frames), "tracked": frames}
    count = len(run["objects"])
    headline = f"{len(frames)} frames, {count} objects, weights {run['weights']}"
    summary.show(json, f"{run['input']}: {headline}")


def _predictor(chosen: WeightsChoice, options: dict[str, Any]) -> Any:
    from sam2_fast import build_sam2_video_predictor

    return build_sam2_video_predictor(chosen.config, chosen.path, seed=chosen.seed, **options)


def _check_frames(prompts: list[Prompt], frames: FrameSource) -> None:
    for prompt in prompts:
        if frames.num_frames is not None and prompt.frame >= frames.num_frames:
            raise ValueError(
                f"object {prompt.object_id}: frame {prompt.frame} is out of range, the video has "
                f"frames 0 to {frames.num_frames - 1}"
            )
