"""Windowed attention in Triton: errors in the interpreter, compiled code for several GPUs, and
errors on a GPU.
"""

from __future__ import annotations

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.window_attention import window_attention, window_attention_reference
from tests.ops.test_window_attention import SHAPES, case, cast, error
from tests.ops.triton_tools import interpret, resources

INTERPRETED = """
from sam2_fast.kernels.window_attention import window_attention
from sam2_fast.ops.window_attention import window_attention_reference
from tests.ops.test_window_attention import SHAPES, case, cast, error

for name, shape in SHAPES.items():
    for dtype, scale in ((torch.float32, 1.0), (torch.float16, 16.0)):
        # A second image changes an offset only.
        batch = 2 if name == "whole windows" else 1
        inputs = cast(case(*shape, batch=batch, scale=scale), dtype)
        exact = window_attention_reference(*cast(inputs, torch.float64))
        torch_error = max(
            error(window_attention_reference(*inputs), exact), error(exact.to(dtype), exact)
        )
        kernel_error = error(window_attention(*inputs), exact)
        assert kernel_error <= 2 * torch_error, (name, dtype, scale, kernel_error, torch_error)
"""
# Blocks of the trunks at 1024 pixels: window, pooled, channels of a head, side of the grid.
TRUNK = {
    "tiny 8": (8, False, 96, 256),
    "tiny 8 pooled": (8, True, 96, 256),
    "base+ 4": (4, False, 56, 128),
    "large 4 pooled": (4, True, 72, 128),
    "base+ 14": (14, False, 56, 64),
    "large 16": (16, False, 72, 64),
    "tiny global": (0, False, 96, 64),
    "base+ 14 pooled": (14, True, 56, 64),
    "tiny 7": (7, False, 96, 32),
}


@pytest.mark.proves("interpreted", "window_attention:triton")
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "window_attention:triton")
@pytest.mark.parametrize("block", TRUNK.values(), ids=TRUNK)
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_compiles_without_spills_and_fits(
    capability: int, shared: int, block: tuple[int, bool, int, int]
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import window_attention as kernels

    window, pool, head, side = block
    tall = window or side
    stride = 2 if pool else 1
    padded = bool(window and side % window)
    pack = kernels.tile_shape(tall, tall, stride)[2]
    form = kernels.forms(tall, tall, stride, head, capability, padded, 2)[0]
    low, rest = kernels.split_head_dim(head)
    types = {"qkv": "*bf16", "pad": "*bf16", "out": "*bf16", "scale": "fp32"}
    types |= dict.fromkeys(("height", "width", "columns", "count", "blocks", "heads"), "i32")
    constants = {
        "head_dim": head,
        "BLOCK_Q": form[0],
        "BLOCK_K": form[1],
        "PACK": pack,
        "LOW": low,
        "REST": rest,
        "POOL": pool,
        "EXACT": False,
    }
    regular = pack == 1 and not padded and kernels.is_regular(tall, tall, form[1])
    constants |= {"PADDED": padded, "REGULAR": regular, "window_height": tall, "window_width": tall}
    used = resources(
        kernels.window_kernel, types, constants, capability, *form[2:], ("height", "width")
    )
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


def test_a_refusal_without_a_gpu_names_the_next_backend() -> None:
    with pytest.raises(BackendError, match=r"window_attention: triton refuses: .*Would run: cpu"):
        window_attention(*case(*SHAPES["pooled"]), backend="triton")


@pytest.mark.proves("gpu test", "window_attention:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [*SHAPES.values(), *((s, s, 2, h, w, p) for w, p, h, s in TRUNK.values())], ids=str
)
def test_errs_at_most_twice_as_much_as_torch_on_a_gpu(
    shape: tuple[int, int, int, int, int, bool], dtype: torch.dtype
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    qkv, pad, *rest = cast(case(*shape), dtype)
    inputs = (qkv.cuda(), pad.cuda(), *rest)
    exact = window_attention_reference(*cast(inputs, torch.float64))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = window_attention(*inputs, backend="triton")
    stream.synchronize()
    torch_error = error(window_attention_reference(*inputs), exact)
    rounding_error = error(exact.to(dtype), exact)
    assert error(output, exact) <= 2 * max(torch_error, rounding_error)
    assert torch.equal(window_attention(*inputs, backend="triton"), output), "run to run"
