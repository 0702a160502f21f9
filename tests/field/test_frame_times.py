"""Every frame has its time; the rate is the mean over all frames, exact if it is constant."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sam2_fast.io.video import open_video
from tests.field.field_media import picture, write_video

MS = Fraction(1, 1000)
BROWSER = [index * 67 + index * index * 13 % 61 for index in range(60)]
SWITCH = [*range(0, 990, 33), *range(990, 3990, 100)]
"""Milliseconds of 30 frames that are 33 ms apart, then 30 frames that are 100 ms apart."""


def times(path: Path | bytes) -> tuple[list[float | None], float | None]:
    with open_video(path) as video:
        return [video.frame_time(i) for i in range(len(video))], video.fps


def seconds(stamps: list[int]) -> list[float]:
    return [(stamp - stamps[0]) / 1000 for stamp in stamps]


@pytest.mark.field("B07")
@pytest.mark.parametrize("rate", [1000, 200, 25])
@pytest.mark.parametrize("name", ["r.webm", "r.mkv"])
def test_rates_in_the_header_do_not_count(tmp_path: Path, name: str, rate: int) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = write_video(
        tmp_path / name,
        BROWSER,
        time_base=MS,
        rate=Fraction(rate),
        codec=codec,
        **{"cpu-used": "8"},
    )
    shown, fps = times(path)
    assert shown == pytest.approx(seconds(BROWSER), abs=1e-9)
    assert fps == pytest.approx(59 / ((BROWSER[-1] - BROWSER[0]) / 1000))
    data = bytearray(path.read_bytes())
    duration = data.find(b"\x23\xe3\x83")  # DefaultDuration, which live recordings lack
    if duration > 0:
        data[duration : duration + 3] = b"\x23\xe3\x84"  # an unknown element of the same size
        assert times(bytes(data))[1] == pytest.approx(fps)


@pytest.mark.field("B07")
def test_a_time_lapse_has_its_own_rate(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "lapse.mkv", list(range(0, 20000, 2000)), time_base=MS, rate=Fraction(25)
    )
    shown, fps = times(path)
    assert (shown, fps) == ([2.0 * index for index in range(10)], 0.5)


RATES = [
    Fraction(24),
    Fraction(25),
    Fraction(30000, 1001),
    Fraction(24000, 1001),
    Fraction(60000, 1001),
    Fraction(50),
    Fraction(15),
    Fraction(25, 2),
    Fraction(240),
]


@pytest.mark.field("B07")
@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.ts", "c.mov", "c.flv"])
def test_constant_rates_are_exact(tmp_path: Path, rate: Fraction, name: str) -> None:
    path = write_video(
        tmp_path / name,
        range(100),
        time_base=1 / rate,
        rate=rate,
        size=(16, 16),
        preset="ultrafast",
    )
    shown, fps = times(path)
    assert fps == float(rate)
    assert shown == pytest.approx([float(index / rate) for index in range(100)], abs=1.1e-3)


@pytest.mark.field("B08")
@pytest.mark.parametrize("name", ["v.mkv", "v.mp4", "v.mov", "v.ts", "v.flv"])
def test_frames_of_a_variable_rate_have_their_times(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, SWITCH, time_base=MS, rate=Fraction(30), bf="2")
    shown, fps = times(path)
    assert shown == pytest.approx(seconds(SWITCH), abs=1e-4)
    assert fps == pytest.approx(59 / 3.89)


@pytest.mark.field("B08")
@pytest.mark.parametrize(
    ("name", "start"),
    [(n, s) for n in ("s.mp4", "s.mkv", "s.ts") for s in (-3, 0, 250, 36000)][1:],
)
def test_the_first_frame_is_at_zero_whatever_its_stamp(
    tmp_path: Path, name: str, start: int
) -> None:
    path = write_video(tmp_path / name, range(start, start + 12), bf="2")
    shown, fps = times(path)
    assert shown == pytest.approx([index / 25 for index in range(12)], abs=1e-6)
    assert fps == 25


@pytest.mark.field("B08")
def test_an_edit_list_shifts_the_start_of_the_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "e.mp4", range(20), g="5", bf="0")
    data = bytearray(path.read_bytes())
    start = data.index(b"elst") + 12
    length, media_time = struct.unpack_from(">Ii", data, start)
    ticks = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    struct.pack_into(">Ii", data, start, length, media_time + ticks // 5)  # five frames are cut
    with open_video(bytes(data)) as video:
        assert len(video) == 15
        assert [video.frame_time(i) for i in range(15)] == pytest.approx(
            [index / 25 for index in range(15)]
        )


@pytest.mark.field("B08")
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_times_count_from_the_start_of_the_sound_if_that_is_earlier(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width = 48, 64
        sound = container.add_stream("pcm_s16le" if name.endswith("mkv") else "aac", rate=48000)
        samples = np.zeros((1, 1024), np.float32)
        for index in range(60):
            wave = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            wave.sample_rate, wave.pts = 48000, 1024 * index
            wave.time_base = Fraction(1, 48000)
            resampled = av.AudioResampler(sound.format, "mono", 48000).resample(wave)
            for part in resampled:
                container.mux(sound.encode(part))
        container.mux(sound.encode(None))
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = index + 10, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    shown, fps = times(path)
    expected = [0.4 + index / 25 for index in range(10)]
    assert shown == pytest.approx(expected, abs=0.025)  # the priming samples of AAC
    assert fps == 25


@pytest.mark.field("B08")
@pytest.mark.parametrize(("name", "codec"), [("t.avi", "mpeg4"), ("t.h264", "libx264")])
def test_without_time_stamps_the_rate_of_the_header_counts(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = write_video(tmp_path / name, range(12), codec=codec)
    shown, fps = times(path)
    assert fps == 25
    assert shown == pytest.approx([index / 25 for index in range(12)])


@pytest.mark.field("B08")
def test_frames_with_equal_stamps_keep_them(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 120, 160, 200]
    path = write_video(tmp_path / "d.mkv", stamps, time_base=MS, rate=Fraction(25), bf="0", g="1")
    data = path.read_bytes()
    repeated = data.replace(
        struct.pack(">BHB", 0x81, 80, 0x80), struct.pack(">BHB", 0x81, 40, 0x80)
    )
    assert repeated != data
    shown, fps = times(repeated)
    assert shown == pytest.approx([0, 0.04, 0.04, 0.12, 0.16, 0.2])
    assert fps == pytest.approx(25)


@pytest.mark.field("B08")
def test_one_frame_has_the_time_zero_and_the_rate_of_the_header(tmp_path: Path) -> None:
    assert times(write_video(tmp_path / "one.mp4", [0])) == ([0.0], 25)


@pytest.mark.field("B08")
def test_pictures_have_no_clock(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "0.png")
    assert times(tmp_path) == ([None], None)
    assert times(tmp_path / "0.png") == ([None], None)
