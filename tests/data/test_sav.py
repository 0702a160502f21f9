"""SA-V files: masks by object and frame, and errors that name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sam2_fast.data import SavAnnotations
from sam2_fast.io.rle import encode_rle

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "sav_000001_manual.json"


def write_annotations(path: Path, **changes: object) -> Path:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True
    frames = [
        [encode_rle(m, text=True) for m in (mask, ~mask)],
        [encode_rle(m, text=True) for m in (np.zeros_like(mask), mask)],
    ]
    document = {"video_id": "v", "masklet": frames, "masklet_id": [3, 7]}
    document |= {"video_height": 4, "video_width": 6}
    path.write_text(json.dumps(document | changes))
    return path


def test_masks_are_read_by_object_and_frame(tmp_path: Path) -> None:
    annotations = SavAnnotations(write_annotations(tmp_path / "v_manual.json"))
    assert len(annotations) == 2
    assert annotations.ids == [3, 7]
    assert annotations.video_id == "v"
    assert (annotations.height, annotations.width) == (4, 6)
    assert annotations.read(0)[3].sum() == 6
    assert annotations.read(0)[7].sum() == 18
    assert not annotations.read(1)[3].any()
    assert SavAnnotations.video_frame(5) == 20
    with pytest.raises(IndexError, match="frame 2 is out of range, 2 are annotated"):
        annotations.read(2)


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"v\.json: not JSON"):
        SavAnnotations(path)
    with pytest.raises(ValueError, match="`masklet`"):
        SavAnnotations(write_annotations(path, masklet="no"))
    with pytest.raises(ValueError, match="expected 1 objects on every frame"):
        SavAnnotations(write_annotations(path, masklet_id=[1]))
    with pytest.raises(FileNotFoundError):
        SavAnnotations(tmp_path / "nowhere.json")


def test_a_published_file_can_be_read() -> None:
    if not SHARED.is_file():
        pytest.skip("no sav_000001_manual.json in ../shared/data")
    annotations = SavAnnotations(SHARED)
    assert (len(annotations), annotations.height, annotations.width, len(annotations.ids)) == (
        121,
        848,
        480,
        5,
    )
    assert all(mask.shape == (848, 480) for mask in annotations.read(60).values())
