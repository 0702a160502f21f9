"""Package, versions, validity of the packed kernel cache, and the matrix and copy rates."""

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
    """Run the step."""
    context.attempt("versions", _versions)
    context.attempt("card", lambda: _card(context))
    context.attempt("triton key", lambda: _triton_key(context.pack))
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
    """A short hash of Triton's files and the assembler's version.

    Besides the kernels, Triton's cache depends on these.
    """
    from triton.runtime.cache import triton_key as full_key

    return hashlib.sha256(full_key().encode()).hexdigest()[:16]


def _triton_key(pack: Path | None) -> dict[str, Any]:
    key = triton_key()
    if pack is None:
        return {"key": key}
    expected = json.loads((pack / "contents.json").read_text())["triton_key"]
    if key != expected:
        return {
            "status": "the packed kernels are from another Triton: they are compiled again",
            "key": key,
        }
    return {"key": key, "valid": True}


def _package() -> dict[str, Any]:
    from sam2_fast.ops.core.native import native
    from sam2_fast.ops.core.registry import backends

    module = native()
    if module is None:
        raise RuntimeError("sam2_fast._C cannot be imported: the wheel does not fit this Python")
    names = [f"{s.op}:{s.backend}" for s in backends() if s.available and s.backend != "torch"]
    architectures = module.cuda_architectures()
    return {"cuda": architectures, "available": len(names), "backends": " ".join(names)}


def _matrix_rate(context: Context) -> dict[str, Any]:
    """Rate of dense bfloat16 matrix products on random data."""
    n = 8192 if context.cuda else 256
    a, b = (torch.randn(n, n, device=context.device, dtype=torch.bfloat16) for _ in range(2))
    timing = context.microseconds(lambda: a @ b)
    return {**timing, "tflops": None if timing["us"] is None else 2 * n**3 / timing["us"] / 1e6}


def _copy_rate(context: Context) -> dict[str, Any]:
    """Rate of a device-to-device copy, in bytes read and written."""
    size = 2**30 if context.cuda else 2**20
    source = torch.ones(size, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    timing = context.microseconds(lambda: target.copy_(source))
    return {**timing, "tb_per_s": None if timing["us"] is None else 2 * size / timing["us"] / 1e6}
