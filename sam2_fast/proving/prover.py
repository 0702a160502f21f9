"""Prove a kernel on one call, then choose the fastest of its correct forms."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sam2_fast.kernels import choices
from sam2_fast.kernels.choices import Form, Trial
from sam2_fast.proving.case import Case, failures
from sam2_fast.proving.device import compile_ahead
from sam2_fast.proving.errors import Outcome
from sam2_fast.proving.rules import Call, Rule
from sam2_fast.proving.store import Point

MARGIN = 0.03
"""A form must be faster by this share than the one it replaces, to exclude noise."""
SWEEPS = 2
RESCUE_SECONDS = 30.0
"""Time for the search of other forms if a kernel fails with its current ones."""
PointForms = Mapping[Point, tuple[Form, tuple[Form, ...]]]
"""For each choice point the form that was used, and all of its forms, the default first."""


@dataclass(frozen=True)
class FormResult:
    """The outcome and the time of one form at one choice point."""

    point: Point
    form: Form
    default: Form
    milliseconds: float | None = None
    default_milliseconds: float | None = None
    reason: str | None = None
    """Why the form must not be used, or None if it is correct."""
    is_fastest: bool = False
    """Whether it is the fastest correct form of its point."""

    def as_json(self) -> dict[str, Any]:
        """For the report of the doctor, which calls the fastest form "taken"."""
        fields = asdict(self)
        return {**fields, "taken": fields.pop("is_fastest")}


@dataclass
class Finding:
    """The result of a proof."""

    outcome: Outcome
    call: Call
    """The call on which the kernel ran."""
    milliseconds: float | None = None
    forms: dict[Point, Form] = field(default_factory=dict)
    """The form of every choice point with which the kernel was proved."""
    form_results: list[FormResult] = field(default_factory=list)
    complete: bool = True
    """Whether there was enough time to try all forms."""

    @property
    def fastest(self) -> dict[Point, FormResult]:
        """The form to use at each point that was decided."""
        return {r.point: r for r in self.form_results if r.is_fastest}


def prove(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    rule: Rule,
    call: Call,
    *,
    settled: Collection[Point] = (),
    seconds: float = 0.0,
) -> Finding:
    """Prove `kernel` on a sample of `call` and choose its forms. The rest is as in `examine`."""
    case = Case(reference, rule, rule.sample(call))
    finding = examine(case, kernel, settled=settled, seconds=seconds)
    del case  # to free the memory of its results
    for further_call in rule.more(call):
        examine_more(finding, Case(reference, rule, further_call), kernel)
    return finding


def examine_more(finding: Finding, case: Case, kernel: Callable[..., Any]) -> None:
    """Check a proved kernel on a further call, with the forms from its finding.

    If it is wrong there, the finding becomes that it is wrong.
    """
    if finding.outcome.reason is not None:
        return
    forced = {point: result.form for point, result in finding.fastest.items()}
    with choices.trying(forced) as trial:
        outcome = case.check(kernel)
    finding.forms |= {point: form for point, (form, _) in trial.choices.items()}
    errors = [e for e in (finding.outcome.error, outcome.error) if e is not None]
    finding.outcome = Outcome(outcome.reason, max(errors, default=None))
    if outcome.reason is not None:
        finding.form_results = [replace(r, is_fastest=False) for r in finding.form_results]


def examine(
    case: Case,
    kernel: Callable[..., Any],
    *,
    settled: Collection[Point] = (),
    seconds: float = 0.0,
    timed: bool = True,
) -> Finding:
    """Check whether `kernel` is correct; if so, time it and choose the fastest of its forms.

    settled: choice points that are already measured and not tried again. seconds: time for trying
    other forms. timed: False only checks. Raises LostDeviceError and torch.OutOfMemoryError.
    """
    outcome, forms, point_forms = first_correct(case, kernel)
    finding = Finding(outcome, case.call)
    finding.forms = {point: form for point, (form, _) in point_forms.items()}
    finding.form_results = [
        FormResult(point, form, point_forms[point][1][0], is_fastest=True)
        for point, form in forms.items()
    ]
    if outcome.reason is None and timed:
        with choices.trying(forms):
            finding.milliseconds = case.time(kernel)
        Tuner(case, kernel, finding, forms, settled, seconds).run()
    return finding


def first_correct(
    case: Case, kernel: Callable[..., Any]
) -> tuple[Outcome, dict[Point, Form], PointForms]:
    """Check the kernel with its current forms, and if it is wrong, with others until it is correct.

    Returns the outcome, the forms to force, and the choice points that the kernel has. A shipped
    choice or a default may fail on a card, for example if it needs more shared memory than there
    is.
    """
    with choices.trying() as trial:
        first = case.check(kernel)
    if first.reason is None:
        return first, {}, trial.choices
    until = time.monotonic() + RESCUE_SECONDS
    for forms in _other_forms(trial):
        if time.monotonic() > until:
            break
        with choices.trying(forms) as other:
            outcome = case.check(kernel)
        if outcome.reason is None:
            return outcome, forms, other.choices
    return first, {}, trial.choices


def _other_forms(trial: Trial) -> Iterator[dict[Point, Form]]:
    """Forms to force: first all defaults, then each form of each point."""
    defaults = {
        point: forms[0] for point, (form, forms) in trial.choices.items() if form != forms[0]
    }
    if defaults:
        yield defaults
    for point, (current, forms) in trial.choices.items():
        for form in forms:
            if form != current and {point: form} != defaults:
                yield {point: form}


class Tuner:
    """Coordinate descent over the choice points of a kernel, one point at a time."""

    def __init__(
        self,
        case: Case,
        kernel: Callable[..., Any],
        finding: Finding,
        forms: dict[Point, Form],
        settled: Collection[Point],
        seconds: float,
    ) -> None:
        self._case = case
        self._kernel = kernel
        self._finding = finding
        self._forms = dict(forms)
        self._settled = settled
        self._until = time.monotonic() + seconds

    def run(self) -> None:
        """Try forms until none is faster or the time is over. Updates the finding."""
        for _ in range(SWEEPS):
            if not self._sweep():
                break
        self._finding.forms |= self._forms

    def _sweep(self) -> bool:
        """Try the forms of each point once. Returns whether a form changed."""
        changed = False
        done = set(self._settled)
        while True:
            with choices.trying(self._forms) as trial:
                self._case.run(self._kernel)
            self._finding.forms = {point: form for point, (form, _) in trial.choices.items()}
            open_points = [
                p for p, (_, forms) in trial.choices.items() if p not in done and len(forms) > 1
            ]
            if not open_points:
                return changed
            if time.monotonic() >= self._until:
                self._finding.complete = False
                return False
            point = open_points[0]
            done.add(point)
            current, forms = trial.choices[point]
            changed |= self._decide(point, current, forms)

    def _decide(self, point: Point, current: Form, forms: tuple[Form, ...]) -> bool:
        """Choose the fastest form of one point. Returns whether it is not the current one."""
        self._compile(point, forms)
        best = current
        best_ms = self._time(point, current)
        results = [FormResult(point, current, forms[0], best_ms)]
        for form in forms:
            if form == current:
                continue
            if time.monotonic() >= self._until:
                self._finding.complete = False
                break
            with choices.trying({**self._forms, point: form}):
                outcome = self._case.check(self._kernel)
            if outcome.reason is not None:
                results.append(FormResult(point, form, forms[0], reason=outcome.reason))
                continue
            ms = self._time(point, form)
            results.append(FormResult(point, form, forms[0], ms))
            if ms < best_ms * (1 - MARGIN) and self._is_faster_again(point, form, best):
                best, best_ms = form, ms
        self._record(point, best, results)
        self._forms[point] = best
        self._finding.milliseconds = best_ms
        return best != current

    def _compile(self, point: Point, forms: tuple[Form, ...]) -> None:
        """Compile all forms in parallel, on a GPU. Errors are raised again when a form is tried."""

        def run() -> None:
            for form in forms:
                with suppress(*failures()), choices.trying({**self._forms, point: form}):
                    self._case.run(self._kernel)

        compile_ahead(run)

    def _record(self, point: Point, best: Form, results: list[FormResult]) -> None:
        default_ms = next((r.milliseconds for r in results if r.form == r.default), None)
        others = [r for r in self._finding.form_results if r.point != point]
        self._finding.form_results = others + [
            replace(r, default_milliseconds=default_ms, is_fastest=r.form == best) for r in results
        ]

    def _time(self, point: Point, form: Form) -> float:
        with choices.trying({**self._forms, point: form}):
            return self._case.time(self._kernel)

    def _is_faster_again(self, point: Point, form: Form, best: Form) -> bool:
        """Whether `form` is faster than `best` in a second measurement of both."""
        return self._time(point, form) < self._time(point, best) * (1 - MARGIN)
