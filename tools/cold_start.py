"""Count what a first run has to compile, and how long it takes: `python -m tools.cold_start`.

With an empty Triton cache, the tiny and the large model at 1024 pixels in bfloat16 are compiled for
compute capability 9.0 as `Graphs` does it on a GPU: all kernels of a kind of work at once. The time
is processor seconds of this machine, including ptxas. Generating Triton's IR holds Python's global
interpreter lock; the passes, LLVM and ptxas do not. On N processors the time is therefore

    seconds = IR + (all - IR) / N

Launchers of Triton 3.6 (C, compiled by gcc) are not included, because building them needs the
driver's library. --write replaces tools/gpu/cold_start.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parent / "gpu" / "cold_start.json"
KINDS = {"image": ("encode 1", "click"), "video": ("encode 1", "encode 4", "track 1")}
PROCESSORS = 16
"""Number of processors that the forecast assumes."""


def forecast(total: float, ir: float, processors: int) -> float:
    """Seconds to compile on `processors` processors.

    total: processor seconds. ir: the part of them that holds Python's global interpreter lock.
    """
    return ir + (total - ir) / processors


def compile_kind(model: str, kind: str) -> dict[str, Any]:
    """Compile the kernels of one kind of work in this process. Returns a row of the table.

    The Triton cache must be empty.
    """
    import torch
    import triton
    from sam2_fast.kernels.launch import compile_ahead

    from tools.gpu.fake import FakeGpu
    from tools.gpu.stages import stages

    torch.set_num_threads(1)
    names: Counter[str] = Counter()
    stage_ns: Counter[str] = Counter()

    def listen(*, src: Any, times: Any, **_: Any) -> None:
        names[src.name] += 1
        stage_ns["ir"] += times.ir_initialization
        for name, nanoseconds in times.lowering_stages:
            stage_ns[name] += nanoseconds

    triton.knobs.compilation.listener = listen
    with torch.no_grad():
        runs = stages(model)
        with FakeGpu(90):
            before = _processor_seconds()
            for stage in KINDS[kind]:
                compile_ahead(runs[stage], workers=1)
            total = _processor_seconds() - before
    share = stage_ns["ir"] / sum(stage_ns.values())
    return {
        "kernels": sum(names.values()),
        "specialisations": dict(sorted(names.items())),
        "cpu_s": round(total, 1),
        "ir_s": round(total * share, 1),
        "forecast_s": round(forecast(total, total * share, PROCESSORS), 1),
    }


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def import_seconds() -> float:
    """Processor seconds to import the package and the modules that its Triton kernels need."""
    program = (
        "import time, sam2_fast, sam2_fast.video.predictor, sam2_fast.kernels.launch;"
        "print(time.process_time())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return round(float(run.stdout), 1)


def measure(models: list[str]) -> dict[str, Any]:
    """The table, with a separate process for every model and kind of work."""
    rows: dict[str, Any] = {}
    for model in models:
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as cache:
                command = [sys.executable, "-m", "tools.cold_start", "--one", model, kind]
                environment = {**os.environ, "TRITON_CACHE_DIR": cache}
                run = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=True
                )
            rows[f"{model} {kind}"] = json.loads(run.stdout.splitlines()[-1])
    return {
        "torch": version("torch"),
        "triton": version("triton"),
        "processors": PROCESSORS,
        "import_cpu_s": import_seconds(),
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=("tiny", "large"), default=["tiny", "large"])
    parser.add_argument("--write", action="store_true", help=f"replace {TABLE.name}")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        sys.stdout.write(json.dumps(compile_kind(*options.one)) + "\n")
        return 0
    table = measure(options.model)
    sys.stdout.write(f"import {table['import_cpu_s']} s\n")
    for name, row in table["rows"].items():
        sys.stdout.write(
            f"{name:12} {row['kernels']:3} kernels  {row['cpu_s']:5.1f} s of processor time  "
            f"{row['forecast_s']:4.1f} s on {PROCESSORS} processors\n"
        )
    if options.write:
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
