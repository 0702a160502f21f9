"""Memory attention in Triton: errors in the interpreter, compiled code for several GPUs, and errors
on a GPU.
"""

from __future__ import annotations

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.memory_attention import memory_attention
from sam2_fast.ops.memory_attention.reference import memory_attention_reference
from tests.ops.test_memory_attention import RAGGED, Inputs, case, cast, error
from tests.ops.triton_tools import interpret, resources

# Memories of each object, images, dim, memory_dim, side of the grid.
SHAPES = [
    (RAGGED, 1, 16, 8, 6),
    (RAGGED, 4, 16, 8, 6),
    (((7, 16),), 1, 256, 64, 5),
    (((0, 1), (1, 0)), 2, 32, 6, 3),
]

INTERPRETED = f"""
from sam2_fast.ops.memory_attention.reference import memory_attention_reference
from sam2_fast.ops.memory_attention.triton_kernels import triton_attention
from tests.ops.test_memory_attention import case, cast, error

for objects, images, dim, memory_dim, side in {SHAPES}:
    for scale in (1.0, 8.0) if images == 1 and dim == 16 else (8.0,):
        for dtype in (torch.float32, torch.float16):
            inputs = cast(case(side, objects, images, dim, memory_dim, scale=scale), dtype)
            exact = memory_attention_reference(*cast(inputs, torch.float64))
            torch_error = error(memory_attention_reference(*inputs), exact)
            for spans in (1, 3) if dtype == torch.float16 else (1,):
                kernel_error = error(triton_attention(*inputs, spans=spans), exact)
                context = objects, dtype, scale, spans
                assert kernel_error <= 2 * torch_error, (*context, kernel_error, torch_error)
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

    types = dict.fromkeys(("position", "temporal", "weight", "bias", "keys", "values"), "*bf16")
    types |= {"slots": "*i64", "table": "*fp32"}
    types |= dict.fromkeys(("tokens", "channels", "layers", "layer_stride"), "i32")
    constants = {"NARROW": 64, "HALF": 128, "COPY": True, "BLOCK": BLOCK, "EXACT": False}
    used = resources(
        keys_kernel, types, constants, capability, 8, 3, ("tokens", "channels", "layer_stride")
    )
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (89, 99), (90, 227), (120, 99)])
def test_projections_compile_without_spills_and_fit(capability: int, shared: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels.memory_attention import project_kernel, projection_tile

    block, columns, warps = projection_tile(2)
    types = dict.fromkeys(("x", "norm_weight", "norm_bias", "weight", "bias", "out"), "*bf16")
    types |= {"table": "*fp32", "eps": "fp32"}
    types |= dict.fromkeys(("rows", "tokens", "rotated_parts"), "i32")
    constants = {"CHANNELS": 256, "HALF": 128, "BLOCK": block, "BLOCK_N": columns, "EXACT": False}
    used = resources(project_kernel, types, constants, capability, warps, 1, ("rows", "tokens"))
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


def test_a_refusal_without_a_gpu_names_the_next_backend() -> None:
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
    objects, images, dim, memory_dim, side = shape
    inputs = on_gpu(cast(case(side, objects, images, dim, memory_dim), dtype))
    exact = memory_attention_reference(*cast(inputs, torch.float64))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = memory_attention(*inputs, backend="triton")
    stream.synchronize()
    assert error(output, exact) <= 2 * error(memory_attention_reference(*inputs), exact)
    assert torch.equal(memory_attention(*inputs, backend="triton"), output), "run to run"


def on_gpu(inputs: Inputs) -> Inputs:
    m = inputs.memories
    memories = m._replace(
        maps=[x.cuda() for x in m.maps],
        pointers=m.pointers.cuda(),
        positions=m.positions.cuda(),
    )
    return Inputs(
        inputs.x.cuda(),
        inputs.weights.to("cuda"),
        inputs.table.cuda(),
        memories,
        inputs.temporal.cuda(),
        inputs.position.cuda(),
    )
