"""The status table of README.md: `python -m tools.readme [--write]`.

It is the summary of docs/status.md, from the same sources, between two comments.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools import generated, status

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "README.md"
BEGIN = "<!-- status: written by `python -m tools.readme --write` -->"
END = "<!-- end of the status -->"


def table() -> str:
    """CPU and GPU side by side."""
    from sam2_fast.ops.core.native import ISAS

    rows = status.rows()
    ops = {op for op, _ in rows}
    cpu = {op for op, backend in rows if backend == "cpu"}
    gpu = {op for op, backend in rows if backend in ("triton", "cuda")}
    tested = [op for (op, backend), row in rows.items() if backend == "cpu" and row.proofs]
    triton = [row for (_, backend), row in rows.items() if backend == "triton"]
    interpreted = sum("interpreted" in row.proofs for row in triton)
    compiled = sum("compiled" in row.proofs for row in triton)
    capabilities = sorted({c for row in triton for c in row.architectures}, key=float)
    cards = sorted({row.ran for (_, backend), row in rows.items() if backend in ("triton", "cuda")})
    return "\n".join(
        [
            "| | CPU | GPU |",
            "|---|---|---|",
            f"| ops with a kernel | {len(cpu)} of {len(ops)} | {len(gpu)} of {len(ops)} |",
            f"| tested against PyTorch in CI | {len(tested)} of {len(cpu)} "
            f"| {interpreted} of {len(triton)} in Triton's interpreter |",
            f"| compiled in CI for | {', '.join(ISAS)} | {', '.join(capabilities)} |",
            f"| without register spills | | {compiled} of {len(triton)} |",
            f"| last run | CI | {'; '.join(cards)} |",
        ]
    )


def page() -> str:
    """README.md with the table of now."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(generated.main(__doc__, PAGE, page))
