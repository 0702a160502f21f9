"""The weights in the package: their file, their quality, and their use by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from experiments.clips import FIRST_SEED, LENGTH, WORLD
from experiments.held_out import image, one_click
from sam2_fast import SAM2ImagePredictor, SAM2VideoPredictor, build_sam2
from sam2_fast.config import NANO
from sam2_fast.evaluation import VideoScores
from sam2_fast.io.rle import decode_rle
from sam2_fast.weights.hub import PACKAGED

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
CLIPS = 6


def test_the_file_is_small_and_has_metadata() -> None:
    assert PACKAGED["nano"].stat().st_size <= 16_000_000
    with safe_open(PACKAGED["nano"], "pt") as file:
        assert file.metadata()["license"] == "Apache-2.0"
        assert file.metadata()["recipe"] == "nano.json"
    model = build_sam2(None, PACKAGED["nano"], device="cpu")
    assert model.config == NANO and all(bool(p.isfinite().all()) for p in model.parameters())
    assert SAM2ImagePredictor.from_pretrained("nano", device="cpu").model.config == NANO


def test_nano_tracks_the_objects_of_the_example_clip() -> None:
    predictor = SAM2VideoPredictor.from_pretrained("nano", device="cpu")
    state = predictor.init_state(str(EXAMPLES / "clip.mp4"))
    for prompt in json.loads((EXAMPLES / "clip_prompts.json").read_text())["objects"]:
        arguments = {key: prompt[key] for key in ("points", "labels", "box") if key in prompt}
        predictor.add_new_points_or_box(state, prompt["frame"], prompt["id"], **arguments)
    truth = json.loads((EXAMPLES / "clip_truth.json").read_text())
    scores = VideoScores()
    frames = {
        entry["frame"]: {o["id"]: decode_rle(o["segmentation"]) for o in entry["objects"]}
        for entry in truth["frames"]
    }
    for t, ids, logits in predictor.propagate_in_video(state):
        scores.add(frames[t], {i: (logits[ids.index(i), 0] > 0).numpy() for i in ids})
    j_and_f = {row.object: row.j_and_f for row in scores.result("")}
    assert np.mean(list(j_and_f.values())) >= 0.75 and min(j_and_f.values()) >= 0.5, j_and_f


def test_held_out_clips_have_seeds_outside_the_range_of_training() -> None:
    assert FIRST_SEED >= 2**31 and (LENGTH, WORLD.height, WORLD.width) == (32, 256, 256)


def test_memory_improves_tracking_on_held_out_clips() -> None:
    """Some of the clips of `python -m experiments.held_out`, which reports all results."""
    images = np.mean([value for n in range(CLIPS) for value in image(n, None)])
    tracked = np.mean([value for n in range(CLIPS) for value in one_click(n, None)])
    no_memory = np.mean([value for n in range(CLIPS) for value in one_click(n, None, memory=False)])
    assert images >= 0.75
    assert tracked >= 0.75
    assert no_memory <= tracked - 0.15


@pytest.mark.parametrize("options", [[], ["--size", "nano"], ["--weights", "nano"]], ids=str)
def test_nano_is_the_default_of_the_command_line_without_a_network(
    options: list[str], tmp_path: Path
) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "sam2_fast.cli", "segment", str(EXAMPLES / "still.png")]
    command += ["--point", "96,163", "--output", str(tmp_path / "out"), "--json"]
    command += ["--device", "cpu", *options]
    completed = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert json.loads(completed.stdout)["weights"] == "nano"
    assert ("Using nano" in completed.stderr) == (not options)
