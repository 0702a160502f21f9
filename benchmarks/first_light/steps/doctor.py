"""The results of `sam2-fast doctor`: every kernel proved on the models' calls, its fastest form.

`tools.ship_choices` reads the file `doctor.json` of this step.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.first_light.context import Context

_TIMES = ("milliseconds", "torch_milliseconds", "share")
_FIELDS = ("model", "isa", "configuration", "error", *_TIMES)


def run(context: Context) -> None:
    """Run the step."""
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
    status = "ok" if row["status"] == "proved" else f"{row['status']}: {row['reason']}"[:300]
    return {name: row[name] for name in _FIELDS if row[name] is not None} | {"status": status}
