"""The template op: the tests that an op has, each in its shortest form. docs/adding_a_kernel.md walks through them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sam2_fast.ops import affine
from sam2_fast.ops.affine import _run_native, affine_reference
from sam2_fast.ops.core.native import native, no_cuda, no_triton
from sam2_fast.ops.core.registry import BackendError
from tests.ops import cases
from tests.ops.errors import Errors
from tests.ops.triton_tools import interpret, resources

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(5, 7, 24), (3, 1), (1, 2048), (17,), (0, 8), (3, 0)]


def case(*shape: int, draw: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., C], weight [C], bias [C], float32."""
    generator = torch.Generator().manual_seed(draw)
    channels = shape[-1:]
    x, weight, bias = (torch.randn(s, generator=generator) for s in (shape, channels, channels))
    return x, weight, bias


def compare(run: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> None:
    """`run` errs at most twice as much as the definition in torch; both are measured against float64."""
    errors = Errors()
    for draw in range(8):
        x, weight, bias = (t.to(device) for t in case(*shape, draw=draw))
        x = x.to(dtype)
        exact = affine_reference(x.double(), weight.double(), bias.double())
        found = run(x, weight, bias)
        assert found.shape == x.shape and found.dtype == dtype
        errors.add([found], [affine_reference(x, weight, bias)], [exact])
    errors.check(shape, dtype)


@pytest.mark.proves("reference", "affine:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errs_at_most_twice_as_much_as_torch(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(lambda *tensors: _run_native(*tensors, isa=isa), shape, dtype)


def test_every_number_is_written_and_threads_do_not_matter(isa: str) -> None:
    module, (x, weight, bias) = native(), case(33, 24)
    assert module is not None
    found = [torch.full_like(x, torch.nan) for _ in range(3)]
    for threads, out in zip((1, 2, 5), found, strict=True):
        module.affine(x, weight, bias, out, threads, isa)
    assert found[0].isfinite().all() and torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_strided_tensors() -> None:
    x, weight, bias = case(6, 8, 10)
    assert torch.equal(affine(x.transpose(0, 1), weight, bias), affine(x, weight, bias).transpose(0, 1))
    assert torch.equal(affine(x[..., ::2], weight[::2], bias[::2]), affine(x, weight, bias)[..., ::2])


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_gradients_come_from_the_definition(backend: str) -> None:
    x, weight, bias = case(4, 6)
    x.requires_grad_()
    if backend == "cpu":
        with pytest.raises(BackendError, match=r"affine: cpu refuses: .*inference-only.*Would run: torch"):
            affine(x, weight, bias, backend="cpu")
    affine(x, weight, bias, backend="auto" if backend == "cpu" else backend).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, weight.expand(4, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5)}, r"weight: expected \[6\] float32 for x of shape \(4, 6\), got \(5,\) torch.float32"),
        ({"bias": torch.zeros(6).half()}, r"bias: expected \[6\] float32 for x of shape \(4, 6\), got \(6,\) torch.float16"),
        ({"x": torch.zeros(())}, r"x: expected shape \[\.\.\., C\], got a tensor without dimensions"),
    ],
)
def test_errors_of_arguments(change: dict[str, Tensor], message: str) -> None:
    given = dict(zip(("x", "weight", "bias"), case(4, 6), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        affine(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, 6)}, r"x: expected 2 dimensions, got \[2, 4, 6\]"),
        ({"out": torch.zeros(4, 5)}, r"out: expected \[4, 6\], got \[4, 5\]"),
        ({"out": torch.zeros(4, 6).half()}, "out: expected float32, the dtype of x, got float16"),
        ({"weight": torch.zeros(7)}, r"weight: expected \[6\] float32, got \[7\] float32"),
        ({"bias": torch.zeros(12)[::2]}, r"bias: expected a contiguous tensor, got \[6\] with strides \[2\]"),
        ({"x": torch.zeros(4, 6, dtype=torch.int64), "out": torch.zeros(4, 6, dtype=torch.int64)}, "x: expected float32, .*, got int64"),
    ],
)
def test_errors_of_the_binding(change: dict[str, Tensor], message: str) -> None:
    module = native()
    if module is None:
        pytest.skip("sam2_fast._C is not built")
    given = dict(zip(("x", "weight", "bias"), case(4, 6), strict=True)) | {"out": torch.zeros(4, 6)} | change
    with pytest.raises(ValueError, match=f"^{message}$"):
        module.affine(**given, num_threads=1, isa="portable")


def test_the_custom_op_is_complete() -> None:
    torch.library.opcheck(torch.ops.sam2_fast.affine.default, case(3, 5, 8))


INTERPRETED = """
from sam2_fast.kernels.affine import affine
from tests.ops.test_affine import SHAPES, compare

for shape in SHAPES:
    for dtype in (torch.float32, torch.float16):
        compare(lambda x, w, b: affine(x.reshape(x.shape[:-1].numel(), x.shape[-1]), w, b).view(x.shape), shape, dtype)
"""


@pytest.mark.proves("interpreted", "affine:triton")
def test_the_triton_kernel_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "affine:triton")
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_the_triton_kernel_compiles_without_spills(capability: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import affine as kernels

    kinds = TRITON_SIZES[0].kinds | dict.fromkeys(("total", "channels"), "i32")
    registers, spilled, _ = resources(kernels.affine_kernel, kinds, {"BLOCK": kernels.BLOCK}, capability, 4, 1)
    assert spilled == 0 and registers <= 64


@pytest.mark.gpu
@pytest.mark.proves("gpu test", "affine:cuda", "affine:triton")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), [("cuda", torch.float32), *(("triton", dtype) for dtype in DTYPES)], ids=str)
def test_on_a_gpu(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if reason := no_cuda() if backend == "cuda" else no_triton():
        pytest.skip(reason)
    with torch.cuda.stream(torch.cuda.Stream()):
        compare(lambda *tensors: affine(*tensors, backend=backend), shape, dtype, "cuda")


def of_affine() -> cases.Case:
    return cases.drawn(affine, *case(3, 4, 6))


RECORDED: dict[str, Callable[[], cases.Case]] = {"affine": of_affine}
TRITON_SIZES: list[cases.Sizes] = [
    cases.Sizes("affine", "affine", {"BLOCK": 16}, {"x": "*bf16", "weight": "*fp32", "bias": "*fp32", "out": "*bf16"})
]
