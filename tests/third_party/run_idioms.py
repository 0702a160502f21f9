"""run_idioms.py [--official PEERS TOOLS] CHECKPOINT FRAMES OUTPUT SCRIPT...: run scripts that
import `sam2`, with our package or with the official one.

Python imports PyTorch and the package once; every script then runs in a process that is forked
from it, so that what one script replaces is not replaced for the next. The script NAME.py has the
arguments CHECKPOINT, FRAMES and OUTPUT/NAME.pt. What it prints, and its traceback, goes to
OUTPUT/NAME.log. OUTPUT/seconds.json has the run time of each script.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

LIMIT = 120  # seconds for one script


def run(script: Path, checkpoint: str, frames: str, output: Path) -> int:
    """Run one script in this process; returns its exit status."""
    log = os.open(output / f"{script.stem}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LIMIT)
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), checkpoint, frames, str(output / f"{script.stem}.pt")]
    status = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except BaseException:  # noqa: BLE001 - this process ends here, and the test shows the traceback
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[0] == "--official":
        import official_package

        official_package.prepare(arguments[1], arguments[2])
        arguments = arguments[3:]
    else:
        import sam2_fast.compat

        sam2_fast.compat.install()
    import sam2.build_sam
    import sam2.sam2_image_predictor
    import sam2.sam2_video_predictor  # noqa: F401

    checkpoint, frames, folder, *scripts = arguments
    # A forked process must not inherit the state of a thread pool: nothing is computed before.
    torch.set_num_threads(1)
    seconds = {}
    for script in map(Path, scripts):
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(run(script, checkpoint, frames, Path(folder)))
        os.waitpid(child, 0)
        seconds[script.stem] = round(time.monotonic() - start, 2)
    (Path(folder) / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
