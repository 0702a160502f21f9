"""What `sam2-fast doctor` finds: every kernel proved on the model's own calls, and the fastest of
its forms. `doctor.json` among the files is what `tools.ship_choices` makes a shipped table of."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.first_light.context import Context


def run(context: Context) -> None:
    """Entry point."""
    if context.mode == "fake":
        context.record("doctor", status="not run: nothing is computed")
        return
    from sam2_fast.doctor import Options, examine_machine

    models = ("nano",) if context.mode == "cpu" else context.models
    size = 64 if context.mode == "cpu" else context.size
    options = Options(context.device, models, context.dtype, size, timing=context.cuda)
    report = examine_machine(options)
    (context.files / "doctor.json").write_text(json.dumps(report))
    for number, row in enumerate(report["rows"]):
        context.record(f"{row['op']} {row['backend']} {number}", **_short(row))
    for choice in report["choices"]:
        context.record(f"choice {choice['point']}", form=choice["form"])
    status = "ok" if report["failed"] == 0 else f"WRONG: {report['failed']} kernels"
    context.record("doctor", status=status, seconds=report["seconds"])


def _short(row: dict[str, Any]) -> dict[str, Any]:
    names = (
        "model",
        "isa",
        "configuration",
        "error",
        "milliseconds",
        "torch_milliseconds",
        "share",
    )
    status = "ok" if row["status"] == "proved" else f"{row['status']}: {row['reason']}"[:300]
    return {name: row[name] for name in names if row[name] is not None} | {"status": status}
