"""The memory encoder in Triton: errors in the interpreter, compiled code for several GPUs, and
errors on a GPU.
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
    "one frame": {"objects": 2, "height": 3, "width": 2, "logits": (12, 8)},
    "one frame per object, logits at full size": {
        "objects": 2,
        "images": 2,
        "height": 3,
        "width": 2,
        "logits": (48, 32),
        "binarize": True,
    },
    "channels as in the model": {
        "height": 2,
        "width": 3,
        "objects": 2,
        "logits": (12, 16),
        "dim": 32,
        "channels": (4, 16, 64, 32),
        "memory_dim": 64,
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
    dtypes = (torch.float32, torch.float16, "autocast")
    for dtype in dtypes if name in ("one frame", "larger logits") else dtypes[:2]:
        errors = Errors()
        for draw in range(6 if shape.get("objects") == 1 else 1):
            autocast = dtype == "autocast"
            inputs = cast(case(**shape, draw=draw), torch.float32 if autocast else dtype)
            with torch.autocast("cpu", torch.float16, enabled=autocast):
                actual = _triton_encoder(*inputs)
                reference = memory_encoder_reference(*inputs)
            assert actual.dtype == reference.dtype
            exact = memory_encoder_reference(*cast(inputs, torch.float64))
            errors.add([actual], [reference], [exact])
            if draw == 0 and not autocast:
                strided = inputs._replace(weights=channels_last(inputs.weights))
                assert torch.equal(_triton_encoder(*strided), actual), "weights in channels_last"
        errors.check(name, dtype)
"""


@pytest.mark.proves("interpreted", "memory_encoder:triton")
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "memory_encoder:triton")
@pytest.mark.parametrize("channels", [(4, 16), (16, 64), (64, 256)], ids=str)
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_convolutions_compile_without_spills_and_fit(
    capability: int, shared: int, channels: tuple[int, int]
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import memory_encoder as kernels

    kernel = kernels.down_kernel
    inner, outer = channels
    types = dict.fromkeys(kernel.arg_names, "i32") | {"eps": "fp32"}
    types |= dict.fromkeys(("x", "weight", "bias", "norm_weight", "norm_bias", "out"), "*bf16")
    block, warps, stages = kernels.down_form(outer, 2, capability)
    constants = {"DEEP": max(inner, 16), "WIDE": outer, "BLOCK": block, "EXACT": False}
    multiples_of_16 = ("height", "width", "outer")
    if inner % 16 == 0:
        multiples_of_16 += ("inner",)
    used = resources(kernel, types, constants, capability, warps, stages, multiples_of_16)
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_first_and_depthwise_convolutions_compile_without_spills(capability: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import memory_encoder as kernels

    pointers = dict.fromkeys(("x", "weight", "bias", "norm_weight", "norm_bias", "out"), "*bf16")
    for kernel, constants in (
        (kernels.first_kernel, {"BINARIZE": False, "WIDE": 4, "BLOCK": kernels.FIRST_BLOCK}),
        (kernels.depthwise_kernel, {"WIDE": 256, "BLOCK": kernels.DEPTHWISE_BLOCK}),
    ):
        types = dict.fromkeys(kernel.arg_names, "i32")
        types |= {"eps": "fp32", "logits": "*fp32"} | pointers
        types = {name: types[name] for name in kernel.arg_names}
        used = resources(kernel, types, constants, capability, 4, 3)
        assert used.spilled_bytes == 0, used


def test_a_refusal_without_a_gpu_names_the_next_backend() -> None:
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
        inputs = cast(case(**shape, draw=draw), dtype)
        weights = inputs.weights.to("cuda")
        inputs = inputs._replace(
            low=inputs.low.cuda(), logits=inputs.logits.cuda(), weights=weights
        )
        exact = memory_encoder_reference(*cast(inputs, torch.float64))
        reference = memory_encoder_reference(*inputs)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            actual = memory_encoder(*inputs, backend="triton")
        stream.synchronize()
        errors.add([actual], [reference], [exact])
        assert torch.equal(memory_encoder(*inputs, backend="triton"), actual), "run to run"
    errors.check()
