"""What a mask file means: one decision for prompts, hints, annotations, evaluation and training.

| Pillow mode | read as |
|---|---|
| 1 | 0 background, 1 object |
| L | grey levels: ids, 0/255, or a soft mask; see `mask_levels.of_grey` |
| I;16, I;16B, I;16L, I;16N, I | like L with a full scale of 65535; ids may exceed 255 |
| F | whole numbers like L; otherwise soft, from 0 to 1 or to 255; NaN is refused |
| P | indices are ids if the colours are those of DAVIS, or if index 0 is black; else colours |
| RGB, RGBX, CMYK, YCbCr, HSV | colours: black is background; greys like L |
| LAB | its lightness, like L |
| LA, La, PA, RGBA, RGBa, transparency | without alpha, if it is opaque; else see `_with_alpha` |

JPEG, lossy WebP and TIFF with JPEG compression have no exact levels: a mask of black and white is
cut at half of full scale, anything else is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sam2_fast.io.images import open_image
from sam2_fast.io.limits import MAX_PIXELS
from sam2_fast.io.mask_levels import (
    Kind,
    Labels,
    Levels,
    alpha_mask,
    has_one_hue,
    levels_in,
    of_colours,
    of_floats,
    of_grey,
)
from sam2_fast.io.palette import DAVIS_PALETTE

Mask = npt.NDArray[np.bool_]
Channel = npt.NDArray[Any]

OPAQUE = 250
"""Alpha from this level on is opaque."""


@dataclass(frozen=True)
class MaskFile:
    """The content of a mask file.

    kind: "ids": `labels` are the stored whole numbers. "full": 0, and 255 or 65535 on the object.
        "one" (a single colour, or alpha), "soft" (levels cut at half) and "colours" (several
        colours): 0, and 1 on the object.
    labels: [H, W] int32. depth: the full scale of the file, 255 or 65535.
    """

    path: Path
    kind: Kind
    labels: Labels
    depth: int = 255

    @property
    def mask(self) -> Mask:
        """Pixels [H, W] of any object."""
        return self.labels != 0

    @property
    def area(self) -> int:
        """Number of pixels of any object."""
        return int(np.count_nonzero(self.labels))

    def select(self, object_id: int) -> Mask:
        """Pixels [H, W] of one object; files of kind "full" and "one" hold object 1.

        Raises ValueError for a file without ids.
        """
        self.require_ids()
        if self.kind == "full" and object_id == 1:
            return self.mask
        return self.labels == object_id

    def require_ids(self) -> None:
        """Raise ValueError if the file has colours or soft levels in place of ids."""
        if self.kind == "colours":
            raise ValueError(
                f"mask {self.path}: expected a palette or grey image of object ids, got one with "
                f"several colours in place of ids; save ids as a palette or 16-bit grey PNG"
            )
        if self.kind == "soft":
            raise ValueError(
                f"mask {self.path}: expected object ids, got grey levels or colours in place of "
                f"ids (a soft mask, or compression with loss); save the mask as PNG with the "
                f"values 0 and 255, or ids as a palette or 16-bit grey PNG"
            )


def read_mask_file(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, upright: bool = False
) -> MaskFile:
    """Read a mask file and decide what it means; see the table of this module.

    upright: apply the orientation tag (EXIF). Pillow applies that of TIFF files in any case.
    Raises FileNotFoundError, or ValueError, which names the file, if it cannot be read or if it can
    be read in several ways.
    """
    file = Path(path)
    with open_image(file, max_pixels=max_pixels) as image:
        lossy = _is_lossy(image, file)
        picture = ImageOps.exif_transpose(image) if upright else image
        return mask_of_picture(picture, file, lossy=lossy)


def mask_of_picture(picture: Image.Image, path: Path, *, lossy: bool = False) -> MaskFile:
    """The meaning of a loaded Pillow image. path: names it in errors.

    lossy: it was compressed with loss.
    """
    depth = 65535 if picture.mode.startswith("I") else 255
    try:
        colours, alpha = _without_alpha(picture)
        if alpha is None or alpha.min() >= OPAQUE:
            judged = _of_pixels(colours, picture, lossy)
        else:
            judged = _with_alpha(colours, alpha, picture, lossy)
    except ValueError as error:
        raise ValueError(f"mask {path}: {error}") from error
    return MaskFile(path, judged.kind, judged.labels, depth)


def note_on_mask(path: str | os.PathLike[str], mask: Mask) -> str | None:
    """A note for the user if a mask [H, W] covers no pixel or every pixel, else None."""
    if mask.any() and not mask.all():
        return None
    return f"mask {path}: covers {'every pixel' if mask.any() else 'no pixel'} of the image"


def _is_lossy(image: Image.Image, file: Path) -> bool:
    if image.format == "WEBP":
        with file.open("rb") as stream:
            return b"VP8L" not in stream.read(4096)
    return image.format == "JPEG" or "jpeg" in str(image.info.get("compression", ""))


def _without_alpha(picture: Image.Image) -> tuple[Channel, Channel | None]:
    """Pixels without alpha: [H, W], or [H, W, 3] for colours; and alpha [H, W] uint8 or None.

    Palette indices stay indices.
    """
    mode = picture.mode
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        straight = picture.convert(mode.upper()) if mode.endswith("a") else picture
        channels = np.asarray(straight)
        colours = channels[:, :, 0] if channels.shape[2] == 2 else channels[:, :, :3]
        return colours, channels[:, :, -1]
    if mode in ("1", "L", "P", "F") or mode.startswith("I"):
        pixels = np.asarray(picture)
    elif mode == "LAB":
        pixels = np.asarray(picture)[:, :, 0]
    else:
        pixels = np.asarray(picture.convert("RGB"))
    return pixels, _transparency(picture, pixels)


def _transparency(picture: Image.Image, pixels: Channel) -> Channel | None:
    """Alpha [H, W] uint8 of a transparency chunk: of each palette index, or of one colour."""
    chunk = picture.info.get("transparency")
    if chunk is None:
        return None
    if isinstance(chunk, bytes):
        table = np.frombuffer(chunk.ljust(256, b"\xff"), dtype=np.uint8)
        return np.asarray(table[pixels], dtype=np.uint8)
    if picture.mode == "1":
        pixels = pixels * np.uint8(255)
    transparent = pixels == np.asarray(chunk)
    if transparent.ndim == 3:
        transparent = transparent.all(axis=2)
    return np.where(transparent, 0, 255).astype(np.uint8)


def _of_pixels(pixels: Channel, picture: Image.Image, lossy: bool) -> Levels:
    """The meaning of pixels without alpha."""
    mode = picture.mode
    if mode == "1":
        return Levels("ids", pixels.astype(np.int32))
    if mode == "F":
        return of_floats(pixels)
    if mode.startswith("I"):
        if pixels.min() < 0:
            raise ValueError(f"expected pixels of 0 or more, got {pixels.min()}")
        return of_grey(pixels, 65535, lossy=lossy)
    if mode in ("P", "PA"):
        return _of_indices(pixels, picture, lossy)
    if pixels.ndim == 2:
        return of_grey(pixels, 255, lossy=lossy)
    return of_colours(pixels, lossy=lossy)


def _of_indices(indices: Channel, picture: Image.Image, lossy: bool) -> Levels:
    """The meaning of palette indices [H, W]: ids, or the colours of a picture with few of them.

    Annotations have DAVIS' palette, or another one that begins with black. Quantized pictures have
    any order of colours, greys of smooth edges among them.
    """
    palette = np.zeros((256, 3), dtype=np.uint8)
    entries = np.asarray(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    palette[: len(entries)] = entries
    used = levels_in(indices)
    davis = np.frombuffer(DAVIS_PALETTE, dtype=np.uint8).reshape(256, 3)
    is_davis = bool((palette[used] == davis[used]).all())
    is_grey = bool((palette[used] == palette[used, :1]).all())
    if not is_davis and (is_grey or palette[0].any() or has_one_hue(palette[used])):
        colours = of_colours(palette[indices], lossy=lossy)
        if colours.kind == "soft" or palette[0].any():
            is_full = colours.kind == "full"
            return Levels("one", np.sign(colours.labels)) if is_full else colours
    values = set(used.tolist())
    return Levels(
        "full" if values <= {0, 255} and 255 in values else "ids", indices.astype(np.int32)
    )


def _with_alpha(pixels: Channel, alpha: Channel, picture: Image.Image, lossy: bool) -> Levels:
    """The meaning of pixels with an alpha that is not opaque.

    * The same alpha everywhere says nothing: the colours are the mask, unless nothing is visible.
    * One colour on all visible pixels, and if this is black, on the others: alpha is the mask.
    * Colours and alpha that show the same object: the colours of the visible pixels.
    """
    visible = alpha > 0
    if alpha.min() == alpha.max() and visible.any():
        return _of_pixels(pixels, picture, lossy)
    if not visible.any():
        if (pixels == pixels[0, 0]).all():
            return Levels("ids", np.zeros(alpha.shape, dtype=np.int32))
        raise ValueError(
            "is transparent everywhere but has colours; remove the alpha channel if the colours "
            "are the mask"
        )
    opacity = alpha_mask(alpha)
    shown = pixels[visible]
    one_colour = bool((shown == shown[0]).all())
    hidden = pixels.copy()
    hidden[~visible] = 0
    judged = _of_pixels(hidden, picture, lossy)
    seen = opacity.labels != 0
    is_black = not judged.labels[visible].any()
    if one_colour and is_black and (pixels == shown[0]).all():
        return opacity
    if not judged.labels[seen].all():
        raise ValueError(
            "has a mask in its colours and another one in its alpha channel; save the one to use: "
            "the colours without alpha, or the alpha channel as a grey image"
        )
    if one_colour and judged.kind != "ids":
        return opacity
    kind: Kind = (
        "soft" if opacity.kind == "soft" and judged.kind in ("full", "one") else judged.kind
    )
    return Levels(kind, np.where(seen, judged.labels, 0).astype(np.int32))
