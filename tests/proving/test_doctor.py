"""`sam2-fast doctor` proves every kernel of this machine on the calls of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from sam2_fast.cli.app import app
from sam2_fast.doctor import examination
from sam2_fast.ops.core import registry
from sam2_fast.ops.core.native import isas, native
from sam2_fast.ops.core.registry import Implementation
from sam2_fast.proving import limits as limits_module
from sam2_fast.proving.card import card_of
from sam2_fast.proving.gate import Gate, using
from sam2_fast.proving.limits import Limits, operations, traffic
from sam2_fast.proving.rules import Call
from tests.proving.toy import CARD

SMALL = ("doctor", "--device", "cpu", "--image-size", "64")
OPS = {
    *("hiera_block", "mask_decoder", "mask_postprocess", "memory_attention", "memory_encoder"),
    *("preprocess_frame", "preprocess_images", "rope_attention", "small_components"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SAM2_FAST_CACHE", str(tmp_path))
    if native() is None:
        pytest.skip("sam2_fast._C is not built")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with using(Gate()):
        yield tmp_path
    torch.set_num_threads(threads)


def doctor(*options: str) -> tuple[int, str]:
    """Run the doctor; returns its exit code and what it prints."""
    result = CliRunner().invoke(app, [*SMALL, *options])
    return result.exit_code, result.stdout


def test_every_kernel_is_proved_for_every_instruction_set(cache: Path) -> None:
    code, text = doctor("--no-timing", "--json")
    report = json.loads(text)
    assert code == 0 and report["failed"] == 0
    proved = {(r["op"], r["isa"]) for r in report["rows"] if r["status"] == "proved"}
    assert {op for op, _ in proved} == OPS
    for op in OPS - {"small_components"}:  # that op is compiled for one instruction set only
        assert {isa for name, isa in proved if name == op} == {*isas()}, op
    errors = [r["error"] for r in report["rows"] if r["error"] is not None]
    assert errors and max(errors) <= 2
    assert not list(cache.rglob("*.json")), "verdicts about CPU kernels are not stored"


def test_a_wrong_kernel_is_listed_and_the_exit_code_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    key = ("memory_encoder", "cpu")
    correct = registry.all_implementations()[key]

    def wrong(*arguments: Any, isa: str | None = None) -> Tensor:
        output: Tensor = correct.run(*arguments, isa=isa)
        return output * 1.001 if isa == "portable" else output

    implementation = Implementation(*key, wrong, correct.refuses)
    monkeypatch.setitem(registry._implementations, key, implementation)
    code, text = doctor("--no-timing")
    assert code == 1
    (line,) = {line[:48] for line in text.splitlines() if " wrong " in line}
    assert line.split()[:4] == ["memory_encoder", "cpu", "portable", "wrong"]
    assert "times the error of torch in the same dtype" in text


def test_times_and_shares_of_the_limits_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limits_module._MATRIX_SIDE, "cpu", 128)
    ops = {"memory_encoder", "preprocess_frame"}
    original = examination.Examination._calls
    monkeypatch.setattr(
        examination.Examination,
        "_calls",
        lambda self, name: [pair for pair in original(self, name) if pair[0] in ops],
    )
    code, text = doctor("--json")
    report = json.loads(text)
    assert code == 0 and report["matrix_gflops"] > 0 and report["copy_gbytes"] > 0
    for row in report["rows"]:
        for column in ("milliseconds", "torch_milliseconds", "share", "bytes"):
            assert row[column] > 0
        assert (row["flop"] > 0) == (row["op"] == "memory_encoder")


OPTIONS = [("--image-size", "65"), ("--model", "huge"), ("--device", "x")]


@pytest.mark.parametrize("options", OPTIONS)
def test_invalid_options_have_exit_code_2(options: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["doctor", "--device", "cpu", *options])
    assert result.exit_code == 2


def test_a_lost_device_ends_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_device(*_: Any, **__: Any) -> None:
        raise examination.LostDeviceError("CUDA error: an illegal memory access")

    monkeypatch.setattr(examination, "examine", lose_device)
    code, text = doctor("--no-timing", "--json")
    report = json.loads(text)
    assert code == 1 and len([r for r in report["rows"] if r["status"] == "wrong"]) == 1
    assert "illegal memory access" in text


def test_verdicts_about_a_gpu_replace_those_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU is declared a GPU; the kernels are those for CPUs."""
    gate = Gate(lambda *_: True, lambda _: CARD, lambda: tmp_path / "cache")
    monkeypatch.setattr(examination, "card_of", lambda device: CARD)
    monkeypatch.setattr(examination, "is_gpu", lambda device: True)
    monkeypatch.setattr(examination, "backends_of", lambda device: ("cpu",))
    monkeypatch.setattr(examination, "isas_of", lambda kernel: (None,))
    with using(gate):
        code, _ = doctor("--no-timing", "--json")
        assert code == 0
        (file,) = (tmp_path / "cache").rglob("*.json")
        verdicts = json.loads(file.read_text())["verdicts"]
        assert {v["op"] for v in verdicts} == OPS and all(v["reason"] is None for v in verdicts)


def test_operations_and_bytes_are_counted_in_the_definition() -> None:
    q = torch.randn(2, 4, 64, 32)
    call = Call((q, q, q), {})
    attention = torch.nn.functional.scaled_dot_product_attention
    assert operations(attention, call) == 2 * 4 * 4 * 64 * 64 * 32
    assert traffic(call, q) == 4 * q.numel() * 4


def test_limits_are_the_best_measured_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([100.0, 300.0, 200.0])
    monkeypatch.setattr("sam2_fast.proving.limits.matrix_rate", lambda *_: next(rates))
    monkeypatch.setattr("sam2_fast.proving.limits.copy_rate", lambda *_: 50.0)
    limits = Limits(torch.device("cpu"), torch.float32)
    limits.measure()
    limits.measure()
    assert limits.gflops == 300
    assert limits.milliseconds(600_000_000, 0) == pytest.approx(2.0)
    assert limits.milliseconds(0, 100_000_000) == pytest.approx(2.0)


def test_a_slow_product_gets_smaller_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []

    def milliseconds_at_1_gflop_a_second(function: Any, *_: Any) -> list[float]:
        sides.append(len(function()))
        return [2 * sides[-1] ** 3 / 1e6]

    monkeypatch.setattr(limits_module, "timed", milliseconds_at_1_gflop_a_second)
    assert limits_module.matrix_rate(torch.device("cpu"), torch.float32) == pytest.approx(1.0)
    assert set(sides) == {256, 512}


def test_the_identity_of_a_cpu_is_reproducible() -> None:
    card = card_of(torch.device("cpu"))
    assert card.capability is None and card.architecture == "cpu" and card.build
    assert card.identity == card_of(torch.device("cpu")).identity
