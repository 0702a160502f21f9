"""Errors that quote a file, or another library, have one line without control characters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sam2_fast.evaluation.curves import groups_from_csv
from sam2_fast.files.reasons import one_line, reason_of
from sam2_fast.model import Sam2
from sam2_fast.training import Recipe
from sam2_fast.training.run import _step_of
from sam2_fast.weights.checkpoint import load_weights, read_state_dict
from tests.reliability.test_weights_files import with_pickle
from tests.video.sessions import SMALL


def test_lines_and_control_characters_are_replaced() -> None:
    assert one_line(" two\n  lines\t\r\x0b\u2028 and more ") == "two lines and more"
    assert one_line("red \x1b[31m\0 é") == r"red \x1b[31m\x00 é"
    assert reason_of(KeyError()) == "KeyError"
    assert reason_of(ValueError("a\n b")) == "a b"


def of_recipe(folder: Path) -> None:
    (folder / "recipe.json").write_text(json.dumps({"two\nlines": 1, "red\x1b[31m": 2}))
    Recipe.load(folder / "recipe.json")


def of_pickle(folder: Path) -> None:
    (folder / "a.pt").write_bytes(with_pickle(b"\x80\x02ctwo\rlines\x1b\nname\n."))
    read_state_dict(folder / "a.pt")


def of_names(folder: Path) -> None:
    load_weights(Sam2(SMALL), {"two\nlines\x1b": torch.zeros(1)})


def of_log(folder: Path) -> None:
    _step_of('{"two":\n"lines"}', folder)


def of_table(folder: Path) -> None:
    (folder / "a.csv").write_text('video,kind,object\n"two\nlines\x1b",x,y')
    groups_from_csv(folder / "a.csv", "kind")


def of_digits(folder: Path) -> None:
    (folder / "a.csv").write_text(f"video,kind,object\ntwo,x,{'1' * 5000}")
    groups_from_csv(folder / "a.csv", "kind")


QUOTES: dict[str, Callable[[Path], Any]] = {
    "recipe": of_recipe,
    "pickle": of_pickle,
    "names": of_names,
    "log": of_log,
    "table": of_table,
    "digits": of_digits,
}


@pytest.mark.reliability("32", "38")
@pytest.mark.parametrize("name", QUOTES)
def test_an_error_quotes_a_file_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two") as caught:
        QUOTES[name](tmp_path)
    assert str(caught.value).isprintable()
