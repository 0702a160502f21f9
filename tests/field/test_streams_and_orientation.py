"""Which stream of a file is the video, and how its frames and pictures are shown upright."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sam2_fast.io.images import as_rgb_uint8, image_orientation, image_size, load_image
from sam2_fast.io.video import open_video
from tests.field.field_media import box, decoded, picture, with_matrix, write_video

SHOWN: dict[tuple[int, int, int, int], Any] = {
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
    (0, -1, -1, 0): lambda p: np.rot90(p, 2).swapaxes(0, 1),
}
"""Matrices (a, b, c, d) and what FFmpeg shows: nothing, hflip, vflip, hflip and vflip,
transpose=clock, =cclock, =cclock_flip, =clock_flip."""


@pytest.mark.field("B10")
@pytest.mark.parametrize("scale", [1, 1.5])
@pytest.mark.parametrize("matrix", SHOWN, ids=str)
def test_all_eight_orientations_are_applied(
    tmp_path: Path, matrix: tuple[int, int, int, int], scale: float
) -> None:
    path = write_video(tmp_path / "clip.mp4")
    stored = [pixels for _, pixels in decoded(path)]
    data = with_matrix(path.read_bytes(), [value * scale for value in matrix])
    with open_video(data) as video:
        for index in (0, 7, 3):
            expected = SHOWN[matrix](stored[index])
            assert expected.shape == (video.height, video.width, 3)
            assert np.array_equal(video[index], expected)


@pytest.mark.field("B10")
@pytest.mark.parametrize(
    "matrix", [(0.7071, 0.7071, -0.7071, 0.7071), (1, 0.5, 0, 1), (1, 1, 0, 1)]
)
def test_other_angles_and_shears_are_refused(tmp_path: Path, matrix: tuple[float, ...]) -> None:
    path = write_video(tmp_path / "clip.mp4")
    path.write_bytes(with_matrix(path.read_bytes(), matrix))
    with pytest.raises(ValueError, match=r"clip\.mp4: its display matrix.*multiple of 90 degrees"):
        open_video(path)


@pytest.mark.field("B10")
def test_a_matrix_of_zeros_and_small_errors_count_as_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    stored = decoded(path)[0][1]
    for matrix in ((0, 0, 0, 0), (1, 0.001, -0.001, 1)):
        with open_video(with_matrix(path.read_bytes(), matrix)) as video:
            assert np.array_equal(video[0], stored)


def two_streams(path: Path, first: tuple[int, int], second: tuple[int, int]) -> Path:
    """Two real streams with 6 and 9 frames."""
    with av.open(str(path), "w") as container:
        streams = []
        for height, width in (first, second):
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.disposition = 1  # default, as is every stream of dash cameras
            streams.append(stream)
        for stream, size, count in zip(streams, (first, second), (6, 9), strict=True):
            for index in range(count):
                frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


@pytest.mark.field("B09")
@pytest.mark.parametrize("name", ["two.mp4", "two.mkv", "two.ts", "two.avi"])
@pytest.mark.parametrize(
    ("first", "second", "frames"),
    [((48, 64), (96, 128), 9), ((96, 128), (48, 64), 6), ((48, 64), (48, 64), 6)],
)
def test_the_largest_of_several_streams_is_chosen(
    tmp_path: Path, name: str, first: tuple[int, int], second: tuple[int, int], frames: int
) -> None:
    path = two_streams(tmp_path / name, first, second)
    with open_video(path) as video:
        assert (video.height, video.width) == max(first, second)
        assert len(video) == frames
        video[frames - 1]
        assert np.array_equal(video[0], decoded(path, 0 if frames == 6 else 1)[0][1])


@pytest.mark.field("B09")
def test_a_default_stream_comes_before_a_larger_one(tmp_path: Path) -> None:
    data = bytearray(two_streams(tmp_path / "two.mp4", (48, 64), (96, 128)).read_bytes())
    second = data.index(b"tkhd", data.index(b"tkhd") + 1)
    data[second + 7] &= 0xFE  # not enabled
    with open_video(bytes(data)) as video:
        assert (len(video), video.height, video.width) == (6, 48, 64)


@pytest.mark.field("B09")
def test_a_stream_without_a_decoder_is_not_chosen(tmp_path: Path) -> None:
    path = two_streams(tmp_path / "two.mkv", (96, 128), (48, 64))
    name = b"V_MPEG4/ISO/ASP"
    path.write_bytes(path.read_bytes().replace(name, b"V_MPEG9/ISO/XYZ", 1))
    with open_video(path) as video:
        assert (len(video), video.height, video.width) == (9, 48, 64)
    path.write_bytes(path.read_bytes().replace(name, b"V_MPEG9/ISO/XYZ"))
    with pytest.raises(ValueError, match=r"two\.mkv: no decoder for its video stream"):
        open_video(path)


def jpeg(size: tuple[int, int] = (100, 100)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "JPEG")
    return buffer.getvalue()


def cover_box() -> bytes:
    """A `udta` box with a JPEG cover, as taggers of MP4 files write it."""
    image = box(b"data", struct.pack(">II", 13, 0), jpeg())
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    return box(b"udta", box(b"meta", bytes(4), handler, box(b"ilst", box(b"covr", image))))


def with_cover(data: bytes, first: bool) -> bytes:
    """An MP4 file, whose `moov` is at its end, with a cover in front of or behind its tracks."""
    start = data.index(b"moov") - 4
    body = data[start + 8 :]
    header = 8 + struct.unpack(">I", body[:4])[0] - 8  # behind `mvhd`
    position = header if first else len(body)
    return data[:start] + box(b"moov", body[:position], cover_box(), body[position:])


@pytest.mark.field("B09")
@pytest.mark.parametrize("first", [True, False])
def test_a_cover_is_not_the_video(tmp_path: Path, first: bool) -> None:
    path = write_video(tmp_path / "clip.mp4")
    stored = decoded(path)
    data = with_cover(path.read_bytes(), first)
    with av.open(io.BytesIO(data)) as container:
        assert len(container.streams.video) == 2
    with open_video(data) as video:
        assert (len(video), video.height, video.width, video.fps) == (10, 48, 64, 25)
        assert np.array_equal(video[9], stored[9][1])


def sound_file(path: Path, codec: str) -> bytes:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no encoder {codec}")
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec, rate=48000, layout="mono")
        for index in range(20):
            silence = np.zeros((1, 1024), np.float32)
            wave = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            wave.sample_rate, wave.pts, wave.time_base = 48000, 1024 * index, Fraction(1, 48000)
            for part in av.AudioResampler(sound.format, "mono", 48000).resample(wave):
                container.mux(sound.encode(part))
        container.mux(sound.encode(None))
    return path.read_bytes()


def id3_cover() -> bytes:
    body = b"\0image/jpeg\0\3\0" + jpeg()
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = len(frame)
    digits = bytes((size >> shift) & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + digits + frame


@pytest.mark.field("B32")
@pytest.mark.parametrize("kind", ["m4a", "mp3", "flac", "ogg", "mka", "wav"])
def test_sound_files_have_no_video_stream(tmp_path: Path, kind: str) -> None:
    codecs = {"m4a": "aac", "mp3": "libmp3lame", "flac": "flac", "ogg": "flac", "mka": "flac"}
    path = tmp_path / f"song.{kind}"
    data = sound_file(path, codecs.get(kind, "pcm_s16le"))
    if kind == "m4a":
        data = with_cover(data, first=True)
    if kind == "mp3":
        data = id3_cover() + data
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"song\.\w+: no video stream in the file"):
        open_video(path)


def oriented(path: Path, orientation: int) -> Path:
    """An image with an orientation tag, of which the pixels depend on their position."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(picture(3, 24, 40))
    if path.suffix == ".tif":
        image.save(path, tiffinfo={0x0112: orientation})
    else:
        options = {"lossless": True} if path.suffix == ".webp" else {"quality": 95}
        image.save(path, exif=exif.tobytes(), **options)
    return path


APPLIED: dict[int, Any] = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.field("B13")
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", APPLIED)
def test_images_are_upright_on_request(tmp_path: Path, kind: str, orientation: int) -> None:
    path = oriented(tmp_path / f"image.{kind}", orientation)
    assert image_orientation(path) == orientation
    plain = Image.open(oriented(tmp_path / f"plain.{kind}", 1)).convert("RGB")
    expected = APPLIED[orientation](np.asarray(plain))
    assert np.array_equal(load_image(path, upright=True), expected)
    assert image_size(path, upright=True) == expected.shape[:2]
    stored = np.asarray(Image.open(path).convert("RGB"))  # the pixels of the official code
    assert np.array_equal(load_image(path), stored)
    assert np.array_equal(as_rgb_uint8(path), stored)
    assert image_size(path) == stored.shape[:2]
    for source in (tmp_path, [path], path, path.read_bytes()):
        (tmp_path / f"plain.{kind}").unlink(missing_ok=True)
        with open_video(source, upright=True) as video:
            assert (video.height, video.width) == expected.shape[:2]
            assert np.array_equal(video[0], expected)
            video.check_sizes()
        with open_video(source) as video:
            assert np.array_equal(video[0], stored)


BROKEN = {
    "empty": b"",
    "no header": b"garbage garbage",
    "cut off": b"MM\0*\0\0\0\x08\0\x01",
    "far away": b"MM\0*\xff\xff\xff\xff",
    "value 9": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
    "value 0": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0",
    "a text": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01A\0\0\0\0\0\0\0",
}


@pytest.mark.field("B13")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("exif", BROKEN.values(), ids=BROKEN)
def test_a_broken_tag_counts_as_upright(tmp_path: Path, kind: str, exif: bytes) -> None:
    path = tmp_path / f"image.{kind}"
    Image.fromarray(picture(3)).save(path, exif=b"Exif\0\0" + exif)
    assert image_orientation(path) == 1
    assert load_image(path, upright=True).shape == (48, 64, 3)
    assert image_size(path, upright=True) == (48, 64)


@pytest.mark.field("B13")
def test_a_tag_behind_the_pixels_of_a_png_file_counts(tmp_path: Path) -> None:
    data = oriented(tmp_path / "image.png", 6).read_bytes()
    start = data.index(b"eXIf") - 4
    stop = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    end = data.index(b"IEND") - 4
    (tmp_path / "image.png").write_bytes(
        data[:start] + data[stop:end] + data[start:stop] + data[end:]
    )
    assert image_orientation(tmp_path / "image.png") == 6
    assert load_image(tmp_path / "image.png", upright=True).shape == (40, 24, 3)


@pytest.mark.field("U08")
def test_a_video_has_at_most_four_decoder_threads(tmp_path: Path) -> None:
    with open_video(write_video(tmp_path / "clip.mp4")) as video:
        context = video._stream.codec_context  # type: ignore[attr-defined]
        assert 1 <= context.thread_count <= 4
