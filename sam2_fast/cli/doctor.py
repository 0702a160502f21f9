"""`sam2-fast doctor`: prove and time every kernel on this machine."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any

import torch
import typer

from sam2_fast.cli import options as o
from sam2_fast.cli.report import guarded
from sam2_fast.weights.build import choose_device

CPU_SIZE = 256
"""Default side of the model's input on a CPU, where the exact references are slow."""


@guarded
def doctor(
    device: o.Device = None,
    model: Annotated[
        list[o.Size] | None,
        typer.Option(
            "--model",
            help="Examine the kernel calls of this model size; repeatable. Default: tiny on a GPU, "
            "nano on a CPU.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            metavar="PIXELS",
            help="Side of the model's input, a multiple of 32. Default: 1024 on a GPU, 256 on a "
            "CPU.",
        ),
    ] = None,
    dtype: Annotated[
        o.Dtype | None,
        typer.Option(
            "--dtype", help="Number format. Default: bfloat16 on a GPU, float32 on a CPU."
        ),
    ] = None,
    timing: Annotated[
        bool,
        typer.Option(
            "--timing/--no-timing",
            help="Also time the kernels that are correct, and choose the fastest form of each.",
        ),
    ] = True,
    json: o.AsJson = False,
) -> None:
    """Compare every kernel with torch on this machine, and time it.

    Exit code 1: a kernel is wrong or could not be proved.
    """
    target = choose_device(o.model_options(device, o.Dtype.float32, image_size)["device"])
    if target.type == "cuda" and target.index is None:
        target = torch.device("cuda", torch.cuda.current_device())
    gpu = target.type == "cuda"
    from sam2_fast.doctor import Options, examine_machine

    names = tuple(size.value for size in model or [o.Size.tiny if gpu else o.Size.nano])
    number_format = dtype or (o.Dtype.bfloat16 if gpu else o.Dtype.float32)
    side = image_size if gpu else image_size or CPU_SIZE
    report = examine_machine(
        Options(target, names, getattr(torch, number_format.value), side, timing)
    )
    typer.echo(json_module.dumps(report) if json else as_text(report))
    if report["failed"]:
        raise typer.Exit(1)


def as_text(report: dict[str, Any]) -> str:
    """The report as text: one line for each kernel in each configuration."""
    card = report["card"]
    image_size = report["image_size"]
    size = f"image size {image_size}" if image_size else "the default image size"
    lines = [
        f"{card['name']}, driver {card['driver'] or 'none'}, torch {card['torch']}, triton "
        f"{card['triton'] or 'not installed'}",
        f"calls of {', '.join(report['models'])} at {size} in {report['dtype']}, "
        f"{report['threads']} threads",
    ]
    if report["matrix_gflops"]:
        lines.append(
            f"limits of this machine: {report['matrix_gflops']} GFLOP/s in a matrix product, "
            f"{report['copy_gbytes']} GB/s in a copy"
        )
    lines += [
        "",
        f"{'op':20} {'backend':18} {'verdict':8} {'error':>6} {'ms':>9} {'torch':>9} {'limit':>6} "
        f" configuration",
    ]
    lines += [line for row in report["rows"] for line in _lines(row)]
    cache = report["cache"]
    lines += [
        "",
        f"cache: {cache['file'] or 'none; only results of a GPU are cached'}",
        *(f"  {note}" for note in cache["notes"]),
    ]
    lines += [f"  damaged file, set aside: {name}" for name in cache["set_aside"]]
    proved = sum(row["status"] == "proved" for row in report["rows"])
    lines.append(
        f"{proved} proved, {report['failed']} failed, {report['seconds']} s. Errors are multiples "
        f"of torch's own error; at most 2 are allowed."
    )
    return "\n".join(lines)


def _lines(row: dict[str, Any]) -> list[str]:
    backend = f"{row['backend']} {row['isa']}" if row["isa"] else row["backend"]
    times = [_number(row[name], 9, 3) for name in ("milliseconds", "torch_milliseconds")]
    share = f"{100 * row['share']:5.1f}%" if row["share"] else f"{'-':>6}"
    numbers = f"{_number(row['error'], 6, 2)} {times[0]} {times[1]} {share}"
    lines = [
        f"{row['op']:20} {backend:18} {row['status']:8} {numbers}  {row['model']} "
        f"{row['configuration']}"
    ]
    if row["reason"]:
        lines.append(f"{'':21}{row['reason']}")
    for form in row["forms"]:
        point, key = form["point"]
        outcome = form["reason"] or f"{_number(form['milliseconds'], 1, 3)} ms"
        chosen = " (chosen)" if form["taken"] else ""
        lines.append(f"{'':21}{point} {key}: {form['form']}{chosen}: {outcome}")
    return lines


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
