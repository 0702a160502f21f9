"""The first minutes on a GPU: `python -m benchmarks.first_light --out FOLDER [STEP ...]`.

Each step is a separate process with its own time limit. Steps with the most information per second
come first:

    setup     package, versions, kernel cache, matrix and copy rates of the card
    ops       every op once at the real shapes: its error over torch's own error
    golden    masks of eight frames against a CPU in float32: torch, kernels, CUDA graphs,
              changed weights, another stream than the default one
    profile   CUDA graphs of an encoding and of a tracked frame: the time of the graph and of every
              kernel in it
    speed     frames per second of whole videos, host time, peak memory
    official  the official package on the same video
    sweeps    all forms of the kernels, compared with libraries
    doctor    every kernel proved on the models' calls, and the fastest of its forms
    tasks     automatic masks, a click, the start of a process with an empty kernel cache
    memcheck  out-of-bounds accesses, without torch's caching allocator
    tests     the GPU tests

By default the first six steps run and end within --seconds. Each result is written to
FOLDER/first_light.jsonl as one line as soon as it is known. A step that fails or reaches its limit
does not affect the others. FOLDER/all.tgz holds the results, logs and profiles. A table of at most
10,000 characters is printed last. The exit status is 1 if a step failed, otherwise 0.

--carried names the folder that `tools/pack_gpu.py` wrote: wheel, kernel cache, reference masks,
frames, peers. Without it the installed package is used. --rehearse cpu runs at small sizes
everything that a CPU can run. --rehearse fake compiles at full size what a GPU would launch, and
computes nothing (`tools/gpu/fake.py`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.first_light.runner import DEFAULT, STEPS, Plan, run_steps


def main() -> int:
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "steps",
        nargs="*",
        metavar="STEP",
        help=f"one or more of {', '.join(STEPS)}; by default {', '.join(DEFAULT)}",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--carried", type=Path, help="folder that tools/pack_gpu.py wrote")
    parser.add_argument("--rehearse", choices=("cpu", "fake"), help="run without a GPU")
    parser.add_argument(
        "--seconds", type=float, default=290.0, help="time limit of the whole run (default 290)"
    )
    parser.add_argument(
        "--fail", default="", help="for rehearsals: make this step fail, or hang with STEP:hang"
    )
    parser.add_argument(
        "--no-limits", action="store_true", help="steps may take as long as --seconds"
    )
    parser.add_argument("--only", help="for the runner: run one step in this process")
    options = parser.parse_args()
    unknown = set(options.steps) - set(STEPS)
    if unknown:
        parser.error(f"unknown step: {', '.join(sorted(unknown))}; choose from {', '.join(STEPS)}")
    if options.only:
        from benchmarks.first_light.context import run_one

        return run_one(
            options.only, options.out, options.carried, options.rehearse or "cuda", options.fail
        )
    plan = Plan(
        steps=tuple(options.steps or DEFAULT),
        out=options.out,
        pack=options.carried,
        rehearse=options.rehearse,
        seconds=options.seconds,
        limits={} if options.no_limits else None,
        fail=options.fail,
    )
    return run_steps(plan)


if __name__ == "__main__":
    sys.exit(main())
