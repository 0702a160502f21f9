"""Masks can be written to every file format and read back; files are written atomically."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2_fast.files.atomic import whole_file
from sam2_fast.io.masks import (
    DAVIS_PALETTE,
    DavisWriter,
    JsonWriter,
    PngWriter,
    describe,
    load_mask,
    load_masks_json,
    save_davis,
    save_mask,
    to_detections,
)

LEFT = np.zeros((6, 8), bool)
LEFT[1:4, :5] = True
RIGHT = np.zeros((6, 8), bool)
RIGHT[2:6, 3:8] = True


def test_the_palette_is_that_of_davis_and_voc() -> None:
    colors = np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3)
    corners = [[r, g, b] for b in (0, 128) for g in (0, 128) for r in (0, 128)]
    assert colors[:9].tolist() == [*corners, [64, 0, 0]]
    assert len({tuple(color) for color in colors.tolist()}) == 256
    assert colors[255].tolist() == [224, 224, 192]


def test_a_mask_is_written_as_png_and_read_back(tmp_path: Path) -> None:
    save_mask(tmp_path / "deep" / "mask.png", LEFT)
    assert np.array_equal(load_mask(tmp_path / "deep" / "mask.png"), LEFT)
    with Image.open(tmp_path / "deep" / "mask.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == list(DAVIS_PALETTE)


def test_lower_ids_are_on_top_in_a_davis_png(tmp_path: Path) -> None:
    save_davis(tmp_path / "0.png", {2: RIGHT, 1: LEFT, 200: LEFT})
    assert np.array_equal(load_mask(tmp_path / "0.png", 1), LEFT)
    assert np.array_equal(load_mask(tmp_path / "0.png", 2), RIGHT & ~LEFT)
    assert not load_mask(tmp_path / "0.png", 200).any()
    assert np.array_equal(load_mask(tmp_path / "0.png"), LEFT | RIGHT)


def test_ids_outside_the_palette_are_refused(tmp_path: Path) -> None:
    for object_id in (0, 256, -1):
        with pytest.raises(ValueError, match="1 to 255"):
            save_davis(tmp_path / "0.png", {object_id: LEFT})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "I;16"])
def test_masks_of_other_image_modes_can_be_read(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(LEFT.astype(np.uint16) * 65535)
    else:
        image = Image.fromarray(LEFT.astype(np.uint8) * 255).convert(mode)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(load_mask(tmp_path / "mask.png"), LEFT)


def test_unreadable_masks_are_errors(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad.png"):
        load_mask(tmp_path / "bad.png")
    with pytest.raises(FileNotFoundError):
        load_mask(tmp_path / "none.png")
    several = np.zeros((4, 4, 3), np.uint8)
    several[1:] = (0, 90, 0)
    several[2:] = (90, 0, 0)
    Image.fromarray(several).save(tmp_path / "colors.png")
    with pytest.raises(ValueError, match="colours in place of ids"):
        load_mask(tmp_path / "colors.png", 1)


def test_writers_use_the_documented_layout(tmp_path: Path) -> None:
    for writer in (
        PngWriter(tmp_path / "png"),
        DavisWriter(tmp_path / "davis"),
        JsonWriter(tmp_path / "masks.json", 6, 8),
    ):
        for frame in (3, 0):
            writer.write(frame, {1: LEFT, 12: RIGHT})
        writer.close()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "davis/00000.png",
        "davis/00003.png",
        "masks.json",
        "png/001/00000.png",
        "png/001/00003.png",
        "png/012/00000.png",
        "png/012/00003.png",
    ]
    frames = load_masks_json(tmp_path / "masks.json")
    assert list(frames) == [3, 0]
    assert np.array_equal(frames[0][12], RIGHT)
    document = json.loads((tmp_path / "masks.json").read_text())
    assert (document["format"], document["version"]) == ("sam2_fast.masks", 1)
    assert (document["height"], document["width"]) == (6, 8)
    assert document["frames"][0]["objects"][0] == {"id": 1, **describe(LEFT)}


def test_an_aborted_json_writer_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    path.write_text("older")
    writer = JsonWriter(path, 6, 8)
    writer.write(0, {1: LEFT})
    writer.abort()
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"), whole_file(tmp_path / "out") as temporary:
        temporary.write_text("half")
        raise RuntimeError("power cut")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": "other", "version": 1}',
        '{"format": "sam2_fast.masks", "version": 2}',
    ],
)
def test_other_json_documents_are_refused_with_their_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "masks.json").write_text(text)
    with pytest.raises(ValueError, match=r"masks.json"):
        load_masks_json(tmp_path / "masks.json")


def test_a_description_has_area_and_box() -> None:
    assert describe(LEFT)["area"] == 15
    assert describe(LEFT)["bbox"] == [0, 1, 5, 3]
    assert describe(np.zeros((6, 8), bool))["bbox"] == [0, 0, 0, 0]


def test_masks_are_converted_to_supervision_detections() -> None:
    pytest.importorskip("supervision", reason="builds supervision.Detections")
    logits = np.where(np.stack([LEFT, np.zeros_like(LEFT), RIGHT]), 3.0, -3.0)
    detections = to_detections(logits, [4, 5, 6], [0.5, 0.25, 0.75])
    assert detections.tracker_id.tolist() == [4, 6]
    assert detections.confidence.tolist() == [0.5, 0.75]
    assert np.array_equal(detections.mask, np.stack([LEFT, RIGHT]))
    assert detections.xyxy[0].tolist() == [0, 1, 4, 3]
    assert len(to_detections(np.zeros((1, 6, 8)))) == 0
    with pytest.raises(ValueError, match="object_ids: expected 3"):
        to_detections(logits, [1])
    with pytest.raises(ValueError, match=r"\[N, H, W\]"):
        to_detections(LEFT)
