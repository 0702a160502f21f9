"""A Hiera block in Triton: errors in the interpreter, compiled code for several GPUs, and errors on
a GPU.
"""

from __future__ import annotations

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.hiera_block import hiera_block, hiera_block_reference
from tests.ops.test_hiera_block import SHAPES, case, cast, error
from tests.ops.triton_tools import interpret, resources

INTERPRETED = """
from sam2_fast.kernels import hiera_block as kernels
from sam2_fast.ops.hiera_block import _triton_block, hiera_block_reference
from tests.ops.test_hiera_block import SHAPES, case, cast, error

# The interpreter's time is proportional to the number of programs. A second image changes only an
# offset, and the windows of these two shapes are in the test of the window kernel.
for name in ("large windows beyond the grid", "pooled windows beyond the grid"):
    del SHAPES[name]
for name, shape in list(SHAPES.items())[{part} :: 2]:
    for dtype, scale, mean, mlp_channels in (
        # 0: the MLP is three launches. 160: it is one launch for up to 160 channels.
        (torch.float32, 1.0, 300.0, (0, 160)),
        (torch.float16, 1.0, 0.0, (0,)),
        (torch.float16, 8.0, 20.0, (160,)),
    ):
        inputs = case(*shape, batch=2 if name == "small windows" else 1, scale=scale)
        # With a large mean, a variance computed from sums of squares would be inaccurate.
        inputs[0].add_(mean)
        inputs = cast(inputs, dtype)
        exact = hiera_block_reference(*cast(inputs, torch.float64), 1e-6)
        torch_error = max(
            error(hiera_block_reference(*inputs, 1e-6), exact), error(exact.to(dtype), exact)
        )
        for kernels.MLP_CHANNELS in mlp_channels:
            kernel_error = error(_triton_block(*inputs, 1e-6), exact)
            context = name, dtype, scale, mean, kernels.MLP_CHANNELS
            assert kernel_error <= 2 * torch_error, (*context, kernel_error, torch_error)

# The kernels use the eps of the call.
kernels.MLP_CHANNELS = 0
exact_with_eps = hiera_block_reference(*cast(inputs, torch.float64), 1.0)
difference = error(_triton_block(*inputs, 1.0), exact_with_eps)
assert difference <= 1e-2 < error(exact, exact_with_eps), difference
"""


@pytest.mark.proves("interpreted", "hiera_block:triton")
@pytest.mark.parametrize("part", [0, 1])
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter(part: int) -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED.replace("{part}", str(part)))


@pytest.mark.proves("compiled", "hiera_block:triton")
@pytest.mark.parametrize("channels", [96, 112, 144])
@pytest.mark.parametrize("stream", ["*bf16", "*fp32"])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_the_mlp_compiles_without_spills_and_fits(
    capability: int, shared: int, stream: str, channels: int
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import hiera_block as kernels

    types = dict.fromkeys(kernels.mlp_kernel.arg_names, "*bf16")
    types |= {"x": stream, "out": stream, "eps": "fp32"}
    types |= dict.fromkeys(("rows", "channels", "hidden"), "i32")
    block, deep, stages = kernels.mlp_tile(2, 2 if stream == "*bf16" else 4, capability)
    low, rest = kernels.split_channels(channels)
    constants = {"LOW": low, "REST": rest, "BLOCK_M": block, "BLOCK_H": deep, "EXACT": False}
    used = resources(
        kernels.mlp_kernel, types, constants, capability, 8, stages, ("channels", "hidden")
    )
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (96, (64, 32)),
        (112, (128, 0)),
        (144, (128, 16)),
        (16, (16, 0)),
        (8, (16, 0)),
        (160, (128, 32)),
    ],
)
def test_channels_are_split_into_powers_of_two(channels: int, expected: tuple[int, int]) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels.hiera_block import split_channels

    assert split_channels(channels) == expected


def test_a_refusal_without_a_gpu_names_the_next_backend() -> None:
    with pytest.raises(BackendError, match=r"hiera_block: triton refuses: .*Would run: cpu"):
        hiera_block(*case(*SHAPES["pooled"]), backend="triton")


@pytest.mark.proves("gpu test", "hiera_block:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [*SHAPES.values(), (256, 256, 96, 96, 1, 8, False), (128, 128, 144, 288, 4, 8, True)],
    ids=str,
)
def test_errs_at_most_twice_as_much_as_torch_on_a_gpu(
    shape: tuple[int, int, int, int, int, int, bool], dtype: torch.dtype
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    x, weights, *rest = cast(case(*shape), dtype)
    inputs = (x.cuda(), weights.to("cuda"), *rest)
    exact = hiera_block_reference(*cast(inputs, torch.float64), 1e-6)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = hiera_block(*inputs, backend="triton")
    stream.synchronize()
    torch_error = error(hiera_block_reference(*inputs, 1e-6), exact)
    rounding_error = error(exact.to(dtype), exact)
    assert error(output, exact) <= 2 * max(torch_error, rounding_error)
    assert torch.equal(hiera_block(*inputs, backend="triton"), output), "run to run"
