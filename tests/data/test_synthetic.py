"""Synthetic videos: reproducible by seed, random access, exact masks, and every difficulty."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sam2_fast import build_sam2_video_predictor
from sam2_fast.data import SyntheticVideo, World
from sam2_fast.data.motion import Path, Pose, happens
from sam2_fast.data.shapes import Shape, Texture
from sam2_fast.data.synthetic import _draw, _Object


def video(seed: int = 0, length: int = 40, **changes: object) -> SyntheticVideo:
    return SyntheticVideo(seed, length, World(**{"height": 64, "width": 96, **changes}))


def test_the_seed_determines_the_pixels() -> None:
    for a, b, c in zip(video(3), video(3), video(4), strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.labels, b.labels)
        assert not np.array_equal(a.image, c.image)


def test_frames_can_be_read_in_any_order_and_do_not_depend_on_the_length() -> None:
    in_order = list(video(5, 30, cuts=0.5, scene=7))
    longer = video(5, 10**6, cuts=0.5, scene=7)
    for t in (29, 0, 13, 7, 28):
        assert np.array_equal(longer[t].image, in_order[t].image)
        assert np.array_equal(longer[t].labels, in_order[t].labels)
    assert np.array_equal(video(5, 30)[-1].image, video(5, 30)[29].image)
    assert longer[10**6 - 1].labels.shape == (64, 96)


def test_frames_have_the_documented_shapes_and_dtypes() -> None:
    frame = video()[0]
    assert frame.image.shape == (64, 96, 3)
    assert frame.image.dtype == np.uint8
    assert frame.labels.dtype == np.uint8
    masks = frame.masks()
    assert masks and 0 not in masks
    assert all(np.array_equal(mask, frame.labels == i) for i, mask in masks.items())


def test_a_disk_is_drawn_at_its_position_with_its_radius() -> None:
    rng = np.random.default_rng(0)
    disk = Shape("blob", 3, 0.3, 1.0, (), 0.0, 0.0)
    item = _Object(disk, Texture.random(rng), (0.1, 0.1))
    image = np.zeros((64, 96, 3), np.float32)
    labels = np.zeros((64, 96), np.uint8)
    _draw(item, Pose(40.0, 30.0, 12.0, 0.7), 0, 9, image, labels)
    y, x = np.mgrid[0:64, 0:96]
    assert np.array_equal(labels == 9, np.hypot(x - 40, y - 30) <= 12)
    assert (image[labels == 0] == 0).all() and (image[labels == 9] != 0).any()


@pytest.mark.parametrize("kind", ["blob", "polygon", "star", "flower", "ring", "crescent"])
def test_every_shape_fits_the_square_that_is_drawn(kind: str) -> None:
    """Nothing is cut off: the object ends within 1.5 radii of its centre at any time."""
    y, x = (a.astype(np.float32) for a in np.mgrid[-2:2:81j, -2:2:81j])
    shapes = 0
    for seed in range(60):
        shape = Shape.random(np.random.default_rng(seed))
        if shape.kind == kind:
            for t in (0, 17, 400):
                mask = shape.contains(x, y, t)
                assert mask.any() and not mask[np.maximum(abs(x), abs(y)) > 1.5].any()
            shapes += 1
    assert shapes >= 3


def test_shapes_deform_over_time() -> None:
    y, x = (a.astype(np.float32) for a in np.mgrid[-1.5:1.5:61j, -1.5:1.5:61j])
    shape = next(
        s for s in (Shape.random(np.random.default_rng(i)) for i in range(50)) if s.kind == "blob"
    )
    assert (shape.contains(x, y, 0) ^ shape.contains(x, y, 40)).any()


def test_later_objects_cover_earlier_ones() -> None:
    """The visible part of an object is its whole mask minus the objects in front of it."""
    clip = video(1, objects=(5, 5), absences=0.0, size=(0.2, 0.3), look_alikes=0.0)
    paths, _ = clip._scene(0)
    hidden = 0
    for t in (0, 10, 20):
        whole_masks = []
        for number, (item, path) in enumerate(zip(clip._objects, paths, strict=True), start=1):
            labels = np.zeros((64, 96), np.uint8)
            _draw(
                item,
                path.at(t, 64, 96),
                t,
                number,
                np.zeros((64, 96, 3), np.float32),
                labels,
            )
            whole_masks.append(labels > 0)
        for i, mask in enumerate(whole_masks):
            in_front = np.any([np.zeros_like(mask), *whole_masks[i + 1 :]], axis=0)
            assert np.array_equal(clip[t].labels == i + 1, mask & ~in_front)
            hidden += int((mask & in_front).sum())
    assert hidden > 0, "no object covers another one, so this test shows nothing"


def test_objects_vanish_for_intervals_of_fixed_length_and_come_back() -> None:
    clip = video(2, 400, absences=0.4, absence=10, objects=(3, 3))
    present = np.array([[clip.present(i, t) for t in range(400)] for i in clip.ids()])
    assert present[:, :10].all(), "every object is present at first"
    changes = [t for row in present for t, (a, b) in enumerate(pairwise(row), start=1) if a != b]
    assert changes and all(t % 10 == 0 for t in changes)
    assert 0.25 < 1 - present.mean() < 0.55
    for number, row in zip(clip.ids(), present, strict=True):
        assert all(number not in clip[t].masks() for t in np.flatnonzero(~row)[:5])


def test_objects_leave_the_frame() -> None:
    clips = [video(seed, 300, absences=0.0, objects=(1, 1), size=(0.05, 0.1)) for seed in range(8)]
    empty_frames = [sum(not clip[t].masks() for t in range(0, 300, 10)) for clip in clips]
    assert any(0 < count < 30 for count in empty_frames) and sum(empty_frames) < 120


def test_only_cuts_change_the_background() -> None:
    clip = video(8, 200, cuts=0.5, scene=20, noise=0.0)
    scenes = [clip.scene(t) for t in range(200)]
    cuts = [t for t in range(1, 200) if scenes[t] != scenes[t - 1]]
    assert cuts and all(t % 20 == 0 for t in cuts) and scenes == sorted(scenes)
    for t in (cuts[0] - 2, cuts[0] - 1):
        before, after = clip[t], clip[t + 1]
        still = (before.labels == 0) & (after.labels == 0)
        same = (before.image[still] == after.image[still]).all()
        assert same == (t + 1 != cuts[0])


def test_look_alikes_share_shape_and_texture_but_not_the_path() -> None:
    clip = video(0, objects=(6, 6), look_alikes=1.0)
    assert all(item is clip._objects[0] for item in clip._objects)
    paths, _ = clip._scene(0)
    assert len({path.at(0, 64, 96) for path in paths}) == 6


def test_speed_moves_objects_further() -> None:
    def mean_step(speed: float) -> float:
        steps = []
        for seed in range(20):
            path = Path.random(np.random.default_rng(seed), speed, (0.1, 0.1))
            positions = [path.at(t, 100, 100) for t in range(50)]
            steps += [np.hypot(a.x - b.x, a.y - b.y) for a, b in pairwise(positions)]
        return float(np.mean(steps))

    assert 2 < mean_step(3.0) / mean_step(1.0) < 4


def test_photographs_can_be_backgrounds() -> None:
    photo = np.zeros((30, 50, 3), np.uint8)
    photo[..., 1] = 200
    frame = video(0, backgrounds=(photo,), noise=0.0)[0]
    assert (frame.image[frame.labels == 0] == (0, 200, 0)).all()


def test_events_start_after_the_first_interval() -> None:
    assert not any(happens(1, 1, t, 10, 1.0) for t in range(10))
    assert all(happens(1, 1, t, 10, 1.0) for t in range(10, 40))
    assert not any(happens(1, 1, t, 10, 0.0) for t in range(40))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": (3, 2)}, "objects: expected"),
        ({"height": 8}, "height, width: expected"),
        ({"absence": 0}, "absence, scene, speed"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        video(**change)
    with pytest.raises(ValueError, match="length: expected 1 frame"):
        SyntheticVideo(0, 0)
    with pytest.raises(IndexError, match="frame 40 is out of range"):
        video()[40]


def test_a_predictor_tracks_a_synthetic_video() -> None:
    predictor = build_sam2_video_predictor("tiny", image_size=64, device="cpu", seed=0)
    clip = video(0, 3)
    state = predictor.init_state(clip.images())
    predictor.add_new_mask(state, 0, 1, next(iter(clip[0].masks().values())))
    assert [t for t, _, _ in predictor.propagate_in_video(state)] == [0, 1, 2]
