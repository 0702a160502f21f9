"""Rotary attention in Triton: errors in the interpreter, compiled code for several GPUs, and errors
on a GPU.
"""

from __future__ import annotations

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.rope_attention import rope_attention, rope_attention_reference, rope_table
from tests.ops.errors import Errors
from tests.ops.test_rope_attention import case, draws
from tests.ops.triton_tools import interpret, resources

CASES = [
    (8, 3, 16, 256, 64, 3),
    (9, 2, 5, 64, 16, 2),
    (8, 1, 0, 256, 256, 1),
    (8, 0, 7, 64, 64, 1),
    (3, 7, 1, 20, 1, 4),
    (1, 1, 0, 4, 3, 1),
]

INTERPRETED = f"""
from sam2_fast.kernels.rope_attention import rope_attention
from sam2_fast.ops.rope_attention import rope_attention_reference
from tests.ops.errors import Errors
from tests.ops.test_rope_attention import case, draws

for dtype in (torch.float32, torch.float16):
    for scale in (1.0, 16.0):
        for side, maps, unrotated, dim, values, spans in {CASES}:
            errors = Errors()
            for draw in range(draws(side, values, scale)):
                *inputs, table = case(side, maps, unrotated, dim, values, scale=scale, draw=draw)
                q, k, v = (x.to(dtype) for x in inputs)
                in_float64 = (x.double() for x in (q, k, v, table))
                exact = rope_attention_reference(*in_float64, unrotated)
                reference = rope_attention_reference(q, k, v, table, unrotated)
                actual = rope_attention(q, k, v, table, unrotated, spans)
                errors.add([actual], [reference], [exact])
            errors.check(dtype, scale, side)
"""


@pytest.mark.proves("interpreted", "rope_attention:triton")
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "rope_attention:triton")
@pytest.mark.parametrize("values", [64, 256])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (89, 99), (90, 227), (120, 99)])
def test_compiles_without_spills_and_fits(capability: int, shared: int, values: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import attention as kernels
    from sam2_fast.kernels.rope_attention import rotate_kernel

    pointers = {
        "q": "*bf16",
        "k": "*bf16",
        "v": "*bf16",
        "out": "*bf16",
        "span_accumulators": "*fp32",
        "span_maxima": "*fp32",
        "span_sums": "*fp32",
        "first_keys": "*i32",
    }
    integers = {"num_queries": "i32", "num_keys": "i32", "shared": "i32", "scale": "fp32"}
    rows, columns, warps, stages = kernels.default_form(values, 2, capability)
    constants = {"WIDE": 256, "VALUES": values, "BLOCK_Q": rows, "BLOCK_K": columns}
    constants |= {"EXACT": False, "value_dim": values}
    for alone, ragged in ((False, True), (kernels.min_spans(values) == 1, False)):
        flags = {"ALONE": alone, "RAGGED": ragged, "PEELED": capability in kernels.HOPPER}
        used = resources(
            kernels.attend_kernel,
            pointers | integers,
            constants | flags,
            capability,
            warps,
            stages,
            ("num_queries", "num_keys"),  # multiples of 16, as at 1024 pixels
        )
        assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used
    rotate_types = {
        "x": "*bf16",
        "table": "*fp32",
        "out": "*bf16",
        "tokens": "i32",
        "table_tokens": "i32",
        "rotated": "i32",
        "channels": "i32",
    }
    used = resources(
        rotate_kernel,
        rotate_types,
        {"BLOCK": 32, "HALF": 128},
        capability,
        4,
        2,
        ("tokens", "table_tokens", "rotated", "channels"),
    )
    assert used.spilled_bytes == 0, used
    merge_types = {n: pointers[n] for n in ("span_accumulators", "span_maxima", "span_sums", "out")}
    merge_types |= dict.fromkeys(("num_queries", "value_dim", "spans"), "i32")
    for spans in (2, 8, 64):
        block, padded_spans = kernels.merge_tile(spans)
        used = resources(
            kernels.merge_kernel,
            merge_types,
            {"SPANS": padded_spans, "BLOCK": block, "VALUES": kernels.MERGE_CHANNELS},
            capability,
            4,
            2,
            ("num_queries", "value_dim"),
        )
        assert used.spilled_bytes == 0, used


def test_a_refusal_without_a_gpu_names_the_next_backend() -> None:
    q, k, v = (torch.zeros(1, 4, c) for c in (8, 8, 2))
    with pytest.raises(BackendError, match=r"rope_attention: triton refuses: .*Would run: cpu"):
        rope_attention(q, k, v, rope_table(8, 2), backend="triton")


@pytest.mark.proves("gpu test", "rope_attention:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 16.0])
@pytest.mark.parametrize(
    "shape", [*CASES, (64, 7, 64, 256, 64, 0), (64, 1, 0, 256, 256, 0)], ids=str
)
def test_errs_at_most_twice_as_much_as_torch_on_a_gpu(
    shape: tuple[int, ...], scale: float, dtype: torch.dtype
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    from sam2_fast.kernels.rope_attention import rope_attention as launch

    side, maps, unrotated, dim, values, spans = shape
    errors, stream = Errors(), torch.cuda.Stream()
    for draw in range(draws(side, values, scale)):
        *inputs, table = case(side, maps, unrotated, dim, values, scale=scale, draw=draw)
        q, k, v = (x.to("cuda", dtype) for x in inputs)
        table = table.cuda()
        in_float64 = (x.double() for x in (q, k, v, table))
        exact = rope_attention_reference(*in_float64, unrotated)
        reference = rope_attention_reference(q, k, v, table, unrotated)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            actual = launch(q, k, v, table, unrotated, spans or None)
        stream.synchronize()
        errors.add([actual], [reference], [exact])
        assert torch.equal(launch(q, k, v, table, unrotated, spans or None), actual), "run to run"
    errors.check()
