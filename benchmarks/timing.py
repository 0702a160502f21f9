"""Fair timing: competitors take turns in one process; medians with their spread; what machine it
was.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from sam2_fast.proving.errors import rms_error as rms_error
from sam2_fast.proving.limits import matrix_rate
from sam2_fast.proving.timing import cpu_milliseconds, device_milliseconds, wall_milliseconds
from sam2_fast.proving.timing import cuda_milliseconds as cuda_milliseconds

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "connected-components-3d",
    "openvino",
    "onnxruntime",
    "transformers",
)


class RedCaseError(AssertionError):
    """Outputs differ: a case that is wrong is not timed."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    device: torch.device
    repeats: int = 9
    peers: tuple[str, ...] = ()  # empty: every peer that is installed
    quick: bool = False  # small shapes only, to see that it runs


@dataclass(frozen=True)
class Row:
    """One line of the result: a case, who ran it, milliseconds, and whatever else is worth a
    column.
    """

    case: str
    who: str
    median_ms: float
    low_ms: float
    high_ms: float
    notes: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """What a benchmark yields: one case, measured when it is asked for its rows.

    `function(name, *arguments)` proves the outputs equal with `require`, then times them. What it
    raises ends this case only, so whatever may fail belongs in it and not in `measure`.
    """

    name: str
    function: Callable[..., Iterable[Row]]
    arguments: tuple[Any, ...] = ()

    def rows(self) -> Iterable[Row]:
        """Measure it."""
        return self.function(self.name, *self.arguments)


def require(equal: bool, case: str, who: str) -> None:
    """Refuse to go on with a case whose outputs differ."""
    if not equal:
        raise RedCaseError(f"{case}: {who} differs; a red case is not timed")


class Times(dict[str, list[float]]):
    """Milliseconds of every run, by name."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__({name: [] for name in names})
        self.wall: set[str] = set()  # of a GPU: what had to be timed by the host's clock

    def by_wall_clock(self, name: str) -> None:
        """From now on. What the device's clock said until now is left out: the
        two are not mixed.
        """
        if name not in self.wall:
            self.wall.add(name)
            self[name].clear()


def interleaved(functions: Mapping[str, Callable[[], Any]], options: Options) -> Times:
    """Milliseconds of every run. Each round runs every function once, so that drift of the machine
    hits all alike.
    """
    times = Times(functions)
    cuda = options.device.type == "cuda"
    # Larger than any L2.
    cold = torch.empty(256 << 20 if cuda else 0, dtype=torch.int8, device=options.device)
    for turn in range(options.repeats + 1):
        for name, function in functions.items():
            taken = (
                _gpu_ms(name, function, times, cold.zero_) if cuda else cpu_milliseconds(function)
            )
            if turn:  # the first round warms up
                times[name].append(taken)
    return times


def dtypes(options: Options) -> tuple[torch.dtype, ...]:
    """Number formats to measure: those that people run on such a device."""
    return (
        (torch.float32, torch.bfloat16)
        if options.device.type == "cpu"
        else (torch.bfloat16, torch.float16)
    )


def placed(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in it, in lists, tuples and weights too, on `device`."""
    return tree_map_only(torch.Tensor, lambda x: x.to(device), value)


def matrix_peak(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of a large matrix product here: the ceiling that shares are given of."""
    return matrix_rate(device, dtype)


def _gpu_ms(
    name: str, function: Callable[[], Any], times: Times, before: Callable[[], Any]
) -> float:
    taken = None if name in times.wall else device_milliseconds(function, before)
    if taken is None:
        times.by_wall_clock(name)
        taken = wall_milliseconds(function, before)
    return taken


def rates(
    times: Mapping[str, list[float]],
    gflop: float,
    peak: float,
    error: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Notes for `rows`: ratio to ours, rate, share of the matrix peak, error. peak: GFLOP/s."""
    ours = statistics.median(times["sam2_fast"])
    notes = {}
    for name, taken in times.items():
        median = statistics.median(taken)
        rate = 1e3 * gflop / median
        notes[name] = {
            "x ours": median / ours,
            "GFLOP/s": rate,
            "% of matrix peak": 100 * rate / peak,
            "rms error": error[name],
        }
    return notes


def rows(
    case: str,
    times: Mapping[str, list[float]],
    notes: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:
    """Medians and spreads as rows. On a GPU a row that the host's clock timed says so: its launches
    are in it.
    """
    extra = notes or {}
    wall = times.wall if isinstance(times, Times) else set()
    clock = {who: {"clock": "wall"} if who in wall else {} for who in times}
    return [
        Row(case, who, statistics.median(t), min(t), max(t), {**extra.get(who, {}), **clock[who]})
        for who, t in times.items()
    ]


def machine(options: Options) -> dict[str, Any]:
    """Processor, device, threads and versions: enough to repeat a result, nothing that names the
    machine.
    """
    return {
        "cpu": _cpu_name(),
        "device": torch.cuda.get_device_name(options.device)
        if options.device.type == "cuda"
        else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": load_average(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "command": " ".join(["python -m benchmarks.run", *_public_arguments()]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def load_average() -> float:
    """Of the last minute. More than the cores: other work was running, and
    medians are pessimistic.
    """
    return round(os.getloadavg()[0], 1)


def _public_arguments() -> list[str]:
    """The command line without where its JSON goes: a folder says nothing about a result."""
    words = sys.argv[1:]
    return [
        w
        for i, w in enumerate(words)
        if not w.startswith("--json") and (i == 0 or words[i - 1] != "--json")
    ]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    """The version of a package, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
