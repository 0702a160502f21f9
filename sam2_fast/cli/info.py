"""`sam2-fast info`: versions, devices, kernels that can run here, and cached weights."""

from __future__ import annotations

import json as json_module
from typing import Any

import typer

from sam2_fast import environment
from sam2_fast.cli import options as o
from sam2_fast.cli.report import guarded


@guarded
def info(
    json: o.AsJson = False,
) -> None:
    """Show what this machine can run: versions, devices, kernels and cached weights.

    For a kernel that cannot run here, the reason is shown.
    """
    facts = environment.info()
    typer.echo(json_module.dumps(facts) if json else _as_text(facts))


def _as_text(facts: dict[str, Any]) -> str:
    lines = [f"{name:24} {value or 'not installed'}" for name, value in facts["versions"].items()]
    lines += ["", "devices"]
    for device in facts["devices"]:
        lines.append("  " + "  ".join(str(value) for value in device.values()))
    extension = facts["extension"]
    lines += [
        "",
        f"compiled extension: {'yes' if extension['present'] else 'no: ' + extension['reason']}",
    ]
    lines += [
        f"  {name:22} {', '.join(value) or 'none' if isinstance(value, list) else value}"
        for name, value in extension.items()
        if name not in ("present", "reason")
    ]
    lines += ["", "kernels"]
    for row in facts["kernels"]:
        lines.append(
            f"  {row['op']:22} {row['backend']:8} "
            f"{'yes' if row['reason_why_not'] is None else 'no: ' + row['reason_why_not']}"
        )
    cache = facts["weights_cache"]
    lines += ["", f"weights cache: {cache['directory']}"]
    lines += [f"  {model_id}" for model_id in cache["models"]] or ["  none"]
    return "\n".join(lines)
