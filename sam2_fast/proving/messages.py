"""Verdicts, choices and the warning about a kernel, from the finding of a proof."""

from __future__ import annotations

import time
from typing import Any, Protocol

from sam2_fast.proving.card import Card
from sam2_fast.proving.prover import Finding
from sam2_fast.proving.store import Choice, Verdict

REPORT = "sam2-fast doctor --json"
NOT_PROVED = "it has not been proved on this card yet"


class Kernel(Protocol):
    """The attributes of an implementation in the registry that proofs need."""

    @property
    def op(self) -> str:
        """The name of its op."""

    @property
    def backend(self) -> str:
        """The name of its backend."""

    @property
    def run(self) -> Any:
        """The function that runs it."""


def verdict_of(kernel: Kernel, configuration: str, finding: Finding) -> Verdict:
    """The verdict about a kernel from the finding of its proof."""
    reason, error = finding.outcome
    forms = tuple((*point, form) for point, form in finding.forms.items())
    if reason:
        forms = ()
    ms = finding.milliseconds
    return Verdict(kernel.op, kernel.backend, configuration, reason, error, ms, today(), forms)


def choices_of(finding: Finding, op: str) -> list[Choice]:
    """The choices of forms from the finding of a proof."""
    return [
        Choice(*p, r.form, "measured", r.milliseconds, r.default_milliseconds, op, today())
        for p, r in finding.fastest.items()
    ]


def warning_of(verdict: Verdict, card: Card) -> str:
    """The warning about a refused kernel."""
    return (
        f"sam2_fast does not use the {verdict.backend} kernel of {verdict.op} on {card.name} "
        f"({card.architecture}, driver {card.driver or 'none'}, torch {card.torch}, triton "
        f"{card.triton}) for configuration {verdict.configuration}: {verdict.reason}. The next "
        f"available backend runs instead: results are correct, but take longer. Please report "
        f"this with the output of `{REPORT}`."
    )


def unwritable(error: OSError) -> str:
    """The warning about a cache that cannot be used."""
    return (
        f"sam2_fast cannot save the proofs of its kernels to disk ({error}), so that every process "
        "proves them again. Set SAM2_FAST_CACHE to a writable directory."
    )


def today() -> str:
    """The date, UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())
