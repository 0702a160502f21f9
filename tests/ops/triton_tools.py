"""What tests of Triton kernels share: the interpreter, and compilers that need no GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import torch
from contextlib import nullcontext

torch.cuda.device_of = lambda tensor: nullcontext()
fresh = torch.Tensor.new_empty


def poisoned(self, *size, **how):
    made = fresh(self, *size, **how)
    return made.fill_(
        float("nan") if made.is_floating_point() else torch.iinfo(made.dtype).max // 3
    )


torch.Tensor.new_empty = poisoned
"""
"""Kernels on CPU tensors, and fresh memory full of what nobody may read."""


def interpret(program: str) -> None:
    """Run Python code in a process in which Triton interprets its kernels; fails where the code
    raises.
    """
    environment = {"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    command = [sys.executable, "-c", PRELUDE + program]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr[-2000:]


def compiled(
    kernel: Any,
    kinds: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    aligned: bool = True,
    sixteens: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """`kernel` compiled for a GPU of `capability`. kinds: Triton's types of the arguments that are
    no constants; aligned: pointers are;
    sixteens: numbers that are multiples of 16, which Triton sees by itself when a kernel is
        launched."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    every = {n: "constexpr" if n in constants else kinds[n] for n in names}
    hints = {
        (names.index(n),): [["tt.divisibility", 16]]
        for n in names
        if (aligned and every[n].startswith("*")) or n in sixteens
    }
    source = ASTSource(
        kernel,
        every,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs=hints,
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(
    kernel: Any,
    kinds: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    warps: int,
    stages: int,
    sixteens: tuple[str, ...] = (),
) -> tuple[int, int, int]:
    """Registers a thread, bytes spilled and bytes of shared memory, as ptxas reports them."""
    import triton

    found = compiled(
        kernel, kinds, constants, capability, sixteens=sixteens, num_warps=warps, num_stages=stages
    )
    architecture = re.search(r"\.target ([^\s,]+)", found.asm["ptx"])
    assert architecture is not None
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    runs = []
    for name in (
        "ptxas",
        "ptxas-blackwell",
    ):  # which of them knows the architecture depends on the version
        if (tools / name).exists():
            command = [
                tools / name,
                "-v",
                "-arch",
                architecture[1],
                "-o",
                "/dev/null",
                "/dev/stdin",
            ]
            runs.append(
                subprocess.run(
                    command,
                    input=found.asm["ptx"],
                    capture_output=True,
                    text=True,
                    timeout=200,
                    check=False,
                )
            )
    run = next(run for run in runs if run.returncode == 0)
    registers, spills = (
        re.search(r"Used (\d+) registers", run.stderr),
        re.search(r"(\d+) bytes spill stores", run.stderr),
    )
    assert registers is not None and spills is not None, run.stderr
    return int(registers[1]), int(spills[1]), found.metadata.shared
