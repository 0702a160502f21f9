"""Windowed attention in Triton: its arithmetic in the interpreter, its code for several GPUs, and
there what the CPU promises.
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
    for dtype, scale in ((torch.float32, 1.0), (torch.float16, 1.0), (torch.float16, 16.0)):
        given = cast(case(*shape, scale=scale), dtype)
        exact = window_attention_reference(*cast(given, torch.float64))
        theirs = max(
            error(window_attention_reference(*given), exact), error(exact.to(dtype), exact)
        )
        mine = error(window_attention(*given), exact)
        assert mine <= 2 * theirs, (name, dtype, scale, mine, theirs)
"""
TRUNK = {  # window, pooled, channels of a head, side of the grid: of the trunks at 1024 pixels
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
    tall, by = window or side, 2 if pool else 1
    padded, pack = bool(window and side % window), kernels.tile_shape(tall, tall, by)[2]
    form = kernels.forms(tall, tall, by, head, capability, padded, 2)[0]
    low, rest = kernels.split_head_dim(head)
    numbers = ("height", "width", "columns", "count", "blocks", "heads")
    kinds = {"qkv": "*bf16", "pad": "*bf16", "out": "*bf16", "scale": "fp32"} | dict.fromkeys(
        numbers, "i32"
    )
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
    found = resources(
        kernels.window_kernel, kinds, constants, capability, *form[2:], ("height", "width")
    )
    assert found[1] == 0 and found[2] <= shared * 1024, found


def test_says_why_it_refuses() -> None:
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
    given = (qkv.cuda(), pad.cuda(), *rest)
    exact = window_attention_reference(*cast(given, torch.float64))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = window_attention(*given, backend="triton")
    stream.synchronize()
    theirs = max(error(window_attention_reference(*given), exact), error(exact.to(dtype), exact))
    assert error(found, exact) <= 2 * theirs
    assert torch.equal(window_attention(*given, backend="triton"), found), "run to run"
