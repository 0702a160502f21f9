"""Readers of JSON, CSV, YAML and text raise their documented errors, at little cost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam2_fast.cli.prompts import read_prompts
from sam2_fast.cli.runs import Run, read_run
from sam2_fast.data import Sa1bAnnotations, SavAnnotations
from sam2_fast.evaluation.curves import groups_from_csv
from sam2_fast.io import load_masks_json
from sam2_fast.io.masks import JsonWriter
from sam2_fast.training import Recipe
from sam2_fast.training.run import _step_of
from sam2_fast.weights.config_files import read_yaml
from tests.reliability.costs import cost_of, refusal_of

READERS: dict[str, Callable[[Path], Any]] = {
    "masks": load_masks_json,
    "sa-v": SavAnnotations,
    "sa-1b": Sa1bAnnotations,
    "recipe": Recipe.load,
    "prompts": read_prompts,
    "run": lambda path: read_run(path.parent),
    "groups": lambda path: groups_from_csv(path, "kind"),
    "yaml": read_yaml,
}
TEXTS = {
    "nested": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "long number": "1" * 10_000,
    "not UTF-8": b"\xff\xfe\x00",
    "empty": "",
    "null": "null",
    "lone surrogate": '"\\ud800"',
}


def at(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.reliability("F19", "32")
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("reader", READERS)
def test_text_of_another_kind_is_a_value_error_with_the_name(
    reader: str, text: str, tmp_path: Path
) -> None:
    path = at(tmp_path, TEXTS[text])
    with pytest.raises(ValueError, match=r"run\.json"):
        READERS[reader](path)


@pytest.mark.reliability("32")
@pytest.mark.parametrize("reader", READERS)
def test_pipes_and_devices_are_refused_at_once(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(ValueError, match=r"run\.json: expected a file"):
        READERS[reader](tmp_path / "run.json")


def rle(side: int = 11585) -> dict[str, Any]:
    return {"size": [side, side], "counts": [side * side]}


def masks_json(count: int = 60) -> dict[str, Any]:
    frames = [{"frame": i, "objects": [{"id": 1, "segmentation": rle()}]} for i in range(count)]
    return {"format": "sam2_fast.masks", "version": 1, "frames": frames}


BOMBS: dict[str, tuple[str, Callable[[], str], str]] = {
    "masks": (
        "from sam2_fast.io import load_masks_json as read",
        lambda: json.dumps(masks_json()),
        "max_total_pixels",
    ),
    "masks of one frame": (
        "from sam2_fast.data import SavAnnotations\nread = lambda p: SavAnnotations(p).read(0)",
        lambda: json.dumps({"masklet": [[rle()] * 60]}),
        "max_total_pixels",
    ),
    "empty masks of one frame": (
        "from sam2_fast.data import SavAnnotations\nread = lambda p: SavAnnotations(p).read(0)",
        lambda: json.dumps({"masklet": [[rle()] + [None] * 60]}),
        "max_total_pixels",
    ),
    "masks of one image": (
        "from sam2_fast.data import Sa1bAnnotations\nread = lambda p: list(Sa1bAnnotations(p))",
        lambda: json.dumps({"annotations": [{"segmentation": rle()}] * 60}),
        "max_total_pixels",
    ),
    "empty lists": (
        "from sam2_fast.io import load_masks_json as read",
        lambda: "[" + "[]," * 15_000_000 + "[]]",
        "max_bytes",
    ),
    "large file": (
        "from sam2_fast.training import Recipe\nread = Recipe.load",
        lambda: '"' + " " * 200_000_000 + '"',
        "max_bytes",
    ),
    "large CSV": (
        "from sam2_fast.evaluation.curves import groups_from_csv\n"
        "read = lambda p: groups_from_csv(p, 'kind')",
        lambda: "video,kind\n" + "a,b\n" * 20_000_000,
        "max_bytes",
    ),
}


@pytest.mark.reliability("F10", "32")
@pytest.mark.parametrize("name", BOMBS)
def test_small_files_cannot_ask_for_much_memory(name: str, tmp_path: Path) -> None:
    imports, text, argument = BOMBS[name]
    path = at(tmp_path, text())
    outcome = refusal_of(imports, "read(path)", path)
    assert outcome.startswith("ValueError") and f"{argument}=" in outcome and "run.json" in outcome


@pytest.mark.reliability("F10")
def test_masks_below_the_limit_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    path = at(tmp_path, json.dumps(masks_json(20)))
    outcome, _, megabytes = cost_of(
        "from sam2_fast.io import load_masks_json as read",
        "assert not any(frame[1].any() for frame in read(path).values())",
        path,
    )
    assert outcome == "accepted" and megabytes < 450


def test_the_limits_can_be_raised_and_lowered(tmp_path: Path) -> None:
    mask = np.eye(8, dtype=bool)
    writer = JsonWriter(tmp_path / "masks.json", 8, 8)
    for frame in range(4):
        writer.write(frame, {1: mask, 2: ~mask})
    writer.close()
    frames = load_masks_json(tmp_path / "masks.json", max_total_pixels=8 * 64)
    assert {f: {i: m.sum() for i, m in masks.items()} for f, masks in frames.items()} == {
        f: {1: 8, 2: 56} for f in range(4)
    }
    with pytest.raises(ValueError, match="max_total_pixels="):
        load_masks_json(tmp_path / "masks.json", max_total_pixels=8 * 64 - 1)
    with pytest.raises(ValueError, match="max_pixels="):
        load_masks_json(tmp_path / "masks.json", max_pixels=63)
    with pytest.raises(ValueError, match="max_bytes="):
        load_masks_json(tmp_path / "masks.json", max_bytes=100)


def one_frame(frame: Any, count: int = 1) -> dict[str, Any]:
    entry = {"frame": frame, "objects": [{"id": 1, "segmentation": rle(4)}] * count}
    return {**masks_json(0), "frames": [entry]}


WRONG: list[tuple[str, Any, str]] = [
    ("prompts", {"objects": [{"id": 1, "points": [[10**400, 1]]}]}, "finite numbers"),
    ("prompts", {"objects": [{"id": 1, "box": [0, 0, 10**400, 1]}]}, "finite numbers"),
    ("prompts", {"objects": [{"id": -1, "points": [[1, 1]]}]}, "id: expected 0 to"),
    ("prompts", {"objects": [{"id": 10**400, "points": [[1, 1]]}]}, "id: expected 0 to"),
    ("prompts", {"objects": [{"id": 1, "frame": 10**400, "points": [[1, 1]]}]}, "frame number"),
    ("prompts", {"objects": [{"id": "../../x", "points": [[1, 1]]}]}, "id: expected a whole"),
    ("recipe", {"sources": [{"kind": {}}]}, "kind: expected one of"),
    ("recipe", {"sources": [{"kind": []}]}, "kind: expected one of"),
    ("recipe", {"model": "tiny", "steps": 2.5}, "steps: expected int, finite"),
    ("recipe", {"model": "tiny", "lr": float("nan")}, "lr: expected float, finite"),
    ("recipe", {"model": "tiny", "lr": 10**400}, "lr: expected float, finite"),
    ("recipe", {"model": "tiny", "seed": "x"}, "seed: expected int, finite"),
    ("recipe", {"model": "tiny", "bfloat16": 1}, "bfloat16: expected bool"),
    ("recipe", {"model": "tiny", "sources": [{"kind": "folder", "images": 3}]}, "images: expected"),
    ("masks", one_frame([]), "whole numbers"),
    ("masks", one_frame(0, 2), "two masks"),
    ("run", {"format": "sam2_fast.run", "settings": [1]}, "not a sam2_fast.run file"),
]


@pytest.mark.reliability("F19")
@pytest.mark.parametrize("number", range(len(WRONG)))
def test_values_that_no_reader_can_use_are_named(number: int, tmp_path: Path) -> None:
    reader, document, message = WRONG[number]
    path = at(tmp_path, json.dumps(document))
    with pytest.raises(ValueError, match=message) as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


ROW = '{"frame": "a", "name": 1, "seconds": 0, "objects": []}'


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"frame": 0}', ROW])
def test_damaged_rows_of_a_run_are_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl"):
        list(Run(tmp_path, {}, {}).rows())
    with pytest.raises(ValueError, match=r"log\.jsonl"):
        _step_of(line, tmp_path / "log.jsonl")


@pytest.mark.reliability("32")
def test_names_in_yaml_cannot_repeat_values_without_end(tmp_path: Path) -> None:
    laughs = "a0: &a0 [1, 1]\n" + "".join(
        f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
    )
    for text in (laughs + "model: {x: *a39}", "model: &a {x: *a}"):
        with pytest.raises(ValueError, match=r"run\.json"):
            read_yaml(at(tmp_path, text))
