"""`sam2-fast evaluate TRUTH MASKS`: J, F and J&F of mask folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from sam2_fast.cli import options as o
from sam2_fast.cli.report import BAD_INPUT, Summary, fail, guarded
from sam2_fast.cli.results import Unfinished, refuse_file
from sam2_fast.evaluation import Report, groups_from_csv, score_folders


@guarded
def evaluate(
    truth: Annotated[
        Path,
        typer.Argument(help="Folder of annotations, one folder per video.", show_default=False),
    ],
    masks: Annotated[
        Path,
        typer.Argument(help="Folder of predicted masks, one folder per video.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write one row per object to this .csv or .json file.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail if a video is in only one of the two folders, or if a video, frame or "
            "object is not judged.",
        ),
    ] = False,
    ends: Annotated[
        bool,
        typer.Option(
            "--ends",
            help="Also score the first and last annotated frame, which benchmarks leave out.",
        ),
    ] = False,
    overwrite: o.Overwrite = False,
    processes: o.Processes = 1,
    groups: Annotated[
        Path | None,
        typer.Option(
            "--groups",
            metavar="FILE",
            help="A CSV file with the column video, the column of --by, and the column object if "
            "the objects of a video differ.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", metavar="COLUMN", help="Also report each value of this column of --groups."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1... Default: cpu.")
    ] = None,
    progress: o.Progress = None,
    json: o.AsJson = False,
) -> None:
    """Compare predicted masks with true ones.

    Reports J, F, J&F, recall and decay of every object, as DAVIS, MOSE, LVOS and SA-V define them,
    and what was not judged. The exit code is 2 if no object was judged.
    """
    if output is not None and output.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"--output {output}: expected a .csv or .json file")
    refuse_file(output, "--output", overwrite)
    chosen_device = o.chosen_device(device) or torch.device("cpu")
    if (groups is None) != (by is None):
        raise ValueError("--groups and --by: use both options together, or neither")
    table = None if groups is None or by is None else groups_from_csv(groups, by)
    shown = sys.stderr.isatty() if progress is None else progress
    summary = Summary("evaluate", masks)
    unfinished = Unfinished(output)
    with unfinished.saved_on_error():
        report = score_folders(
            truth,
            masks,
            strict=strict,
            ends=ends,
            processes=processes,
            device=str(chosen_device),
            progress=shown,
            finished=unfinished.keep,
        )
    means = report.summary()
    summary.facts |= {
        "videos": len(report.by_video()),
        **means,
        "unjudged": [str(item) for item in report.unjudged],
    }
    if output is not None:
        report.save(output)
        summary.wrote(output)
    parts: dict[str, dict[str, float]] = {}
    if table is not None:
        grouped = sorted(report.grouped(table).items())
        parts = {str(name): part.summary() for name, part in grouped}
    if parts:
        # The overall score of YouTube-VOS and LVOS: J and F of each group have the same weight.
        group_means = [(part["j"] + part["f"]) / 2 for part in parts.values()]
        mean_over_groups = sum(group_means) / len(parts)
        summary.facts |= {"groups": parts, "mean_over_groups": mean_over_groups}
    lines = [_headline(report)]
    lines += [
        f"  {by} {name}: J&F {p['j_and_f']:.1f}  J {p['j']:.1f}  F {p['f']:.1f}  ({p['objects']} "
        f"objects)"
        for name, p in parts.items()
    ]
    lines += [f"  mean over groups: {summary.facts['mean_over_groups']:.1f}"] if parts else []
    lines += [f"  not judged: {item}" for item in report.unjudged]
    summary.show(json, "\n".join(lines))
    if not report.objects:
        fail(f"no object was judged in {truth}", BAD_INPUT)


def _headline(report: Report) -> str:
    counts = f"({len(report.objects)} objects in {len(report.by_video())} videos)"
    if not report.objects:
        return f"no scores  {counts}"
    means = report.summary()
    scores = "  ".join(
        f"{name} {means[key]:.1f}" for name, key in (("J&F", "j_and_f"), ("J", "j"), ("F", "f"))
    )
    return f"{scores}  {counts}"
