"""Animated pictures and pages are videos; the content of a file decides what it is."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from sam2_fast.io.images import load_image
from sam2_fast.io.video import open_video
from tests.field.field_media import picture, write_video

DURATIONS = [40, 40, 200, 100, 60, 500, 40]
FORMATS = {"gif": "GIF", "webp": "WEBP", "png": "PNG"}


def animation(kind: str, durations: list[int] | None = None, **options: Any) -> bytes:
    """An animation of smooth pictures; durations in milliseconds."""
    durations = DURATIONS if durations is None else durations
    images = [Image.fromarray(picture(index)) for index in range(len(durations))]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        FORMATS[kind],
        save_all=True,
        append_images=images[1:],
        duration=durations if len(durations) > 1 else durations[0],
        loop=0,
        **({"lossless": True} if kind == "webp" else {}) | options,
    )
    return buffer.getvalue()


def composed(data: bytes) -> list[np.ndarray]:
    """All frames by Pillow, one after the other."""
    with Image.open(io.BytesIO(data)) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


@pytest.mark.field("B11")
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("suffix", ["", ".gif", ".webp", ".png", ".apng", ".jpg", ".mp4", ".WEBP"])
def test_an_animation_is_a_video_whatever_it_is_called(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    data = animation(kind)
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(data)
    expected = composed(data)
    with open_video(path) as video:
        assert (len(video), video.height, video.width) == (7, 48, 64)
        assert all(np.array_equal(video[i], expected[i]) for i in range(7))
        starts = [sum(DURATIONS[:index]) / 1000 for index in range(7)]
        assert [video.frame_time(i) for i in range(7)] == pytest.approx(starts)
        assert video.fps == pytest.approx(7 / 0.98)
        assert video.frame_name(3) == "00003"


@pytest.mark.field("B11")
@pytest.mark.parametrize("kind", FORMATS)
def test_frames_of_an_animation_are_read_in_any_order(kind: str) -> None:
    data = animation(kind, [40] * 30)
    expected = composed(data)
    with open_video(data) as video:
        assert (len(video), video.fps) == (30, 25)
        video.window = 4
        order = [*reversed(range(30)), *random.Random(0).sample(range(30), 30), 29, 0]
        assert all(np.array_equal(video[i], expected[i]) for i in order)
        assert len(video._recent) <= 4
        copy = pickle.loads(pickle.dumps(video))
        assert np.array_equal(copy[17], expected[17])
        wrong: list[int] = []

        def read(seed: int) -> None:
            for index in random.Random(seed).sample(range(30), 10):
                if not np.array_equal(video[index], expected[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


@pytest.mark.field("B11")
@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_frames_are_drawn_over_earlier_ones(disposal: int) -> None:
    images = [Image.new("P", (64, 48), 0) for _ in range(4)]
    for index, image in enumerate(images):
        image.putpalette([40, 40, 40, 255, 0, 0, 0, 0, 255])
        image.paste(1 + index % 2, (index * 10, 10, index * 10 + 8, 20))
    buffer = io.BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=50, disposal=disposal
    )
    expected = composed(buffer.getvalue())
    with open_video(buffer.getvalue()) as video:
        for index in (3, 0, 2, 1):
            assert np.array_equal(video[index], expected[index])
            assert tuple(video[index][15, index * 10 + 4]) in ((255, 0, 0), (0, 0, 255))


@pytest.mark.field("B11")
def test_the_default_image_of_an_animated_png_is_not_a_frame() -> None:
    data = animation("png", [100, 100, 100], default_image=True)
    expected = composed(data)
    with open_video(data) as video:
        assert len(video) == len(expected) - 1 == 2
        assert all(np.array_equal(video[i], expected[i + 1]) for i in (1, 0))


@pytest.mark.field("B08")
@pytest.mark.parametrize(("written", "shown"), [(0, 0.1), (10, 0.1), (20, 0.02), (30, 0.03)])
def test_very_short_frames_of_a_gif_last_as_long_as_in_browsers(written: int, shown: float) -> None:
    with open_video(animation("gif", [written] * 3)) as video:
        assert [video.frame_time(i) for i in range(3)] == pytest.approx([0, shown, 2 * shown])
        assert video.fps == pytest.approx(1 / shown)


def pages(path: Path, sizes: list[tuple[int, int]], **options: Any) -> Path:
    images = [Image.fromarray(picture(i, *size)) for i, size in enumerate(sizes)]
    images[0].save(path, "TIFF", save_all=True, append_images=images[1:], **options)
    return path


@pytest.mark.field("B11")
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("name", ["stack.tif", "stack.TIFF", "stack", "stack.mp4"])
def test_pages_of_a_tiff_file_are_frames(tmp_path: Path, name: str, compression: str) -> None:
    path = pages(tmp_path / name, [(48, 64)] * 5, compression=compression)
    with open_video(path) as video:
        assert (len(video), video.fps, video.frame_time(3)) == (5, None, None)
        assert all(np.array_equal(video[i], picture(i)) for i in (4, 0, 3, 1))


@pytest.mark.field("B11")
def test_pages_of_16_bits_are_scaled_like_images(tmp_path: Path) -> None:
    stack = (np.arange(3 * 48 * 64).reshape(3, 48, 64) * 7).astype(np.uint16)
    images = [Image.fromarray(page) for page in stack]
    images[0].save(tmp_path / "s.tif", save_all=True, append_images=images[1:])
    with open_video(tmp_path / "s.tif") as video:
        for index in (2, 0):
            assert np.array_equal(video[index][:, :, 0], (stack[index] + 128.0) // 257)


@pytest.mark.field("B11")
def test_a_page_of_another_size_is_an_error_at_that_page(tmp_path: Path) -> None:
    path = pages(tmp_path / "s.tif", [(48, 64), (20, 30), (48, 64)])
    with open_video(path) as video:
        with pytest.raises(ValueError, match=r"frame 1 is 30 x 20 pixels, the video is 64 x 48"):
            video[1]
        assert np.array_equal(video[2], picture(2))


@pytest.mark.field("B11")
@pytest.mark.parametrize("kind", ["png", "gif", "webp", "jpeg", "bmp", "tiff", "ppm"])
@pytest.mark.parametrize("name", ["still", "still.mp4", "still.PNG"])
def test_a_still_picture_is_one_frame(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(picture(2)).save(path, kind)
    expected = np.asarray(Image.open(path).convert("RGB"))
    for source in (path, path.read_bytes()):
        with open_video(source) as video:
            assert (len(video), video.fps, video.frame_time(0)) == (1, None, None)
            assert np.array_equal(video[0], expected)


@pytest.mark.field("B11")
@pytest.mark.parametrize("name", ["clip.png", "clip.JPG", "clip", "clip.webp", "clip.gif"])
def test_a_video_file_is_read_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    data = write_video(tmp_path / "clip.mp4").read_bytes()
    (tmp_path / name).write_bytes(data)
    with open_video(tmp_path / name) as video:
        assert (len(video), video.fps) == (10, 25)


@pytest.mark.field("B11")
def test_motion_jpeg_is_a_video_and_a_photograph_with_a_preview_is_not(tmp_path: Path) -> None:
    parts = []
    for index in range(3):
        buffer = io.BytesIO()
        Image.fromarray(picture(index)).save(buffer, "JPEG")
        parts.append(buffer.getvalue())
    with open_video(b"".join(parts)) as video:
        assert len(video) == 3
    photograph = io.BytesIO()
    images = [Image.fromarray(picture(index)) for index in range(2)]
    images[0].save(photograph, "MPO", save_all=True, append_images=images[1:])
    with open_video(photograph.getvalue()) as video:
        assert len(video) == 1


@pytest.mark.field("B11")
@pytest.mark.parametrize("kind", FORMATS)
def test_animations_over_the_limits_are_refused(kind: str) -> None:
    data = animation(kind)
    with pytest.raises(ValueError, match=r"more than 5 frames; raise .* max_frames="):
        open_video(data, max_frames=5)
    with pytest.raises(ValueError, match="limit is 3000; raise it with max_pixels="):
        open_video(data, max_pixels=3000)


@pytest.mark.field("B11")
@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_listed_frames_of_an_animation_that_is_cut_off_can_be_read(kind: str) -> None:
    data = animation(kind)
    expected = composed(data)
    counts = []
    for size in range(40, len(data), max(1, len(data) // 60)):
        try:
            video = open_video(data[:size])
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        with video:
            counts.append(len(video))
            for index in range(len(video)):
                assert np.array_equal(video[index], expected[index])
    assert counts == sorted(counts)
    assert kind == "webp" or counts[-1] >= 6


@pytest.mark.field("B11")
def test_a_damaged_frame_is_an_error_that_names_it(tmp_path: Path) -> None:
    data = bytearray(animation("png"))
    start = data.index(b"fdAT", len(data) // 2) - 4
    length = struct.unpack_from(">I", data, start)[0]
    body = bytes(data[start + 4 : start + 12]) + bytes(length - 4)
    data[start + 4 : start + 12 + length] = body + struct.pack(">I", zlib.crc32(body))
    path = tmp_path / "clip.png"
    path.write_bytes(bytes(data))
    with open_video(path) as video:
        errors = []
        for index in range(7):
            try:
                video[index]
            except ValueError as error:
                errors.append(str(error))
        assert errors and all("clip.png: frame " in text for text in errors)
        assert np.array_equal(video[0], composed(animation("png"))[0])


@pytest.mark.field("U06")
def test_pipes_and_devices_are_refused_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/null"), Path("/dev/zero")):
        for read in (open_video, load_image):
            with pytest.raises(ValueError, match=r"not a regular file.*write the data to a file"):
                read(path)
    with pytest.raises(FileNotFoundError, match=r"video -: no such file .*; write the data"):
        open_video("-")


@pytest.mark.parametrize("head", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"BM"])
def test_broken_pictures_are_refused_in_one_line(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(head)
    for source in (path, head):
        with pytest.raises(ValueError, match=r"not a readable|cannot be|no such|empty") as caught:
            open_video(source)
        assert "\n" not in str(caught.value)
