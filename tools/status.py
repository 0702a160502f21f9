"""What is proved of every op on every backend, and what is not: `python -m tools.status [--write]`
makes docs/status.md.

Read off the registry, the tests' `proves` marks, the committed table of the dry run and the results
of `benchmarks.first_light` in benchmarks/results. Nothing in the page is written by hand.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools import generated

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "status.md"
HOW = ("reference", "interpreted", "compiled", "gpu test")
"""What a test can prove: equal to the definition on a CPU, or in Triton's interpreter; that code is
generated without spills; equal to the definition on a GPU, whenever the test is run on one."""
HEAD = """# Status: what is proved, and what is not

Made by `python -m tools.status --write` from the registry, the tests, the dry run and the
results in `benchmarks/results`; a test compares. This page alone says what is unproven.

* **Reference**: a test in CI compares with the op's definition in torch, by the rule that
  the error is at most twice torch's own, or bit by bit.
* **Interpreted**: the same for Triton kernels in Triton's interpreter, on a CPU, in
  float32 and float16. The interpreter has no bfloat16.
* **Compiled**: tests in CI compile the code for GPUs and refuse spilled registers.
* **Real model**: compute capabilities for which the dry run (`tools/dry_run.py`) compiles
  what the tiny and the large model launch at 1024 pixels in bfloat16.
* **GPU test**: a test that compares on a GPU is there; it runs where there is one.
* **Ran on**: the card and day of the last `benchmarks.first_light` whose results are
  committed.
"""


@dataclass
class Row:
    """What is known of one op on one backend."""

    proofs: set[str] = field(default_factory=set)
    architectures: list[str] = field(default_factory=list)
    ran: str = "never"


def rows() -> dict[tuple[str, str], Row]:
    """Every op and backend of the registry, torch's definitions left out."""
    from sam2_fast.ops.core import registry

    known = registry.all_implementations()
    found = {key: Row() for key in known if key[1] != "torch"}
    for key, how in marks():
        if key not in found or how not in HOW:
            raise ValueError(
                f"a test proves {how!r} of {':'.join(key)}: no such op, or no kind of proof"
            )
        found[key].proofs.add(how)
    for (op, backend), row in found.items():
        if backend == "triton":
            row.architectures = dry_run(known[op, backend].kernels)
        if backend == "cuda" and assembled(stem_of(known[op, "torch"].run)):
            row.proofs.add("compiled")
        if backend == "cpu":
            row.ran = "CI, on a CPU"
    for (op, backend), ran in on_cards().items():
        if (op, backend) in found:
            found[op, backend].ran = ran
    return found


def marks() -> list[tuple[tuple[str, str], str]]:
    """What tests say they prove: `@pytest.mark.proves("interpreted", "nms:triton", ...)`."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                if (
                    isinstance(decorator, ast.Call)
                    and ast.unparse(decorator.func) == "pytest.mark.proves"
                ):
                    how, *keys = (ast.literal_eval(argument) for argument in decorator.args)
                    for key in keys:
                        op, backend = key.split(":")
                        found.append(((op, backend), how))
    return found


def dry_run(kernels: tuple[str, ...]) -> list[str]:
    """Compute capabilities for which the committed table has all these kernels."""
    table = json.loads((ROOT / "tools" / "gpu" / "dry_run.json").read_text())["architectures"]
    there = {
        c: {label.split("_kernel")[0] for label in part["kernels"]} for c, part in table.items()
    }
    return [f"{int(c) / 10:.1f}" for c, names in there.items() if set(kernels) <= names]


def stem_of(definition: Callable[..., object]) -> str:
    """The module of `sam2_fast.ops` that an op's definition is in; its CUDA file has this name."""
    return definition.__module__.removeprefix("sam2_fast.ops.").split(".")[0]


def assembled(stem: str) -> bool:
    """Whether the committed table of a stem's CUDA kernels, which CI compares where nvcc is, has
    no spills."""
    table = json.loads((ROOT / "csrc" / "cuda" / f"{stem}.ptxas.json").read_text())
    return all(row["spilled_bytes"] == 0 for targets in table.values() for row in targets.values())


def on_cards() -> dict[tuple[str, str], str]:
    """Where and when each op last ran on a GPU with a right result."""
    found: dict[tuple[str, str], str] = {}
    for path in sorted((ROOT / "benchmarks" / "results").glob("*first_light*.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        card = next((r["card"] for r in records if r["item"] == "card" and "capability" in r), None)
        day = max((r["date"][:10] for r in records if r["item"] == "command"), default="")
        if card is None:
            continue
        results: dict[tuple[str, str], dict[str, bool]] = defaultdict(dict)
        for record in records:
            words = record["item"].split()
            if record["step"] == "ops" and len(words) >= 4:
                # the last of several runs in one file counts
                results[words[1], words[3]][record["item"]] = record.get("status", "ok") == "ok"
        for key, good in results.items():
            wrong = "" if all(good.values()) else ": WRONG or failed at some shape"
            found[key] = f"{card}, {day}{wrong}"
    return found


def page() -> str:
    """The page as text."""
    lines = [
        HEAD,
        "| op | backend | reference | interpreted | compiled | real model | GPU test | ran on |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for (op, backend), row in sorted(rows().items()):
        reference, interpreted, compiled, test = ("yes" if how in row.proofs else "" for how in HOW)
        real = ", ".join(row.architectures)
        cells = (f"`{op}`", backend, reference, interpreted, compiled, real, test, row.ran)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" + graphs()


def graphs() -> str:
    """CUDA graphs and the rest of the pipeline, which are no ops."""
    ran = sorted((ROOT / "benchmarks" / "results").glob("*first_light*.jsonl"))
    golden = [
        record
        for path in ran
        for record in map(json.loads, path.read_text().splitlines())
        if record["step"] == "golden" and "over_torch" in record and record["status"] == "ok"
    ]
    state = f"{len(golden)} comparisons of whole videos were right" if golden else "never on a GPU"
    return f"""
CUDA graphs of frames, encodings and clicks, encoding ahead on a second stream: on a CPU
tests replay what was captured on a tape and compare bit by bit; on GPUs: {state}.
"""


if __name__ == "__main__":
    sys.exit(generated.main(__doc__, PAGE, page))
