"""The cost of a call in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MOST_SECONDS = 1
MOST_MEGABYTES = 300

_COST = """
import resource, sys, time
from pathlib import Path
path = Path(sys.argv[1])
{imports}
def peak():
    # ru_maxrss of a child starts with that of the parent, the kernel's own counter does not.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
before, started = peak(), time.process_time()
try:
    {call}
    outcome = "accepted"
except ({errors}) as error:
    outcome = f"{{type(error).__name__}}: {{error}}"
print(outcome.replace(chr(10), " "))
print(time.process_time() - started, peak() - before)
"""


def cost_of(
    imports: str, call: str, path: Path, errors: str = "ValueError"
) -> tuple[str, float, float]:
    """(outcome, CPU seconds, additional MB at the peak) of a call in a process of its own.

    imports, call: Python text; the call may use `path`. outcome: "accepted", or the error.
    """
    code = _COST.format(imports=imports, call=call, errors=errors)
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    outcome, numbers = result.stdout.splitlines()[-2:]
    seconds, megabytes = map(float, numbers.split())
    return outcome, seconds, megabytes


def refusal_of(imports: str, call: str, path: Path, errors: str = "ValueError") -> str:
    """The error of a hostile file, which must cost less than a CPU second and 300 MB.

    Other processes on the same cores slow a process down, so a slow one has two more attempts.
    """
    for _ in range(3):
        outcome, seconds, megabytes = cost_of(imports, call, path, errors)
        if seconds < MOST_SECONDS:
            break
    assert outcome != "accepted"
    assert megabytes < MOST_MEGABYTES and seconds < MOST_SECONDS
    return outcome
