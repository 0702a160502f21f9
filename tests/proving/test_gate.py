"""A kernel runs only after it has proved itself, and everything goes on without one that fails."""

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
from tests.proving.toy import CARD, OP, Kernel, call, definition, gate_in, made, registered


def broken(y: Tensor, positive: Tensor) -> Any:
    raise RuntimeError("out of resource: shared memory, Required: 300000\nmore")


def one_number(y: Tensor, positive: Tensor) -> Any:
    y = y.clone()
    y.view(-1)[7] += 1
    return y, positive


WRONG: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "coarse": (lambda y, p: (y + 0.1, p), "times the error of torch"),
    "one number": (one_number, "times torch's largest"),
    "not finite": (lambda y, p: (y.log(), p), "not finite"),
    "truth values": (lambda y, p: (y, ~p), "differs from torch's"),
    "shape": (lambda y, p: (y[:, :1], p), "has shape"),
    "dtype": (lambda y, p: (y.float(), p), "has dtype"),
    "count": (lambda y, p: (y, p, p), "returns 3 values"),
    "raises": (broken, "raised RuntimeError: out of resource"),
}


def test_a_right_kernel_runs_and_its_own_result_is_returned(gate: Gate) -> None:
    marked = Kernel(lambda y, p: (y.contiguous(), p.clone()))
    with registered(marked):
        (found, _), arguments = call()
        assert torch.equal(found, definition(*arguments)[0])
        proof = marked.runs
        assert proof > 1, "the proof, then the call"
        call()
        assert marked.runs == proof + 1, "the second call proves nothing"


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_kernel_is_refused_and_torch_runs(gate: Gate, case: str) -> None:
    change, reason = WRONG[case]
    kernel = Kernel(change)
    with registered(kernel):
        with pytest.warns(RuntimeWarning, match="does not use the triton kernel of toy") as seen:
            (found, positive), arguments = call()
            expected = definition(*arguments)
            assert torch.equal(found, expected[0]) and torch.equal(positive, expected[1])
            runs = kernel.runs
            call()
            call(out=32)  # another configuration: proved, refused, and not told of again
        assert len(seen) == 1
        assert kernel.runs > runs
        told = str(seen[0].message)
        for word in (reason, CARD.name, "sm_90", "575.1", "(bfloat16 40 64)", "doctor --json"):
            assert word in told, word
        with pytest.raises(BackendError, match=reason):
            call(backend="triton")


def test_the_next_backend_in_the_order_runs(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    second = Kernel()
    cpu = registry.Implementation(OP, "cpu", second, lambda *_: None)
    with registered(Kernel(broken)), pytest.warns(RuntimeWarning, match="shared memory"):
        monkeypatch.setitem(registry._implementations, (OP, "cpu"), cpu)
        call()
    assert second.runs == 1


@pytest.mark.parametrize("good", [True, False])
def test_another_process_knows_from_the_cache(tmp_path: Path, good: bool) -> None:
    change = None if good else WRONG["coarse"][0]
    with registered(Kernel(change)), warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        with using(gate_in(tmp_path)):
            call()
    later = Kernel(change)
    with registered(later), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with using(gate_in(tmp_path)):
            call()
    assert later.runs == (1 if good else 0), "no proof, only the call"
    assert len(seen) == (0 if good else 1), "each process says once what it does without"


@pytest.mark.parametrize("field", ["name", "driver", "torch", "triton", "package", "build"])
def test_another_card_or_software_proves_anew(tmp_path: Path, field: str) -> None:
    kernel = Kernel()
    with registered(kernel):
        with using(gate_in(tmp_path)):
            call()
        before = kernel.runs
        with using(gate_in(tmp_path, replace(CARD, **{field: "other"}))):
            call()
    assert kernel.runs > before + 1


def test_what_is_alike_is_proved_once(gate: Gate) -> None:
    kernel = Kernel()
    with registered(kernel):
        call(batch=2)
        for changed, proved in (
            ({"batch": 5}, False),
            ({"dtype": torch.float16}, True),
            ({"out": 16}, True),
        ):
            before = kernel.runs
            call(**changed)
            assert (kernel.runs > before + 1) == proved, changed


def test_autocast_is_part_of_the_configuration_and_its_error_is_torchs(gate: Gate) -> None:
    kernel = Kernel()
    with registered(kernel):
        call(torch.float32)
        before = kernel.runs
        with torch.autocast("cpu", torch.bfloat16):
            (found, _), _ = call(torch.float32)
    assert kernel.runs > before + 1
    assert found.dtype == torch.bfloat16, "its error is 1 of bfloat16, and thousands of float32"


@pytest.mark.parametrize("way", ["context", "environment"])
def test_proofs_can_be_left_out(gate: Gate, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(WRONG["coarse"][0])
    with registered(kernel):
        if way == "environment":
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
    with registered(kernel):
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
            assert kernel.runs == before + 1, "what is proved is captured"


def test_a_reference_without_memory_says_nothing_about_the_kernel(tmp_path: Path) -> None:
    def short(x: Tensor, weight: Tensor, offset: float) -> Any:
        if x.dtype == torch.float64:
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return definition(x, weight, offset)

    kernel = Kernel()
    with registered(kernel, short), using(gate_in(tmp_path)):
        with pytest.warns(RuntimeWarning, match="could not be proved: .*80 GiB") as seen:
            call()
            call()
        assert len(seen) == 1 and kernel.runs == 0
    with registered(kernel), using(gate_in(tmp_path)):
        call()
    assert kernel.runs > 1, "nothing was kept on disk"


def test_an_empty_batch_proves_nothing(gate: Gate) -> None:
    kernel = Kernel()
    with registered(kernel):
        call(batch=0)
        assert kernel.runs == 0
        call()
        before = kernel.runs
        call(batch=0)
        assert kernel.runs == before + 1


def test_a_known_kernel_is_looked_up_without_a_file(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registered(Kernel()):
        call()
        monkeypatch.setattr(gate.cache, "store", lambda device: pytest.fail("a file is opened"))
        call()


def test_cpu_kernels_are_not_gated_by_default(tmp_path: Path) -> None:
    with using(Gate(card=lambda _: CARD, directory=lambda: tmp_path)):
        kernel = Kernel(WRONG["coarse"][0])
        with registered(kernel):
            call()
    assert kernel.runs == 1 and not list(tmp_path.iterdir())


def test_references_run_in_torch_throughout(gate: Gate) -> None:
    inner = Kernel()

    def outer(x: Tensor, weight: Tensor, offset: float) -> Any:
        return registry.execute(OP, "auto", x, weight, offset)

    with registered(inner), registered(outer, outer, op="outer"):
        registry.execute("outer", "auto", *made(torch.float32))
        by_kernel = inner.runs
        assert by_kernel > 0
        _, reference = outer, registry.all_implementations()["outer", "torch"].run
        from sam2_fast.proving.only_torch import only_torch

        with only_torch():
            reference(*made(torch.float32))
        assert inner.runs == by_kernel


def test_options_by_name_are_part_of_the_proof(gate: Gate) -> None:
    seen: list[Any] = []

    def kernel(x: Tensor, weight: Tensor, offset: float, keep: Any = None) -> Any:
        seen.append(keep)
        return definition(x, weight, offset)

    def reference(x: Tensor, weight: Tensor, offset: float, keep: Any = None) -> Any:
        return definition(x, weight, offset)

    with registered(kernel, reference):
        arguments = made(torch.float32)
        registry.select(OP, "auto", *arguments, keep="some")
    assert seen and set(seen) == {"some"}


def test_verdicts_say_what_was_measured(gate: Gate, tmp_path: Path) -> None:
    with registered(Kernel()):
        call()
    (file,) = (tmp_path / "proofs").glob("*.json")
    (verdict,) = json.loads(file.read_text())["verdicts"]
    assert verdict["op"] == OP and verdict["reason"] is None and verdict["milliseconds"] > 0
    assert verdict["error"] == pytest.approx(1.0), "the toy's kernel is torch's"


def test_nothing_is_proved_while_kernels_are_only_compiled(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kernel would have written is read as it happens to be: a proof would call it wrong."""
    kernel = Kernel(lambda y, p: (y, p))
    with registered(kernel):
        monkeypatch.setattr(gate_module, "compiles_only", lambda: True)
        call()
        assert kernel.runs == 1, "the call alone"
        monkeypatch.setattr(gate_module, "compiles_only", lambda: False)
        call()
        assert kernel.runs > 2, "the proof, then the call"
