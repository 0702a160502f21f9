"""What the records say, as text that fits a terminal's last page. Standard library only."""

from __future__ import annotations

from benchmarks.first_light.records import Record

MOST = 10_000
"""Characters of the table at most."""
_PLACES = ("step", "item", "status", "kernels", "log", "traceback")


def table(records: list[Record]) -> str:
    """One line for each record; what does not fit is cut from the middle, and the ends of the steps
    stay."""
    ends = [_line(r) for r in records if r["item"] == "end"]
    rows = [_line(r) for r in records if r["item"] != "end"]
    room = MOST - sum(len(line) + 1 for line in ends) - 120
    kept: list[str] = []
    for line in rows:
        if len(line) + 1 > room:
            kept.append(f"... {len(rows) - len(kept)} more lines in first_light.jsonl")
            break
        kept.append(line)
        room -= len(line) + 1
    return "\n".join([*kept, *ends])[:MOST] + "\n"


def _line(record: Record) -> str:
    values = "  ".join(
        f"{key} {_short(value)}" for key, value in record.items() if key not in _PLACES
    )
    status = record.get("status", "ok")
    log = record.get("log") or record.get("traceback") or ""
    reason = " | " + " ".join(log.split())[-160:] if log and status != "ok" else ""
    mark = "" if status == "ok" and record["item"] != "end" else f"  {status}"
    return f"{record['step']:9}{record['item']:44} {values}{mark}{reason}".rstrip()[:420]


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + " ".join(_short(x) for x in value[:12]) + "]"
    return str(value)[:200]
