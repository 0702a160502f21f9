"""`sam2-fast segment IMAGE`: masks of objects in an image, prompted by points, boxes or masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from sam2_fast.cli import options as o
from sam2_fast.cli.inputs import read_masks, read_picture
from sam2_fast.cli.prompts import Prompt, gather
from sam2_fast.cli.report import Summary, guarded
from sam2_fast.cli.results import (
    refuse_foreign,
    refuse_results,
    remove_results,
    writable_directory,
)
from sam2_fast.cli.signals import deferred_signals
from sam2_fast.cli.weights import choose_weights
from sam2_fast.io.mask_writers import FrameLabel
from sam2_fast.io.masks import JsonWriter, Mask, describe, save_davis, save_mask
from sam2_fast.io.overlay import RGB8, draw_box, draw_masks, draw_points, save_png

HINT_LOGIT = 10.0
"""A mask file is passed to the model as logits of plus or minus this value."""


@guarded
def segment(
    image: Annotated[Path, typer.Argument(help="An image file.", show_default=False)],
    point: o.Points = [],  # noqa: B006
    box: o.Boxes = [],  # noqa: B006
    mask: o.MaskFile = None,
    object_: o.Objects = [],  # noqa: B006
    prompts: o.PromptFile = None,
    weights: o.Weights = None,
    size: o.ModelSize = None,
    image_size: o.ImageSize = None,
    device: o.Device = None,
    dtype: o.NumberFormat = o.Dtype.float32,
    output: o.Output = None,
    format_: o.MaskFormat = o.Format.png,
    overwrite: o.Overwrite = False,
    overlay: o.Overlay = True,
    json: o.AsJson = False,
    max_pixels: o.PixelLimit = o.DEFAULT_PIXELS,
) -> None:
    """Segment the prompted objects in an image, with one mask per object."""
    all_prompts = gather(point, box, mask, object_, prompts)
    if any(prompt.frame for prompt in all_prompts):
        raise ValueError("frame: an image has frame 0 only; use `sam2-fast track` for videos")
    o.check_davis_ids(format_, [prompt.object_id for prompt in all_prompts])
    directory = o.output_directory(output, image)
    if overwrite:
        refuse_foreign(directory)
    else:
        refuse_results(directory)
    settings = o.model_options(device, dtype, image_size)
    pixels = read_picture(image, max_pixels)
    hints = read_masks(all_prompts, max_pixels)
    summary = Summary("segment", image)
    with writable_directory(directory):
        predictor, label = _predictor(weights, size, settings)
        predictor.set_image(pixels)
        masks: dict[int, Mask] = {}
        scores: dict[int, float] = {}
        for prompt in all_prompts:
            masks[prompt.object_id], scores[prompt.object_id] = _predict(
                predictor, prompt, hints.get(prompt)
            )
        drawn = _draw(pixels, masks, all_prompts) if overlay else None
        with deferred_signals():
            remove_results(directory)
            _save(directory, image, format_, masks, summary)
            if drawn is not None:
                save_png(directory / "overlay.png", drawn)
                summary.wrote(directory / "overlay.png")
    objects = [
        {"id": key, "score": round(scores[key], 6), **describe(masks[key], with_mask=False)}
        for key in masks
    ]
    height, width = pixels.shape[:2]
    summary.facts |= {
        "height": height,
        "width": width,
        "weights": label,
        "device": str(predictor.device),
        "dtype": dtype.value,
        "objects": objects,
    }
    lines = "".join(
        f"\n  object {entry['id']}: {entry['area']} pixels, score {entry['score']:.3f}"
        for entry in objects
    )
    summary.show(json, f"{image}: {len(masks)} objects, weights {label}{lines}")


def _predictor(
    weights: str | None, size: o.Size | None, settings: dict[str, Any]
) -> tuple[Any, str]:
    from sam2_fast import SAM2ImagePredictor, build_sam2

    chosen = choose_weights(weights, size)
    return SAM2ImagePredictor(
        build_sam2(chosen.config, chosen.path, seed=chosen.seed, **settings)
    ), chosen.label


def _predict(predictor: Any, prompt: Prompt, hint: Mask | None) -> tuple[Mask, float]:
    """The mask with the highest predicted IoU, and this IoU.

    A single click is ambiguous, so the model then predicts three masks to choose from.
    """
    multimask = len(prompt.points) == 1 and prompt.box is None
    masks, scores, _ = predictor.predict(
        point_coords=np.array(prompt.points, np.float32) if prompt.points else None,
        point_labels=np.array(prompt.labels, np.int32) if prompt.points else None,
        box=np.array(prompt.box, np.float32) if prompt.box else None,
        mask_input=_hint(hint, predictor.model.image_size // 4) if hint is not None else None,
        multimask_output=multimask,
    )
    best = int(np.argmax(scores))
    return np.asarray(masks[best] > 0, dtype=bool), float(scores[best])


def _hint(mask: Mask, side: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Mask [H, W] as low-resolution logits [1, side, side]."""
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    return (np.asarray(small, dtype=np.float32)[None] / 127.5 - 1) * np.float32(HINT_LOGIT)


def _save(
    directory: Path, source: Path, kind: o.Format, masks: dict[int, Mask], summary: Summary
) -> None:
    if kind is o.Format.png:
        for object_id, mask in masks.items():
            save_mask(directory / f"{object_id:03d}.png", mask)
            summary.wrote(directory / f"{object_id:03d}.png")
    elif kind is o.Format.davis:
        save_davis(directory / "masks.png", masks)
        summary.wrote(directory / "masks.png")
    else:
        writer = JsonWriter(directory / "masks.json", *next(iter(masks.values())).shape)
        writer.write(FrameLabel(0, source.stem), masks)
        writer.close()
        summary.wrote(directory / "masks.json")


def _draw(pixels: RGB8, masks: dict[int, Mask], prompts: list[Prompt]) -> RGB8:
    drawn = draw_masks(pixels, masks)
    for prompt in prompts:
        drawn = draw_points(drawn, prompt.points, prompt.labels)
        if prompt.box:
            drawn = draw_box(drawn, prompt.box, prompt.object_id)
    return drawn
