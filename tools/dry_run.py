"""What the real model would launch on a GPU, without one: `python -m tools.dry_run [--check |
--write]`.

The tiny and the large model at 1024 pixels in bfloat16 run through Triton's own binder, key and
compiler for compute capabilities 8.0, 8.9, 9.0 and 12.0; nothing is launched. For every kernel:
grid, registers, spills, shared memory, resident blocks, matrix instructions, main loop. For every
part of the pipeline: launches of Triton and of torch, bytes, FLOPs, and a forecast beside the
limit.

--check compares with the committed table (tools/gpu/dry_run.json): no spills, registers and
launches may only fall. Exit status 1 where that does not hold. --write replaces the table.
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


def measure(capability: int, models: Iterable[str], wanted: Iterable[str]) -> dict[str, Any]:
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
                for name in wanted:
                    if name != "automatic masks":
                        runs[
                            name
                        ]()  # what is computed once for many calls, and the image of a click
                    with gpu.stage() as stage:
                        runs[name]()
                    report.add(model, name, stage)
    return report.as_dict()


def table(
    capabilities: list[int], models: list[str], wanted: list[str], workers: int
) -> dict[str, Any]:
    """The whole table, one process for each architecture."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {c: pool.submit(measure, c, models, wanted) for c in capabilities}
        rows = {str(c): job.result() for c, job in jobs.items()}
    return {"torch": version("torch"), "triton": version("triton"), "architectures": rows}


def as_text(found: dict[str, Any]) -> str:
    """The table as JSON with a line for each kernel, so that changes can be read."""
    text = json.dumps(found, indent=1)
    # objects that hold no other object
    return re.sub(r"\{[^{}]*\}", lambda row: " ".join(row[0].split()), text) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    from tools.gpu.report import differences, show
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
    parser.add_argument("--json", type=Path, help="write this run's table to a file")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    found = table(options.capability, options.model, options.stage, options.workers)
    for path in (options.json, TABLE if options.write else None):
        if path is not None:
            path.write_text(as_text(found))
    sys.stdout.write(show(found))
    if not options.check:
        return 0
    faults = differences(found, json.loads(TABLE.read_text()))
    sys.stdout.write(
        "\n".join(faults or ["as committed: no spills, no more registers, no more launches"]) + "\n"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
