"""Resources and main loop of a compiled kernel, read from its cubin."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_LABEL = re.compile(r"^\s*(\.L_\w+):")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L_\w+)\)")
_LOCAL_MEMORY = re.compile(r"\b(STL|LDL)\b")
_WARPGROUP_MMA = re.compile(r"\bHGMMA\.(\d+)x(\d+)x(\d+)\.(\S+)")
_WARP_MMA = re.compile(r"\bHMMA\.(16816|1688)\.(\S+)")


@dataclass(frozen=True)
class Binary:
    """Resources and main loop of one kernel for one architecture."""

    registers: int  # per thread
    spills: int  # loads and stores of spilled registers in local memory
    mma: str  # kinds of matrix instructions, the most frequent first, or empty
    loop_instructions: int  # SASS instructions of the innermost loop with the most matrix work
    loop_mma: int  # matrix instructions among them
    loop_flops: int  # FLOPs of these matrix instructions, for one warp

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict for JSON."""
        return asdict(self)


def read_binary(cubin: bytes) -> Binary:
    """Analyse a cubin with the tools of Triton's wheel. Raises CalledProcessError if one fails."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run(tools / "cuobjdump", "-res-usage", file.name)
        code = _run(tools / "nvdisasm", "-c", file.name)
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None:
        raise ValueError(f"cuobjdump: expected REG, got {usage[:200]!r}")
    instructions, loops = _loops(code)
    first, last = _main_loop(instructions, loops)
    body = instructions[first:last]
    kinds = [kind for line in instructions if (kind := _mma(line)) is not None]
    names = [name for name, _ in kinds]
    return Binary(
        registers=int(registers[1]),
        spills=sum(_LOCAL_MEMORY.search(line) is not None for line in instructions),
        mma=" ".join(sorted(set(names), key=lambda name: -names.count(name))),
        loop_instructions=len(body),
        loop_mma=sum(_mma(line) is not None for line in body),
        loop_flops=_flops(body),
    )


def _run(tool: Path, *arguments: str) -> str:
    command = [str(tool), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return run.stdout


def _loops(code: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Instructions in order, and loops as [first, last) of the instructions.

    A backward branch is taken for a loop.
    """
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in code.splitlines():
        if (label := _LABEL.match(line)) is not None:
            labels[label[1]] = len(instructions)
        if (instruction := _INSTRUCTION.match(line)) is None:
            continue
        instructions.append(instruction[1])
        branch = _BRANCH.search(instruction[1])
        if branch is not None and branch[1] in labels:
            loops.append((labels[branch[1]], len(instructions)))
    # The code ends with a branch to itself, which is no loop of the kernel.
    return instructions, [(first, last) for first, last in loops if last - first > 1]


def _main_loop(instructions: list[str], loops: list[tuple[int, int]]) -> tuple[int, int]:
    """The innermost loop with the most matrix work, or all instructions.

    All instructions are returned if no loop has matrix instructions.
    """
    with_flops = [loop for loop in loops if _flops(instructions[slice(*loop)])]
    innermost = [
        (first, last)
        for first, last in with_flops
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in with_flops)
    ]
    if not innermost:
        return 0, len(instructions)
    return max(innermost, key=lambda loop: _flops(instructions[slice(*loop)]))


def _mma(instruction: str) -> tuple[str, int] | None:
    """Name of a matrix instruction and its FLOPs for one warp, or None for other instructions."""
    if (group := _WARPGROUP_MMA.search(instruction)) is not None:
        m, n, k = (int(group[i]) for i in (1, 2, 3))
        return f"wgmma m{m}n{n}k{k}", 2 * m * n * k // 4  # shared by the four warps of a warpgroup
    if (warp := _WARP_MMA.search(instruction)) is not None:
        k = int(warp[1][3:])
        return f"mma m16n8k{k}", 2 * 16 * 8 * k
    return None


def _flops(instructions: list[str]) -> int:
    return sum(kind[1] for line in instructions if (kind := _mma(line)) is not None)
