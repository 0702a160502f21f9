"""Triton's interpreter, and its compilers without a GPU, for tests of Triton kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import torch
from contextlib import nullcontext

torch.cuda.device_of = lambda tensor: nullcontext()
new_empty = torch.Tensor.new_empty


def new_poisoned(self, *size, **kwargs):
    tensor = new_empty(self, *size, **kwargs)
    return tensor.fill_(
        float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max // 3
    )


torch.Tensor.new_empty = new_poisoned
"""
"""Lets kernels run on CPU tensors, and fills uninitialized memory with NaN (integers: with a large
number), so that reading it changes results.
"""


def interpret(program: str) -> None:
    """Run Python code in a process in which Triton interprets its kernels.

    The test fails if the code raises.
    """
    environment = {"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    # One thread if several tests run at once: see tests/conftest.py.
    environment |= {k: v for k, v in os.environ.items() if k == "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", PRELUDE + program]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr[-2000:]


def compiled(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    aligned: bool = True,
    multiples_of_16: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """`kernel` compiled for a GPU.

    types: Triton's types of the arguments that are not constants.
    capability: the compute capability, 90 for 9.0.
    aligned: whether pointers are multiples of 16 bytes.
    multiples_of_16: names of integers that Triton would find to be multiples of 16 at a launch.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types[n] for n in names}
    hints = {
        (names.index(n),): [["tt.divisibility", 16]]
        for n in names
        if (aligned and signature[n].startswith("*")) or n in multiples_of_16
    }
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs=hints,
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


class Resources(NamedTuple):
    """Resources of a compiled kernel, as ptxas reports them."""

    registers: int
    """Of each thread."""
    spilled_bytes: int
    shared_bytes: int
    """Shared memory of a block."""


def resources(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    warps: int,
    stages: int,
    multiples_of_16: tuple[str, ...] = (),
) -> Resources:
    """Compile `kernel` and assemble it with ptxas. The arguments are those of `compiled`."""
    program = compiled(
        kernel,
        types,
        constants,
        capability,
        multiples_of_16=multiples_of_16,
        num_warps=warps,
        num_stages=stages,
    )
    report = _ptxas_report(program.asm["ptx"])
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores", report)
    assert registers is not None and spills is not None, report
    return Resources(int(registers[1]), int(spills[1]), program.metadata.shared)


def _ptxas_report(ptx: str) -> str:
    """What `ptxas -v` prints about `ptx`."""
    import triton

    architecture = re.search(r"\.target ([^\s,]+)", ptx)
    assert architecture is not None
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    options = ["-v", "-arch", architecture[1], "-o", "/dev/null", "/dev/stdin"]
    runs = [
        subprocess.run(
            [tools / name, *options],
            input=ptx,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        # Which of the two supports the architecture depends on the version of Triton.
        for name in ("ptxas", "ptxas-blackwell")
        if (tools / name).exists()
    ]
    return next(run for run in runs if run.returncode == 0).stderr
