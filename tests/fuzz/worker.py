"""Fuzz one target in a process of its own, with limits; started by `tests.fuzz.run`.

Prints a line of JSON with the counts. The line coverage of the readers is written to the folder.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import resource
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import coverage

if TYPE_CHECKING:
    from tests.fuzz.loop import Result, Runner
    from tests.fuzz.targets import Target

HANG_SECONDS = 60
MAX_BYTES = 4 << 30
"""Most memory that a worker may have, in bytes."""
MEASURED_SECONDS = 60
"""The line coverage is that of the first minute; without it, inputs are read twice as fast."""
REPORT_SECONDS = 2


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--executions", type=int, help="replaces the seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("seeded", "atheris"), default="seeded")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--findings", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True, help="a folder for the input")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = options.folder = options.folder.resolve()
    package = find_spec("sam2_fast")
    assert package is not None and package.origin is not None
    lines = coverage.Coverage(
        data_file=str(folder / "coverage"),
        include=[f"{Path(package.origin).parent}/*"],
        config_file=False,
    )
    lines.start()
    # Imported late, so that the coverage has the lines of their modules.
    from tests.fuzz.loop import Runner, run_seeded
    from tests.fuzz.targets import TARGETS

    target = TARGETS[options.name]
    os.chdir(options.inputs)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    runner = Runner(target, options.inputs, options.findings)
    watch = Watch(lines, runner.result, options)
    if options.engine == "atheris":
        _run_atheris(target, runner, options, watch)
    else:
        run_seeded(target, runner, options.seed, watch)
    watch.report()
    faulthandler.cancel_dump_traceback_later()
    return bool(runner.result.findings)


class Watch:
    """Called before each execution: writes reports, ends hangs, and tells whether to go on."""

    def __init__(self, lines: Any, result: Result, options: Any) -> None:
        self._lines = lines
        self._result = result
        self._options = options
        self._file = options.folder / "result.json"
        self._started = time.monotonic()
        self._next_report = self._started

    def __call__(self, result: Result) -> bool:
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            # A hang ends the process, with the place on stderr; the input stays in the folder.
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            self.report()
        if self._options.executions is not None:
            return result.executions < int(self._options.executions)
        return now - self._started < float(self._options.seconds)

    def report(self) -> None:
        """Write the counts and the coverage so far; atheris ends the process without returning."""
        if self._lines is not None:
            self._lines.save()
            if time.monotonic() - self._started > MEASURED_SECONDS:
                self._lines.stop()
                self._lines = None
        self._file.write_text(json.dumps(self._result.as_dict()), encoding="utf-8")


def _run_atheris(target: Target, runner: Runner, options: Any, watch: Watch) -> None:
    """Let atheris choose the inputs by the branches that they reach; does not return."""
    import random

    import atheris

    from tests.fuzz.mutations import BROKEN

    _instrument(target.modules)
    corpus = [*target.seeds()]
    folder = Path("corpus")
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(corpus):
        (folder / str(number)).write_bytes(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        try:
            return target.mutate(rng, data, corpus)[:max_size]
        except BROKEN:
            return bytes(atheris.Mutate(data, max_size))

    def execute(data: bytes) -> None:
        watch(runner.result)
        runner.execute(data)

    length = f"-max_total_time={int(options.seconds)}"
    if options.executions is not None:
        length = f"-runs={options.executions}"
    limits = [length, f"-timeout={HANG_SECONDS}"]
    memory = [f"-rss_limit_mb={MAX_BYTES >> 20}", f"-seed={options.seed + 1}", "-max_len=1048576"]
    atheris.Setup([sys.argv[0], *limits, *memory, "corpus"], execute, custom_mutator=mutate)
    atheris.Fuzz()


def _instrument(modules: tuple[str, ...]) -> None:
    """Let the functions of readers report their branches to atheris.

    Its own hooks of the import have no effect on packages that are installed to be edited.
    """
    import atheris

    names = tuple(str(Path("sam2_fast", module)) for module in modules)
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename.endswith(names):
            atheris.instrument_func(function)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
