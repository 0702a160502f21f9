"""Clips from disk and from the synthetic world: what is in them, that seeds decide, and errors that
name the file.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam2_fast.data import SyntheticVideo, World
from sam2_fast.io.rle import encode_rle
from sam2_fast.training import Synthetic
from sam2_fast.training.augment import NONE
from sam2_fast.training.stored import Folder, Sa1b, Sav

LENGTH = 12


def video(seed: int = 4) -> SyntheticVideo:
    return SyntheticVideo(
        seed,
        LENGTH,
        World(height=64, width=80, objects=(3, 3), size=(0.15, 0.25), absences=0.0, noise=0.0),
    )


@pytest.fixture
def davis(tmp_path: Path) -> Folder:
    """Two videos of 12 frames, of which every second one is annotated."""
    for name, seed in (("cat", 4), ("dog", 5)):
        for part in ("images", "masks"):
            (tmp_path / part / name).mkdir(parents=True)
        for t, frame in enumerate(video(seed)):
            Image.fromarray(frame.image).save(tmp_path / "images" / name / f"{t:05d}.png")
            if t % 2 == 0:
                Image.fromarray(frame.labels).save(tmp_path / "masks" / name / f"{t:05d}.png")
    return Folder(str(tmp_path / "images"), str(tmp_path / "masks"), frames=3, augmentation=NONE)


def test_a_folder_gives_annotated_frames_in_a_row_forwards_or_backwards(davis: Folder) -> None:
    directions = set()
    for seed in range(20):
        clip = davis.clip(seed, 64)
        assert (
            clip.images.shape == (3, 3, 64, 64)
            and clip.truth.shape[0] == 3
            and 1 <= clip.truth.shape[1] <= 3
        )
        assert clip.truth[0].flatten(1).any(1).all(), "every object is seen at first"
        again = davis.clip(seed, 64)
        assert torch.equal(clip.images, again.images) and torch.equal(clip.truth, again.truth)
        for name, start in ((name, start) for name in ("cat", "dog") for start in range(4)):
            frames = [davis.open(name).image(start + k) for k in range(3)]
            for step in (1, -1):
                shown = [
                    np.asarray(Image.fromarray(f).resize((64, 64), Image.Resampling.BILINEAR))
                    for f in frames[::step]
                ]
                if all(
                    np.abs(s / 255 - _unnormalised(clip.images[k])).max() < 1e-5
                    for k, s in enumerate(shown)
                ):
                    directions.add(step)
    assert directions == {1, -1}


def _unnormalised(image: torch.Tensor) -> np.ndarray:
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    return image.permute(1, 2, 0).numpy() * std + mean


def test_a_list_chooses_videos_and_a_wrong_one_is_named(davis: Folder, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("dog\n\n")
    assert Folder(davis.images, davis.masks, str(tmp_path / "train.txt")).videos() == ["dog"]
    (tmp_path / "wrong.txt").write_text("cow\n")
    with pytest.raises(FileNotFoundError, match=r"cow: no such folder, but .*wrong\.txt lists it"):
        Folder(davis.images, davis.masks, str(tmp_path / "wrong.txt")).videos()


def test_missing_and_damaged_frames_are_named(davis: Folder) -> None:
    for path in Path(davis.images).glob("*/*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"images .*\d{5}: no image of that name"):
        davis.clip(0, 64)
    for path in Path(davis.masks).glob("*/*.png"):
        path.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"\d{5}\.png"):
        davis.clip(0, 64)


def test_empty_objects_are_said_so(davis: Folder) -> None:
    for path in Path(davis.masks).glob("*/*.png"):
        Image.fromarray(np.zeros((64, 80), np.uint8)).save(path)
    with pytest.raises(
        ValueError, match="no clip of 3 annotated frames shows an object on the first"
    ):
        davis.clip(0, 64)


def test_sa_v_gives_every_fourth_frame_of_the_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    frames = list(video())
    with av.open(str(tmp_path / "v.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 80, 64, "yuv420p", 4_000_000
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    masklets = [
        [encode_rle(frames[t].labels == i, text=True) for i in video().ids()] for t in (0, 4, 8)
    ]
    found = {
        "video_id": "v",
        "masklet": masklets,
        "masklet_id": [0, 1, 2],
        "video_height": 64,
        "video_width": 80,
    }
    (tmp_path / "v_manual.json").write_text(json.dumps(found))
    source = Sav(str(tmp_path), frames=3, backwards=0.0, augmentation=NONE)
    assert source.videos() == ["v"]
    opened = source.open("v")
    assert [
        abs(opened.image(t).astype(float) - frames[4 * t].image).mean() < 12 for t in range(3)
    ] == [True] * 3
    assert np.array_equal(opened.masks(1)[2], frames[4].labels == 3)
    assert source.clip(0, 64).truth.shape[0] == 3
    found["masklet"] = masklets * 2
    (tmp_path / "v_manual.json").write_text(json.dumps(found))
    with pytest.raises(
        ValueError, match=r"v_manual\.json: reach to frame 20, .*v\.mp4 has 12 frames"
    ):
        source.open("v")


def test_sa_1b_leaves_out_masks_of_nearly_everything(tmp_path: Path) -> None:
    frame = video()[0]
    Image.fromarray(frame.image).save(tmp_path / "sa_1.jpg")
    masks = [frame.labels == i for i in video().ids()] + [np.ones((64, 80), dtype=bool)]
    annotations = [
        {"segmentation": encode_rle(mask, text=True), "area": int(mask.sum())} for mask in masks
    ]
    (tmp_path / "sa_1.json").write_text(
        json.dumps({"image": {"image_id": 1}, "annotations": annotations})
    )
    source = Sa1b(str(tmp_path), augmentation=NONE)
    seen = sum(bool(mask.any()) for mask in masks[:-1])
    assert source.clip(0, 64).truth.shape == (1, seen, 64, 64)
    assert Sa1b(str(tmp_path), largest=1.0, augmentation=NONE).clip(0, 64).truth.shape == (
        1,
        seen + 1,
        64,
        64,
    )
    (tmp_path / "sa_1.json").write_text('{"annotations": [{}]}')
    with pytest.raises(ValueError, match=r"sa_1\.json: expected SA-1B's keys"):
        source.clip(0, 64)
    with pytest.raises(ValueError, match=r"expected files named \*_manual\.json"):
        Sav(str(tmp_path)).videos()


def test_synthetic_clips_are_drawn_by_seed_and_show_what_they_ask_for() -> None:
    source = Synthetic(frames=3, objects=2, least=0.01, length=200, world=World(objects=(2, 4)))
    for seed in range(10):
        clip = source.clip(seed, 64)
        assert clip.images.shape == (3, 3, 64, 64) and clip.truth.shape[1] <= 2
        assert (clip.truth[0].float().mean((1, 2)) >= 0.01).all()
        assert torch.equal(clip.truth, source.clip(seed, 64).truth)
    apart = Synthetic(frames=3, stride=4, length=200)
    moved = [
        [(a != b).float().mean().item() for a, b in pairwise(c.truth)]
        for c in (apart.clip(seed, 64) for seed in range(10))
    ]
    still = [
        [(a != b).float().mean().item() for a, b in pairwise(c.truth)]
        for c in (source.clip(seed, 64) for seed in range(10))
    ]
    assert np.mean(moved) > 1.5 * np.mean(still)
    with pytest.raises(ValueError, match="clips that fit into 10 frames"):
        Synthetic(frames=4, stride=4, length=10)
    with pytest.raises(ValueError, match=r"no object covers 0\.9 of the first frame"):
        Synthetic(frames=1, least=0.9, length=10).clip(0, 32)
