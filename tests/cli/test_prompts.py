"""Prompts of the command line: flags, prompt files, and errors of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam2_fast.cli.prompts import Prompt, gather, parse_object, read_prompts
from tests.cli.commands import STILL, run


def test_simple_flags_prompt_object_one() -> None:
    assert gather(["10,20", "3.5,4,0"], ["1,2,30,40"], None, [], None, 7) == [
        Prompt(1, 7, ((10, 20), (3.5, 4)), (1, 0), (1, 2, 30, 40)),
    ]


def test_each_of_several_boxes_is_an_object() -> None:
    prompts = gather([], ["0,0,1,1", "2,2,3,3"], None, [], None)
    assert [(p.object_id, p.box) for p in prompts] == [(1, (0, 0, 1, 1)), (2, (2, 2, 3, 3))]


def test_an_object_flag_has_an_id_a_frame_and_points_a_box_or_a_mask() -> None:
    prompt = Prompt(3, 2, ((1, 2), (5, 6)), (1, 0), (0, 0, 9, 9))
    assert parse_object("3:frame=2:point=1,2:point=5,6,0:box=0,0,9,9") == prompt
    with_mask = Prompt(4, 1, mask=Path("c:/masks/a.png"))
    assert parse_object("4:frame=1:mask=c:/masks/a.png") == with_mask


def test_prompts_of_a_file_and_of_flags_are_sorted_by_frame_and_id(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    objects = [{"id": 2, "frame": 5, "mask": "m.png"}, {"id": 1, "points": [[1, 2]]}]
    path.write_text(json.dumps({"objects": objects}))
    assert gather([], [], None, ["9:frame=1:point=1,1"], path) == [
        Prompt(1, 0, ((1, 2),), (1,)),
        Prompt(9, 1, ((1, 1),), (1,)),
        Prompt(2, 5, mask=tmp_path / "m.png"),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "no prompt: give --point"),
        ("--point 1", "expected X,Y or X,Y,LABEL, got '1'"),
        ("--point a,b", "expected X,Y"),
        ("--point nan,1", "expected X,Y"),
        ("--point 1,2,7", "label 1 (object) or 0 (background), got 7"),
        ("--box 1,2,3", "expected X0,Y0,X1,Y1"),
        ("--box 9,9,1,1", "X0 <= X1"),
        ("--box 0,0,1,1 --box 0,0,2,2 --point 1,1", "use --object to mix"),
        ("--object x:point=1,1", "whole number as id"),
        ("--object 1:colour=red", "cannot read 'colour=red'"),
        ("--object 1", "expected points, a box or a mask"),
        ("--object 1:point=1,1:mask=a.png", "a mask cannot be combined"),
        ("--object 1:point=1,1 --point 2,2", "prompted twice"),
        ("--prompts none.json", "none.json"),
        ("--object 1:frame=3:point=1,1", "an image has frame 0 only"),
    ],
)
def test_invalid_prompts_are_an_error_of_one_line_with_exit_code_2(
    flags: str, message: str
) -> None:
    result = run("segment", STILL, flags)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected"),
        ('{"objects": []}', "at least one object"),
        ('{"objects": [5]}', "objects[0]"),
        ('{"objects": [{"points": [[1, 2]]}]}', "objects[0].id: expected a whole number"),
        ('{"objects": [{"id": 1, "points": [[1]]}]}', "objects[0].points"),
        ('{"objects": [{"id": 1, "points": [[1, NaN]]}]}', "finite"),
        ('{"objects": [{"id": 1, "points": [[1, 2]], "labels": [2]}]}', "objects[0].labels"),
        ('{"objects": [{"id": 1, "points": [[1, 2]], "labels": []}]}', "a label per point"),
        ('{"objects": [{"id": 1, "box": [5, 5, 1, 1]}]}', "X0 <= X1"),
        ('{"objects": [{"id": 1, "frame": -1, "points": [[1, 2]]}]}', "frame number"),
        ('{"objects": [{"id": 1, "point": [[1, 2]]}]}', "unknown key 'point'"),
        ('{"objects": [{"id": 1, "mask": 3}]}', "file name"),
    ],
)
def test_errors_of_a_prompt_file_name_the_invalid_entry(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        read_prompts(path)
    assert message in str(caught.value)
