"""Prove and time all kernels for the calls of a model, and report the findings."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from sam2_fast.doctor.calls import (
    moving_squares,
    observed_calls,
    perturb_constants,
    run_pipeline,
)
from sam2_fast.kernels import choices
from sam2_fast.ops.core import registry
from sam2_fast.ops.core.native import isas
from sam2_fast.ops.core.registry import Implementation
from sam2_fast.ops.core.requirements import Request
from sam2_fast.proving import gate as gates
from sam2_fast.proving.card import card_of
from sam2_fast.proving.case import Case, CaseError, LostDeviceError
from sam2_fast.proving.errors import Outcome
from sam2_fast.proving.limits import Limits, operations, traffic
from sam2_fast.proving.messages import choices_of, today, verdict_of
from sam2_fast.proving.only_torch import only_torch
from sam2_fast.proving.prover import Finding, examine, examine_more
from sam2_fast.proving.rules import Call, rule_of
from sam2_fast.proving.shipped import shipped
from sam2_fast.proving.store import Choice, Verdict
from sam2_fast.video.predictor import SAM2VideoPredictor
from sam2_fast.weights.build import build_model

PROVED = "proved"
WRONG = "wrong"
UNKNOWN = "unknown"
NOT_RUN = "not run"
TRACKED_FRAMES = 3
"""Frames that are tracked to collect calls."""


@dataclass(frozen=True)
class Options:
    """What to examine. image_size: side of the input in pixels, or None for the model's default."""

    device: torch.device
    models: tuple[str, ...]
    dtype: torch.dtype
    image_size: int | None = None
    timing: bool = True


@dataclass
class Row:
    """One kernel in one configuration. All times are of the same call, in milliseconds."""

    model: str
    op: str
    backend: str
    isa: str | None
    configuration: str
    status: str
    reason: str | None = None
    error: float | None = None
    milliseconds: float | None = None
    torch_milliseconds: float | None = None
    flop: int | None = None
    """Floating-point operations of the products in the definition; `bytes`: inputs and outputs."""
    bytes: int | None = None
    share: float | None = None
    """The least time by the measured limits of the machine, divided by `milliseconds`."""
    forms: list[dict[str, Any]] = field(default_factory=list)
    """A `FormResult` for each form that was tried at a choice point."""


def examine_machine(options: Options) -> dict[str, Any]:
    """Prove and time every kernel that can run, without the cache. Returns the report as JSON data.

    On a GPU the findings then replace those in the cache. "failed" counts kernels that are wrong or
    could not be proved. Raises ValueError for unknown models and sizes that do not fit.
    """
    start = time.monotonic()
    device = options.device
    examination = Examination(options)
    # a lost device has a row in the report already
    with torch.no_grad(), choices.separate_tables(examination.table), suppress(LostDeviceError):
        for model in options.models:
            examination.model(model)
        examination.finish()
    gate = gates.current()
    if is_gpu(device):
        gate.replace(device, examination.verdicts, list(examination.choices.values()))
    store = gate.cache.store(device) if is_gpu(device) else None
    failed = sum(row.status in (WRONG, UNKNOWN) for row in examination.rows)
    return {
        "command": "doctor",
        "date": today(),
        "device": str(device),
        "card": asdict(card_of(device)),
        "threads": torch.get_num_threads(),
        "models": list(options.models),
        "dtype": str(options.dtype).removeprefix("torch."),
        "image_size": options.image_size,
        "matrix_gflops": examination.limits and round(examination.limits.gflops),
        "copy_gbytes": examination.limits and round(examination.limits.gbytes, 1),
        "rows": [asdict(row) for row in examination.rows],
        "choices": [asdict(choice) for choice in examination.choices.values()],
        "cache": _cache_facts(store),
        "failed": failed,
        "seconds": round(time.monotonic() - start, 1),
    }


def _cache_facts(store: Any) -> dict[str, Any]:
    if store is None:
        return {"file": None, "notes": [], "set_aside": []}
    store.read()
    return {"file": str(store.path), "notes": store.notes, "set_aside": store.set_aside()}


class Examination:
    """The rows, choices and verdicts of an examination."""

    def __init__(self, options: Options) -> None:
        self.rows: list[Row] = []
        self.choices: dict[Any, Choice] = {}
        self.verdicts: dict[Any, Verdict] = {}
        self.limits = Limits(options.device, options.dtype) if options.timing else None
        self._options = options
        self._seen_configurations: set[Any] = set()

    def table(self, device: torch.device) -> dict[Any, Any]:
        """The shipped forms, replaced by those measured in this run."""
        choices = {**shipped(card_of(device).capability), **self.choices}
        return {point: choice.form for point, choice in choices.items()}

    def model(self, name: str) -> None:
        """Examine all kernels for the calls of one model."""
        for op, call in self._calls(name):
            kernels = list(self._kernels(op, call))
            usable = [k for k, reason in kernels if reason is None]
            for kernel, reason in kernels:
                if reason is not None:
                    self._add(name, kernel, call, Finding(Outcome(reason, None), call), NOT_RUN)
            if usable:
                self._case(name, op, call, usable)

    def _calls(self, name: str) -> list[tuple[str, Call]]:
        """The last call of each configuration that no earlier model has had."""
        options = self._options
        model = build_model(
            SAM2VideoPredictor,
            name,
            device=options.device,
            dtype=options.dtype,
            image_size=options.image_size,
            seed=0,
        )
        perturb_constants(model)
        calls: dict[Any, tuple[str, Call]] = {}

        def collect(op: str, call: Call) -> None:
            key = op, rule_of(op).configuration(*call.arguments, **call.named)
            if key not in self._seen_configurations:
                calls[key] = op, call

        video = moving_squares(TRACKED_FRAMES + 1)
        with observed_calls(collect):
            run_pipeline(model, video[0], video, TRACKED_FRAMES)
        self._seen_configurations |= set(calls)
        return sorted(calls.values(), key=lambda pair: pair[0])

    def _kernels(self, op: str, call: Call) -> Iterator[tuple[Implementation, str | None]]:
        """Kernels of an op for this type of device, and why each cannot run the call, or None."""
        for backend in backends_of(self._options.device):
            kernel = registry.all_implementations().get((op, backend))
            if kernel is not None:
                reason = registry.absence(op, backend) or kernel.refuses(Request(call.arguments))
                yield kernel, reason

    def _case(self, name: str, op: str, call: Call, kernels: list[Implementation]) -> None:
        reference = registry.all_implementations()[op, "torch"].run
        rule = rule_of(op)
        try:
            case = Case(reference, rule, rule.sample(call))
            more = [Case(reference, rule, further_call) for further_call in rule.more(call)]
        except (CaseError, torch.OutOfMemoryError) as error:
            for kernel in kernels:
                finding = Finding(Outcome(_line(error), None), call)
                self._add(name, kernel, call, finding, UNKNOWN)
            return
        rows = [
            self._kernel(name, kernel, call, (case, *more), isa)
            for kernel in kernels
            for isa in isas_of(kernel)
        ]
        if self.limits is not None:
            by_torch = case.time_torch()
            with only_torch():
                result = case.run(reference)
            flop = operations(reference, case.call)
            moved = traffic(case.call, result)
            for row in rows:
                row.torch_milliseconds = by_torch
                row.flop = flop
                row.bytes = moved

    def _kernel(
        self,
        name: str,
        kernel: Implementation,
        call: Call,
        cases: tuple[Case, ...],
        isa: str | None,
    ) -> Row:
        case = cases[0]
        run = kernel.run if isa is None else partial(kernel.run, isa=isa)
        try:
            finding = examine(
                case,
                run,
                settled=set(self.choices),
                seconds=float("inf"),
                timed=self.limits is not None,
            )
            for other in cases[1:]:
                examine_more(finding, other, run)
        except LostDeviceError as error:
            reason = f"the device fails after it: {_line(error)}"
            self._add(name, kernel, call, Finding(Outcome(reason, None), call), WRONG, isa)
            raise
        except torch.OutOfMemoryError as error:
            finding = Finding(Outcome(_line(error), None), call)
            return self._add(name, kernel, call, finding, UNKNOWN, isa)
        status = PROVED if finding.outcome.reason is None else WRONG
        row = self._add(name, kernel, call, finding, status, isa)
        measured = choices_of(finding, kernel.op)
        if measured:
            self.choices |= {c.at: c for c in measured}
            choices.install(case.device, self.table(case.device))
        key = gates.current().key(kernel, call)
        self.verdicts[key] = verdict_of(kernel, gates.text_of(key), finding)
        return row

    def finish(self) -> None:
        """Measure the limits of the machine again, and compute the share of them in every row."""
        if self.limits is not None:
            self.limits.measure()
        for row in self.rows:
            if self.limits and row.milliseconds and row.flop is not None and row.bytes is not None:
                row.share = self.limits.milliseconds(row.flop, row.bytes) / row.milliseconds

    def _add(
        self,
        name: str,
        kernel: Implementation,
        call: Call,
        finding: Finding,
        status: str,
        isa: str | None = None,
    ) -> Row:
        row = Row(
            name,
            kernel.op,
            kernel.backend,
            isa,
            gates.text_of(gates.current().key(kernel, call)),
            status,
            finding.outcome.reason,
            finding.outcome.error,
            finding.milliseconds,
            forms=[result.as_json() for result in finding.form_results],
        )
        self.rows.append(row)
        return row


def is_gpu(device: torch.device) -> bool:
    """Whether the device is a GPU. Only verdicts about GPUs are saved."""
    return device.type == "cuda"


def backends_of(device: torch.device) -> tuple[str, ...]:
    """Backends with kernels for this type of device."""
    return ("cuda", "triton") if is_gpu(device) else ("cpu",)


def isas_of(kernel: Implementation) -> tuple[str | None, ...]:
    """The instruction sets that a kernel can run with; (None,) if it does not have several."""
    return isas() if "isa" in inspect.signature(kernel.run).parameters else (None,)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
