"""Of the forms of a kernel the fastest correct one is chosen, and the choice is stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from sam2_fast.kernels import choices
from torch import Tensor

from sam2_fast.ops.core import registry
from sam2_fast.proving.case import Case
from sam2_fast.proving.gate import using
from sam2_fast.proving.prover import prove
from sam2_fast.proving.rules import Call, Rule
from sam2_fast.proving.store import Choice
from tests.proving.toy import arguments, call, definition, gate_in, register

CPU = torch.device("cpu")
FIRST = ("first", (64,))
SECOND = ("second", (64,))


class TiledKernel:
    """A kernel with two choice points. The number of a form is its cost."""

    def __init__(self, first: tuple[Any, ...], second: tuple[Any, ...] = ("0",)) -> None:
        self._first = first
        self._second = second
        self.calls: list[tuple[Any, Any]] = []  # the two forms of each call

    def __call__(self, x: Tensor, weight: Tensor, offset: float) -> Any:
        first = choices.choose(x.device, *FIRST, self._first[0], self._first[1:])
        second = choices.choose(x.device, *SECOND, self._second[0], self._second[1:])
        self.calls.append((first, second))
        for form in (first, second):
            if form == "raises":
                raise RuntimeError("PassManager::run failed")
        y, positive = definition(x, weight, offset)
        return y + ("wrong" in first), positive


@pytest.fixture(autouse=True)
def times_by_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are the costs of forms, so that they do not depend on how busy the machine is."""

    def time(case: Case, kernel: TiledKernel) -> float:
        case.run(kernel)
        forms = kernel.calls[-1]
        return 1.0 + sum(f[0] if isinstance(f, tuple) else float(f.split()[0]) for f in forms)

    monkeypatch.setattr(Case, "time", time)


def choose_forms(kernel: TiledKernel, seconds: float = 60.0, **options: Any) -> dict[Any, Any]:
    """Prove the kernel; returns the form that was chosen at each point."""
    sample = Call(arguments(torch.bfloat16), {})
    finding = prove(kernel, definition, Rule(), sample, seconds=seconds, **options)
    assert finding.outcome.reason is None
    return {point: t.form for point, t in finding.fastest.items()}


@contextmanager
def no_table() -> Iterator[None]:
    with choices.separate_tables(lambda device: {}):
        yield


def test_the_fastest_correct_form_is_chosen() -> None:
    kernel = TiledKernel(((6,), (4,), (1,), (3,)), ("4", "1"))
    with no_table():
        assert choose_forms(kernel) == {FIRST: (1,), SECOND: "1"}


def test_wrong_and_failing_forms_are_not_chosen_even_if_they_are_fast() -> None:
    kernel = TiledKernel(("3", "0 wrong", "raises"))
    with no_table():
        sample = Call(arguments(torch.bfloat16), {})
        finding = prove(kernel, definition, Rule(), sample, seconds=60)
        assert {p: t.form for p, t in finding.fastest.items()} == {FIRST: "3"}
        reasons = {t.form: t.reason for t in finding.form_results}
        assert "error of torch" in (reasons["0 wrong"] or "")
        assert "PassManager" in (reasons["raises"] or "")


@pytest.mark.parametrize(("other", "chosen"), [("0.98", "1"), ("0.9", "0.9")])
def test_a_form_must_be_faster_by_more_than_noise(other: str, chosen: str) -> None:
    with no_table():
        assert choose_forms(TiledKernel(("1", other))) == {FIRST: chosen}


def test_points_that_were_measured_are_not_tried_again() -> None:
    kernel = TiledKernel(("3", "0"), ("3", "0"))
    with no_table():
        assert choose_forms(kernel, settled={FIRST}) == {SECOND: "0"}


def test_other_forms_are_not_tried_without_time() -> None:
    kernel = TiledKernel(("1", "0"))
    with no_table():
        assert choose_forms(kernel, seconds=0) == {}
        assert {first for first, _ in kernel.calls} == {"1"}


def test_another_form_is_chosen_if_the_default_fails() -> None:
    kernel = TiledKernel(("raises", "2", "0"))
    with no_table():
        assert choose_forms(kernel) == {FIRST: "0"}
        assert choose_forms(kernel, seconds=0) == {FIRST: "2"}, "the first correct form"


def test_a_shipped_form_that_fails_is_replaced_by_the_default() -> None:
    kernel = TiledKernel(("1", "raises"))
    with choices.separate_tables(lambda device: {FIRST: "raises"}):
        assert choose_forms(kernel, seconds=0) == {FIRST: "1"}


def test_measured_forms_are_used_at_once_and_by_later_processes(tmp_path: Path) -> None:
    kernel = TiledKernel(("4", "0"))
    with register(kernel):
        with using(gate_in(tmp_path)):
            call()
            assert kernel.calls[-1] == ("0", "0")
        kernel.calls.clear()
        with using(gate_in(tmp_path)):
            call()
    assert kernel.calls == [("0", "0")]


def test_measured_forms_replace_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sam2_fast.proving import cache

    forecast = {FIRST: Choice(*FIRST, "2", "forecast"), SECOND: Choice(*SECOND, "1", "forecast")}
    monkeypatch.setattr(cache, "shipped", lambda capability: forecast)
    kernel = TiledKernel(("4", "2", "0"), ("2", "1"))
    with register(kernel):
        with using(gate_in(tmp_path, tuning_seconds=0.0)):
            call()
            assert kernel.calls[-1] == ("2", "1"), "the shipped forms"
        with using(gate_in(tmp_path / "other")):
            call()
            assert kernel.calls[-1] == ("0", "1"), "the measured forms"


def test_a_kernel_is_proved_again_if_another_op_changes_its_form(tmp_path: Path) -> None:
    """Two ops share a choice point: a verdict holds only with the form it was proved with."""
    untuned = TiledKernel(("2", "1"))
    tuned = TiledKernel(("2", "1"))
    gate = gate_in(tmp_path, tuning_seconds=0.0)
    with register(untuned), register(tuned, op="other"):
        with using(gate):
            call()
            call()
            assert [first for first, _ in untuned.calls[-2:]] == ["2", "2"]
        before = len(untuned.calls)
        with using(gate_in(tmp_path)):
            registry.execute("other", "auto", *arguments(torch.bfloat16))
            assert tuned.calls[-1][0] == "1"
            call()
            assert len(untuned.calls) > before + 1 and untuned.calls[-1][0] == "1"
            before = len(untuned.calls)
            call()
            assert len(untuned.calls) == before + 1, "the kernel was proved twice"
        with using(gate):  # the process that proved the old form
            gate.replace(CPU, {}, [Choice(*FIRST, "1", "measured")])
            before = len(untuned.calls)
            call()
            assert len(untuned.calls) == before + 1, "the file has a verdict for the new form"


def test_ops_do_not_change_each_others_measured_forms(tmp_path: Path) -> None:
    class FailingWithForm1(TiledKernel):
        def __call__(self, x: Tensor, weight: Tensor, offset: float) -> Any:
            result = super().__call__(x, weight, offset)
            if self.calls[-1][0] == "1":
                raise RuntimeError("out of resource: shared memory")
            return result

    first = TiledKernel(("2", "1"))
    other = FailingWithForm1(("2", "1"))
    with register(first), register(other, op="other"), using(gate_in(tmp_path)):
        call()
        inputs = arguments(torch.bfloat16)
        with pytest.warns(RuntimeWarning, match="correct only with another form of first"):
            registry.execute("other", "auto", *inputs)
        before = len(first.calls), len(other.calls)
        call()
        registry.execute("other", "auto", *inputs)
        assert (len(first.calls), len(other.calls)) == (before[0] + 1, before[1])
        assert first.calls[-1][0] == "1"


def test_separate_tables_leave_those_of_the_process_unchanged() -> None:
    with no_table():
        choices.install(CPU, {FIRST: "0"})
        with choices.separate_tables(lambda device: {FIRST: "1"}):
            assert choices.choose(CPU, *FIRST, "2", ("0", "1")) == "1"
        assert choices.choose(CPU, *FIRST, "2", ("0", "1")) == "0"
