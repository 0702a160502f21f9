"""Draw masks and prompts over pictures, and write the result as PNG or as a video."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sam2_fast.files.atomic import whole_file
from sam2_fast.io.mask_png import png_info
from sam2_fast.io.video_writer import VideoWriter

__all__ = [
    "RGB8",
    "VideoWriter",
    "draw_box",
    "draw_masks",
    "draw_points",
    "object_color",
    "save_png",
    "tint",
]

RGB8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def object_color(object_id: int) -> tuple[int, int, int]:
    """A bright colour (R, G, B, each 0 to 255) that depends on the object id only.

    Neighbouring ids are far apart in hue.
    """
    red, green, blue = colorsys.hsv_to_rgb((0.58 + object_id * 0.6180339887498949) % 1.0, 0.8, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_masks(
    image: RGB8, masks: Mapping[int, Mask], *, alpha: float = 0.45, contour: int = 2
) -> RGB8:
    """A copy of `image` with tinted and outlined masks.

    image: [H, W, 3]. masks: {id: mask [H, W]}; lower ids are drawn last, on top.
    alpha: weight of the object's colour, 0 to 1.
    contour: width of the outline in pixels.
    Raises ValueError if a mask has another size than the image.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0 to 1, got {alpha}")
    drawn = np.array(image)
    for object_id in sorted(masks, reverse=True):
        tint(drawn, masks[object_id], object_id, alpha=alpha, contour=contour)
    return drawn


def tint(image: RGB8, mask: Mask, object_id: int, *, alpha: float = 0.45, contour: int = 2) -> None:
    """Tint and outline one mask [H, W] on `image` [H, W, 3], in it; arguments of `draw_masks`."""
    if mask.shape != image.shape[:2]:
        raise ValueError(
            f"masks: object {object_id} is {[*mask.shape]}, the image is {[*image.shape[:2]]}"
        )
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return
    # One pixel more on each side: the picture's border is not an edge, that of the box may be.
    box = (
        slice(max(0, rows[0] - 1), rows[-1] + 2),
        slice(max(0, columns[0] - 1), columns[-1] + 2),
    )
    part, drawn = mask[box], image[box]
    color = np.array(object_color(object_id), dtype=np.float32)
    drawn[part] = (drawn[part] * (1 - alpha) + color * alpha + 0.5).astype(np.uint8)
    if contour > 0:
        drawn[_outline(part, contour)] = color.astype(np.uint8)


def draw_points(image: RGB8, points: Sequence[Sequence[float]], labels: Sequence[int]) -> RGB8:
    """A copy with a dot at each (x, y) in pixels: green for label 1, red for label 0."""
    canvas = Image.fromarray(np.ascontiguousarray(image))
    pen = ImageDraw.Draw(canvas)
    radius = max(3, round(max(image.shape[:2]) / 160))
    for (x, y), label in zip(points, labels, strict=True):
        fill = (40, 200, 60) if label == 1 else (230, 40, 40)
        pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius),
            fill=fill,
            outline=(255, 255, 255),
            width=max(1, radius // 3),
        )
    return np.array(canvas)


def draw_box(image: RGB8, box: Sequence[float], object_id: int = 1) -> RGB8:
    """A copy with the box (x0, y0, x1, y1 in pixels) in the object's colour."""
    canvas = Image.fromarray(np.ascontiguousarray(image))
    x0, y0, x1, y1 = box
    ImageDraw.Draw(canvas).rectangle((x0, y0, x1, y1), outline=object_color(object_id), width=2)
    return np.array(canvas)


def save_png(path: str | os.PathLike[str], image: RGB8) -> None:
    """Write image [H, W, 3] uint8 as PNG; the file is complete or absent."""
    with whole_file(path) as beside:
        picture = Image.fromarray(np.ascontiguousarray(image))
        picture.save(beside, format="PNG", pnginfo=png_info())


def _outline(mask: Mask, width: int) -> Mask:
    """Pixels of the mask within `width` of its edge; the picture's border is not an edge."""
    inner = np.array(mask)
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner, dtype=bool)
