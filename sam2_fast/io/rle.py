"""Run-length encoded masks in COCO's format.

Runs of zeros and ones alternate, column by column, starting with zeros. Uncompressed: `{"size": [h,
w], "counts": [zeros, ones, zeros, ...]}`. Compressed: `counts` is a string with six bits a
character, and each count from the fourth on is stored as the difference to the count two before it.
The strings equal those of `pycocotools.mask` byte for byte; the package is not needed.
"""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_fast.io.limits import MAX_PIXELS
from sam2_fast.ops.core.mask_values import as_bool, as_bool_tensor, plain_tensor

_BLOCK = 2**18  # counts that are unpacked at a time
_LONGEST = 8  # characters of one count: 40 bits; pycocotools has 32


class Rle(TypedDict):
    """One mask. `counts` is compressed (bytes or str) or plain (a list or array of integers)."""

    size: list[int]
    counts: bytes | str | list[int] | npt.NDArray[Any]


def encode_rle(mask: npt.NDArray[Any] | Tensor, *, text: bool = False) -> Rle:
    """Compressed RLE of one mask [H, W]: bool, integers (non-zero is object), or floats 0 and 1.

    text: return `counts` as str, which JSON can hold.
    Raises ValueError for other floats, such as logits: threshold them first.
    """
    pixels = as_bool(mask)
    if pixels.ndim != 2:
        raise ValueError(f"mask: expected [H, W], got {[*pixels.shape]}")
    height, width = pixels.shape
    packed = _pack(_runs(pixels))
    return {"size": [height, width], "counts": packed.decode("ascii") if text else packed}


def decode_rle(rle: Rle, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.bool_]:
    """The mask [H, W] bool of a compressed or plain RLE.

    Numbers may be floating point if they are whole, such as 64.0. Raises ValueError unless the RLE
    is a whole mask of `size` within `max_pixels`. Nothing is allocated before that check.
    """
    height, width = _size(rle, max_pixels)
    counts = _counts(rle, height * width)
    values = np.zeros(counts.size, dtype=bool)
    values[1::2] = True
    return np.repeat(values, counts).reshape(width, height).T


def area_from_rle(rle: Rle, *, max_pixels: int = MAX_PIXELS) -> int:
    """Number of pixels on the object, without decoding the mask."""
    height, width = _size(rle, max_pixels)
    return int(_counts(rle, height * width)[1::2].sum())


def mask_to_rle(masks: Tensor) -> list[Rle]:
    """Plain RLE of N masks [N, H, W]: bool, integers (non-zero is object), or floats 0 and 1.

    On any device; only the positions of changes are copied to the host.
    Raises ValueError for other floats, such as logits: threshold them first.
    """
    plain = plain_tensor(masks, "masks")
    if masks.ndim != 3 or 0 in masks.shape[1:]:
        raise ValueError(f"masks: expected [N, H, W] with at least one pixel, got {[*masks.shape]}")
    count, height, width = masks.shape
    flat = as_bool_tensor(plain, "masks").transpose(1, 2).reshape(count, height * width)
    encoded: list[Rle] = []
    for rows in torch.split(flat, max(1, 2**30 // (height * width))):
        changes = (rows[:, 1:] != rows[:, :-1]).nonzero().cpu().numpy()
        starts = rows[:, 0].cpu().numpy()
        bounds = np.searchsorted(changes[:, 0], np.arange(len(starts) + 1))
        for row, on in enumerate(starts):
            runs = _lengths(changes[bounds[row] : bounds[row + 1], 1] + 1, height * width, bool(on))
            encoded.append({"size": [height, width], "counts": runs.tolist()})
    return encoded


def compress_rle(rle: Rle) -> Rle:
    """The compressed form of a plain RLE, with str counts (official `coco_encode_rle`)."""
    height, width = _size(rle, np.iinfo(np.int64).max)
    return {"size": [height, width], "counts": _pack(_counts(rle, height * width)).decode("ascii")}


def _runs(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    height, width = mask.shape
    columns = np.flatnonzero(mask.any(axis=0))
    if columns.size == 0:
        return np.array([height * width], dtype=np.int64)
    # Only the columns of the object are transposed.
    first, after = int(columns[0]) * height, (int(columns[-1]) + 1) * height
    flat = mask[:, columns[0] : columns[-1] + 1].T.reshape(-1)
    changes = first + np.flatnonzero(flat[1:] != flat[:-1]) + 1
    before = [first] if first and flat[0] else []
    behind = [after] if after < height * width and flat[-1] else []
    changes = np.concatenate((before, changes, behind)).astype(np.int64)
    return _lengths(changes, height * width, bool(flat[0]) and not first)


def _lengths(changes: npt.NDArray[np.int64], total: int, starts_on: bool) -> npt.NDArray[np.int64]:
    edges = np.concatenate(([0, 0] if starts_on else [0], changes, [total])).astype(np.int64)
    return np.diff(edges)


def _pack(counts: npt.NDArray[np.int64]) -> bytes:
    """Counts as COCO's string.

    A character has five bits of the number, low ones first, and bit 5 if more characters follow; 48
    is added. Bit 4 of the last character is the sign.
    """
    deltas = counts.astype(np.int64)
    deltas[3:] -= counts[1:-2]
    shifted = deltas[:, None] >> (5 * np.arange(_LONGEST))
    groups = shifted & 31
    rest = shifted >> 5
    ends = np.where(groups & 16, rest == -1, rest == 0)
    last = ends.argmax(axis=1)
    position = np.arange(_LONGEST)
    characters = groups + 48 + 32 * (position < last[:, None])
    return bytes(characters[position <= last[:, None]].astype(np.uint8))


def _unpack(text: bytes) -> npt.NDArray[np.int64]:
    codes = np.frombuffer(text, dtype=np.uint8) - np.uint8(48)
    if codes.size == 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("rle counts: not a compressed COCO string")
    ends = np.flatnonzero((codes & 32) == 0) + 1
    values = np.empty(ends.size, dtype=np.int64)
    start = 0
    # In blocks, because each character needs some 50 bytes.
    for number in range(0, ends.size, _BLOCK):
        block = ends[number : number + _BLOCK]
        values[number : number + _BLOCK] = _deltas(codes[start : block[-1]].astype(np.int64))
        start = int(block[-1])
    for counts in (values[1::2], values[2::2]):
        np.cumsum(counts, out=counts)
    return values


def _deltas(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of whole groups of characters."""
    last = np.flatnonzero((codes & 32) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    lengths = last - first + 1
    if lengths.max() > _LONGEST:
        raise ValueError(
            f"rle counts: expected at most {_LONGEST} characters per count, got {lengths.max()}"
        )
    position = np.arange(codes.size) - np.repeat(first, lengths)
    values = np.add.reduceat((codes & 31) << (5 * position), first)
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    return values


def _size(rle: Rle, max_pixels: int) -> tuple[int, int]:
    size = rle.get("size") if isinstance(rle, dict) else None
    if isinstance(size, np.ndarray):
        size = size.tolist()
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(map(_is_whole, size)):
        raise ValueError(
            f"rle: expected {{'size': [h, w], 'counts': ...}} with whole numbers, got "
            f"{'size ' + repr(size) if isinstance(rle, dict) else repr(rle)}"
        )
    height, width = int(size[0]), int(size[1])
    if height < 0 or width < 0 or height * width > max_pixels:
        raise ValueError(
            f"rle size: {height} x {width} is outside 0 to {max_pixels} pixels; raise the limit "
            f"with max_pixels="
        )
    return height, width


def _is_whole(number: Any) -> bool:
    """Whether `number` is an integer, or floating point without a fraction. False is no number."""
    if isinstance(number, (float, np.floating)):
        return float(number).is_integer()
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def _counts(rle: Rle, total: int) -> npt.NDArray[np.int64]:
    raw = rle.get("counts")
    if isinstance(raw, str):
        raw = raw.encode("utf-8")
    if (
        not isinstance(raw, np.ndarray)
        and hasattr(raw, "__len__")
        and len(raw) > _LONGEST * (total + 2)
    ):
        raise ValueError(f"rle counts: has more runs than the {total} pixels of the mask")
    if isinstance(raw, bytes):
        counts = _unpack(raw)
    elif isinstance(raw, np.ndarray) and np.issubdtype(raw.dtype, np.integer):
        counts = raw.astype(np.int64)
    elif isinstance(raw, (list, tuple, np.ndarray)) and all(
        _is_whole(run) and 0 <= run <= total for run in raw
    ):
        counts = np.array(raw, dtype=np.int64)
    else:
        raise ValueError(
            f"rle counts: expected bytes, a string or a list of integers from 0 to {total}"
        )
    if counts.ndim != 1 or (counts < 0).any() or (counts > total).any() or counts.sum() != total:
        raise ValueError(
            f"rle counts: expected runs that add up to {total} pixels; the mask is damaged or of "
            f"another size"
        )
    return counts
