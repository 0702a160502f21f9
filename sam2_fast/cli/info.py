"""`sam2-fast info`: versions, devices, which kernels can run here and why not, and which weights are at hand."""

from __future__ import annotations

import json as json_module
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import torch
import typer

import sam2_fast
from sam2_fast import hub
from sam2_fast.cli.report import guarded

PACKAGES = ("numpy", "pillow", "safetensors", "huggingface_hub", "triton", "av", "opencv-python-headless", "opencv-python", "supervision")


@guarded
def info(json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Say what this machine can do: versions, devices, kernels (yes, or why not), cached weights."""
    facts = {
        "versions": _versions(),
        "devices": _devices(),
        "extension": _extension(),
        "kernels": _kernels(),
        "weights_cache": _cache(),
    }
    typer.echo(json_module.dumps(facts) if json else _as_text(facts))


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"sam2_fast": sam2_fast.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _devices() -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = [
        {"name": "cpu", "model": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    ]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        architecture = f"sm_{facts.major}{facts.minor}"
        devices.append({"name": f"cuda:{index}", "model": facts.name, "architecture": architecture, "memory_bytes": facts.total_memory})
    return devices


def _extension() -> dict[str, Any]:
    """The compiled module: whether it is there, and every plain fact that it states about itself."""
    try:
        module = import_module("sam2_fast._C")
    except ImportError as error:
        return {"present": False, "reason": str(error)}
    facts: dict[str, Any] = {"present": True}
    for name in sorted(vars(module)):
        value = getattr(module, name)
        if not name.startswith("_") and isinstance(value, (str, int, float, bool, list, tuple)):
            facts[name] = list(value) if isinstance(value, tuple) else value
    return facts | ({"cpu_isa": module.cpu_isa()} if hasattr(module, "cpu_isa") else {})


def _kernels() -> list[dict[str, str | None]]:
    from sam2_fast.ops.registry import backends

    return [{"op": row.op, "backend": row.backend, "reason_why_not": row.reason} for row in backends()]


def _cache() -> dict[str, Any]:
    from huggingface_hub import constants

    found = {model_id: hub.cached(model_id) for model_id in hub.HF_MODEL_ID_TO_FILENAMES}
    return {"directory": str(constants.HF_HUB_CACHE), "models": {key: str(path) for key, path in found.items() if path is not None}}


def _as_text(facts: dict[str, Any]) -> str:
    lines = [f"{name:24} {value or 'not installed'}" for name, value in facts["versions"].items()]
    lines += ["", "devices"]
    for device in facts["devices"]:
        lines.append("  " + "  ".join(str(value) for value in device.values()))
    extension = facts["extension"]
    lines += ["", f"compiled extension: {'yes' if extension['present'] else 'no: ' + extension['reason']}"]
    lines += [f"  {name:22} {'none' if value == '' else value}" for name, value in extension.items() if name not in ("present", "reason")]
    lines += ["", "kernels"]
    for row in facts["kernels"]:
        lines.append(f"  {row['op']:22} {row['backend']:8} {'yes' if row['reason_why_not'] is None else 'no: ' + row['reason_why_not']}")
    cache = facts["weights_cache"]
    lines += ["", f"weights cache: {cache['directory']}"]
    lines += [f"  {model_id}" for model_id in cache["models"]] or ["  none"]
    return "\n".join(lines)
