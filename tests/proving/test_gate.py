"""A kernel runs only after it was proved; if the proof fails, the next backend runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core import registry
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.proving import gate as gate_module
from sam2_fast.proving import off
from sam2_fast.proving.gate import Gate, using
from tests.proving.toy import CARD, OP, Kernel, arguments, call, definition, gate_in, register


def raise_out_of_resource(y: Tensor, positive: Tensor) -> Any:
    raise RuntimeError("out of resource: shared memory, Required: 300000\nmore")


def change_one_value(y: Tensor, positive: Tensor) -> Any:
    y = y.clone()
    y.view(-1)[7] += 1
    return y, positive


WRONG: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "inexact": (lambda y, p: (y + 0.1, p), "times the error of torch"),
    "one value": (change_one_value, "times torch's largest"),
    "not finite": (lambda y, p: (y.log(), p), "not finite"),
    "booleans": (lambda y, p: (y, ~p), "differs from torch's"),
    "shape": (lambda y, p: (y[:, :1], p), "has shape"),
    "dtype": (lambda y, p: (y.float(), p), "has dtype"),
    "count": (lambda y, p: (y, p, p), "returns 3 values"),
    "raises": (raise_out_of_resource, "raised RuntimeError: out of resource"),
}


def test_a_correct_kernel_runs_and_its_own_result_is_returned(gate: Gate) -> None:
    kernel = Kernel(lambda y, p: (y.contiguous(), p.clone()))
    with register(kernel):
        (output, _), inputs = call()
        assert torch.equal(output, definition(*inputs)[0])
        before = kernel.runs
        assert before > 1, "the proof runs it, then the call"
        call()
        assert kernel.runs == before + 1, "the second call proved it again"


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_kernel_is_refused_and_torch_runs(gate: Gate, case: str) -> None:
    change, reason = WRONG[case]
    kernel = Kernel(change)
    with register(kernel):
        with pytest.warns(RuntimeWarning, match="does not use the triton kernel of toy") as record:
            (output, positive), inputs = call()
            expected = definition(*inputs)
            assert torch.equal(output, expected[0]) and torch.equal(positive, expected[1])
            runs = kernel.runs
            call()
            call(out=32)  # another configuration is proved and refused without another warning
        assert len(record) == 1
        assert kernel.runs > runs
        message = str(record[0].message)
        for word in (reason, CARD.name, "sm_90", "575.1", "(bfloat16 40 64)", "doctor --json"):
            assert word in message, word
        with pytest.raises(BackendError, match=reason):
            call(backend="triton")


def test_the_next_backend_in_the_order_runs(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    next_kernel = Kernel()
    cpu = registry.Implementation(OP, "cpu", next_kernel, lambda *_: None)
    failing = Kernel(raise_out_of_resource)
    with register(failing), pytest.warns(RuntimeWarning, match="shared memory"):
        monkeypatch.setitem(registry._implementations, (OP, "cpu"), cpu)
        call()
    assert next_kernel.runs == 1


@pytest.mark.parametrize("is_correct", [True, False])
def test_another_process_uses_the_verdict_of_the_cache(tmp_path: Path, is_correct: bool) -> None:
    change = None if is_correct else WRONG["inexact"][0]
    with register(Kernel(change)), warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        with using(gate_in(tmp_path)):
            call()
    kernel = Kernel(change)
    with register(kernel), warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        with using(gate_in(tmp_path)):
            call()
    assert kernel.runs == (1 if is_correct else 0), "the kernel was proved again"
    assert len(record) == (0 if is_correct else 1), "each process warns once"


@pytest.mark.parametrize("field", ["name", "driver", "torch", "triton", "package", "build"])
def test_kernels_are_proved_again_for_another_card_or_software(tmp_path: Path, field: str) -> None:
    kernel = Kernel()
    with register(kernel):
        with using(gate_in(tmp_path)):
            call()
        before = kernel.runs
        with using(gate_in(tmp_path, replace(CARD, **{field: "other"}))):
            call()
    assert kernel.runs > before + 1


def test_each_configuration_is_proved_once(gate: Gate) -> None:
    kernel = Kernel()
    with register(kernel):
        call(batch=2)
        for change, needs_proof in (
            ({"batch": 5}, False),
            ({"dtype": torch.float16}, True),
            ({"out": 16}, True),
        ):
            before = kernel.runs
            call(**change)
            assert (kernel.runs > before + 1) == needs_proof, change


def test_autocast_is_part_of_the_configuration(gate: Gate) -> None:
    """Its error is measured in bfloat16; in units of float32 it would be thousands."""
    kernel = Kernel()
    with register(kernel):
        call(torch.float32)
        before = kernel.runs
        with torch.autocast("cpu", torch.bfloat16):
            (output, _), _ = call(torch.float32)
    assert kernel.runs > before + 1
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize("switch", ["context", "environment"])
def test_proofs_can_be_disabled(gate: Gate, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(WRONG["inexact"][0])
    with register(kernel):
        if switch == "environment":
            monkeypatch.setenv("SAM2_FAST_PROVE", "0")
            call()
            assert kernel.runs == 1
            monkeypatch.setenv("SAM2_FAST_PROVE", "1")
        else:
            with off():
                call()
            assert kernel.runs == 1
        with pytest.warns(RuntimeWarning, match="toy"):
            call()


def test_nothing_is_proved_while_a_graph_is_captured(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    with register(kernel):
        with monkeypatch.context() as patch:
            patch.setattr(gate_module, "capturing", lambda tensor: True)
            with pytest.raises(BackendError, match="a CUDA graph is being captured"):
                call(backend="triton")
            call()
            assert kernel.runs == 0
        call()
        with monkeypatch.context() as patch:
            patch.setattr(gate_module, "capturing", lambda tensor: True)
            before = kernel.runs
            call()
            assert kernel.runs == before + 1, "a kernel that was proved is captured"


def test_no_verdict_is_stored_if_the_reference_runs_out_of_memory(tmp_path: Path) -> None:
    def exhaust_memory(x: Tensor, weight: Tensor, offset: float) -> Any:
        if x.dtype == torch.float64:
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return definition(x, weight, offset)

    kernel = Kernel()
    with register(kernel, exhaust_memory), using(gate_in(tmp_path)):
        with pytest.warns(RuntimeWarning, match="could not be proved: .*80 GiB") as record:
            call()
            call()
        assert len(record) == 1 and kernel.runs == 0
    with register(kernel), using(gate_in(tmp_path)):
        call()
    assert kernel.runs > 1, "a verdict was stored on disk"


def test_an_empty_batch_is_not_used_for_a_proof(gate: Gate) -> None:
    kernel = Kernel()
    with register(kernel):
        call(batch=0)
        assert kernel.runs == 0
        call()
        before = kernel.runs
        call(batch=0)
        assert kernel.runs == before + 1


def test_a_known_verdict_is_not_read_from_a_file_again(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with register(Kernel()):
        call()
        monkeypatch.setattr(gate.cache, "store", lambda device: pytest.fail("a file is opened"))
        call()


def test_cpu_kernels_are_not_gated_by_default(tmp_path: Path) -> None:
    with using(Gate(card=lambda _: CARD, directory=lambda: tmp_path)):
        kernel = Kernel(WRONG["inexact"][0])
        with register(kernel):
            call()
    assert kernel.runs == 1 and not list(tmp_path.iterdir())


def test_ops_that_a_reference_calls_run_in_torch(gate: Gate) -> None:
    inner = Kernel()

    def outer(x: Tensor, weight: Tensor, offset: float) -> Any:
        return registry.execute(OP, "auto", x, weight, offset)

    with register(inner), register(outer, outer, op="outer"):
        registry.execute("outer", "auto", *arguments(torch.float32))
        before = inner.runs
        assert before > 0
        reference = registry.all_implementations()["outer", "torch"].run
        from sam2_fast.proving.only_torch import only_torch

        with only_torch():
            reference(*arguments(torch.float32))
        assert inner.runs == before


def test_keyword_arguments_are_passed_to_the_kernel_in_its_proof(gate: Gate) -> None:
    options: list[Any] = []

    def kernel(x: Tensor, weight: Tensor, offset: float, keep: Any = None) -> Any:
        options.append(keep)
        return definition(x, weight, offset)

    def reference(x: Tensor, weight: Tensor, offset: float, keep: Any = None) -> Any:
        return definition(x, weight, offset)

    with register(kernel, reference):
        registry.select(OP, "auto", *arguments(torch.float32), keep="option")
    assert options and set(options) == {"option"}


def test_verdicts_contain_the_measurements(gate: Gate, tmp_path: Path) -> None:
    with register(Kernel()):
        call()
    (file,) = (tmp_path / "proofs").glob("*.json")
    (verdict,) = json.loads(file.read_text())["verdicts"]
    assert verdict["op"] == OP and verdict["reason"] is None and verdict["milliseconds"] > 0
    assert verdict["error"] == pytest.approx(1.0), "the kernel computes the same as torch"


def test_nothing_is_proved_while_kernels_are_only_compiled(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that are only compiled write no output, so that a proof would fail."""
    kernel = Kernel(lambda y, p: (y, p))
    with register(kernel):
        monkeypatch.setattr(gate_module, "compiles_only", lambda: True)
        call()
        assert kernel.runs == 1, "only the call runs it"
        monkeypatch.setattr(gate_module, "compiles_only", lambda: False)
        call()
        assert kernel.runs > 2, "the proof runs it, then the call"
