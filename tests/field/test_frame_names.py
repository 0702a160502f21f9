"""Frames are called like their files, and come in the order of their names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2_fast.io.video import open_video


def folder_of(path: Path, names: list[str], size: tuple[int, int] = (16, 12)) -> Path:
    """A folder of images; the grey level of each is its position in `names`."""
    path.mkdir(exist_ok=True)
    for level, name in enumerate(names):
        Image.new("L", size, level).save(path / name)
    return path


def levels(path: Path) -> list[int]:
    with open_video(path) as video:
        return [int(frame[0, 0, 0]) for frame in video]


ORDERED = {
    "gaps": ["00000.png", "00005.png", "00010.png", "00100.png"],
    "mixed case": ["IMG_1.png", "img_2.PNG", "IMG_3.png", "Img_10.png"],
    "time stamps": ["1700000000.125.png", "1700000000.25.png", "1700000000.5.png"],
    "seconds": ["0.png", "0.033.png", "0.067.png", "0.1.png", "1.png", "10.5.png"],
    "prefix": ["frame_1.125.png", "frame_1.25.png", "frame_1.5.png", "frame_11.png"],
    "prefix and unit": ["t=0.0625s.png", "t=0.125s.png", "t=0.25s.png", "t=10s.png"],
    "negative": ["-3.png", "-2.5.png", "-1.png", "0.png", "0.5.png"],
    "negative with a prefix": ["t=-1.5.png", "t=-1.25.png", "t=2.png"],
    "hyphens": ["frame-1.png", "frame-2.png", "frame-10.png"],
    "python's small numbers": ["1e-05.png", "0.0001.png", "0.5.png"],
    "versions": ["1.2.9.png", "1.2.10.png", "1.10.1.png"],
    "clock": ["12-00-01.125.png", "12-00-01.25.png", "12-00-02.png"],
    "equal digits": ["1.00.png", "1.10.png", "1.20.png", "1.25.png"],
    "two numbers": ["cam1_frame9.png", "cam1_frame10.png", "cam2_frame1.png"],
}


@pytest.mark.field("B12")
@pytest.mark.parametrize("names", ORDERED.values(), ids=ORDERED)
def test_frames_are_in_the_order_of_their_names(tmp_path: Path, names: list[str]) -> None:
    assert levels(folder_of(tmp_path / "v", names)) == list(range(len(names)))


@pytest.mark.field("B12")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.9.png", "1.10.png"], "order of 1.9 and 1.10 is ambiguous.*same number of digits"),
        (["shot2.8.png", "shot2.10.png"], "ambiguous"),
        (["1.5.png", "1.50.png"], "ambiguous"),
        (["1.png", "01.png"], "are the same frame"),
        (["IMG_1.png", "img_1.jpg"], "are the same frame"),
        (["1.png", "1.0.png"], "are the same frame"),
    ],
)
def test_names_of_ambiguous_order_are_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    folder_of(tmp_path / "v", names)
    with pytest.raises(ValueError, match=message) as caught:
        open_video(tmp_path / "v")
    assert "\n" not in str(caught.value)


@pytest.mark.field("B01")
def test_frames_of_a_folder_are_called_like_their_files(tmp_path: Path) -> None:
    names = ["00000.jpg", "00005.JPG", "00010.png", "a.b.tif"]
    with open_video(folder_of(tmp_path / "v", names)) as video:
        assert [video.frame_name(i) for i in range(4)] == ["00000", "00005", "00010", "a.b"]
        assert video.frame_time(2) is None


@pytest.mark.field("B01")
def test_frames_of_a_list_of_paths_are_called_like_their_files(tmp_path: Path) -> None:
    folder_of(tmp_path / "v", ["7.png", "3.png"])
    (tmp_path / "w").mkdir()
    folder_of(tmp_path / "w", ["7.png"])
    files = [tmp_path / "v" / "7.png", str(tmp_path / "v" / "3.png")]
    with open_video(files) as video:
        assert [video.frame_name(i) for i in range(2)] == ["7", "3"]
        assert [int(frame[0, 0, 0]) for frame in video] == [0, 1]
    with open_video([files[0], tmp_path / "w" / "7.png"]) as video:  # repeated names
        assert [video.frame_name(i) for i in range(2)] == ["00000", "00001"]
    with open_video([files[0], np.zeros((12, 16, 3), np.uint8)]) as video:
        assert [video.frame_name(i) for i in range(2)] == ["00000", "00001"]
    with open_video(np.zeros((2, 12, 16, 3), np.uint8)) as video:
        assert (video.frame_name(1), video.frame_time(1)) == ("00001", None)


@pytest.mark.field("B14")
@pytest.mark.parametrize("stray", ["preview.jpg", "cover.png", "poster.webp", "zz.tif"])
def test_files_of_another_size_are_named_before_a_frame_is_decoded(
    tmp_path: Path, stray: str
) -> None:
    folder_of(tmp_path / "v", ["00000.png", "00001.png", "00002.png"])
    folder_of(tmp_path / "v", [stray], size=(40, 30))
    message = rf"40 x 30 pixels, the video is 16 x 12.*remove or rename {re.escape(stray)}"
    with open_video(tmp_path / "v") as video:
        with pytest.raises(ValueError, match=message):
            video.check_sizes()
        video.check_sizes(range(3))
    files = [*sorted((tmp_path / "v").glob("0*")), tmp_path / "v" / stray]
    with open_video(files) as video, pytest.raises(ValueError, match=f"or rename {stray}"):
        video.check_sizes()
    with open_video(np.zeros((2, 12, 16, 3), np.uint8)) as array:
        array.check_sizes()


@pytest.mark.field("B14")
def test_a_first_file_of_another_size_is_named_itself(tmp_path: Path) -> None:
    folder_of(tmp_path / "v", ["frame_0.png", "frame_1.png"])
    folder_of(tmp_path / "v", ["cover.png"], size=(40, 30))
    message = r"is 40 x 30 .* is 16 x 12; .*rename cover.png"
    with open_video(tmp_path / "v") as video, pytest.raises(ValueError, match=message):
        video.check_sizes()


@pytest.mark.field("B14")
def test_a_file_with_a_broken_header_is_named_when_its_frame_is_read(tmp_path: Path) -> None:
    folder_of(tmp_path / "v", ["0.png", "1.png", "2.png"])
    (tmp_path / "v" / "2.png").write_bytes(b"\x89PNG")
    with open_video(tmp_path / "v") as video:
        video.check_sizes()  # the frames before it can be used
        assert video[1].shape == video[0].shape
        with pytest.raises(ValueError, match=r"2\.png"):
            video[2]
