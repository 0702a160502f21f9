"""Versions, devices and kernels of this installation."""

from __future__ import annotations

import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sam2_fast import __version__
from sam2_fast.ops.core.registry import backends
from sam2_fast.weights import hub

PACKAGES = (
    "numpy",
    "pillow",
    "safetensors",
    "huggingface_hub",
    "triton",
    "av",
    "opencv-python-headless",
    "opencv-python",
    "supervision",
)


def info() -> dict[str, Any]:
    """Facts for a bug report, as JSON values.

    They are versions, devices, the compiled extension, which backends of each op can run or why
    not, and the weights in the Hugging Face cache.
    """
    return {
        "versions": _versions(),
        "devices": _devices(),
        "extension": _extension(),
        "kernels": [
            {"op": row.op, "backend": row.backend, "reason_why_not": row.reason}
            for row in backends()
        ],
        "weights_cache": _cache(),
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "sam2_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _devices() -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = [
        {
            "name": "cpu",
            "model": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
    ]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        architecture = f"sm_{facts.major}{facts.minor}"
        devices.append(
            {
                "name": f"cuda:{index}",
                "model": facts.name,
                "architecture": architecture,
                "memory_bytes": facts.total_memory,
            }
        )
    return devices


def _extension() -> dict[str, Any]:
    """The compiled module: whether it exists, its CUDA architectures, and the CPU's ISA."""
    try:
        module = import_module("sam2_fast._C")
    except ImportError as error:
        return {"present": False, "reason": str(error)}
    return {
        "present": True,
        "cuda_architectures": list(module.cuda_architectures()),
        "cpu_isa": module.cpu_isa(),
        "openmp": bool(getattr(module, "openmp", False)),
    }


def _cache() -> dict[str, Any]:
    from huggingface_hub import constants

    paths = {model_id: hub.cached(model_id) for model_id in hub.HF_MODEL_ID_TO_FILENAMES}
    return {
        "directory": str(constants.HF_HUB_CACHE),
        "models": {key: str(path) for key, path in paths.items() if path is not None},
    }
