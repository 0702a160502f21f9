"""From recorded launches to rows, a forecast, a printed table, and what is worse than in an earlier
table."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from tools.gpu.architectures import Architecture
from tools.gpu.binary import Binary, read_binary
from tools.gpu.fake import Launch, Stage

LAUNCH_US = 2.2
"""Microseconds from one dependent small kernel to the next in a CUDA graph; an estimate."""
ISSUE_SLOTS = 4
"""Warp instructions that a multiprocessor issues in a cycle."""


class Report:
    """Rows of one architecture."""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self._kernels: dict[str, dict[str, Any]] = {}
        self._models: dict[str, dict[str, Any]] = {}

    def add(self, model: str, name: str, stage: Stage) -> None:
        """Take what one stage of a model has launched."""
        labels: dict[str, dict[str, Any]] = {}
        forecast = self._torch_us(stage)
        for launch in stage.launches:
            label = label_of(launch)
            self._kernels[label] = self._worst(self._kernels.get(label), self._kernel(launch))
            us = self._launch_us(launch)
            forecast += us
            row = labels.setdefault(label, {"launches": 0, "grids": [], "us": 0.0})
            row["launches"] += 1
            row["us"] = round(row["us"] + us, 1)
            grid = " x ".join(map(str, launch.grid))
            if grid not in row["grids"]:
                row["grids"].append(grid)
        flops = stage.torch_flops + sum(launch.flops for launch in stage.launches)
        moved = stage.torch_bytes + sum(launch.bytes for launch in stage.launches)
        self._models.setdefault(model, {})[name] = {
            "triton_launches": len(stage.launches),
            "torch_operations": sum(stage.torch_operations.values()),
            "gflop": round(flops / 1e9, 2),
            "megabytes": round(moved / 1e6, 1),
            "limit_us": round(flops / self._architecture.matrix_tflops / 1e6, 1),
            "forecast_us": round(forecast, 0),
            "kernels": labels,
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kernels": dict(sorted(self._kernels.items())), "models": self._models}

    def _kernel(self, launch: Launch) -> dict[str, Any]:
        metadata, binary = launch.compiled.metadata, binary_of(launch.compiled)
        resident = self._architecture.resident_blocks(
            binary.registers, metadata.shared, metadata.num_warps
        )
        return {
            "warps": metadata.num_warps,
            "shared": metadata.shared,
            "resident": resident,
            **binary.as_dict(),
        }

    @staticmethod
    def _worst(known: dict[str, Any] | None, row: dict[str, Any]) -> dict[str, Any]:
        """Of two binaries that differ only in what is known of alignment, the one with more
        registers."""
        return row if known is None or row["registers"] > known["registers"] else known

    def _launch_us(self, launch: Launch) -> float:
        """The larger of the time to compute, on what the grid fills, and the time to move bytes."""
        gpu, metadata = self._architecture, launch.compiled.metadata
        binary = binary_of(launch.compiled)
        matrix = launch.flops / gpu.matrix_tflops / 1e6
        issue = 0.0
        if binary.loop_flops:
            instructions = launch.flops / binary.loop_flops * binary.loop_instructions
            issue = instructions / (ISSUE_SLOTS * gpu.multiprocessors * gpu.clock_ghz) / 1e3
        alone = gpu.resident_blocks(binary.registers, metadata.shared, metadata.num_warps) == 1
        work = matrix + issue if alone else max(matrix, issue)
        rounds = math.ceil(launch.blocks / gpu.multiprocessors)
        work *= rounds * gpu.multiprocessors / launch.blocks
        return LAUNCH_US + max(work, launch.bytes / gpu.bandwidth_tbs / 1e6)

    def _torch_us(self, stage: Stage) -> float:
        gpu = self._architecture
        work = (
            stage.torch_flops / gpu.matrix_tflops / 1e6
            + stage.torch_bytes / gpu.bandwidth_tbs / 1e6
        )
        return LAUNCH_US * sum(stage.torch_operations.values()) + work


def label_of(launch: Launch) -> str:
    """A kernel with its constants and the types of its tensors, as one line."""
    source = launch.compiled.src
    declared = [p.name for p in source.fn.params if p.is_constexpr]
    constants = {source.fn.arg_names[path[0]]: value for path, value in source.constants.items()}
    chosen = " ".join(f"{name}={_short(constants[name])}" for name in declared)
    types = dict.fromkeys(
        t.removeprefix("*") for t in source.signature.values() if t.startswith("*")
    )
    return f"{launch.kernel} [{' '.join(types)}] {chosen}"


def _short(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def binary_of(compiled: Any) -> Binary:
    """Resources of a compiled kernel; each binary is analysed once."""
    return _binary(compiled.asm["cubin"])


@cache
def _binary(cubin: bytes) -> Binary:
    return read_binary(cubin)


def show(found: dict[str, Any]) -> str:
    """A table for the terminal."""
    lines = []
    for capability, rows in found["architectures"].items():
        lines.append(f"\nsm_{capability}, triton {found['triton']}, torch {found['torch']}")
        for model, parts in rows["models"].items():
            for name, row in parts.items():
                lines.append(
                    f"  {model:6} {name:16} {row['triton_launches']:4} Triton "
                    f"{row['torch_operations']:5} torch {row['gflop']:9.1f} GFLOP "
                    f"{row['megabytes']:9.1f} MB   limit {row['limit_us']:8.1f} us   "
                    f"forecast {row['forecast_us']:8.0f} us"
                )
        for label, row in rows["kernels"].items():
            spilled = f"  SPILLS {row['spills']}" if row["spills"] else ""
            lines.append(
                f"    {label[:92]:92} {row['registers']:3} regs {row['shared'] / 1024:5.0f} KB "
                f"{row['resident']:2}/SM  {row['mma']}  "
                f"{row['loop_instructions']}/{row['loop_mma']}{spilled}"
            )
    return "\n".join(lines) + "\n"


def differences(found: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """What is worse than in the committed table, or not comparable with it: one line each, empty if
    nothing."""
    faults = []
    if found["triton"] != committed["triton"] or found["torch"] != committed["torch"]:
        want, got = (f"torch {t['torch']} with triton {t['triton']}" for t in (committed, found))
        return [
            f"the table was made with {want}; this is {got}, whose compilers give other numbers"
        ]
    for capability, rows in found["architectures"].items():
        before = committed["architectures"][capability]
        for label, row in rows["kernels"].items():
            faults += _kernel_faults(f"sm_{capability} {label}", row, before["kernels"].get(label))
        for model, parts in rows["models"].items():
            for name, row in parts.items():
                known = before["models"][model][name]
                for key in ("triton_launches", "torch_operations"):
                    if row[key] > known[key]:
                        place = f"sm_{capability} {model} {name}"
                        faults.append(f"{place}: {key} rose from {known[key]} to {row[key]}")
    return faults


def _kernel_faults(name: str, row: dict[str, Any], known: dict[str, Any] | None) -> list[str]:
    faults = [f"{name}: registers are spilled, {row['spills']} accesses"] if row["spills"] else []
    if known is None:
        return [*faults, f"{name}: is not in the table; look at its numbers and run with --write"]
    if row["registers"] > known["registers"]:
        faults.append(f"{name}: registers rose from {known['registers']} to {row['registers']}")
    if row["resident"] < known["resident"]:
        faults.append(
            f"{name}: blocks per multiprocessor fell from {known['resident']} to {row['resident']}"
        )
    return faults
