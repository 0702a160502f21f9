"""What this machine is: package, versions, whether the carried kernel cache is valid, and the
card's two rates."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.first_light.context import Context
from benchmarks.machine import installed

PACKAGES = ("torch", "triton", "numpy", "transformers", "torchvision")


def run(context: Context) -> None:
    """Entry point."""
    context.attempt("versions", _versions)
    context.attempt("card", lambda: _card(context))
    context.attempt("triton key", lambda: _triton_key(context.carried))
    context.attempt("package", _package)
    context.attempt("matrix product", lambda: _matrix_rate(context))
    context.attempt("copy", lambda: _copy_rate(context))


def _versions() -> dict[str, Any]:
    packages = {package: installed(package) for package in PACKAGES}
    return {"python": platform.python_version(), **packages}


def _card(context: Context) -> dict[str, Any]:
    if not context.cuda:
        return {"card": f"none, rehearsal on {context.mode}"}
    properties = torch.cuda.get_device_properties(context.device)
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    smi = subprocess.run(
        command, capture_output=True, text=True, timeout=10, check=False
    ).stdout.strip()
    return {
        "card": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 2**30, 1),
        "l2_mb": round(properties.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda,
        fields: smi,
    }


def triton_key() -> str:
    """A short hash of what Triton's cache depends on besides kernels: its own files and the
    assembler's version."""
    from triton.runtime.cache import triton_key as whole

    return hashlib.sha256(whole().encode()).hexdigest()[:16]


def _triton_key(carried: Path | None) -> dict[str, Any]:
    key = triton_key()
    if carried is None:
        return {"key": key}
    expected = json.loads((carried / "contents.json").read_text())["triton_key"]
    if key != expected:
        return {
            "status": "the carried kernels are of another Triton: they are compiled again",
            "key": key,
        }
    return {"key": key, "valid": True}


def _package() -> dict[str, Any]:
    from sam2_fast.ops.core.native import native
    from sam2_fast.ops.core.registry import backends

    module = native()
    if module is None:
        raise RuntimeError("sam2_fast._C is not there: the wheel does not fit this Python")
    here = [f"{s.op}:{s.backend}" for s in backends() if s.available and s.backend != "torch"]
    return {"cuda": module.cuda_architectures(), "available": len(here), "backends": " ".join(here)}


def _matrix_rate(context: Context) -> dict[str, Any]:
    """Dense bf16 products on random data."""
    n = 8192 if context.cuda else 256
    a, b = (torch.randn(n, n, device=context.device, dtype=torch.bfloat16) for _ in range(2))
    taken = context.microseconds(lambda: a @ b)
    return {**taken, "tflops": None if taken["us"] is None else 2 * n**3 / taken["us"] / 1e6}


def _copy_rate(context: Context) -> dict[str, Any]:
    """Device to device, bytes read and written."""
    size = 2**30 if context.cuda else 2**20
    source = torch.ones(size, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    taken = context.microseconds(lambda: target.copy_(source))
    return {**taken, "tb_per_s": None if taken["us"] is None else 2 * size / taken["us"] / 1e6}
