"""Runs steps as processes with time limits, and archives their results and logs.

Imports the standard library only: the package is installed from the packed wheel before the first
step runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from benchmarks.first_light.records import append, begin, is_good, read, this_run
from benchmarks.first_light.summary import table

LIMITS = {
    "setup": 45.0,
    "ops": 50.0,
    "golden": 50.0,
    "profile": 50.0,
    "speed": 60.0,
    "official": 90.0,
    "sweeps": 100.0,
    "doctor": 120.0,
    "tasks": 60.0,
    "memcheck": 90.0,
    "tests": 240.0,
}
"""The longest time in seconds that a step may take."""
STEPS = tuple(LIMITS)
DEFAULT = STEPS[:6]
CACHE = Path("/tmp/sam2_fast_first_light/triton")
"""Folder of compiled kernels.

Triton stores absolute paths, so a packed cache works in this folder only.
"""
RESTART = 75
"""Exit status of a step that lost its CUDA context.

The step continues in a new process with the items that have no record yet.
"""
RESERVE = 8.0
"""Seconds reserved for the archive and the table."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """Which steps to run, and how."""

    steps: tuple[str, ...]
    out: Path  # folder of the results
    pack: Path | None = None  # written by `tools/pack_gpu.py`; None: use the installed package
    rehearse: str | None = None  # "cpu" or "fake"; None: on a GPU
    seconds: float = 290.0  # time limit of the whole run
    limits: Mapping[str, float] | None = None  # seconds by step, {}: no limits; None: `LIMITS`
    fail: str = ""  # a step to make fail, or "STEP:hang" to make it hang


def run_steps(plan: Plan) -> int:
    """Run the steps of a plan. Returns the exit status."""
    deadline = time.monotonic() + plan.seconds - RESERVE
    plan.out.mkdir(parents=True, exist_ok=True)
    out = plan.out.resolve()
    steps = plan.steps
    lines = out / "first_light.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            command = " ".join(["python -m benchmarks.first_light", *steps])
            begin(lines, command, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
            stage = _stage(work, plan.pack, lines)
            for step in steps:
                _run_step(step, plan, stage, work, lines, deadline)
                _archive(work, out)
        except KeyboardInterrupt:
            append(lines, {"step": "run", "item": "stopped", "status": "stopped by a signal"})
        finally:
            signal.signal(signal.SIGTERM, before)
            _archive(work, out)
            records = this_run(read(lines))
            sys.stdout.write(table(records))
    ended = {r["step"]: r["status"] for r in records if r["item"] == "end"}
    return 0 if all(ended.get(step) == "ok" for step in steps) else 1


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _stage(work: Path, pack: Path | None, lines: Path) -> Path:
    """The folder to run in: the checkout, or with a pack a new folder with the packed wheel.

    A pack's kernel cache is unpacked to `CACHE`.
    """
    if pack is None:
        return ROOT
    parts: tuple[tuple[str, Callable[[], object]], ...] = (
        ("kernel cache", lambda: _unpack_cache(pack)),
        ("install", lambda: stage_with_wheel(work, pack)),
    )
    for item, part in parts:
        start = time.monotonic()
        try:
            part()
            status = "ok"
        except (OSError, subprocess.SubprocessError, tarfile.TarError, ValueError) as error:
            status = f"failed: {type(error).__name__}: {error}"[:400]
        seconds = round(time.monotonic() - start, 1)
        append(lines, {"step": "setup", "item": item, "status": status, "seconds": seconds})
    return work / "stage"


def stage_with_wheel(work: Path, pack: Path) -> Path:
    """A new folder in `work` with the packed wheel and copies of `benchmarks`, `tests` and so on.

    In this folder the package is imported from the wheel; in the checkout the source tree would
    hide it.
    """
    stage = work / "stage"
    for name in ("benchmarks", "tests", "tools", "examples"):
        shutil.copytree(
            ROOT / name, stage / name, ignore=shutil.ignore_patterns("__pycache__", "*.mp4")
        )
    shutil.copy(ROOT / "pyproject.toml", stage)
    _install(pack, stage)
    return stage


def _unpack_cache(pack: Path) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tarfile.open(pack / "triton_cache.tar.xz") as archive:
        archive.extractall(CACHE, filter="data")


def _install(pack: Path, stage: Path) -> None:
    """Install the packed wheel into `stage` without its dependencies.

    If no wheel fits this Python, the package is built from source.
    """
    wheels = sorted(pack.glob("wheel/*.whl"))
    options = ["-q", "--no-deps", "--no-index", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options, str(stage)]
    if wheels:
        result = subprocess.run([*command, str(wheels[-1])], timeout=30, check=False)
        if result.returncode == 0:
            return
    command.remove("--no-index")
    subprocess.run([*command, "--no-build-isolation", str(ROOT)], timeout=150, check=True)


def _run_step(step: str, plan: Plan, stage: Path, work: Path, lines: Path, deadline: float) -> None:
    """Run one step. After a lost CUDA context it continues in a new process."""
    start = time.monotonic()
    limits = LIMITS if plan.limits is None else plan.limits
    limit = min(limits.get(step, plan.seconds), deadline - start)
    end = {"step": step, "item": "end", "status": "not run: no time is left", "seconds": 0.0}
    if limit < 3:
        append(lines, end)
        return
    arguments = ["--only", step, "--out", str(lines.parent)]
    arguments += ["--carried", str(plan.pack.resolve())] if plan.pack is not None else []
    arguments += ["--rehearse", plan.rehearse] if plan.rehearse else []
    arguments += ["--fail", plan.fail] if plan.fail else []
    log = work / f"{step}.log"
    while True:
        known = len(read(lines))
        left = limit - (time.monotonic() - start)
        status = _process(arguments, plan, stage, work, log, max(left, 1.0))
        if status != f"failed: exit {RESTART}" or len(read(lines)) == known:
            break
    if status != "ok":
        end["log"] = log.read_text(errors="replace")[-900:]
    items = [r for r in this_run(read(lines)) if r["step"] == step]
    bad = sum(not is_good(r) for r in items)
    if bad and status == "ok":
        status = f"{bad} of {len(items)} items failed"
    append(lines, {**end, "status": status, "seconds": round(time.monotonic() - start, 1)})


def _process(
    arguments: list[str], plan: Plan, stage: Path, work: Path, log: Path, limit: float
) -> str:
    environment = dict(os.environ, PYTHONUNBUFFERED="1", SAM2_FAST_FIRST_LIGHT_FILES=str(work))
    environment.setdefault("OMP_NUM_THREADS", "4")
    environment.setdefault("TRITON_CACHE_DIR", str(CACHE))
    environment["PYTHONPATH"] = str(stage)
    # A new folder, so that no proofs and timings of other runs are used.
    environment["SAM2_FAST_CACHE"] = str(work / "cache")
    # Except for the doctor, steps check kernels themselves, in their default forms.
    if "doctor" not in arguments:
        environment["SAM2_FAST_PROVE"] = "0"
    if plan.pack is not None and (plan.pack / "peers").is_dir():
        peers = (plan.pack / "peers").resolve()
        environment |= {"SAM2_FAST_PEERS": str(peers), "SAM2_FAST_PEER_TOOLS": str(peers / "tools")}
    command = [sys.executable, "-m", "benchmarks.first_light", *arguments]
    with log.open("a") as file:
        process = subprocess.Popen(
            command, cwd=stage, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped at its limit of {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return "ok" if code == 0 else f"failed: exit {code}"


def _archive(work: Path, out: Path) -> None:
    """Replace the archive by one with all results, logs and profiles up to now."""
    path = work / "all.tgz"
    with tarfile.open(path, "w:gz") as archive:
        files = [f for kind in ("*.log", "*.json", "*.xml") for f in work.glob(kind)]
        for file in [*sorted(files), out / "first_light.jsonl"]:
            if file.is_file():
                archive.add(file, file.name)
    shutil.copy(path, out / "all.tgz.part")
    os.replace(out / "all.tgz.part", out / "all.tgz")
