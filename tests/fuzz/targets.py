"""One target for each reader: what it runs, which errors are documented, and its seeds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sam2_fast.cli.prompts import read_prompts
from sam2_fast.cli.runs import Run, check_settings
from sam2_fast.config import Options, Sam2Config
from sam2_fast.data import Sa1bAnnotations, SavAnnotations
from sam2_fast.evaluation.curves import groups_from_csv
from sam2_fast.io import area_from_rle, decode_rle, depth_note, image_orientation, load_image
from sam2_fast.io.frame_folder import frame_files
from sam2_fast.io.images import image_size
from sam2_fast.io.mask_files import read_mask_file
from sam2_fast.io.masks import load_masks_json
from sam2_fast.io.mp4_header import check_sample_counts
from sam2_fast.io.video import open_video
from sam2_fast.training.recipe import Recipe
from sam2_fast.training.run import _step_of
from sam2_fast.video.inference_state import InferenceState
from sam2_fast.video.saved_session import load_session, save_session
from sam2_fast.weights.checkpoint import CheckpointError, infer_config, read_state_dict
from sam2_fast.weights.config_files import read_yaml
from sam2_fast.weights.config_names import read_config_name
from sam2_fast.weights.overrides import apply_plain, apply_to_tree, parse_overrides
from tests.fuzz import mutations, seeds
from tests.video.sessions import frames, small_predictor

PIXELS = 2**20
FRAMES = 100


@dataclass(frozen=True)
class Target:
    """A reader under test.

    run: called with a file of the input's bytes; raises one of `documented`, or accepts.
    modules: files of the readers, of which the line coverage is measured.
    """

    run: Callable[[Path], object]
    seeds: Callable[[], Sequence[bytes]]
    modules: tuple[str, ...]
    mutate: mutations.Mutation = mutations.of_bytes
    documented: tuple[type[Exception], ...] = (ValueError,)
    suffix: str = ""


def _weights(path: Path) -> None:
    state = read_state_dict(path)
    try:
        infer_config(state)
    except CheckpointError:
        return


def _image(path: Path) -> None:
    image_size(path, upright=True)
    image_orientation(path)
    load_image(path, max_pixels=PIXELS, upright=True)
    depth_note(path, max_pixels=PIXELS)


def _mask(path: Path) -> None:
    file = read_mask_file(path, max_pixels=PIXELS, upright=True)
    assert file.labels.shape == file.mask.shape
    file.select(1)


def _video(path: Path) -> None:
    with open_video(path, max_pixels=PIXELS, max_frames=FRAMES, upright=True) as video:
        numbers = [*range(min(len(video), 4)), len(video) - 1, 0]
        for number in numbers:
            assert video[number].shape == (video.height, video.width, 3)
            video.frame_time(number)


def _video_bytes(path: Path) -> None:
    with open_video(path.read_bytes(), max_pixels=PIXELS, max_frames=FRAMES) as video:
        assert video[len(video) - 1].shape == (video.height, video.width, 3)


def _header(path: Path) -> None:
    data = path.read_bytes()
    check_sample_counts(io.BytesIO(data), len(data), FRAMES, "video")


def _names(path: Path) -> None:
    folder = path.with_suffix(".frames")
    folder.mkdir(exist_ok=True)
    try:
        for name in path.read_bytes().decode("latin1").split("\n")[:20]:
            if name.strip(".") and "/" not in name and "\0" not in name:
                (folder / name[:60]).touch()
        files = frame_files(folder, FRAMES)
        assert len({*files}) == len(files)
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _rle(path: Path) -> None:
    rle = json.loads(path.read_bytes())
    mask = decode_rle(rle, max_pixels=PIXELS)
    assert area_from_rle(rle, max_pixels=PIXELS) == mask.sum()
    counts = rle["counts"]
    if mask.size and mask.size < 2**31:
        size = [int(side) for side in rle["size"]]
        plain = {"size": size, "counts": counts}
        if isinstance(counts, list):
            plain = coco.frPyObjects({**plain, "counts": [int(n) for n in counts]}, *size)
        assert np.array_equal(coco.decode(plain), mask)


def _masks_json(path: Path) -> None:
    for table in load_masks_json(path, max_pixels=PIXELS, max_total_pixels=4 * PIXELS).values():
        for object_id in table:
            assert table[object_id].ndim == 2


def _annotations(path: Path) -> None:
    limits = {"max_pixels": PIXELS, "max_total_pixels": 4 * PIXELS}
    if b"masklet" in path.read_bytes():
        video = SavAnnotations(path, **limits)
        for frame in range(len(video)):
            dict(video.read(frame))
    else:
        list(Sa1bAnnotations(path, **limits))


def _overrides(path: Path) -> None:
    parsed = parse_overrides(path.read_bytes().decode("latin1").split("\n"))
    plain = [override for override in parsed if override.is_plain]
    apply_to_tree({"image_encoder": {"trunk": {}}, "image_size": 1024}, parsed)
    apply_plain(Sam2Config(), Options(), plain)


def _config_names(path: Path) -> None:
    for name in path.read_bytes().decode("latin1").split("\n"):
        read_config_name(name)


def _rows(path: Path) -> None:
    unfinished = path.parent / "unfinished"
    unfinished.mkdir(exist_ok=True)
    (path.parent / "run.json").write_bytes(path.read_bytes())
    (unfinished / "rows.jsonl").write_bytes(path.read_bytes().replace(b"\n", b"") + b"\n")
    try:
        check_settings(path.parent, {"a": [1], "b": None})
    except ValueError:
        list(Run(path.parent, {}, {}).rows())
        _step_of(path.read_text(encoding="latin1"), path)


@cache
def _predictor() -> Any:
    return small_predictor()


@cache
def _session_seeds() -> list[bytes]:
    predictor = _predictor()
    state = predictor.init_state(frames(3))
    predictor.add_new_points_or_box(state, 0, 1, points=[[18, 20]], labels=[1])
    predictor.add_new_mask(state, 0, "b", np.ones((60, 80), bool))
    for _ in predictor.propagate_in_video(state):
        pass
    path = Path("session.safetensors")
    save_session(state, path)
    return [path.read_bytes()]


@cache
def _session_state() -> InferenceState:
    state: InferenceState = _predictor().init_state(frames(3))
    return state


def _session(path: Path) -> None:
    state = _session_state()
    _predictor().reset_state(state)
    try:
        load_session(state, _predictor(), path)
    except ValueError:
        assert not state.obj_ids, "a refused file changed the session"
        raise


_WEIGHTS = ("weights/checkpoint.py", "files/pickle_file.py", "files/pickles.py")
_MASKS = ("io/mask_files.py", "io/mask_levels.py")
_IMAGES = ("io/images.py", "io/orientation.py")
_ANIMATED = ("io/picture_file.py", "io/animation.py")
_VIDEOS = ("io/video_file.py", "io/video_decoder.py", "io/video_stream.py", "io/frame_table.py")
_MISSING = (ValueError, FileNotFoundError)

TARGETS: dict[str, Target] = {
    "pt": Target(
        _weights, seeds.archives, _WEIGHTS, mutations.of_archive, (CheckpointError,), ".pt"
    ),
    "legacy": Target(_weights, seeds.legacy, _WEIGHTS, documented=(CheckpointError,), suffix=".pt"),
    "safetensors": Target(
        *(_weights, seeds.safetensors, _WEIGHTS, mutations.of_safetensors, (CheckpointError,)),
        ".safetensors",
    ),
    "images": Target(_image, seeds.pictures, _IMAGES, mutations.of_picture),
    "masks": Target(_mask, seeds.masks, _MASKS, mutations.of_picture),
    "animations": Target(_video, seeds.animations, _ANIMATED, mutations.of_picture),
    "videos": Target(_video, seeds.videos, _VIDEOS),
    "videos_in_memory": Target(_video_bytes, seeds.videos, _VIDEOS),
    "mp4_header": Target(_header, seeds.videos, ("io/mp4_header.py",)),
    "frame_names": Target(
        *(_names, lambda: seeds.lines(seeds.NAMES)),
        *(("io/frame_order.py", "io/frame_folder.py"), mutations.of_lines),
    ),
    "rle": Target(_rle, seeds.rles, ("io/rle.py",), mutations.of_json),
    "masks_json": Target(
        *(_masks_json, seeds.mask_documents, ("io/masks.py", "io/json_files.py")),
        mutations.of_json,
    ),
    "annotations": Target(
        _annotations, seeds.annotations, ("data/sav.py", "data/sa1b.py"), mutations.of_json
    ),
    "prompts": Target(read_prompts, seeds.prompts, ("cli/prompts.py",), mutations.of_json),
    "recipe": Target(Recipe.load, seeds.recipes, ("training/recipe.py",), mutations.of_json),
    "overrides": Target(
        *(_overrides, lambda: seeds.lines(seeds.LINES), ("weights/overrides.py",)),
        mutations.of_lines,
    ),
    "config_names": Target(
        *(_config_names, lambda: seeds.lines(seeds.LINES[3:]), ("weights/config_names.py",)),
        mutations.of_lines,
    ),
    "yaml": Target(read_yaml, seeds.yaml, ("weights/config_files.py",), mutations.of_lines),
    "session": Target(
        *(_session, _session_seeds, ("video/saved_session.py",), mutations.of_safetensors),
    ),
    "runs": Target(_rows, seeds.runs, ("cli/runs.py",), mutations.of_json),
    "groups": Target(
        *(lambda path: groups_from_csv(path, "kind"), seeds.tables),
        *(("evaluation/curves.py",), mutations.of_lines),
    ),
}
