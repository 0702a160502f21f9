"""Tables of recorded launches, with a forecast of their time, and the comparison of two tables."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from tools.gpu.architectures import Architecture
from tools.gpu.binary import Binary, read_binary
from tools.gpu.fake import Launch, Stage

LAUNCH_US = 2.2
"""Estimated microseconds between two dependent small kernels in a CUDA graph."""
ISSUE_SLOTS = 4
"""Warp instructions that a multiprocessor issues per cycle."""


class Report:
    """Rows of one architecture."""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self._kernels: dict[str, dict[str, Any]] = {}
        self._models: dict[str, dict[str, Any]] = {}

    def add(self, model: str, name: str, stage: Stage) -> None:
        """Add the launches of one stage of a model."""
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
        num_bytes = stage.torch_bytes + sum(launch.bytes for launch in stage.launches)
        self._models.setdefault(model, {})[name] = {
            "triton_launches": len(stage.launches),
            "torch_operations": sum(stage.torch_operations.values()),
            "gflop": round(flops / 1e9, 2),
            "megabytes": round(num_bytes / 1e6, 1),
            "limit_us": round(flops / self._architecture.matrix_tflops / 1e6, 1),
            "forecast_us": round(forecast, 0),
            "kernels": labels,
        }

    def as_dict(self) -> dict[str, Any]:
        """The rows as a dict for JSON."""
        return {"kernels": dict(sorted(self._kernels.items())), "models": self._models}

    def _kernel(self, launch: Launch) -> dict[str, Any]:
        metadata = launch.compiled.metadata
        binary = binary_of(launch.compiled)
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
        """The row with more registers, of two binaries compiled with different alignments."""
        return row if known is None or row["registers"] > known["registers"] else known

    def _launch_us(self, launch: Launch) -> float:
        """The larger of the time to compute and the time to move the bytes, plus a launch.

        The time to compute is that of the multiprocessor with the most blocks.
        """
        gpu = self._architecture
        metadata = launch.compiled.metadata
        binary = binary_of(launch.compiled)
        matrix = launch.flops / gpu.matrix_tflops / 1e6
        issue = 0.0
        if binary.loop_flops:
            instructions = launch.flops / binary.loop_flops * binary.loop_instructions
            issue = instructions / (ISSUE_SLOTS * gpu.multiprocessors * gpu.clock_ghz) / 1e3
        resident = gpu.resident_blocks(binary.registers, metadata.shared, metadata.num_warps)
        # Only blocks that share a multiprocessor can overlap matrix products and other work.
        work = matrix + issue if resident == 1 else max(matrix, issue)
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
    values = " ".join(f"{name}={_short(constants[name])}" for name in declared)
    types = dict.fromkeys(
        t.removeprefix("*") for t in source.signature.values() if t.startswith("*")
    )
    return f"{launch.kernel} [{' '.join(types)}] {values}"


def _short(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def binary_of(compiled: Any) -> Binary:
    """Resources of a compiled kernel. Each binary is analysed once."""
    return _binary(compiled.asm["cubin"])


@cache
def _binary(cubin: bytes) -> Binary:
    return read_binary(cubin)


def as_table(table: dict[str, Any]) -> str:
    """The table as text for the terminal."""
    lines = []
    for capability, rows in table["architectures"].items():
        lines.append(f"\nsm_{capability}, triton {table['triton']}, torch {table['torch']}")
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


def differences(table: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """One line for each value that is worse than in the committed table.

    Tables of other versions of torch or Triton cannot be compared: one line says so.
    """
    faults = []
    if table["triton"] != committed["triton"] or table["torch"] != committed["torch"]:
        want, got = (f"torch {t['torch']} with triton {t['triton']}" for t in (committed, table))
        return [f"expected {want}, as in the committed table; {got} compiles to other numbers"]
    for capability, rows in table["architectures"].items():
        before = committed["architectures"][capability]
        for label, row in rows["kernels"].items():
            faults += _kernel_faults(f"sm_{capability} {label}", row, before["kernels"].get(label))
        for model, parts in rows["models"].items():
            for name, row in parts.items():
                known = before["models"][model][name]
                for key in ("triton_launches", "torch_operations"):
                    if row[key] > known[key]:
                        faults.append(
                            f"sm_{capability} {model} {name}: {key} rose from {known[key]} to "
                            f"{row[key]}"
                        )
    return faults


def _kernel_faults(name: str, row: dict[str, Any], known: dict[str, Any] | None) -> list[str]:
    faults = [f"{name}: registers are spilled, {row['spills']} accesses"] if row["spills"] else []
    if known is None:
        return [*faults, f"{name}: not in the table; check its numbers and run with --write"]
    if row["registers"] > known["registers"]:
        faults.append(f"{name}: registers rose from {known['registers']} to {row['registers']}")
    if row["resident"] < known["resident"]:
        faults.append(
            f"{name}: blocks per multiprocessor fell from {known['resident']} to {row['resident']}"
        )
    return faults
