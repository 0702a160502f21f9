"""Video files: exact frames in any order; damaged and malicious files are refused at once.

Robustness row 32.
"""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sam2_fast.io.mp4_header import check_sample_counts
from sam2_fast.io.video import open_video

av = pytest.importorskip("av", reason="video files need PyAV")

MakeVideo = Callable[..., Path]


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


FILES = [
    ("b_frames.mp4", "libx264", {"g": "12", "bf": "3"}),
    (
        "open_gop.mp4",
        "libx264",
        {"x264-params": "keyint=10:min-keyint=10:open-gop=1:bframes=3:scenecut=0"},
    ),
    ("intra_refresh.mp4", "libx264", {"x264-params": "keyint=10:intra-refresh=1:bframes=0"}),
    ("one_key.mkv", "libx264", {"g": "1000"}),
    ("stream.ts", "libx264", {"g": "10", "bf": "2"}),
    ("short.mov", "mpeg4", {"g": "8"}),
    ("simple.avi", "mpeg4", {"g": "8"}),
    ("b_frames.avi", "mpeg4", {"g": "8", "bf": "2"}),
    ("h264.avi", "libx264", {"g": "8", "bf": "2"}),
    ("stills.avi", "mjpeg", {}),
    (
        "hidden_frames.webm",
        "libvpx",
        {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "12", "arnr-maxframes": "3"},
    ),
    (
        "superframes.webm",
        "libvpx-vp9",
        {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "12", "cpu-used": "8"},
    ),
    (
        "x265.mp4",
        "libx265",
        {"x265-params": "keyint=10:min-keyint=10:open-gop=1:bframes=3:log-level=none"},
    ),
    ("av1.mp4", "libsvtav1", {"preset": "12", "g": "12"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), FILES, ids=[file[0] for file in FILES])
def test_frames_in_any_order_equal_those_of_a_sequential_decode(
    make_video: MakeVideo, name: str, codec: str, options: dict
) -> None:
    path = make_video(name, frames=45, codec=codec, **options)
    expected = decoded(path)
    with open_video(path) as video:
        assert (video.num_frames, video.height, video.width) == (len(expected), 48, 64)
        order = [*range(45), *reversed(range(45)), *random.Random(0).sample(range(45), 30)]
        video.window = 4
        wrong = [index for index in order if not np.array_equal(video[index], expected[index])]
        assert wrong == []
        assert len(video._recent) <= 4


def test_a_video_can_be_read_from_bytes(make_video: MakeVideo) -> None:
    path = make_video("clip.mp4", frames=10)
    with open_video(path.read_bytes()) as video:
        assert video.fps == 25
        assert np.array_equal(video[9], decoded(path)[9])


@pytest.mark.parametrize(
    ("degrees", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))]
)
def test_rotation_metadata_is_applied_as_by_video_players(
    make_video: MakeVideo, degrees: int, matrix: tuple[int, ...]
) -> None:
    path = make_video("clip.mp4", frames=5)
    upright = decoded(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 65536 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    with open_video(bytes(data)) as video:
        rotated = np.rot90(upright[2], -degrees // 90)
        assert video[2].shape == (video.height, video.width, 3) == rotated.shape
        assert np.array_equal(video[2], rotated)


def test_a_truncated_file_without_an_index_has_its_remaining_frames(make_video: MakeVideo) -> None:
    path = make_video("clip.mkv", frames=45, g="5")
    expected = decoded(path)
    with open_video(path.read_bytes()[: path.stat().st_size // 2]) as video:
        assert 5 < len(video) < 45
        for index in range(len(video) - 1):
            assert np.array_equal(video[index], expected[index])


def assert_refused(data: bytes | Path, message: str, **limits: int) -> None:
    """Opening raises a ValueError of one line within a second."""
    started = time.thread_time()
    with pytest.raises(ValueError, match=message) as caught:
        open_video(data, **limits)
    assert time.thread_time() - started < 1
    assert "\n" not in str(caught.value)


def test_a_truncated_mp4_is_refused(make_video: MakeVideo) -> None:
    path = make_video("clip.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(path, "clip.mp4: cannot be read as a video")


def test_a_video_without_frames_is_refused(make_video: MakeVideo) -> None:
    assert_refused(
        make_video("none.mp4", frames=0), "none.mp4: (no frames|no video stream|cannot be read)"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 5000,
        b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ],
)
def test_garbage_and_playlists_are_refused(data: bytes, tmp_path: Path) -> None:
    assert_refused(data, "cannot be read as a video")
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    assert_refused(path, "clip.mp4: cannot be read as a video")


def claim_samples(path: Path, count: int) -> bytes:
    """The file, with a sample table that claims `count` samples of one fixed size."""
    data = bytearray(path.read_bytes())
    start = data.index(b"stsz") + 8
    data[start : start + 8] = struct.pack(">II", 4, count)
    start = data.index(b"stts") + 8
    data[start : start + 12] = struct.pack(">III", 1, count, 512)
    start = data.index(b"stsc") + 8
    data[start : start + 16] = struct.pack(">IIII", 1, 1, count, 1)
    return bytes(data)


@pytest.mark.parametrize("count", [20_000_000, 10**9, 2**32 - 1])
def test_a_header_that_claims_very_many_frames_is_refused_at_once(
    make_video: MakeVideo, count: int
) -> None:
    assert_refused(claim_samples(make_video("clip.mp4"), count), f"claims {count} samples")


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def track(handler: bytes, count: int, ticks: int = 1) -> bytes:
    sizes = box(b"stsz", struct.pack(">III", 0, 4, count))
    times = box(b"stts", struct.pack(">IIII", 0, 1, count, ticks))
    tables = box(b"minf", box(b"stbl", sizes, times))
    return box(b"trak", box(b"mdia", box(b"hdlr", bytes(8), handler, bytes(12)), tables))


FRAGMENT = box(b"moof", box(b"traf", box(b"trun", struct.pack(">II", 0, 10**9))))


@pytest.mark.parametrize(
    ("parts", "is_accepted"),
    [
        ((box(b"moov", track(b"soun", 10**8)),), True),
        ((box(b"moov", track(b"soun", 10**8, ticks=1024)),), False),
        ((box(b"moov", track(b"soun", 10**8), track(b"vide", 10**8)),), False),
        ((box(b"moov", track(b"soun", 10**8), track(b"vide", 900)),), True),
        ((box(b"moov"), FRAGMENT), False),
        ((box(b"moov", box(b"cmov", bytes(40))),), False),
        (
            (struct.pack(">I4sQ", 1, b"mdat", 24), bytes(8), box(b"moov", track(b"vide", 2000))),
            False,
        ),
        ((box(b"free", bytes(4)), struct.pack(">I4s", 3, b"moov")), True),
    ],
    ids=[
        "uncompressed sound",
        "compressed sound",
        "picture",
        "both",
        "fragment",
        "compressed header",
        "64-bit length",
        "broken length",
    ],
)
def test_headers_that_claim_too_many_samples_are_refused(
    parts: tuple[bytes, ...], is_accepted: bool
) -> None:
    data = box(b"ftyp", b"isom" + bytes(4)) + b"".join(parts)
    if is_accepted:
        check_sample_counts(io.BytesIO(data), len(data), 1000, "video")
    else:
        with pytest.raises(ValueError, match=r"video: (the header claims|compressed)"):
            check_sample_counts(io.BytesIO(data), len(data), 1000, "video")


def test_files_over_the_limits_are_refused(make_video: MakeVideo) -> None:
    path = make_video("clip.mp4", frames=20)
    assert_refused(path, "limit is 5; raise it with max_frames=", max_frames=5)
    assert_refused(
        make_video("clip.mkv", frames=20), "more than 5 frames.*max_frames=", max_frames=5
    )
    message = "clip.mp4: 64 x 48 is 3072 pixels, the limit is 3000; raise it with max_pixels="
    assert_refused(path, message, max_pixels=3000)


def test_the_other_frames_of_a_file_with_a_damaged_frame_can_be_read(make_video: MakeVideo) -> None:
    path = make_video("clip.mp4", frames=30, codec="mpeg4", g="1")
    expected = decoded(path)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) // 2
    data[middle : middle + 40] = bytes(40)
    intact = 0
    with open_video(bytes(data)) as video:
        for index in range(len(video)):
            try:
                intact += np.array_equal(video[index], expected[index])
            except ValueError:
                continue
    assert intact >= 27


def test_a_container_that_cannot_seek_is_read_from_its_start(make_video: MakeVideo) -> None:
    class Unseekable:
        """The container, but seeking fails as with a damaged index."""

        def __init__(self, container: object) -> None:
            self._container = container

        def __getattr__(self, name: str) -> object:
            return getattr(self._container, name)

        def seek(self, *_: object, **__: object) -> None:
            raise av.error.PermissionError(1, "Operation not permitted")

    path = make_video("clip.mp4", frames=30, g="5")
    expected = decoded(path)
    with open_video(path) as video:
        video._container = Unseekable(video._container)
        assert np.array_equal(video[22], expected[22])


def test_an_unknown_codec_is_refused_with_the_name_of_the_file(make_video: MakeVideo) -> None:
    path = make_video("clip.mkv")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ"))
    assert_refused(path, "clip.mkv: (no decoder|no video stream|no frames|cannot be read)")


def test_without_pyav_the_error_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"x")
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from sam2_fast.io.video import open_video\n"
        "try: open_video(sys.argv[1])\n"
        "except ImportError as error: sys.exit(0 if 'sam2-fast[video]' in str(error) else 'wrong "
        "message')\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "clip.mp4")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr


def test_a_real_video_in_any_order(real: Path) -> None:
    expected = decoded(real / "bedroom.mp4")
    with open_video(real / "bedroom.mp4") as video:
        assert (video.num_frames, video.height, video.width, video.fps) == (200, 540, 960, 30)
        for index in (0, 1, 2, 150, 149, 148, 30, 199):
            assert np.array_equal(video[index], expected[index])
