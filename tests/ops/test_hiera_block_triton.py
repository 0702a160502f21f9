"""A Hiera block in Triton: its arithmetic in the interpreter, its code for several GPUs, and there
what the CPU promises.
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

for name, shape in list(SHAPES.items())[{part} :: 2]:
    wide, half = torch.float32, torch.float16
    for dtype, scale, far in (
        (wide, 1.0, 0.0),
        (wide, 1.0, 300.0),
        (half, 1.0, 0.0),
        (half, 8.0, 20.0),
    ):
        given = case(*shape, scale=scale)
        given[0].add_(far)  # far from zero a variance from sums of squares is noise
        given = cast(given, dtype)
        exact = hiera_block_reference(*cast(given, torch.float64), 1e-6)
        theirs = max(
            error(hiera_block_reference(*given, 1e-6), exact), error(exact.to(dtype), exact)
        )
        for kernels.MLP_CHANNELS in (0, 160)[
            1 if far else 0 :
        ]:  # the MLP in three launches, and in one
            mine = error(_triton_block(*given, 1e-6), exact)
            assert mine <= 2 * theirs, (name, dtype, scale, far, kernels.MLP_CHANNELS, mine, theirs)
kernels.MLP_CHANNELS = 0
other = error(_triton_block(*given, 1.0), hiera_block_reference(*cast(given, torch.float64), 1.0))
assert other <= 1e-2 < error(exact, hiera_block_reference(*cast(given, torch.float64), 1.0)), (
    other
)  # the eps of this call
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

    kinds = dict.fromkeys(kernels.mlp_kernel.arg_names, "*bf16") | {
        "x": stream,
        "out": stream,
        "eps": "fp32",
    }
    kinds |= dict.fromkeys(("rows", "channels", "hidden"), "i32")
    block, deep, stages = kernels.mlp_tile(2, 2 if stream == "*bf16" else 4, capability)
    low, rest = kernels.split_channels(channels)
    constants = {"LOW": low, "REST": rest, "BLOCK_M": block, "BLOCK_H": deep, "EXACT": False}
    found = resources(
        kernels.mlp_kernel, kinds, constants, capability, 8, stages, ("channels", "hidden")
    )
    assert found[1] == 0 and found[2] <= shared * 1024, found


@pytest.mark.parametrize(
    ("channels", "taken"),
    [
        (96, (64, 32)),
        (112, (128, 0)),
        (144, (128, 16)),
        (16, (16, 0)),
        (8, (16, 0)),
        (160, (128, 32)),
    ],
)
def test_channels_are_taken_as_powers_of_two(channels: int, taken: tuple[int, int]) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels.hiera_block import split_channels

    assert split_channels(channels) == taken


def test_says_why_it_refuses() -> None:
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
    given = (x.cuda(), weights.to("cuda"), *rest)
    exact = hiera_block_reference(*cast(given, torch.float64), 1e-6)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = hiera_block(*given, backend="triton")
    stream.synchronize()
    theirs = max(error(hiera_block_reference(*given, 1e-6), exact), error(exact.to(dtype), exact))
    assert error(found, exact) <= 2 * theirs
    assert torch.equal(hiera_block(*given, backend="triton"), found), "run to run"
