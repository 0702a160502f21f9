"""A file that is cut off anywhere has exactly the frames that one decoder thread gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from sam2_fast.io.video import open_video
from tests.field.field_media import decoded, write_video

B_FRAMES = {"g": "12", "bf": "3"}
OPEN_GROUPS = {"x264-params": "keyint=10:min-keyint=10:open-gop=1:bframes=3:scenecut=0"}
OPEN_GROUPS_265 = {"x265-params": "keyint=10:min-keyint=10:open-gop=1:bframes=3:log-level=none"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "12", "cpu-used": "8"}
START = {"movflags": "faststart"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}

FILES = {
    "faststart.mp4": ("libx264", B_FRAMES, START),
    "faststart_open.mp4": ("libx264", OPEN_GROUPS, START),
    "faststart_one_key.mp4": ("libx264", {"g": "1000", "bf": "3"}, START),
    "faststart_mpeg4.mp4": ("mpeg4", {"g": "8", "bf": "2"}, START),
    "fragments.mp4": ("libx264", B_FRAMES, FRAGMENTS),
    "hevc.mp4": ("libx265", OPEN_GROUPS_265, START),
    "end.mov": ("libx264", B_FRAMES, {}),
    "b.mkv": ("libx264", B_FRAMES, {}),
    "hidden.webm": ("libvpx", HIDDEN, {}),
    "vp9.webm": ("libvpx-vp9", HIDDEN, {}),
    "b.ts": ("libx264", B_FRAMES, {}),
    "open.ts": ("libx264", OPEN_GROUPS, {}),
    "mpeg2.ts": ("mpeg2video", {"g": "8", "bf": "2"}, {}),
    "b.flv": ("libx264", B_FRAMES, {}),
    "h264.avi": ("libx264", B_FRAMES, {}),
    "mpeg4.avi": ("mpeg4", {"g": "8", "bf": "2"}, {}),
    "raw.h264": ("libx264", B_FRAMES, {}),
}


def source(path: Path, count: int = 40) -> bytes:
    codec, options, container_options = FILES[path.name]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no encoder {codec}")
    write_video(path, range(count), codec=codec, container_options=container_options, **options)
    return path.read_bytes()


def cuts(size: int, count: int) -> Iterator[int]:
    for number in range(1, count):
        yield size * number // count + number % 7


def difference(data: bytes) -> str:
    """How the file differs from a sequential decode; empty if it does not."""
    try:
        expected = decoded(data)
    except (av.FFmpegError, IndexError):
        expected = []
    try:
        video = open_video(data)
    except ValueError as error:
        return "" if not expected else f"{len(expected)} frames, refused: {error}"
    with video:
        if len(video) != len(expected):
            return f"{len(expected)} frames, listed {len(video)}"
        order = [*range(len(video)), len(video) - 1, len(video) // 2]
        for index in order:
            if not np.array_equal(video[index], expected[index][1]):
                return f"frame {index} of {len(expected)} differs"
    return ""


@pytest.mark.field("B33")
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_has_the_frames_before_the_cut(tmp_path: Path, name: str) -> None:
    data = source(tmp_path / name)
    differences = {cut: difference(data[:cut]) for cut in cuts(len(data), 14)}
    assert {cut: text for cut, text in differences.items() if text} == {}
    assert difference(data) == ""


@pytest.mark.field("B33")
@pytest.mark.parametrize("name", ["faststart.mp4", "fragments.mp4", "b.ts", "b.flv"])
def test_the_last_frames_before_a_cut_can_be_read_backwards(tmp_path: Path, name: str) -> None:
    data = source(tmp_path / name)
    data = data[: len(data) * 4 // 5]
    expected = decoded(data)
    with open_video(data) as video:
        assert len(video) == len(expected) > 20
        video.window = 3
        for index in reversed(range(len(video))):
            assert np.array_equal(video[index], expected[index][1]), index


@pytest.mark.field("B33")
@pytest.mark.parametrize("name", ["b.mkv", "faststart.mp4", "b.ts"])
def test_frames_around_damage_in_the_middle_can_be_read(tmp_path: Path, name: str) -> None:
    data = bytearray(source(tmp_path / name))
    middle = len(data) // 2
    data[middle : middle + 30] = bytes(30)
    intact = decoded(tmp_path / name)
    with open_video(bytes(data)) as video:
        equal = 0
        for index in range(len(video)):
            try:
                equal += any(np.array_equal(video[index], pixels) for _, pixels in intact)
            except ValueError as error:
                assert "cannot be decoded" in str(error)
    assert equal >= 20


@pytest.mark.field("B33")
def test_a_stream_that_was_joined_late_has_its_readable_frames(tmp_path: Path) -> None:
    data = source(tmp_path / "b.ts")
    for start in range(0, len(data) // 2, 188 * 9):
        assert difference(data[start:]) == "", start
