"""The first minutes on a GPU: `python -m benchmarks.first_light --out FOLDER [STEP ...]`.

Ten steps, each a process with a limit of its own, in the order of what they tell in a second:

    setup     package, versions, kernel cache, matrix and copy rates of the card
    ops       every op once at the real shapes: its error over torch's own error
    golden    masks of eight frames against a CPU in float32: torch, kernels, CUDA graphs,
              changed weights, a stream of the caller's
    profile   CUDA graphs of an encoding and of a tracked frame: their time, and that of every
              kernel in them
    speed     frames per second of whole videos, host time, peak memory
    official  the official package on the same clip
    sweeps    tile sizes of the kernels beside the libraries
    tasks     automatic masks, a click, the start of a process with an empty kernel cache
    memcheck  out-of-bounds accesses, with every allocation on its own
    tests     the GPU tests

Without names the first six run, and end within --seconds. A result is one line of
FOLDER/first_light.jsonl as soon as it is known; a step that fails or reaches its limit takes
nothing along, and the next one runs. FOLDER/all.tgz holds the results, logs and profiles; a table
of at most 10,000 characters is printed last. Exit status: 0, or 1 where a step failed.

--carried names what `tools/pack_gpu.py` made: wheel, kernel cache, reference masks, frames, peers.
Without it the installed package is used. --rehearse cpu runs everything that a CPU can at small
sizes; --rehearse fake compiles what a GPU would launch at full size and computes nothing
(`tools/gpu/fake.py`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.first_light.runner import DEFAULT, STEPS, Plan, run_steps


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "steps",
        nargs="*",
        metavar="STEP",
        help=f"of {', '.join(STEPS)}; default {', '.join(DEFAULT)}",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--carried", type=Path, help="folder that tools/pack_gpu.py made")
    parser.add_argument("--rehearse", choices=("cpu", "fake"), help="without a GPU")
    parser.add_argument("--seconds", type=float, default=290.0, help="for everything")
    parser.add_argument(
        "--fail", default="", help="a step that is made to fail, or STEP:hang, for rehearsals"
    )
    parser.add_argument(
        "--no-limits", action="store_true", help="steps may take as long as --seconds"
    )
    parser.add_argument("--only", help="run one step in this process; used by the runner")
    options = parser.parse_args()
    unknown = set(options.steps) - set(STEPS)
    if unknown:
        parser.error(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    if options.only:
        from benchmarks.first_light.context import run_one

        return run_one(
            options.only, options.out, options.carried, options.rehearse or "cuda", options.fail
        )
    plan = Plan(
        steps=tuple(options.steps or DEFAULT),
        out=options.out,
        carried=options.carried,
        rehearse=options.rehearse,
        seconds=options.seconds,
        limits={} if options.no_limits else None,
        fail=options.fail,
    )
    return run_steps(plan)


if __name__ == "__main__":
    sys.exit(main())
