"""Build the native module with AddressSanitizer and UBSan, and run the tests of kernels with it.

python -m tools.sanitize [--workers N]

Builds into build/sanitize; the installed module stays. The first report or failed test ends the
run with an exit code other than 0. ASan writes its reports to files and UBSan to the error output,
so pytest captures no file descriptors. Memory is filled with NaN before it is used, so that results
show reads of what was not written. Leaks are not reported: Python, pybind11 and torch keep memory
until the process ends.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/sanitize"
REPORTS = BUILD / "reports"
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so")
"""Loaded before Python, which was not linked to them."""

FILL = f"malloc_fill_byte=255:max_malloc_fill_size={2**30}"

SKIPPED_FILES = (
    *("errors", "launch", "lazy_tensors", "nms", "object_heads", "recording", "registry"),
    *("scratch", "second_device", "tracing", "weights"),
)
"""Files of tests/ops about other code than kernels, in addition to those of Triton. `scratch`
needs glibc's allocator, which ASan replaces."""
FURTHER_FILES = ("tests/test_fingerprint.py", "tests/reliability/test_bindings_hostile.py")
SKIPPED_TESTS = ("triton", "interpreter", "opcheck", "cuda", "torch", "compile")
"""Words in the names of tests without native code, or with the compilers of torch."""


def build() -> Path:
    """The sanitized module, built or rebuilt."""
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None"),
        *("-DSAM2_FAST_SANITIZE=ON", "-DSAM2_FAST_CUDA=OFF"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    ]
    scripts = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": scripts + os.pathsep + os.environ["PATH"]}
    subprocess.run(configure, check=True, env=env, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(BUILD)], check=True, env=env)
    (module,) = BUILD.glob("_C.*.so")
    return module


def files() -> list[str]:
    skipped = tuple(f"test_{name}" for name in SKIPPED_FILES)
    ops = sorted((ROOT / "tests/ops").glob("test_*.py"))
    tested = [p for p in ops if not p.name.startswith(skipped) and "triton" not in p.name]
    return [*(str(p.relative_to(ROOT)) for p in tested), *FURTHER_FILES]


def environment(module: Path) -> dict[str, str]:
    """Variables with which every Python process loads the sanitized module."""
    runtimes = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in RUNTIMES
    ]
    options = f"halt_on_error=1:print_stacktrace=1:log_path={REPORTS / 'report'}"
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:{FILL}:{options}",
        "UBSAN_OPTIONS": options,
        "PYTHONPATH": str(ROOT / "tests/sanitized"),
        "SAM2_FAST_SANITIZED": str(module),
    }


def run_tests(module: Path, workers: int) -> int:
    """Pytest's exit code, or 1 after any report."""
    REPORTS.mkdir(exist_ok=True)
    for old in REPORTS.iterdir():
        old.unlink()
    parallel = ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []
    words = " and ".join(f"not {word}" for word in SKIPPED_TESTS)
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "-r", "fE", "--capture=sys"),
        *("-p", "loaded_module", "--durations", "5", "-k", words, *parallel, *files()),
    ]
    code = subprocess.run(command, cwd=ROOT, env=environment(module), check=False).returncode
    reports = sorted(REPORTS.iterdir())
    for report in reports:
        print(report.read_text(), file=sys.stderr)
    return code or int(bool(reports))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1, help="processes of pytest")
    arguments = parser.parse_args()
    start = time.monotonic()
    module = build()
    built = time.monotonic()
    code = run_tests(module, arguments.workers)
    print(f"build {built - start:.0f} s, tests {time.monotonic() - built:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
