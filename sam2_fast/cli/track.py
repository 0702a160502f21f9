"""`sam2-fast track VIDEO`: follow objects through a video from prompts on some of its frames."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm import tqdm

from sam2_fast.cli import options as o
from sam2_fast.cli.prompts import Prompt, gather
from sam2_fast.cli.report import Summary, guarded
from sam2_fast.cli.weights import choose_weights
from sam2_fast.io.frames import FrameSource
from sam2_fast.io.masks import DavisWriter, JsonWriter, Mask, MaskWriter, PngWriter, load_mask
from sam2_fast.io.overlay import RGB8, VideoWriter, draw_box, draw_masks, draw_points
from sam2_fast.io.rle import Rle, decode_rle, encode_rle
from sam2_fast.io.video import open_video

Result = tuple[int, dict[int, Mask]]


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
        typer.Option("--frame", min=0, help="The frame of --point, --box and --mask."),
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
    overlay: o.Overlay = True,
    overlay_format: o.OverlayFormat = o.VideoFormat.mp4,
    json: o.AsJson = False,
    progress: o.Progress = None,
    max_pixels: o.PixelLimit = o.DEFAULT_PIXELS,
) -> None:
    """Follow objects through a video."""
    if reverse and both:
        raise ValueError("--reverse and --both: use only one of them")
    all_prompts = gather(point, box, mask, object_, prompts, frame)
    if format_ is o.Format.davis and any(
        not 1 <= prompt.object_id <= 255 for prompt in all_prompts
    ):
        raise ValueError(
            "--format davis: object ids must be 1 to 255; use --format png or coco-rle"
        )
    directory = o.output_directory(output, video)
    settings = o.model_options(device, dtype, image_size)
    mask_prompts = {prompt: load_mask(prompt.mask) for prompt in all_prompts if prompt.mask}
    summary = Summary("track", video)
    with open_video(video, max_pixels=max_pixels) as frames:
        _check_frames(all_prompts, frames)
        predictor, label = _predictor(weights, size, settings)
        state = predictor.init_state(frames, keep="all" if reverse or both else "reachable")
        for prompt in all_prompts:
            _add_prompt(predictor, state, prompt, mask_prompts.get(prompt))
        limit = None if max_frames is None else max_frames - 1
        results = _results(predictor, state, all_prompts[0].frame, limit, reverse, both)
        tracked = tqdm(
            results,
            desc="tracking",
            unit="frame",
            file=sys.stderr,
            disable=not _shows_progress(progress),
        )
        overlay_path = directory / f"overlay.{overlay_format.value}" if overlay else None
        writer = _ResultWriter(
            directory, format_, frames, all_prompts, overlay_path, reverse or both, summary
        )
        areas = writer.run(tracked)
        facts = {
            "height": frames.height,
            "width": frames.width,
            "fps": frames.fps,
            "frames": len(areas),
            "weights": label,
        }
        summary.facts |= facts | {
            "device": str(predictor.device),
            "dtype": dtype.value,
            "objects": _objects(areas),
        }
    summary.show(
        json,
        f"{video}: {len(areas)} frames, {len(summary.facts['objects'])} objects, weights {label}",
    )


def _predictor(
    weights: str | None, size: o.Size | None, settings: dict[str, Any]
) -> tuple[Any, str]:
    from sam2_fast import build_sam2_video_predictor

    chosen = choose_weights(weights, size)
    return build_sam2_video_predictor(
        chosen.config, chosen.path, seed=chosen.seed, **settings
    ), chosen.label


def _shows_progress(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def _check_frames(prompts: list[Prompt], frames: FrameSource) -> None:
    for prompt in prompts:
        if frames.num_frames is not None and prompt.frame >= frames.num_frames:
            raise ValueError(
                f"object {prompt.object_id}: frame {prompt.frame} is out of range, the video has "
                f"frames 0 to {frames.num_frames - 1}"
            )


def _add_prompt(predictor: Any, state: Any, prompt: Prompt, mask: Mask | None) -> None:
    if mask is not None:
        predictor.add_new_mask(state, prompt.frame, prompt.object_id, mask)
        return
    predictor.add_new_points_or_box(
        inference_state=state,
        frame_idx=prompt.frame,
        obj_id=prompt.object_id,
        points=np.array(prompt.points, np.float32) if prompt.points else None,
        labels=np.array(prompt.labels, np.int32) if prompt.points else None,
        box=np.array(prompt.box, np.float32) if prompt.box else None,
    )


def _results(
    predictor: Any, state: Any, start: int, limit: int | None, reverse: bool, both: bool
) -> Iterator[Result]:
    """Yield (frame, {object id: mask [H, W]}) in order of tracking.

    With `both`, the start frame is yielded once.
    """
    for backwards in (False, True) if both else (reverse,):
        for frame, object_ids, logits in predictor.propagate_in_video(
            state, start, limit, backwards
        ):
            if not (both and backwards and frame == start):
                binary = (logits[:, 0] > 0).cpu().numpy()
                yield frame, dict(zip(object_ids, binary, strict=True))


def _objects(areas: dict[int, dict[int, int]]) -> list[dict[str, int]]:
    ids = sorted({object_id for frame in areas.values() for object_id in frame})
    return [
        {"id": key, "frames_present": sum(frame.get(key, 0) > 0 for frame in areas.values())}
        for key in ids
    ]


class _ResultWriter:
    """Writes results as they arrive.

    A video file can only be written forwards, so after a backward pass the overlay is drawn at the
    end.
    """

    def __init__(
        self,
        directory: Path,
        kind: o.Format,
        frames: FrameSource,
        prompts: list[Prompt],
        overlay: Path | None,
        at_end: bool,
        summary: Summary,
    ) -> None:
        masks = directory / ("masks.json" if kind is o.Format.coco_rle else "masks")
        self._frames = frames
        self._prompts = prompts
        self._video = (
            VideoWriter(overlay, frames.height, frames.width, frames.fps or 24.0)
            if overlay is not None
            else None
        )
        self._encoded: dict[int, dict[int, Rle]] | None = (
            {} if overlay is not None and at_end else None
        )
        self._masks: MaskWriter = (
            JsonWriter(masks, frames.height, frames.width)
            if kind is o.Format.coco_rle
            else _png_writer(kind, masks)
        )
        summary.wrote(masks)
        if overlay is not None:
            summary.wrote(overlay)

    def run(self, results: Iterator[Result] | Any) -> dict[int, dict[int, int]]:
        """Write all results; returns {frame: {object id: area in pixels}}.

        After an error no incomplete file is left.
        """
        areas: dict[int, dict[int, int]] = {}
        finished = False
        try:
            for frame, masks in results:
                self._masks.write(frame, masks)
                areas[frame] = {object_id: int(mask.sum()) for object_id, mask in masks.items()}
                self._overlay(frame, masks)
            for frame in sorted(self._encoded or {}):
                encoded = (self._encoded or {})[frame]
                self._draw(frame, {i: decode_rle(rle) for i, rle in encoded.items()})
            finished = True
        finally:
            for writer in (self._masks, self._video):
                if writer is None:
                    continue
                if finished:
                    writer.close()
                else:
                    writer.abort()
        return areas

    def _overlay(self, frame: int, masks: dict[int, Mask]) -> None:
        if self._encoded is not None:
            self._encoded[frame] = {
                object_id: encode_rle(mask) for object_id, mask in masks.items()
            }
        elif self._video is not None:
            self._draw(frame, masks)

    def _draw(self, frame: int, masks: dict[int, Mask]) -> None:
        drawn: RGB8 = draw_masks(self._frames[frame], masks)
        for prompt in self._prompts:
            if prompt.frame == frame:
                drawn = draw_points(drawn, prompt.points, prompt.labels)
                drawn = draw_box(drawn, prompt.box, prompt.object_id) if prompt.box else drawn
        if self._video is not None:
            self._video.write(drawn)


def _png_writer(kind: o.Format, directory: Path) -> PngWriter:
    return DavisWriter(directory) if kind is o.Format.davis else PngWriter(directory)
