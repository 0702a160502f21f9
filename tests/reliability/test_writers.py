"""Writers follow no planted link, keep to their folder, and never mix two files."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.files import atomic
from sam2_fast.files.atomic import whole_file
from sam2_fast.io import FrameLabel, load_mask, save_davis, save_mask
from sam2_fast.io.mask_writers import DavisWriter, JsonWriter, PngWriter
from sam2_fast.io.video_writer import VideoWriter

MASK = np.eye(8, dtype=bool)
FRAME = np.zeros((16, 16, 3), dtype=np.uint8)


def write_video(path: Path) -> None:
    with VideoWriter(path, 16, 16) as writer:
        writer.write(FRAME)


def write_json(path: Path) -> None:
    writer = JsonWriter(path, 8, 8)
    writer.write(0, {1: MASK})
    writer.close()


def write_text(path: Path) -> None:
    with whole_file(path) as beside:
        beside.write_text("text")


WRITERS: dict[str, Callable[[Path], None]] = {
    "mask.png": lambda path: save_mask(path, MASK),
    "davis.png": lambda path: save_davis(path, {1: MASK}),
    "masks.json": write_json,
    "overlay.mp4": write_video,
    "overlay.webp": write_video,
    "run.json": write_text,
}


@pytest.mark.reliability("F18")
@pytest.mark.parametrize("name", WRITERS)
def test_a_planted_link_is_never_followed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    tokens = iter(["planted", "dangling", "free"])
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: next(tokens))
    os.symlink(victim, tmp_path / f"{name}.planted.tmp")
    os.symlink(tmp_path / "absent", tmp_path / f"{name}.dangling.tmp")
    WRITERS[name](tmp_path / name)
    assert victim.read_text() == "precious" and not (tmp_path / "absent").exists()
    assert (tmp_path / name).stat().st_size and not (tmp_path / name).is_symlink()
    assert not (tmp_path / f"{name}.free.tmp").exists()


@pytest.mark.reliability("F18")
@pytest.mark.parametrize("name", WRITERS)
def test_files_are_readable_as_the_umask_says(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


@pytest.mark.reliability("F18")
def test_of_several_writers_of_one_file_the_last_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    masks = [np.arange(4096).reshape(64, 64) % 7 == k for k in range(4)]
    errors: list[BaseException] = []

    def write(mask: Any) -> None:
        try:
            for _ in range(20):
                save_mask(path, mask)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=write, args=(mask,)) for mask in masks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [*tmp_path.iterdir()] == [path]
    assert any(np.array_equal(load_mask(path), mask) for mask in masks)


WRONG_IDS: list[Any] = ["../../x", "/etc/x", "1", -1, 1.0, None, np.float32(2), (1, 2)]


@pytest.mark.reliability("F18")
@pytest.mark.parametrize("wrong", WRONG_IDS, ids=repr)
def test_ids_that_are_no_numbers_are_refused_and_write_nothing(wrong: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    json_writer = JsonWriter(folder / "masks.json", 8, 8)
    for writer in (PngWriter(folder), DavisWriter(folder), json_writer):
        with pytest.raises(ValueError, match=r"masks: .*ids"):
            writer.write(0, {wrong: MASK})
    json_writer.abort()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_ids_of_other_libraries_are_numbers(tmp_path: Path) -> None:
    PngWriter(tmp_path).write(np.int64(3), {np.int64(7): MASK, torch.tensor(8): MASK})
    assert (tmp_path / "007" / "00003.png").exists() and (tmp_path / "008" / "00003.png").exists()


@pytest.mark.reliability("F18")
@pytest.mark.parametrize("frame", [-1, "x", FrameLabel(0, "../x"), FrameLabel(0, ""), 1.0])
def test_frames_that_leave_the_folder_are_refused(frame: Any, tmp_path: Path) -> None:
    for writer in (PngWriter(tmp_path / "a"), DavisWriter(tmp_path / "a")):
        with pytest.raises(ValueError, match="frame: expected"):
            writer.write(frame, {1: MASK})
    assert [*tmp_path.iterdir()] == []


@pytest.mark.reliability("F18")
@pytest.mark.parametrize("name", ["run:1", "http:x.mp4", "pipe:1", "a|b.webp"])
def test_names_with_colons_are_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path(name))
    save_mask(Path("run:2") / "mask:1.png", MASK)
    write_json(Path("run:2") / "masks.json")
    assert json.loads(Path("run:2/masks.json").read_text())["complete"] is True
    assert Path(name).stat().st_size and Path("run:2/mask:1.png").stat().st_size
