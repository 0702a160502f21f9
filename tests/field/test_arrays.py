"""Pixels of any byte order, layout and number format."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam2_fast.io.images import as_rgb, as_rgb_uint8, depth_note, load_image
from sam2_fast.io.transforms import frame_input, resize_image
from sam2_fast.io.video import open_video
from tests.field.field_media import picture

BYTES = picture(3)
DEEP = (BYTES.astype(np.uint16) * 257).astype(np.uint16)
UNIT = BYTES.astype(np.float32) / 255


def big_endian_tiff(pixels: np.ndarray) -> bytes:
    """A grey TIFF file as ImageJ writes it: big-endian, 16 bits, one strip."""
    height, width = pixels.shape
    body = pixels.astype(">u2").tobytes()
    tags = [
        *((254, 4, 0), (256, 4, width), (257, 4, height), (258, 3, 16), (259, 3, 1), (262, 3, 1)),
        *((273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(body))),
    ]
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1)
        + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    directory = struct.pack(">H", len(tags)) + entries + bytes(4)
    return struct.pack(">2sHI", b"MM", 42, 8 + len(body)) + body + directory


@pytest.mark.field("B22")
@pytest.mark.parametrize(
    "array",
    [
        *(BYTES.astype(">u1"), DEEP.astype(">u2"), DEEP.astype("<u2"), UNIT.astype(">f4")),
        *(UNIT.astype("<f4"), UNIT.astype(">f8"), UNIT.astype(np.longdouble)),
    ],
    ids=lambda array: array.dtype.str,
)
def test_the_byte_order_does_not_matter(array: np.ndarray) -> None:
    assert np.array_equal(as_rgb_uint8(array), BYTES)
    assert as_rgb(array).dtype.isnative
    stack = np.stack([array, array]).astype(array.dtype)
    for frames in (stack, [array, array], iter([array])):
        with open_video(frames) as video:
            assert np.array_equal(video[0], BYTES)


@pytest.mark.field("B22")
def test_big_endian_tiff_files_equal_little_endian_ones(tmp_path: Path) -> None:
    grey = DEEP[:, :, 0]
    (tmp_path / "imagej.tif").write_bytes(big_endian_tiff(grey))
    Image.fromarray(grey).save(tmp_path / "little.tif")
    expected = np.repeat(BYTES[:, :, :1], 3, axis=2)
    for name in ("imagej.tif", "little.tif"):
        assert np.array_equal(load_image(tmp_path / name), expected)
        with open_video(tmp_path / name) as video:
            assert np.array_equal(video[0], expected)
        assert np.array_equal(as_rgb_uint8(Image.open(tmp_path / name)), expected)


LAYOUTS: dict[str, Any] = {
    "mirrored": lambda a: a[:, ::-1],
    "upside down": lambda a: a[::-1],
    "BGR": lambda a: a[:, :, ::-1],
    "Fortran order": np.asfortranarray,
    "strided": lambda a: a[::2, ::3],
    "read-only": lambda a: _read_only(a),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
}


def _read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.field("B31")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_arrays_of_any_layout_are_read_without_a_warning(layout: Any) -> None:
    array = layout(BYTES)
    expected = np.array(array)
    assert np.array_equal(as_rgb_uint8(array), expected)
    assert as_rgb_uint8(array).flags.c_contiguous
    with open_video([array, array]) as video:
        assert np.array_equal(video[1], expected)
        assert np.array_equal(
            frame_input(video[1], 32).numpy(), frame_input(expected.copy(), 32).numpy()
        )
    with open_video(np.stack([array] * 2)) as video:
        assert np.array_equal(video[0], expected)
    floats = layout(UNIT)
    for pixels in (array, floats):
        copy = np.array(pixels)
        assert torch.equal(resize_image(pixels, 32), resize_image(copy, 32))


@pytest.mark.field("B31")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["u1", ">u2", "<f4"])
def test_mapped_files_are_read_without_a_warning(tmp_path: Path, dtype: str) -> None:
    scale = {"u1": 1, ">u2": 257, "<f4": 1 / 255}[dtype]
    stack = np.stack([BYTES, BYTES]) * np.float32(scale)
    np.save(tmp_path / "clip.npy", stack.astype(dtype))
    mapped = np.load(tmp_path / "clip.npy", mmap_mode="r")
    with open_video(mapped) as video:
        assert np.array_equal(video[1], BYTES)
    assert np.array_equal(as_rgb_uint8(mapped[0]), BYTES)
    resize_image(as_rgb(mapped[0]), 32)


@pytest.mark.field("B22")
@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (BYTES.astype(np.int32), r"got int32 in \[0, 222\]; convert with \.astype\(np\.uint8\)"),
        (BYTES.astype(np.int64), r"got int64 .*; convert with \.astype\(np\.uint8\)"),
        (DEEP.astype(np.int32), r"got int32 in \[0, 57054\]; scale to \[0, 1\]"),
        (DEEP.astype(">i4"), r"got >i4 .*; scale to \[0, 1\]"),
        (DEEP.astype(np.uint32) * 9, r"got uint32 .*; scale to \[0, 1\]"),
        (BYTES.astype(np.int16) - 9, r"got int16 in \[-9, 213\]; shift and scale"),
        (BYTES > 99, r"got bool; .*astype\(np\.uint8\) \* 255"),
        (BYTES.astype(np.complex64), r"got complex64$"),
        (BYTES.astype(np.float32), r"got \[0, 222\]; divide by 255 or pass uint8"),
        (DEEP.astype(np.float64), r"got \[0, 57054\]; scale them"),
        (UNIT - 1, r"got \[-1, .*\]; scale them"),
    ],
    ids=lambda value: value.dtype.str if isinstance(value, np.ndarray) else "",
)
def test_advice_never_wraps_values_around(array: np.ndarray, advice: str) -> None:
    for convert in (as_rgb_uint8, lambda a: open_video(a[None])):
        with pytest.raises(ValueError, match=advice) as caught:
            convert(array)
        text = str(caught.value)
        assert "\n" not in text
        if array.dtype.kind in "iu" and array.max() > 255:
            assert "astype(np.uint8)" not in text


@pytest.mark.parametrize("dtype", [np.float16, torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_of_any_width_is_accepted(dtype: Any) -> None:
    blocks = np.zeros((48, 64, 3), np.float32)
    blocks[10:20] = 1
    array = blocks.astype(dtype) if dtype is np.float16 else torch.from_numpy(blocks).to(dtype)
    assert np.array_equal(as_rgb_uint8(array), (blocks * 255).astype(np.uint8))


@pytest.mark.field("U01")
@pytest.mark.parametrize(
    ("bits", "noted"), [(8, True), (10, True), (12, True), (14, True), (16, False)]
)
@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_deep_images_that_use_few_bits_are_noted(
    tmp_path: Path, name: str, bits: int, noted: bool
) -> None:
    pixels = np.linspace(0, 2**bits - 1, 48 * 64).astype(np.uint16).reshape(48, 64)
    Image.fromarray(pixels).save(tmp_path / name)
    note = depth_note(tmp_path / name)
    assert (note is not None) == noted
    if note is not None:
        assert f"use only the lowest {bits} bits" in note and name in note
    expected = (pixels.astype(np.uint32) + 128) // 257  # full scale stays 65535
    assert np.array_equal(load_image(tmp_path / name)[:, :, 0], expected)


@pytest.mark.field("U01")
def test_other_images_have_no_note(tmp_path: Path) -> None:
    Image.fromarray(BYTES).save(tmp_path / "rgb.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "black.png")
    Image.fromarray(np.full((8, 8), 200, np.int32)).save(tmp_path / "i.tif")
    assert depth_note(tmp_path / "rgb.png") is None
    assert depth_note(tmp_path / "black.png") is None
    assert "lowest 8 bits" in (depth_note(tmp_path / "i.tif") or "")
