"""List what the real model would launch on a GPU, without a GPU.

    python -m tools.dry_run [--check | --write]

The tiny and the large model at 1024 pixels in bfloat16 run through Triton's own binder, cache key
and compiler for compute capabilities 8.0, 8.9, 9.0 and 12.0; nothing is launched. The table has for
every kernel: grid, registers, spills, shared memory, resident blocks, matrix instructions and main
loop. It has for every part of the pipeline: launches of Triton and torch, bytes, FLOPs, the limit
of the time and a forecast.

--check compares with the committed table (tools/gpu/dry_run.json). The exit status is 1 if a
register is spilled, or if the number of registers or launches rose. --write replaces the table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tools.gpu.architectures import ARCHITECTURES

TABLE = Path(__file__).resolve().parent / "gpu" / "dry_run.json"
MODELS = ("tiny", "large")


def measure(capability: int, models: Iterable[str], names: Iterable[str]) -> dict[str, Any]:
    """Rows of one architecture: {"kernels": {label: row}, "models": {model: {stage: row}}}."""
    import torch

    from tools.gpu.fake import FakeGpu
    from tools.gpu.report import Report
    from tools.gpu.stages import stages

    torch.set_num_threads(1)
    report = Report(ARCHITECTURES[capability])
    with torch.no_grad():
        for model in models:
            runs = stages(model)
            with FakeGpu(capability) as gpu:
                for name in names:
                    # The first call also computes values that later calls reuse, and encodes the
                    # image of a click. It is not recorded.
                    if name != "automatic masks":
                        runs[name]()
                    with gpu.stage() as stage:
                        runs[name]()
                    report.add(model, name, stage)
    return report.as_dict()


def table(
    capabilities: list[int], models: list[str], names: list[str], workers: int
) -> dict[str, Any]:
    """The whole table, computed in one process per architecture. names: stages of the pipeline."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {c: pool.submit(measure, c, models, names) for c in capabilities}
        rows = {str(c): job.result() for c, job in jobs.items()}
    return {"torch": version("torch"), "triton": version("triton"), "architectures": rows}


def as_text(rows: dict[str, Any]) -> str:
    """The table as JSON with one line per kernel, so that a diff is readable."""
    text = json.dumps(rows, indent=1)
    # Innermost objects are put on one line.
    return re.sub(r"\{[^{}]*\}", lambda row: " ".join(row[0].split()), text) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    from tools.gpu.report import as_table, differences
    from tools.gpu.stages import STAGES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--capability",
        type=int,
        nargs="+",
        choices=list(ARCHITECTURES),
        default=list(ARCHITECTURES),
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--check", action="store_true", help="compare with the committed table")
    parser.add_argument("--write", action="store_true", help="replace the committed table")
    parser.add_argument("--json", type=Path, help="write the table of this run to a file")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="number of processes"
    )
    options = parser.parse_args(arguments)
    rows = table(options.capability, options.model, options.stage, options.workers)
    for path in (options.json, TABLE if options.write else None):
        if path is not None:
            path.write_text(as_text(rows))
    sys.stdout.write(as_table(rows))
    if not options.check:
        return 0
    faults = differences(rows, json.loads(TABLE.read_text()))
    sys.stdout.write(
        "\n".join(faults or ["as committed: no spills, no more registers, no more launches"]) + "\n"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
