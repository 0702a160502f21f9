"""`sam2-fast everything IMAGE`: masks of everything that a grid of clicks detects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sam2_fast.cli import options as o
from sam2_fast.cli.inputs import read_picture
from sam2_fast.cli.report import Summary, guarded
from sam2_fast.cli.results import (
    refuse_foreign,
    refuse_results,
    remove_results,
    writable_directory,
)
from sam2_fast.cli.signals import deferred_signals
from sam2_fast.cli.weights import choose_weights
from sam2_fast.files.atomic import whole_file
from sam2_fast.io.json_files import to_json
from sam2_fast.io.mask_png import MAX_IDS
from sam2_fast.io.masks import Mask, save_davis, save_mask
from sam2_fast.io.overlay import draw_masks, save_png
from sam2_fast.io.rle import encode_rle


@guarded
def everything(
    image: Annotated[Path, typer.Argument(help="An image file.", show_default=False)],
    points_per_side: Annotated[
        int, typer.Option(min=1, help="Clicks along each side of the grid.")
    ] = 32,
    points_per_batch: Annotated[
        int, typer.Option(min=1, help="Clicks that are processed at once; fewer need less memory.")
    ] = 64,
    pred_iou_thresh: Annotated[
        float, typer.Option(min=0, max=1, help="Drop masks with a lower predicted IoU.")
    ] = 0.8,
    stability_score_thresh: Annotated[
        float, typer.Option(min=0, max=1, help="Drop masks with a lower stability score.")
    ] = 0.95,
    crop_n_layers: Annotated[
        int,
        typer.Option(
            min=0, max=4, help="Also segment this many layers of crops; layer n has 4^n crops."
        ),
    ] = 0,
    min_mask_region_area: Annotated[
        int,
        typer.Option(min=0, help="Remove isolated specks and holes of fewer pixels than this."),
    ] = 0,
    weights: o.Weights = None,
    size: o.ModelSize = None,
    image_size: o.ImageSize = None,
    device: o.Device = None,
    dtype: o.NumberFormat = o.Dtype.float32,
    output: o.Output = None,
    format_: o.MaskFormat = o.Format.coco_rle,
    overwrite: o.Overwrite = False,
    overlay: o.Overlay = True,
    json: o.AsJson = False,
    max_pixels: o.PixelLimit = o.DEFAULT_PIXELS,
) -> None:
    """Segment everything in an image. Masks are numbered from 1, the smallest first."""
    directory = o.output_directory(output, image)
    if overwrite:
        refuse_foreign(directory)
    else:
        refuse_results(directory)
    settings = o.model_options(device, dtype, image_size)
    pixels = read_picture(image, max_pixels)
    from sam2_fast import SAM2AutomaticMaskGenerator, build_sam2

    summary = Summary("everything", image)
    with writable_directory(directory):
        chosen = choose_weights(weights, size)
        model = build_sam2(chosen.config, chosen.path, seed=chosen.seed, **settings)
        generator = SAM2AutomaticMaskGenerator(
            model,
            points_per_side=points_per_side,
            points_per_batch=points_per_batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            crop_n_layers=crop_n_layers,
            min_mask_region_area=min_mask_region_area,
        )
        records = sorted(generator.generate(pixels), key=lambda record: int(record["area"]))
        height, width = pixels.shape[:2]
        masks = {number: record["segmentation"] for number, record in enumerate(records, start=1)}
        drawn = draw_masks(pixels, masks, contour=1) if overlay else None
        with deferred_signals():
            remove_results(directory)
            _save(directory, format_, records, masks, (height, width), summary)
            if drawn is not None:
                save_png(directory / "overlay.png", drawn)
                summary.wrote(directory / "overlay.png")
    _check_davis(format_, len(masks), directory)
    summary.facts |= {
        "height": height,
        "width": width,
        "weights": chosen.label,
        "device": str(model.device),
        "dtype": dtype.value,
    }
    summary.facts["masks"] = len(records)
    summary.show(json, f"{image}: {len(records)} masks, weights {chosen.label}")


def _save(
    directory: Path,
    kind: o.Format,
    records: list[dict[str, Any]],
    masks: dict[int, Mask],
    size: tuple[int, int],
    summary: Summary,
) -> None:
    too_many = kind is o.Format.davis and len(masks) > MAX_IDS
    if kind is o.Format.png:
        for number, mask in masks.items():
            save_mask(directory / f"{number:03d}.png", mask)
        summary.wrote(directory)
    elif kind is o.Format.davis and masks and not too_many:
        save_davis(directory / "masks.png", masks)
        summary.wrote(directory / "masks.png")
    with whole_file(directory / "masks.json") as beside:
        entries = [
            _entry(number, record, too_many or kind is o.Format.coco_rle)
            for number, record in enumerate(records, start=1)
        ]
        document = {
            "format": "sam2_fast.everything",
            "version": 1,
            "height": size[0],
            "width": size[1],
            "masks": entries,
        }
        beside.write_text(to_json(document) + "\n", encoding="ascii")
    summary.wrote(directory / "masks.json")


def _check_davis(kind: o.Format, count: int, directory: Path) -> None:
    if kind is o.Format.davis and count > MAX_IDS:
        raise ValueError(
            f"--format davis: expected at most {MAX_IDS} masks, got {count}; they are in "
            f"{directory / 'masks.json'} as run lengths; use --format png or coco-rle, or stricter "
            "thresholds"
        )


def _entry(number: int, record: dict[str, Any], with_mask: bool) -> dict[str, Any]:
    """One record of the generator, ready for JSON.

    with_mask: add the run lengths, if no other file has the mask.
    """
    entry: dict[str, Any] = {"id": number, "area": int(record["area"])}
    entry |= {key: [float(x) for x in record[key]] for key in ("bbox", "crop_box")}
    entry["point_coords"] = [[float(x) for x in point] for point in record["point_coords"]]
    entry |= {key: float(record[key]) for key in ("predicted_iou", "stability_score")}
    if with_mask:
        entry["segmentation"] = encode_rle(record["segmentation"], text=True)
    return entry
