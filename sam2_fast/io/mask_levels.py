"""The levels of a mask picture: ids, a mask of two levels, or a soft mask.

Files do not say which of them they hold. The rules are in docs/files.md, section "Masks".
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Kind = Literal["ids", "full", "one", "soft", "colours"]
Labels = npt.NDArray[np.int32]

MANY = 32
"""A file with more levels than this is a soft mask, or has that many objects."""
UPPER = 8
"""Levels in the upper half of the scale that a soft mask of many levels has at least."""


class Levels(NamedTuple):
    """What a picture holds, and its labels [H, W].

    kind "ids": labels are the stored whole numbers. "full": 0, and the full scale on the object.
    "one" (one colour, or alpha), "soft", "colours": 0, and 1 on the object.
    """

    kind: Kind
    labels: Labels


def levels_in(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The different whole numbers of `labels`, in order. Counting is faster than sorting."""
    if labels.size and labels.min() >= 0 and labels.max() <= 65535:
        return np.flatnonzero(np.bincount(labels.reshape(-1))).astype(np.int64)
    return np.unique(labels).astype(np.int64)


def of_grey(levels: npt.NDArray[Any], full: int, *, lossy: bool) -> Levels:
    """The meaning of whole numbers [H, W] of 0 or more, of which `full` is white.

    lossy: the file was compressed with loss, so its levels are not exact.
    Raises ValueError if the levels can be read in several ways.
    """
    labels = np.asarray(levels, dtype=np.int32)
    values = levels_in(labels)
    if _is_subset(values, (0, full)) or (full > 255 and _is_subset(values, (0, 255))):
        return Levels("full" if values[-1] else "ids", labels)
    if lossy:
        return _soft(labels, full, _is_mostly_black_and_white(labels, full))
    if len(values[values != 0]) == 1:
        return Levels("ids", labels)
    reaches_white = bool(values[-1] * 255 >= full * 250)
    if len(values) > MANY:
        upper = values[(2 * values >= full) & (values < full)]
        if reaches_white and len(upper) >= UPPER:
            return _soft(labels, full, True)
        if _has_areas(labels):
            return Levels("ids", labels)
        raise _ambiguous(values, full)
    if not _differs_at_edges_only(labels, values, full):
        return Levels("ids", labels)
    if not reaches_white:
        raise _ambiguous(values, full)
    return _soft(labels, full, True)


def of_colours(pixels: npt.NDArray[Any], *, lossy: bool) -> Levels:
    """The meaning of colours [H, W, 3] uint8, of which black is background.

    Greys are read like a grey picture. Raises ValueError if they can be read in several ways.
    """
    red, green, blue = (pixels[:, :, channel] for channel in range(3))
    brightness = np.maximum(np.maximum(red, green), blue)
    if lossy or ((red == green) & (green == blue)).all():
        return of_grey(brightness, 255, lossy=lossy)
    packed = np.unique(pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32))
    colours = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    if len(colours) > MANY or has_one_hue(colours):
        judged = of_grey(brightness, 255, lossy=False)
        if judged.kind == "soft":
            return judged
    mask = brightness > 0
    if (packed > 0).sum() == 1:
        return Levels("one", mask.astype(np.int32))
    return Levels("colours", mask.astype(np.int32))


def of_floats(values: npt.NDArray[Any]) -> Levels:
    """The meaning of floating-point pixels [H, W]: whole numbers like a grey picture, or [0, 1].

    Raises ValueError for NaN, infinity, and numbers that are neither whole nor from 0 to 255.
    """
    if not np.isfinite(values).all():
        raise ValueError("floating-point pixels must be finite, got NaN or infinity")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535 and (values == np.rint(values)).all():
        return of_grey(values, 255 if high <= 255 else 65535, lossy=False)
    if low < 0 or high > 255:
        raise ValueError(
            f"floating-point pixels must be whole numbers, or lie in [0, 1] or [0, 255], got "
            f"[{low:g}, {high:g}]; save logits as a mask of 0 and 255, e.g. (logits > 0) * 255"
        )
    half = 0.5 if high <= 1 else 127.5
    return Levels("soft", (values >= half).astype(np.int32))


def alpha_mask(alpha: npt.NDArray[Any]) -> Levels:
    """The object by its opacity [H, W] uint8: half of full scale, or any if there is one level."""
    values = np.unique(alpha[alpha > 0])
    if len(values) == 1:
        return Levels("one", (alpha > 0).astype(np.int32))
    return Levels("soft", (alpha >= 128).astype(np.int32))


def _ambiguous(values: npt.NDArray[Any], full: int) -> ValueError:
    return ValueError(
        f"has {len(values)} grey levels up to {values[-1]} of {full}, which may be a soft mask "
        f"or ids; save the mask with the values 0 and {full}, or ids with a palette"
    )


def _soft(labels: Labels, full: int, is_soft: bool) -> Levels:
    if not is_soft:
        raise ValueError(
            f"was compressed with loss, and its levels up to {labels.max()} of {full} are not a "
            f"mask of black and white; compression changes ids: save them as PNG"
        )
    return Levels("soft", (2 * labels.astype(np.int64) >= full).astype(np.int32))


def _is_subset(values: npt.NDArray[Any], allowed: tuple[int, ...]) -> bool:
    return bool(np.isin(values, allowed).all())


def _is_mostly_black_and_white(labels: Labels, full: int) -> bool:
    """Whether fewer pixels are grey than white; compression makes some of them grey."""
    white = 4 * labels >= 3 * full
    grey = (10 * labels >= full) & ~white
    return bool(white.any() and grey.sum() < white.sum())


def _has_areas(labels: Labels) -> bool:
    """Whether most pixels that are not 0 equal their right, lower and lower right neighbour."""
    here = labels[:-1, :-1]
    equal = ((here == labels[1:, :-1]) & (here == labels[:-1, 1:]) & (here == labels[1:, 1:])) & (
        here != 0
    )
    return bool(2 * equal.sum() >= (here != 0).sum())


def _differs_at_edges_only(labels: Labels, values: npt.NDArray[Any], full: int) -> bool:
    """Whether levels between black and white exist, and none of them fills 3 x 3 pixels.

    Levels close to black or white may fill areas: that is noise of an earlier compression.
    """
    margin = full // 16
    if not ((values > margin) & (values < full)).any():
        return False
    between = (labels > margin) & (labels < full - margin)
    if min(labels.shape) < 3:
        return True
    height, width = labels.shape
    centre = labels[1:-1, 1:-1]
    constant = between[1:-1, 1:-1].copy()
    for top in range(3):
        for left in range(3):
            constant &= labels[top : height - 2 + top, left : width - 2 + left] == centre
    return not constant.any()


def has_one_hue(colours: npt.NDArray[Any]) -> bool:
    """Whether all colours [N, 3] are shades of the brightest one, within 8 of 255 levels."""
    brightness = colours.max(axis=1).astype(np.float64)
    brightest = colours[brightness.argmax()].astype(np.float64)
    shades = brightness[:, None] / brightness.max() * brightest
    return bool((np.abs(shades - colours) <= 8).all())
