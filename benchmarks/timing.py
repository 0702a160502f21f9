"""Timing of competing implementations, which alternate in one process.

Results are medians with their spread, together with a description of the machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from sam2_fast.proving.errors import rms_error as rms_error
from sam2_fast.proving.limits import matrix_rate
from sam2_fast.proving.timing import cpu_milliseconds, device_milliseconds, wall_milliseconds
from sam2_fast.proving.timing import cuda_milliseconds as cuda_milliseconds


class RedCaseError(AssertionError):
    """The outputs of a case differ from the expected ones, so the case is not timed."""


@dataclass(frozen=True)
class Options:
    """Settings of a run, from the command line."""

    device: torch.device
    repeats: int = 9
    peers: tuple[str, ...] = ()  # empty: every peer that is installed
    quick: bool = False  # small shapes only, to check that a benchmark runs


@dataclass(frozen=True)
class Row:
    """One line of the results: times of one implementation on one case, in milliseconds.

    `notes` are further columns, for example an error or a rate.
    """

    case: str
    implementation: str
    median_ms: float
    low_ms: float
    high_ms: float
    notes: Mapping[str, Any]

    def with_notes(self, notes: Mapping[str, Any]) -> Row:
        """The same row with further notes."""
        return replace(self, notes={**self.notes, **notes})

    def as_dict(self) -> dict[str, Any]:
        """The row as an entry of a JSON file, in which the implementation is named "who"."""
        return {"who" if k == "implementation" else k: v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Case:
    """One case of a benchmark. It is measured when its rows are iterated over.

    `function(name, *arguments)` first checks with `require` that the outputs are equal, then times
    them. An exception in it ends this case only, so code that can fail belongs in it and not in
    `measure`.
    """

    name: str
    function: Callable[..., Iterable[Row]]
    arguments: tuple[Any, ...] = ()

    def rows(self) -> Iterable[Row]:
        """The rows of the case, measured while they are iterated over."""
        return self.function(self.name, *self.arguments)


def require(equal: bool, case: str, implementation: str) -> None:
    """Raise `RedCaseError` if the outputs of an implementation are not equal."""
    if not equal:
        raise RedCaseError(f"{case}: {implementation} differs; a red case is not timed")


class Times(dict[str, list[float]]):
    """Milliseconds of every run, by the name of the function."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__({name: [] for name in names})
        # Functions on a GPU that have to be timed by the host's clock.
        self.wall_clock: set[str] = set()

    def switch_to_wall_clock(self, name: str) -> None:
        """Time `name` by the host's clock from now on.

        Its times by the device's clock are dropped, so that the two are not mixed.
        """
        if name not in self.wall_clock:
            self.wall_clock.add(name)
            self[name].clear()


def interleaved(functions: Mapping[str, Callable[[], Any]], options: Options) -> Times:
    """Milliseconds of every run.

    Each round runs every function once, so that a change of the machine's speed affects all
    functions alike.
    """
    times = Times(functions)
    is_cuda = options.device.type == "cuda"
    # Larger than the L2 cache of any GPU: writing it makes the cache cold.
    evicting = torch.empty(256 << 20 if is_cuda else 0, dtype=torch.int8, device=options.device)
    for repeat in range(options.repeats + 1):
        for name, function in functions.items():
            if is_cuda:
                elapsed = _gpu_ms(name, function, times, evicting.zero_)
            else:
                elapsed = cpu_milliseconds(function)
            if repeat > 0:  # the first round is a warm-up
                times[name].append(elapsed)
    return times


def dtypes(options: Options) -> tuple[torch.dtype, ...]:
    """The dtypes to measure: those commonly used on this type of device."""
    return (
        (torch.float32, torch.bfloat16)
        if options.device.type == "cpu"
        else (torch.bfloat16, torch.float16)
    )


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with every tensor moved to `device`, including those in lists, tuples and weights."""
    return tree_map_only(torch.Tensor, lambda x: x.to(device), value)


def matrix_peak(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of a large matrix product on `device`, to which "% of matrix peak" refers."""
    return matrix_rate(device, dtype)


def _gpu_ms(
    name: str, function: Callable[[], Any], times: Times, before: Callable[[], Any]
) -> float:
    elapsed = None if name in times.wall_clock else device_milliseconds(function, before)
    if elapsed is None:
        times.switch_to_wall_clock(name)
        elapsed = wall_milliseconds(function, before)
    return elapsed


def rates(
    times: Mapping[str, list[float]],
    gflop: float,
    peak: float,
    error: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Notes for `rows`: ratio to this library's time, rate, share of the peak rate, error.

    peak: GFLOP/s of a matrix product.
    """
    ours = statistics.median(times["sam2_fast"])
    notes = {}
    for name, milliseconds in times.items():
        median = statistics.median(milliseconds)
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
    """Medians and spreads as rows.

    A row that was timed on a GPU by the host's clock has the note `clock: wall`, because its time
    includes the launches.
    """
    extra = notes or {}
    wall_clock = times.wall_clock if isinstance(times, Times) else set()
    clock = {name: {"clock": "wall"} if name in wall_clock else {} for name in times}
    return [
        Row(
            case, name, statistics.median(t), min(t), max(t), {**extra.get(name, {}), **clock[name]}
        )
        for name, t in times.items()
    ]
