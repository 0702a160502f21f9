"""Small pictures and videos cannot ask for much memory, by any sum over their parts."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2_fast.io import (
    as_rgb_uint8,
    image_orientation,
    load_image,
    load_mask,
    open_video,
    read_mask_file,
)
from sam2_fast.io.images import image_size
from sam2_fast.io.limits import MAX_STREAMS
from sam2_fast.io.mp4_header import MAX_SOUND_SAMPLES, check_sample_counts
from tests.reliability.costs import cost_of, refusal_of


def gif(side: int, frames: int) -> bytes:
    """An animation of one-pixel changes of a large canvas."""
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    parts = [
        b"!\xf9\x04\x04\x0a\0\0\0," + struct.pack("<HHHHB", i, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
        for i in range(frames)
    ]
    return head + b"".join(parts) + b";"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def apng(side: int, frames: int) -> bytes:
    """An animated PNG of a large canvas of which each frame changes a pixel."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    pixels = compressor.compress(row * side) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"acTL", struct.pack(">II", frames, 0))
    control = struct.pack(">IIIIHHBB", side, side, 0, 0, 1, 10, 0, 0)
    data += chunk(b"fcTL", struct.pack(">I", 0) + control) + chunk(b"IDAT", pixels)
    point = zlib.compress(b"\0\x80")
    for number in range(1, frames):
        control = struct.pack(">IIIIHHBB", 1, 1, 0, 0, 1, 10, 0, 0)
        data += chunk(b"fcTL", struct.pack(">I", 2 * number - 1) + control)
        data += chunk(b"fdAT", struct.pack(">I", 2 * number) + point)
    return data + chunk(b"IEND", b"")


def box(kind: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I", 8 + sum(map(len, parts))) + kind + b"".join(parts)


def track(handler: bytes, samples: int) -> bytes:
    sizes = box(b"stsz", struct.pack(">III", 0, 1, samples))
    times = box(b"stts", struct.pack(">IIII", 0, 1, samples, 2))
    media = box(b"hdlr", bytes(8) + handler + bytes(13)), box(b"minf", box(b"stbl", sizes, times))
    return box(b"trak", box(b"mdia", *media))


def fragment(samples: int, runs: int) -> bytes:
    return box(b"moof", box(b"traf", box(b"trun", struct.pack(">II", 0, samples)) * runs))


def mp4(*parts: bytes) -> bytes:
    return box(b"ftyp", b"isom" + bytes(4)) + b"".join(parts)


HEADERS: dict[str, bytes] = {
    "video tracks": mp4(box(b"moov", track(b"vide", 400_000) * 3)),
    "other tracks": mp4(box(b"moov", track(b"tmcd", 400_000) * 3)),
    "sound tracks": mp4(box(b"moov", track(b"soun", MAX_SOUND_SAMPLES // 2) * 3)),
    "runs of a fragment": mp4(fragment(2_000_000, 8)),
    "fragments": mp4(fragment(2_000_000, 1) * 8),
    "headers": mp4(box(b"moov", track(b"vide", 900_000)) * 2),
}
HOSTILE: dict[str, Callable[[], bytes]] = {
    "GIF": lambda: gif(11_000, 40),
    "animated PNG": lambda: apng(11_000, 40),
    **{name: lambda data=data: data for name, data in HEADERS.items()},  # type: ignore[misc]
}


@pytest.mark.reliability("F10", "32")
@pytest.mark.parametrize("name", HOSTILE)
def test_sums_over_frames_and_tracks_are_refused_in_little_memory(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(HOSTILE[name]())
    outcome = refusal_of("from sam2_fast.io import open_video", "open_video(path)[0]", path)
    argument = "max_pixels=" if name in ("GIF", "animated PNG") else "max_frames="
    assert outcome.startswith("ValueError") and argument in outcome and "hostile" in outcome


@pytest.mark.reliability("32")
def test_many_tracks_are_refused() -> None:
    data = mp4(box(b"moov", track(b"vide", 1) * (MAX_STREAMS + 1)))
    with pytest.raises(ValueError, match=f"more than {MAX_STREAMS} tracks"):
        check_sample_counts(io.BytesIO(data), len(data), 1000, "video")


def test_the_limit_of_frames_at_once_can_be_raised(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((40, 50), 40 * i, np.uint8)) for i in range(6)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"4 frames of 50 x 40.*max_pixels="):
        open_video(tmp_path / "a.gif", max_pixels=4 * 2000 - 1)
    with open_video(tmp_path / "a.gif", max_pixels=4 * 2000) as video:
        assert len(video) == 6
    frames[0].save(tmp_path / "still.gif")
    with open_video(tmp_path / "still.gif", max_pixels=2000) as video:
        assert len(video) == 1


READERS: dict[str, Callable[[Path], object]] = {
    "load_image": load_image,
    "load_mask": load_mask,
    "read_mask_file": read_mask_file,
    "image_size": image_size,
    "image_orientation": image_orientation,
    "open_video": open_video,
    "a list of files": lambda path: open_video([path, path]),
    "a folder": lambda path: open_video(path.parent),
}


@pytest.mark.reliability("32", "F10")
@pytest.mark.parametrize("reader", READERS)
def test_pipes_are_refused_at_once(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0\.png.*not a regular file"):
        READERS[reader](tmp_path / "0.png")


@pytest.mark.reliability("F10")
def test_decoding_an_image_needs_at_most_nine_bytes_a_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (6000, 5000), (1, 2, 3)).save(tmp_path / "a.png", compress_level=1)
    outcome, _, megabytes = cost_of(
        "from sam2_fast.io import load_image", "load_image(path)", tmp_path / "a.png"
    )
    assert outcome == "accepted" and megabytes < 9 * 30


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "YCbCr", "LA", "1"])
def test_strips_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (41, 30, 3)).astype(np.uint8)
    image = Image.fromarray(noise).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    monkeypatch.setattr("sam2_fast.io.images._STRIP_PIXELS", 100)
    assert np.array_equal(as_rgb_uint8(image), expected)
