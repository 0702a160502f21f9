"""Experiments after the SAM 2 paper, with `nano` on held-out synthetic clips.

    python -m experiments.run [--weights FILE] [--clips N] [--only NAME ...]

Writes docs/experiments.md, and the results of every object to docs/experiments.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.clips import (
    FIRST_SEED,
    LENGTH,
    WORLD,
    clip,
    evaluated_objects,
    limited_memory,
    over_clips,
    true_masks,
    video_predictor,
)
from sam2_fast.data import World
from sam2_fast.evaluation import VideoScores, follow, offline, semi_supervised

DOCS = Path(__file__).resolve().parent.parent / "docs"
Row = tuple[str, float]  # name of a row of the table, score of one object

CALM = replace(WORLD, objects=(1, 3), look_alikes=0.0, absences=0.0)
WORLDS = {
    "simple motion: rigid, nothing vanishes, no look-alikes": replace(CALM, deformation=0.0),
    "gradual transformation: outlines three times as deep": replace(CALM, deformation=3.0),
    "look-alikes: every other object is a copy": replace(CALM, objects=(3, 5), look_alikes=0.6),
    "the world of training": WORLD,
    "the default world: small objects, two-coloured surfaces": World(),
}
MEMORIES: dict[str, tuple[int | None, bool, bool]] = {
    "none": (0, False, False),
    "object pointers": (0, True, False),
    "the prompted frame": (0, False, True),
    "both": (0, True, True),
    "both and 1 recent frame": (1, True, True),
    "both and 2 recent frames": (2, True, True),
    "both and 4 recent frames": (4, True, True),
    "both and 6 recent frames (all)": (None, True, True),
    "6 recent frames, no prompted one": (None, True, False),
}
LENGTHS = (10, 30, 100, 300, 1_000, 3_000, 10_000)
ABSENCES = (4, 8, 16, 32, 64)
ROUNDS = 8  # of three clicks each
TARGET = 0.8  # J&F


def worlds(number: int, weights: str | None) -> list[Row]:
    """J&F of each object after one click, for one clip of each world."""
    results: list[Row] = []
    for name, world in WORLDS.items():
        video = clip(number, LENGTH, world)
        predictor = video_predictor(weights)
        scores = semi_supervised(predictor, video.images(), true_masks(video), "click")
        results += [(name, score.j_and_f) for score in scores]
    return results


def memories(number: int, weights: str | None) -> list[Row]:
    """J&F of each object after one click, for each part of the memory."""
    results: list[Row] = []
    video = clip(number)
    for name, (maps, pointers, prompted) in MEMORIES.items():
        predictor = video_predictor(weights)
        with limited_memory(predictor, maps, pointers, prompted):
            scores = semi_supervised(predictor, video.images(), true_masks(video), "click")
        results += [(name, score.j_and_f) for score in scores]
    return results


def lengths(number: int, weights: str | None, longest: int) -> list[Row]:
    """J&F of each object after one click on frame 0, by section of a long video.

    A section ends at one of `LENGTHS` and starts at the one before.
    """
    video = clip(number, longest)
    predictor = video_predictor(weights)
    state = predictor.init_state(video.images(), keep="reachable")
    objects = evaluated_objects(video)
    for i in objects:
        pixels = np.argwhere(video[0].labels == i)
        # The pixel of the object that is nearest to its centroid.
        click = pixels[np.argmin(((pixels - pixels.mean(0)) ** 2).sum(1))][::-1]
        predictor.add_new_points_or_box(state, 0, i, points=[click.tolist()], labels=[1])
    ends = [end for end in LENGTHS if end <= longest]
    scores = {end: VideoScores() for end in ends}
    for t, ids, logits in predictor.propagate_in_video(state):
        end = next(e for e in ends if t < e)
        if t > 0 and t % max(end // 100, 1) == 0:  # about a hundred frames of each section
            labels = video[t].labels
            scores[end].add(
                {i: labels == i for i in objects},
                {i: (logits[ids.index(i), 0] > 0).numpy() for i in objects},
            )
    return [(f"{end}", row.j_and_f) for end, part in scores.items() for row in part.result("")]


def absences(number: int, weights: str | None) -> list[Row]:
    """J&F in the eight frames after an object reappears, by the number of frames without it."""
    results: list[Row] = []
    for absence in ABSENCES:
        world = replace(CALM, objects=(2, 4), absences=0.5, absence=absence)
        video = clip(number, 3 * absence + 24, world)
        masks = true_masks(video)
        tracked = follow(video_predictor(weights), video.images(), masks, "click")
        for i in masks[0]:
            visible = [bool(m[i].any()) for m in masks]
            for t in range(absence, len(masks) - 8):
                was_absent = not any(visible[t - absence : t])
                if visible[t] and was_absent and all(visible[t : t + 8]):
                    scores = VideoScores()
                    for k in range(t, t + 8):
                        scores.add({i: masks[k][i]}, {i: tracked[k][i]})
                    results.append((f"{absence}", scores.result("")[0].j_and_f))
                    break
    return results


def click_rounds(number: int, weights: str | None) -> list[Row]:
    """J&F of each object after each round of three clicks, with offline evaluation.

    Further rows are "reached", 1.0 if J&F reaches `TARGET` or else 0.0, and if it does, "clicks",
    the number of clicks until then.
    """
    video = clip(number)
    masks = true_masks(video)
    results: list[Row] = []
    for i in masks[0]:
        rounds = offline(
            video_predictor(weights), video.images(), [m[i] for m in masks], prompted_frames=ROUNDS
        )
        results += [(f"{k}", r.j_and_f) for k, r in enumerate(rounds, start=1)]
        clicks = [r.clicks for r in rounds if r.j_and_f >= TARGET]
        results.append(("reached", float(bool(clicks))))
        if clicks:
            results.append(("clicks", float(clicks[0])))
    return results


@dataclass(frozen=True)
class Experiment:
    """The title, description and first column header of a table, and the task for one clip."""

    title: str
    description: str
    task: Callable[..., list[Row]]
    column: str
    clips: int


def experiments(clips: int, longest: int) -> dict[str, Experiment]:
    """All experiments by name.

    clips: the largest number of clips. longest: frames of the longest video.
    """
    once = "One click on the first frame"
    reached = (
        f"`reached`: share of objects with a J&F of {TARGET} or more. `clicks`: mean number of\n"
        "clicks until then."
    )
    return {
        "worlds": Experiment("Motion and transformation", f"{once}.", worlds, "world", clips),
        "memories": Experiment(
            "Parts of the memory",
            f"{once}; the model attends to a part of its memory only.",
            memories,
            "attends to",
            clips,
        ),
        "lengths": Experiment(
            "Long videos",
            f"{once}; each row has the scores of the frames since the row before.",
            partial(lengths, longest=longest),
            "frames up to",
            min(clips, 4),
        ),
        "absences": Experiment(
            "Objects that reappear",
            f"{once}; scores of the eight frames after an object reappears.",
            absences,
            "frames absent",
            min(clips, 30),
        ),
        "clicks": Experiment(
            "Clicks",
            f"Offline, three clicks per round, on the worst frame.\n{reached}",
            click_rounds,
            "rounds",
            min(clips, 20),
        ),
    }


def table(rows: Sequence[Row], column: str) -> list[str]:
    """Lines of a table with the mean of each name.

    Names that are numbers are sorted and come first; others are in the order of appearance.
    """
    names = list(dict.fromkeys(name for name, _ in rows))
    if names[0].isdigit():
        names.sort(key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0))
    lines = [f"| {column} | J&F | objects |", "|---|---|---|"]
    for name in names:
        values = [value for other, value in rows if other == name]
        lines.append(f"| {name} | {np.mean(values):.3f} | {len(values)} |")
    return lines


def page(results: dict[str, list[Row]], described: dict[str, Experiment], command: str) -> str:
    """The text of docs/experiments.md."""
    lines = [
        "# Experiments",
        "",
        "Scores of `nano` ([nano.md](nano.md)) on synthetic clips that it was not trained on:",
        f"their seeds start at {FIRST_SEED}, and training draws smaller ones. Written by",
        f"`{command}`; [experiments.json](experiments.json) has the results of",
        "every object.",
        "",
        f"Unless stated otherwise, clips have {LENGTH} frames of {WORLD.height} x {WORLD.width} "
        "pixels. Objects are",
        "evaluated if they are visible in the first frame.",
    ]
    for name, rows in results.items():
        experiment = described[name]
        lines += ["", f"## {experiment.title}", experiment.description, ""]
        lines += table(rows, experiment.column)
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run experiments and write their results. The others keep the results of earlier runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="weights file (default: nano, from the package)")
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--longest", type=int, default=10_000, help="frames of the longest video")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--output", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    known = experiments(options.clips, options.longest)
    file = options.output / "experiments.json"
    results: dict[str, Any] = {}
    if file.is_file():
        results = json.loads(file.read_text(encoding="utf-8"))
    for name in options.only or list(known):
        task = partial(known[name].task, weights=options.weights)
        results[name] = over_clips(task, known[name].clips, options.processes, name)
    results = {name: results[name] for name in known if name in results}
    file.write_text(json.dumps(results) + "\n", encoding="utf-8")
    (options.output / "experiments.md").write_text(
        page(results, known, "python -m experiments.run"), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
