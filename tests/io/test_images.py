"""Images of every kind become [H, W, 3] uint8, or raise a ValueError of one line.

Robustness row 33, and row 32 for files.
"""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from io_media import picture
from PIL import Image

from sam2_fast.io.images import as_rgb, as_rgb_uint8, load_image

RGB = picture(4)


def same(image: object, expected: np.ndarray = RGB) -> bool:
    """Whether the converted image is contiguous uint8 with the expected values."""
    pixels = as_rgb_uint8(image)
    is_plain = pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    return is_plain and np.array_equal(pixels, expected)


def test_arrays_pillow_images_and_tensors_of_one_picture_give_the_same_pixels() -> None:
    assert same(RGB)
    assert same(Image.fromarray(RGB))
    assert same(torch.from_numpy(RGB))
    assert same(torch.from_numpy(RGB).permute(2, 0, 1))
    assert same(RGB.astype(np.float32) / 255)
    assert same(RGB.astype(np.float64) / 255)
    assert same(RGB.astype(np.uint16) * 257)
    assert same(torch.from_numpy(RGB).permute(2, 0, 1) / 255)
    assert same((torch.from_numpy(RGB) / 255).requires_grad_())


def test_grey_becomes_rgb_and_alpha_is_dropped() -> None:
    grey = RGB[:, :, 0]
    grey_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    assert same(grey, grey_rgb)
    assert same(grey[:, :, None], grey_rgb)
    assert same(torch.from_numpy(grey), grey_rgb)
    assert same(torch.from_numpy(grey)[None], grey_rgb)
    assert same(Image.fromarray(grey), grey_rgb)
    assert same(np.dstack([RGB, grey]))
    assert same(Image.fromarray(np.dstack([RGB, grey])))


def test_negative_strides_and_views_are_accepted() -> None:
    assert same(RGB[::-1], RGB[::-1].copy())
    assert same(RGB[:, :, ::-1], RGB[:, :, ::-1].copy())
    assert same(np.asfortranarray(RGB))
    assert same(RGB[::2, ::3], RGB[::2, ::3].copy())


def test_sixteen_bit_images_keep_their_range(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert as_rgb_uint8(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]
    assert as_rgb_uint8(deep)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_as_rgb_does_not_round_floats() -> None:
    image = np.full((2, 2, 3), 0.1234, dtype=np.float32)
    assert np.array_equal(as_rgb(image), image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.transpose(RGB, (2, 0, 1)), r"transpose\(1, 2, 0\)"),
        (RGB.astype(np.float32), r"\[0, 1\], got \[0, "),
        (np.full((4, 4, 3), -0.5), r"\[0, 1\]"),
        (np.full((4, 4, 3), np.nan), "finite"),
        (np.full((4, 4, 3), np.inf), "finite"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros((4, 0), np.uint8), "at least one pixel"),
        (RGB.astype(np.int64), r"astype\(np.uint8\)"),
        (RGB > 100, r"astype\(np.uint8\)"),
        (np.zeros((4, 4, 2), np.uint8), r"\[H, W, 3\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\[H, W, 3\]"),
        (np.zeros(5, np.uint8), r"\[H, W, 3\]"),
        (torch.zeros(2, 3, 4, 4), r"\[H, W, 3\]"),
        (torch.full((3, 4, 4), float("nan"), dtype=torch.bfloat16), "finite"),
        (Image.new("F", (3, 3), 7.0), r"\[0, 1\]"),
        (Image.new("RGB", (0, 3)), "at least one pixel"),
    ],
)
def test_an_invalid_image_is_a_value_error_of_one_line(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        as_rgb_uint8(image)
    assert "\n" not in str(caught.value)


def test_an_object_of_another_type_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="got NoneType"):
        as_rgb_uint8(None)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp", "gif", "ppm"])
def test_image_files_give_the_pixels_of_pillow(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path)
    with Image.open(path) as image:
        assert same(path, np.array(image.convert("RGB")))
        assert same(str(path), np.array(image.convert("RGB")))


def test_the_orientation_tag_is_ignored_as_in_the_official_code(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "rotated.jpg", exif=exif)
    assert load_image(tmp_path / "rotated.jpg").shape == RGB.shape


def huge_jpeg(side: int) -> bytes:
    """A JPEG whose header claims side x side pixels, with the data of a small picture."""
    import io

    small = io.BytesIO()
    Image.fromarray(RGB).save(small, "JPEG")
    data = bytearray(small.getvalue())
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def huge_png(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("data", [huge_jpeg(30_000), huge_png(100_000)], ids=["jpeg", "png"])
def test_a_huge_image_is_refused_at_once_because_of_its_header(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "huge.jpg"
    path.write_bytes(data)
    started = time.thread_time()
    with pytest.raises(ValueError, match=r"huge.jpg.*limit.*max_pixels"):
        load_image(path)
    assert time.thread_time() - started < 1


def test_a_gif_whose_first_frame_is_larger_than_its_screen_is_refused(tmp_path: Path) -> None:
    screen = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02L\x01\x00;"
    (tmp_path / "huge.gif").write_bytes(screen + frame)
    with pytest.raises(ValueError, match=r"huge\.gif"):
        load_image(tmp_path / "huge.gif")


def test_max_pixels_raises_and_lowers_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(RGB).save(path)
    with pytest.raises(ValueError, match="limit is 100"):
        load_image(path, max_pixels=100)
    with pytest.raises(ValueError, match="limit is 100"):
        as_rgb_uint8(Image.open(path), max_pixels=100)
    before = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = 10  # Pillow's limit must not apply, only our argument does
        assert same(path)
    finally:
        Image.MAX_IMAGE_PIXELS = before


FITS = (
    b"SIMPLE  =                    T / conforms".ljust(80)
    + b"BITPIX  =                    8".ljust(80)
    + b"END".ljust(80)
)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "data",
    [FITS, EPS, b"", b"garbage" * 10, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF0000WEBPVP8 "],
)
def test_files_of_another_format_are_refused_with_their_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"picture.jpg") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp", "gif"])
def test_a_truncated_file_is_a_value_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"image.{suffix}"):
        load_image(path)


def test_missing_files_and_directories_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.png: no such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="cannot be opened"):
        load_image(tmp_path)


def test_a_real_photograph_gives_the_pixels_of_pillow(real: Path) -> None:
    with Image.open(real / "truck.jpg") as image:
        assert same(real / "truck.jpg", np.array(image.convert("RGB")))
