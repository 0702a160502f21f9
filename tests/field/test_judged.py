"""Nothing is dropped without a word between folders of masks and a mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sam2_fast.cli.app import app
from sam2_fast.data import Annotations
from sam2_fast.evaluation import (
    Report,
    Rounds,
    Unjudged,
    User,
    VideoScores,
    score_folders,
    simulate_images,
    simulate_users,
)
from sam2_fast.io.masks import DAVIS_PALETTE, save_mask
from sam2_fast.training import Recipe
from sam2_fast.training.stored import Folder

SHAPE = (40, 60)
Labels = npt.NDArray[np.uint8]


def square(corner: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[corner : corner + 10, corner : corner + 10] = True
    return mask


def labels_of(t: int, ids: Iterable[int]) -> Labels:
    """Objects side by side that move with t."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for position, number in enumerate(ids):
        labels[5 + t : 15 + t, 5 + 14 * position : 15 + 14 * position] = number
    return labels


def save(path: Path, labels: Labels, kind: str = "palette") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if kind == "palette":
        image.putpalette(DAVIS_PALETTE)
    if kind == "grey and alpha":
        image.putalpha(Image.new("L", image.size, 255))
    if kind == "RGB":
        image = image.convert("RGB")
    image.save(path)


def video(folder: Path, ids: Iterable[int] = (1,), *, kind: str = "palette", frames: Any = None):
    for t in range(5) if frames is None else frames:
        save(folder / f"{t:05d}.png", labels_of(t % 7, ids), kind)


def scores(tmp_path: Path, **options: Any) -> Report:
    return score_folders(tmp_path / "T", tmp_path / "M", progress=False, **options)


BINARY = {
    "0/1": (1, "palette"),
    "0/255": (255, "grey"),
    "0/255, palette": (255, "palette"),
    "0/255, colours": (255, "RGB"),
    "0/255, grey and alpha": (255, "grey and alpha"),
    "0/1, grey": (1, "grey"),
}


@pytest.mark.field("B05")
@pytest.mark.parametrize("truth", BINARY)
@pytest.mark.parametrize("masks", BINARY)
def test_binary_videos_are_object_1_however_they_are_stored(
    tmp_path: Path, truth: str, masks: str
) -> None:
    for name, (value, kind) in (("T", BINARY[truth]), ("M", BINARY[masks])):
        video(tmp_path / name / "v", (value,), kind=kind)
    report = scores(tmp_path, strict=True)
    assert [(row.object, row.j_and_f) for row in report.objects] == [(1, 1.0)]


@pytest.mark.field("B03")
def test_quantized_frames_may_have_any_order_of_colours(tmp_path: Path) -> None:
    video(tmp_path / "T" / "v")
    video(tmp_path / "M" / "v")
    for t in (1, 3):
        image = Image.fromarray(1 - labels_of(t, (1,)), "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        image.save(tmp_path / "M" / "v" / f"{t:05d}.png")
    report = scores(tmp_path, strict=True)
    assert [(row.object, row.j_and_f) for row in report.objects] == [(1, 1.0)]
    assert score_folders(tmp_path / "M", tmp_path / "T", progress=False).objects == report.objects


@pytest.mark.field("B23")
def test_the_grey_and_alpha_file_of_davis_2016_is_read(tmp_path: Path) -> None:
    for name in ("T", "M"):
        video(tmp_path / name / "bear", (255,), kind="grey")
    save(tmp_path / "T" / "bear" / "00002.png", labels_of(2, (255,)), "grey and alpha")
    assert scores(tmp_path, strict=True).mean("j_and_f") == 1.0


@pytest.mark.field("B05")
def test_a_frame_of_0_and_255_in_a_video_of_ids_is_not_judged(tmp_path: Path) -> None:
    for name in ("T", "M"):
        video(tmp_path / name / "v", (1, 2))
    save(tmp_path / "T" / "v" / "00002.png", labels_of(2, (255,)))
    annotations = Annotations(tmp_path / "T" / "v")
    assert annotations.read("00002") == {}
    void = annotations.void("00002")
    assert void is not None and void.sum() == 100
    assert Annotations(tmp_path / "M" / "v").void("00002") is None
    assert [row.object for row in scores(tmp_path).objects] == [1, 2]


@pytest.mark.field("B05")
def test_everything_that_no_score_counts_is_named(tmp_path: Path) -> None:
    video(tmp_path / "T" / "v1", (1, 2))
    video(tmp_path / "M" / "v1", (1, 2, 9), frames=range(7))
    save(tmp_path / "T" / "v1" / "00000.png", labels_of(0, (1, 2, 3)))
    for folder in ("T/empty", "M/empty"):
        video(tmp_path / folder, ())
    video(tmp_path / "T" / "t")
    video(tmp_path / "M" / "m")
    report = scores(tmp_path)
    assert report.unjudged == [
        Unjudged("t", "only in the truth"),
        Unjudged("m", "only in the predictions"),
        Unjudged("empty", "no object is visible in the truth of the judged frames"),
        Unjudged("v1", "1 object (3) of the truth: not visible on the judged frames"),
        Unjudged("v1", "2 frames (00005, 00006) of the predictions: not in the truth"),
        Unjudged("v1", "1 object (9) of the predictions: not in the truth"),
    ]
    assert {row.video for row in report.objects} == {"v1"}
    report.save(tmp_path / "r.json")
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["unjudged"][0] == {"video": "t", "reason": "only in the truth"}
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "T"), str(tmp_path / "M")])
    assert result.exit_code == 0
    assert "not judged: v1: 1 object (9) of the predictions: not in the truth" in result.stdout


@pytest.mark.field("B05")
@pytest.mark.parametrize("extra", ["video", "empty", "object", "frame", "hidden object"])
def test_strict_refuses_each_of_them(tmp_path: Path, extra: str) -> None:
    for name in ("T", "M"):
        video(tmp_path / name / "v", (1,))
    scores(tmp_path, strict=True)
    if extra == "video":
        video(tmp_path / "T" / "w")
    if extra == "empty":
        for name in ("T", "M"):
            video(tmp_path / name / "w", ())
    if extra == "object":
        save(tmp_path / "M" / "v" / "00002.png", labels_of(2, (1, 2)))
    if extra == "frame":
        video(tmp_path / "M" / "v", frames=range(9))
    if extra == "hidden object":
        save(tmp_path / "T" / "v" / "00000.png", labels_of(0, (1, 2)))
    scores(tmp_path)
    with pytest.raises(ValueError, match=r"without truth|not judged, but strict"):
        scores(tmp_path, strict=True)


@pytest.mark.field("B29")
def test_without_an_object_the_exit_code_is_2_and_json_is_strict(tmp_path: Path) -> None:
    for name in ("T", "M"):
        video(tmp_path / name / "v", ())
    arguments = ["evaluate", str(tmp_path / "T"), str(tmp_path / "M")]
    for output in ("r.json", "r.csv"):
        result = CliRunner().invoke(app, [*arguments, "--json", "-o", str(tmp_path / output)])
        assert result.exit_code == 2
        facts = json.loads(result.stdout, parse_constant=pytest.fail)
        assert facts["j_and_f"] is None and facts["objects"] == 0
        assert "v: no object is visible" in facts["unjudged"][0]
        assert "error: no object was judged" in result.stderr
    document = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert document["summary"]["j"] is None
    assert "nan" not in (tmp_path / "r.csv").read_text()
    assert "no scores" in CliRunner().invoke(app, arguments).stdout
    Rounds([]).save(tmp_path / "rounds.json")
    document = json.loads((tmp_path / "rounds.json").read_text(), parse_constant=pytest.fail)
    assert document["mean"] is None


@pytest.mark.field("B01")
def test_frames_that_start_above_0_with_gaps_are_paired_by_name(tmp_path: Path) -> None:
    frames = [5, 10, 25, 30, 100]
    for name in ("T", "M"):
        video(tmp_path / name / "v", (1, 2), frames=frames)
    report = scores(tmp_path, strict=True, ends=True)
    assert [(r.object, r.frames, r.j_and_f) for r in report.objects] == [(1, 5, 1.0), (2, 5, 1.0)]
    video(tmp_path / "M" / "v", (1, 2), frames=range(101))
    assert scores(tmp_path, ends=True).objects == report.objects


@pytest.mark.field("B05")
def test_objects_of_the_prediction_alone_are_counted() -> None:
    added = VideoScores()
    added.add({1: square(5)}, {1: square(5), 7: square(20), 8: square(5) & False})
    assert added.extra() == [7]


@pytest.mark.field("B05")
@pytest.mark.parametrize("kind", ["0/255", "0/255, grey and alpha", "0/255, palette"])
def test_training_reads_binary_videos(tmp_path: Path, kind: str) -> None:
    value, stored = BINARY[kind]
    video(tmp_path / "T" / "v", (value,), kind=stored)
    for t in range(5):
        save(tmp_path / "I" / "v" / f"{t:05d}.png", labels_of(t, (200,)), "RGB")
    source = Folder(str(tmp_path / "I"), str(tmp_path / "T"), frames=2)
    assert source.clip(0, 32).truth.any()
    assert source.unused() == []


@pytest.mark.field("B05")
def test_training_names_what_it_cannot_use(tmp_path: Path) -> None:
    video(tmp_path / "T" / "short", frames=[0])
    video(tmp_path / "T" / "long")
    for name in ("short", "long", "other"):
        for t in range(5):
            save(tmp_path / "I" / name / f"{t:05d}.png", labels_of(t, (200,)), "RGB")
    source = {"kind": "folder", "images": str(tmp_path / "I"), "masks": str(tmp_path / "T")}
    recipe = {"model": "tiny", "sources": [source | {"frames": 3}]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8-sig")
    unused = Recipe.load(tmp_path / "recipe.json").unused()
    assert unused == [
        f"{tmp_path / 'I' / 'other'}: has no annotations",
        f"{tmp_path / 'T' / 'short'}: has 1 annotated frames, a clip has 3",
    ]
    save_mask(tmp_path / "S" / "other" / "00000.png", square(5))
    with pytest.raises(ValueError, match="fewer frames are annotated in other"):
        Folder(str(tmp_path / "I"), str(tmp_path / "S"), frames=3).clip(0, 32)


class Copies:
    """A predictor whose objects keep the mask that they were prompted with."""

    def init_state(self, source: Any) -> dict[int, torch.Tensor]:
        return {}

    def add_new_mask(self, state: Any, frame: int, number: int, mask: Any) -> None:
        state[number] = torch.from_numpy(np.where(mask, 1.0, -1.0))[None]

    def propagate_in_video(self, state: Any, start_frame_idx: int) -> Iterator[Any]:
        for t in range(start_frame_idx, 5):
            yield t, list(state), torch.stack(list(state.values()))


@pytest.mark.field("B05")
def test_simulated_users_name_what_they_did_not_judge(tmp_path: Path) -> None:
    video(tmp_path / "T" / "v")
    save(tmp_path / "T" / "v" / "00004.png", labels_of(4, (1, 2)))
    video(tmp_path / "T" / "none", ())
    for name in ("v", "none", "extra"):
        video(tmp_path / "I" / name, kind="RGB")
    user = User("semi-supervised")
    rounds = simulate_users(Copies, tmp_path / "I", tmp_path / "T", user, progress=False)
    assert rounds.unjudged == [
        Unjudged("extra", "has no annotations"),
        Unjudged("none", "no object is visible on the judged frames"),
        Unjudged("v", "objects of the truth that are not visible on the judged frames: 2"),
    ]
    assert [(row.video, row.object) for row in rounds.rounds] == [("v", 1)]
    with pytest.raises(ValueError, match="not judged, but strict: extra: has no annotations"):
        simulate_users(Copies, tmp_path / "I", tmp_path / "T", user, strict=True, progress=False)


@pytest.mark.field("B05")
def test_images_that_are_not_clicked_are_named(tmp_path: Path) -> None:
    save(tmp_path / "T" / "a.PNG", labels_of(0, ()))
    for name in ("a.jpg", "b.JPG"):
        save(tmp_path / "I" / name, labels_of(0, (200,)), "RGB")
    scores_of_images = simulate_images(object, tmp_path / "I", tmp_path / "T", progress=False)
    assert not scores_of_images
    assert scores_of_images.unjudged == [
        Unjudged("b", "has no mask file"),
        Unjudged("a", "has no object"),
    ]
    with pytest.raises(ValueError, match="b: has no mask file"):
        simulate_images(object, tmp_path / "I", tmp_path / "T", strict=True, progress=False)


@pytest.mark.field("B14")
@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_scores_of_the_videos_before_a_broken_one_are_saved(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b", "c"):
        video(tmp_path / "T" / name)
        video(tmp_path / "M" / name)
    (tmp_path / "M" / "c" / "00002.png").unlink()
    path = tmp_path / f"scores{suffix}"
    arguments = ["evaluate", str(tmp_path / "T"), str(tmp_path / "M"), "-o", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "00002.png" in result.stderr and "the results of 2 videos are in" in result.stderr
    if suffix == ".json":
        document = json.loads(path.read_text())
        assert document["complete"] is False
        assert [row["video"] for row in document["objects"]] == ["a", "b"]
    else:
        assert [line.split(",")[0] for line in path.read_text().splitlines()[2:]] == ["a", "b"]


@pytest.mark.field("B14")
def test_rounds_of_the_videos_before_a_broken_one_are_returned_as_they_come(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        video(tmp_path / "T" / name)
        video(tmp_path / "I" / name, kind="RGB")
    (tmp_path / "I" / "b" / "00004.png").unlink()
    kept: list[Rounds] = []
    with pytest.raises(FileNotFoundError, match="00004"):
        simulate_users(
            Copies,
            tmp_path / "I",
            tmp_path / "T",
            User("semi-supervised"),
            progress=False,
            finished=kept.append,
        )
    assert [{row.video for row in rounds.rounds} for rounds in kept] == [{"a"}]
