"""The paper's first questions, asked of `nano` on held-out synthetic clips; writes
docs/experiments.md and every number behind it.

python -m experiments.run [--weights FILE] [--clips N] [--only NAME ...]
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
    judged,
    over_clips,
    remembering,
    truth,
    video_predictor,
)
from sam2_fast.data import World
from sam2_fast.evaluation import VideoScores, follow, offline, semi_supervised

DOCS = Path(__file__).resolve().parent.parent / "docs"
Row = tuple[str, float]

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
CLICKED, WANTED = 8, 0.8


def worlds(number: int, weights: str | None) -> list[Row]:
    """J&F of each object of one clip of each world, clicked once."""
    found: list[Row] = []
    for name, world in WORLDS.items():
        video = clip(number, LENGTH, world)
        found += [
            (name, row.j_and_f)
            for row in semi_supervised(
                video_predictor(weights), video.images(), truth(video), "click"
            )
        ]
    return found


def memories(number: int, weights: str | None) -> list[Row]:
    """J&F of each object with parts of the memory."""
    found: list[Row] = []
    video = clip(number)
    for name, (maps, pointers, prompted) in MEMORIES.items():
        predictor = video_predictor(weights)
        with remembering(predictor, maps, pointers, prompted):
            found += [
                (name, row.j_and_f)
                for row in semi_supervised(predictor, video.images(), truth(video), "click")
            ]
    return found


def lengths(number: int, weights: str | None, longest: int) -> list[Row]:
    """J&F between each of LENGTHS and the one before, of objects that are clicked once on frame 0
    and followed to the end.
    """
    video = clip(number, longest)
    predictor = video_predictor(weights)
    state, objects = predictor.init_state(video.images(), keep="reachable"), judged(video)
    for i in objects:
        inside = np.argwhere(video[0].labels == i)
        place = inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))][::-1]
        predictor.add_new_points_or_box(state, 0, i, points=[place.tolist()], labels=[1])
    ends = [end for end in LENGTHS if end <= longest]
    scores = {end: VideoScores() for end in ends}
    for t, ids, logits in predictor.propagate_in_video(state):
        end = next(e for e in ends if t < e)
        if t > 0 and t % max(end // 100, 1) == 0:  # a hundred frames of each stretch are judged
            labels = video[t].labels
            scores[end].add(
                {i: labels == i for i in objects},
                {i: (logits[ids.index(i), 0] > 0).numpy() for i in objects},
            )
    return [(f"{end}", row.j_and_f) for end, part in scores.items() for row in part.result("")]


def absences(number: int, weights: str | None) -> list[Row]:
    """J&F over the eight frames after an object comes back, by how long nothing of it was seen."""
    found: list[Row] = []
    for away in ABSENCES:
        world = replace(CALM, objects=(2, 4), absences=0.5, absence=away)
        video = clip(number, 3 * away + 24, world)
        masks = truth(video)
        tracked = follow(video_predictor(weights), video.images(), masks, "click")
        for i in masks[0]:
            seen = [bool(m[i].any()) for m in masks]
            for t in range(away, len(masks) - 8):
                if seen[t] and not any(seen[t - away : t]) and all(seen[t : t + 8]):
                    scores = VideoScores()
                    for k in range(t, t + 8):
                        scores.add({i: masks[k][i]}, {i: tracked[k][i]})
                    found.append((f"{away}", scores.result("")[0].j_and_f))
                    break
    return found


def clicks_wanted(number: int, weights: str | None) -> list[Row]:
    """After how many frames of three clicks J&F reaches WANTED, offline; CLICKED + 1 where it never
    does.
    """
    video = clip(number)
    masks = truth(video)
    found: list[Row] = []
    for i in masks[0]:
        rounds = offline(
            video_predictor(weights), video.images(), [m[i] for m in masks], prompted_frames=CLICKED
        )
        found += [(f"{k}", r.j_and_f) for k, r in enumerate(rounds, start=1)]
        enough = [r.clicks for r in rounds if r.j_and_f >= WANTED]
        found.append(("reached", float(bool(enough))))
        if enough:
            found.append(("clicks", float(enough[0])))
    return found


@dataclass(frozen=True)
class Experiment:
    """A question, the work on one clip, and how its table is headed."""

    title: str
    words: str
    task: Callable[..., list[Row]]
    column: str
    clips: int


def experiments(clips: int, longest: int) -> dict[str, Experiment]:
    """All of them, by name."""
    once = "One click on the first frame"
    reached = (
        f"`reached`: share of objects whose J&F comes to {WANTED} or more; `clicks`: how "
        f"many that took, on average."
    )
    return {
        "worlds": Experiment("Motion and transformation", f"{once}.", worlds, "world", clips),
        "memories": Experiment(
            "What the memory is worth",
            f"{once}; the model attends to part of its memory.",
            memories,
            "attends to",
            clips,
        ),
        "lengths": Experiment(
            "Long videos",
            f"{once}, followed to the end; each row judges the frames since the row before.",
            partial(lengths, longest=longest),
            "frames up to",
            min(clips, 4),
        ),
        "absences": Experiment(
            "Coming back",
            f"{once}; eight frames after an object was away.",
            absences,
            "frames away",
            min(clips, 30),
        ),
        "clicks": Experiment(
            "Clicks",
            f"Offline, three clicks a round, on the worst frame. {reached}",
            clicks_wanted,
            "rounds",
            min(clips, 20),
        ),
    }


def table(rows: Sequence[Row], column: str) -> list[str]:
    """Means by name, in the order of appearance."""
    names = list(dict.fromkeys(name for name, _ in rows))
    lines = [f"| {column} | J&F | objects |", "|---|---|---|"]
    for name in (
        sorted(names, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0))
        if names[0].isdigit()
        else names
    ):
        values = [value for other, value in rows if other == name]
        lines.append(f"| {name} | {np.mean(values):.3f} | {len(values)} |")
    return lines


def page(found: dict[str, list[Row]], chosen: dict[str, Experiment], command: str) -> str:
    """docs/experiments.md."""
    lines = [
        "# Experiments",
        "",
        "What `nano` ([nano.md](nano.md)) does on synthetic clips that it was not trained on: "
        "their seeds are "
        f"{FIRST_SEED} and up, training draws",
        f"from below that. Written by `{command}`; the numbers of every object are in "
        f"[experiments.json](experiments.json).",
        "",
        f"Clips have {LENGTH} frames of {WORLD.height} x {WORLD.width} pixels where nothing else "
        f"is said; judged are the objects that the "
        "first frame shows.",
    ]
    for name, rows in found.items():
        lines += [
            "",
            f"## {chosen[name].title}",
            chosen[name].words,
            "",
            *table(rows, chosen[name].column),
        ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, then write; what is not run again keeps its last numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="default: those of the package")
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--longest", type=int, default=10_000, help="frames of the longest video")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--output", type=Path, default=DOCS)
    given = parser.parse_args(arguments)
    chosen = experiments(given.clips, given.longest)
    file = given.output / "experiments.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in given.only or list(chosen):
        experiment = chosen[name]
        found[name] = over_clips(
            partial(experiment.task, weights=given.weights), experiment.clips, given.processes, name
        )
    found = {name: found[name] for name in chosen if name in found}
    file.write_text(json.dumps(found) + "\n", encoding="utf-8")
    (given.output / "experiments.md").write_text(
        page(found, chosen, "python -m experiments.run"), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
