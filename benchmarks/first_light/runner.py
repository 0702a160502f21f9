"""Runs steps as processes with limits, keeps what they said, and packs it. Standard library only:
the package is installed from the carried wheel before the first step."""

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
"""Seconds a step may take at most."""
STEPS = tuple(LIMITS)
DEFAULT = STEPS[:6]
CACHE = Path("/tmp/sam2_fast_first_light/triton")
"""Where compiled kernels are kept. Triton stores absolute paths, so a carried cache works at this
place alone."""
RESTART = 75
"""Exit status of a step whose CUDA context is lost: it goes on in a new process with what has no
record yet."""
RESERVE = 8.0
"""Seconds kept for the archive and the table."""
HERE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """What to run and where."""

    steps: tuple[str, ...]
    out: Path  # folder of the results
    carried: Path | None = None  # what `tools/pack_gpu.py` made; None: the installed package
    rehearse: str | None = None  # "cpu" or "fake"; None: on a GPU
    seconds: float = 290.0  # for everything
    limits: Mapping[str, float] | None = None  # seconds of a step; None: `LIMITS`; absent: none
    fail: str = ""  # a step that is made to fail, or "STEP:hang"


def run_steps(plan: Plan) -> int:
    """Run the steps of a plan; returns the exit status."""
    deadline = time.monotonic() + plan.seconds - RESERVE
    plan.out.mkdir(parents=True, exist_ok=True)
    out, steps = plan.out.resolve(), plan.steps
    lines = out / "first_light.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            words = " ".join(["python -m benchmarks.first_light", *steps])
            begin(lines, words, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
            stage = _stage(work, plan.carried, lines)
            for step in steps:
                _run_step(step, plan, stage, work, lines, deadline)
                _pack(work, out)
        except KeyboardInterrupt:
            append(lines, {"step": "run", "item": "stopped", "status": "stopped from outside"})
        finally:
            signal.signal(signal.SIGTERM, before)
            _pack(work, out)
            records = this_run(read(lines))
            sys.stdout.write(table(records))
    ended = {r["step"]: r["status"] for r in records if r["item"] == "end"}
    return 0 if all(ended.get(step) == "ok" for step in steps) else 1


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _stage(work: Path, carried: Path | None, lines: Path) -> Path:
    """A folder to run in. With `carried`, a new one with the carried wheel, and the kernel cache in
    its place."""
    if carried is None:
        return HERE
    parts: tuple[tuple[str, Callable[[], object]], ...] = (
        ("kernel cache", lambda: _unpack_cache(carried)),
        ("install", lambda: stage_with_wheel(work, carried)),
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


def stage_with_wheel(work: Path, carried: Path) -> Path:
    """A folder in `work` with the carried wheel and what is run beside it: the source tree cannot
    hide the package."""
    stage = work / "stage"
    for name in ("benchmarks", "tests", "tools", "examples"):
        shutil.copytree(
            HERE / name, stage / name, ignore=shutil.ignore_patterns("__pycache__", "*.mp4")
        )
    shutil.copy(HERE / "pyproject.toml", stage)
    _install(carried, stage)
    return stage


def _unpack_cache(carried: Path) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tarfile.open(carried / "triton_cache.tar.xz") as archive:
        archive.extractall(CACHE, filter="data")


def _install(carried: Path, stage: Path) -> None:
    """The wheel, without its dependencies, beside the stage; where there is none that fits, from
    source."""
    wheels = sorted(carried.glob("wheel/*.whl"))
    options = ["-q", "--no-deps", "--no-index", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options, str(stage)]
    if wheels:
        result = subprocess.run([*command, str(wheels[-1])], timeout=30, check=False)
        if result.returncode == 0:
            return
    command.remove("--no-index")
    subprocess.run([*command, "--no-build-isolation", str(HERE)], timeout=150, check=True)


def _run_step(step: str, plan: Plan, stage: Path, work: Path, lines: Path, deadline: float) -> None:
    """One step, in as many processes as its lost contexts cost."""
    start = time.monotonic()
    limits = LIMITS if plan.limits is None else plan.limits
    limit = min(limits.get(step, plan.seconds), deadline - start)
    end = {"step": step, "item": "end", "status": "not run: no time is left", "seconds": 0.0}
    if limit < 3:
        append(lines, end)
        return
    arguments = ["--only", step, "--out", str(lines.parent)]
    arguments += ["--carried", str(plan.carried.resolve())] if plan.carried is not None else []
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
    # What other runs have measured is not used.
    environment["SAM2_FAST_CACHE"] = str(work / "cache")
    if (
        "doctor" not in arguments
    ):  # the other steps judge kernels themselves, in their default forms
        environment["SAM2_FAST_PROVE"] = "0"
    if plan.carried is not None and (plan.carried / "peers").is_dir():
        peers = (plan.carried / "peers").resolve()
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


def _pack(work: Path, out: Path) -> None:
    """Results, logs and profiles so far as one archive, replaced as a whole."""
    made = work / "all.tgz"
    with tarfile.open(made, "w:gz") as archive:
        found = [f for kind in ("*.log", "*.json", "*.xml") for f in work.glob(kind)]
        for file in [*sorted(found), out / "first_light.jsonl"]:
            if file.is_file():
                archive.add(file, file.name)
    shutil.copy(made, out / "all.tgz.part")
    os.replace(out / "all.tgz.part", out / "all.tgz")
