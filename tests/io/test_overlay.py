"""Overlays: masks and prompts are drawn at their positions, and written videos can be read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from io_media import picture
from PIL import Image

from sam2_fast.io.overlay import (
    VideoWriter,
    draw_box,
    draw_masks,
    draw_points,
    object_color,
    save_png,
)
from sam2_fast.io.video import open_video

BLOCK = np.zeros((48, 64), bool)
BLOCK[10:30, 20:50] = True


def test_masks_are_tinted_and_outlined_and_other_pixels_do_not_change() -> None:
    image = picture(1)
    before = image.copy()
    drawn = draw_masks(image, {3: BLOCK}, alpha=0.5, contour=2)
    assert np.array_equal(image, before)
    assert np.array_equal(drawn[~BLOCK], image[~BLOCK])
    assert tuple(drawn[10, 20]) == tuple(drawn[11, 30]) == object_color(3)
    tinted = image[20, 30] * 0.5 + np.array(object_color(3)) * 0.5
    assert np.abs(drawn[20, 30] - tinted).max() <= 1


def test_lower_ids_are_on_top_and_colours_differ() -> None:
    drawn = draw_masks(picture(0), {1: BLOCK, 2: BLOCK}, alpha=1.0)
    assert tuple(drawn[20, 30]) == object_color(1)
    assert len({object_color(object_id) for object_id in range(50)}) == 50


def test_the_image_does_not_change_without_masks_or_with_empty_ones() -> None:
    assert np.array_equal(draw_masks(picture(0), {1: np.zeros((48, 64), bool)}), picture(0))
    assert np.array_equal(draw_masks(picture(0), {}), picture(0))


def test_points_and_boxes_are_drawn() -> None:
    drawn = draw_box(draw_points(picture(0), [(10, 12), (40, 30)], [1, 0]), (5, 5, 60, 40))
    assert tuple(drawn[12, 10]) == (40, 200, 60)
    assert tuple(drawn[30, 40]) == (230, 40, 40)
    assert tuple(drawn[5, 30]) == object_color(1)


def test_bad_input_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="object 1 is"):
        draw_masks(picture(0), {1: BLOCK[:5]})
    with pytest.raises(ValueError, match="alpha"):
        draw_masks(picture(0), {}, alpha=2)
    with pytest.raises(ValueError, match="fps"):
        pytest.importorskip("av")
        VideoWriter("x.mp4", 4, 4, fps=0)


def test_a_png_is_written_and_read_back(tmp_path: Path) -> None:
    save_png(tmp_path / "a" / "image.png", picture(2))
    assert np.array_equal(open_video(tmp_path / "a" / "image.png")[0], picture(2))


def test_a_video_is_written_frame_by_frame_and_appears_when_closed(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos need PyAV")
    path = tmp_path / "out" / "clip.mp4"
    with VideoWriter(path, 47, 63, fps=12.5) as writer:
        for index in range(9):
            writer.write(picture(index, 47, 63))
        assert not path.exists()
        with pytest.raises(ValueError, match="expected uint8"):
            writer.write(picture(0))
    with open_video(path) as video:
        assert (len(video), video.height, video.width, video.fps) == (9, 48, 64, 12.5)
        error = np.abs(video[4][:47, :63].astype(int) - picture(4, 47, 63)).mean()
        assert error < 12
    assert [entry.name for entry in path.parent.iterdir()] == ["clip.mp4"]


def test_a_path_that_ends_in_webp_becomes_an_animation_that_loops(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos need PyAV")
    path = tmp_path / "clip.webp"
    with VideoWriter(path, 47, 63, fps=20) as writer:
        for index in range(5):
            writer.write(picture(index, 47, 63))
    with Image.open(path) as animation:
        assert (animation.format, animation.n_frames, animation.size) == ("WEBP", 5, (64, 48))
        assert animation.info["loop"] == 0
        animation.seek(4)
        shown = np.asarray(animation.convert("RGB"))[:47, :63]
    assert np.abs(shown.astype(int) - picture(4, 47, 63)).mean() < 12


def test_without_a_webp_encoder_the_error_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    av = pytest.importorskip("av", reason="videos need PyAV")
    monkeypatch.setattr(av, "codecs_available", {"libx264"})
    with pytest.raises(ValueError, match=r"use a \.mp4 path"):
        VideoWriter(tmp_path / "clip.webp", 48, 64)
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_no_video(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos need PyAV")
    with (
        pytest.raises(RuntimeError, match="stop"),
        VideoWriter(tmp_path / "clip.mp4", 48, 64) as writer,
    ):
        writer.write(picture(0))
        raise RuntimeError("stop")
    VideoWriter(tmp_path / "clip.mp4", 48, 64).abort()
    assert list(tmp_path.iterdir()) == []
