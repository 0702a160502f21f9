"""The weights that come with the package: what they are, that they follow objects, and that the
command line falls back on them.
"""

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
FEW = 6


def test_the_file_is_small_and_says_where_it_comes_from() -> None:
    assert PACKAGED["nano"].stat().st_size <= 16_000_000
    with safe_open(PACKAGED["nano"], "pt") as file:
        assert (
            file.metadata()["license"] == "Apache-2.0" and file.metadata()["recipe"] == "nano.json"
        )
    model = build_sam2(None, PACKAGED["nano"], device="cpu")
    assert model.config == NANO and all(bool(p.isfinite().all()) for p in model.parameters())
    assert SAM2ImagePredictor.from_pretrained("nano", device="cpu").model.config == NANO


def test_follows_the_objects_of_the_shipped_clip() -> None:
    predictor = SAM2VideoPredictor.from_pretrained("nano", device="cpu")
    state = predictor.init_state(str(ROOT / "examples" / "clip.mp4"))
    for prompt in json.loads((ROOT / "examples" / "clip_prompts.json").read_text())["objects"]:
        given = {key: prompt[key] for key in ("points", "labels", "box") if key in prompt}
        predictor.add_new_points_or_box(state, prompt["frame"], prompt["id"], **given)
    truth, scores = json.loads((ROOT / "examples" / "clip_truth.json").read_text()), VideoScores()
    frames = {
        entry["frame"]: {o["id"]: decode_rle(o["segmentation"]) for o in entry["objects"]}
        for entry in truth["frames"]
    }
    for t, ids, logits in predictor.propagate_in_video(state):
        scores.add(frames[t], {i: (logits[ids.index(i), 0] > 0).numpy() for i in ids})
    found = {row.object: row.j_and_f for row in scores.result("")}
    assert np.mean(list(found.values())) >= 0.75 and min(found.values()) >= 0.5, found


def test_held_out_clips_have_seeds_that_training_cannot_draw() -> None:
    assert FIRST_SEED >= 2**31 and (LENGTH, WORLD.height, WORLD.width) == (32, 256, 256)


def test_remembers_what_it_was_shown_on_held_out_clips() -> None:
    """A few of the clips of `python -m experiments.held_out`, which has the numbers."""
    pictures = np.mean([value for n in range(FEW) for value in image(n, None)])
    followed = np.mean([value for n in range(FEW) for value in one_click(n, None)])
    forgetful = np.mean([value for n in range(FEW) for value in one_click(n, None, memory=False)])
    assert pictures >= 0.75 and followed >= 0.75 and forgetful <= followed - 0.15, (
        pictures,
        followed,
        forgetful,
    )


@pytest.mark.parametrize("options", [[], ["--size", "nano"], ["--weights", "nano"]], ids=str)
def test_is_the_default_of_the_command_line_without_a_network(
    options: list[str], tmp_path: Path
) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    arguments = [
        "segment",
        str(ROOT / "examples" / "still.png"),
        "--point",
        "96,163",
        "-o",
        str(tmp_path / "out"),
        "--json",
        "--device",
        "cpu",
    ]
    program = [sys.executable, "-m", "sam2_fast.cli", *arguments, *options]
    found = subprocess.run(
        program, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["weights"] == "nano"
    assert ("Using nano" in found.stderr) == (not options)
