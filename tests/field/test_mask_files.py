"""What mask files of every kind mean: each Pillow mode, alpha, palettes, soft and lossy masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sam2_fast.io import load_mask
from sam2_fast.io.mask_files import mask_of_picture, note_on_mask, read_mask_file
from sam2_fast.io.masks import DAVIS_PALETTE

Array = npt.NDArray[np.uint8]

SQUARE = np.zeros((64, 96), dtype=bool)
SQUARE[12:44, 20:68] = True
FULL = SQUARE.astype(np.uint8) * 255
ONES = np.full_like(FULL, 255)
IDS = np.zeros((64, 96), dtype=np.uint8)
IDS[4:30, 5:40] = 1
IDS[20:60, 50:90] = 2
IDS[40:60, 10:30] = 7
HIDDEN = np.where(SQUARE, np.uint8(255), np.arange(96, dtype=np.uint8))
ROWS, COLUMNS = np.mgrid[0:128, 0:128]
RADIUS = np.hypot(ROWS - 63.5, COLUMNS - 63.5)
DISC = RADIUS <= 29.9
SMOOTH = (np.clip(29.9 - RADIUS + 0.5, 0, 1) * 255).round().astype(np.uint8)


def stack(*channels: Array) -> Array:
    return np.stack(channels, axis=2)


def palette(indices: Array, *colours: int) -> Image.Image:
    image = Image.fromarray(indices, "P") if indices.dtype != bool else Image.fromarray(indices)
    image.putpalette(bytes(colours))
    return image


def with_chunk(image: Image.Image, chunk: object) -> Image.Image:
    image.info["transparency"] = chunk
    return image


def converted(mode: str) -> Image.Image:
    return Image.fromarray(FULL).convert("RGB").convert(mode)


def from_bytes(mode: str, array: npt.NDArray[np.generic]) -> Image.Image:
    return Image.frombytes(mode, (array.shape[1], array.shape[0]), array.tobytes())


WHITE_FIRST = (255, 255, 255, 0, 0, 0)
BLACK_FIRST = (0, 0, 0, 255, 255, 255)
ONE = SQUARE.astype(np.uint8)

BINARY: dict[str, Callable[[], Image.Image]] = {
    "1": lambda: Image.fromarray(SQUARE),
    "L 0/255": lambda: Image.fromarray(FULL),
    "L 0/1": lambda: Image.fromarray(ONE),
    "L transparent black": lambda: with_chunk(Image.fromarray(FULL), 0),
    "LA opaque": lambda: Image.fromarray(stack(FULL, ONES), "LA"),
    "LA white with alpha": lambda: Image.fromarray(stack(ONES, FULL), "LA"),
    "LA black with alpha": lambda: Image.fromarray(stack(ONES * 0, FULL), "LA"),
    "LA both": lambda: Image.fromarray(stack(FULL, FULL), "LA"),
    "LA half transparent": lambda: Image.fromarray(stack(FULL, ONES // 2), "LA"),
    "LA hidden pixels": lambda: Image.fromarray(stack(HIDDEN, FULL), "LA"),
    "La": lambda: from_bytes("La", stack(FULL, FULL)),
    "P davis": lambda: palette(ONE, *DAVIS_PALETTE),
    "P davis 0/255": lambda: palette(FULL, *DAVIS_PALETTE),
    "P white first": lambda: palette(1 - ONE, *WHITE_FIRST),
    "P black first": lambda: palette(ONE, *BLACK_FIRST),
    "P red": lambda: palette(ONE, 0, 0, 0, 255, 0, 0),
    "P red second": lambda: palette(1 - ONE, 255, 0, 0, 0, 0, 0),
    "P grey ramp": lambda: Image.fromarray(FULL).convert("P"),
    "P quantized": lambda: converted("RGB").quantize(2),
    "P transparent index": lambda: with_chunk(palette(ONE, *BLACK_FIRST), 0),
    "P alpha of each index": lambda: with_chunk(
        palette(ONE, 255, 255, 255, 255, 255, 255), b"\0\xff"
    ),
    "PA": lambda: palette(ONE, *BLACK_FIRST).convert("PA"),
    "PA with alpha": lambda: from_bytes("PA", stack(ONE * 0, FULL)),
    "I;16 0/65535": lambda: Image.fromarray(FULL.astype(np.uint16) * 257),
    "I;16 0/255": lambda: Image.fromarray(FULL.astype(np.uint16)),
    "I;16B": lambda: from_bytes("I;16B", (FULL.astype(np.uint16) * 257).astype(">u2")),
    "I 0/65535": lambda: Image.fromarray(FULL.astype(np.int32) * 257),
    "I 0/1": lambda: Image.fromarray(ONE.astype(np.int32)),
    "F 0/1": lambda: Image.fromarray(ONE.astype(np.float32)),
    "F 0/255": lambda: Image.fromarray(FULL.astype(np.float32)),
    "F soft": lambda: Image.fromarray(np.where(SQUARE, 0.7, 0.3).astype(np.float32)),
    "F soft to 255": lambda: Image.fromarray(np.where(SQUARE, 200.5, 90.25).astype(np.float32)),
    "RGB": lambda: converted("RGB"),
    "RGB red": lambda: Image.fromarray(stack(FULL, FULL * 0, FULL * 0)),
    "RGB dark red": lambda: Image.fromarray(stack(ONE * 128, ONE * 0, ONE * 0)),
    "RGB transparent colour": lambda: with_chunk(converted("RGB"), (0, 0, 0)),
    "RGBX": lambda: converted("RGBX"),
    "RGBA opaque": lambda: converted("RGBA"),
    "RGBA white with alpha": lambda: Image.fromarray(stack(ONES, ONES, ONES, FULL)),
    "RGBA black with alpha": lambda: Image.fromarray(stack(ONES * 0, ONES * 0, ONES * 0, FULL)),
    "RGBA both": lambda: Image.fromarray(stack(FULL, FULL, FULL, FULL)),
    "RGBa": lambda: from_bytes("RGBa", stack(FULL, FULL, FULL, FULL)),
    "CMYK": lambda: converted("CMYK"),
    "YCbCr": lambda: converted("YCbCr"),
    "HSV": lambda: converted("HSV"),
    "LAB": lambda: from_bytes("LAB", stack(FULL, ONES // 2 + 1, ONES // 2 + 1)),
}


@pytest.mark.field("B03")
@pytest.mark.parametrize("kind", BINARY)
def test_a_mask_of_two_levels_is_read_in_every_mode(kind: str) -> None:
    file = mask_of_picture(BINARY[kind](), Path("m.png"))
    assert np.array_equal(file.mask, SQUARE)
    assert file.area == 1536
    if "soft" not in kind:
        assert np.array_equal(file.select(1), SQUARE)
        assert not file.select(2).any()


@pytest.mark.field("B03")
@pytest.mark.parametrize(
    "kind",
    [
        k
        for k, make in BINARY.items()
        if make().mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    ],
)
def test_the_png_file_is_read_like_the_picture(kind: str, tmp_path: Path) -> None:
    image = BINARY[kind]()
    image.save(tmp_path / "m.png")
    assert np.array_equal(load_mask(tmp_path / "m.png"), SQUARE)


@pytest.mark.field("B03")
@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "LA",
        "P",
        "RGB",
        "RGBA",
        "RGBX",
        "CMYK",
        "YCbCr",
        "LAB",
        "I;16",
        "I;16B",
        "I",
        "F",
    ],
)
def test_the_tiff_file_is_read_like_the_picture(mode: str, tmp_path: Path) -> None:
    image = next(i for k, make in BINARY.items() if (i := make()).mode == mode and "alpha" not in k)
    image.save(tmp_path / "m.tif")
    assert np.array_equal(load_mask(tmp_path / "m.tif"), SQUARE)


@pytest.mark.field("B03")
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            lambda: Image.fromarray(stack(FULL, FULL.T.copy().reshape(64, 96)), "LA"),
            "alpha channel",
        ),
        (lambda: Image.fromarray(stack(FULL, ONES * 0), "LA"), "transparent everywhere"),
        (lambda: Image.fromarray(stack(FULL, FULL, FULL, 255 - FULL)), "save the one to use"),
        (lambda: Image.fromarray(np.full((4, 4), np.nan, np.float32)), "NaN"),
        (lambda: Image.fromarray(np.array([[-9.5, 8.25]], np.float32)), r"\[-9\.5, 8\.25\]"),
        (lambda: Image.fromarray(np.array([[-1, 8]], np.int32)), "0 or more"),
    ],
)
def test_masks_that_can_be_read_in_two_ways_are_refused(
    image: Callable[[], Image.Image], message: str
) -> None:
    with pytest.raises(ValueError, match=f"mask m.png: .*{message}"):
        mask_of_picture(image(), Path("m.png"))


IDS_AS: dict[str, Callable[[], Image.Image]] = {
    "P davis": lambda: palette(IDS, *DAVIS_PALETTE),
    "P other palette": lambda: palette(IDS, 0, 0, 0, *(range(40, 61))),
    "P short palette": lambda: palette(IDS, *DAVIS_PALETTE[:24]),
    "P transparent background": lambda: with_chunk(palette(IDS, *DAVIS_PALETTE), 0),
    "L": lambda: Image.fromarray(IDS),
    "LA opaque": lambda: Image.fromarray(stack(IDS, ONES), "LA"),
    "LA transparent background": lambda: Image.fromarray(stack(IDS, (IDS > 0) * ONES), "LA"),
    "I;16": lambda: Image.fromarray(IDS.astype(np.uint16)),
    "I;16B": lambda: from_bytes("I;16B", IDS.astype(">u2")),
    "I": lambda: Image.fromarray(IDS.astype(np.int32)),
    "F": lambda: Image.fromarray(IDS.astype(np.float32)),
    "RGB grey": lambda: Image.fromarray(stack(IDS, IDS, IDS)),
}


@pytest.mark.field("B03")
@pytest.mark.parametrize("kind", IDS_AS)
def test_ids_are_exact(kind: str) -> None:
    file = mask_of_picture(IDS_AS[kind](), Path("m.png"))
    assert file.kind == "ids"
    assert np.array_equal(file.labels, IDS)
    assert np.array_equal(file.mask, IDS > 0)


@pytest.mark.field("B22")
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_ids_of_16_bits_may_exceed_255(dtype: str, tmp_path: Path) -> None:
    labels = IDS.astype(np.uint16) * 300
    from_bytes("I;16B" if dtype == ">u2" else "I;16", labels.astype(dtype)).save(tmp_path / "m.tif")
    assert np.array_equal(load_mask(tmp_path / "m.tif", 2100), IDS == 7)
    assert np.array_equal(load_mask(tmp_path / "m.tif"), IDS > 0)


@pytest.mark.field("B03")
def test_ids_with_void_and_ids_of_many_objects_are_exact() -> None:
    labels = IDS.copy()
    labels[30:32, 5:40] = 255
    assert mask_of_picture(Image.fromarray(labels), Path("m")).kind == "ids"
    many = np.kron(np.arange(200, dtype=np.uint8).reshape(10, 20), np.ones((6, 6), np.uint8))
    file = mask_of_picture(Image.fromarray(many), Path("m"))
    assert file.kind == "ids" and file.select(199).sum() == 36


@pytest.mark.field("B03")
def test_several_colours_are_a_mask_but_not_ids() -> None:
    colours = np.zeros((64, 96, 3), np.uint8)
    colours[IDS == 1] = (255, 0, 0)
    colours[IDS == 2] = (0, 90, 0)
    colours[IDS == 7] = (0, 0, 40)
    file = mask_of_picture(Image.fromarray(colours), Path("m.png"))
    assert np.array_equal(file.mask, IDS > 0)
    with pytest.raises(ValueError, match=r"m\.png: .*colours in place of ids"):
        file.select(1)


def resized(image: Image.Image) -> Image.Image:
    return image.resize((128, 128), Image.Resampling.LANCZOS)


def levels(steps: int) -> Array:
    return ((SMOOTH / 255 * steps).round() * (255 / steps)).round().astype(np.uint8)


LARGE = np.hypot(*(np.mgrid[0:512, 0:512] - 255.5)) <= 119.6

SOFT: dict[str, Callable[[], Image.Image]] = {
    "L": lambda: Image.fromarray(SMOOTH),
    "RGB": lambda: Image.fromarray(stack(SMOOTH, SMOOTH, SMOOTH)),
    "RGB red": lambda: Image.fromarray(stack(SMOOTH, SMOOTH * 0, SMOOTH * 0)),
    "RGBA mask in alpha": lambda: Image.fromarray(
        stack(SMOOTH | 255, SMOOTH * 0, SMOOTH * 0, SMOOTH)
    ),
    "LA mask in alpha": lambda: Image.fromarray(stack(SMOOTH * 0, SMOOTH), "LA"),
    "P quantized": lambda: Image.fromarray(stack(SMOOTH, SMOOTH, SMOOTH)).quantize(16),
    "P six levels": lambda: Image.fromarray(levels(5)).convert("RGB").quantize(8),
    "L four levels": lambda: Image.fromarray(levels(3)),
    "I;16": lambda: Image.fromarray(SMOOTH.astype(np.uint16) * 257),
    "F": lambda: Image.fromarray(SMOOTH.astype(np.float32) / 255),
    "Lanczos": lambda: resized(Image.fromarray(LARGE.astype(np.uint8) * 255)),
    "Lanczos RGB": lambda: resized(Image.fromarray(LARGE.astype(np.uint8) * 255).convert("RGB")),
}


@pytest.mark.field("B04")
@pytest.mark.parametrize("kind", SOFT)
def test_soft_masks_are_cut_at_half(kind: str) -> None:
    file = mask_of_picture(SOFT[kind](), Path("m.png"))
    assert file.area == pytest.approx(DISC.sum(), rel=0.01)
    with pytest.raises(ValueError, match=r"m\.png: .*in place of ids"):
        file.select(1)


@pytest.mark.field("B04")
@pytest.mark.parametrize("quality", [60, 75, 90, 95])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp"])
def test_compression_does_not_change_the_area(
    mode: str, quality: int, suffix: str, tmp_path: Path
) -> None:
    image = Image.fromarray(DISC.astype(np.uint8) * 255).convert("RGB").convert(mode)
    path = tmp_path / f"m{suffix}"
    if suffix == ".webp" and mode == "CMYK":
        image = image.convert("RGB")
    image.save(path, quality=quality, **({"compression": "jpeg"} if suffix == ".tif" else {}))
    assert load_mask(path).sum() == pytest.approx(DISC.sum(), rel=0.01)
    with pytest.raises(ValueError, match="in place of ids"):
        load_mask(path, 1)
    if suffix != ".tif":  # as converters do
        Image.open(path).save(tmp_path / "again.tif")
        assert load_mask(tmp_path / "again.tif").sum() == pytest.approx(DISC.sum(), rel=0.01)


@pytest.mark.field("B04")
@pytest.mark.parametrize("ids", [IDS, IDS * 30])
def test_ids_in_a_lossy_file_are_refused(ids: Array, tmp_path: Path) -> None:
    Image.fromarray(ids).save(tmp_path / "m.jpg")
    for object_id in (None, 1):
        with pytest.raises(ValueError, match=r"m\.jpg: was compressed with loss.*save them as PNG"):
            load_mask(tmp_path / "m.jpg", object_id)


@pytest.mark.field("B04")
def test_a_faint_soft_mask_is_refused() -> None:
    bump = (np.exp(-((RADIUS / 30) ** 2)) * 200).astype(np.uint8)
    with pytest.raises(ValueError, match=r"may be a soft mask or ids; save"):
        mask_of_picture(Image.fromarray(bump), Path("m.png"))


@pytest.mark.field("B13")
def test_the_orientation_tag_is_applied_on_request(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(FULL).save(tmp_path / "m.png", exif=exif)
    assert np.array_equal(load_mask(tmp_path / "m.png"), SQUARE)
    assert np.array_equal(load_mask(tmp_path / "m.png", upright=True), np.rot90(SQUARE, -1))
    palette(IDS, *DAVIS_PALETTE).save(tmp_path / "p.png", exif=exif)
    assert np.array_equal(
        read_mask_file(tmp_path / "p.png", upright=True).labels, np.rot90(IDS, -1)
    )


@pytest.mark.field("B03")
def test_masks_of_no_and_of_every_pixel_are_worth_a_note() -> None:
    assert note_on_mask("m.png", SQUARE) is None
    assert note_on_mask("m.png", SQUARE & False) == "mask m.png: covers no pixel of the image"
    assert note_on_mask("m.png", SQUARE | True) == "mask m.png: covers every pixel of the image"
