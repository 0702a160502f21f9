"""The mask decoder in Triton: errors in the interpreter, compiled code for several GPUs, and errors
on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.mask_decoder import mask_decoder
from sam2_fast.ops.mask_decoder.reference import mask_decoder_reference
from tests.ops.errors import Errors
from tests.ops.test_mask_decoder import case, cast
from tests.ops.triton_tools import interpret, resources

SHAPES: dict[str, dict[str, Any]] = {
    "a block and a partial block": {},
    "one image per object": {
        "height": 4,
        "width": 8,
        "images": 3,
        "frames": 3,
        "heads": 8,
        "hidden": 64,
        "tokens": 9,
    },
    "absent tokens, the best mask": {"images": 3, "absent": True, "best": True, "heads": 8},
    "one image token": {
        "height": 1,
        "width": 1,
        "objects": 9,
        "masks": 1,
        "tokens": 2,
        "first": 1,
        "heads": 1,
    },
    "four masks": {"height": 9, "width": 2, "tokens": 16, "masks": 4, "objects": 1, "heads": 2},
    "many tokens": {"height": 3, "width": 3, "tokens": 33, "objects": 1, "heads": 8},
}

SHARED_MEMORY = [(80, 163), (89, 99), (90, 227), (120, 99)]
"""Compute capabilities, and the KB of shared memory that a block may use."""

INTERPRETED = """
from sam2_fast.kernels import mask_decoder as kernels
from sam2_fast.ops.mask_decoder.reference import mask_decoder_reference
from sam2_fast.ops.mask_decoder.triton_kernels import triton_decoder
from tests.ops.errors import Errors
from tests.ops.test_mask_decoder import case, cast
from tests.ops.test_mask_decoder_triton import SHAPES

for name, shape in list(SHAPES.items())[{part} :: 6]:
    # Each object has few predicted IoUs: they are checked over all dtypes and scales together.
    iou_errors = Errors()
    for dtype in (torch.float32, torch.float16):
        for scale in (8.0,) if dtype == torch.float32 else (1.0,):
            errors = Errors()
            for draw in range(2 if shape.get("objects", 3) > 2 else 4):
                inputs = cast(case(**shape, dim=128, scale=scale, draw=draw), dtype)
                exact = mask_decoder_reference(*cast(inputs, torch.float64))
                present = inputs.present
                if present is None:
                    present = torch.ones(inputs.prompts.shape[:2], dtype=torch.bool)
                actual, reference = triton_decoder(*inputs), mask_decoder_reference(*inputs)
                assert [x.dtype for x in actual] == [x.dtype for x in reference]
                assert (actual[2][~present] == 0).all()
                if draw == 0 and dtype == torch.float16:
                    strided = inputs._replace(
                        prompts=inputs.prompts.transpose(0, 1).contiguous().transpose(0, 1),
                        image=inputs.image.transpose(1, 2).contiguous().transpose(1, 2),
                        weights=inputs.weights.mapped(
                            lambda _, w: w.transpose(0, -1).contiguous().transpose(0, -1)
                        ),
                    )
                    assert all(map(torch.equal, triton_decoder(*strided), actual))
                results = actual, reference, exact
                errors.add(*((logits, tokens[present]) for logits, _, tokens in results))
                iou_errors.add(*([iou] for _, iou, _ in results))
            errors.check(name, dtype, scale)
    iou_errors.check(name, "predicted IoU")
"""

UNDER_AUTOCAST = """
from sam2_fast.ops.mask_decoder.reference import mask_decoder_reference
from sam2_fast.ops.mask_decoder.triton_kernels import triton_decoder
from tests.ops.errors import Errors
from tests.ops.test_mask_decoder import case, cast

errors = Errors()
for draw in range(2):
    inputs = case(dim=128, heads=8, objects=2, draw=draw)
    exact = mask_decoder_reference(*cast(inputs, torch.float64))
    with torch.autocast("cpu", torch.float16):
        reference, actual = mask_decoder_reference(*inputs), triton_decoder(*inputs)
    assert [x.dtype for x in actual] == [torch.float32] * 3
    errors.add(actual, reference, exact)
errors.check()
"""


def test_computes_in_the_dtype_of_autocast() -> None:
    pytest.importorskip("triton")
    interpret(UNDER_AUTOCAST)


@pytest.mark.proves("interpreted", "mask_decoder:triton")
@pytest.mark.parametrize("part", range(6))
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter(part: int) -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED.replace("{part}", str(part)))


@pytest.mark.proves("compiled", "mask_decoder:triton")
@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_token_to_image_attention_compiles_without_spills_and_fits(
    capability: int, shared: int, rows: int
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_decoder as kernels

    types = dict.fromkeys(("image", "position", "queries"), "*bf16")
    types |= dict.fromkeys(("span_accumulators", "span_maxima", "span_sums"), "*fp32")
    types |= {"count": "i32", "rows": "i32", "shared": "i32", "scale": "fp32"}
    constants = {
        "ROWS": rows,
        "DIM": 256,
        "BLOCK": kernels.image_tokens_at_once(2, capability),
        "EXACT": False,
    }
    kernel = kernels.token_to_image_attention_kernel
    used = resources(kernel, types, constants, capability, kernels.WARPS, 1, ("count", "rows"))
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


@pytest.mark.parametrize("stream", ["*bf16", "*fp32"])
@pytest.mark.parametrize("tokens", [4, 8, 16, 64])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_image_to_token_attention_compiles_without_spills_and_fits(
    capability: int, shared: int, tokens: int, stream: str
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_decoder as kernels

    kernel = kernels.image_to_token_attention_kernel
    types = dict.fromkeys(kernel.arg_names, "*bf16")
    types |= dict.fromkeys(("image", "position", "out"), stream)
    types |= {"offsets": "*fp32", "scale": "fp32", "eps": "fp32", "count": "i32", "shared": "i32"}
    constants = {
        "HEADS": 8,
        "AT_ONCE": kernels.heads_at_once(8, tokens),
        "TOKENS": tokens,
        "DIM": 256,
        "BLOCK": kernels.IMAGE_BLOCK,
        "EXACT": False,
    }
    used = resources(kernel, types, constants, capability, kernels.WARPS, 2, ("count",))
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


@pytest.mark.parametrize("masks", [1, 3, 4])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_upscaling_and_predicting_masks_compiles_without_spills_and_fits(
    capability: int, shared: int, masks: int
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_prediction as kernels

    kernel = kernels.upscale_and_predict_masks_kernel
    strides = ("count", "width", "mid_stride", "high_stride")
    types = dict.fromkeys(kernel.arg_names, "*bf16") | {"eps": "fp32"}
    types |= dict.fromkeys(("hypernetwork", "iou", "logits"), "*fp32")
    types |= dict.fromkeys((*strides, "iou_count", "first_value", "num_masks"), "i32")
    constants = {
        "CHOOSE": masks == 1,
        "VALUES": 4,
        "MASKS": masks,
        "DIM": 256,
        "BLOCK": kernels.BLOCK,
        "EXACT": False,
    }
    used = resources(kernel, types, constants, capability, kernels.WARPS, 1, strides)
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


STEPS = {
    "self-attention of the prompts": {"FROM_PROMPTS": True, "SELF": True},
    "to image": {"TO_IMAGE": True, "PARTS": 8},
    "from image, self-attention": {"ADD": True, "TO_TOKEN": True, "SELF": True, "PARTS": 16},
    "from image, to image": {"ADD": True, "TO_TOKEN": True, "TO_IMAGE": True, "PARTS": 16},
    "self-attention": {"ADD": True, "SELF": True, "PARTS": 16},
}
"""Constants of `token_step_kernel` in the launches of the decoder."""


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("tokens", [16, 32, 64])
@pytest.mark.parametrize(("capability", "shared"), SHARED_MEMORY)
def test_steps_of_the_tokens_compile_without_spills_and_fit(
    capability: int, shared: int, tokens: int, step: dict[str, Any]
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import decoder_tokens as kernels
    from sam2_fast.kernels.decoder_step import token_step_kernel as kernel

    flags = dict.fromkeys(("FROM_PROMPTS", "ADD", "TO_TOKEN", "SELF", "TO_IMAGE", "EXACT"), False)
    constants = flags | {"MASKED": True, "PARTS": 1} | step
    if tokens > 32 and constants["SELF"] and constants["TO_TOKEN"]:
        return  # the decoder makes two launches, each of which is compiled here
    constants |= {"HEADS": 8, "TOKENS": tokens, "DIM": 256}
    types = dict.fromkeys(kernel.arg_names, "*bf16") | {"present": "*u8"}
    types |= dict.fromkeys(("parts", "residual", "tokens", "self_parts", "offsets"), "*fp32")
    types |= dict.fromkeys(("prompt_stride", "count", "rows"), "i32")
    types |= dict.fromkeys(("self_scale", "eps"), "fp32")
    used = resources(
        kernel, types, constants, capability, kernels.WARPS, kernels.STAGES, ("prompt_stride",)
    )
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


@pytest.mark.parametrize("tokens", [16, 32, 64])
@pytest.mark.parametrize(("capability", "shared"), SHARED_MEMORY)
def test_the_mlp_of_the_tokens_compiles_without_spills_and_fits(
    capability: int, shared: int, tokens: int
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import decoder_mlp as kernels

    types = dict.fromkeys(kernels.token_mlp_kernel.arg_names, "*bf16") | {"eps": "fp32"}
    types |= dict.fromkeys(("parts", "residual", "tokens", "mlp_parts"), "*fp32")
    types |= dict.fromkeys(("count", "hidden", "span"), "i32")
    constants = {"PARTS": 8, "TOKENS": tokens, "DIM": 256, "BLOCK": kernels.HIDDEN, "EXACT": False}
    used = resources(
        kernels.token_mlp_kernel,
        types,
        constants,
        capability,
        kernels.WARPS,
        kernels.STAGES,
        ("hidden", "span"),
    )
    assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


@pytest.mark.parametrize(("capability", "shared"), SHARED_MEMORY)
def test_the_heads_compile_without_spills_and_fit(capability: int, shared: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import decoder_heads as kernels
    from sam2_fast.kernels.mask_decoder import MAX_SPANS

    other_types = dict.fromkeys(("span_accumulators", "span_maxima", "span_sums"), "*fp32")
    other_types |= dict.fromkeys(("parts", "residual", "iou", "hypernetwork"), "*fp32")
    other_types |= dict.fromkeys(("spans", "count", "rows", "hidden"), "i32")
    other_types |= dict.fromkeys(("iou_count", "first_mask", "iou_token", "num_masks"), "i32")
    other_types |= {"present": "*u8", "eps": "fp32"}
    output_constants = {"HEADS": 8, "DIM": 256}
    heads_constants = {
        "MASKED": True,
        "PARTS": 8,
        "DIM": 256,
        "WIDE": 256,
        "VALUES": 4,
        "BLOCK": kernels.HIDDEN,
    }
    output_kernel = kernels.token_to_image_output_kernel
    for kernel, constants, warps in (
        (output_kernel, {"SPANS": MAX_SPANS, "TOGETHER": 1} | output_constants, 4),
        (output_kernel, {"SPANS": 8, "TOGETHER": 4} | output_constants, 4),
        (kernels.token_heads_kernel, heads_constants, 8),
    ):
        names = [n for n in kernel.arg_names if n not in constants]
        types = {n: other_types.get(n, "*bf16") for n in names}
        multiples_of_16 = ("hidden",) if "hidden" in names else ()
        used = resources(kernel, types, constants, capability, warps, 3, multiples_of_16)
        assert used.spilled_bytes == 0 and used.shared_bytes <= shared * 1024, used


def test_a_refusal_without_a_gpu_names_the_next_backend() -> None:
    with pytest.raises(BackendError, match=r"mask_decoder: triton refuses: .*Would run: cpu"):
        mask_decoder(*case(), backend="triton")


@pytest.mark.proves("gpu test", "mask_decoder:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [*SHAPES.values(), {"height": 64, "width": 64, "dim": 256, "hidden": 2048, "heads": 8}],
    ids=str,
)
def test_errs_at_most_twice_as_much_as_torch_on_a_gpu(
    shape: dict[str, Any], dtype: torch.dtype
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    errors, stream = Errors(), torch.cuda.Stream()
    for draw in range(12):
        inputs = cast(case(**{"dim": 128, **shape}, draw=draw), dtype)
        fields = inputs._asdict().items()
        inputs = inputs._replace(
            **{name: x.cuda() for name, x in fields if isinstance(x, torch.Tensor)},
            weights=inputs.weights.to("cuda"),
        )
        exact = mask_decoder_reference(*cast(inputs, torch.float64))
        reference = mask_decoder_reference(*inputs)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            actual = mask_decoder(*inputs, backend="triton")
        stream.synchronize()
        present = inputs.present
        if present is None:
            present = torch.ones_like(inputs.prompts[..., 0], dtype=torch.bool)
        results = actual, reference, exact
        errors.add(*((logits, iou, tokens[present]) for logits, iou, tokens in results))
        assert all(map(torch.equal, mask_decoder(*inputs, backend="triton"), actual)), "run to run"
    errors.check()
