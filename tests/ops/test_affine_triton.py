"""Scale and shift by channel in Triton: errors in the interpreter, compiled code for several GPUs,
and errors on a GPU. This file is the template of a Triton kernel's tests.
"""

from __future__ import annotations

import pytest
import torch

from sam2_fast.ops.affine import affine, affine_reference
from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from tests.ops.cases import Sizes
from tests.ops.errors import Errors
from tests.ops.test_affine import SHAPES, case
from tests.ops.triton_tools import interpret, resources

INTERPRETED = """
from sam2_fast.kernels.affine import affine
from sam2_fast.ops.affine import affine_reference
from tests.ops.errors import Errors
from tests.ops.test_affine import SHAPES, case

for shape in SHAPES:
    for dtype in (torch.float32, torch.float16):
        errors = Errors()
        for seed in range(4):
            x, weights = case(*shape, seed=seed).to(dtype)
            output = affine(x.reshape(-1, shape[-1]), weights.weight, weights.bias).view(shape)
            exact = affine_reference(x.double(), weights.to(torch.float64))
            errors.add([output], [affine_reference(x, weights)], [exact])
        errors.check(shape, dtype)
"""
POINTERS = ("x", "weight", "bias", "out")
SIZES = {"ROWS": 16, "CHANNELS": 128}
TRITON_SIZES: list[Sizes] = [Sizes("affine", "affine", SIZES, dict.fromkeys(POINTERS, "*bf16"))]


@pytest.mark.proves("interpreted", "affine:triton")
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "affine:triton")
@pytest.mark.parametrize("dtype", ["*fp32", "*bf16", "*fp16"])
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_compiles_without_spills(capability: int, dtype: str) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import affine as kernels

    types = dict.fromkeys(POINTERS, dtype) | {"rows": "i32", "channels": "i32"}
    constants = {"ROWS": kernels.ROWS, "CHANNELS": kernels.CHANNELS}
    used = resources(kernels.affine_kernel, types, constants, capability, 4, 3)
    assert used.registers <= 128 and used.spilled_bytes == 0
    assert used.shared_bytes <= 16 * 1024


def test_a_refusal_without_a_gpu_names_the_next_backend() -> None:
    with pytest.raises(BackendError, match=r"^affine: triton refuses: .*Would run: cpu$"):
        affine(*case(5, 6), backend="triton")


@pytest.mark.proves("gpu test", "affine:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 768)], ids=str)
def test_errs_at_most_twice_as_much_as_torch_on_a_gpu(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    errors = Errors()
    for seed in range(4):
        x, weights = case(*shape, seed=seed).to(dtype)
        x, weights = x.cuda(), weights.to("cuda")
        exact = affine_reference(x.double(), weights.to(torch.float64))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = affine(x, weights, backend="triton")
        stream.synchronize()
        errors.add([output], [affine_reference(x, weights)], [exact])
        assert torch.equal(affine(x, weights, backend="triton"), output), "run to run"
    errors.check(shape, dtype)
