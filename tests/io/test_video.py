"""Videos of every kind are read frame by frame, exactly and within limits.

Robustness rows 29 to 32.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from io_media import picture
from PIL import Image

from sam2_fast.io.frames import FrameGoneError
from sam2_fast.io.video import open_video


def test_a_folder_is_read_in_numerical_order(folder: Path) -> None:
    with open_video(folder) as video:
        assert video.num_frames == len(video) == 12
        assert (video.height, video.width, video.fps) == (48, 64, None)
        assert all(np.array_equal(video[i], picture(i)) for i in (11, 0, 2, 10, 1))
        assert np.array_equal(video[np.int64(3)], picture(3))
        assert sum(1 for _ in video) == 12


@pytest.mark.parametrize(
    "pattern", ["{}.jpg", "{:05d}.JPG", "frame_{}.jpeg", "clip-2_{}.png", "{}.JPEG"]
)
def test_frames_of_a_folder_may_have_any_of_these_names(tmp_path: Path, pattern: str) -> None:
    for index in (0, 2, 9, 10, 11):
        Image.new("RGB", (8, 8), (index * 10,) * 3).save(tmp_path / pattern.format(index))
    (tmp_path / "._0.jpg").write_bytes(b"resource fork")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a frame")
    with open_video(str(tmp_path)) as video:
        assert [round(int(frame[0, 0, 0]) / 10) for frame in video] == [0, 2, 9, 10, 11]


def test_missing_empty_and_ambiguous_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or directory"):
        open_video(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no images found; expected files such as 00000.jpg"):
        open_video(tmp_path)
    for name in ("1.png", "01.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(ValueError, match="are the same frame"):
        open_video(tmp_path)


def test_a_corrupt_frame_is_an_error_that_names_its_file_and_affects_no_other(folder: Path) -> None:
    path = folder / "5.png"
    path.write_bytes(path.read_bytes()[:60])
    with open_video(folder) as video:
        for index in (4, 6, 11):
            assert np.array_equal(video[index], picture(index))
        for _ in range(2):
            with pytest.raises(ValueError, match=r"5.png"):
                video[5]
        assert np.array_equal(video[4], picture(4))


def test_a_frame_of_another_size_is_an_error_at_that_frame(folder: Path) -> None:
    Image.fromarray(picture(7, 20, 30)).save(folder / "7.png")
    with open_video(folder) as video:
        assert video[6].shape == (48, 64, 3)
        with pytest.raises(ValueError, match="frame 7 is 30 x 20 pixels, the video is 64 x 48"):
            video[7]
        assert video[8].shape == (48, 64, 3)


def test_folders_over_the_limits_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"more than 5 frames.*max_frames="):
        open_video(folder, max_frames=5)
    with pytest.raises(ValueError, match="limit is 100"):
        open_video(folder, max_pixels=100)


def test_frame_numbers_are_checked(folder: Path) -> None:
    with open_video(folder) as video:
        for index in (-1, 12, 10**12):
            with pytest.raises(IndexError, match="frames 0 to 11"):
                video[index]
        for index in (1.0, True, "1"):
            with pytest.raises(TypeError):
                video[index]
    with pytest.raises(ValueError, match="closed"):
        video[0]
    video.close()


def test_frames_are_read_only(folder: Path) -> None:
    with open_video(folder) as video, pytest.raises(ValueError, match="read-only"):
        video[0][0, 0] = 0


def test_the_number_of_cached_frames_is_bounded(folder: Path) -> None:
    with open_video(folder) as video:
        video.window = 3
        for index in range(12):
            video[index]
        assert len(video._recent) == 3
    big = open_video([np.zeros((4320, 7680, 3), np.uint8)])
    assert big.window == 2


STACK = np.stack([picture(i) for i in range(5)])


@pytest.mark.parametrize(
    "source",
    [
        STACK,
        STACK.astype(np.float32) / 255,
        torch.from_numpy(STACK),
        torch.from_numpy(STACK).permute(0, 3, 1, 2),
        list(STACK),
        tuple(Image.fromarray(frame) for frame in STACK),
        [torch.from_numpy(frame).permute(2, 0, 1) for frame in STACK],
    ],
    ids=["array", "float array", "tensor THWC", "tensor T3HW", "arrays", "images", "tensors"],
)
def test_videos_in_memory(source: object) -> None:
    with open_video(source) as video:
        assert (video.num_frames, video.height, video.width) == (5, 48, 64)
        assert all(np.array_equal(video[i], STACK[i]) for i in (4, 0, 2))


def test_a_list_of_paths_and_a_single_image_file_are_videos(folder: Path) -> None:
    assert np.array_equal(open_video([folder / "3.png", str(folder / "1.png")])[1], picture(1))
    assert open_video(folder / "3.png").num_frames == 1


def test_an_open_video_is_returned_unchanged(folder: Path) -> None:
    video = open_video(folder)
    assert open_video(video) is video


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([], ValueError, "empty list"),
        (np.zeros((4, 4, 3), np.uint8), ValueError, r"\[T, H, W, 3\], got \[4, 4, 3\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), ValueError, "at least one frame"),
        (np.zeros((2, 3, 4, 4), np.uint8), ValueError, r"\[T, H, W, 3\]"),
        (torch.full((2, 3, 4, 4), 255.0), ValueError, r"\[0, 1\]"),
        (iter([]), ValueError, "iterator was empty"),
        ([np.zeros((4, 4, 5), np.uint8)], ValueError, "frame 0: image: expected"),
        ([None], TypeError, "frame 0: image: expected"),
        (None, TypeError, "got NoneType"),
        (2.5, TypeError, "got float"),
        (True, TypeError, "got bool"),
        (Image.new("RGB", (4, 4)), TypeError, "got Image"),
    ],
)
def test_invalid_videos_are_refused(source: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_video(source)


def endless_pictures() -> Iterator[np.ndarray]:
    return (picture(i) for i in itertools.count())


def test_a_stream_is_read_on_demand_and_keeps_a_bounded_number_of_frames() -> None:
    pulled = []
    video = open_video(pulled.append(i) or picture(i) for i in itertools.count())
    assert video.num_frames is None and video.sequential
    assert pulled == [0]
    assert np.array_equal(video[100], picture(100))
    assert len(pulled) == 101
    assert np.array_equal(video[100 - video.window + 1], picture(100 - video.window + 1))
    with pytest.raises(FrameGoneError, match="frame 3 is gone; a stream keeps the last 32 frames"):
        video[3]
    assert np.array_equal(video[101], picture(101))
    assert len(video._recent) <= video.window
    with pytest.raises(TypeError, match="not known yet"):
        len(video)


def test_the_length_of_a_stream_is_known_after_its_end() -> None:
    video = open_video(picture(i) for i in range(4))
    with pytest.raises(IndexError, match="ended after 4 frames"):
        video[9]
    assert video.num_frames == 4
    assert np.array_equal(video[3], picture(3))
    assert sum(1 for _ in open_video(picture(i) for i in range(7))) == 7


def test_a_stream_continues_after_a_bad_frame_and_stops_at_its_limit() -> None:
    video = open_video(iter([picture(0), np.zeros((2, 2), np.float32) + 9, picture(2)]))
    with pytest.raises(ValueError, match="frame 1: image"):
        video[1]
    assert np.array_equal(video[2], picture(2))
    with pytest.raises(ValueError, match="more than 10 frames"):
        open_video(endless_pictures(), max_frames=10)[20]


def test_a_missing_camera_is_an_error() -> None:
    pytest.importorskip("cv2", reason="cameras need OpenCV")
    with pytest.raises(ValueError, match="camera 97: cannot be opened"):
        open_video(97)


def test_several_threads_can_read_one_video(folder: Path) -> None:
    video = open_video(folder)
    video.window = 2
    wrong: list[int] = []

    def read(seed: int) -> None:
        for index in random.Random(seed).choices(range(12), k=40):
            if not np.array_equal(video[index], picture(index)):
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_real_frame_folder(real: Path) -> None:
    with open_video(real / "bedroom") as video:
        assert (video.num_frames, video.height, video.width) == (30, 540, 960)
        with Image.open(real / "bedroom" / "00017.jpg") as image:
            assert np.array_equal(video[17], np.array(image.convert("RGB")))
