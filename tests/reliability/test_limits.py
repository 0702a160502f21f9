"""The table of limits in SECURITY.md equals the constants and arguments in the code."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from sam2_fast.cli.prompts import read_prompts
from sam2_fast.data import Sa1bAnnotations, SavAnnotations
from sam2_fast.evaluation.curves import groups_from_csv
from sam2_fast.io import (
    area_from_rle,
    decode_rle,
    limits,
    load_image,
    load_mask,
    load_masks_json,
    open_video,
)
from sam2_fast.training import Recipe
from sam2_fast.training.run import MAX_LOG_BYTES, train_to
from sam2_fast.weights.checkpoint import MAX_HEADER_BYTES, read_state_dict

ROW = re.compile(r"^\| `([\w.]+)\.([A-Z_]+)` \| (\d+) \| (?:`(\w+)`)? ?\|", re.MULTILINE)
TEXT = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
ROWS = {
    f"{module}.{name}": (value, argument) for module, name, value, argument in ROW.findall(TEXT)
}

READERS = {
    "max_pixels": (load_image, load_mask, open_video, decode_rle, area_from_rle, load_masks_json),
    "max_frames": (open_video,),
    "max_streams": (open_video,),
    "max_header_bytes": (read_state_dict,),
    "max_log_bytes": (train_to,),
    "max_total_pixels": (load_masks_json, SavAnnotations, Sa1bAnnotations),
    "max_bytes": (
        *(load_masks_json, SavAnnotations, Sa1bAnnotations, Recipe.load, read_prompts),
        groups_from_csv,
    ),
}
DEFAULTS = {
    "max_pixels": limits.MAX_PIXELS,
    "max_frames": limits.MAX_FRAMES,
    "max_streams": limits.MAX_STREAMS,
    "max_header_bytes": MAX_HEADER_BYTES,
    "max_log_bytes": MAX_LOG_BYTES,
    "max_total_pixels": limits.MAX_TOTAL_PIXELS,
    "max_bytes": limits.MAX_JSON_BYTES,
}


@pytest.mark.reliability("F10", "32")
@pytest.mark.parametrize("name", ROWS)
def test_a_limit_of_the_table_is_the_one_of_the_code(name: str) -> None:
    module, _, constant = name.rpartition(".")
    value, argument = ROWS[name]
    assert getattr(import_module(f"sam2_fast.{module}"), constant) == int(value)
    assert argument == "" or argument in READERS


def test_the_table_has_every_limit_of_files() -> None:
    constants = {f"io.limits.{name}" for name in vars(limits) if name.isupper()}
    assert constants <= ROWS.keys() and len(ROWS) >= 14


@pytest.mark.reliability("F10")
@pytest.mark.parametrize("argument", READERS)
def test_every_limit_is_an_argument_of_its_readers(argument: str) -> None:
    for reader in READERS[argument]:
        assert inspect.signature(reader).parameters[argument].default == DEFAULTS[argument]
