"""Run a target on mutated seeds: with a seeded loop, which needs nothing, or with atheris."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import BROKEN
from tests.fuzz.targets import Target


@dataclass
class Result:
    """Counts of a run. findings: file names and tracebacks of errors that are not documented."""

    executions: int = 0
    accepted: int = 0
    findings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Runner:
    """Executes inputs of one target, and writes those with a finding to a folder."""

    def __init__(self, target: Target, folder: Path, findings: Path) -> None:
        self.result = Result()
        self._target = target
        self._file = folder / f"input{target.suffix}"
        self._findings = findings
        self._known: set[str] = set()

    def execute(self, data: bytes) -> None:
        self.result.executions += 1
        self._file.write_bytes(data)
        try:
            self._target.run(self._file)
            self.result.accepted += 1
        except self._target.documented as error:
            if not str(error).isprintable():
                self._report(data, "error of several lines, or with control characters", error)
        except Exception as error:  # noqa: BLE001 - every other error is a finding
            self._report(data, type(error).__name__, error)

    def _report(self, data: bytes, kind: str, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        key = f"{kind} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
        if key in self._known:
            return
        self._known.add(key)
        self._findings.mkdir(parents=True, exist_ok=True)
        path = self._findings / f"{len(self._known)}{self._target.suffix}"
        path.write_bytes(data)
        text = "".join(traceback.format_exception(error))
        path.with_name(f"{path.name}.txt").write_text(f"{key}\n{text}", encoding="utf-8")
        self.result.findings.append(f"{path}: {key}: {error!s:.200}")


def run_seeded(
    target: Target, runner: Runner, seed: int, proceed: Callable[[Result], bool]
) -> None:
    """Execute the seeds, then mutations of them, while `proceed` is true of the counts."""
    rng = random.Random(seed)
    corpus = [*target.seeds()]
    for data in corpus:
        runner.execute(data)
    while proceed(runner.result):
        data = rng.choice(corpus)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            try:
                data = target.mutate(rng, data, corpus)
            except BROKEN:
                break
        runner.execute(data[: 2**20])
