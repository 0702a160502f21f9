"""The bedroom clip: masks of the command line equal those of the official predictor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

IMAGE_SIZE = 256
ONE = [{"id": 1, "frame": 0, "points": [[210, 350], [250, 220]], "labels": [1, 1]}]
THREE = [
    *ONE,
    {"id": 2, "frame": 0, "points": [[400, 150]], "labels": [1]},
    {"id": 3, "frame": 0, "box": [420, 40, 600, 340]},
]


@pytest.fixture(scope="module")
def frames(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 200 frames as JPEGs, so that both predictors read the same pixels."""
    pytest.importorskip("av")
    from PIL import Image

    from sam2_fast.io.video import open_video

    folder = tmp_path_factory.mktemp("frames")
    video = open_video(str(data / "bedroom.mp4"))
    for i in range(video.num_frames):
        Image.fromarray(video[i]).save(folder / f"{i:05d}.jpg", quality=95)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("objects", [ONE, THREE], ids=["one object", "three objects"])
def test_masks_of_the_bedroom_clip_equal_the_official_ones(
    official_video: Any, frames: Path, tmp_path: Path, objects: list[dict[str, Any]]
) -> None:
    official = official_video("t", "sam2.1", IMAGE_SIZE)
    torch.save({"model": official.state_dict()}, tmp_path / "weights.pt")
    (tmp_path / "prompts.json").write_text(json.dumps({"objects": objects}))
    options = {
        "--prompts": tmp_path / "prompts.json",
        "--weights": tmp_path / "weights.pt",
        "--image-size": IMAGE_SIZE,
        "--output": tmp_path / "out",
    }
    command = [sys.executable, "-m", "sam2_fast.cli", "track", str(frames), "--overlay"]
    command += [str(part) for option in options.items() for part in option]
    subprocess.run(command, check=True, capture_output=True, timeout=1800)
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 10_000
    lowest_iou = 1.0
    with torch.inference_mode():
        state = official.init_state(str(frames))
        for item in objects:
            official.add_new_points_or_box(
                state, 0, item["id"], item.get("points"), item.get("labels"), box=item.get("box")
            )
        for frame, ids, logits in official.propagate_in_video(state):
            for i, obj_id in enumerate(ids):
                expected = (logits[i, 0] > 0).numpy()
                actual = read_mask(tmp_path / "out" / "masks", obj_id, frame)
                union = (expected | actual).sum()
                iou = (expected & actual).sum() / union if union else 1.0
                lowest_iou = min(lowest_iou, iou)
    print(f"{len(objects)} objects, {frame + 1} frames: lowest mask IoU {lowest_iou:.6f}")
    assert frame == 199 and lowest_iou >= 0.999


def read_mask(folder: Path, obj_id: int, frame: int) -> np.ndarray:
    from PIL import Image

    (path,) = (folder / f"{obj_id:03d}").glob(f"*{frame:05d}.png")
    return np.array(Image.open(path)) > 0
