"""Folders with stray files, suffixes in capitals and other paddings; text files; run lengths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sam2_fast.cli.prompts import read_prompts
from sam2_fast.data import Annotations, Sa1bAnnotations, SavAnnotations
from sam2_fast.evaluation import groups_from_csv, score_folders, simulate_images
from sam2_fast.io import area_from_rle, decode_rle, encode_rle
from sam2_fast.io.masks import JsonWriter, load_masks_json, save_davis, save_mask
from sam2_fast.training import Recipe
from sam2_fast.training.run import _writers
from sam2_fast.training.stored import Folder, Sa1b, Sav

MASK = np.zeros((40, 60), dtype=bool)
MASK[5:15, 10:30] = True
RLE = encode_rle(MASK, text=True)
PIXELS = np.where(MASK, 200, 40).astype(np.uint8)


def frames(folder: Path, suffix: str = ".png", names: Any = None) -> list[Path]:
    paths = [folder / f"{name}{suffix}" for name in names or [f"{t:05d}" for t in range(4)]]
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        save_davis(folder / "x.png", {1: MASK})
        (folder / "x.png").rename(path)
    return paths


STRAY: dict[str, Callable[[Path], object]] = {
    "Thumbs.db": lambda folder: (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0"),
    "desktop.ini": lambda folder: (folder / "desktop.ini").write_text("[.ShellClassInfo]"),
    "meta.json": lambda folder: (folder / "meta.json").write_text("{}"),
    "notes.txt": lambda folder: (folder / "notes.txt").write_text("00001"),
    "hidden": lambda folder: (folder / "._00001.png").write_bytes(b"\0\5\x16\7"),
    "overlay.png": lambda folder: Image.fromarray(PIXELS).save(folder / "overlay.png"),
    "overlay.mp4": lambda folder: (folder / "overlay.mp4").write_bytes(b"\0"),
    "@eaDir": lambda folder: (folder / "@eaDir").mkdir(),
    ".ipynb_checkpoints": lambda folder: frames(folder / ".ipynb_checkpoints"),
}


@pytest.mark.field("B24")
@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("layout", ["one file a frame", "one folder an object"])
def test_other_files_beside_masks_are_passed_over(tmp_path: Path, stray: str, layout: str) -> None:
    for root in ("T", "M"):
        folder = tmp_path / root / "v"
        frames(folder if layout == "one file a frame" else folder / "001")
        if not (layout == "one folder an object" and stray == "overlay.png"):
            STRAY[stray](folder)
        if layout == "one folder an object" and stray != "@eaDir":
            STRAY[stray](folder / "001")
    report = score_folders(tmp_path / "T", tmp_path / "M", strict=True, progress=False)
    assert [(row.object, row.j_and_f) for row in report.objects] == [(1, 1.0)]
    images = tmp_path / "I" / "v"
    frames(images, ".jpg")
    assert Folder(str(tmp_path / "I"), str(tmp_path / "T"), frames=2).clip(0, 32)


@pytest.mark.field("B24")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["v/Thumbs.db"], r"got Thumbs\.db"),
        (["v/00000.png", "v/001/00000.png"], r"got both: 00000\.png and 001/"),
        (["v/cat/00000.png"], "cat: expected a folder named by the object's number"),
        (["v/1/00000.png", "v/001/00000.png"], "the folder 001 is of the same object"),
        (["v/00000.png", "v/00000.PNG"], r"00000\.PNG and 00000\.png have the same name"),
    ],
)
def test_folders_without_one_layout_are_errors_that_name_the_files(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        path = tmp_path / name
        frames(path.parent, path.suffix, [path.stem])
    with pytest.raises(ValueError, match=message):
        Annotations(tmp_path / "v")


@pytest.mark.field("B25")
@pytest.mark.parametrize("suffix", [".PNG", ".Png"])
@pytest.mark.parametrize("layout", ["one file a frame", "one folder an object"])
def test_suffixes_of_masks_may_be_in_capitals(tmp_path: Path, suffix: str, layout: str) -> None:
    for root, used in (("T", ".png"), ("M", suffix)):
        folder = tmp_path / root / "v"
        frames(folder if layout == "one file a frame" else folder / "001", used)
    for truth, masks in (("T", "M"), ("M", "T")):
        report = score_folders(tmp_path / truth, tmp_path / masks, strict=True, progress=False)
        assert report.mean("j_and_f") == 1.0


@pytest.mark.field("B25")
@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".JPEG", ".PNG", ".bmp", ".WebP"])
def test_suffixes_of_training_images_may_be_in_capitals(tmp_path: Path, suffix: str) -> None:
    frames(tmp_path / "T" / "v")
    for path in frames(tmp_path / "I" / "v", suffix):
        Image.fromarray(PIXELS).save(path)
    source = Folder(str(tmp_path / "I"), str(tmp_path / "T"), frames=2)
    assert source.clip(0, 32) and not source.unused()
    (tmp_path / "s").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "s" / f"sa_1{suffix}")
    Image.fromarray(PIXELS).save(tmp_path / "s" / f"sa_2{suffix}")
    (tmp_path / "s" / "sa_1.JSON").write_text(json.dumps({"annotations": [{"segmentation": RLE}]}))
    image = Sa1b(str(tmp_path / "s"))
    assert image.clip(0, 32)
    assert image.unused() == [f"{tmp_path / 's' / 'sa_2'}{suffix}: has no sa_2.json"]


@pytest.mark.field("B25")
def test_suffixes_of_sa_v_and_of_images_to_click_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "v_1_manual.JSON").write_text(json.dumps({"masklet": [[RLE]]}))
    (tmp_path / "v_1.MP4").write_bytes(b"")
    assert Sav(str(tmp_path)).videos() == ["v_1"]
    with pytest.raises(ValueError, match=r"v_1\.MP4"):
        Sav(str(tmp_path)).open("v_1")
    with pytest.raises(FileNotFoundError, match="file of that name"):
        (tmp_path / "v_1.MP4").rename(tmp_path / "other.mp4")
        Sav(str(tmp_path) + "/").open("v_1")
    frames(tmp_path / "T", ".PNG", ["a"])
    with pytest.raises(FileNotFoundError, match=r"images .*a: no image of that name"):
        simulate_images(pytest.fail, tmp_path / "T2", tmp_path / "T")


@pytest.mark.field("B24")
def test_other_paddings_of_a_frame_number_are_named(tmp_path: Path) -> None:
    frames(tmp_path / "T" / "v")
    frames(tmp_path / "M" / "v", names=["0", "1", "2", "3"])
    with pytest.raises(
        FileNotFoundError, match=r"00001\.png: no such file.*has 1\.png: names must"
    ):
        score_folders(tmp_path / "T", tmp_path / "M", progress=False)
    frames(tmp_path / "I" / "v", ".jpg", ["0", "1", "2", "3"])
    with pytest.raises(FileNotFoundError, match=r"no image of that name.*it has \d: names must be"):
        Folder(str(tmp_path / "I"), str(tmp_path / "T"), frames=2).clip(0, 32)


@pytest.mark.field("B24")
def test_frames_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    frames(tmp_path, names=["10", "9", "100"])
    assert Annotations(tmp_path).frames() == ["9", "10", "100"]


@pytest.mark.field("B26")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_files_may_have_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text, encoding=encoding)
        return tmp_path / name

    prompts = {"objects": [{"id": 1, "box": [1, 2, 3, 4]}]}
    assert read_prompts(write("p.json", json.dumps(prompts)))[0].object_id == 1
    assert Recipe.load(write("r.json", '{"model": "tiny"}')).model == "tiny"
    assert len(SavAnnotations(write("v.json", json.dumps({"masklet": [[RLE]]})))) == 1
    sa1b = {"annotations": [{"segmentation": RLE}]}
    assert np.array_equal(Sa1bAnnotations(write("s.json", json.dumps(sa1b)))[0], MASK)
    groups = groups_from_csv(write("g.csv", "video,object,age\nv,1,old\n"), "age")
    assert groups["v", 1] == "old"
    with pytest.raises(ValueError, match=r"h\.csv: .*got 'one' for video v"):
        groups_from_csv(write("h.csv", "video,object,age\nv,one,old\n"), "age")
    frames(tmp_path / "T" / "v")
    listed = str(write("videos.txt", "v\n"))
    assert Folder(str(tmp_path), str(tmp_path / "T"), listed).videos() == ["v"]
    writer = JsonWriter(tmp_path / "masks.json", 40, 60)
    writer.write(0, {1: MASK})
    writer.close()
    text = (tmp_path / "masks.json").read_text()
    assert np.array_equal(load_masks_json(write("m.json", text))[0][1], MASK)


@pytest.mark.field("B29")
def test_the_log_of_a_training_run_is_strict_json(tmp_path: Path) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        (write,) = _writers(stack, tmp_path, 0, False)
        write(1, {"total": float("nan"), "iou": float("inf"), "dice": 0.5})
    row = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {"step": 1, "total": None, "iou": None, "dice": 0.5}


@pytest.mark.field("U09")
def test_run_lengths_may_be_whole_floats() -> None:
    plain: Any = {"size": [2.0, 3.0], "counts": [1.0, 2.0, 3.0]}
    assert np.array_equal(decode_rle(plain), [[False, True, False], [True, False, False]])
    assert area_from_rle(plain | {"size": np.array([2.0, 3.0])}) == 2
    assert area_from_rle({**RLE, "size": [40.0, 60.0]}) == MASK.sum()
    for wrong in (
        {"size": [2.5, 3], "counts": [6]},
        {"size": [2, 3], "counts": [1.5, 4.5]},
        {"size": [float("nan"), 3], "counts": [6]},
        {"size": None, "counts": [6]},
        {"size": [2, 3], "counts": None},
        None,
    ):
        with pytest.raises(ValueError, match="rle"):
            decode_rle(wrong)  # type: ignore[arg-type]


def json_file(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


@pytest.mark.field("U09")
@pytest.mark.parametrize("size", [{"video_height": 40.0, "video_width": 60.0}, {}])
def test_null_masks_of_sa_v_are_empty(tmp_path: Path, size: dict[str, float]) -> None:
    document = {"masklet": [[None, RLE], [None, None]], "masklet_id": [4.0, 9], **size}
    video = SavAnnotations(json_file(tmp_path / "v.json", document))
    masks: dict[int, npt.NDArray[np.bool_]] = video.read(0)
    assert video.ids == [4, 9] and np.array_equal(masks[9], MASK)
    assert masks[4].shape == MASK.shape and not masks[4].any()
    assert not any(mask.any() for mask in video.read(1).values())


@pytest.mark.field("U09")
@pytest.mark.parametrize("key", ["video_height", "video_width", "video_id", "masklet_id"])
def test_null_values_of_sa_v_are_unknown(tmp_path: Path, key: str) -> None:
    document = {
        "masklet": [[RLE]],
        "video_height": 40,
        "video_width": 60,
        "video_id": "v",
        key: None,
    }
    video = SavAnnotations(json_file(tmp_path / "sav_1.json", document))
    assert np.array_equal(video.read(0)[0], MASK)
    assert video.height == (0 if key in ("video_height", "video_width") else 40)
    assert video.video_id == ("sav_1" if key == "video_id" else "v")


@pytest.mark.field("U09")
def test_masks_without_any_size_and_damaged_ones_name_the_file(tmp_path: Path) -> None:
    video = SavAnnotations(json_file(tmp_path / "v.json", {"masklet": [[None], [{"size": 3}]]}))
    for frame, message in ((0, "is null, and"), (1, "rle: expected")):
        video_alone = (
            video
            if frame
            else SavAnnotations(json_file(tmp_path / "v.json", {"masklet": [[None]]}))
        )
        with pytest.raises(ValueError, match=rf"v\.json: object 0 on frame {frame}: {message}"):
            video_alone.read(frame)
    with pytest.raises(ValueError, match="masklet_id: expected a list of whole numbers"):
        SavAnnotations(json_file(tmp_path / "v.json", {"masklet": [[RLE]], "masklet_id": ["a"]}))
    image = {"image": {"height": 40, "width": 60}, "annotations": [{"segmentation": None}]}
    masks = Sa1bAnnotations(json_file(tmp_path / "s.json", image))
    assert masks[0].shape == MASK.shape and not masks[0].any()
    damaged = {"annotations": [{"segmentation": None}]}
    with pytest.raises(ValueError, match=r"d\.json: mask 0: is null"):
        list(Sa1bAnnotations(json_file(tmp_path / "d.json", damaged)))


@pytest.mark.field("U09")
def test_a_null_mask_in_masks_json_is_refused_by_name(tmp_path: Path) -> None:
    entry = {"frame": 3, "objects": [{"id": 2, "segmentation": None}]}
    document = {"format": "sam2_fast.masks", "version": 1, "frames": [entry]}
    with pytest.raises(ValueError, match=r"m\.json: object 2, frame 3: rle: expected"):
        load_masks_json(json_file(tmp_path / "m.json", document))


@pytest.mark.field("B24")
def test_a_folder_of_masks_of_one_object_may_be_of_any_kind(tmp_path: Path) -> None:
    save_mask(tmp_path / "001" / "00000.png", MASK)
    Image.fromarray(MASK.astype(np.uint8) * 255).save(tmp_path / "001" / "00001.png")
    Image.fromarray(~MASK).convert("P").save(tmp_path / "001" / "00002.png")
    annotations = Annotations(tmp_path)
    areas = [int(annotations.read(frame)[1].sum()) for frame in annotations.frames()]
    assert areas == [200, 200, 2200]
