"""The native module survives any arguments, and refuses memory that it must not write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sam2_fast.ops import connected_components, small_components
from sam2_fast.ops.core.native import native
from tests.ops import test_bindings
from tests.reliability.native_arguments import CALLS, INTEGERS, read_only

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.reliability("36"),
    pytest.mark.skipif(native() is None, reason="the native module is not built"),
]


def module() -> Any:
    built = native()
    assert built is not None
    return built


@pytest.mark.parametrize("name", CALLS)
def test_no_argument_ends_the_process(name: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.reliability.native_arguments", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    last = process.stderr.strip().splitlines()[-1:]
    assert process.returncode == 0, (process.returncode, last)
    assert process.stdout == ""


def rope(**changes: Any) -> None:
    arguments = {
        "q": torch.rand(1, 4, 8),
        "k": torch.rand(1, 4, 8),
        "v": torch.rand(1, 4, 8),
        "table": torch.rand(2, 4, 4),
        "out": torch.empty(1, 4, 8),
        "unrotated": 0,
        "num_threads": 1,
        "isa": "portable",
    }
    module().rope_attention(**{**arguments, **changes})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports it")
def test_an_output_in_read_only_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^out: expected memory that can be written, got read-"):
        rope(out=read_only(torch.empty(1, 4, 8)))


@pytest.mark.parametrize("number", [n for n in INTEGERS if -(2**31) <= n < 2**31])
def test_absurd_numbers_of_threads_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"^num_threads: expected 1 to 1024, got"):
        rope(num_threads=number)
    masks, labels, areas = torch.zeros(1, 2, 2).bool(), *torch.zeros(2, 1, 2, 2).int()
    with pytest.raises(ValueError, match=r"^num_threads: expected 1 to 1024, got"):
        module().connected_components(masks, labels, areas, number)


def test_heads_whose_triple_overflows_are_refused() -> None:
    heads = 0x5555555555555556  # 3 * heads is 2 modulo 2^64
    with pytest.raises(ValueError, match=r"^qkv: expected 3 x heads x head_dim channels for"):
        test_bindings.window_attention(module(), heads=heads)


def test_an_output_that_overlaps_an_input_or_another_output_is_refused() -> None:
    memory = torch.zeros(48)
    q, out = memory[:32].view(1, 4, 8), memory[16:].view(1, 4, 8)
    with pytest.raises(ValueError, match=r"^out: expected memory separate from that of q"):
        rope(q=q, out=out)
    rope(q=memory[:32].view(1, 4, 8).clone(), out=out)
    numbers = torch.zeros(6, dtype=torch.int32)
    labels, areas = numbers[:4].view(1, 2, 2), numbers[2:].view(1, 2, 2)
    with pytest.raises(ValueError, match=r"^labels: expected memory separate from that of areas"):
        module().connected_components(torch.zeros(1, 2, 2).bool(), labels, areas, 1)


def test_lazily_negated_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^q: expected a tensor with materialized values"):
        rope(q=torch._neg_view(torch.rand(1, 4, 8)))


def test_a_mask_of_too_many_pixels_is_refused_before_it_is_copied() -> None:
    masks = torch.zeros(1, 1, 1, dtype=torch.bool).expand(1, 2**16, 2**15)
    for call in (connected_components, lambda m: small_components(m, 4)):
        with pytest.raises(ValueError, match=r"^masks: expected fewer than 2\^31 pixels a mask"):
            call(masks)
        with pytest.raises(ValueError, match=r"^masks: expected a tensor with values, got .* meta"):
            call(torch.zeros(1, 4, 4, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize("number", [1.5, "4", None, float("nan")])
def test_an_area_that_is_no_integer_is_refused_in_one_line(number: Any) -> None:
    with pytest.raises(TypeError, match=r"^max_area: expected an integer, got \w+ .*$") as caught:
        small_components(torch.ones(1, 4, 4, dtype=torch.bool), number)
    assert "\n" not in str(caught.value)


def test_a_large_area_is_that_of_the_largest_mask() -> None:
    masks = torch.ones(1, 4, 4, dtype=torch.bool)
    assert torch.equal(small_components(masks, 2**70), masks)


def test_outputs_of_components_have_memory_of_their_own() -> None:
    masks = torch.ones(1, 2, 2, dtype=torch.bool)
    numbers = torch.zeros(6, dtype=torch.int32)
    labels, areas = numbers[:4].view(1, 2, 2), numbers[2:].view(1, 2, 2)
    for backend in ("cpu", "torch"):
        with pytest.raises(ValueError, match="separate memory for labels and areas"):
            connected_components(masks, backend=backend, out=(labels, areas))
        bits = numbers.view(torch.uint8)[4:8].view(1, 2, 2)
        with pytest.raises(ValueError, match="labels: expected memory separate from masks"):
            connected_components(bits, backend=backend, out=(labels, labels.clone()))
    expanded = torch.zeros(1, dtype=torch.int32).expand(1, 2, 2)
    with pytest.raises(ValueError, match="out: labels: expected contiguous"):
        connected_components(masks, out=(expanded, labels))
