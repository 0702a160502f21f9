"""Fuzz one target in a process of its own, with limits; started by `tests.fuzz.run`.

Prints a line of JSON with the counts. The line coverage of the readers is written to the folder.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import sys
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import coverage

if TYPE_CHECKING:
    from tests.fuzz.loop import Result, Runner
    from tests.fuzz.targets import Target

HANG_SECONDS = 60
MAX_BYTES = 4 << 30
"""Most memory that a worker may have, in bytes."""
SAVE_EVERY = 200


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("seeded", "atheris"), default="seeded")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--findings", type=Path, required=True)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    package = find_spec("sam2_fast")
    assert package is not None and package.origin is not None
    lines = coverage.Coverage(
        data_file=str(options.folder.resolve() / "coverage"),
        include=[f"{Path(package.origin).parent}/*"],
        config_file=False,
    )
    lines.start()
    with _instrumented(options.engine):
        from tests.fuzz.loop import Runner, run_seeded
        from tests.fuzz.targets import TARGETS

    target = TARGETS[options.name]
    folder = options.folder.resolve()
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    runner = Runner(target, folder, options.findings)
    started = time.monotonic()

    def proceed(result: Result) -> bool:
        # A hang ends the process, with the place on stderr; the input stays in the folder.
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        if result.executions % SAVE_EVERY == 0:
            report(lines, result, folder)
        return time.monotonic() - started < options.seconds

    if options.engine == "atheris":
        _run_atheris(target, runner, options, proceed)
    else:
        run_seeded(target, runner, options.seed, proceed)
    report(lines, runner.result, folder)
    faulthandler.cancel_dump_traceback_later()
    return bool(runner.result.findings)


def _instrumented(engine: str) -> AbstractContextManager[Any]:
    """The readers that are imported in the block report their branches to atheris."""
    if engine != "atheris":
        return nullcontext()
    import atheris

    return cast(AbstractContextManager[Any], atheris.instrument_imports(include=["sam2_fast"]))


def report(lines: Any, result: Result, folder: Path) -> None:
    """Write the counts and the coverage so far; atheris ends the process without returning."""
    lines.save()
    (folder / "result.json").write_text(json.dumps(result.as_dict()), encoding="utf-8")


def _run_atheris(target: Target, runner: Runner, options: Any, proceed: Any) -> None:
    """Let atheris choose the inputs by the branches that they reach; does not return."""
    import random

    import atheris

    from tests.fuzz.mutations import BROKEN

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
        proceed(runner.result)
        runner.execute(data)

    limits = [f"-max_total_time={int(options.seconds)}", f"-timeout={HANG_SECONDS}"]
    memory = [f"-rss_limit_mb={MAX_BYTES >> 20}", f"-seed={options.seed + 1}", "-max_len=1048576"]
    atheris.Setup([sys.argv[0], *limits, *memory, "corpus"], execute, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
