"""Memory attention in Triton: its arithmetic in the interpreter, its code for several GPUs, and
there what the CPU promises.
"""

from __future__ import annotations

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.memory_attention import Memories, memory_attention
from sam2_fast.ops.memory_attention.reference import memory_attention_reference
from tests.ops.test_memory_attention import RAGGED, Case, case, cast
from tests.ops.triton_tools import interpret, resources

SHAPES = [
    (RAGGED, 1, 16, 8, 6),
    (RAGGED, 4, 16, 8, 6),
    (((7, 16),), 1, 256, 64, 5),
    (((0, 1), (1, 0)), 2, 32, 6, 3),
]

INTERPRETED = f"""
from sam2_fast.ops.memory_attention.reference import memory_attention_reference
from sam2_fast.ops.memory_attention.triton_kernels import triton_attention
from tests.ops.test_memory_attention import case, cast

def error(found, exact):
    return (found.double() - exact).square().mean().sqrt().item()

for objects, images, dim, narrow, side in {SHAPES}:
    for scale in (1.0, 8.0):
        for dtype in (torch.float32, torch.float16):
            given = cast(case(side, objects, images, dim, narrow, scale=scale), dtype)
            exact = memory_attention_reference(*cast(given, torch.float64))
            theirs = error(memory_attention_reference(*given), exact)
            for spans in (1, 3):
                mine = error(triton_attention(*given, spans=spans), exact)
                assert mine <= 2 * theirs, (objects, dtype, scale, spans, mine, theirs)
"""


@pytest.mark.proves("interpreted", "memory_attention:triton")
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "memory_attention:triton")
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (89, 99), (90, 227), (120, 99)])
def test_compiles_without_spills_and_fits(capability: int, shared: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels.memory_attention import BLOCK, keys_kernel

    kinds = dict.fromkeys(("position", "temporal", "weight", "bias", "keys", "values"), "*bf16")
    kinds |= {"slots": "*i64", "table": "*fp32"} | dict.fromkeys(
        ("tokens", "channels", "layers", "layer_stride"), "i32"
    )
    constants = {"NARROW": 64, "HALF": 128, "COPY": True, "BLOCK": BLOCK, "EXACT": False}
    found = resources(
        keys_kernel, kinds, constants, capability, 8, 3, ("tokens", "channels", "layer_stride")
    )
    assert found[1] == 0 and found[2] <= shared * 1024, found


@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (89, 99), (90, 227), (120, 99)])
def test_projections_compile_without_spills_and_fit(capability: int, shared: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels.memory_attention import project_kernel, projection_tile

    block, columns, warps = projection_tile(2)
    kinds = dict.fromkeys(("x", "norm_weight", "norm_bias", "weight", "bias", "out"), "*bf16")
    kinds |= {"table": "*fp32", "eps": "fp32"} | dict.fromkeys(
        ("rows", "tokens", "rotated_parts"), "i32"
    )
    constants = {"CHANNELS": 256, "HALF": 128, "BLOCK": block, "BLOCK_N": columns, "EXACT": False}
    found = resources(project_kernel, kinds, constants, capability, warps, 1, ("rows", "tokens"))
    assert found[1] == 0 and found[2] <= shared * 1024, found


def test_says_why_it_refuses() -> None:
    with pytest.raises(BackendError, match=r"memory_attention: triton refuses: .*Would run: cpu"):
        memory_attention(*case(), backend="triton")


@pytest.mark.proves("gpu test", "memory_attention:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [*SHAPES, (((7, 64),), 1, 256, 64, 64), (((7, 64),) * 3 + ((2, 8),), 1, 256, 64, 64)],
    ids=str,
)
def test_errs_at_most_twice_as_much_as_torch_on_a_gpu(shape: tuple, dtype: torch.dtype) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    objects, images, dim, narrow, side = shape
    given = on_gpu(cast(case(side, objects, images, dim, narrow), dtype))
    exact = memory_attention_reference(*cast(given, torch.float64))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = memory_attention(*given, backend="triton")
    stream.synchronize()
    errors = [
        (x.double() - exact).square().mean().sqrt()
        for x in (found, memory_attention_reference(*given))
    ]
    assert errors[0] <= 2 * errors[1]
    assert torch.equal(memory_attention(*given, backend="triton"), found), "run to run"


def on_gpu(given: Case) -> Case:
    m = given.memories
    memories = Memories(
        [x.cuda() for x in m.maps],
        m.slots,
        m.rows,
        m.first,
        m.pointers.cuda(),
        m.positions.cuda(),
        m.first_pointer,
    )
    moved = (
        given.x.cuda(),
        given.weights.to("cuda"),
        given.table.cuda(),
        memories,
        given.temporal.cuda(),
        given.place.cuda(),
    )
    return Case(*moved)
