"""Written videos: times, rates, colours, names of files, and files after errors."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sam2_fast.io.video import open_video
from sam2_fast.io.video_writer import VideoWriter
from tests.field.field_media import SIZE, picture, write_video

SWITCH = [*np.arange(0, 0.99, 0.033).tolist(), *np.arange(0.99, 3.99, 0.1).tolist()]
BROWSER = [(index * 67 + index * index * 13 % 61) / 1000 for index in range(40)]


def write(path: Path, times: list[float] | None = None, count: int = 10, fps: float = 24.0) -> Path:
    with VideoWriter(path, *SIZE, fps=fps) as writer:
        for index in range(count if times is None else len(times)):
            writer.write(picture(index), None if times is None else times[index])
    return path


def duration(path: Path) -> float:
    with av.open(f"file:{path}") as container:
        stream = container.streams.video[0]
        return float(stream.duration * stream.time_base)


@pytest.fixture(params=["libx264", "mpeg4"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The codec of MP4 files, also as it is if FFmpeg lacks H.264."""
    if request.param == "mpeg4":
        monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    return request.param


@pytest.mark.field("B08")
@pytest.mark.parametrize("times", [SWITCH, BROWSER, [index / 7 for index in range(9)]])
@pytest.mark.parametrize("start", [0.0, 123.456, -5.0])
def test_frames_keep_the_times_of_their_source(
    tmp_path: Path, codec: str, times: list[float], start: float
) -> None:
    path = write(tmp_path / "overlay.mp4", [start + time for time in times])
    with open_video(path) as video:
        shown = [video.frame_time(index) for index in range(len(video))]
        assert shown == pytest.approx([time - times[0] for time in times], abs=2e-5)
        assert np.abs(video[5].astype(int) - picture(5)).mean() < 12
    assert duration(path) == pytest.approx(2 * times[-1] - times[-2] - times[0], abs=1e-3)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name.startswith(("h264", codec))


@pytest.mark.field("B08")
def test_an_animated_webp_keeps_the_times_of_its_source(tmp_path: Path) -> None:
    path = write(tmp_path / "overlay.webp", [2 + time for time in SWITCH])
    with open_video(path) as video:
        shown = [video.frame_time(index) for index in range(len(video))]
    assert shown == pytest.approx(SWITCH, abs=1.1e-3)


@pytest.mark.field("B08")
def test_an_overlay_of_a_variable_rate_lasts_as_long_as_its_source(tmp_path: Path) -> None:
    stamps = [*range(0, 990, 33), *range(990, 3990, 100)]
    source = write_video(tmp_path / "v.mkv", stamps, time_base=Fraction(1, 1000))
    with (
        open_video(source) as video,
        VideoWriter(tmp_path / "o.mp4", *SIZE, fps=video.fps or 24.0) as writer,
    ):
        for index in range(len(video)):
            writer.write(video[index], video.frame_time(index))
    assert duration(tmp_path / "o.mp4") == pytest.approx(3.93, abs=0.1)


@pytest.mark.field("B08")
@pytest.mark.parametrize("name", ["r.mp4", "r.webp"])
def test_times_that_do_not_increase_follow_one_millisecond_later(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [0, 0.04, 0.04, 0.03, 0.12, 0.16])
    with open_video(path) as video:
        shown = [video.frame_time(index) for index in range(6)]
        if name.endswith("mp4"):
            assert shown == pytest.approx([0, 0.04, 0.041, 0.042, 0.12, 0.16], abs=2e-5)
        assert shown == sorted(shown)


@pytest.mark.field("B08")
def test_times_must_be_finite_and_of_all_frames(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", *SIZE) as writer:
        for value in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="seconds: expected a finite number"):
                writer.write(picture(0), value)
        writer.write(picture(0), 1.0)
        with pytest.raises(ValueError, match="for all frames of a video, or for none"):
            writer.write(picture(1))
        assert writer.frames == 1


@pytest.mark.field("U02")
@pytest.mark.parametrize("fps", [24, 25, 30000 / 1001, 12.5, 0.1, 1 / 3, 59.94, 1000, 2000, 90000])
def test_every_rate_can_be_written(tmp_path: Path, fps: float) -> None:
    path = write(tmp_path / "overlay.mp4", fps=fps)
    with open_video(path) as video:
        assert len(video) == 10
        assert video.fps == pytest.approx(fps)
    assert duration(path) == pytest.approx(10 / fps, rel=2e-3)


@pytest.mark.field("U02")
@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e9])
def test_rates_that_cannot_be_written_leave_nothing(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ValueError, match=r"fps: expected 0\.001 to 100000"):
        VideoWriter(tmp_path / "overlay.mp4", *SIZE, fps=fps)
    assert list(tmp_path.iterdir()) == []


COLORS = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (0, 255, 255),
    (255, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (128, 128, 128),
    (40, 200, 60),
]


@pytest.mark.field("B30")
@pytest.mark.parametrize("size", [(48, 160), (576, 720), (720, 1280), (480, 1280), (1080, 1920)])
def test_colours_are_right_with_and_without_tags(tmp_path: Path, size: tuple[int, int]) -> None:
    bars = np.zeros((*size, 3), np.uint8)
    width = size[1] // len(COLORS)
    for index, color in enumerate(COLORS):
        bars[:, index * width : (index + 1) * width] = color
    path = tmp_path / "bars.mp4"
    with VideoWriter(path, *size) as writer:
        for _ in range(2):
            writer.write(bars)
    is_large = size[0] >= 720 or size[1] >= 1280
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        frame = next(container.decode(video=0))
        tags = (context.color_range, context.color_primaries, context.color_trc)
        assert tags == (1, 1, 1)
        assert context.colorspace == (1 if is_large else 6)
    assumed = frame.reformat(
        format="rgb24",
        src_colorspace="ITU709" if is_large else "ITU601",
        src_color_range="MPEG",
    ).to_ndarray()
    with open_video(path) as video:
        for shown in (video[0], assumed):
            for index, color in enumerate(COLORS):
                pixel = shown[size[0] // 2, index * width + width // 2].astype(int)
                assert np.abs(pixel - color).max() <= 6, (color, pixel)


@pytest.mark.field("B30")
def test_colours_of_an_animated_webp_are_right(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "w.webp", 720, 1280) as writer:
        for _ in range(2):
            writer.write(np.full((720, 1280, 3), (0, 255, 0), np.uint8))
    pixel = np.asarray(Image.open(tmp_path / "w.webp").convert("RGB"))[300, 300]
    assert np.abs(pixel.astype(int) - (0, 255, 0)).max() <= 6


NAMES = [
    *("2024-05-01T12:30:05.mp4", "http:x", "file:x.mp4", "pipe:1", "concat:a|b.mp4", "data:,x"),
    *("frame_%05d.mp4", "%d", "100%.mp4", "a b.mp4", "-o.mp4", "--", "ünïcode 视频.mp4"),
    *("tee:x", "a,b;c[d].mp4", "x.unknown", "no_suffix", "n" * 200 + ".mp4", "new\nline.mp4"),
]


@pytest.mark.field("B15")
@pytest.mark.parametrize("name", NAMES)
def test_videos_of_any_name_are_written_and_read(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, count=3)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    with open_video(path) as video:
        assert len(video) == 3


@pytest.mark.field("B15")
def test_relative_paths_with_colons_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http:x", "12:30.mp4", "-x.mp4"):
        write(Path(name), count=2)
        assert (tmp_path / name).is_file()
        with open_video(name) as video:
            assert len(video) == 2


@pytest.mark.field("B15")
def test_names_that_are_not_unicode_are_written_and_read(tmp_path: Path) -> None:
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    path = write(tmp_path / name, count=3)
    with open_video(path) as video:
        assert len(video) == 3


@pytest.mark.field("B15")
@pytest.mark.parametrize("name", ["folder", "file/overlay.mp4", "n" * 300 + ".mp4"])
def test_paths_that_cannot_be_written_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"folder|file|nnn") as caught:
        write(tmp_path / name, count=2)
    assert not isinstance(caught.value, av.FFmpegError)
    assert "\n" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


FULL_DISK = """
import resource, signal, sys
import numpy as np
from sam2_fast.io.video_writer import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
rng = np.random.default_rng(0)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
for name in ("overlay.mp4", "overlay.webp"):
    for count in (1, 3, 60):
        try:
            with VideoWriter(f"{sys.argv[1]}/{name}", 240, 320) as writer:
                for index in range(count):
                    writer.write(rng.integers(0, 255, (240, 320, 3)).astype(np.uint8))
        except OSError as error:
            print(type(error).__module__, error)
"""


@pytest.mark.field("B17")
def test_a_full_disk_is_one_error_and_leaves_no_file(tmp_path: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert len(lines) == 6
    for line, name in zip(lines, ["overlay.mp4"] * 3 + ["overlay.webp"] * 3, strict=True):
        assert line.startswith("builtins [Errno 27] File too large") and name in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.field("B17")
def test_abort_never_raises_and_removes_the_file(tmp_path: Path) -> None:
    class Broken:
        """A container of which every call fails, as on a full disk."""

        def __getattr__(self, name: str) -> Any:
            raise av.error.OSError(28, "No space left on device")

    for error_call in ("abort", "close"):
        writer = VideoWriter(tmp_path / "overlay.mp4", *SIZE)
        writer.write(picture(0))
        container, writer._container = writer._container, Broken()
        if error_call == "close":
            with pytest.raises(OSError, match=r"overlay\.mp4"):
                writer.close()
        writer.abort()
        writer.abort()
        writer.close()
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ValueError, match="the writer is closed"):
            writer.write(picture(1))
        del container


@pytest.mark.field("B27")
@pytest.mark.parametrize("name", ["overlay.mp4", "overlay.webp"])
def test_a_writer_without_frames_leaves_no_file(tmp_path: Path, name: str) -> None:
    with VideoWriter(tmp_path / name, *SIZE) as writer:
        assert writer.frames == 0
    writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.field("B17")
def test_an_older_file_survives_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "overlay.mp4")
    before = path.read_bytes()
    with pytest.raises(RuntimeError), VideoWriter(path, *SIZE) as writer:
        writer.write(picture(0))
        raise RuntimeError
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("times", [None, SWITCH])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, times: list[float] | None) -> None:
    files = {write(tmp_path / f"{run}.mp4", times, count=40).read_bytes() for run in range(3)}
    assert len(files) == 1
