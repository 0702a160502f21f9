"""The memory encoder in Triton: its arithmetic in the interpreter, its code for several GPUs, and
there what the CPU promises.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.memory_encoder import memory_encoder, memory_encoder_reference
from tests.ops.errors import Errors
from tests.ops.test_memory_encoder import case, cast
from tests.ops.triton_tools import interpret, resources

SHAPES: dict[str, dict[str, Any]] = {
    "one frame": {},
    "a frame each, sizes that fit": {"images": 3, "logits": (80, 80), "binarize": True},
    "released widths": {
        "height": 2,
        "width": 3,
        "objects": 2,
        "logits": (12, 16),
        "dim": 32,
        "channels": (4, 16, 64, 32),
        "memory": 64,
    },
    "one token": {"height": 1, "width": 1, "objects": 1, "logits": (7, 5), "blocks": 1},
    "larger logits": {"height": 2, "width": 3, "objects": 1, "logits": (50, 90), "scale": 20.0},
}

INTERPRETED = """
from sam2_fast.ops.memory_encoder import _triton_encoder, memory_encoder_reference
from tests.ops.errors import Errors
from tests.ops.test_memory_encoder import case, cast
from tests.ops.test_memory_encoder_triton import SHAPES


def channels_last(weights):
    return weights.mapped(
        lambda _, w: w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w
    )


for name, shape in SHAPES.items():
    for dtype in (torch.float32, torch.float16, "autocast"):
        errors = Errors()
        for draw in range(6 if shape.get("objects") == 1 else 1):
            autocast = dtype == "autocast"
            given = cast(case(**shape, draw=draw), torch.float32 if autocast else dtype)
            with torch.autocast("cpu", torch.float16, enabled=autocast):
                ours, torchs = _triton_encoder(*given), memory_encoder_reference(*given)
            assert ours.dtype == torchs.dtype
            errors.add([ours], [torchs], [memory_encoder_reference(*cast(given, torch.float64))])
            if draw == 0 and not autocast:
                last = _triton_encoder(*given._replace(weights=channels_last(given.weights)))
                assert torch.equal(last, ours), "where convolutions lie otherwise"
        errors.check(name, dtype)
"""


@pytest.mark.proves("interpreted", "memory_encoder:triton")
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "memory_encoder:triton")
@pytest.mark.parametrize("widths", [(4, 16), (16, 64), (64, 256)], ids=str)
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_convolutions_compile_without_spills_and_fit(
    capability: int, shared: int, widths: tuple[int, int]
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import memory_encoder as kernels

    kernel, (inner, outer) = kernels.down_kernel, widths
    kinds = dict.fromkeys(kernel.arg_names, "i32") | {"eps": "fp32"}
    kinds |= dict.fromkeys(("x", "weight", "bias", "norm_weight", "norm_bias", "out"), "*bf16")
    block, warps, stages = kernels.down_form(outer, 2, capability)
    constants = {"DEEP": max(inner, 16), "WIDE": outer, "BLOCK": block, "EXACT": False}
    sixteens = ("height", "width", "inner", "outer") if inner > 4 else ("height", "width", "outer")
    found = resources(kernel, kinds, constants, capability, warps, stages, sixteens)
    assert found[1] == 0 and found[2] <= shared * 1024, found


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_the_others_compile_without_spills(capability: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import memory_encoder as kernels

    pointers = dict.fromkeys(("x", "weight", "bias", "norm_weight", "norm_bias", "out"), "*bf16")
    for kernel, constants in (
        (kernels.first_kernel, {"BINARIZE": False, "WIDE": 4, "BLOCK": kernels.FIRST_BLOCK}),
        (kernels.depthwise_kernel, {"WIDE": 256, "BLOCK": kernels.DEPTHWISE_BLOCK}),
    ):
        kinds = (
            dict.fromkeys(kernel.arg_names, "i32") | {"eps": "fp32", "logits": "*fp32"} | pointers
        )
        kinds = {name: kinds[name] for name in kernel.arg_names}
        assert resources(kernel, kinds, constants, capability, 4, 3)[1] == 0


def test_says_why_it_refuses() -> None:
    with pytest.raises(BackendError, match=r"memory_encoder: triton refuses: .*Would run: cpu"):
        memory_encoder(*case(), backend="triton")


@pytest.mark.proves("gpu test", "memory_encoder:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        *SHAPES.values(),
        {"height": 64, "width": 64, "logits": (256, 256), "dim": 256, "hidden": 1024},
    ],
    ids=str,
)
def test_errs_at_most_twice_as_much_as_torch_on_a_gpu(
    shape: dict[str, Any], dtype: torch.dtype
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    errors, stream = Errors(), torch.cuda.Stream()
    for draw in range(6 if shape.get("objects") == 1 else 1):
        given = cast(case(**shape, draw=draw), dtype)
        weights = given.weights.to("cuda")
        given = given._replace(low=given.low.cuda(), logits=given.logits.cuda(), weights=weights)
        exact = memory_encoder_reference(*cast(given, torch.float64))
        torchs = memory_encoder_reference(*given)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            ours = memory_encoder(*given, backend="triton")
        stream.synchronize()
        errors.add([ours], [torchs], [exact])
        assert torch.equal(memory_encoder(*given, backend="triton"), ours), "run to run"
    errors.check()
