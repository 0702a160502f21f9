"""Training clips from files and synthetic ones: contents, seeds, and errors that name the file."""

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
    world = World(height=64, width=80, objects=(3, 3), size=(0.15, 0.25), absences=0.0, noise=0.0)
    return SyntheticVideo(seed, LENGTH, world)


@pytest.fixture
def davis(tmp_path: Path) -> Folder:
    """Two videos of 12 frames; every second frame is annotated."""
    for name, seed in (("cat", 4), ("dog", 5)):
        for part in ("images", "masks"):
            (tmp_path / part / name).mkdir(parents=True)
        for t, frame in enumerate(video(seed)):
            Image.fromarray(frame.image).save(tmp_path / "images" / name / f"{t:05d}.png")
            if t % 2 == 0:
                Image.fromarray(frame.labels).save(tmp_path / "masks" / name / f"{t:05d}.png")
    return Folder(str(tmp_path / "images"), str(tmp_path / "masks"), frames=3, augmentation=NONE)


def test_a_clip_has_consecutive_annotated_frames_forwards_or_backwards(davis: Folder) -> None:
    directions = set()
    for seed in range(20):
        clip = davis.clip(seed, 64)
        assert clip.images.shape == (3, 3, 64, 64)
        assert clip.truth.shape[0] == 3 and 1 <= clip.truth.shape[1] <= 3
        assert clip.truth[0].flatten(1).any(1).all(), "an object is not on the first frame"
        same_seed = davis.clip(seed, 64)
        assert torch.equal(clip.images, same_seed.images)
        assert torch.equal(clip.truth, same_seed.truth)
        for name, start in ((name, start) for name in ("cat", "dog") for start in range(4)):
            frames = [davis.open(name).image(start + k) for k in range(3)]
            for step in (1, -1):
                if shows(clip.images, frames[::step]):
                    directions.add(step)
    assert directions == {1, -1}


def shows(images: torch.Tensor, frames: list[np.ndarray]) -> bool:
    """Whether normalised images are these frames, resized."""
    mean = np.array((0.485, 0.456, 0.406))
    std = np.array((0.229, 0.224, 0.225))
    for image, frame in zip(images, frames, strict=True):
        resized = np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BILINEAR))
        pixels = image.permute(1, 2, 0).numpy() * std + mean
        if np.abs(resized / 255 - pixels).max() >= 1e-5:
            return False
    return True


def test_a_list_selects_videos_and_unknown_names_in_it_are_errors(
    davis: Folder, tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text("dog\n\n")
    assert Folder(davis.images, davis.masks, str(tmp_path / "train.txt")).videos() == ["dog"]
    (tmp_path / "wrong.txt").write_text("cow\n")
    with pytest.raises(FileNotFoundError, match=r"cow: no such folder, but .*wrong\.txt lists it"):
        Folder(davis.images, davis.masks, str(tmp_path / "wrong.txt")).videos()


def test_errors_name_missing_and_damaged_frames(davis: Folder) -> None:
    for path in Path(davis.images).glob("*/*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"images .*\d{5}: no image of that name"):
        davis.clip(0, 64)
    for path in Path(davis.masks).glob("*/*.png"):
        path.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"\d{5}\.png"):
        davis.clip(0, 64)


def test_videos_without_objects_are_an_error(davis: Folder) -> None:
    for path in Path(davis.masks).glob("*/*.png"):
        Image.fromarray(np.zeros((64, 80), np.uint8)).save(path)
    with pytest.raises(
        ValueError, match="no clip of 3 annotated frames shows an object on the first"
    ):
        davis.clip(0, 64)


def test_sa_v_clips_have_every_fourth_frame_of_the_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    frames = list(video())
    with av.open(str(tmp_path / "v.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=24)
        stream.width, stream.height = 80, 64
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    masklets = [
        [encode_rle(frames[t].labels == i, text=True) for i in video().ids()] for t in (0, 4, 8)
    ]
    annotations = {"video_id": "v", "masklet": masklets, "masklet_id": [0, 1, 2]}
    annotations |= {"video_height": 64, "video_width": 80}
    (tmp_path / "v_manual.json").write_text(json.dumps(annotations))
    source = Sav(str(tmp_path), frames=3, backwards=0.0, augmentation=NONE)
    assert source.videos() == ["v"]
    opened = source.open("v")
    for t in range(3):
        assert abs(opened.image(t).astype(float) - frames[4 * t].image).mean() < 12
    assert np.array_equal(opened.masks(1)[2], frames[4].labels == 3)
    assert source.clip(0, 64).truth.shape[0] == 3
    annotations["masklet"] = masklets * 2
    (tmp_path / "v_manual.json").write_text(json.dumps(annotations))
    with pytest.raises(
        ValueError, match=r"v_manual\.json: reach to frame 20, .*v\.mp4 has 12 frames"
    ):
        source.open("v")


def test_sa_1b_clips_leave_out_masks_of_nearly_the_whole_image(tmp_path: Path) -> None:
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
    visible = sum(bool(mask.any()) for mask in masks[:-1])
    assert source.clip(0, 64).truth.shape == (1, visible, 64, 64)
    with_large = Sa1b(str(tmp_path), largest=1.0, augmentation=NONE)
    assert with_large.clip(0, 64).truth.shape == (1, visible + 1, 64, 64)
    (tmp_path / "sa_1.json").write_text('{"annotations": [{}]}')
    with pytest.raises(ValueError, match=r"sa_1\.json: expected SA-1B's keys"):
        source.clip(0, 64)
    with pytest.raises(ValueError, match=r"expected files named \*_manual\.json"):
        Sav(str(tmp_path)).videos()


def test_synthetic_clips_depend_on_the_seed_and_have_the_requested_properties() -> None:
    source = Synthetic(frames=3, objects=2, least=0.01, length=200, world=World(objects=(2, 4)))
    for seed in range(10):
        clip = source.clip(seed, 64)
        assert clip.images.shape == (3, 3, 64, 64) and clip.truth.shape[1] <= 2
        assert (clip.truth[0].float().mean((1, 2)) >= 0.01).all()
        assert torch.equal(clip.truth, source.clip(seed, 64).truth)

    def mean_change(clips: Synthetic) -> float:
        """Share of pixels that differ between neighbouring masks."""
        truths = [clips.clip(seed, 64).truth for seed in range(10)]
        pairs = [pair for truth in truths for pair in pairwise(truth)]
        return float(np.mean([(a != b).float().mean().item() for a, b in pairs]))

    every_fourth_frame = Synthetic(frames=3, stride=4, length=200)
    assert mean_change(every_fourth_frame) > 1.5 * mean_change(source)
    with pytest.raises(ValueError, match="clips that fit into 10 frames"):
        Synthetic(frames=4, stride=4, length=10)
    with pytest.raises(ValueError, match=r"no object covers 0\.9 of the first frame"):
        Synthetic(frames=1, least=0.9, length=10).clip(0, 32)
